//! Blocks that are being read from all copies, and what is to be made of them.
//!
//! Whoever has the checksum says which copy is right; the others are made like it. A copy that
//! could not be read in one piece is looked at block by block.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, Repair, Ticket};
use gabion_base::ids::BlockAddr;

use crate::copies;

/// Blocks that are being read.
pub(super) struct Reading {
    addr: BlockAddr,
    copies: Vec<Ticket>,
}

/// What the copies hold of blocks side by side.
pub(super) struct Found {
    addr: BlockAddr,
    copies: Vec<Result<BlockSlice, DiskError>>,
}

impl Reading {
    /// Begins to read `count` blocks from all copies.
    pub(super) fn start(disk: &dyn Disk, addr: BlockAddr, count: usize) -> Self {
        let copies = (0..disk.copies()).map(|copy| disk.submit_copy(copy, addr, count));
        Self { addr, copies: copies.collect() }
    }

    /// Waits for all copies.
    pub(super) fn wait(self) -> Found {
        let read = |ticket: Ticket| {
            let blocks = ticket.wait()?.expect("a read completes with blocks");
            Ok(BlockSlice::new(blocks))
        };
        Found { addr: self.addr, copies: self.copies.into_iter().map(read).collect() }
    }
}

impl Found {
    /// Why nothing could be read from any copy.
    pub(super) fn error(&self) -> Option<&DiskError> {
        let mut errors = self.copies.iter().map(|copy| copy.as_ref().err());
        if errors.clone().all(|error| error.is_some()) { errors.next().flatten() } else { None }
    }

    /// What `decode` makes of `count` blocks from `start` on, as the first copy has them that it
    /// accepts, and how many blocks of others were written again to be like them.
    pub(super) fn right<T, E>(
        &self,
        disk: &dyn Disk,
        (start, count): (usize, usize),
        mut decode: impl FnMut(&BlockSlice) -> Result<T, E>,
    ) -> Option<(T, u64)> {
        let parts = self.copies.iter().map(|copy| Some(copy.as_ref().ok()?.part(start, count)));
        let parts: Vec<_> = parts.collect();
        let (right, decoded) = parts.iter().flatten().find_map(|part| {
            let decoded = decode(part).ok()?;
            Some((part, decoded))
        })?;
        let addr = self.addr.plus(start as u64);
        let mended = parts.iter().enumerate().map(|(copy, part)| match part {
            Some(part) => replace_different(disk, copy, addr, part, right),
            None => copies::mend_copy(disk, copy, addr, right),
        });
        let mended = mended.sum();
        Some((decoded, mended))
    }
}

fn replace_different(
    disk: &dyn Disk,
    copy: usize,
    addr: BlockAddr,
    found: &BlockSlice,
    right: &BlockSlice,
) -> u64 {
    if found.same(right) || found.bytes() == right.bytes() {
        return 0;
    }
    let blocks = found.bytes().chunks(BLOCK_SIZE).enumerate();
    let different = blocks.filter(|(index, block)| *block != right.part(*index, 1).bytes());
    let replaced = different.map(|(index, block)| {
        let good = right.part(index, 1);
        let repaired = disk.repair_copy(copy, addr.plus(index as u64), block, good);
        u64::from(matches!(repaired, Ok(Repair::Repaired)))
    });
    replaced.sum()
}
