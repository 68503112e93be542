//! Holes are made, and filled with blocks that are set aside.
//!
//! ```text
//!   blocks         |   0    |   1    |   2    |   3    |
//!   punched             [----------------------)
//!   becomes        |    000 |  hole  |  hole  |00      |
//! ```
//!
//! Whole blocks of a punched range are unmapped, also those past the end of the file; parts of
//! blocks at its ends are overwritten with zeros, if anything is stored there. Setting aside covers
//! every block that the range touches and leaves alone what has blocks already.

use crate::alloc::Purpose;
use crate::error::MapError;
use crate::extents::{BLOCK, Piece};
use crate::format::item::{FileData, Sharing, UNWRITTEN_BLOCKS_MAX, Unwritten};
use crate::key::FileId;
use crate::transaction::LocalTxn;
use crate::txn::{FILE_SIZE_MAX, LockMode, Stop, Txn};

impl LocalTxn<'_> {
    /// Implements [`Txn::punch`].
    pub(crate) fn punch_hole(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure(file, LockMode::Exclusive)?;
        let size = self.file(file)?.size;
        let to = to.min(FILE_SIZE_MAX);
        if from >= to {
            return Ok(());
        }
        // Whole blocks go; parts of blocks at the ends are overwritten with zeros.
        let (first, last) = (from.div_ceil(BLOCK), to / BLOCK);
        // Everything up to the end of the file includes the rest of its last block.
        let last = if to >= size { to.div_ceil(BLOCK) } else { last };
        if !from.is_multiple_of(BLOCK) && from < size {
            self.zero_within(file, from, to.min(first * BLOCK))?;
        }
        if last >= first && last * BLOCK < to {
            self.zero_within(file, last * BLOCK, to)?;
        }
        if first < last {
            self.unmap(file, first, last)?;
            self.drop_accepted(file, first, last);
        }
        Ok(())
    }

    /// Zeros bytes `from..to` of one block, if anything is stored there.
    fn zero_within(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        self.ensure_settled(file)?;
        let block = from / BLOCK;
        let Some(mut bytes) = self.stored_block(file, block)? else { return Ok(()) };
        let (from, to) = ((from - block * BLOCK) as usize, (to - block * BLOCK) as usize);
        bytes[from..to].fill(0);
        self.replace_block(file, block, bytes);
        Ok(())
    }

    /// Implements [`Txn::allocate`].
    pub(crate) fn set_aside(&mut self, file: FileId, from: u64, to: u64) -> Result<(), Stop> {
        if to > FILE_SIZE_MAX {
            return Err(Stop::Map(MapError::TooLarge));
        }
        self.map.check_changeable(file.subvol)?;
        self.ensure(file, LockMode::Exclusive)?;
        let (from, to) = (from / BLOCK, to.div_ceil(BLOCK));
        let gaps = self.gaps(file, from, to)?;
        let missing = gaps.iter().map(|gap| gap.1 - gap.0).sum();
        let map = self.map;
        let mut held = map.space.hold(missing);
        self.ensure_held(missing)?;
        let birth = self.map.view.load().active.txg();
        self.changes.birth = Some(birth);
        for (from, to) in gaps {
            let mut at = from;
            while at < to {
                let count = (to - at).min(u64::from(UNWRITTEN_BLOCKS_MAX)) as u32;
                let purpose = Purpose::Data { count, hint: file.ino.0 };
                let run = map.alloc.allocate(purpose)?;
                held.given(u64::from(run.count));
                self.changes.set_aside.push(run);
                self.changes.batch.allocated.push(run);
                let sharing = Sharing::Sole;
                let data = Unwritten { addr: run.addr, birth, sharing, count: run.count };
                let piece = Piece { block: at, data: FileData::Unwritten(data) };
                self.map_piece(file, &piece)?;
                at += u64::from(run.count);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gabion_base::disk::{Disk, MemDisk};
    use gabion_base::ids::{Ino, Uuid};

    use super::*;
    use crate::LocalMap;
    use crate::map::{Limits, OpenMode};
    use crate::open::{FormatOptions, format};
    use crate::txn::Payload;

    #[test]
    fn what_others_hold_for_a_moment_is_no_reason_to_say_that_there_is_no_room() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(8192));
        let (uuid, label) = (Uuid([7; 16]), String::new());
        let options = FormatOptions { uuid, label, name_seed: 5, created: 0, blocks: None };
        format(&disk, &options).expect("a large enough disk");
        let map = LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(0)).expect("whole");
        let of = map.create_subvolume().expect("room");
        let bytes = vec![7; BLOCK as usize];
        for (ino, writes) in [(5, false), (6, true)] {
            let file = FileId::new(of, Ino(ino));
            // Somebody wants all that there is, and does not get it.
            let mut other = Some(map.space.hold(8192));
            let mut attempts = 0;
            let done = map.transact(|txn| -> Result<(), Stop> {
                attempts += 1;
                if attempts > 3 {
                    other = None;
                }
                match writes {
                    true => txn.write(file, 0, Payload::Copied(&bytes)),
                    false => txn.allocate(file, 0, BLOCK),
                }
            });
            done.expect("room");
            assert!(attempts > 3);
        }
    }
}
