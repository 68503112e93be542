//! Every crash that a recorded workload may suffer.
//!
//! ```text
//! events    0    1    2    3    4    5    6    7      w  a write begins     c0  event 0 completes
//!           w    w    c0   FL   w    F    c5   w      F  a write with FUA   FL  a flush completes
//!                          └ 0 stable     └ 5 stable; 1, 4 and 7 pending at the end
//! ```
//!
//! At each position the log splits into what is stable and what is pending. A write is pending as
//! soon as it has begun. A flush makes stable what had completed when it was submitted; a FUA write
//! makes itself stable when it completes, and supersedes what is pending for the same blocks. The
//! crash images of a position are what is stable plus
//!
//! 1. nothing, or everything that is pending;
//! 2. everything but one write, for each write; one write alone, for each write;
//! 3. seeded choices: whole writes, single blocks of them, or leading blocks of them;
//! 4. a seeded choice in which one block is torn: some of its sectors are old, some new.
//!
//! Images fork from one another ([`Image`]), and the log is walked once, so an image costs about
//! as much as the blocks that are pending. Images that repeat the position before are left out: a
//! crash that loses everything is made only where a stable state begins and where it ends, and no
//! crash is made before a completion that changes nothing, only after it.

use std::collections::VecDeque;
use std::fmt;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::Durability;
use gabion_base::ids::BlockAddr;
use gabion_base::rng::Rng;

use crate::disk::{Event, Recording, SimDisk};
use crate::image::Image;

/// What a device writes atomically, at best.
pub const SECTOR_SIZE: usize = 512;

const SECTORS: u32 = (BLOCK_SIZE / SECTOR_SIZE) as u32;

/// How many crashes to make of each position.
#[derive(Clone, Copy, Debug)]
pub struct CrashPlan {
    /// Starts the seeded choices.
    pub seed: u64,
    /// At most so many writes are lost alone, and kept alone; seeded choices if more are pending.
    pub singles_max: usize,
    /// Seeded choices of what is kept.
    pub subsets: u32,
    /// Seeded choices with a torn block.
    pub tears: u32,
    /// Of so many of these images one is made, by seed; 1 makes all. The others are counted.
    pub one_of: u64,
}

impl CrashPlan {
    /// A few crashes of every kind at each position.
    pub fn quick(seed: u64) -> Self {
        Self { seed, singles_max: 4, subsets: 2, tears: 1, one_of: 1 }
    }

    /// Every single loss, and many choices.
    pub fn thorough(seed: u64) -> Self {
        Self { seed, singles_max: 64, subsets: 8, tears: 8, one_of: 1 }
    }
}

/// What happened to the writes that were pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None was pending, or all were kept.
    All,
    /// All were lost.
    None,
    /// The write of this event was lost.
    AllBut(usize),
    /// Only the write of this event was kept.
    Only(usize),
    /// A seeded choice was kept.
    Chosen,
    /// A seeded choice was kept, in which this block is torn.
    Torn(BlockAddr),
}

/// A disk after a crash.
#[derive(Clone)]
pub struct CrashImage {
    /// Counts the images of one enumeration, from 0, those that were left out included.
    pub number: u64,
    /// Events before this position had happened.
    pub position: usize,
    /// Which writes survived.
    pub survival: Survival,
    /// What is on the disk.
    pub image: Image,
}

impl CrashImage {
    /// The disk that the machine finds when it comes up again. It records what recovery does to
    /// it, so that a crash during recovery can be tried as well.
    pub fn disk(&self) -> SimDisk {
        SimDisk::from_image(self.image.clone())
    }

    /// The same, if the disk has only `blocks` blocks then.
    pub fn disk_of(&self, blocks: u64) -> SimDisk {
        self.disk().cut_to(blocks)
    }
}

impl fmt::Display for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, position, survival, .. } = self;
        write!(f, "crash {number} at event {position}, pending writes kept: {survival:?}")
    }
}

#[derive(Clone)]
struct Pending {
    event: usize,
    /// Number of the block within its write.
    index: usize,
    addr: BlockAddr,
    block: BlockSlice,
    /// Position of the event by which the write completed.
    completed: Option<usize>,
}

/// The crashes of a recording, in order of position.
pub struct CrashPoints {
    events: Vec<Event>,
    plan: CrashPlan,
    position: usize,
    stable: Image,
    pending: Vec<Pending>,
    stable_is_new: bool,
    ready: VecDeque<CrashImage>,
    made: u64,
    finished: bool,
}

