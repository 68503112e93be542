//! A host in one of its lives: it opens the volume, and its users do things with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Disk, DiskError, DiskRequest, DiskResult, Durability};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::spawn;
use gabion_block::mirror::Trust;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::Volume;

use super::super::judge::{self, Left};
use super::rot::Recovered;
use super::{Phase, SLOT_BLOCKS, VOLUME, World};

/// Users of a host, each of whom has one request under way.
const USERS: u64 = 3;
/// How long a request may take at most: that of a member without copies, and some more.
const LATE: Duration = Duration::from_secs(45);
/// How often a host looks what is to be done.
const LOOK: Duration = Duration::from_millis(200);

/// A host in one of its lives.
pub(super) struct Host {
    pub(super) world: Arc<World>,
    pub(super) number: usize,
    pub(super) surroundings: Surroundings,
}

/// A volume in use.
pub(super) struct Session {
    pub(super) world: Arc<World>,
    pub(super) volume: Volume,
    pub(super) epoch: u64,
    is_fenced: AtomicBool,
    is_ending: AtomicBool,
    busy: AtomicU64,
}

impl Host {
    /// Opens the volume, as often as it takes.
    fn open(&self) -> Arc<Session> {
        let world = &self.world;
        loop {
            match Volume::open(VOLUME, self.surroundings.clone()) {
                Ok(volume) => return Arc::new(self.opened(volume)),
                Err(error) => {
                    world.baton.note(|| format!("host {} cannot open: {error}", self.number));
                    world.sleep_up_to(Duration::from_millis(500));
                }
            }
        }
    }

    fn opened(&self, volume: Volume) -> Session {
        let world = Arc::clone(&self.world);
        let epoch = volume.record().epoch().0;
        let mut judge = world.judge();
        let is_fenced = judge.epoch() > epoch;
        if !is_fenced {
            let (blocks, longest) = (volume.blocks(), world.longest.load(Ordering::Relaxed));
            if blocks < longest {
                world.baton.fail(&format!("the volume became shorter: {blocks}, once {longest}"));
            }
            judge.opened(epoch);
            world.has_volume[self.number].store(epoch, Ordering::Relaxed);
        }
        drop(judge);
        let (is_ending, busy) = (AtomicBool::new(false), AtomicU64::new(0));
        Session { world, volume, epoch, is_fenced: AtomicBool::new(is_fenced), is_ending, busy }
    }

    /// Has the volume used until somebody else has it, or all is to be looked at.
    pub(super) fn run(&self) {
        let session = self.open();
        for user in 0..USERS {
            session.busy.fetch_add(1, Ordering::Relaxed);
            let own = Arc::clone(&session);
            spawn("user", move || own.use_volume(user)).expect("the simulator has threads");
        }
        let world = &self.world;
        let is_healed = || world.phase() == Phase::Healing && session.is_in_sync();
        while !session.is_fenced() && !is_healed() {
            world.baton.sleep(LOOK);
        }
        session.is_ending.store(true, Ordering::Relaxed);
        while session.busy.load(Ordering::Relaxed) > 0 {
            world.baton.sleep(LOOK);
        }
        if session.is_fenced() {
            return world.has_volume[self.number].store(0, Ordering::Relaxed);
        }
        session.finish();
        drop(session);
        world.set_phase(Phase::Closed);
    }

    /// Opens what was closed: nothing is left to be done.
    pub(super) fn check(&self) {
        let session = self.open();
        if !session.is_in_sync() {
            let record = session.volume.record().layout;
            self.world.baton.fail(&format!("what was closed is not in sync: {record:?}"));
        }
        session.read_all();
        self.world.is_over.store(true, Ordering::Relaxed);
    }
}

