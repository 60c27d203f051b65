//! [`Outgoing`]: what waits to be handed to the connection. Whoever puts something in never waits.

use std::collections::{HashMap, HashSet};
use std::mem;

use async_nats::Subject;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Messages that may wait.
const MAX_MESSAGES: usize = 65_536;

/// Bytes of messages that may wait; one more is let in when there are fewer.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What waits to be handed to the connection.
///
/// Messages are let in only while there is a connection, and belong to it: those that it hasn't taken when it is lost are
/// dropped, as the next one would bring old news. Of the topics only those that changed are kept, each once, so that they
/// need no limit but that of who subscribes.
#[derive(Default)]
pub(crate) struct Outgoing {
    state: Mutex<State>,
    changed: Notify,
    lost: Notify,
}

#[derive(Default)]
struct State {
    /// The connection that takes messages; none: nothing is let in.
    connection: Option<u64>,
    is_closed: bool,
    /// All topics that are.
    wanted: HashSet<Box<str>>,
    batch: Batch,
    bytes: usize,
    /// Given out in the last batch, and perhaps not sent yet. They count against the limits until the next one is asked for.
    given_messages: usize,
    given_bytes: usize,
}

/// What waited: first the topics, then the messages.
#[derive(Default)]
pub(crate) struct Batch {
    /// Whether each is wanted from now on.
    pub(crate) topics: HashMap<Box<str>, bool>,
    pub(crate) messages: Vec<(Subject, Bytes)>,
    /// The connection they are for.
    pub(crate) connection: Option<u64>,
}

impl Outgoing {
    /// Whether the message was let in.
    pub(crate) fn publish(&self, subject: &Subject, message: &[u8]) -> bool {
        let mut state = self.state.lock();
        if state.connection.is_none()
            || state.is_closed
            || state.batch.messages.len() + state.given_messages >= MAX_MESSAGES
            || state.bytes + state.given_bytes >= MAX_BYTES
        {
            return false;
        }
        let is_first = state.batch.messages.is_empty();
        state.bytes += message.len();
        let message = (subject.clone(), Bytes::copy_from_slice(message));
        state.batch.messages.push(message);
        drop(state);
        if is_first {
            self.changed.notify_one();
        }
        true
    }

    pub(crate) fn want(&self, topic: &str, is_wanted: bool) {
        let mut state = self.state.lock();
        if is_wanted {
            state.wanted.insert(topic.into());
        } else {
            state.wanted.remove(topic);
        }
        state.batch.topics.insert(topic.into(), is_wanted);
        drop(state);
        self.changed.notify_one();
    }

    /// All topics are given out once more.
    pub(crate) fn want_again(&self) {
        let state = &mut *self.state.lock();
        state.batch.topics = state.wanted.iter().map(|topic| (topic.clone(), true)).collect();
        self.changed.notify_one();
    }

    /// A topic is given out once more, if it still is one.
    pub(crate) fn want_once_more(&self, topic: &str) {
        let state = &mut *self.state.lock();
        if state.wanted.contains(topic) {
            state.batch.topics.insert(topic.into(), true);
            self.changed.notify_one();
        }
    }

    /// Another connection, or none any more. Gives how many messages waited for the one before, and are dropped.
    pub(crate) fn connection(&self, connection: Option<u64>) -> usize {
        let mut state = self.state.lock();
        state.connection = connection;
        state.bytes = 0;
        self.lost.notify_waiters();
        mem::take(&mut state.batch.messages).len()
    }

    /// Whether this connection still takes messages.
    pub(crate) fn is_for(&self, connection: Option<u64>) -> bool {
        let state = self.state.lock();
        state.connection.is_some() && state.connection == connection
    }

    /// Until this connection takes no more messages.
    pub(crate) async fn lost(&self, connection: Option<u64>) {
        loop {
            let notified = self.lost.notified();
            if !self.is_for(connection) {
                return;
            }
            notified.await;
        }
    }

