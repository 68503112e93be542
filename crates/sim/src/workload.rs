//! Seeded sequences of operations that get into each other's way.
//!
//! Few names and few directories make collisions, replacements, loops of symbolic links, hard
//! links, files that are removed while open, and directories that are not empty as common as plain
//! success. The generator keeps a [`Model`] of what its operations lead to, so that most of them
//! name something that exists; the others name anything. It never walks up (`..`) and never makes
//! an absolute symbolic link, so that a workload can run below any directory.
//!
//! Equal seeds and profiles give equal sequences.

use std::collections::VecDeque;

use gabion_base::rng::Rng;

use crate::model::Model;
use crate::op::{Allocation, Kind, Op, Opening, Renaming, Slot, Target, XattrWrite};
use crate::tree::{Namespace, join};

/// Number of places for open files that a workload uses.
pub const SLOTS: Slot = 4;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const DEPTH_MAX: usize = 4;
const BLOCK: u64 = 4096;

/// What a workload is like.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// No file grows beyond this many bytes (but by moving bytes up, at most twice that).
    pub file_size_max: u64,
    /// With so many objects, removing becomes more likely than making.
    pub objects_max: usize,
    /// How often files and names are synced, among 1000 operations.
    pub syncs: u32,
    /// How often something is only looked at, among 1000 operations.
    pub looks: u32,
}

impl Profile {
    /// For comparing answers: much is looked at, syncing is rare.
    pub const ANSWERS: Profile =
        Profile { file_size_max: 256 << 10, objects_max: 60, syncs: 10, looks: 250 };
    /// For crashes: nothing is looked at, syncing is common, files are small.
    pub const CRASHES: Profile =
        Profile { file_size_max: 48 << 10, objects_max: 24, syncs: 120, looks: 0 };
    /// For crashes: few small files that are synced and written over again and again.
    pub const SYNCS: Profile =
        Profile { file_size_max: 20 << 10, objects_max: 8, syncs: 300, looks: 0 };
    /// For crashes: more objects than fit a node of a tree.
    pub const MANY: Profile =
        Profile { file_size_max: 16 << 10, objects_max: 400, syncs: 100, looks: 0 };
    /// For crashes on a full disk: more bytes than there is room.
    pub const FULL: Profile =
        Profile { file_size_max: 256 << 10, objects_max: 16, syncs: 120, looks: 0 };
    /// For crashes: files of many extents.
    pub const LARGE: Profile =
        Profile { file_size_max: 3 << 20, objects_max: 10, syncs: 150, looks: 0 };
}

/// An endless sequence of operations.
#[derive(Clone, Debug)]
pub struct Workload {
    rng: Rng,
    profile: Profile,
    model: Model,
    /// The model's, kept because almost every choice asks for it.
    namespace: Namespace,
    stamp: u64,
    /// What comes next in any case.
    planned: VecDeque<Op>,
}

#[derive(Clone, Copy)]
enum Action {
    Make,
    MakeDirectory,
    Symlink,
    Link,
    Remove,
    Rename,
    Save,
    Open,
    Close,
    Write,
    SetSize,
    Fallocate,
    CopyRange,
    Attributes,
    Xattrs,
}

/// How often each action is taken when nothing is synced or looked at.
const WEIGHTS: [(Action, u64); 15] = [
    (Action::Make, 7),
    (Action::MakeDirectory, 5),
    (Action::Symlink, 4),
    (Action::Link, 6),
    (Action::Remove, 10),
    (Action::Rename, 14),
    (Action::Save, 2),
    (Action::Open, 10),
    (Action::Close, 5),
    (Action::Write, 26),
    (Action::SetSize, 6),
    (Action::Fallocate, 6),
    (Action::CopyRange, 4),
    (Action::Attributes, 6),
    (Action::Xattrs, 7),
];

impl Workload {
    /// The sequence of `seed`.
    pub fn new(seed: u64, profile: Profile) -> Self {
        Self::continuing(seed, profile, Model::new())
    }

