//! Operations translated: what a system call becomes by the time it reaches the filesystem.

use gabion_fs::{
    self as fs, Access, Changes, CopyRequest, FileType, IfExists, IfTaken, Leave, Linkable,
    OpenRequest, Privileges, RenameRequest, SizeRule, SpaceRequest, WriteAt, xattr,
};
use gabion_map::{FileId, Payload};
use gabion_sim::op::{
    Allocation, Errno, Kind, Op, Opening, Outcome, Renaming, Slot, Target, Value, XattrWrite, bytes,
};
use gabion_sim::tree::{System, Tree};

use super::dump::status;
use super::walk::LastLink;
use super::{EIO, Mounted, SUBVOL};

fn done<T>(result: Result<T, Errno>) -> Outcome {
    result.map(|_| Value::Done)
}

impl System for Mounted {
    fn apply(&mut self, op: &Op) -> Outcome {
        self.tick();
        // Before the operation: once it has answered, its promise holds at once.
        if self.interfere().is_err() {
            return Err(EIO);
        }
        self.gate.enter();
        let outcome = self.carry_out(op);
        self.gate.leave();
        outcome
    }

    fn dump(&mut self) -> Result<Tree, Errno> {
        self.settle()?;
        self.dump_subvolume(SUBVOL)
    }
}

