//! [`Owed`]: a receipt for a message that is published to several nsqds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use entity_sync_bus::Receipt;
use parking_lot::Mutex;

use crate::status::{Shared, add};

/// A receipt that is counted, whichever way it ends: confirmed as soon as one nsqd has the message, and otherwise when
/// none of them is waited for any more.
pub(crate) struct Owed {
    receipt: Mutex<Option<Receipt>>,
    /// Some nsqd will never take it.
    is_unfit: AtomicBool,
    /// Some nsqd has refused it, for good or for now.
    is_refused: AtomicBool,
    shared: Arc<Shared>,
}

impl Owed {
    pub(crate) fn new(receipt: Receipt, shared: Arc<Shared>) -> Self {
        add(&shared.counters.published);
        Self {
            receipt: Mutex::new(Some(receipt)),
            is_unfit: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            shared,
        }
    }

    /// An nsqd has the message.
    pub(crate) fn confirm(&self) {
        if let Some(receipt) = self.receipt.lock().take() {
            add(&self.shared.counters.confirmed);
            receipt.confirm();
        }
    }

    /// An nsqd doesn't take it: never, if `for_good`.
    pub(crate) fn refuse(&self, for_good: bool) {
        self.is_refused.store(true, Ordering::Relaxed);
        self.is_unfit.fetch_or(for_good, Ordering::Relaxed);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let Some(receipt) = self.receipt.get_mut().take() else {
            return;
        };
        let counters = &self.shared.counters;
        match *self.is_refused.get_mut() {
            true => add(&counters.refused),
            false => add(&counters.dropped),
        }
        if *self.is_unfit.get_mut() {
            receipt.refuse();
        }
    }
}
