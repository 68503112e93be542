//! Gabion itself as an engine under trial: the operations of `gabion-fs` over a `LocalMap`.
//!
//! The adapter plays the part that the kernel and a mount play: it walks paths and follows symbolic
//! links ([`walk`]), knows what is open, runs an operation again after writing back a file that is
//! about to take another one's name, and reaps orphans.
//!
//! It does what a mount's threads do in the background too, from a seed: it commits, writes back,
//! and writes single files back, between operations or beside them ([`background`]). Small limits
//! make the map do so by itself.
//!
//! Whenever a filesystem was mounted, and before it is unmounted, every block of it is verified
//! (`scrub`), the allocation map is compared with the trees (`audit`), and the snapshots with what
//! they were ([`snapshots`]). Some are mounted read-only first, which must show the same and write
//! nothing.

mod apply;
mod background;
mod dump;
mod snapshots;
mod walk;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use gabion_base::disk::{Disk, DiskRequest, Ticket};
use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::rng::Rng;
use gabion_base::time::Timestamp;
use gabion_fs::{self as fs, Caller, Context, OpenState};
use gabion_map::audit::audit;
use gabion_map::format::subvolume::Most;
use gabion_map::open::{FormatOptions, format};
use gabion_map::scrub::scrub;
use gabion_map::txn::Removal;
use gabion_map::{FileId, Limits, LocalMap, LocalTxn, MapError, OpenMode, Txn};
use gabion_sim::op::{Errno, Slot};
use gabion_sim::trial::Engine;

use self::background::{Background, Gate, GatedDisk};
use self::snapshots::Snapshots;

/// The subvolume that the operations see.
const SUBVOL: SubvolId = SubvolId(1);
const ROOT: FileId = FileId::new(SUBVOL, fs::ROOT);
const EIO: Errno = Errno::EIO;

/// What happens besides operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nothing: the journal's ring runs full.
    Absent,
    /// Commits and writeback, between operations.
    Between,
    /// Commits and writeback, with operations between any two of their disk requests.
    Beside,
}

/// How Gabion is tried.
#[derive(Clone, Debug)]
pub struct Gabion {
    /// Seed of what happens in the background.
    pub seed: u64,
    /// What that is.
    pub others: Others,
    /// How much memory the map gets.
    pub limits: Limits,
    /// Blocks that are left free, if most of the disk is to be in use from the start.
    pub free_blocks: Option<u64>,
    /// The quota of the subvolume that the operations see.
    pub quota: Most,
    snapshots: Snapshots,
}

/// A disk that must not be written to.
struct Untouched(Arc<dyn Disk>);

impl Disk for Untouched {
    fn name(&self) -> Arc<str> {
        self.0.name()
    }

    fn blocks(&self) -> u64 {
        self.0.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        assert!(matches!(request, DiskRequest::Read { .. }), "{request:?} of a read-only mount");
        self.0.submit(request)
    }
}

impl Gabion {
    /// A different way for each of twelve seeds. Sometimes the map has to commit and to write by
    /// itself after every few operations.
    pub fn of_seed(seed: u64) -> Self {
        let limits = match seed / 4 % 3 {
            0 => Limits::within(4 << 20),
            1 => Limits { nodes: 1 << 20, dirty: 128 << 10, items: 64 << 10 },
            _ => Limits { nodes: 256 << 10, dirty: 48 << 10, items: 12 << 10 },
        };
        let others = match seed % 4 {
            0 => Others::Absent,
            1 => Others::Between,
            _ => Others::Beside,
        };
        let snapshots = Snapshots::default();
        Self { seed, others, limits, free_blocks: None, quota: Most::default(), snapshots }
    }

    /// The same on a disk of which only so many blocks are left.
    pub fn with_free_blocks(self, blocks: u64) -> Self {
        Self { free_blocks: Some(blocks), ..self }
    }

    /// The same with a quota.
    pub fn with_quota(self, quota: Most) -> Self {
        Self { quota, ..self }
    }

    fn open(&self, disk: Arc<dyn Disk>, mode: OpenMode) -> Result<LocalMap, String> {
        LocalMap::open(disk, mode, self.limits).map_err(|error| error.to_string())
    }

    fn mount_as(&self, disk: Arc<dyn Disk>, mode: OpenMode) -> Result<Mounted, String> {
        let gate = Arc::new(Gate::default());
        let map = Arc::new(self.open(Arc::new(GatedDisk::new(disk, &gate)), mode)?);
        let ctx = context(&map);
        Ok(Mounted {
            background: None,
            gate,
            others: self.others,
            map,
            ctx,
            opens: BTreeMap::new(),
            slots: BTreeMap::new(),
            recent: ROOT,
            rng: Rng::new(self.seed),
            snapshots: self.snapshots.clone(),
            may_snapshot: false,
        })
    }

