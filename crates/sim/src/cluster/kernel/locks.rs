//! Advisory locks: a thread waits for the answer, and is interrupted when its patience ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gabion_fs::Result;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Wait};
use gabion_map::FileId;

use super::{LOOK, Mount};

impl Mount {
    /// Asks for a lock, and gives up after `patience`, if there is an end to it.
    pub fn lock(&self, lock: Lock, wait: Wait, patience: Duration) -> Result<()> {
        let answer = Arc::new(Mutex::new(None));
        let (own, baton, place) =
            (Arc::clone(&answer), Arc::clone(&self.kernel.baton), self.kernel.locks);
        let end = Box::new(move |result| {
            *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            baton.wake(place);
        });
        let mut ticket = self.fs.lock(lock, wait, end);
        self.fs.answered();
        let baton = &self.kernel.baton;
        let until = baton.now() + patience;
        loop {
            let answered = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(result) = answered {
                return result;
            }
            if baton.now() >= until
                && let Some(ticket) = ticket.take()
            {
                self.fs.cancel_lock(ticket);
            }
            baton.wait(place, LOOK.min(patience));
        }
    }

    /// Gives up a lock.
    pub fn unlock(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<()> {
        let unlocked = self.fs.unlock(file, class, owner, range);
        self.fs.answered();
        unlocked
    }
}