    /// The sequence of `seed` on a filesystem that is `model` already.
    pub fn continuing(seed: u64, profile: Profile, model: Model) -> Self {
        let stamp = seed << 32;
        let namespace = model.namespace();
        let planned = VecDeque::new();
        Self { rng: Rng::new(seed), profile, model, namespace, stamp, planned }
    }

    /// The first `count` operations of `seed`.
    pub fn generate(seed: u64, profile: Profile, count: usize) -> Vec<Op> {
        Self::new(seed, profile).take(count).collect()
    }

    /// Operations that make some 250 objects with long attributes: a tree of several levels.
    pub fn population() -> Vec<Op> {
        let mut ops = Vec::new();
        let mut directories = vec![String::new()];
        for _ in 0..2 {
            let made: Vec<String> =
                directories.iter().flat_map(|at| NAMES.map(|name| join(at, name))).collect();
            ops.extend(made.iter().map(|path| Op::Mkdir { path: path.clone(), mode: 0o755 }));
            directories = made;
        }
        for path in directories.iter().flat_map(|at| NAMES.map(|name| join(at, name))) {
            let mut value = path.clone().into_bytes();
            value.resize(500, b'.');
            let (name, how) = ("user.long-name-of-an-attribute".to_owned(), XattrWrite::Any);
            let (kind, mode, rdev) = (Kind::File, 0o644, 0);
            ops.push(Op::Mknod { path: path.clone(), kind, mode, rdev });
            ops.push(Op::SetXattr { path, name, value, how });
        }
        ops.push(Op::Sync);
        ops
    }

    fn draw(&mut self) -> Op {
        let at = self.rng.below(1000) as u32;
        let Profile { syncs, looks, objects_max, .. } = self.profile;
        if at < syncs {
            return self.draw_sync();
        }
        if at < syncs + looks {
            return self.draw_look();
        }
        if self.namespace.objects.len() > objects_max && self.rng.chance(1, 3) {
            return self.draw_action(Action::Remove);
        }
        let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.below(total);
        for (action, weight) in WEIGHTS {
            match at.checked_sub(weight) {
                Some(left) => at = left,
                None => return self.draw_action(action),
            }
        }
        unreachable!("the weights add up to their total")
    }

    fn draw_sync(&mut self) -> Op {
        if self.rng.chance(1, 4) {
            return Op::Sync;
        }
        let object = match self.rng.chance(1, 5) {
            true => Target::Path(self.existing(&[Kind::Directory])),
            false => self.file(),
        };
        Op::Fsync { object }
    }

    fn draw_look(&mut self) -> Op {
        match self.rng.below(7) {
            0 => Op::ReadDir { path: self.existing(&[Kind::Directory, Kind::Symlink]) },
            1 => Op::ReadLink { path: self.existing(&[Kind::Symlink]) },
            2 => Op::Xattr { path: self.object(), name: self.xattr_name() },
            3 => Op::Xattrs { path: self.object() },
            4 => Op::Stat { object: Target::Path(self.object()) },
            5 => Op::Stat { object: self.file() },
            _ => {
                let (offset, length) = self.range();
                Op::Read { file: self.file(), offset, length }
            }
        }
    }