impl Session {
    pub(super) fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed)
    }

    /// Whether all copies of all mirrors are in sync, here and in the record, and the volume is as
    /// long as it is to be.
    fn is_in_sync(&self) -> bool {
        let record = self.volume.record();
        let mirrors = record.layout.mirrors();
        let mut recorded = mirrors.iter().flat_map(|(_, copies)| copies.iter());
        let status = self.volume.status();
        let is_long = !self.world.is_to_grow.load(Ordering::Relaxed) && !self.volume.has_to_grow();
        is_long
            && recorded.all(|copy| copy.state.is_in_sync())
            && status.len() == mirrors.len()
            && status.values().flatten().all(|copy| copy.trust == Trust::InSync)
    }

    fn use_volume(&self, user: u64) {
        let baton = &self.world.baton;
        while !self.is_ending.load(Ordering::Relaxed) && !self.is_fenced() {
            let slots = self.world.all_slots();
            let all = slots.len() as u64;
            let own = slots[(user + USERS * baton.draw(all / USERS)) as usize];
            let any = slots[baton.draw(all) as usize];
            let at = baton.draw(SLOT_BLOCKS);
            let count = 1 + baton.draw(SLOT_BLOCKS - at);
            let blocks = self.volume.blocks();
            if own.max(any) + SLOT_BLOCKS > blocks {
                self.world.sleep_up_to(Duration::from_millis(120));
                continue;
            }
            if !self.is_fenced() {
                self.world.longest.fetch_max(blocks, Ordering::Relaxed);
            }
            match baton.draw(100) {
                0..10 => self.write(own + at, count, Durability::Fua),
                10..50 => self.write(own + at, count, Durability::Cached),
                50..56 => self.zero(own + at, count),
                56..88 => self.read(any + at, count),
                _ => self.flush(),
            }
            if baton.draw(100) == 0 {
                // So long that regions settle.
                self.world.sleep_up_to(Duration::from_secs(4));
            } else {
                self.world.sleep_up_to(Duration::from_millis(120));
            }
        }
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Has the volume do something, which has to end in time.
    fn ask(&self, request: DiskRequest) -> DiskResult {
        let (world, what) = (&self.world, request.operation());
        let since = world.baton.now();
        let result = self.volume.submit(request).wait();
        let took = world.baton.now() - since;
        if took > LATE {
            world.baton.fail(&format!("a {what} took {took:?}"));
        }
        if matches!(result, Err(DiskError::Fenced { .. })) {
            self.is_fenced.store(true, Ordering::Relaxed);
        }
        let counter = if result.is_ok() { &world.succeeded } else { &world.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn write(&self, addr: u64, count: u64, durability: Durability) {
        let stamp = self.begin(addr, count, Left::Data);
        let parts = vec![judge::slice(addr, count, stamp.0)];
        let request = DiskRequest::Write { addr: BlockAddr(addr), parts, durability };
        let succeeded = self.ask(request).is_ok();
        self.end((addr, count, stamp.0), succeeded, durability == Durability::Fua, stamp.1);
    }

    fn zero(&self, addr: u64, count: u64) {
        let stamp = self.begin(addr, count, Left::Zeros);
        let succeeded = self.ask(DiskRequest::WriteZeroes { addr: BlockAddr(addr), count }).is_ok();
        self.end((addr, count, stamp.0), succeeded, false, stamp.1);
    }

    /// A change begins; gives its stamp, and when.
    fn begin(&self, addr: u64, count: u64, left: Left) -> (u64, u64) {
        let stamp = self.world.stamps.fetch_add(1, Ordering::Relaxed) + 1;
        let mut judge = self.world.judge();
        judge.write_begins(self.epoch, (addr, count, stamp), left);
        (stamp, judge.moment())
    }

    fn end(&self, change: (u64, u64, u64), succeeded: bool, durable: bool, asked: u64) {
        let mut judge = self.world.judge();
        judge.write_ends(change, succeeded, durable);
        let verdict = if succeeded { judge.acknowledged(self.epoch, asked) } else { Ok(()) };
        drop(judge);
        self.world.judged(verdict);
    }

    fn read(&self, addr: u64, count: u64) {
        let asked = self.world.judge().moment();
        let request = DiskRequest::Read { addr: BlockAddr(addr), count: count as usize };
        let Ok(Some(blocks)) = self.ask(request) else { return };
        for (addr, bytes) in (addr..addr + count).zip(blocks.bytes().chunks(BLOCK_SIZE)) {
            if self.is_rotten(addr, bytes) {
                self.recover(addr);
                continue;
            }
            let verdict = self.world.judge().read(self.epoch, asked, addr, bytes);
            self.world.judged(verdict);
        }
    }

    fn flush(&self) {
        let asked = self.world.judge().moment();
        if self.ask(DiskRequest::Flush).is_ok() {
            self.world.judge().flushed(self.epoch, asked);
        }
    }

    /// Looks at everything, and closes the volume with all copies in sync.
    fn finish(&self) {
        let baton = &self.world.baton;
        loop {
            // Silence that began before all was healed may yet make a copy stale.
            while !self.is_in_sync() {
                baton.sleep(LOOK);
            }
            self.rot_at_the_end();
            self.scrub();
            self.read_all();
            self.compare();
            if let Err(error) = self.volume.close() {
                baton.fail(&format!("the volume cannot be closed: {error}"));
            }
            if self.is_in_sync() || baton.has_failed() {
                return;
            }
        }
    }

    /// Looks at what may have rotted on every copy, until all is right.
    fn scrub(&self) {
        let rotten = self.world.rotten().clone();
        for addr in rotten {
            while self.recover(addr) == Recovered::Unknown && !self.world.baton.has_failed() {
                self.world.baton.sleep(LOOK);
            }
        }
    }

    /// Reads all that was ever written.
    fn read_all(&self) {
        for slot in self.world.all_slots() {
            self.read(slot, SLOT_BLOCKS);
        }
    }

    /// All copies of all mirrors must hold the same.
    fn compare(&self) {
        self.volume.compare();
        while !self.volume.compared().is_empty() {
            self.world.baton.sleep(LOOK);
        }
        let differences = self.volume.differences();
        if differences > 0 {
            self.world.baton.fail(&format!("copies that are in sync differ: {differences} blocks"));
        }
    }
}
