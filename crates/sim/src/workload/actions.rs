//! What a workload does: an action is drawn by its weight, and becomes one operation.
//!
//! ```text
//!   syncs, looks     of 1000 operations, as the profile says
//!   removing         one in three of the others, while there are more objects than wanted
//!   all actions      of what is left, by WEIGHTS
//! ```
//!
//! Writing and renaming have the greatest weights, as they meet everything else. Saving is the one
//! action that plans more than one operation: the rest of it comes next in any case.

use gabion_base::rng::Rng;

use crate::op::{Allocation, Kind, Op, Opening, Renaming, Slot, Target, XattrWrite};
use crate::workload::{BLOCK, Profile, SLOTS, Workload};

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
    pub(super) fn draw(&mut self) -> Op {
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
}
