//! The pieces of a request: what each disk gets of it.

use std::sync::Arc;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::ids::BlockAddr;

use super::gathering::Gathering;

/// The part of a request that one disk gets.
pub(super) struct Piece<'a> {
    pub disk: &'a Arc<dyn Disk>,
    /// Where it begins on the disk.
    pub addr: BlockAddr,
    pub count: u64,
    /// Which blocks of the request it is.
    pub run: Run,
    /// How many of the first run's blocks it has; it may begin in the middle of a chunk.
    pub lead: u64,
}

/// Blocks `first..` of a request, `length` in each `period`.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub first: u64,
    pub length: u64,
    pub period: u64,
}

impl Piece<'_> {
    /// The stretches of the request that the piece consists of: first block and length.
    fn stretches(&self) -> impl Iterator<Item = (usize, usize)> + Send + 'static {
        let (run, mut left) = (self.run, self.count);
        let (mut at, mut next) = (run.first, self.lead);
        std::iter::from_fn(move || {
            let length = next.min(left);
            let stretch = (at as usize, length as usize);
            // The second stretch begins where a chunk begins.
            at = at + run.period - (run.length - next);
            left -= length;
            next = run.length;
            (length > 0).then_some(stretch)
        })
    }

    fn request(&self, whole: &DiskRequest) -> DiskRequest {
        let (addr, count) = (self.addr, self.count);
        match whole {
            DiskRequest::Read { .. } => DiskRequest::Read { addr, count: count as usize },
            DiskRequest::Write { parts, durability, .. } => {
                let parts = self.stretches().flat_map(|stretch| cut(parts, stretch)).collect();
                DiskRequest::Write { addr, parts, durability: *durability }
            }
            DiskRequest::Discard { .. } => DiskRequest::Discard { addr, count },
            DiskRequest::WriteZeroes { .. } => DiskRequest::WriteZeroes { addr, count },
            DiskRequest::Flush => DiskRequest::Flush,
        }
    }
}

/// `length` blocks of `parts` side by side, from the one at `start` on.
fn cut(parts: &[BlockSlice], (start, length): (usize, usize)) -> Vec<BlockSlice> {
    let (mut before, end) = (0, start + length);
    let mut taken = Vec::new();
    for part in parts {
        let (from, to) = (start.max(before), end.min(before + part.count()));
        if from < to {
            taken.push(part.part(from - before, to - from));
        }
        before += part.count();
    }
    taken
}

/// Has `submit` start the piece of a request that each disk gets.
pub(super) fn submit_pieces(
    request: &DiskRequest,
    pieces: Vec<Piece<'_>>,
    submit: impl Fn(&dyn Disk, DiskRequest) -> Ticket,
) -> Ticket {
    if let [piece] = &*pieces {
        return submit(&**piece.disk, piece.request(request));
    }
    let blocks = match request {
        DiskRequest::Read { count, .. } => Some(Blocks::zeroed(*count)),
        _ => None,
    };
    let (ticket, gathering) = Gathering::start(pieces.len(), blocks);
    for piece in pieces {
        let (gathering, stretches) = (Arc::clone(&gathering), piece.stretches());
        let part = submit(&**piece.disk, piece.request(request));
        part.then(move |outcome| gathering.arrived(outcome, stretches));
    }
    ticket
}

pub(super) fn flush_all<'a>(disks: impl ExactSizeIterator<Item = &'a Arc<dyn Disk>>) -> Ticket {
    let (ticket, gathering) = Gathering::start(disks.len(), None);
    for disk in disks {
        let gathering = Arc::clone(&gathering);
        let flushed = disk.submit(DiskRequest::Flush);
        flushed.then(move |outcome| gathering.arrived(outcome, std::iter::empty()));
    }
    ticket
}
