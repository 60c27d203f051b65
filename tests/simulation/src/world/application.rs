//! What the application does: it notifies, reads, and has reads repeated, subscriptions and connections ended.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use entity_sync_core::{ReadError, Reply, Request, Rows, Selector, Timestamp, Wakes};

use super::{Passed, SECRETS, World, secret_text};
use crate::client::{Client, message};
use crate::entities::{KEYS, Kind, SETTLE, entity_of, key_of, kind_of, max_running_reads};
use crate::op::{Answer, Target};
use crate::store::{Name, Read, audience_name, name_of, rows};
use crate::wire;

impl World {
    pub(super) fn notify(&mut self, key: u8) {
        self.tick += 1;
        self.store.change(self.now, key);
        self.owe_to_all(key);
        let is_known = self.machine.notify(self.now, &key_of(key));
        if is_known != (kind_of(key) != Kind::Unknown) {
            self.fail(format!("a notify of {:?} was taken: {is_known}", entity_of(key)));
        }
    }

    /// Every subscriber is owed a read that begins from here on.
    pub(super) fn owe_to_all(&mut self, key: u8) {
        let mut causes = BTreeSet::new();
        for client in &mut self.clients {
            if client.is_subscribed(key) {
                client.due.insert(key, self.tick);
                if let Some(owed) = client.pushes.get_mut(&key) {
                    *owed += 1;
                }
                causes.insert(audience_name(key, &client.standing.secret));
            }
        }
        causes.into_iter().for_each(|name| self.add_cause(name));
    }

    pub(super) fn add_cause(&mut self, name: Name) {
        // In a burst, the read that each may have begun is looked at only when all is said.
        let again = self.burst_causes.as_mut().is_some_and(|it| !it.insert(name.clone()));
        let counts = kind_of(name.0) == Kind::Every || again;
        let count = self.causes.entry(name).or_default();
        *count = if counts { *count + 1 } else { 1 };
    }

    pub(super) fn pass(&mut self, client: u8) {
        let Some(index) = self.pick(client).filter(|&index| !self.is_paused(index)) else {
            return;
        };
        self.say_text(index, wire::PASSED);
        let Client { shard, conn, .. } = self.clients[index];
        let secret = self.clients[index].standing.secret.clone();
        let expected = (
            self.machine.client_id(shard, conn),
            secret,
            wire::PASSED.as_bytes().to_vec(),
        );
        let passed = self.take_passed();
        if passed.len() > 1 || passed.iter().any(|it| *it != expected) {
            self.fail(format!("{expected:?} is passed to the application as {passed:?}"));
        }
    }

