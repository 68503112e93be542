//! A filesystem with paths, a clock that ticks at each operation, and somebody to ask.

use std::collections::BTreeSet;

use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::{
    self as fs, Attributes, Caller, Changes, Context, Error, FileType, Groups, IfExists, IfTaken,
    Leave, OpenRequest, OpenState, Privileges, Renamed, Result, Trust, Unnamed, WriteAt,
};
use gabion_map::{FileId, Payload, Stop, Txn};

use crate::invariants;
use crate::memory_map::MemoryMap;

pub const SUBVOL: SubvolId = SubvolId(1);
pub const ROOT: FileId = FileId::new(SUBVOL, fs::ROOT);

/// What a filesystem can stand on.
pub trait Backend {
    /// Drives an operation to its end.
    fn run<R>(&mut self, operation: impl Fn(&mut dyn Txn) -> Result<R>) -> Result<R>;

    /// Checks the whole map.
    fn check(&self, seed: u64);
}

impl Backend for MemoryMap {
    fn run<R>(&mut self, operation: impl Fn(&mut dyn Txn) -> Result<R>) -> Result<R> {
        MemoryMap::run(self, |txn| operation(txn))
    }

    fn check(&self, seed: u64) {
        invariants::check(self, seed);
    }
}

pub struct World<M: Backend = MemoryMap> {
    pub map: M,
    pub ctx: Context,
    pub open: BTreeSet<FileId>,
}

/// The user `uid` with the group of the same number.
pub fn user(uid: u32, groups: &[u32]) -> Caller {
    let groups = Groups::new(groups);
    Caller { uid, gid: uid, groups, umask: 0o022, trust: Trust::CheckHere }
}

/// The error as text, without what cannot be compared.
#[track_caller]
pub fn failure<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(Error::Stop(Stop::Map(error))) => error.to_string(),
        Err(error) => format!("{error:?}"),
    }
}

impl World {
    /// A filesystem in memory whose root directory belongs to the superuser, who is the caller.
    pub fn new() -> Self {
        Self::with_seed(77)
    }

    /// The same with another hash of names.
    pub fn with_seed(seed: u64) -> Self {
        Self::on(MemoryMap::default(), seed)
    }
}

impl<M: Backend> World<M> {
    /// A filesystem on an empty subvolume of `map`.
    pub fn on(mut map: M, seed: u64) -> Self {
        let mut caller = Caller::superuser();
        caller.umask = 0o022;
        let ctx = Context { seed, now: Timestamp::new(1000, 0), caller };
        map.run(|txn| fs::format_root(txn, &ctx, SUBVOL, 0o755)).expect("an empty map");
        Self { map, ctx, open: BTreeSet::new() }
    }

    /// Lets time pass.
    pub fn tick(&mut self) -> &Context {
        self.ctx.now.seconds += 1;
        &self.ctx
    }

    /// Runs `action` with another caller.
    pub fn as_caller<R>(&mut self, caller: Caller, action: impl FnOnce(&mut Self) -> R) -> R {
        let before = std::mem::replace(&mut self.ctx.caller, caller);
        let result = action(self);
        self.ctx.caller = before;
        result
    }