    fn draw_action(&mut self, action: Action) -> Op {
        match action {
            Action::Make => {
                let kind = *self.pick(&[Kind::File, Kind::File, Kind::Fifo, Kind::CharDevice]);
                let rdev = if kind == Kind::CharDevice { 0xf_fe03 } else { 0 };
                Op::Mknod { path: self.free(), kind, mode: self.mode(), rdev }
            }
            Action::MakeDirectory => Op::Mkdir { path: self.free(), mode: self.mode() },
            Action::Symlink => Op::Symlink { path: self.free(), target: self.symlink_target() },
            Action::Link => self.draw_link(),
            Action::Remove => match self.rng.below(4) {
                0 => Op::Rmdir { path: self.existing(&[Kind::Directory]) },
                1 => Op::Unlink { path: self.object() },
                _ => Op::Unlink { path: self.existing(&[Kind::File]) },
            },
            Action::Rename => self.draw_rename(),
            Action::Save => self.draw_save(),
            Action::Open => self.draw_open(),
            Action::Close => Op::Close { slot: self.slot() },
            Action::Write => self.draw_write(),
            Action::SetSize => Op::SetSize { file: self.file(), size: self.size() },
            Action::Fallocate => self.draw_fallocate(),
            Action::CopyRange => {
                let (from_offset, length) = self.range();
                let (to_offset, _) = self.range();
                Op::CopyRange { from: self.file(), from_offset, to: self.file(), to_offset, length }
            }
            Action::Attributes if self.rng.chance(1, 2) => {
                let object = match self.rng.chance(1, 3) {
                    true => self.file(),
                    false => Target::Path(self.object()),
                };
                Op::Chmod { object, mode: self.mode() }
            }
            Action::Attributes => {
                let id = |rng: &mut Rng| rng.chance(2, 3).then(|| rng.below(4) as u32 * 500);
                let (uid, gid) = (id(&mut self.rng), id(&mut self.rng));
                let uid = if gid.is_none() { uid.or(Some(0)) } else { uid };
                Op::Chown { path: self.object(), uid, gid }
            }
            Action::Xattrs => self.draw_xattr(),
        }
    }

    fn draw_link(&mut self) -> Op {
        let from = match self.rng.below(6) {
            0 => Target::Path(self.object()),
            1 | 2 => Target::Slot(self.slot()),
            _ => Target::Path(self.existing(&[Kind::File])),
        };
        Op::Link { from, to: self.free() }
    }

    fn draw_rename(&mut self) -> Op {
        let how = *self.pick(&[
            Renaming::Replace,
            Renaming::Replace,
            Renaming::Replace,
            Renaming::NoReplace,
            Renaming::Exchange,
        ]);
        let from = match self.rng.chance(1, 2) {
            true => self.existing(&[Kind::File]),
            false => self.object(),
        };
        let to = match self.rng.below(5) {
            0 | 1 => self.free(),
            2 | 3 => self.existing(&[Kind::File]),
            _ => self.object(),
        };
        Op::Rename { from, to, how }
    }

    /// As programs save a document: a new file is written and takes the old one's place.
    fn draw_save(&mut self) -> Op {
        let (path, slot) = (self.free(), self.rng.below(u64::from(SLOTS)) as Slot);
        let file = Target::Slot(slot);
        let mut offset = 0;
        for _ in 0..=self.rng.below(2) {
            self.stamp += 1;
            let (stamp, length) = (self.stamp, 1 + self.rng.below(self.profile.file_size_max / 4));
            self.planned.push_back(Op::Write { file: file.clone(), offset, length, stamp });
            offset += length;
        }
        if self.rng.chance(1, 4) {
            self.planned.push_back(Op::Fsync { object: file });
        }
        let (to, how) = (self.existing(&[Kind::File]), Renaming::Replace);
        self.planned.push_back(Op::Rename { from: path.clone(), to, how });
        Op::Open { path, slot, how: Opening::Create(0o644) }
    }

    fn draw_open(&mut self) -> Op {
        let slot = self.rng.below(u64::from(SLOTS)) as Slot;
        let (mode, path) = (self.mode(), self.existing(&[Kind::File, Kind::Symlink]));
        match self.rng.below(10) {
            0 => Op::Tmpfile { path: self.existing(&[Kind::Directory]), mode, slot },
            1 => Op::Open { path, slot, how: Opening::Truncate },
            2 | 3 => Op::Open { path: self.free(), slot, how: Opening::Exclusive(mode) },
            4 | 5 => Op::Open { path: self.free(), slot, how: Opening::Create(mode) },
            6 => Op::Open { path, slot, how: Opening::Create(mode) },
            _ => Op::Open { path, slot, how: Opening::Existing },
        }
    }

