//! Disks that take turns.

use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::ids::BlockAddr;

use super::pieces::{Piece, Run, flush_all, submit_pieces};
use super::{most_copies, repair_one, submit_copy_of};

/// Disks that take turns.
pub struct Stripe {
    name: Arc<str>,
    chunk_blocks: u64,
    disks: Vec<Arc<dyn Disk>>,
}

impl Stripe {
    /// A device of `disks`, each of which has `chunk_blocks` blocks in its turn. As many rows are
    /// used as fit on all of them.
    pub fn new(name: Arc<str>, chunk_blocks: u64, disks: Vec<Arc<dyn Disk>>) -> Self {
        assert!(chunk_blocks > 0 && !disks.is_empty(), "a stripe of nothing");
        Self { name, chunk_blocks, disks }
    }

    fn row_blocks(&self) -> u64 {
        self.chunk_blocks * self.disks.len() as u64
    }

    /// How many blocks of part `part` come before block `addr` of the whole.
    fn before(&self, part: u64, addr: u64) -> u64 {
        let (row, within) = (addr / self.row_blocks(), addr % self.row_blocks());
        let chunk = within.saturating_sub(part * self.chunk_blocks).min(self.chunk_blocks);
        row * self.chunk_blocks + chunk
    }

    /// What each part gets of a request, which is within the device.
    fn pieces(&self, request: &DiskRequest) -> Vec<Piece<'_>> {
        let (addr, count) = request.extent();
        let (from, to) = (addr.0, addr.0 + count);
        let pieces = self.disks.iter().zip(0..).filter_map(|(disk, part)| {
            let (start, end) = (self.before(part, from), self.before(part, to));
            let chunk = self.chunk_blocks;
            let whole = start / chunk * self.row_blocks() + part * chunk + start % chunk;
            (start < end).then(|| Piece {
                disk,
                addr: BlockAddr(start),
                count: end - start,
                run: Run { first: whole - from, length: chunk, period: self.row_blocks() },
                lead: chunk - start % chunk,
            })
        });
        pieces.collect()
    }

    /// Which part a block is on, and where.
    fn place(&self, addr: BlockAddr) -> (&dyn Disk, BlockAddr) {
        let part = addr.0 % self.row_blocks() / self.chunk_blocks;
        (&*self.disks[part as usize], BlockAddr(self.before(part, addr.0)))
    }
}

impl Disk for Stripe {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn blocks(&self) -> u64 {
        let shortest = self.disks.iter().map(|disk| disk.blocks()).min().unwrap_or(0);
        (shortest / self.chunk_blocks).saturating_mul(self.row_blocks())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.name, self.blocks()) {
            return Ticket::ready(Err(error));
        }
        if let DiskRequest::Flush = request {
            return flush_all(self.disks.iter());
        }
        submit_pieces(&request, self.pieces(&request), |disk, piece| disk.submit(piece))
    }

    fn copies(&self) -> usize {
        most_copies(self.disks.iter())
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        let request = DiskRequest::Read { addr, count };
        if let Err(error) = request.check(&self.name, self.blocks()) {
            return Ticket::ready(Err(error));
        }
        let submit = |disk: &dyn Disk, piece| submit_copy_of(disk, copy, &piece);
        submit_pieces(&request, self.pieces(&request), submit)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        DiskRequest::Read { addr, count: 1 }.check(&self.name, self.blocks())?;
        let (disk, addr) = self.place(addr);
        repair_one(disk, copy, addr, bad, good)
    }
}
