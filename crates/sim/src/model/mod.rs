//! A naive filesystem: what every operation must answer, in the fewest words.
//!
//! ```text
//! inodes: number -> inode        a directory is a map of names to numbers
//! slots:  slot -> number         a file is a vector of bytes
//! ```
//!
//! Invariants:
//!
//! - an inode is there as long as it has a name or is open;
//! - `nlink` of a directory is 2 and one for each subdirectory, and 0 once it is removed;
//! - numbers are never used twice.
//!
//! It shares no code with what it judges, it takes no care of speed, and the answers are those
//! that Linux gives for ext4 (there is a test that compares the two). Beside the answer it says
//! what an operation did to a file's bytes ([`Effect`]), which the crash checker needs.
//!
//! Absent: permissions (the caller is root), times, limits of space.

mod attributes;
mod bytes;
mod names;
mod walk;

use std::collections::{BTreeMap, VecDeque};

use crate::op::{Errno, Kind, Op, Outcome, Slot, Status, Target, Value};
use crate::tree::{Namespace, Object, System, Tree, join};

/// A number of an inode. Never used again after the inode is gone.
pub type Number = u64;

/// The root directory.
pub const ROOT: Number = 1;

#[derive(Clone, Debug)]
enum Body {
    Directory { entries: BTreeMap<String, Number>, parent: Number },
    File(Vec<u8>),
    Symlink(String),
    Fifo,
    CharDevice(u64),
}

#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    open: u32,
    /// Made by `O_TMPFILE` and not linked yet: it may get a name although it has none.
    linkable: bool,
}

/// What an operation did that matters to the durability of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bytes were written: they are not durable before the file is synced.
    Bytes(Number),
    /// Size or layout changed: durable together with the names.
    Shape(Number),
    /// Nothing is left of the file's bytes.
    Emptied(Number),
    /// The file took the place of another file of that name.
    RenamedOver(Number),
    /// The file (or directory) was synced, and all names with it.
    Synced(Number),
    /// Everything was synced.
    SyncedAll,
}

/// The filesystem.
#[derive(Clone, Debug)]
pub struct Model {
    inodes: BTreeMap<Number, Inode>,
    slots: BTreeMap<Slot, Number>,
    next: Number,
    effects: Vec<Effect>,
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}

impl Model {
    /// An empty filesystem, whose root belongs to root and has mode 755.
    pub fn new() -> Self {
        let body = Body::Directory { entries: BTreeMap::new(), parent: ROOT };
        let mut root = Inode::new(body, 0o755);
        root.nlink = 2;
        let inodes = [(ROOT, root)].into();
        Self { inodes, slots: BTreeMap::new(), next: ROOT + 1, effects: Vec::new() }
    }

    /// The filesystem that `tree` describes, with nothing open.
    pub fn from_tree(tree: &Tree) -> Self {
        let mut model = Self::new();
        model.inodes.clear();
        let mut numbers: BTreeMap<u64, Number> = BTreeMap::new();
        let mut paths: BTreeMap<&str, Number> = BTreeMap::new();
        for (path, object) in &tree.namespace.objects {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = paths.get(parent).copied().unwrap_or(ROOT);
            let number = *numbers.entry(object.id).or_insert_with(|| {
                let number = if path.is_empty() { ROOT } else { model.next };
                model.next = model.next.max(number + 1);
                model.inodes.insert(number, Inode::of(object, parent, tree));
                number
            });
            paths.insert(path, number);
            if let (false, Body::Directory { entries, .. }) =
                (path.is_empty(), &mut model.inode_mut(parent).body)
            {
                entries.insert(name.to_owned(), number);
            }
        }
        model
    }

