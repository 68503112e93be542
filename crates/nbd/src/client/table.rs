//! What is in flight, and what a server might yet lose.
//!
//! - **Pending**: sent and not answered, by cookie. Cookies are never used twice, and a later one
//!   has a later deadline.
//! - **Unflushed**: acknowledged and not covered by a flush, in the order of acknowledgement. Two
//!   writes to one block are never in flight together, so this order is theirs. A write with FUA
//!   is kept too if others are: repeating an older write must not undo it.
//!
//! A flush lets go of what had been acknowledged when it was submitted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Completion, DiskError, DiskRequest, DiskResult, Durability, Ticket};
use gabion_base::sync::Mutex;

use super::handshake::Terms;
use super::is_write;
use crate::wire::export_flag;

/// Bytes of unflushed writes that are kept.
const UNFLUSHED_BYTES_MAX: usize = 64 << 20;
/// Unflushed writes that are kept.
const UNFLUSHED_MAX: usize = 16 << 10;
/// Blocks that are zeroed or discarded at once: the length must fit into 32 bits.
const EMPTY_BLOCKS_MAX: u64 = (1 << 30) / BLOCK_SIZE as u64;

/// A piece of a request, sent and not answered.
pub(super) struct Pending {
    pub(super) request: DiskRequest,
    pub(super) gather: Arc<Gather>,
    pub(super) index: usize,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

/// All that a client knows about its requests.
#[derive(Default)]
pub(super) struct Table {
    pending: BTreeMap<u64, Entry>,
    next: u64,
    unflushed: VecDeque<Kept>,
    unflushed_bytes: usize,
    acknowledged: u64,
    /// Whether a flush that nobody asked for is in flight.
    pub(super) own_flush: bool,
}

struct Entry {
    pending: Pending,
    /// How much had been acknowledged when it was submitted.
    acknowledged: u64,
}

struct Kept {
    number: u64,
    request: DiskRequest,
}

/// Bytes of memory that a request keeps.
fn kept_bytes(request: &DiskRequest) -> usize {
    match request {
        DiskRequest::Write { parts, .. } => parts.iter().map(|part| part.bytes().len()).sum(),
        _ => 0,
    }
}

impl Table {
    /// Enters a request; gives its cookie.
    pub(super) fn add(&mut self, pending: Pending) -> u64 {
        self.next += 1;
        self.pending.insert(self.next, Entry { pending, acknowledged: self.acknowledged });
        self.next
    }

    /// The request of a cookie.
    pub(super) fn request(&self, cookie: u64) -> Option<&DiskRequest> {
        self.pending.get(&cookie).map(|entry| &entry.pending.request)
    }

    /// Everything unanswered, in the order of submission.
    pub(super) fn unanswered(&self) -> Vec<(u64, DiskRequest)> {
        let requests = self.pending.iter();
        requests.map(|(cookie, entry)| (*cookie, entry.pending.request.clone())).collect()
    }

    /// A request has succeeded.
    pub(super) fn succeed(&mut self, cookie: u64) -> Option<Pending> {
        let entry = self.take(cookie)?;
        let request = &entry.pending.request;
        if let DiskRequest::Flush = request {
            while self.unflushed.front().is_some_and(|kept| kept.number <= entry.acknowledged) {
                let kept = self.unflushed.pop_front().expect("it was there just now");
                self.unflushed_bytes -= kept_bytes(&kept.request);
            }
        } else if is_write(request) {
            self.acknowledged += 1;
            let durable = matches!(request, DiskRequest::Write { durability: Durability::Fua, .. });
            if !(durable && self.unflushed.is_empty()) {
                self.unflushed_bytes += kept_bytes(request);
                let kept = Kept { number: self.acknowledged, request: request.clone() };
                self.unflushed.push_back(kept);
            }
        }
        Some(entry.pending)
    }

    /// A request has failed.
    pub(super) fn fail(&mut self, cookie: u64) -> Option<Pending> {
        self.take(cookie).map(|entry| entry.pending)
    }

    fn take(&mut self, cookie: u64) -> Option<Entry> {
        let entry = self.pending.remove(&cookie)?;
        if matches!(entry.pending.request, DiskRequest::Flush) {
            // Or somebody else's flush, which does as well.
            self.own_flush = false;
        }
        Some(entry)
    }