impl CrashPoints {
    /// The crashes of `recording` that `plan` asks for.
    pub fn new(recording: Recording, plan: CrashPlan) -> Self {
        let mut points = Self {
            events: recording.events,
            plan,
            position: 0,
            stable: recording.before,
            pending: Vec::new(),
            stable_is_new: true,
            ready: VecDeque::new(),
            made: 0,
            finished: false,
        };
        points.make_images();
        points
    }

    /// Takes the event at the current position as having happened.
    fn advance(&mut self) {
        let event = &self.events[self.position];
        match event {
            Event::Flushed { begun } => {
                let flushed = |pending: &mut Pending| {
                    pending.completed.is_some_and(|completed| completed < *begun)
                };
                for Pending { addr, block, .. } in self.pending.extract_if(.., flushed) {
                    self.stable.put(addr, block);
                }
                self.stable_is_new = true;
            }
            Event::Completed { begun } => {
                let forced = is_forced(&self.events[*begun]);
                for at in self.pending.iter_mut().filter(|pending| pending.event == *begun) {
                    at.completed = Some(self.position);
                }
                if forced {
                    let begun = *begun;
                    self.force(begun);
                }
            }
            _ => self.pending.extend(pending_blocks(event, self.position)),
        }
        self.position += 1;
    }

    /// The blocks of a write become stable, whatever was pending for them before.
    fn force(&mut self, begun: usize) {
        for (addr, block) in self.events[begun].blocks() {
            self.pending.retain(|pending| pending.addr != addr || pending.event > begun);
            self.stable.put(addr, block);
        }
        self.stable_is_new = true;
    }

    /// Makes the images of the current position.
    fn make_images(&mut self) {
        let next = self.events.get(self.position);
        let forced = |begun: &usize| is_forced(&self.events[*begun]);
        if matches!(next, Some(Event::Completed { begun }) if !forced(begun)) {
            return;
        }
        let stable_ends = match next {
            None | Some(Event::Flushed { .. } | Event::Completed { .. }) => true,
            Some(_) => false,
        };
        let pending = self.pending.clone();
        self.make(Survival::All, &pending, |_| true);
        if !pending.is_empty() && (self.stable_is_new || stable_ends) {
            self.make(Survival::None, &pending, |_| false);
        }
        self.stable_is_new = false;
        if pending.is_empty() {
            return;
        }
        let mut rng = Rng::new(self.plan.seed ^ (self.position as u64) << 20);
        self.make_singles(&pending, &mut rng);
        for _ in 0..self.plan.subsets {
            let chosen = choose(&pending, &mut rng);
            self.make(Survival::Chosen, &pending, |at| chosen[at]);
        }
        for _ in 0..self.plan.tears {
            self.make_torn(&pending, &mut rng);
        }
    }

    fn make_singles(&mut self, pending: &[Pending], rng: &mut Rng) {
        let mut writes: Vec<usize> = pending.iter().map(|pending| pending.event).collect();
        writes.dedup();
        if writes.len() == 1 {
            return;
        }
        while writes.len() > self.plan.singles_max {
            writes.swap_remove(rng.below(writes.len() as u64) as usize);
        }
        for event in writes {
            self.make(Survival::AllBut(event), pending, |at| pending[at].event != event);
            self.make(Survival::Only(event), pending, |at| pending[at].event == event);
        }
    }

    fn make_torn(&mut self, pending: &[Pending], rng: &mut Rng) {
        let mut pending = pending.to_vec();
        let torn = rng.below(pending.len() as u64) as usize;
        let addr = pending[torn].addr;
        let mut chosen = match rng.chance(1, 2) {
            true => vec![true; pending.len()],
            false => choose(&pending, rng),
        };
        chosen[torn] = true;
        let earlier = pending[..torn].iter().zip(&chosen).rev();
        let old = earlier
            .filter(|(earlier, chosen)| **chosen && earlier.addr == addr)
            .map(|(earlier, _)| &earlier.block)
            .next()
            .or(self.stable.block(addr));
        let sectors = 1 + rng.below((1 << SECTORS) - 2);
        pending[torn].block = tear(old, &pending[torn].block, sectors);
        self.make(Survival::Torn(addr), &pending, |at| chosen[at]);
    }

    fn make(&mut self, survival: Survival, pending: &[Pending], kept: impl Fn(usize) -> bool) {
        let number = self.made;
        self.made += 1;
        if !Rng::new(self.plan.seed ^ number << 20).chance(1, self.plan.one_of) {
            return;
        }
        let mut image = self.stable.clone();
        for (at, pending) in pending.iter().enumerate() {
            if kept(at) {
                image.put(pending.addr, pending.block.clone());
            }
        }
        self.ready.push_back(CrashImage { number, position: self.position, survival, image });
    }
}

