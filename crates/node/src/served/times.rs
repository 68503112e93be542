//! The time of a server, which is also that of its clients.
//!
//! Clients record times of their own, which they reckon from what the server says. Whatever is
//! recorded later, here or by whom the server tells of it, has no earlier time.

use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;

use crate::clock::Clock;

/// By how much a client may be ahead of the server before it is not followed, in seconds.
const AHEAD_MAX: i64 = 2;

pub(super) struct Times {
    clock: Arc<dyn Clock>,
    latest: Mutex<Timestamp>,
}

impl Times {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, latest: Mutex::default() }
    }

    /// The clock's time, or the latest that was recorded.
    pub(super) fn now(&self) -> Timestamp {
        let now = self.clock.now();
        let mut latest = self.latest.lock();
        // A clock that is set back is followed once it is far behind.
        *latest = match latest.seconds - now.seconds > AHEAD_MAX {
            true => now,
            false => now.max(*latest),
        };
        *latest
    }

    /// A client has recorded `time`.
    pub(super) fn saw(&self, time: Timestamp) {
        if time.seconds - self.clock.now().seconds <= AHEAD_MAX {
            let mut latest = self.latest.lock();
            *latest = latest.max(time);
        }
    }
}