    /// Leaves `free` blocks to everybody else: a file in a subvolume of its own takes the rest.
    fn fill(&self, map: &LocalMap, free: u64) -> Result<(), MapError> {
        let ballast = FileId::new(map.create_subvolume()?, Ino(5));
        map.sync()?;
        let blocks = map.space().available.saturating_sub(free);
        map.transact(|txn| txn.allocate(ballast, 0, blocks * 4096)).map_err(|stop| match stop {
            gabion_map::Stop::Map(error) => error,
            gabion_map::Stop::Need { .. } | gabion_map::Stop::Lease => {
                unreachable!("the map locks by itself")
            }
        })
    }
}

/// A mounted Gabion.
pub struct Mounted {
    /// What is under way in the background; dropped first.
    background: Option<Background>,
    gate: Arc<Gate>,
    others: Others,
    map: Arc<LocalMap>,
    ctx: Context,
    /// How often each file is open.
    opens: BTreeMap<FileId, u32>,
    slots: BTreeMap<Slot, FileId>,
    /// A file that was used not long ago.
    recent: FileId,
    rng: Rng,
    snapshots: Snapshots,
    may_snapshot: bool,
}

impl Engine for Gabion {
    type Mounted = Mounted;

    fn format(&self, disk: Arc<dyn Disk>) -> Result<(), String> {
        let options = FormatOptions {
            uuid: Uuid([9; 16]),
            label: "trial".to_owned(),
            name_seed: self.seed,
            created: 0,
            blocks: None,
        };
        let text = |error: MapError| error.to_string();
        format(&disk, &options).map_err(text)?;
        self.snapshots.forget();
        let map = self.open(disk, OpenMode::ReadWrite)?;
        assert_eq!(map.create_subvolume().map_err(text)?, SUBVOL);
        let ctx = context(&map);
        map.transact(|txn| fs::format_root(txn, &ctx, SUBVOL, 0o755))
            .map_err(|error| error.to_string())?;
        map.set_quota(SUBVOL, self.quota).map_err(text)?;
        if let Some(free) = self.free_blocks {
            self.fill(&map, free).map_err(text)?;
        }
        map.sync().map_err(text)
    }

    fn mount(&self, disk: Arc<dyn Disk>) -> Result<Mounted, String> {
        let mut before = None;
        if self.seed.is_multiple_of(7) {
            let untouched = Arc::new(Untouched(Arc::clone(&disk)));
            let mounted = self.mount_as(untouched, OpenMode::ReadOnly)?;
            before = Some(mounted.dump_subvolume(SUBVOL).map_err(|e| format!("read-only: {e:?}"))?);
        }
        let mut mounted = self.mount_as(disk, OpenMode::ReadWrite)?;
        mounted.verify()?;
        mounted.go_on_removing()?;
        mounted.reap_orphans().map_err(|errno| format!("orphans cannot be reaped: {errno:?}"))?;
        if let Some(before) = before {
            let after = mounted.dump_subvolume(SUBVOL).map_err(|errno| format!("{errno:?}"))?;
            if before != after {
                let difference = before.namespace.difference(&after.namespace);
                return Err(format!("read-only it was something else: {difference}"));
            }
        }
        mounted.may_snapshot = self.snapshots.begin_life() && self.seed.is_multiple_of(3);
        Ok(mounted)
    }

    fn unmount(&self, mut mounted: Mounted) -> Result<(), String> {
        mounted.settle().map_err(|errno| format!("the background failed: {errno:?}"))?;
        mounted.map.sync().map_err(|error| error.to_string())?;
        mounted.verify()
    }

    fn grow(&self, mounted: &mut Mounted, blocks: u64) -> Result<(), String> {
        mounted.settle().map_err(|errno| format!("the background failed: {errno:?}"))?;
        let map = Arc::clone(&mounted.map);
        if self.others == Others::Beside {
            let grow = move || map.grow(blocks);
            mounted.background = Some(Background::start(&mounted.gate, grow));
            return Ok(());
        }
        map.grow(blocks).map_err(|error| error.to_string())
    }

    fn blocks(&self, mounted: &Mounted) -> Option<u64> {
        Some(mounted.map.blocks())
    }
}

fn context(map: &LocalMap) -> Context {
    let now = Timestamp::new(1_000, 0);
    Context { seed: map.name_seed(), now, caller: Caller::superuser() }
}