    fn draw_write(&mut self) -> Op {
        self.stamp += 1;
        let (offset, length) = self.range();
        // Most files of most programs are written from their head.
        let offset = if self.rng.chance(1, 3) { 0 } else { offset };
        Op::Write { file: self.file(), offset, length, stamp: self.stamp }
    }

    fn draw_fallocate(&mut self) -> Op {
        let how = *self.pick(&[
            Allocation::Extend,
            Allocation::KeepSize,
            Allocation::Punch,
            Allocation::Zero,
            Allocation::ZeroKeepSize,
            Allocation::Collapse,
            Allocation::Insert,
        ]);
        let (mut offset, mut length) = self.range();
        if matches!(how, Allocation::Collapse | Allocation::Insert) && self.rng.chance(9, 10) {
            offset = offset / BLOCK * BLOCK / 4;
            length = (1 + self.rng.below(3)) * BLOCK;
            offset -= offset % BLOCK;
        }
        let file = self.file();
        if how == Allocation::Insert && self.file_size(&file) > self.profile.file_size_max {
            return Op::SetSize { file, size: 0 };
        }
        Op::Fallocate { file, how, offset, length }
    }

    fn draw_xattr(&mut self) -> Op {
        let (path, name) = (self.object(), self.xattr_name());
        if self.rng.chance(1, 4) {
            return Op::RemoveXattr { path, name };
        }
        let lengths = [0, 1, 20, 100, 300];
        let mut value = vec![0; *self.pick(&lengths)];
        self.rng.fill(&mut value);
        let how = *self.pick(&[
            XattrWrite::Any,
            XattrWrite::Any,
            XattrWrite::Create,
            XattrWrite::Replace,
        ]);
        Op::SetXattr { path, name, value, how }
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.below(from.len() as u64) as usize]
    }

    fn name(&mut self) -> String {
        match self.rng.below(100) {
            0 => "n".repeat(256),
            1 => "n".repeat(255),
            _ => (*self.pick(&NAMES)).to_owned(),
        }
    }

    /// Any path, whatever is there.
    fn anything(&mut self) -> String {
        let depth = 1 + self.rng.below(DEPTH_MAX as u64);
        let names: Vec<String> = (0..depth).map(|_| self.name()).collect();
        names.join("/")
    }

    /// Mostly the path of an object of one of `kinds`. Only a directory can be the root.
    fn existing(&mut self, kinds: &[Kind]) -> String {
        if self.rng.chance(1, 12) {
            return self.anything();
        }
        let paths = kinds.iter().flat_map(|kind| self.namespace.paths(*kind));
        let paths: Vec<&String> = paths.filter(|path| !path.is_empty()).collect();
        match paths.is_empty() {
            true => self.anything(),
            false => paths[self.rng.below(paths.len() as u64) as usize].clone(),
        }
    }

    /// Mostly the path of an object.
    fn object(&mut self) -> String {
        use Kind::{CharDevice, Directory, Fifo, File, Symlink};
        self.existing(&[File, Directory, Symlink, Fifo, CharDevice])
    }

    /// A name in a directory that exists, mostly.
    fn free(&mut self) -> String {
        let name = self.name();
        if self.rng.chance(1, 3) {
            return name;
        }
        let directory = self.existing(&[Kind::Directory]);
        match directory.split('/').count() < DEPTH_MAX {
            true => join(&directory, &name),
            false => name,
        }
    }

    fn symlink_target(&mut self) -> String {
        match self.rng.below(8) {
            0 => format!("{}/{}", self.name(), self.name()),
            1 => "far/".repeat(30) + "away",
            _ => self.name(),
        }
    }

    fn slot(&mut self) -> Slot {
        let open: Vec<Slot> = self.model.open_slots().collect();
        match open.is_empty() || self.rng.chance(1, 20) {
            true => self.rng.below(u64::from(SLOTS)) as Slot,
            false => *self.pick(&open),
        }
    }

    fn file(&mut self) -> Target {
        match self.rng.below(20) {
            0 => Target::Path(self.object()),
            1..=8 if self.model.open_slots().next().is_some() => Target::Slot(self.slot()),
            _ => Target::Path(self.existing(&[Kind::File])),
        }
    }

    fn file_size(&self, file: &Target) -> u64 {
        let op = Op::Stat { object: file.clone() };
        match self.model.clone().apply(&op) {
            Ok(crate::op::Value::Status(status)) => status.size,
            _ => 0,
        }
    }

    fn mode(&mut self) -> u32 {
        let special = *self.pick(&[0, 0, 0, 0o1000, 0o2000, 0o4000, 0o7000]);
        special | *self.pick(&[0o644, 0o600, 0o755, 0o777, 0o000, 0o2755, 0o750])
    }

    fn xattr_name(&mut self) -> String {
        let names = ["user.a", "user.b", "user.long-name-of-an-attribute", "trusted.a", "none.a"];
        (*self.pick(&names)).to_owned()
    }

    fn size(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(self.profile.file_size_max / BLOCK + 1) * BLOCK,
            _ => self.rng.below(self.profile.file_size_max + 1),
        }
    }

    /// Offset and length within the greatest size, often of whole blocks, often short.
    fn range(&mut self) -> (u64, u64) {
        let size = self.profile.file_size_max;
        let near = self.rng.chance(1, 2);
        let limit = if near { size / 8 } else { size };
        let (mut offset, mut length) = (self.rng.below(limit), self.rng.below(limit));
        if self.rng.chance(1, 2) {
            (offset, length) = (offset / BLOCK * BLOCK, length.div_ceil(BLOCK) * BLOCK);
        }
        if self.rng.chance(1, 4) {
            length = self.rng.below(100);
        }
        (offset, length.min(size - offset))
    }
}

