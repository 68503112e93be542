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
//! A linear device grows while it is used ([`Linear::append`]). A stripe does not: blocks would
//! have to move. It is followed by another one in a linear device instead.

use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Completion, Disk, DiskError, DiskRequest, DiskResult, Repair, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::{Mutex, ReadMostly};

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
    /// Its length when it was added. What it grows by later is not used.
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

    /// Puts `disk` behind the last one. Its blocks can be used when this returns.
    pub fn append(&self, disk: Arc<dyn Disk>) {
        let mut parts = self.parts.write();
        let (start, blocks) = (end(&parts), disk.blocks());
        assert!(start.checked_add(blocks).is_some(), "{blocks} blocks behind {start}");
        let more = parts.iter().cloned().chain([Part { disk, start, blocks }]);
        *parts = more.collect();
    }

    fn parts(&self) -> Arc<[Part]> {
        Arc::clone(&self.parts.read())
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

impl Disk for Linear {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn blocks(&self) -> u64 {
        end(&self.parts.read())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let parts = self.parts();
        if let Err(error) = request.check(&self.name, end(&parts)) {
            return Ticket::ready(Err(error));
        }
        if let DiskRequest::Flush = request {
            return flush_all(parts.iter().map(|part| &part.disk));
        }
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
        submit_pieces(&request, pieces.collect())
    }

    fn copies(&self) -> usize {
        most_copies(self.parts().iter().map(|part| &part.disk))
    }

    fn read_copy(&self, copy: usize, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        let parts = self.parts();
        DiskRequest::Read { addr, count: 1 }.check(&self.name, end(&parts))?;
        let part = part_of(&parts, addr.0).expect("the block is within the device");
        read_one(&*part.disk, copy, BlockAddr(addr.0 - part.start), into)
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

/// Disks that take turns.
pub struct Stripe {
    name: Arc<str>,
    chunk_blocks: u64,
    disks: Vec<Arc<dyn Disk>>,
    blocks: u64,
}

impl Stripe {
    /// A device of `disks`, each of which has `chunk_blocks` blocks in its turn. As many rows are
    /// used as fit on all of them.
    pub fn new(name: Arc<str>, chunk_blocks: u64, disks: Vec<Arc<dyn Disk>>) -> Self {
        assert!(chunk_blocks > 0 && !disks.is_empty(), "a stripe of nothing");
        let shortest = disks.iter().map(|disk| disk.blocks()).min().unwrap_or(0);
        let row_blocks = chunk_blocks * disks.len() as u64;
        let blocks = (shortest / chunk_blocks).saturating_mul(row_blocks);
        Self { name, chunk_blocks, disks, blocks }
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
        self.blocks
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let Err(error) = request.check(&self.name, self.blocks) {
            return Ticket::ready(Err(error));
        }
        if let DiskRequest::Flush = request {
            return flush_all(self.disks.iter());
        }
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
        submit_pieces(&request, pieces.collect())
    }

    fn copies(&self) -> usize {
        most_copies(self.disks.iter())
    }

    fn read_copy(&self, copy: usize, addr: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
        DiskRequest::Read { addr, count: 1 }.check(&self.name, self.blocks)?;
        let (disk, addr) = self.place(addr);
        read_one(disk, copy, addr, into)
    }

    fn repair_copy(
        &self,
        copy: usize,
        addr: BlockAddr,
        bad: &[u8],
        good: BlockSlice,
    ) -> Result<Repair, DiskError> {
        DiskRequest::Read { addr, count: 1 }.check(&self.name, self.blocks)?;
        let (disk, addr) = self.place(addr);
        repair_one(disk, copy, addr, bad, good)
    }
}

/// The part of a request that one disk gets.
struct Piece<'a> {
    disk: &'a Arc<dyn Disk>,
    /// Where it begins on the disk.
    addr: BlockAddr,
    count: u64,
    /// Which blocks of the request it is.
    run: Run,
    /// How many of the first run's blocks it has; it may begin in the middle of a chunk.
    lead: u64,
}

/// Blocks `first..` of a request, `length` in each `period`.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    length: u64,
    period: u64,
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

fn submit_pieces(request: &DiskRequest, pieces: Vec<Piece<'_>>) -> Ticket {
    if let [piece] = &*pieces {
        return piece.disk.submit(piece.request(request));
    }
    let blocks = match request {
        DiskRequest::Read { count, .. } => Some(Blocks::zeroed(*count)),
        _ => None,
    };
    let (ticket, gathering) = Gathering::start(pieces.len(), blocks);
    for piece in pieces {
        let (gathering, stretches) = (Arc::clone(&gathering), piece.stretches());
        let part = piece.disk.submit(piece.request(request));
        part.then(move |outcome| gathering.arrived(outcome, stretches));
    }
    ticket
}

fn flush_all<'a>(disks: impl ExactSizeIterator<Item = &'a Arc<dyn Disk>>) -> Ticket {
    let (ticket, gathering) = Gathering::start(disks.len(), None);
    for disk in disks {
        let gathering = Arc::clone(&gathering);
        let flushed = disk.submit(DiskRequest::Flush);
        flushed.then(move |outcome| gathering.arrived(outcome, std::iter::empty()));
    }
    ticket
}

/// The pieces of one request, until the last one has completed.
struct Gathering(Mutex<Gathered>);

struct Gathered {
    left: usize,
    blocks: Option<Blocks>,
    error: Option<DiskError>,
    /// Taken with the last piece.
    completion: Option<Completion>,
}

impl Gathering {
    fn start(pieces: usize, blocks: Option<Blocks>) -> (Ticket, Arc<Self>) {
        let (ticket, completion) = match pieces {
            0 => (Ticket::ready(Ok(blocks.clone())), None),
            _ => {
                let (ticket, completion) = Ticket::pair();
                (ticket, Some(completion))
            }
        };
        let gathered = Gathered { left: pieces, blocks, error: None, completion };
        (ticket, Arc::new(Self(Mutex::new(gathered))))
    }

    /// A piece has completed, whose blocks are these of the request.
    fn arrived(&self, outcome: DiskResult, stretches: impl Iterator<Item = (usize, usize)>) {
        let mut gathered = self.0.lock();
        match outcome {
            Ok(piece) => {
                if let (Some(piece), Some(whole)) = (&piece, &mut gathered.blocks) {
                    place(piece, whole, stretches);
                }
            }
            Err(error) => {
                let fenced = matches!(error, DiskError::Fenced { .. });
                if fenced || gathered.error.is_none() {
                    gathered.error = Some(error);
                }
            }
        }
        gathered.left -= 1;
        if gathered.left > 0 {
            return;
        }
        let (error, blocks) = (gathered.error.take(), gathered.blocks.take());
        let completion = gathered.completion.take();
        // Whoever is told may ask for more at once.
        drop(gathered);
        if let Some(completion) = completion {
            completion.complete(error.map_or(Ok(blocks), Err));
        }
    }
}

fn place(piece: &Blocks, whole: &mut Blocks, stretches: impl Iterator<Item = (usize, usize)>) {
    let mut from = 0;
    for (start, length) in stretches {
        let (start, bytes) = (start * BLOCK_SIZE, length * BLOCK_SIZE);
        let to = &mut whole.bytes_mut()[start..start + bytes];
        to.copy_from_slice(&piece.bytes()[from..from + bytes]);
        from += bytes;
    }
}

/// The parts may keep different numbers of copies; the whole has those of the best.
fn most_copies<'a>(disks: impl Iterator<Item = &'a Arc<dyn Disk>>) -> usize {
    disks.map(|disk| disk.copies()).max().unwrap_or(1)
}