    /// Nothing more is let in.
    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// What waits, once something does. `None`: it is closed, and no message waits.
    pub(crate) async fn next(&self) -> Option<Batch> {
        loop {
            {
                let mut state = self.state.lock();
                (state.given_messages, state.given_bytes) = (0, 0);
                if !state.batch.messages.is_empty() || (!state.is_closed && !state.batch.topics.is_empty()) {
                    let mut batch = mem::take(&mut state.batch);
                    batch.connection = state.connection;
                    state.given_messages = batch.messages.len();
                    state.given_bytes = mem::take(&mut state.bytes);
                    return Some(batch);
                }
                if state.is_closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime
            .map(|runtime| runtime.block_on(future))
            .ok()
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no runtime"))
    }

    #[test]
    fn bounded_by_number() {
        let outgoing = Outgoing::default();
        assert!(!outgoing.publish(&"a".into(), b"1"), "without a connection");
        assert_eq!(outgoing.connection(Some(1)), 0);
        for _ in 0..MAX_MESSAGES {
            assert!(outgoing.publish(&"a".into(), b"1"));
        }
        assert!(!outgoing.publish(&"a".into(), b"1"));
        // What is given out still counts until the next is asked for.
        let batch = run(outgoing.next()).map(|it| it.messages.len());
        assert_eq!(batch, Some(MAX_MESSAGES));
        assert!(!outgoing.publish(&"a".into(), b"1"));
        outgoing.want("b", true);
        assert_eq!(run(outgoing.next()).map(|it| it.messages.len()), Some(0));
        assert!(outgoing.publish(&"a".into(), b"1"));
    }

    #[test]
    fn bounded_by_bytes() {
        let outgoing = Outgoing::default();
        outgoing.connection(Some(1));
        let message = vec![0; MAX_BYTES / 2];
        assert!(outgoing.publish(&"a".into(), &message));
        assert!(outgoing.publish(&"a".into(), &message));
        assert!(!outgoing.publish(&"a".into(), b"1"));
        assert!(run(outgoing.next()).is_some());
        assert!(!outgoing.publish(&"a".into(), b"1"));
        outgoing.want("b", true);
        run(outgoing.next());
        assert!(outgoing.publish(&"a".into(), b"1"));
    }

    #[test]
    fn messages_belong_to_a_connection() {
        let outgoing = Outgoing::default();
        outgoing.connection(Some(1));
        assert!(outgoing.publish(&"a".into(), b"1"));
        let batch = run(outgoing.next()).and_then(|it| it.connection);
        assert!(outgoing.is_for(batch));
        assert!(outgoing.publish(&"a".into(), b"2"));
        assert_eq!(outgoing.connection(None), 1);
        assert!(!outgoing.is_for(batch) && !outgoing.is_for(None));
        assert!(!outgoing.publish(&"a".into(), b"3"));
        outgoing.connection(Some(2));
        assert!(!outgoing.is_for(batch));
        assert!(outgoing.publish(&"a".into(), b"4"));
        let messages = run(outgoing.next()).map(|it| it.messages);
        assert_eq!(messages, Some(vec![("a".into(), "4".into())]));
    }

    #[test]
    fn topics_wait_however_often_they_change() {
        let outgoing = Outgoing::default();
        for i in 0..1000 {
            outgoing.want("a", i % 2 == 0);
            outgoing.want("b", i % 2 == 1);
        }
        let topics = run(outgoing.next()).map(|it| it.topics);
        assert_eq!(topics, Some([("a".into(), false), ("b".into(), true)].into()));
        outgoing.want("c", true);
        outgoing.want_again();
        let topics = run(outgoing.next()).map(|it| it.topics);
        assert_eq!(topics, Some([("b".into(), true), ("c".into(), true)].into()));
    }

    #[test]
    fn closed_once_all_is_given() {
        let outgoing = Outgoing::default();
        outgoing.connection(Some(1));
        outgoing.publish(&"a".into(), b"1");
        outgoing.close();
        assert!(!outgoing.publish(&"a".into(), b"2"));
        outgoing.want("b", true);
        assert_eq!(run(outgoing.next()).map(|it| it.messages.len()), Some(1));
        outgoing.want("b", false);
        assert!(run(outgoing.next()).is_none());
    }
}
