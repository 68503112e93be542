//! Blocks spread over several disks: one after the other, or in turns.
//!
//! ```text
//!  Linear                       Stripe, chunks of 2, three parts
//!  | a a a a | b b | c c c |    | a a b b c c | a a b b c c | a a ...
//!    0 1 2 3   4 5   6 7 8        0 1 2 3 4 5   6 7 8 9 ...
//!                                 row 0         row 1
//! ```
//!
//! On each part the blocks of a request lie side by side, in a stripe, too: those of part `p` that
//! come before block `x` are `x / row * chunk` in whole rows, and what is left of its chunk in the
//! last one. So a request becomes at most one request to each part, and what is in one part only is
//! handed on without being copied.
//!
//! A request has completed when all its pieces have. If some of them failed, one of the errors is
//! the answer, a fence before all others: whoever asked must not go on. What the other pieces wrote
//! stays written, as the [`Disk`] seam allows.
//!
//! Both grow while they are used: a linear device behind its end ([`Linear::append`]) or with its
//! last part, a stripe when all its parts have become longer. No block moves.

mod gathering;
mod linear;
mod pieces;
mod stripe;

use std::sync::Arc;

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskError, DiskRequest, Repair, Ticket};
use gabion_base::ids::BlockAddr;

pub use linear::Linear;
pub use stripe::Stripe;

/// The parts may keep different numbers of copies; the whole has those of the best.
fn most_copies<'a>(disks: impl Iterator<Item = &'a Arc<dyn Disk>>) -> usize {
    disks.map(|disk| disk.copies()).max().unwrap_or(1)
}

/// Starts to read a copy of what is on one part, or the last one if it keeps fewer.
fn submit_copy_of(disk: &dyn Disk, copy: usize, read: &DiskRequest) -> Ticket {
    let (addr, count) = read.extent();
    disk.submit_copy(copy.min(disk.copies() - 1), addr, count as usize)
}

fn repair_one(
    disk: &dyn Disk,
    copy: usize,
    addr: BlockAddr,
    bad: &[u8],
    good: BlockSlice,
) -> Result<Repair, DiskError> {
    if copy >= disk.copies() {
        return Ok(Repair::Impossible);
    }
    disk.repair_copy(copy, addr, bad, good)
}
