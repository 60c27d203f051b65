//! [`Producer`]: publishes what waits to be, to one nsqd.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::error::{Answer, Said, SessionError};
use crate::link::Link;
use crate::owed::Owed;
use crate::status::{Nsqd, Shared, add};
use crate::wire::{self, Frame};

/// How many messages may wait to be sent, and how many may be unanswered.
pub(crate) const MAX_WAITING: usize = 1024;

/// While a connection is made, what waits for it is looked at so often.
const KEEP_EVERY: Duration = Duration::from_millis(10);

/// How many messages are kept for an nsqd that is down while another one takes them.
const MAX_KEPT: usize = 10_000;

/// A message that is to be published.
#[derive(Clone)]
pub(crate) struct Publish {
    /// The whole command.
    pub(crate) command: Arc<[u8]>,
    /// The same without what tells messages apart: of those that are kept, one of a kind is enough.
    pub(crate) kind: Arc<[u8]>,
    /// What is owed for it, shared by all nsqds that it is published to. Nothing for one that another nsqd has.
    pub(crate) owed: Option<Arc<Owed>>,
}

pub(crate) struct Producer {
    pub(crate) shared: Arc<Shared>,
    /// Which of the nsqds.
    pub(crate) nsqd: usize,
    pub(crate) waiting: mpsc::Receiver<Publish>,
    pub(crate) kept: Kept,
}

/// What this nsqd did not get while it was down. Nodes that hear only it are to be told when it is back.
#[derive(Default)]
pub(crate) struct Kept {
    by_kind: HashMap<Arc<[u8]>, Publish>,
    is_used: bool,
}

impl Kept {
    /// With a single nsqd there is nothing to keep: nobody else has confirmed it, and it is published again.
    pub(crate) fn new(nsqds: usize) -> Self {
        Self {
            by_kind: HashMap::new(),
            is_used: nsqds > 1,
        }
    }

    fn keep(&mut self, shared: &Shared, publish: Publish) {
        if !self.is_used {
            return;
        }
        if self.by_kind.len() >= MAX_KEPT && !self.by_kind.contains_key(&publish.kind) {
            return add(&shared.counters.not_kept);
        }
        let publish = Publish { owed: None, ..publish };
        self.by_kind.insert(publish.kind.clone(), publish);
    }

    /// The next one, whether another nsqd has it, does not have it yet, or never will: the last are published again and so come
    /// twice, but nobody knows yet which these are.
    fn next(&mut self) -> Option<Publish> {
        let kind = self.by_kind.keys().next()?.clone();
        self.by_kind.remove(&kind)
    }
}

