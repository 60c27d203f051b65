//! [`Consumer`]: hears of one topic from one nsqd, for as long as it can and again when it could not.

use std::sync::Arc;
use std::time::Duration;

use entity_sync_bus::PlainInbox;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::error::{Answer, Said, SessionError};
use crate::link::Link;
use crate::run::Stop;
use crate::status::{Nsqd, Shared, add};
use crate::wire::{self, Channel, Frame, Topic};

/// How long an nsqd may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

pub(crate) struct Consumer {
    pub(crate) shared: Arc<Shared>,
    /// Which of the nsqds.
    pub(crate) nsqd: usize,
    pub(crate) topic: Topic,
    pub(crate) inbox: PlainInbox,
    pub(crate) stop: Stop,
}

impl Consumer {
    pub(crate) async fn run(self) {
        let shared = self.shared.clone();
        let nsqd = &shared.nsqds[self.nsqd];
        let mut reached = nsqd.reached.subscribe();
        let mut backoff = Backoff::new(shared.config.backoff.clone());
        let mut was_subscribed = false;
        loop {
            reached.mark_unchanged();
            let opened = tokio::select! {
                biased;
                _ = self.stop.requested() => return,
                opened = self.subscribe(nsqd) => opened,
            };
            let mut lived = Duration::ZERO;
            let error = match opened {
                Err(error) => error,
                Ok(mut link) => {
                    if std::mem::replace(&mut was_subscribed, true) {
                        add(&shared.counters.reconnects);
                    }
                    let since = Instant::now();
                    let heard = {
                        let _subscribed = shared.subscribed(nsqd, &self.inbox);
                        self.hear(nsqd, &mut link).await
                    };
                    lived = since.elapsed();
                    match heard {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
            };
            shared.cannot_hear(nsqd, self.topic.as_str(), &error);
            tokio::select! {
                biased;
                _ = self.stop.requested() => return,
                () = sleep(backoff.wait(lived)) => {}
                // Another connection was made here: no need to wait any longer. One that was made and lost waits all the
                // same, or two of them would keep each other going.
                _ = reached.changed(), if lived.is_zero() => {}
            }
        }
    }

    /// On a channel of our own, made anew for each connection: of one that nsqd takes for alive longer than we do, the
    /// messages would otherwise be shared out between it and its successor.
    async fn subscribe(&self, nsqd: &Nsqd) -> Result<Link, SessionError> {
        let mut link = Link::open(&self.shared, nsqd).await?;
        wire::subscribe(&mut link.outgoing, &self.topic, &Channel::ephemeral(random()));
        let count = self.shared.config.max_in_flight.get().min(link.max_ready.max(1));
        wire::ready(&mut link.outgoing, count);
        let deadline = Instant::now() + self.shared.config.timeout;
        match link.answer(deadline).await? {
            wire::OK => Ok(link),
            other => Err(SessionError::Unexpected(Said::new(other))),
        }
    }

    /// Puts messages into the inbox until the connection is lost, or all is over.
    async fn hear(&self, nsqd: &Nsqd, link: &mut Link) -> Result<(), SessionError> {
        let mut goodbye_by = None;
        loop {
            while let Some(frame) = link.frame()? {
                let id = match frame {
                    Frame::Message(message) => {
                        match self.shared.has_seen(message.body) {
                            true => add(&self.shared.counters.repeated),
                            false => {
                                self.inbox.message(message.body.to_vec());
                                add(&self.shared.counters.received);
                            }
                        }
                        message.id
                    }
                    Frame::Response(wire::CLOSE_WAIT) if goodbye_by.is_some() => return Ok(()),
                    Frame::Response(other) => return Err(SessionError::Unexpected(Said::new(other))),
                    Frame::Error(data) => {
                        let answer = Answer::new(data);
                        if answer.is_fatal() {
                            return Err(SessionError::Answer(answer));
                        }
                        self.shared
                            .complained(nsqd, &format_args!("topic {:?}", self.topic.as_str()), &answer);
                        continue;
                    }
                };
                wire::finish(&mut link.outgoing, id);
            }
            let is_leaving = goodbye_by.is_some();
            tokio::select! {
                turn = link.turn(goodbye_by) => match turn {
                    Err(_) if is_leaving => return Ok(()),
                    turn => turn?,
                },
                deadline = self.stop.requested(), if !is_leaving => {
                    wire::close(&mut link.outgoing);
                    goodbye_by = Some(deadline.min(Instant::now() + GOODBYE));
                }
            }
        }
    }
}

pub(crate) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without the kernel's entropy, what the standard library could get.
        bytes = fastrand::u128(..).to_ne_bytes();
    }
    bytes
}