impl Iterator for CrashPoints {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        while self.ready.is_empty() && !self.finished {
            if self.position < self.events.len() {
                self.advance();
                self.make_images();
            } else {
                self.finished = true;
            }
        }
        self.ready.pop_front()
    }
}

/// One crash at the end of a recording: what is stable, and a choice of what is pending.
pub fn survivors(recording: Recording, rng: &mut Rng) -> Image {
    let plan = CrashPlan { seed: 0, singles_max: 0, subsets: 0, tears: 0, one_of: u64::MAX };
    let mut points = CrashPoints::new(recording, plan);
    while points.position < points.events.len() {
        points.advance();
    }
    let chosen = match points.pending.len() {
        0 => Vec::new(),
        _ => choose(&points.pending, rng),
    };
    let mut image = points.stable;
    for (pending, _) in points.pending.iter().zip(chosen).filter(|(_, is_chosen)| *is_chosen) {
        image.put(pending.addr, pending.block.clone());
    }
    image
}

/// Whether the event is the begin of a write that is stable when it completes.
fn is_forced(event: &Event) -> bool {
    matches!(event, Event::Write { durability: Durability::Fua, .. })
}

fn pending_blocks(event: &Event, position: usize) -> Vec<Pending> {
    let blocks = event.blocks().into_iter().enumerate();
    let pending = |(index, (addr, block))| {
        let completed = None;
        Pending { event: position, index, addr, block, completed }
    };
    blocks.map(pending).collect()
}

/// A seeded choice of what is kept, in one of three styles.
fn choose(pending: &[Pending], rng: &mut Rng) -> Vec<bool> {
    let style = rng.below(3);
    let eighths = [1, 4, 7][rng.below(3) as usize];
    let mut chosen = Vec::with_capacity(pending.len());
    let mut event = None;
    let mut leading = 0;
    for block in pending {
        if event != Some(block.event) {
            event = Some(block.event);
            let whole = usize::MAX;
            leading = match (style, rng.chance(eighths, 8)) {
                (0, kept) => whole * usize::from(kept),
                (1, true) => rng.below(9) as usize,
                _ => whole,
            };
        }
        let kept = if style == 2 { rng.chance(eighths, 8) } else { block.index < leading };
        chosen.push(kept);
    }
    chosen
}

