//! Making a filesystem longer while it is in use.
//!
//! The superblock ring has slots at both ends, and growing moves those at the tail. A mount
//! reads the slots at the head first, and looks for the tail where the newest of them says that
//! the filesystem ends. So at every moment the newest superblock must stand at the head, or at
//! the tail that the newest one at the head knows:
//!
//! ```text
//! commit        slot             tells of     a crash before it is durable leaves
//! N - 1         old tail         old length   (whatever was there before)
//! N             head             new length   N - 1, found by the old length of N - 2 at the head
//! N + 1         new tail         new length   N
//! ```
//!
//! 1. If the next commit would go to the tail, an ordinary one comes first.
//! 2. Zeros are written to the new tail slots, as far as they lie behind the old end: what stood
//!    there on the device, perhaps superblocks, must not be found.
//! 3. Commit N has the new length. All that it writes lies before the old end, and not in the
//!    old tail (see `alloc/growth.rs`): until it is durable, commit N - 1 and its tail are whole.
//!    Nothing is given out of what is new before.
//! 4. Commit N + 1 makes the new length known at the tail, too.
//!
//! Operations go on all the time, as with any commit. If a device loses its new length after
//! commit N, the filesystem is refused for being longer than its device; if before, it is as if
//! nothing had been asked.
//!
//! Absent: making a filesystem shorter, which would have to move what stands at its end.

use gabion_base::ids::BlockAddr;

use crate::commit::Besides;
use crate::error::MapError;
use crate::layout::SLOTS_EACH_END;
use crate::map::LocalMap;
use crate::open::zero;

impl LocalMap {
    /// Length of the filesystem in blocks.
    pub fn blocks(&self) -> u64 {
        self.alloc.layout().blocks
    }

    /// The most blocks that the filesystem can grow to.
    pub fn reach(&self) -> u64 {
        self.alloc.layout().reach()
    }

    /// Length of the disk in blocks.
    pub fn disk_blocks(&self) -> u64 {
        self.disk.blocks()
    }

    /// Fails like [`LocalMap::grow`] would on a disk that is long enough.
    pub fn can_grow(&self, blocks: u64) -> Result<(), MapError> {
        self.check_writable()?;
        self.alloc.layout().grown(blocks).map(drop)
    }

    /// Makes the filesystem `blocks` blocks long; the disk must be as long already, durably.
    /// Everything that completed before is durable afterwards, like after a commit. Nothing
    /// happens if it has that length. Fails if it would become shorter, or if the disk or
    /// the filesystem's tables do not reach that far.
    pub fn grow(&self, blocks: u64) -> Result<(), MapError> {
        self.check_writable()?;
        let mut superblock = self.superblock.lock();
        let layout = self.alloc.layout();
        let grown = layout.grown(blocks)?;
        if blocks == layout.blocks {
            return Ok(());
        }
        let actual = self.disk.blocks();
        if blocks > actual {
            return Err(MapError::DiskTooShort {
                device: self.disk.name().to_string(),
                actual,
                wanted: blocks,
            });
        }
        let next_goes_to_the_tail = !superblock.txg.next().0.is_multiple_of(2);
        if next_goes_to_the_tail {
            self.commit_locked(&mut superblock, Besides::Nothing)?;
        }
        let tail = (blocks - SLOTS_EACH_END).max(layout.blocks);
        zero(&*self.disk, BlockAddr(tail), blocks - tail)?;
        self.commit_locked(&mut superblock, Besides::Growth(grown))?;
        self.commit_locked(&mut superblock, Besides::Nothing)?;
        Ok(())
    }
}