impl Mounted {
    fn carry_out(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Mknod { path, kind, mode, rdev } => self.mknod(path, *kind, *mode, *rdev as u32),
            Op::Mkdir { path, mode } => self
                .parent(path)
                .and_then(|(dir, name)| self.run(|t| fs::mkdir(t, &self.ctx, dir, &name, *mode)))
                .map(|_| Value::Done),
            Op::Symlink { path, target } => self.symlink(path, target),
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => self.parent(path).and_then(|(dir, name)| {
                let open = |file| self.open_state(file);
                done(self.run(|txn| fs::unlink(txn, &self.ctx, dir, &name, &open)))
            }),
            Op::Rmdir { path } => self.parent(path).and_then(|(dir, name)| {
                let open = |file| self.open_state(file);
                done(self.run(|txn| fs::rmdir(txn, &self.ctx, dir, &name, &open)))
            }),
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Open { path, slot, how } => self.open(path, *slot, *how),
            Op::Tmpfile { path, mode, slot } => self.tmpfile(path, *mode, *slot),
            Op::Close { slot } => match self.slots.remove(slot) {
                Some(file) => done(self.let_go(file)),
                None => Err(Errno::EBADF),
            },
            _ => self.apply_to_bytes(op),
        }
    }

    fn mknod(&self, path: &str, kind: Kind, mode: u32, rdev: u32) -> Outcome {
        let (dir, name) = self.parent(path)?;
        let file_type = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::CharDevice => FileType::CharDevice,
            _ => FileType::Regular,
        };
        done(self.run(|txn| fs::mknod(txn, &self.ctx, dir, &name, file_type, mode, rdev)))
    }

    fn symlink(&self, path: &str, target: &str) -> Outcome {
        let (dir, name) = self.parent(path)?;
        done(self.run(|txn| fs::symlink(txn, &self.ctx, dir, &name, target.as_bytes())))
    }

    fn link(&self, from: &Target, to: &str) -> Outcome {
        let file = match from {
            Target::Path(path) => self.lookup(path)?.file,
            Target::Slot(slot) => *self.slots.get(slot).ok_or(Errno::EBADF)?,
        };
        let (dir, name) = self.parent(to)?;
        done(self.run(|txn| fs::link(txn, &self.ctx, file, dir, &name)))
    }

    fn rename(&self, from: &str, to: &str, how: Renaming) -> Outcome {
        let (source_parent, source_name) = self.parent(from)?;
        let (target_parent, target_name) = self.parent(to)?;
        self.check_ancestors((source_parent, &source_name), (target_parent, &target_name), how)?;
        let if_taken = match how {
            Renaming::Replace => IfTaken::Replace,
            Renaming::NoReplace => IfTaken::Fail,
            Renaming::Exchange => IfTaken::Exchange,
        };
        let request = RenameRequest {
            source_parent,
            source_name: &source_name,
            target_parent,
            target_name: &target_name,
            if_taken,
            leave: Leave::Nothing,
        };
        let open = |file| self.open_state(file);
        done(self.run(|txn| fs::rename(txn, &self.ctx, &request, &open)))
    }

    /// What the kernel finds out while it locks the directories.
    fn check_ancestors(
        &self,
        (source_parent, source_name): (FileId, &[u8]),
        (target_parent, target_name): (FileId, &[u8]),
        how: Renaming,
    ) -> Result<(), Errno> {
        let source = self.run(|txn| fs::lookup(txn, &self.ctx, source_parent, source_name))?.file;
        let target = self.run(|txn| fs::lookup(txn, &self.ctx, target_parent, target_name));
        let target = match target {
            Err(Errno::ENOENT) => None,
            found => Some(found?.file),
        };
        match (how, target) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (Renaming::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_within(target_parent, source)? {
            return Err(Errno::EINVAL);
        }
        match target {
            Some(target) if self.is_within(source_parent, target)? => match how {
                Renaming::Exchange => Err(Errno::EINVAL),
                _ => Err(Errno::ENOTEMPTY),
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, path: &str, slot: Slot, how: Opening) -> Outcome {
        let access = Access::READ | Access::WRITE;
        let truncate = (how == Opening::Truncate).then_some(Privileges::Keep);
        let request = OpenRequest { access, truncate };
        let (mode, if_exists, last_link) = match how {
            Opening::Existing | Opening::Truncate => (None, IfExists::Open, LastLink::Followed),
            Opening::Create(mode) => (Some(mode), IfExists::Open, LastLink::Followed),
            Opening::Exclusive(mode) => (Some(mode), IfExists::Fail, LastLink::Meant),
        };
        let spot = self.spot(path, last_link)?;
        let file = match (spot.found, mode) {
            (Some(found), _) => match found.file_type() {
                FileType::Fifo | FileType::CharDevice => return Err(Errno::ENXIO),
                _ => self.run(|txn| fs::open(txn, &self.ctx, found.file, &request))?.file,
            },
            (None, Some(mode)) => {
                let (dir, name) = (spot.dir, &spot.name);
                let made = self
                    .run(|txn| fs::create(txn, &self.ctx, dir, name, mode, if_exists, &request));
                made?.0.file
            }
            (None, None) => return Err(Errno::ENOENT),
        };
        self.recent = file;
        done(self.hold(slot, file))
    }

    fn tmpfile(&mut self, path: &str, mode: u32, slot: Slot) -> Outcome {
        let dir = self.followed(&Target::Path(path.to_owned()))?.file;
        let made = self.run(|txn| fs::tmpfile(txn, &self.ctx, dir, mode, Linkable::Yes))?;
        done(self.hold(slot, made.file))
    }

    fn apply_to_bytes(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Write { file, offset, length, stamp } => {
                let file = self.file(file)?;
                let bytes = bytes(*stamp, *offset, *length);
                let (at, privileges) = (WriteAt::Offset(*offset), Privileges::Keep);
                let written = self.run(|txn| {
                    fs::write(txn, &self.ctx, file, at, Payload::Copied(&bytes), privileges)
                })?;
                Ok(Value::Count(written.length as u64))
            }
            Op::Read { file, offset, length } => {
                let file = self.file(file)?;
                self.read_all(file, *offset, *length).map(Value::Bytes)
            }
            Op::SetSize { file, size } => {
                let file = self.followed(file)?.file;
                let size = Some((*size, Privileges::Keep));
                self.set(file, Changes { size, ..Changes::default() })
            }
            Op::Fallocate { file, how, offset, length } => {
                let file = self.file(file)?;
                self.fallocate(file, *how, *offset, *length)
            }
            Op::CopyRange { from, from_offset, to, to_offset, length } => {
                let source = self.opened(from)?.file;
                let request = CopyRequest {
                    source,
                    source_offset: *from_offset,
                    target: self.file(to)?,
                    target_offset: *to_offset,
                    length: *length,
                };
                let privileges = Privileges::Keep;
                let copied =
                    self.run(|txn| fs::copy_range(txn, &self.ctx, &request, privileges))?;
                Ok(Value::Count(copied))
            }
            _ => self.apply_to_attributes(op),
        }
    }

    fn set(&self, file: FileId, changes: Changes) -> Outcome {
        done(self.run(|txn| fs::setattr(txn, &self.ctx, file, &changes)))
    }

    fn fallocate(&self, file: FileId, how: Allocation, offset: u64, length: u64) -> Outcome {
        let request = match how {
            Allocation::Extend => SpaceRequest::Allocate(SizeRule::Extend),
            Allocation::KeepSize => SpaceRequest::Allocate(SizeRule::Keep),
            Allocation::Punch => SpaceRequest::Punch,
            Allocation::Zero => SpaceRequest::Zero(SizeRule::Extend),
            Allocation::ZeroKeepSize => SpaceRequest::Zero(SizeRule::Keep),
            Allocation::Collapse => SpaceRequest::Collapse,
            Allocation::Insert => SpaceRequest::Insert,
        };
        let keep = Privileges::Keep;
        done(self.run(|txn| fs::fallocate(txn, &self.ctx, file, request, offset, length, keep)))
    }

    fn apply_to_attributes(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Chmod { object, mode } => {
                let file = self.followed(object)?.file;
                self.set(file, Changes { permissions: Some(*mode), ..Changes::default() })
            }
            Op::Chown { path, uid, gid } => {
                let file = self.lookup(path)?.file;
                self.set(file, Changes { uid: *uid, gid: *gid, ..Changes::default() })
            }
            Op::Stat { object: Target::Path(path) } => {
                Ok(Value::Status(status(&self.lookup(path)?)))
            }
            Op::Stat { object } => Ok(Value::Status(status(&self.followed(object)?))),
            Op::ReadDir { path } => {
                let dir = self.followed(&Target::Path(path.clone()))?;
                self.entries(dir.file).map(Value::Entries)
            }
            Op::ReadLink { path } => {
                let file = self.lookup(path)?.file;
                let target = self.run(|txn| fs::readlink(txn, file))?;
                Ok(Value::Text(String::from_utf8_lossy(&target).into_owned()))
            }
            Op::Fsync { object } => {
                let file = self.opened(object)?.file;
                done(self.world(self.map.sync_file(file)))
            }
            Op::Sync if self.may_snapshot && self.rng.chance(1, 3) => done(self.handle_snapshots()),
            Op::Sync => done(self.world(self.map.sync())),
            _ => self.apply_to_xattrs(op),
        }
    }

    fn apply_to_xattrs(&mut self, op: &Op) -> Outcome {
        match op {
            Op::SetXattr { path, name, value, how } => {
                let file = self.lookup(path)?.file;
                let condition = match how {
                    XattrWrite::Any => xattr::SetCondition::Always,
                    XattrWrite::Create => xattr::SetCondition::Absent,
                    XattrWrite::Replace => xattr::SetCondition::Present,
                };
                let (name, bit) = (name.as_bytes(), xattr::SetGroupBit::Keep);
                done(self.run(|txn| xattr::set(txn, &self.ctx, file, name, value, condition, bit)))
            }
            Op::RemoveXattr { path, name } => {
                let file = self.lookup(path)?.file;
                done(self.run(|txn| xattr::remove(txn, &self.ctx, file, name.as_bytes())))
            }
            Op::Xattr { path, name } => {
                let file = self.lookup(path)?.file;
                self.run(|txn| xattr::value(txn, &self.ctx, file, name.as_bytes()))
                    .map(Value::Bytes)
            }
            Op::Xattrs { path } => {
                let file = self.lookup(path)?.file;
                self.xattr_names(file).map(Value::Names)
            }
            _ => unreachable!("{op:?} is taken care of"),
        }
    }
}