/// A block whose sectors are `new` where `sectors` has a bit, else `old`.
fn tear(old: Option<&BlockSlice>, new: &BlockSlice, sectors: u64) -> BlockSlice {
    let mut torn = Blocks::zeroed(1);
    for (index, sector) in torn.bytes_mut().chunks_mut(SECTOR_SIZE).enumerate() {
        let from = if sectors >> index & 1 == 1 { Some(new) } else { old };
        if let Some(from) = from {
            sector.copy_from_slice(&from.bytes()[index * SECTOR_SIZE..][..SECTOR_SIZE]);
        }
    }
    BlockSlice::new(torn)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gabion_base::disk::{Disk, DiskRequest};

    use super::*;

    fn write(disk: &SimDisk, addr: u64, bytes: &[u8], durability: Durability) {
        let blocks: Vec<u8> = bytes.iter().flat_map(|byte| [*byte; BLOCK_SIZE]).collect();
        let part = BlockSlice::new(Blocks::from_bytes(&blocks));
        disk.write(BlockAddr(addr), part, durability).expect("a healthy disk");
    }

    /// First and last byte of each of the first `count` blocks.
    fn ends(image: &Image, count: u64) -> Vec<(u8, u8)> {
        let read = |addr| image.read(BlockAddr(addr), 1);
        (0..count).map(|at| (read(at).bytes()[0], read(at).bytes()[BLOCK_SIZE - 1])).collect()
    }

    fn outcomes(disk: &SimDisk, count: u64, position: usize) -> BTreeSet<Vec<(u8, u8)>> {
        CrashPoints::new(disk.recording(), CrashPlan::thorough(1))
            .filter(|crash| crash.position == position)
            .map(|crash| ends(&crash.image, count))
            .collect()
    }

    #[test]
    fn what_was_flushed_is_in_every_later_image() {
        let disk = SimDisk::new(16);
        write(&disk, 0, &[1], Durability::Cached);
        disk.flush().expect("healthy");
        write(&disk, 1, &[2], Durability::Cached);
        assert_eq!(outcomes(&disk, 1, 3), [vec![(1, 1)]].into());
        assert_eq!(outcomes(&disk, 1, 5), [vec![(1, 1)]].into());
        let before = outcomes(&disk, 1, 2);
        assert!(before.contains(&vec![(0, 0)]) && before.contains(&vec![(1, 1)]));
    }

    #[test]
    fn pending_writes_survive_in_any_combination() {
        let disk = SimDisk::new(16);
        for addr in 0..3 {
            write(&disk, addr, &[addr as u8 + 1], Durability::Cached);
        }
        let seen = outcomes(&disk, 3, 6);
        for mask in 0..8_u8 {
            let byte = |at: u8| if mask >> at & 1 == 1 { at + 1 } else { 0 };
            let expected: Vec<_> = (0..3).map(|at| (byte(at), byte(at))).collect();
            assert!(seen.contains(&expected), "{expected:?} of {seen:?}");
        }
    }

    #[test]
    fn a_write_survives_in_parts_and_torn() {
        let disk = SimDisk::new(16);
        write(&disk, 0, &[1, 1], Durability::Fua);
        write(&disk, 0, &[2, 2], Durability::Cached);
        let seen = outcomes(&disk, 2, 4);
        assert!(seen.contains(&vec![(2, 2), (1, 1)]), "{seen:?}");
        assert!(seen.iter().flatten().any(|(first, last)| first != last), "{seen:?}");
    }

    #[test]
    fn a_forced_write_may_be_torn_before_it_completes_and_never_after() {
        let disk = SimDisk::new(16);
        write(&disk, 0, &[1], Durability::Cached);
        write(&disk, 0, &[2], Durability::Fua);
        let before = outcomes(&disk, 1, 3);
        assert!(before.contains(&vec![(2, 2)]), "it may have happened: {before:?}");
        assert!(before.contains(&vec![(1, 1)]) && before.contains(&vec![(0, 0)]));
        assert!(before.iter().flatten().any(|(first, last)| first != last), "{before:?}");
        assert_eq!(outcomes(&disk, 1, 4), [vec![(2, 2)]].into());
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_was_submitted() {
        let disk = SimDisk::new(16);
        let begin = |addr| {
            let (parts, durability) =
                (vec![BlockSlice::new(Blocks::zeroed(1))], Durability::Cached);
            disk.submit(DiskRequest::Write { addr: BlockAddr(addr), parts, durability })
        };
        for addr in 0..4 {
            write(&disk, addr, &[9], Durability::Fua);
        }
        let (waited, late, dropped) = (begin(0), begin(1), begin(2));
        waited.wait().expect("healthy");
        let flush = disk.submit(DiskRequest::Flush);
        late.wait().expect("healthy");
        drop(dropped);
        flush.wait().expect("healthy");
        let seen = outcomes(&disk, 4, disk.position());
        for (late, dropped) in [(0, 0), (0, 9), (9, 0), (9, 9)] {
            let expected = vec![(0, 0), (late, late), (dropped, dropped), (9, 9)];
            assert!(seen.contains(&expected), "{expected:?} of {seen:?}");
        }
        assert!(seen.iter().all(|ends| ends[0] == (0, 0)), "it was flushed: {seen:?}");
    }

    #[test]
    fn equal_plans_make_equal_images() {
        let disk = SimDisk::new(16);
        for addr in 0..8 {
            write(&disk, addr, &[1; 4], Durability::Cached);
        }
        let run = || {
            CrashPoints::new(disk.recording(), CrashPlan::quick(7))
                .map(|crash| (crash.number, crash.survival, ends(&crash.image, 16)))
                .collect::<Vec<_>>()
        };
        assert_eq!(run().len(), run().len());
        assert!(run() == run());
    }

    #[test]
    fn a_sample_has_the_images_and_numbers_of_the_whole() {
        let disk = SimDisk::new(16);
        for addr in 0..8 {
            write(&disk, addr, &[addr as u8; 4], Durability::Cached);
        }
        let images = |one_of| {
            CrashPoints::new(disk.recording(), CrashPlan { one_of, ..CrashPlan::quick(7) })
                .map(|crash| (crash.number, crash.survival, ends(&crash.image, 16)))
                .collect::<Vec<_>>()
        };
        let (all, some) = (images(1), images(4));
        assert!(some.len() * 3 < all.len() && some.len() * 6 > all.len(), "{}", some.len());
        assert!(some.iter().all(|image| all[image.0 as usize] == *image));
    }

    #[test]
    fn crashing_does_not_change_the_recording_it_came_from() {
        let disk = SimDisk::new(16);
        write(&disk, 0, &[1], Durability::Fua);
        let last = CrashPoints::new(disk.recording(), CrashPlan::quick(7)).last();
        let after = last.expect("there is always the crash at the end").disk();
        write(&after, 0, &[9], Durability::Fua);
        assert_eq!(ends(&disk.image(), 1), [(1, 1)]);
        assert_eq!(after.position(), 2, "recovery is recorded");
    }
}
