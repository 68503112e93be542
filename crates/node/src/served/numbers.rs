//! Numbers for objects that clients make by themselves.

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::{Error, Result};
use gabion_link::message::Answer;

use super::lane::CHANGE_BYTES;
use super::pledges::CREDIT_MAX;
use super::{Served, Session, ledger};
use crate::local::LocalFs;

/// Numbers that are given at once, at most.
const NUMBERS_MAX: u32 = 4096;
/// More numbers for objects than clients can be given between two commits.
const NUMBERS_SKIPPED: u64 = 1 << 24;
/// Series of numbers that a session may have in part. Even if each change that is under way takes
/// one of another series, it was not forgotten.
const SERIES_MAX: usize = 2 * (CREDIT_MAX / CHANGE_BYTES) as usize;

impl LocalFs {
    /// Makes room beside clients of a server that has died, before somebody else than the next one
    /// changes files: what has no name and they may have open is kept, and numbers that they may
    /// use are not given to others.
    pub fn spare_sessions(&self) -> Result<()> {
        if !ledger::remembers_sessions(self)? {
            return Ok(());
        }
        self.hold_orphans();
        self.skip_numbers()
    }

    /// Skips numbers in all subvolumes, durably.
    fn skip_numbers(&self) -> Result<()> {
        for subvol in self.map().writable_subvolumes() {
            self.map().reserve_inodes(subvol, NUMBERS_SKIPPED).map_err(Error::from)?;
        }
        // For the next start knows no more of them than this one.
        self.syncfs()
    }
}

impl Served {
    /// Skips numbers in all subvolumes, durably: clients of the start before may use some that it
    /// gave and that a crash forgot.
    pub fn skip_numbers(&self) -> Result<()> {
        self.fs.skip_numbers()
    }

    /// Gives the client numbers of a subvolume that nobody else gets.
    pub(super) fn numbers(&self, session: &Session, of: SubvolId, count: u32) -> Result<Answer> {
        if count == 0 || count > NUMBERS_MAX {
            return Err(Error::InvalidArgument);
        }
        if session.rights.subvolume.is_some_and(|own| own != of) {
            return Err(Error::Stale);
        }
        let count = u64::from(count);
        let Ino(first) = self.fs.map().reserve_inodes(of, count).map_err(Error::from)?;
        let mut lane = session.lane.lock();
        lane.numbers.push_back((of, first..first + count));
        if lane.numbers.len() > SERIES_MAX {
            lane.numbers.pop_front();
        }
        Ok(Answer::Number(first))
    }
}