    /// Does one operation.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        self.effects.clear();
        match op {
            Op::Mknod { path, kind, mode, rdev } => self.mknod(path, *kind, *mode, *rdev),
            Op::Mkdir { path, mode } => self.mkdir(path, *mode),
            Op::Symlink { path, target } => self.symlink(path, target),
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => self.unlink(path),
            Op::Rmdir { path } => self.rmdir(path),
            Op::Rename { from, to, how } => self.rename(from, to, *how),
            Op::Open { path, slot, how } => self.open(path, *slot, *how),
            Op::Tmpfile { path, mode, slot } => self.tmpfile(path, *mode, *slot),
            Op::Close { slot } => self.close(*slot),
            Op::Write { file, offset, length, stamp } => self.write(file, *offset, *length, *stamp),
            Op::Read { file, offset, length } => self.read(file, *offset, *length),
            Op::SetSize { file, size } => self.set_size(file, *size),
            Op::Fallocate { file, how, offset, length } => {
                self.fallocate(file, *how, *offset, *length)
            }
            Op::CopyRange { from, from_offset, to, to_offset, length } => {
                self.copy_range((from, *from_offset), (to, *to_offset), *length)
            }
            Op::Chmod { object, mode } => self.chmod(object, *mode),
            Op::Chown { path, uid, gid } => self.chown(path, *uid, *gid),
            Op::SetXattr { path, name, value, how } => self.set_xattr(path, name, value, *how),
            Op::RemoveXattr { path, name } => self.remove_xattr(path, name),
            Op::Xattr { path, name } => self.xattr(path, name),
            Op::Xattrs { path } => self.xattrs(path),
            Op::Stat { object } => self.stat(object),
            Op::ReadDir { path } => self.read_dir(path),
            Op::ReadLink { path } => self.read_link(path),
            Op::Fsync { object } => self.fsync(object),
            Op::Sync => self.sync(),
        }
    }

    /// What the last operation did to the durability of bytes.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// The bytes of a file, or `None` if `number` is no file any more.
    pub fn file_bytes(&self, number: Number) -> Option<&[u8]> {
        match &self.inodes.get(&number)?.body {
            Body::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The numbers of all files, those without a name included.
    pub fn files(&self) -> impl Iterator<Item = Number> {
        self.inodes.keys().copied().filter(|number| self.file_bytes(*number).is_some())
    }

    /// The slots that hold an open file.
    pub fn open_slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.keys().copied()
    }

    /// All paths with their objects, whose ids are their numbers.
    pub fn namespace(&self) -> Namespace {
        let mut objects = BTreeMap::new();
        let mut ahead = VecDeque::from([(String::new(), ROOT)]);
        while let Some((path, number)) = ahead.pop_front() {
            let inode = self.inode(number);
            if let Body::Directory { entries, .. } = &inode.body {
                ahead.extend(entries.iter().map(|(name, number)| (join(&path, name), *number)));
            }
            let target = match &inode.body {
                Body::Symlink(target) => target.clone(),
                _ => String::new(),
            };
            let status = Status { size: 0, ..inode.status() };
            let object = Object { id: number, status, target, xattrs: inode.xattrs.clone() };
            objects.insert(path, object);
        }
        Namespace { objects }
    }

    fn inode(&self, number: Number) -> &Inode {
        self.inodes.get(&number).expect("a number that is in use has its inode")
    }

    fn inode_mut(&mut self, number: Number) -> &mut Inode {
        self.inodes.get_mut(&number).expect("a number that is in use has its inode")
    }

    fn slot(&self, slot: Slot) -> Result<Number, Errno> {
        self.slots.get(&slot).copied().ok_or(Errno::EBADF)
    }

    /// The object itself, or what a symbolic link leads to.
    fn followed(&self, target: &Target) -> Result<Number, Errno> {
        match target {
            Target::Path(path) => self.lookup_followed(path),
            Target::Slot(slot) => self.slot(*slot),
        }
    }

    /// The object as `open` finds it.
    fn opened(&self, target: &Target) -> Result<Number, Errno> {
        let number = self.followed(target)?;
        match self.inode(number).body {
            Body::Fifo | Body::CharDevice(_) => Err(Errno::ENXIO),
            _ => Ok(number),
        }
    }

    fn close(&mut self, slot: Slot) -> Outcome {
        let number = self.slots.remove(&slot).ok_or(Errno::EBADF)?;
        self.inode_mut(number).open -= 1;
        self.forget_unused(number);
        Ok(Value::Done)
    }

    /// Closes every file, as the end of a process or of a machine does.
    pub fn close_all(&mut self) {
        for slot in self.slots.keys().copied().collect::<Vec<_>>() {
            let _ = self.close(slot);
        }
    }

    fn forget_unused(&mut self, number: Number) {
        let inode = self.inode(number);
        if inode.nlink == 0 && inode.open == 0 {
            self.inodes.remove(&number);
        }
    }

    fn fsync(&mut self, object: &Target) -> Outcome {
        let number = self.opened(object)?;
        self.effects.push(Effect::Synced(number));
        Ok(Value::Done)
    }

    fn sync(&mut self) -> Outcome {
        self.effects.push(Effect::SyncedAll);
        Ok(Value::Done)
    }
}

impl Inode {
    fn new(body: Body, mode: u32) -> Self {
        let xattrs = BTreeMap::new();
        Self { body, mode, uid: 0, gid: 0, nlink: 1, xattrs, open: 0, linkable: false }
    }

    fn of(object: &Object, parent: Number, tree: &Tree) -> Self {
        let Status { kind, mode, uid, gid, nlink, rdev, .. } = object.status;
        let body = match kind {
            Kind::Directory => Body::Directory { entries: BTreeMap::new(), parent },
            Kind::File => Body::File(tree.files.get(&object.id).cloned().unwrap_or_default()),
            Kind::Symlink => Body::Symlink(object.target.clone()),
            Kind::Fifo => Body::Fifo,
            Kind::CharDevice => Body::CharDevice(rdev),
        };
        Self { uid, gid, nlink, xattrs: object.xattrs.clone(), ..Self::new(body, mode) }
    }

    fn kind(&self) -> Kind {
        match self.body {
            Body::Directory { .. } => Kind::Directory,
            Body::File(_) => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::Fifo => Kind::Fifo,
            Body::CharDevice(_) => Kind::CharDevice,
        }
    }

    fn status(&self) -> Status {
        let Self { mode, uid, gid, nlink, .. } = *self;
        let (size, rdev) = match &self.body {
            Body::File(bytes) => (bytes.len() as u64, 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::CharDevice(rdev) => (0, *rdev),
            Body::Directory { .. } | Body::Fifo => (0, 0),
        };
        Status { kind: self.kind(), mode, uid, gid, nlink, rdev, size }
    }
}

impl System for Model {
    fn apply(&mut self, op: &Op) -> Outcome {
        Model::apply(self, op)
    }

    fn dump(&mut self) -> Result<Tree, Errno> {
        let namespace = self.namespace();
        let file = |object: &Object| Some((object.id, self.file_bytes(object.id)?.to_vec()));
        let files = namespace.objects.values().filter_map(file).collect();
        Ok(Tree { namespace, files })
    }
}