    pub(super) fn take_passed(&mut self) -> Vec<Passed> {
        std::mem::take(&mut *self.passed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn send(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        let client = &mut self.clients[index];
        let id = self.machine.client_id(client.shard, client.conn);
        let text = message(client.messages.0, bytes);
        client.messages.0 += 1;
        if let Err(error) = self.machine.node().client(id).send_text(&text) {
            self.fail(format!("a message to {id} is refused: {error}"));
        }
    }

    pub(super) fn reread(&mut self, target: Target) {
        self.tick += 1;
        if let Target::Key(key) = target {
            self.owe_to_all(key % KEYS);
        } else {
            let mut causes = Vec::new();
            for index in self.meant(target) {
                let client = &mut self.clients[index];
                for &key in client.standing.joined.keys() {
                    client.reread.insert(key, self.tick);
                    // From when on they are counted again, only the machine knows.
                    client.pushes.remove(&key);
                    causes.push(audience_name(key, &client.standing.secret));
                }
            }
            causes.into_iter().for_each(|name| self.add_cause(name));
        }
        if let Some(selector) = self.selector(target) {
            self.machine.node().reread(self.now, &selector);
        }
        // What is subscribed to before a shard hears of it would be read again too.
        self.poll_all();
    }

    /// Takes effect at once, so that the simulation knows what is sent before and what after.
    pub(super) fn dismiss(&mut self, target: Target) {
        self.poll_all();
        self.tick += 1;
        for index in self.meant(target) {
            let keys: Vec<u8> = match target {
                Target::Key(key) => vec![key % KEYS],
                _ => self.clients[index].standing.joined.keys().copied().collect(),
            };
            for key in keys {
                self.clients[index].give_up(key, self.tick);
            }
        }
        if let Some(selector) = self.selector(target) {
            self.machine.node().unsubscribe(&selector);
        }
        self.poll_all();
    }

    pub(super) fn disconnect(&mut self, target: Target) {
        let meant = self.meant(target);
        for &index in &meant {
            let client = &mut self.clients[index];
            client.is_ending = true;
            client.is_sent_away = true;
            client.due.clear();
        }
        if let Some(selector) = self.selector(target)
            && let Err(error) = self.machine.node().disconnect(&selector, 4000, "go away")
        {
            self.fail(error.to_string());
        }
        // The shards have not heard of it, and yet nothing that they say counts any more.
        for index in meant {
            self.tick += 1;
            let text = [
                wire::secret("other"),
                wire::subscription("subscribe", 0),
                wire::PASSED.to_owned(),
            ];
            let mut bytes: Vec<u8> = text.iter().flat_map(|it| wire::text(it)).collect();
            self.say(index as u8, &mut bytes);
        }
        self.poll_all();
        let passed = self.take_passed();
        if !passed.is_empty() {
            self.fail(format!(
                "{passed:?} is passed to the application, which has ended these connections"
            ));
        }
    }

    /// The clients that a target means.
    fn meant(&self, target: Target) -> Vec<usize> {
        let is_meant = |client: &Client| match target {
            _ if client.is_sent_away => false,
            Target::Key(key) => client.is_subscribed(key % KEYS),
            Target::Secret(secret) => client.standing.secret == secret_text(secret % SECRETS),
            Target::Client(_) => false,
        };
        match target {
            // One that is not listened to at the moment is meant as well.
            Target::Client(client) => {
                let client = self.pick(client).filter(|&index| !self.clients[index].is_sent_away);
                client.into_iter().collect()
            }
            _ => (0..self.clients.len())
                .filter(|&index| is_meant(&self.clients[index]))
                .collect(),
        }
    }

    fn selector(&self, target: Target) -> Option<Selector> {
        Some(match target {
            Target::Key(key) => Selector::Key(key_of(key % KEYS)),
            Target::Secret(secret) => Selector::Secret(secret_text(secret % SECRETS).into()),
            Target::Client(client) => {
                let Client { shard, conn, .. } = self.clients[self.pick(client)?];
                Selector::Client(self.machine.client_id(shard, conn))
            }
        })
    }

    pub(super) fn poll_all(&mut self) {
        for shard in 0..self.machine.shards() {
            self.poll(shard, u32::MAX);
        }
        self.look_at_requests();
    }

    pub(super) fn answer(&mut self, read: u8, answer: Answer) {
        if self.store.reads.is_empty() {
            return;
        }
        self.tick += 1;
        let read = self.store.reads.swap_remove(usize::from(read) % self.store.reads.len());
        let is_running = self.running.get(&read.name).is_some_and(|it| it.0 == read.began);
        if is_running {
            self.running.remove(&read.name);
            // It is to be tried again; or the store, to be looked at again.
            if answer != Answer::Rows || kind_of(read.name.0) == Kind::Settling {
                self.add_cause(read.name.clone());
            }
        } else {
            self.store.given_up.insert(read.began);
        }
        self.note(|tick| format!("{tick}: {answer:?} for {:?} of {}", read.name, read.began));
        let rows = rows(&read, self.has_ticks);
        let sent = match answer {
            // Without rows there may be more to say.
            Answer::Rows if rows == Rows::none() && !read.began.is_multiple_of(3) => {
                let error = [ReadError::NotFound, ReadError::Denied][(read.began % 2) as usize].clone();
                read.reply.send(self.now, Err(error))
            }
            // As one of many, of which it is the last.
            Answer::Rows if read.began.is_multiple_of(2) => read.reply.send_with(self.now, Ok(rows), &mut Wakes::new()),
            Answer::Rows => read.reply.send(self.now, Ok(rows)),
            Answer::Failed => {
                let error = [ReadError::Failed, ReadError::Rejected][(read.began % 2) as usize].clone();
                read.reply.send(self.now, Err(error))
            }
            Answer::Dropped => {
                drop(read.reply);
                Ok(())
            }
            Answer::BadRows => {
                let refused = read.reply.send(self.now, Ok(Rows::one(&b"\xff"[..])));
                if refused.is_ok() {
                    self.fail("a row that isn't text was accepted".to_owned());
                }
                Ok(())
            }
        };
        if let Err(error) = sent {
            self.fail(format!("good rows are refused: {error}"));
        }
    }

    pub(super) fn look_at_requests(&mut self) {
        for (request, reply) in self.machine.take_requests() {
            self.begin_read(request, reply);
        }
    }

    /// G3: at most one read of a name is running, and none begins without a cause.
    pub(super) fn begin_read(&mut self, request: Request, reply: Reply) {
        self.tick += 1;
        let name = name_of(&request);
        self.note(|tick| format!("{tick}: read {name:?}"));
        if let Some((began, _)) = self.running.get(&name) {
            self.fail(format!("G3: a second read of {name:?} while that of {began} runs"));
        }
        let of_entity = self.running.keys().filter(|it| entity_of(it.0) == entity_of(name.0));
        if of_entity.count() >= max_running_reads(self.config.seed.0) {
            self.fail(format!("more reads of {:?} are running than may", entity_of(name.0)));
        }
        if let Some(count) = self.causes.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                self.causes.remove(&name);
            }
        } else {
            self.targeted += 1;
            if self.targeted > self.machine.counters().dirty_marks + self.from_elsewhere {
                self.fail(format!("G3: a read of {name:?} for nothing"));
            }
        }
        self.running.insert(name.clone(), (self.tick, self.now));
        self.store.reads.push(Read {
            version: match kind_of(name.0) {
                Kind::Settling => {
                    let lag = SETTLE.mul_f64(self.rng.f64());
                    self.store
                        .version_at(name.0, Timestamp::after_start(self.now.since(Timestamp::START + lag)))
                }
                _ => self.store.version(name.0),
            },
            name,
            began: self.tick,
            reply,
        });
    }
}
