//! What programs do to a disk that becomes full, or to a quota that is used up.
//!
//! Each client has a hog, a file that its first program sets space aside for: as much as there is,
//! in ever smaller parts, so that there is not room for a single block then. Later it gives all of
//! it back, durably.

use gabion_fs::{Error, SizeRule, SpaceRequest};
use gabion_map::{MapError, Stop};

use super::{PAGE_GRAINS, Program};
use crate::cluster::history::{GRAIN, Number, Op, Outcome};

/// Blocks that are set aside by the first call, as powers of two.
const PARTS: std::ops::Range<u64> = 8..15;
/// Calls to fill a disk at most.
const CALLS_MAX: usize = 60;

/// Whether there was no room.
pub(super) fn is_lack_of_room(error: &Error) -> bool {
    matches!(error, Error::Stop(Stop::Map(MapError::NoSpace | MapError::OverQuota)))
}

/// Whether a call may fail for lack of room: it adds something.
pub(super) fn adds(op: &Op) -> bool {
    match op {
        // What is cut in the midst of a block is written anew.
        Op::Resize { grains, .. } => *grains > 0,
        Op::Unlink { .. } | Op::RemoveXattr { .. } => false,
        Op::Fsync { .. } | Op::SyncAll | Op::Lock { .. } | Op::Unlock { .. } => false,
        op => !op.only_reads(),
    }
}

impl Program {
    /// The hog of this program, if it is the one that has it.
    fn hog(&self) -> Option<Number> {
        self.world.hogs.get(self.client.number).copied().filter(|_| self.is_first)
    }

    /// Fills the disk or makes room. False: another program has to do that.
    pub(super) fn step_space(&mut self) -> bool {
        let Some(hog) = self.hog() else { return false };
        match self.rng.chance(1, 2) {
            true => self.fill(hog),
            false => self.make_room(hog),
        }
        true
    }

    fn fill(&mut self, hog: Number) {
        let Outcome::Status { size, .. } = self.call(Op::Stat { file: hog }) else { return };
        let mut grain = size;
        let mut count = PAGE_GRAINS << (PARTS.start + self.rng.below(PARTS.end - PARTS.start));
        let least = if self.rng.chance(3, 4) { PAGE_GRAINS } else { count };
        for _ in 0..CALLS_MAX {
            match self.call(Op::Reserve { file: hog, grain, count }) {
                Outcome::Done => grain += count,
                Outcome::Full if count > least => count /= 2,
                _ => return,
            }
        }
    }

    fn make_room(&mut self, hog: Number) {
        self.call(Op::Resize { file: hog, grains: 0 });
        self.call(Op::Fsync { file: hog });
    }

    /// Gives back all that this client has set aside. That has to succeed.
    pub fn empty(&mut self, _: u64) {
        let Some(hog) = self.world.hogs.get(self.client.number).copied() else { return };
        self.make(Op::Resize { file: hog, grains: 0 });
        // The first one may tell of what was lost before.
        self.make(Op::Fsync { file: hog });
        self.make(Op::Fsync { file: hog });
    }

    /// Takes a share of the disk, which is there for each of `clients`.
    pub fn take_share(&mut self, clients: u64) {
        let Some(hog) = self.world.hogs.get(self.client.number).copied() else { return };
        let share = (self.world.room / 2 / clients) as u32;
        self.make(Op::Reserve { file: hog, grain: 0, count: share * PAGE_GRAINS });
    }

    pub(super) fn reserve(
        &self,
        file: Number,
        grain: u32,
        count: u32,
    ) -> gabion_fs::Result<Outcome> {
        let bytes = |grains: u32| u64::from(grains) * GRAIN as u64;
        let request = SpaceRequest::Allocate(SizeRule::Extend);
        let mount = &self.client.mount;
        mount.reserve(self.id(file), request, bytes(grain), bytes(count))?;
        Ok(Outcome::Done)
    }
}
