//! What clients do and say.

use std::rc::Rc;

use entity_sync_core::Input;

use super::{MAX_CLIENTS, MAX_CONNECTIONS, SECRETS, World, client_number, secret_text};
use crate::client::Client;
use crate::entities::{KEYS, Kind, kind_of};
use crate::op::Driver;
use crate::op::Saying;
use crate::store::audience_name;
use crate::wire;

impl World {
    pub(super) fn connect(&mut self, shard: u8, driver: Driver, snapshots: bool) {
        if self.clients.len() >= MAX_CLIENTS {
            return;
        }
        let shard = usize::from(shard) % self.machine.shards();
        let Some(conn) = self.machine.open(shard, self.now) else {
            if self.machine.counters().connections < MAX_CONNECTIONS as u64 {
                self.fail("a connection is refused, and there is room".to_owned());
            }
            return;
        };
        self.clients.push(Client::new(shard, conn, driver, self.now));
        let last = (self.clients.len() - 1) as u8;
        self.clients[usize::from(last)].wants_snapshots = snapshots;
        self.say(last, &mut wire::upgrade(snapshots).into_bytes());
    }

    pub(super) fn subscribe(&mut self, client: u8, key: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        self.expect_subscription(index, key);
        self.say_text(index, &wire::subscription("subscribe", key));
    }

    fn expect_subscription(&mut self, index: usize, key: u8) {
        self.tick += 1;
        let client = &mut self.clients[index];
        let joined = &mut Rc::make_mut(&mut client.standing).joined;
        let is_new = joined.len() < self.config.max_subscriptions && !joined.contains_key(&key);
        if is_new && kind_of(key) != Kind::Unknown {
            joined.insert(key, self.tick);
            if kind_of(key) == Kind::Every {
                client.pushes.insert(key, 0);
            }
            let has_snapshot = kind_of(key) == Kind::Snapshot || client.wants_snapshots;
            if has_snapshot && !client.is_ending {
                client.due.insert(key, self.tick);
                let name = audience_name(key, &client.standing.secret);
                self.add_cause(name);
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, client: u8, key: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        self.tick += 1;
        self.clients[index].give_up(key, self.tick);
        self.say_text(index, &wire::subscription("unsubscribe", key));
    }

    pub(super) fn change_secret(&mut self, client: u8, secret: u8) {
        let Some(index) = self.pick_heard(client) else {
            return;
        };
        let secret = secret_text(secret);
        self.expect_secret(index, &secret);
        self.say_text(index, &wire::secret(&secret));
    }

    fn expect_secret(&mut self, index: usize, secret: &str) {
        self.tick += 1;
        let client = &mut self.clients[index];
        let mut causes = Vec::new();
        if client.standing.secret != secret {
            let standing = Rc::make_mut(&mut client.standing);
            secret.clone_into(&mut standing.secret);
            for (&key, joined) in &mut standing.joined {
                client.reread.remove(&key);
                if kind_of(key) != Kind::Public {
                    *joined = self.tick;
                    client.revoked.insert(key, self.tick);
                    client.pushes.remove(&key);
                    causes.push((key, secret.to_owned()));
                }
            }
        }
        causes.into_iter().for_each(|name| self.add_cause(name));
    }

    /// What is said in one go. Of secrets that follow each other, only the last one counts.
    pub(super) fn burst(&mut self, client: u8, sayings: &[Saying]) {
        let Some(index) = self.pick_heard(client).filter(|&index| !self.clients[index].is_ending) else {
            return;
        };
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        let mut secret = None::<String>;
        let mut is_over = false;
        self.burst_causes = Some(Default::default());
        for &saying in sayings {
            if let (Some(secret), false) = (&secret, matches!(saying, Saying::Secret(_))) {
                self.expect_secret(index, secret);
            }
            match saying {
                Saying::Subscribe(key) => {
                    bytes.extend(wire::text(&wire::subscription("subscribe", key % KEYS)));
                    if !is_over {
                        self.expect_subscription(index, key % KEYS);
                    }
                }
                Saying::Unsubscribe(key) => {
                    bytes.extend(wire::text(&wire::subscription("unsubscribe", key % KEYS)));
                    if !is_over {
                        self.tick += 1;
                        self.clients[index].give_up(key % KEYS, self.tick);
                    }
                }
                // Where there is a limit on them, the rest might wait.
                Saying::Secret(_) if is_over || self.config.max_secret_changes > 0 => continue,
                Saying::Secret(number) => {
                    secret = Some(secret_text(number % SECRETS));
                    bytes.extend(wire::text(&wire::secret(&secret_text(number % SECRETS))));
                    continue;
                }
                Saying::Pass => {
                    bytes.extend(wire::text(wire::PASSED));
                    if !is_over {
                        expected.push(self.clients[index].standing.secret.clone());
                    }
                }
                Saying::Close => {
                    bytes.extend(wire::close());
                    is_over = true;
                }
            }
            secret = None;
        }
        if let Some(secret) = &secret {
            self.expect_secret(index, secret);
        }
        self.burst_causes = None;
        if is_over {
            self.clients[index].is_ending = true;
            self.clients[index].due.clear();
        }
        let is_known = self.is_known(index);
        self.say(index as u8, &mut bytes);
        let passed = self.take_passed();
        let secrets: Vec<_> = passed.iter().map(|(_, secret, _)| secret.clone()).collect();
        // It may have fallen behind, and not have read the close frame.
        let may_be_out = self.fallen_behind < self.machine.counters().fallen_behind;
        if is_known && secrets != expected && !(may_be_out && secrets.is_empty()) {
            self.fail(format!("messages are passed on with {secrets:?}, not {expected:?}"));
        }
    }

    pub(super) fn vanish(&mut self, client: u8) {
        if let Some(index) = self.pick(client) {
            let Client { shard, conn, .. } = self.clients[index];
            self.clients[index].is_ending = true;
            self.machine.handle(shard, self.now, Input::Closed { conn });
        }
    }

    pub(super) fn drain(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        let client = &mut self.clients[index];
        client.room += bytes;
        if std::mem::take(&mut client.is_blocked) {
            client.last_alive = self.now;
        }
        let Client { shard, conn, .. } = *client;
        self.machine.handle(shard, self.now, Input::Writable { conn });
    }

    pub(super) fn complete(&mut self, client: u8, bytes: usize) {
        let Some(index) = self.pick(client).filter(|&index| self.is_known(index)) else {
            return;
        };
        self.tick += 1;
        let client = &mut self.clients[index];
        let given_up = |tick| self.store.given_up.contains(&tick);
        match client.complete(bytes, &given_up) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                if bytes > 0 {
                    client.last_alive = self.now;
                }
                let Client { shard, conn, .. } = *client;
                self.machine.handle(shard, self.now, Input::Written { conn, bytes });
            }
            Err(failure) => self.fail(failure),
        }
    }

