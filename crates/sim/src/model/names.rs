//! Operations on names: making, linking, removing, renaming, listing.

use std::collections::BTreeMap;

use super::walk::LastLink;
use super::{Body, Effect, Inode, Model, Number};
use crate::op::{Errno, Kind, Opening, Outcome, Renaming, Slot, Target, Value};

const SETGID: u32 = 0o2000;
/// What `mkdir` heeds of a mode: permissions and the sticky bit.
const DIRECTORY_MODE: u32 = 0o1777;
/// The longest target of a symbolic link in bytes.
const SYMLINK_LENGTH_MAX: usize = 4095;

impl Model {
    pub(super) fn mknod(&mut self, path: &str, kind: Kind, mode: u32, rdev: u64) -> Outcome {
        let (directory, name) = self.free_spot(path)?;
        let body = match kind {
            Kind::File => Body::File(Vec::new()),
            Kind::Fifo => Body::Fifo,
            Kind::CharDevice => Body::CharDevice(rdev),
            Kind::Directory | Kind::Symlink => return Err(Errno::EINVAL),
        };
        self.make(directory, name, body, mode);
        Ok(Value::Done)
    }

    pub(super) fn mkdir(&mut self, path: &str, mode: u32) -> Outcome {
        let (directory, name) = self.free_spot(path)?;
        let body = Body::Directory { entries: BTreeMap::new(), parent: directory };
        self.make(directory, name, body, mode & DIRECTORY_MODE);
        Ok(Value::Done)
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) -> Outcome {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() > SYMLINK_LENGTH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let (directory, name) = self.free_spot(path)?;
        self.make(directory, name, Body::Symlink(target.to_owned()), 0o777);
        Ok(Value::Done)
    }

    pub(super) fn link(&mut self, from: &Target, to: &str) -> Outcome {
        let number = match from {
            Target::Path(path) => self.lookup(path)?,
            Target::Slot(slot) => self.slot(*slot)?,
        };
        let (directory, name) = self.free_spot(to)?;
        let inode = self.inode_mut(number);
        if inode.kind() == Kind::Directory {
            return Err(Errno::EPERM);
        }
        if inode.nlink == 0 && !inode.linkable {
            return Err(Errno::ENOENT);
        }
        inode.nlink += 1;
        inode.linkable = false;
        self.entries_mut(directory).insert(name, number);
        Ok(Value::Done)
    }

    pub(super) fn unlink(&mut self, path: &str) -> Outcome {
        let spot = self.spot(path, LastLink::Meant)?;
        let number = spot.found()?.ok_or(Errno::ENOENT)?;
        if self.inode(number).kind() == Kind::Directory {
            return Err(Errno::EISDIR);
        }
        self.remove(spot.directory, &spot.name);
        Ok(Value::Done)
    }

