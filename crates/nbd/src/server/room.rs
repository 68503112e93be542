//! How much data of one client's requests may be in memory.
//!
//! A request that moves data takes room before its data comes into memory, and leaves it when its
//! answer has been sent. One alone always finds room, however long it is: what a single request
//! may have is bounded elsewhere.

use gabion_base::batch;
use gabion_base::sync::{Condvar, Mutex, MutexGuard};

/// Data of one client's requests that is in memory: room for two of the largest.
const BYTES_MAX: usize = 64 << 20;

/// The room of one client.
#[derive(Default)]
pub(super) struct Room {
    taken: Mutex<usize>,
    freed: Condvar,
}

impl Room {
    /// Waits for room for so many bytes. Only one thread may do that at a time.
    pub(super) fn take(&self, bytes: usize) {
        let mut taken = self.taken.lock();
        if *taken > 0 && *taken + bytes > BYTES_MAX {
            MutexGuard::unlocked(&mut taken, batch::settle);
        }
        while *taken > 0 && *taken + bytes > BYTES_MAX {
            self.freed.wait(&mut taken);
        }
        *taken += bytes;
    }

    /// Gives back what was taken.
    pub(super) fn leave(&self, bytes: usize) {
        if bytes > 0 {
            *self.taken.lock() -= bytes;
            self.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn who_needs_more_than_is_left_waits_until_it_is_there() {
        let room = Room::default();
        room.take(2 * BYTES_MAX);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                room.take(1);
                sender.send(()).unwrap();
            });
            assert!(receiver.try_recv().is_err());
            room.leave(2 * BYTES_MAX);
            receiver.recv().unwrap();
        });
        room.take(BYTES_MAX - 1);
        room.leave(BYTES_MAX);
        assert_eq!(*room.taken.lock(), 0);
    }
}
