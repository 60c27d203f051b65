//! [`Producer`]: publishes what waits to be, to the first nsqd that takes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::error::{Answer, Said, SessionError};
use crate::link::Link;
use crate::status::{Owed, Shared, add};
use crate::wire::{self, Frame};

/// How many messages may wait to be sent, and how many may be unanswered.
pub(crate) const MAX_WAITING: usize = 1024;

/// A message that is to be published.
pub(crate) struct Publish {
    /// The whole command.
    pub(crate) command: Vec<u8>,
    pub(crate) owed: Owed,
}

pub(crate) struct Producer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiting: mpsc::Receiver<Publish>,
}

impl Producer {
    /// Ends once nothing waits and nothing more will come.
    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        // The connection is made for the first message, as the original does.
        let Some(first) = self.waiting.recv().await else {
            return;
        };
        let mut first = Some(first);
        let mut backoff = Backoff::new(shared.config.backoff.clone());
        let mut was_connected = false;
        loop {
            let mut lived = Duration::ZERO;
            if let Some((number, mut link)) = self.open().await {
                let nsqd = &shared.nsqds[number];
                if std::mem::replace(&mut was_connected, true) {
                    add(&shared.counters.reconnects);
                }
                let since = Instant::now();
                nsqd.is_publishing.store(true, Ordering::Relaxed);
                let end = self.publish(&mut link, first.take()).await;
                nsqd.is_publishing.store(false, Ordering::Relaxed);
                lived = since.elapsed();
                match end {
                    Ok(()) => return,
                    Err(error) => shared.failed(nsqd, &"publishing", &error),
                }
            }
            // Nobody is kept waiting for what may take long: what is not confirmed is done locally, and comes again.
            first = None;
            let over = sleep(backoff.wait(lived));
            tokio::pin!(over);
            loop {
                tokio::select! {
                    biased;
                    () = &mut over => break,
                    () = shared.any_reached.notified() => break,
                    dropped = self.waiting.recv() => if dropped.is_none() {
                        return;
                    },
                }
            }
        }
    }

    /// A connection to the first nsqd where one can be had. Those that are heard of come first, or one that is cut off
    /// would be waited for each time.
    async fn open(&self) -> Option<(usize, Link)> {
        let is_heard = |&it: &usize| self.shared.nsqds[it].subscribed.load(Ordering::Relaxed) > 0;
        let (heard, others): (Vec<_>, Vec<_>) = (0..self.shared.nsqds.len()).partition(is_heard);
        for number in heard.into_iter().chain(others) {
            let nsqd = &self.shared.nsqds[number];
            match Link::open(&self.shared, nsqd).await {
                Ok(link) => return Some((number, link)),
                Err(error) => self.shared.failed(nsqd, &"publishing", &error),
            }
        }
        None
    }

    /// Publishes until the connection is lost, or nothing more will come and all is answered. Answers come in the order
    /// of what they answer.
    async fn publish(&mut self, link: &mut Link, first: Option<Publish>) -> Result<(), SessionError> {
        let mut unanswered = VecDeque::<(Owed, Instant)>::new();
        let mut is_more_to_come = true;
        let mut next = first;
        loop {
            while let Some(frame) = link.frame()? {
                let Some((owed, _)) = unanswered.pop_front() else {
                    return Err(match frame {
                        Frame::Error(data) => SessionError::Answer(Answer::new(data)),
                        Frame::Response(data) => SessionError::Unexpected(Said::new(data)),
                        Frame::Message(message) => SessionError::Unexpected(Said::new(message.body)),
                    });
                };
                match frame {
                    Frame::Response(wire::OK) => owed.confirm(),
                    Frame::Error(data) => {
                        let answer = Answer::new(data);
                        match answer.is_for_good() {
                            true => owed.refuse(),
                            false => owed.send_back(),
                        }
                        // nsqd closes the connection now, whatever it was.
                        return Err(SessionError::Answer(answer));
                    }
                    Frame::Response(other) => return Err(SessionError::Unexpected(Said::new(other))),
                    Frame::Message(message) => return Err(SessionError::Unexpected(Said::new(message.body))),
                }
            }
            while unanswered.len() < MAX_WAITING && link.has_room() {
                let Some(publish) = next.take().or_else(|| self.waiting.try_recv().ok()) else {
                    break;
                };
                link.outgoing.extend_from_slice(&publish.command);
                unanswered.push_back((publish.owed, Instant::now() + self.shared.config.timeout));
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