impl Mounted {
    /// Every block that is reachable is sound, and exactly those are marked as in use.
    fn verify(&self) -> Result<(), String> {
        let report = scrub(&self.map, &mut |_| ControlFlow::Continue(()));
        let report = report.map_err(|error| format!("scrubbing: {error}"))?;
        if !report.findings.is_empty() {
            return Err(format!("damage: {:?}", report.findings));
        }
        let audit = audit(&self.map).map_err(|error| format!("auditing: {error}"))?;
        if !audit.is_exact() {
            return Err(format!("the allocation is wrong: {audit:?}"));
        }
        self.verify_snapshots()
    }

    /// Runs an operation to its end.
    fn run<T>(
        &self,
        mut operation: impl FnMut(&mut LocalTxn<'_>) -> fs::Result<T>,
    ) -> Result<T, Errno> {
        loop {
            match self.map.transact(&mut operation) {
                Ok(value) => return Ok(value),
                Err(fs::Error::UnwrittenBytes(file)) => self.world(self.map.flush_file(file))?,
                Err(error) => return Err(told(Errno(fs::errno(&error)), &error)),
            }
        }
    }

    /// The errno of a failure below the operations.
    fn world<T>(&self, outcome: Result<T, MapError>) -> Result<T, Errno> {
        outcome.map_err(|error| told(Errno(fs::errno::map_errno(&error)), &error))
    }

    fn open_state(&self, file: FileId) -> OpenState {
        if self.opens.contains_key(&file) { OpenState::Open } else { OpenState::Closed }
    }

    fn hold(&mut self, slot: Slot, file: FileId) -> Result<(), Errno> {
        *self.opens.entry(file).or_default() += 1;
        match self.slots.insert(slot, file) {
            Some(before) => self.let_go(before),
            None => Ok(()),
        }
    }

    fn let_go(&mut self, file: FileId) -> Result<(), Errno> {
        let count = self.opens.get_mut(&file).expect("a slot's file is open");
        *count -= 1;
        if *count == 0 {
            self.opens.remove(&file);
            self.reap(file)?;
        }
        Ok(())
    }

    /// Removes what is left of a file that has no name.
    fn reap(&self, file: FileId) -> Result<(), Errno> {
        while self.run(|txn| fs::reap(txn, file))? == Removal::Partial {}
        Ok(())
    }

    fn reap_orphans(&self) -> Result<(), Errno> {
        for file in self.run(|txn| fs::orphans(txn, SUBVOL, Ino(0), usize::MAX))? {
            self.reap(file)?;
        }
        Ok(())
    }

    /// What others do at the same time.
    fn interfere(&mut self) -> Result<(), Errno> {
        if let Some(background) = &self.background {
            if background.advance(self.rng.below(4)) {
                return Ok(());
            }
            return self.settle();
        }
        let (map, recent) = (Arc::clone(&self.map), self.recent);
        let action = match self.rng.below(60) {
            _ if self.others == Others::Absent => return Ok(()),
            0..=2 => Action::Commit,
            9 | 10 if self.map.is_removing() => Action::Remove,
            3 | 4 => Action::WriteBack,
            5..=8 => Action::WriteFile(recent),
            _ => return Ok(()),
        };
        let act = move || match action {
            Action::Commit => map.commit().map(drop),
            Action::Remove => map.remove_step().map(drop),
            Action::WriteBack => map.write_back_some(),
            Action::WriteFile(file) => map.flush_file(file),
        };
        if self.others == Others::Beside {
            self.background = Some(Background::start(&self.gate, act));
            return Ok(());
        }
        self.tolerate(act())
    }

    /// Waits for what is under way in the background.
    fn settle(&mut self) -> Result<(), Errno> {
        match self.background.take() {
            Some(background) => self.tolerate(background.finish()),
            None => Ok(()),
        }
    }

    /// What has no room now waits until there is some.
    fn tolerate(&self, done: Result<(), MapError>) -> Result<(), Errno> {
        match done {
            Err(MapError::NoSpace) => Ok(()),
            done => self.world(done),
        }
    }

    /// Lets time pass, so slowly that some operations share a moment.
    fn tick(&mut self) {
        if self.rng.chance(1, 3) {
            self.ctx.now.seconds += 1;
        }
    }
}

/// What happens in the background.
#[derive(Clone, Copy)]
enum Action {
    Commit,
    Remove,
    WriteBack,
    WriteFile(FileId),
}

/// Says what is behind EIO, which no operation may answer.
fn told(errno: Errno, error: &impl std::fmt::Display) -> Errno {
    if errno == EIO {
        eprintln!("EIO: {error}");
    }
    errno
}