    pub(super) fn say(&mut self, client: u8, bytes: &mut [u8]) {
        let is_heard = |index: &usize| self.is_known(*index) && !self.is_paused(*index);
        if let Some(index) = self.pick(client).filter(is_heard) {
            let client = &mut self.clients[index];
            client.last_alive = self.now;
            let Client { shard, conn, .. } = *client;
            self.machine.handle(shard, self.now, Input::Received { conn, bytes });
        }
    }

    /// Those who answer pings do.
    pub(super) fn answer_pings(&mut self) {
        for index in 0..self.clients.len() {
            let client = &mut self.clients[index];
            if client.is_well() && std::mem::take(&mut client.pings) > 0 {
                self.say(client_number(index), &mut wire::pong());
            }
        }
    }

    pub(super) fn say_text(&mut self, index: usize, text: &str) {
        self.say(index as u8, &mut wire::text(text));
    }

    pub(super) fn say_last(&mut self, client: u8, bytes: &mut [u8]) {
        if let Some(index) = self.pick(client).filter(|&index| !self.is_paused(index)) {
            self.clients[index].is_ending = true;
            let client = &mut self.clients[index];
            // From here on nothing it is sent counts.
            client.due.clear();
            self.say(client_number(index), bytes);
        }
    }

    pub(super) fn pick(&self, client: u8) -> Option<usize> {
        let index = usize::from(client).checked_rem(self.clients.len())?;
        Some(index)
    }

    /// As [`Self::pick`], of those to whom the machine still listens.
    pub(super) fn pick_heard(&self, client: u8) -> Option<usize> {
        self.pick(client)
            .filter(|&index| !self.clients[index].is_sent_away && !self.is_paused(index))
    }

    /// It isn't read from: what it says would wait in its socket.
    pub(super) fn is_paused(&self, index: usize) -> bool {
        let Client { shard, conn, .. } = self.clients[index];
        self.machine.is_paused(shard, conn)
    }

    /// The machine has not ended it yet. If it has, the driver is about to hear of it.
    pub(super) fn is_known(&self, index: usize) -> bool {
        let Client { shard, conn, .. } = self.clients[index];
        self.machine.queued_bytes(shard, conn).is_some()
    }
}