impl Producer {
    /// Ends once nothing waits and nothing more will come.
    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        let nsqd = &shared.nsqds[self.nsqd];
        let mut reached = nsqd.reached.subscribe();
        // The connection is made for the first message, as the original does.
        let Some(first) = self.waiting.recv().await else {
            return;
        };
        let mut first = Some(first);
        let mut backoff = Backoff::new(shared.config.backoff.clone());
        let mut was_connected = false;
        loop {
            reached.mark_unchanged();
            let mut lived = Duration::ZERO;
            let opened = self.open(nsqd).await;
            let error = match opened {
                Err(error) => error,
                Ok(mut link) => {
                    if std::mem::replace(&mut was_connected, true) {
                        add(&shared.counters.reconnects);
                    }
                    let since = Instant::now();
                    shared.publishes(nsqd);
                    nsqd.is_publishing.store(true, Ordering::Relaxed);
                    let end = self.publish(nsqd, &mut link, first.take()).await;
                    nsqd.is_publishing.store(false, Ordering::Relaxed);
                    lived = since.elapsed();
                    match end {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
            };
            shared.cannot_publish(nsqd, &error);
            // Nobody is kept waiting for what may take long: what is not confirmed is done locally, and comes again.
            if let Some(first) = first.take() {
                self.kept.keep(&shared, first);
            }
            let over = sleep(backoff.wait(lived));
            tokio::pin!(over);
            loop {
                tokio::select! {
                    biased;
                    () = &mut over => break,
                    // Some subscription was made here, which is a good moment to try again.
                    _ = reached.changed() => break,
                    dropped = self.waiting.recv() => match dropped {
                        Some(dropped) => self.kept.keep(&shared, dropped),
                        None => return,
                    },
                }
            }
        }
    }

    /// Connects, which may take long. Until then what waits is kept, but for the last that came: they are published first.
    async fn open(&mut self, nsqd: &Nsqd) -> Result<Link, SessionError> {
        let shared = self.shared.clone();
        let opened = Link::open(&shared, nsqd);
        tokio::pin!(opened);
        loop {
            tokio::select! {
                biased;
                opened = &mut opened => return opened,
                () = sleep(KEEP_EVERY), if self.kept.is_used => {}
            }
            while self.waiting.len() > MAX_WAITING / 2
                && let Ok(publish) = self.waiting.try_recv()
            {
                self.kept.keep(&shared, publish);
            }
        }
    }

    /// Publishes until the connection is lost, or nothing more will come and all is answered. Answers come in the order
    /// of what they answer.
    async fn publish(&mut self, nsqd: &Nsqd, link: &mut Link, first: Option<Publish>) -> Result<(), SessionError> {
        let mut unanswered = VecDeque::new();
        let end = self.publish_on(nsqd, link, first, &mut unanswered).await;
        for (publish, _) in unanswered {
            self.kept.keep(&self.shared, publish);
        }
        end
    }

    async fn publish_on(
        &mut self,
        nsqd: &Nsqd,
        link: &mut Link,
        first: Option<Publish>,
        unanswered: &mut VecDeque<(Publish, Instant)>,
    ) -> Result<(), SessionError> {
        let mut is_more_to_come = true;
        let mut next = first;
        loop {
            while let Some(frame) = link.frame()? {
                let Some((publish, _)) = unanswered.pop_front() else {
                    return Err(match frame {
                        Frame::Error(data) => SessionError::Answer(Answer::new(data)),
                        Frame::Response(data) => SessionError::Unexpected(Said::new(data)),
                        Frame::Message(message) => SessionError::Unexpected(Said::new(message.body)),
                    });
                };
                match frame {
                    Frame::Response(wire::OK) => {
                        self.shared.has_published(nsqd);
                        if let Some(owed) = publish.owed {
                            owed.confirm();
                        }
                    }
                    Frame::Error(data) => {
                        let answer = Answer::new(data);
                        match publish.owed {
                            Some(owed) => owed.refuse(answer.is_for_good()),
                            None => add(&self.shared.counters.not_kept),
                        }
                        // nsqd closes the connection now, whatever it was.
                        return Err(match answer.is_for_good() {
                            true => SessionError::Refused(answer),
                            false => SessionError::Answer(answer),
                        });
                    }
                    Frame::Response(other) => return Err(SessionError::Unexpected(Said::new(other))),
                    Frame::Message(message) => return Err(SessionError::Unexpected(Said::new(message.body))),
                }
            }
            while unanswered.len() < MAX_WAITING && link.has_room() {
                let waits = next.take().or_else(|| self.waiting.try_recv().ok());
                let Some(publish) = waits.or_else(|| self.kept.next()) else {
                    break;
                };
                link.outgoing.extend_from_slice(&publish.command);
                unanswered.push_back((publish, Instant::now() + self.shared.config.timeout));
            }
            if !is_more_to_come && unanswered.is_empty() {
                return Ok(());
            }
            let may_take = is_more_to_come && unanswered.len() < MAX_WAITING && link.has_room();
            let answer_by = unanswered.front().map(|&(_, deadline)| deadline);
            tokio::select! {
                turn = link.turn(answer_by) => turn?,
                publish = self.waiting.recv(), if may_take => {
                    is_more_to_come = publish.is_some();
                    next = publish;
                }
            }
        }
    }
}