    /// The directory of `path` and the last name in it.
    pub fn parent<'p>(&mut self, path: &'p str) -> Result<(FileId, &'p [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.resolve(dir)?, name.as_bytes()))
    }

    pub fn resolve(&mut self, path: &str) -> Result<FileId> {
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.map.run(|txn| fs::lookup(txn, &self.ctx, at, name.as_bytes()))?.file;
        }
        Ok(at)
    }

    pub fn stat(&mut self, path: &str) -> Result<Attributes> {
        let file = self.resolve(path)?;
        self.map.run(|txn| fs::stat(txn, file))
    }

    pub fn create(&mut self, path: &str, permissions: u32) -> Result<Attributes> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        let (if_exists, request) = (IfExists::Fail, OpenRequest::READ);
        let ctx = &self.ctx;
        let created = self
            .map
            .run(|txn| fs::create(txn, ctx, parent, name, permissions, if_exists, &request));
        created.map(|(attributes, _)| attributes)
    }

    pub fn mkdir(&mut self, path: &str, permissions: u32) -> Result<Attributes> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        self.map.run(|txn| fs::mkdir(txn, &self.ctx, parent, name, permissions))
    }

    pub fn mknod(&mut self, path: &str, file_type: FileType, rdev: u32) -> Result<Attributes> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        self.map.run(|txn| fs::mknod(txn, &self.ctx, parent, name, file_type, 0o644, rdev))
    }

    pub fn symlink(&mut self, path: &str, target: &[u8]) -> Result<Attributes> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        self.map.run(|txn| fs::symlink(txn, &self.ctx, parent, name, target))
    }

    pub fn link(&mut self, path: &str, new_path: &str) -> Result<Attributes> {
        let file = self.resolve(path)?;
        let (parent, name) = self.parent(new_path)?;
        self.tick();
        self.map.run(|txn| fs::link(txn, &self.ctx, file, parent, name))
    }

    pub fn unlink(&mut self, path: &str) -> Result<Unnamed> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        let Self { map, ctx, open } = self;
        map.run(|txn| fs::unlink(txn, ctx, parent, name, &opens(open)))
    }

    pub fn rmdir(&mut self, path: &str) -> Result<Unnamed> {
        let (parent, name) = self.parent(path)?;
        self.tick();
        let Self { map, ctx, open } = self;
        map.run(|txn| fs::rmdir(txn, ctx, parent, name, &opens(open)))
    }

    pub fn rename(&mut self, from: &str, to: &str) -> Result<Renamed> {
        self.rename_with(from, to, IfTaken::Replace, Leave::Nothing)
    }

    pub fn rename_with(
        &mut self,
        from: &str,
        to: &str,
        if_taken: IfTaken,
        leave: Leave,
    ) -> Result<Renamed> {
        let (source_parent, source_name) = self.parent(from)?;
        let (target_parent, target_name) = self.parent(to)?;
        self.tick();
        let request = fs::RenameRequest {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken,
            leave,
        };
        let Self { map, ctx, open } = self;
        map.run(|txn| fs::rename(txn, ctx, &request, &opens(open)))
    }

    pub fn setattr(&mut self, path: &str, changes: Changes) -> Result<Attributes> {
        let file = self.resolve(path)?;
        self.tick();
        self.map.run(|txn| fs::setattr(txn, &self.ctx, file, &changes))
    }

    pub fn chmod(&mut self, path: &str, permissions: u32) -> Result<Attributes> {
        self.setattr(path, Changes { permissions: Some(permissions), ..Changes::default() })
    }

    pub fn chown(&mut self, path: &str, uid: u32, gid: u32) -> Result<Attributes> {
        self.setattr(path, Changes { uid: Some(uid), gid: Some(gid), ..Changes::default() })
    }

    pub fn truncate(&mut self, path: &str, size: u64) -> Result<Attributes> {
        let size = Some((size, Privileges::Keep));
        self.setattr(path, Changes { size, ..Changes::default() })
    }

    pub fn write(&mut self, path: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.resolve(path)?;
        self.tick();
        self.write_to(file, WriteAt::Offset(offset), bytes).map(|_| ())
    }

    pub fn write_to(&mut self, file: FileId, at: WriteAt, bytes: &[u8]) -> Result<fs::Written> {
        let payload = Payload::Copied(bytes);
        let ctx = &self.ctx;
        self.map.run(|txn| fs::write(txn, ctx, file, at, payload.clone(), Privileges::Keep))
    }

    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        let file = self.resolve(path)?;
        self.map.run(|txn| {
            let mut bytes = vec![0; 1 << 20];
            let count = fs::read(txn, file, 0, &mut bytes)?;
            bytes.truncate(count);
            Ok(bytes)
        })
    }

    pub fn open(&mut self, path: &str, request: OpenRequest) -> Result<Attributes> {
        let file = self.resolve(path)?;
        self.tick();
        self.map.run(|txn| fs::open(txn, &self.ctx, file, &request))
    }

    /// Closes a file and does what the driver has to do then.
    pub fn close(&mut self, file: FileId) {
        self.open.remove(&file);
        let mut steps = 0;
        while self.map.run(|txn| fs::reap(txn, file)).expect("a sound map")
            == gabion_map::txn::Removal::Partial
        {
            steps += 1;
            assert!(steps < 1000, "reaping does not come to an end");
            self.check();
        }
    }

    pub fn orphans(&mut self) -> Vec<FileId> {
        self.map.run(|txn| fs::orphans(txn, SUBVOL, Ino(0), 100)).expect("a sound map")
    }

    /// Names of a directory without the dots, sorted.
    pub fn names(&mut self, path: &str) -> Vec<String> {
        let dir = self.resolve(path).expect("the directory exists");
        let listing = self.map.run(|txn| fs::readdir(txn, dir, 2, 10_000, fs::Detail::Names));
        let entries = listing.expect("a sound directory").entries;
        let mut names: Vec<String> =
            entries.iter().map(|e| String::from_utf8_lossy(e.name()).into_owned()).collect();
        names.sort();
        names
    }

    /// Checks the whole map.
    pub fn check(&self) {
        self.map.check(self.ctx.seed);
    }
}

impl<M: Backend> Drop for World<M> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}

pub fn opens(open: &BTreeSet<FileId>) -> impl Fn(FileId) -> OpenState {
    move |file| if open.contains(&file) { OpenState::Open } else { OpenState::Closed }
}