impl Iterator for Workload {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        let op = self.planned.pop_front().unwrap_or_else(|| self.draw());
        let bytes_only = matches!(
            op,
            Op::Write { .. } | Op::Read { .. } | Op::SetSize { .. } | Op::Fallocate { .. }
        );
        if self.model.apply(&op).is_ok() && !bytes_only {
            self.namespace = self.model.namespace();
        }
        Some(op)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::op::Errno;

    #[test]
    fn workloads_meet_every_error_and_much_success() {
        let mut model = Model::new();
        let mut answers: BTreeMap<Option<Errno>, u32> = BTreeMap::new();
        for op in Workload::new(1, Profile::ANSWERS).take(3000) {
            *answers.entry(model.apply(&op).err()).or_default() += 1;
        }
        for errno in [
            Errno::EPERM,
            Errno::ENOENT,
            Errno::ENXIO,
            Errno::EBADF,
            Errno::EEXIST,
            Errno::ENOTDIR,
            Errno::EISDIR,
            Errno::EINVAL,
            Errno::ENAMETOOLONG,
            Errno::ENOTEMPTY,
            Errno::ELOOP,
            Errno::ENODATA,
            Errno::EOPNOTSUPP,
        ] {
            assert!(answers.contains_key(&Some(errno)), "{errno:?} of {answers:?}");
        }
        assert!(answers[&None] > 1500, "{answers:?}");
        assert!(model.namespace().objects.len() > 20);
    }

    #[test]
    fn files_stay_small() {
        let mut model = Model::new();
        for op in Workload::new(2, Profile::CRASHES).take(3000) {
            let _ = model.apply(&op);
            let size = |number| model.file_bytes(number).map_or(0, <[u8]>::len) as u64;
            let largest = model.files().map(size).max().unwrap_or(0);
            assert!(largest <= 2 * Profile::CRASHES.file_size_max, "{op:?} made {largest} bytes");
        }
    }

    #[test]
    fn equal_seeds_give_equal_operations() {
        let ops = |seed| Workload::generate(seed, Profile::CRASHES, 500);
        assert_eq!(ops(5), ops(5));
        assert_ne!(ops(5), ops(6));
    }
}
