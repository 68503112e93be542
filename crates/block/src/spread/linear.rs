//! Disks one after the other.

use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::ReadMostly;

use super::pieces::{Piece, Run, flush_all, submit_pieces};
use super::{most_copies, repair_one, submit_copy_of};

/// Disks one after the other.
pub struct Linear {
    name: Arc<str>,
    parts: ReadMostly<Arc<[Part]>>,
}

#[derive(Clone)]
struct Part {
    disk: Arc<dyn Disk>,
    /// Its first block is this one of the whole.
    start: u64,
    /// Its length. Only the last part can become longer.
    blocks: u64,
}

impl Linear {
    /// A device of `disks`, in this order.
    pub fn new(name: Arc<str>, disks: Vec<Arc<dyn Disk>>) -> Self {
        let linear = Self { name, parts: ReadMostly::new(Arc::new([])) };
        for disk in disks {
            linear.append(disk);
        }
        linear
    }

    /// Puts `disk` behind the last one. Its blocks can be used when this returns. What the one
    /// before grows by later is not used.
    pub fn append(&self, disk: Arc<dyn Disk>) {
        self.parts();
        let mut parts = self.parts.write();
        let (start, blocks) = (end(&parts), disk.blocks());
        assert!(start.checked_add(blocks).is_some(), "{blocks} blocks behind {start}");
        let more = parts.iter().cloned().chain([Part { disk, start, blocks }]);
        *parts = more.collect();
    }

    /// How many parts there are.
    pub fn count(&self) -> usize {
        self.parts.read().len()
    }

    fn parts(&self) -> Arc<[Part]> {
        let parts = Arc::clone(&self.parts.read());
        match parts.last() {
            Some(last) if last.disk.blocks() > last.blocks => self.lengthen(),
            _ => parts,
        }
    }

    /// Takes note of what the last part has grown by.
    fn lengthen(&self) -> Arc<[Part]> {
        let mut parts = self.parts.write();
        let mut longer = parts.to_vec();
        if let Some(last) = longer.last_mut() {
            last.blocks = last.disk.blocks();
        }
        *parts = longer.into();
        Arc::clone(&parts)
    }
}

fn end(parts: &[Part]) -> u64 {
    parts.last().map_or(0, |part| part.start + part.blocks)
}

/// The part that block `addr` is in.
fn part_of(parts: &[Part], addr: u64) -> Option<&Part> {
    let after = parts.partition_point(|part| part.start + part.blocks <= addr);
    parts.get(after)
}

/// What each part gets of a request, which is within the device.
fn pieces<'a>(parts: &'a [Part], request: &DiskRequest) -> Vec<Piece<'a>> {
    let (addr, count) = request.extent();
    let (from, to) = (addr.0, addr.0 + count);
    let first = parts.partition_point(|part| part.start + part.blocks <= from);
    let touched = parts[first..].iter().take_while(|part| part.start < to);
    let pieces = touched.filter(|part| part.blocks > 0).map(|part| {
        let (start, end) = (from.max(part.start), to.min(part.start + part.blocks));
        Piece {
            disk: &part.disk,
            addr: BlockAddr(start - part.start),
            count: end - start,
            run: Run { first: start - from, length: end - start, period: 0 },
            lead: end - start,
        }
    });
    pieces.collect()
}

impl Disk for Linear {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn blocks(&self) -> u64 {
        end(&self.parts())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let parts = self.parts();
        if let Err(error) = request.check(&self.name, end(&parts)) {
            return Ticket::ready(Err(error));
        }
        if let DiskRequest::Flush = request {
            return flush_all(parts.iter().map(|part| &part.disk));
        }
        submit_pieces(&request, pieces(&parts, &request), |disk, piece| disk.submit(piece))
    }

    fn copies(&self) -> usize {
        most_copies(self.parts().iter().map(|part| &part.disk))
    }

    fn submit_copy(&self, copy: usize, addr: BlockAddr, count: usize) -> Ticket {
        let parts = self.parts();
        let request = DiskRequest::Read { addr, count };
        if let Err(error) = request.check(&self.name, end(&parts)) {
            return Ticket::ready(Err(error));
        }
        let submit = |disk: &dyn Disk, piece| submit_copy_of(disk, copy, &piece);
        submit_pieces(&request, pieces(&parts, &request), submit)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        let parts = self.parts();
        DiskRequest::Read { addr, count: 1 }.check(&self.name, end(&parts))?;
        let part = part_of(&parts, addr.0).expect("the block is within the device");
        repair_one(&*part.disk, copy, BlockAddr(addr.0 - part.start), bad, good)
    }
}