fn read_one(
    disk: &dyn Disk,
    copy: usize,
    addr: BlockAddr,
    into: &mut [u8],
) -> Result<(), DiskError> {
    disk.read_copy(copy.min(disk.copies() - 1), addr, into)
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

#[cfg(test)]
mod tests {
    use gabion_base::disk::{Durability, MemDisk};
    use proptest::prelude::*;

    use super::*;

    fn memory(blocks: u64) -> Arc<dyn Disk> {
        Arc::new(MemDisk::new(blocks))
    }

    fn linear(disks: Vec<Arc<dyn Disk>>) -> Linear {
        Linear::new("linear".into(), disks)
    }

    fn stripe(chunk_blocks: u64, disks: Vec<Arc<dyn Disk>>) -> Stripe {
        Stripe::new("stripe".into(), chunk_blocks, disks)
    }

    /// Does nothing until it is told to, and then what came last first.
    struct Late {
        disk: MemDisk,
        held: Mutex<Vec<(Completion, DiskResult)>>,
        refusal: Option<DiskError>,
    }

    impl Late {
        fn new(blocks: u64, refusal: Option<DiskError>) -> Arc<Self> {
            Arc::new(Self { disk: MemDisk::new(blocks), held: Mutex::new(Vec::new()), refusal })
        }

        fn let_go(&self) -> usize {
            let held = std::mem::take(&mut *self.held.lock());
            let count = held.len();
            for (completion, outcome) in held.into_iter().rev() {
                completion.complete(outcome);
            }
            count
        }
    }

    impl Disk for Late {
        fn name(&self) -> Arc<str> {
            "late".into()
        }

        fn blocks(&self) -> u64 {
            self.disk.blocks()
        }

        fn submit(&self, request: DiskRequest) -> Ticket {
            let outcome = match &self.refusal {
                Some(error) => Err(error.clone()),
                None => self.disk.submit(request).wait(),
            };
            let (ticket, completion) = Ticket::pair();
            self.held.lock().push((completion, outcome));
            ticket
        }

        fn copies(&self) -> usize {
            3
        }

        fn read_copy(&self, copy: usize, _: BlockAddr, into: &mut [u8]) -> Result<(), DiskError> {
            into.fill(copy as u8);
            Ok(())
        }

        fn repair_copy(
            &self,
            _: usize,
            addr: BlockAddr,
            _: &[u8],
            good: BlockSlice,
        ) -> Result<Repair, DiskError> {
            self.disk.write(addr, good, Durability::Fua)?;
            Ok(Repair::Repaired)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(u64, u64),
        Write(u64, Vec<u64>),
        Zero(u64, u64),
        Flush,
        Append(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..200_u64, 0..60_u64).prop_map(|(addr, count)| Step::Read(addr, count)),
            4 => (0..200_u64, prop::collection::vec(1..20_u64, 0..4))
                .prop_map(|(addr, parts)| Step::Write(addr, parts)),
            2 => (0..200_u64, 0..60_u64).prop_map(|(addr, count)| Step::Zero(addr, count)),
            1 => Just(Step::Flush),
            1 => (0..20_u64).prop_map(Step::Append),
        ]
    }

    fn bytes(count: u64, stamp: u8) -> Blocks {
        let mut blocks = Blocks::zeroed(count as usize);
        for (index, block) in blocks.bytes_mut().chunks_mut(BLOCK_SIZE).enumerate() {
            block.fill(stamp.wrapping_add(index as u8));
        }
        blocks
    }

    /// Does `request` on the flat disk and on the one that is tried, if it is within both.
    fn both(flat: &MemDisk, tried: &dyn Disk, request: &DiskRequest) {
        let found = tried.submit(request.clone()).wait();
        let Err(error) = request.check(&tried.name(), tried.blocks()) else {
            let expected = flat.submit(request.clone()).wait().unwrap();
            let (found, expected) = (found.unwrap(), expected.as_ref().map(Blocks::bytes));
            assert!(found.as_ref().map(Blocks::bytes) == expected, "{request:?}");
            return;
        };
        assert_eq!(found.unwrap_err().to_string(), error.to_string());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_it_is_made_of_it_is_one_disk(
            chunk in 1..6_u64,
            lengths in prop::collection::vec(0..30_u64, 1..5),
            after in prop::collection::vec(0..30_u64, 0..4),
            steps in prop::collection::vec(step(), 1..40),
        ) {
            let flat = MemDisk::new(400);
            let turns = stripe(chunk, lengths.into_iter().map(memory).collect());
            let parts = after.into_iter().map(memory);
            let turns = std::iter::once(Arc::new(turns) as Arc<dyn Disk>);
            let tried = linear(turns.chain(parts).collect());
            for (stamp, step) in steps.into_iter().enumerate() {
                let request = match step {
                    Step::Read(addr, count) => {
                        DiskRequest::Read { addr: BlockAddr(addr), count: count as usize }
                    }
                    Step::Write(addr, parts) => DiskRequest::Write {
                        addr: BlockAddr(addr),
                        parts: parts
                            .into_iter()
                            .map(|count| BlockSlice::new(bytes(count, stamp as u8)))
                            .collect(),
                        durability: Durability::Cached,
                    },
                    Step::Zero(addr, count) => {
                        DiskRequest::WriteZeroes { addr: BlockAddr(addr), count }
                    }
                    Step::Flush => DiskRequest::Flush,
                    Step::Append(count) => {
                        let before = tried.blocks();
                        tried.append(memory(count));
                        prop_assert_eq!(tried.blocks(), before + count);
                        continue;
                    }
                };
                both(&flat, &tried, &request);
            }
            let count = tried.blocks() as usize;
            both(&flat, &tried, &DiskRequest::Read { addr: BlockAddr(0), count });
        }
    }

    #[test]
    fn each_part_gets_one_request_however_many_chunks_it_has_of_it() {
        let parts: Vec<_> = (0..3).map(|_| Late::new(40, None)).collect();
        let tried = stripe(4, parts.iter().map(|part| part.clone() as Arc<dyn Disk>).collect());
        assert_eq!(tried.blocks(), 120);
        let write = DiskRequest::Write {
            addr: BlockAddr(1),
            parts: vec![BlockSlice::new(bytes(100, 1))],
            durability: Durability::Fua,
        };
        let written = tried.submit(write);
        assert_eq!(parts.iter().rev().map(|part| part.let_go()).collect::<Vec<_>>(), [1, 1, 1]);
        written.wait().unwrap();
        let read = tried.submit(DiskRequest::Read { addr: BlockAddr(1), count: 100 });
        assert_eq!(parts.iter().rev().map(|part| part.let_go()).collect::<Vec<_>>(), [1, 1, 1]);
        assert!(read.wait().unwrap().unwrap().bytes() == bytes(100, 1).bytes());
    }

    #[test]
    fn a_request_fails_once_all_pieces_have_ended_and_a_fence_goes_first() {
        let gone = DiskError::Io {
            device: "late".into(),
            operation: "flush",
            addr: BlockAddr(0),
            source: Arc::new(std::io::ErrorKind::NotConnected.into()),
        };
        let fenced = DiskError::Fenced {
            device: "late".into(),
            operation: "flush",
            reason: "another host has it".into(),
        };
        let parts = [Late::new(4, Some(gone)), Late::new(4, Some(fenced)), Late::new(4, None)];
        let tried = linear(parts.iter().map(|part| part.clone() as Arc<dyn Disk>).collect());
        let ended = Arc::new(Mutex::new(None));
        let told = Arc::clone(&ended);
        tried.submit(DiskRequest::Flush).then(move |outcome| *told.lock() = Some(outcome));
        parts[0].let_go();
        parts[1].let_go();
        assert!(ended.lock().is_none(), "one piece is under way");
        parts[2].let_go();
        let outcome = ended.lock().take();
        assert!(matches!(outcome, Some(Err(DiskError::Fenced { .. }))), "{outcome:?}");
    }

    #[test]
    fn copies_are_those_of_the_part_that_has_the_block() {
        let late = Late::new(4, None);
        let tried = linear(vec![memory(4), Arc::new(stripe(2, vec![memory(4), late.clone()]))]);
        assert_eq!(tried.copies(), 3);
        let mut block = [9; BLOCK_SIZE];
        tried.read_copy(2, BlockAddr(0), &mut block).unwrap();
        assert_eq!(block[0], 0, "there is only one");
        tried.read_copy(2, BlockAddr(4 + 6), &mut block).unwrap();
        assert_eq!(block[0], 2);
        let good = BlockSlice::new(bytes(1, 7));
        let repair = |copy, addr| tried.repair_copy(copy, BlockAddr(addr), &block, good.clone());
        assert_eq!(repair(1, 0).unwrap(), Repair::Impossible);
        assert_eq!(repair(1, 4 + 7).unwrap(), Repair::Repaired);
        late.disk.read(BlockAddr(3), &mut block).unwrap();
        assert_eq!(block[0], 7);
        tried.read_copy(0, BlockAddr(12), &mut block).unwrap_err();
    }
}