    /// Takes what is due at `now`, or all.
    pub(super) fn take_overdue(&mut self, now: Option<Instant>) -> Vec<Pending> {
        let mut overdue = Vec::new();
        while let Some((cookie, entry)) = self.pending.first_key_value() {
            if now.is_some_and(|now| now < entry.pending.deadline) {
                break;
            }
            let cookie = *cookie;
            overdue.extend(self.fail(cookie));
        }
        overdue
    }

    pub(super) fn first_deadline(&self) -> Option<Instant> {
        self.pending.first_key_value().map(|(_, entry)| entry.pending.deadline)
    }

    /// The unflushed request of this place in their order.
    pub(super) fn unflushed(&self, index: usize) -> Option<DiskRequest> {
        self.unflushed.get(index).map(|kept| kept.request.clone())
    }

    /// Whether another write can be kept.
    pub(super) fn has_room(&self) -> bool {
        self.unflushed_bytes < UNFLUSHED_BYTES_MAX && self.unflushed.len() < UNFLUSHED_MAX
    }

    /// Whether it is time to flush.
    pub(super) fn wants_flush(&self) -> bool {
        self.unflushed_bytes > UNFLUSHED_BYTES_MAX / 2 || self.unflushed.len() > UNFLUSHED_MAX / 2
    }
}

/// The pieces of one request, of which the last completes the ticket.
pub(super) struct Gather(Mutex<Gathered>);

struct Gathered {
    left: usize,
    blocks: Vec<Option<Blocks>>,
    failure: Option<DiskError>,
    completion: Option<Completion>,
}

impl Gather {
    /// Waits for `count` pieces.
    pub(super) fn start(count: usize) -> (Ticket, Arc<Self>) {
        if count == 0 {
            return (Ticket::ready(Ok(None)), Self::of(0, None));
        }
        let (ticket, completion) = Ticket::pair();
        (ticket, Self::of(count, Some(completion)))
    }

    fn of(count: usize, completion: Option<Completion>) -> Arc<Self> {
        let blocks = vec![None; count];
        Arc::new(Self(Mutex::new(Gathered { left: count, blocks, failure: None, completion })))
    }

