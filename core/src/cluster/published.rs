//! [`Published`]: messages that were given to a plain queue, until it has confirmed them and brought them back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;

use super::deliveries::Batches;
use crate::hash::Seed;
use crate::key::EntityKey;
use crate::time::Timestamp;

pub(super) struct Published {
    messages: BTreeMap<u64, Message>,
    last_number: u64,
    /// Of each key, the messages that have not come back, the oldest first.
    unechoed: HashMap<EntityKey, VecDeque<u64>, Seed>,
    /// How many of each topic have not come back.
    unechoed_of_topic: Box<[usize]>,
    unconfirmed: usize,
    /// When something is to be done about which message.
    due: BTreeSet<(Timestamp, u64)>,
}

pub(super) struct Message {
    pub(super) key: EntityKey,
    pub(super) topic: usize,
    pub(super) is_counted: bool,
    /// This node's clients are owed a read for it.
    pub(super) is_applied: bool,
    /// How often it was lost on its way back.
    pub(super) losses: u32,
    /// Who waits until the queue has it.
    pub(super) batches: Batches,
    pub(super) is_confirmed: bool,
    pub(super) is_echoed: bool,
    pub(super) due: Option<Timestamp>,
}

impl Published {
    pub(super) fn new(topics: usize, seed: Seed) -> Self {
        Self {
            messages: BTreeMap::new(),
            last_number: 0,
            unechoed: HashMap::with_hasher(seed),
            unechoed_of_topic: vec![0; topics].into(),
            unconfirmed: 0,
            due: BTreeSet::new(),
        }
    }

    pub(super) fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    pub(super) fn unechoed(&self, topic: usize) -> usize {
        self.unechoed_of_topic.get(topic).copied().unwrap_or_default()
    }

    /// How often a message was lost on its way back.
    pub(super) fn losses(&self, number: u64) -> u32 {
        self.messages.get(&number).map_or(0, |it| it.losses)
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Those that the queue has not confirmed.
    pub(super) fn iter_unconfirmed(&self) -> impl Iterator<Item = &Message> {
        self.messages.values().filter(|it| !it.is_confirmed)
    }

    /// When the next message is [due](Self::take_due).
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.due.first().map(|&(at, _)| at)
    }

    /// One is given to the queue. Returns its number.
    pub(super) fn add(&mut self, message: Message) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        self.unconfirmed += 1;
        if let Some(unechoed) = self.unechoed_of_topic.get_mut(message.topic) {
            *unechoed += 1;
        }
        self.unechoed.entry(message.key.clone()).or_default().push_back(number);
        self.due.extend(message.due.map(|at| (at, number)));
        self.messages.insert(number, message);
        number
    }

    /// A message of this key has come: the oldest of this node's is taken to have come back.
    ///
    /// If it was another node's, the read that it leads to begins after this node's notify all the same.
    pub(super) fn echo(&mut self, key: &EntityKey) {
        let Some(&number) = self.unechoed.get(key).and_then(VecDeque::front) else {
            return;
        };
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        message.is_echoed = true;
        message.is_applied = true;
        if let Some(at) = message.due.take() {
            self.due.remove(&(at, number));
        }
        let topic = message.topic;
        if message.is_confirmed {
            self.messages.remove(&number);
        }
        self.forget_echo(key, number, topic);
    }

    /// The queue has one, which is to come back by `due`. `None` if it is not one of those that are waited for.
    pub(super) fn confirm(&mut self, number: u64, due: Timestamp) -> Option<Batches> {
        let message = self.messages.get_mut(&number).filter(|it| !it.is_confirmed)?;
        self.unconfirmed -= 1;
        message.is_confirmed = true;
        let batches = message.batches.clone();
        if message.is_echoed {
            self.remove(number);
            return Some(batches);
        }
        if let Some(at) = message.due.replace(due) {
            self.due.remove(&(at, number));
        }
        self.due.insert((due, number));
        Some(batches)
    }

    /// The queue does not have one.
    pub(super) fn reject(&mut self, number: u64) -> Option<Message> {
        self.messages.get(&number).filter(|it| !it.is_confirmed)?;
        self.remove(number)
    }

    /// The next one that was due by `now`: either it was not confirmed in time, and is [`applied`](Self::applied) by the
    /// caller; or it has not come back in time, and is forgotten here.
    pub(super) fn take_due(&mut self, now: Timestamp) -> Option<Due> {
        let &(at, number) = self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, number));
        let message = self.messages.get_mut(&number)?;
        message.due = None;
        if message.is_confirmed {
            return self.remove(number).map(Due::Unechoed);
        }
        message.is_applied = true;
        Some(Due::Unconfirmed(message.key.clone()))
    }

    /// Those that were confirmed and have not come back. They are not waited for any more.
    pub(super) fn take_confirmed(&mut self) -> Vec<Message> {
        let confirmed = self.messages.iter().filter(|(_, it)| it.is_confirmed);
        let numbers = Vec::from_iter(confirmed.map(|(number, _)| *number));
        numbers.into_iter().filter_map(|number| self.remove(number)).collect()
    }

    fn remove(&mut self, number: u64) -> Option<Message> {
        let message = self.messages.remove(&number)?;
        if !message.is_confirmed {
            self.unconfirmed -= 1;
        }
        if let Some(at) = message.due {
            self.due.remove(&(at, number));
        }
        if !message.is_echoed {
            self.forget_echo(&message.key, number, message.topic);
        }
        Some(message)
    }

    fn forget_echo(&mut self, key: &EntityKey, number: u64, topic: usize) {
        let Some(numbers) = self.unechoed.get_mut(key) else {
            return;
        };
        let Ok(at) = numbers.binary_search(&number) else {
            return;
        };
        numbers.remove(at);
        if numbers.is_empty() {
            self.unechoed.remove(key);
        }
        if let Some(unechoed) = self.unechoed_of_topic.get_mut(topic) {
            *unechoed -= 1;
        }
    }
}

/// What was due.
pub(super) enum Due {
    /// It was not confirmed in time. It stays.
    Unconfirmed(EntityKey),
    /// It has not come back in time.
    Unechoed(Message),
}
