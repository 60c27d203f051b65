//! [`Denied`]: what the server has said that this node may not do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use entity_sync_bus::Outage;

/// What has been denied and not again within this is allowed by now: digests are published all the time, and subscriptions
/// tried again every [`TRY_AGAIN`].
const FORGET_AFTER: Duration = Duration::from_secs(25);

/// A subscription that was denied is asked for again after this: who gives the permission need not restart this node.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Permissions that are kept, the first ones.
const MAX_DENIED: usize = 32;

/// Permissions that are missing.
#[derive(Default)]
pub(crate) struct Denied {
    all: BTreeMap<Permission, Last>,
    next_attempt: Option<Instant>,
}

/// A permission that a user of NATS may have.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Permission {
    is_to_publish: bool,
    subject: String,
}

struct Last {
    denied: Instant,
    logs: Outage,
}

impl Permission {
    /// Of an error of the server's, such as `Permissions Violation for Subscription to "shop.all"`.
    pub(crate) fn of(error: &str) -> Option<Self> {
        let (_, rest) = split_after(error, "permissions violation for ")?;
        let (what, rest) = split_after(rest, " to \"")?;
        let (subject, _) = rest.split_once('"')?;
        // Of subscriptions to our own, which only a farewell needs.
        if subject.starts_with("_INBOX.") {
            return None;
        }
        Some(Self {
            is_to_publish: what.eq_ignore_ascii_case("publish"),
            subject: subject.to_owned(),
        })
    }
}

/// What is before the first place where `pattern` is, in whatever case, and what comes after it.
fn split_after<'a>(text: &'a str, pattern: &str) -> Option<(&'a str, &'a str)> {
    let at = text.to_ascii_lowercase().find(pattern)?;
    Some((&text[..at], &text[at + pattern.len()..]))
}

impl Denied {
    /// The server has denied it. If that is to be logged now: how often that was not.
    pub(crate) fn add(&mut self, now: Instant, permission: Permission) -> Option<u64> {
        if self.all.len() >= MAX_DENIED && !self.all.contains_key(&permission) {
            return None;
        }
        self.next_attempt.get_or_insert(now + TRY_AGAIN);
        let last = self.all.entry(permission).or_insert_with(|| Last {
            denied: now,
            logs: Outage::default(),
        });
        last.denied = now;
        last.logs.failed()
    }

    /// There is no connection any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Subjects that are to be subscribed to once more.
    pub(crate) fn try_again(&mut self, now: Instant) -> Vec<String> {
        self.all
            .retain(|_, last| now.duration_since(last.denied) < FORGET_AFTER);
        if self.next_attempt.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.next_attempt = (!self.all.is_empty()).then(|| now + TRY_AGAIN);
        let subscriptions = self.all.keys().filter(|it| !it.is_to_publish);
        subscriptions.map(|it| it.subject.clone()).collect()
    }

    /// Whether a subscription to it was denied.
    pub(crate) fn has_subscription(&self, subject: &str) -> bool {
        let subject = subject.to_owned();
        let is_to_publish = false;
        self.all.contains_key(&Permission { is_to_publish, subject })
    }

    /// What is missing, for people; `None` if nothing is.
    pub(crate) fn missing(&self) -> Option<String> {
        let of = |is_to_publish: bool| {
            let those = self.all.keys().filter(|it| it.is_to_publish == is_to_publish);
            those
                .map(|it| format!("{:?}", it.subject))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let missing: Vec<_> = [("publish", of(true)), ("subscribe", of(false))]
            .into_iter()
            .filter(|(_, subjects)| !subjects.is_empty())
            .map(|(what, subjects)| format!("{what} to {subjects}"))
            .collect();
        (!missing.is_empty()).then(|| {
            let missing = missing.join(", or ");
            format!("this node's user may not {missing}: add it to the user's permissions on the NATS server")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(text: &str) -> Permission {
        Permission::of(text).expect("a permission")
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut denied = Denied::default();
        let now = Instant::now();
        assert_eq!(denied.missing(), None);
        let subscription = "nats: Permissions Violation for Subscription to \"shop.all\"";
        assert_eq!(denied.add(now, permission(subscription)), Some(0));
        assert_eq!(denied.add(now, permission(subscription)), None);
        let said = denied.missing().expect("missing");
        assert!(
            said.starts_with("this node's user may not subscribe to \"shop.all\": add"),
            "{said}"
        );
        assert!(denied.has_subscription("shop.all") && !denied.has_subscription("shop"));
        let publish = "permissions violation for publish to \"shop.all\"";
        assert_eq!(denied.add(now, permission(publish)), Some(0));
        let said = denied.missing().expect("missing");
        assert!(
            said.contains("may not publish to \"shop.all\", or subscribe to \"shop.all\": "),
            "{said}"
        );
        denied.clear();
        assert_eq!(denied.missing(), None);
        for other in [
            "Permissions Violation for Subscription to \"_INBOX.x\"",
            "Permissions Violation",
            "slow consumer",
            "",
            "permissions violation for publish to \"",
        ] {
            assert!(Permission::of(other).is_none(), "{other}");
        }
    }

    #[test]
    fn it_is_tried_again_and_forgotten() {
        let mut denied = Denied::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        denied.add(at(0), permission("permissions violation for subscription to \"a\""));
        denied.add(at(0), permission("permissions violation for publish to \"b\""));
        assert!(denied.try_again(at(9)).is_empty());
        assert_eq!(denied.try_again(at(10)), ["a"]);
        assert!(denied.try_again(at(19)).is_empty());
        denied.add(at(20), permission("permissions violation for subscription to \"a\""));
        assert_eq!(denied.try_again(at(20)), ["a"]);
        // The other has not been denied again.
        assert_eq!(denied.try_again(at(30)), ["a"]);
        assert!(denied.missing().is_some_and(|it| !it.contains("publish")));
        assert!(denied.try_again(at(45)).is_empty());
        assert_eq!(denied.missing(), None);
        for number in 0..100 {
            denied.add(
                at(50),
                permission(&format!("permissions violation for publish to \"{number}\"")),
            );
        }
        assert_eq!(denied.all.len(), MAX_DENIED);
    }
}