    /// A piece is done.
    pub(super) fn complete(&self, index: usize, outcome: DiskResult) {
        let mut gathered = self.0.lock();
        match outcome {
            Ok(blocks) => gathered.blocks[index] = blocks,
            Err(error) => gathered.failure = Some(error),
        }
        gathered.left -= 1;
        if gathered.left > 0 {
            return;
        }
        let Some(completion) = gathered.completion.take() else { return };
        let outcome = match gathered.failure.take() {
            Some(error) => Err(error),
            None => Ok(joined(std::mem::take(&mut gathered.blocks))),
        };
        drop(gathered);
        completion.complete(outcome);
    }
}

fn joined(mut pieces: Vec<Option<Blocks>>) -> Option<Blocks> {
    if pieces.len() == 1 {
        return pieces.pop().flatten();
    }
    let pieces: Vec<_> = pieces.into_iter().flatten().collect();
    if pieces.is_empty() {
        return None;
    }
    let mut blocks = Blocks::zeroed(pieces.iter().map(Blocks::count).sum());
    let mut rest = blocks.bytes_mut();
    for piece in &pieces {
        let (head, tail) = rest.split_at_mut(piece.bytes().len());
        head.copy_from_slice(piece.bytes());
        rest = tail;
    }
    Some(blocks)
}

/// Cuts a request into what the server takes at once. None if there is nothing to do.
pub(super) fn pieces(request: DiskRequest, terms: &Terms) -> Vec<DiskRequest> {
    let blocks_max = u64::from(terms.maximum) / BLOCK_SIZE as u64;
    let steps = |count: u64, max: u64| {
        let starts = (0..count).step_by(max as usize);
        starts.map(move |at| (at, max.min(count - at)))
    };
    match request {
        DiskRequest::Read { count: 0, .. } => Vec::new(),
        DiskRequest::Read { addr, count } => steps(count as u64, blocks_max)
            .map(|(at, count)| DiskRequest::Read { addr: addr.plus(at), count: count as usize })
            .collect(),
        DiskRequest::Write { mut addr, parts, durability } => {
            let mut pieces = Vec::new();
            let (mut piece, mut piece_blocks) = (Vec::new(), 0);
            for part in &parts {
                let mut at = 0;
                while at < part.count() {
                    let step = (part.count() - at).min(blocks_max as usize - piece_blocks);
                    piece.push(part.part(at, step));
                    at += step;
                    piece_blocks += step;
                    if piece_blocks == blocks_max as usize {
                        let parts = std::mem::take(&mut piece);
                        pieces.push(DiskRequest::Write { addr, parts, durability });
                        addr = addr.plus(piece_blocks as u64);
                        piece_blocks = 0;
                    }
                }
            }
            if piece_blocks > 0 {
                pieces.push(DiskRequest::Write { addr, parts: piece, durability });
            }
            pieces
        }
        // A read-only export has nothing to flush, and need not know how.
        DiskRequest::Flush if !terms.has(export_flag::SEND_FLUSH) => Vec::new(),
        DiskRequest::Flush => vec![DiskRequest::Flush],
        DiskRequest::Discard { .. } if !terms.has(export_flag::SEND_TRIM) => Vec::new(),
        DiskRequest::Discard { addr, count } => steps(count, EMPTY_BLOCKS_MAX)
            .map(|(at, count)| DiskRequest::Discard { addr: addr.plus(at), count })
            .collect(),
        DiskRequest::WriteZeroes { addr, count } if terms.has(export_flag::SEND_WRITE_ZEROES) => {
            steps(count, EMPTY_BLOCKS_MAX)
                .map(|(at, count)| DiskRequest::WriteZeroes { addr: addr.plus(at), count })
                .collect()
        }
        DiskRequest::WriteZeroes { count: 0, .. } => Vec::new(),
        DiskRequest::WriteZeroes { addr, count } => {
            let zeros = BlockSlice::new(Blocks::zeroed(count.min(blocks_max) as usize));
            steps(count, blocks_max)
                .map(|(at, count)| DiskRequest::Write {
                    addr: addr.plus(at),
                    parts: vec![zeros.part(0, count as usize)],
                    durability: Durability::Cached,
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gabion_base::ids::BlockAddr;

    use super::*;
    use crate::server::Replies;

    fn write(addr: u64, durability: Durability) -> DiskRequest {
        let parts = vec![BlockSlice::new(Blocks::zeroed(1))];
        DiskRequest::Write { addr: BlockAddr(addr), parts, durability }
    }

    fn add(table: &mut Table, request: DiskRequest) -> u64 {
        let since = Instant::now();
        let (_, gather) = Gather::start(1);
        let deadline = since + Duration::from_secs(1);
        table.add(Pending { request, gather, index: 0, since, deadline })
    }

    fn kept(table: &Table) -> Vec<u64> {
        table.unflushed.iter().map(|kept| kept.request.extent().0.0).collect()
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_when_it_was_submitted() {
        let mut table = Table::default();
        let first = add(&mut table, write(1, Durability::Cached));
        let second = add(&mut table, write(2, Durability::Cached));
        table.succeed(first).unwrap();
        let flush = add(&mut table, DiskRequest::Flush);
        table.succeed(second).unwrap();
        table.succeed(flush).unwrap();
        assert_eq!(kept(&table), [2]);
        assert_eq!(table.unflushed_bytes, BLOCK_SIZE);
        let flush = add(&mut table, DiskRequest::Flush);
        table.fail(flush).unwrap();
        assert_eq!(kept(&table), [2], "a flush that failed covers nothing");
    }

    #[test]
    fn a_durable_write_is_kept_only_behind_others() {
        let mut table = Table::default();
        for (addr, durability) in
            [(1, Durability::Fua), (2, Durability::Cached), (2, Durability::Fua)]
        {
            let cookie = add(&mut table, write(addr, durability));
            table.succeed(cookie).unwrap();
        }
        assert_eq!(kept(&table), [2, 2]);
    }

    #[test]
    fn requests_are_cut_into_what_the_server_takes() {
        let maximum = 2 * BLOCK_SIZE as u32;
        let flags = export_flag::HAS_FLAGS;
        let terms =
            Terms { bytes: 1 << 20, flags, maximum, replies: Replies::Simple, medium: None };
        let part = BlockSlice::new(Blocks::zeroed(3));
        let parts = vec![part.clone(), part];
        let request = DiskRequest::Write { addr: BlockAddr(4), parts, durability: Durability::Fua };
        let extents: Vec<_> = pieces(request, &terms)
            .iter()
            .map(|piece| (piece.extent().0.0, piece.extent().1))
            .collect();
        assert_eq!(extents, [(4, 2), (6, 2), (8, 2)]);
        let zeroes = DiskRequest::WriteZeroes { addr: BlockAddr(0), count: 3 };
        let extents: Vec<_> = pieces(zeroes, &terms).iter().map(|piece| piece.extent().1).collect();
        assert_eq!(extents, [2, 1], "written, as this server cannot zero");
    }
}
