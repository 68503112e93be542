//! Instants: while the server brings all clients to one, nothing is changed here.
//!
//! What was made before is said before [`ToServer::Frozen`], and nothing is made after it, until
//! the server says that it holds back what comes from now on, or it is not that server any more.

use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::ToServer;

use super::RemoteFs;

/// Whether changes have to wait.
#[derive(Default)]
pub(super) struct Freezing {
    frozen: Mutex<Option<u64>>,
    thawed: Condvar,
}

impl Freezing {
    /// Whether nothing may be changed just now.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.lock().is_some()
    }

    /// That instant is over.
    pub(super) fn thaw(&self, freeze: u64) {
        self.frozen.lock().take_if(|frozen| *frozen == freeze);
        self.thawed.notify_all();
    }

    /// Whatever instant there was, it is over.
    pub(super) fn thaw_all(&self) {
        *self.frozen.lock() = None;
        self.thawed.notify_all();
    }

    /// Waits until changes need not wait. False: that took longer than `patience`.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut frozen = self.frozen.lock();
        while frozen.is_some() {
            if self.thawed.wait_for(&mut frozen, patience).timed_out() {
                return frozen.is_none();
            }
        }
        true
    }
}

impl RemoteFs {
    /// Nothing is changed here from now on, which the server is told behind all changes.
    pub(super) fn freeze(&self, freeze: u64) {
        let _order = self.order.lock();
        *self.freezing.frozen.lock() = Some(freeze);
        self.calls.tell(ToServer::Frozen(freeze));
    }
}