    pub(super) fn rmdir(&mut self, path: &str) -> Outcome {
        let spot = self.spot(path, LastLink::Meant)?;
        let number = spot.found()?.ok_or(Errno::ENOENT)?;
        if !self.is_empty_directory(number)? {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove(spot.directory, &spot.name);
        Ok(Value::Done)
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, how: Renaming) -> Outcome {
        let old = self.spot(from, LastLink::Meant)?;
        let new = self.spot(to, LastLink::Meant)?;
        let source = old.found()?.ok_or(Errno::ENOENT)?;
        let replaced = new.found()?;
        match (how, replaced) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (Renaming::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_within(new.directory, source) {
            return Err(Errno::EINVAL);
        }
        if replaced.is_some_and(|target| self.is_within(old.directory, target)) {
            let exchange = how == Renaming::Exchange;
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if replaced == Some(source) {
            return Ok(Value::Done);
        }
        if let (Renaming::Replace, Some(target)) = (how, replaced) {
            match (self.inode(source).kind(), self.inode(target).kind()) {
                (Kind::Directory, _) if !self.is_empty_directory(target)? => {
                    return Err(Errno::ENOTEMPTY);
                }
                (Kind::Directory, _) => {}
                (_, Kind::Directory) => return Err(Errno::EISDIR),
                (Kind::File, Kind::File) => self.effects.push(Effect::RenamedOver(source)),
                _ => {}
            }
            self.remove(new.directory, &new.name);
        }
        self.entries_mut(old.directory).remove(&old.name);
        if let (Renaming::Exchange, Some(target)) = (how, replaced) {
            self.place(old.directory, old.name, target, new.directory);
        }
        self.place(new.directory, new.name, source, old.directory);
        Ok(Value::Done)
    }

    pub(super) fn open(&mut self, path: &str, slot: Slot, how: Opening) -> Outcome {
        let last_link = match how {
            Opening::Exclusive(_) => LastLink::Meant,
            _ => LastLink::Followed,
        };
        let spot = self.spot(path, last_link)?;
        let number = match (spot.found()?, how) {
            (Some(_), Opening::Exclusive(_)) => return Err(Errno::EEXIST),
            (Some(number), _) => match self.inode_mut(number).body {
                Body::File(_) => number,
                Body::Directory { .. } => return Err(Errno::EISDIR),
                Body::Symlink(_) => return Err(Errno::ELOOP),
                Body::Fifo | Body::CharDevice(_) => return Err(Errno::ENXIO),
            },
            (None, Opening::Create(mode) | Opening::Exclusive(mode)) => {
                self.make(spot.directory, spot.name, Body::File(Vec::new()), mode)
            }
            (None, Opening::Existing | Opening::Truncate) => return Err(Errno::ENOENT),
        };
        if how == Opening::Truncate {
            self.cut(number);
        }
        self.hold(slot, number);
        Ok(Value::Done)
    }

    pub(super) fn tmpfile(&mut self, path: &str, mode: u32, slot: Slot) -> Outcome {
        let directory = self.lookup_followed(path)?;
        if self.inode(directory).kind() != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let number = self.make_nameless(directory, Body::File(Vec::new()), mode);
        let inode = self.inode_mut(number);
        (inode.nlink, inode.linkable) = (0, true);
        self.hold(slot, number);
        Ok(Value::Done)
    }

    pub(super) fn read_dir(&self, path: &str) -> Outcome {
        let number = self.opened(&Target::Path(path.to_owned())).map_err(|errno| match errno {
            Errno::ENXIO => Errno::ENOTDIR,
            other => other,
        })?;
        let Body::Directory { entries, .. } = &self.inode(number).body else {
            return Err(Errno::ENOTDIR);
        };
        let entry = |(name, number): (&String, &Number)| (name.clone(), self.inode(*number).kind());
        Ok(Value::Entries(entries.iter().map(entry).collect()))
    }

    pub(super) fn read_link(&self, path: &str) -> Outcome {
        match &self.inode(self.lookup(path)?).body {
            Body::Symlink(target) => Ok(Value::Text(target.clone())),
            _ => Err(Errno::EINVAL),
        }
    }

    fn hold(&mut self, slot: Slot, number: Number) {
        self.inode_mut(number).open += 1;
        if let Some(before) = self.slots.insert(slot, number) {
            self.inode_mut(before).open -= 1;
            self.forget_unused(before);
        }
    }

    fn make(&mut self, directory: Number, name: String, body: Body, mode: u32) -> Number {
        let number = self.make_nameless(directory, body, mode);
        self.place(directory, name, number, number);
        number
    }

    fn make_nameless(&mut self, directory: Number, body: Body, mode: u32) -> Number {
        let number = self.next;
        self.next += 1;
        let mut inode = Inode::new(body, mode);
        let parent = self.inode(directory);
        if parent.mode & SETGID != 0 {
            inode.gid = parent.gid;
            if inode.kind() == Kind::Directory {
                inode.mode |= SETGID;
            }
        }
        if inode.kind() == Kind::Directory {
            inode.nlink = 2;
        }
        self.inodes.insert(number, inode);
        number
    }

    /// Gives an object a name in `directory`. A directory that was in `before` moves its link to
    /// the parent; a new one is in itself before.
    fn place(&mut self, directory: Number, name: String, number: Number, before: Number) {
        self.entries_mut(directory).insert(name, number);
        if let Body::Directory { parent, .. } = &mut self.inode_mut(number).body {
            *parent = directory;
            if before != number {
                self.inode_mut(before).nlink -= 1;
            }
            self.inode_mut(directory).nlink += 1;
        }
    }

    fn remove(&mut self, directory: Number, name: &str) {
        let number = self.entries_mut(directory).remove(name).expect("the caller has found it");
        let inode = self.inode_mut(number);
        if inode.kind() == Kind::Directory {
            inode.nlink = 0;
            self.inode_mut(directory).nlink -= 1;
        } else {
            inode.nlink -= 1;
        }
        self.forget_unused(number);
    }

    fn entries_mut(&mut self, number: Number) -> &mut BTreeMap<String, Number> {
        match &mut self.inode_mut(number).body {
            Body::Directory { entries, .. } => entries,
            _ => unreachable!("a walk ends in a directory"),
        }
    }

    fn is_empty_directory(&self, number: Number) -> Result<bool, Errno> {
        match &self.inode(number).body {
            Body::Directory { entries, .. } => Ok(entries.is_empty()),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Whether `inner` is `outer` or below it.
    fn is_within(&self, inner: Number, outer: Number) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            match &self.inode(at).body {
                Body::Directory { parent, .. } if *parent != at => at = *parent,
                _ => return false,
            }
        }
    }
}
