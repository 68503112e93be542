//! The model answers what Linux answers: random operations run on both, below a directory of the
//! host's own filesystem (ext4 where this was written).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self as sys, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags};
use rustix::fs::{Gid, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno as SysErrno;

use gabion_sim::op::{
    Allocation, Errno, Kind, Op, Opening, Outcome, Renaming, Slot, Status, Target, Value,
    XattrWrite, bytes,
};
use gabion_sim::tree::{Namespace, Object, System, Tree, join};
use gabion_sim::trial::compare;
use gabion_sim::workload::{Profile, Workload};

/// A directory of the host, removed when dropped.
struct Host {
    root: PathBuf,
    slots: BTreeMap<Slot, File>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn errno(error: SysErrno) -> Errno {
    Errno(error.raw_os_error())
}

fn io_errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().expect("an error of the system"))
}

fn done<T>(result: rustix::io::Result<T>) -> Outcome {
    result.map(|_| Value::Done).map_err(errno)
}

impl Host {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("gabion-sim-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).expect("a temporary directory can be made");
        rustix::process::umask(Mode::empty());
        sys::chmod(&root, Mode::from(0o755)).expect("own directory");
        Self { root, slots: BTreeMap::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn slot(&self, slot: Slot) -> Result<&File, Errno> {
        self.slots.get(&slot).ok_or(Errno::EBADF)
    }

    /// Opens a path unless it leads to a special file.
    fn open_path(&self, path: &str, flags: OFlags, mode: u32) -> Result<File, Errno> {
        let path = self.path(path);
        let exclusive = flags.contains(OFlags::EXCL);
        if let (false, Ok(found)) = (exclusive, fs::metadata(&path))
            && !found.is_file()
            && !found.is_dir()
        {
            return Err(Errno::ENXIO);
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        sys::open(path, flags, Mode::from(mode)).map(File::from).map_err(errno)
    }

    /// Runs `act` on the open file.
    fn on_file<T>(
        &self,
        target: &Target,
        flags: OFlags,
        act: impl FnOnce(&File) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match target {
            Target::Path(path) => act(&self.open_path(path, flags, 0)?),
            Target::Slot(slot) => act(self.slot(*slot)?),
        }
    }

    fn open(&mut self, path: &str, slot: Slot, how: Opening) -> Outcome {
        let (flags, mode) = match how {
            Opening::Existing => (OFlags::empty(), 0),
            Opening::Truncate => (OFlags::TRUNC, 0),
            Opening::Create(mode) => (OFlags::CREATE, mode),
            Opening::Exclusive(mode) => (OFlags::CREATE | OFlags::EXCL, mode),
        };
        let file = self.open_path(path, flags | OFlags::RDWR, mode)?;
        self.slots.insert(slot, file);
        Ok(Value::Done)
    }

    fn link(&self, from: &Target, to: &str) -> Outcome {
        let to = self.path(to);
        match from {
            Target::Path(path) => {
                done(sys::linkat(CWD, self.path(path), CWD, to, AtFlags::empty()))
            }
            Target::Slot(slot) => {
                let file = self.slot(*slot)?.as_fd();
                done(sys::linkat(file, "", CWD, to, AtFlags::EMPTY_PATH))
            }
        }
    }

    fn stat(&self, target: &Target) -> Result<(u64, Status), Errno> {
        let found = match target {
            Target::Path(path) => fs::symlink_metadata(self.path(path)),
            Target::Slot(slot) => self.slot(*slot)?.metadata(),
        };
        let found = found.map_err(io_errno)?;
        let kind = kind(found.file_type());
        let status = Status {
            kind,
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            nlink: found.nlink() as u32,
            rdev: found.rdev(),
            size: if kind == Kind::Directory { 0 } else { found.size() },
        };
        Ok((found.ino(), status))
    }

    fn xattrs(&self, path: &str) -> Result<Vec<String>, Errno> {
        let mut list = [0_u8; 4096];
        let length = sys::llistxattr(self.path(path), &mut list[..]).map_err(errno)?;
        let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> =
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort();
        Ok(names)
    }

    fn xattr(&self, path: &str, name: &str) -> Result<Vec<u8>, Errno> {
        let mut value = [0_u8; 4096];
        let length = sys::lgetxattr(self.path(path), name, &mut value[..]).map_err(errno)?;
        Ok(value[..length].to_vec())
    }

    fn read_dir(&self, path: &str) -> Result<Vec<(String, Kind)>, Errno> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(path)).map_err(io_errno)? {
            let entry = entry.map_err(io_errno)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push((name, kind(entry.file_type().map_err(io_errno)?)));
        }
        entries.sort();
        Ok(entries)
    }

    fn copy_range(&self, from: (&Target, u64), to: (&Target, u64), length: u64) -> Outcome {
        let (mut from_offset, mut to_offset) = (from.1, to.1);
        self.on_file(from.0, OFlags::RDONLY, |source| {
            self.on_file(to.0, OFlags::WRONLY, |target| {
                let (from, to) = (Some(&mut from_offset), Some(&mut to_offset));
                let copied = sys::copy_file_range(source, from, target, to, length as usize);
                Ok(Value::Count(copied.map_err(errno)? as u64))
            })
        })
    }

    fn dump_directory(&self, path: &str, tree: &mut Tree) -> Result<(), Errno> {
        for (name, kind) in self.read_dir(path)? {
            let path = join(path, &name);
            self.dump_object(&path, tree)?;
            if kind == Kind::Directory {
                self.dump_directory(&path, tree)?;
            }
        }
        Ok(())
    }

    fn dump_object(&self, path: &str, tree: &mut Tree) -> Result<(), Errno> {
        let (id, status) = self.stat(&Target::Path(path.to_owned()))?;
        if status.kind == Kind::File {
            tree.files.insert(id, fs::read(self.path(path)).map_err(io_errno)?);
        }
        let target = match status.kind {
            Kind::Symlink => read_link(&self.path(path))?,
            _ => String::new(),
        };
        let mut xattrs = BTreeMap::new();
        for name in self.xattrs(path)? {
            let value = self.xattr(path, &name)?;
            xattrs.insert(name, value);
        }
        let object = Object { id, status: Status { size: 0, ..status }, target, xattrs };
        tree.namespace.objects.insert(path.to_owned(), object);
        Ok(())
    }
}

fn kind(file_type: fs::FileType) -> Kind {
    use std::os::unix::fs::FileTypeExt;
    match file_type {
        is if is.is_dir() => Kind::Directory,
        is if is.is_symlink() => Kind::Symlink,
        is if is.is_fifo() => Kind::Fifo,
        is if is.is_char_device() => Kind::CharDevice,
        _ => Kind::File,
    }
}

fn read_link(path: &Path) -> Result<String, Errno> {
    let target = sys::readlinkat(CWD, path, Vec::new()).map_err(errno)?;
    Ok(OsStr::from_bytes(target.as_bytes()).to_string_lossy().into_owned())
}

fn fallocate_flags(how: Allocation) -> FallocateFlags {
    match how {
        Allocation::Extend => FallocateFlags::empty(),
        Allocation::KeepSize => FallocateFlags::KEEP_SIZE,
        Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocation::Zero => FallocateFlags::ZERO_RANGE,
        Allocation::ZeroKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        Allocation::Collapse => FallocateFlags::COLLAPSE_RANGE,
        Allocation::Insert => FallocateFlags::INSERT_RANGE,
    }
}

impl System for Host {
    fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Mknod { path, kind, mode, rdev } => {
                let kind = match kind {
                    Kind::Fifo => FileType::Fifo,
                    Kind::CharDevice => FileType::CharacterDevice,
                    _ => FileType::RegularFile,
                };
                done(sys::mknodat(CWD, self.path(path), kind, Mode::from(*mode), *rdev))
            }
            Op::Mkdir { path, mode } => done(sys::mkdir(self.path(path), Mode::from(*mode))),
            Op::Symlink { path, target } => done(sys::symlink(target.as_str(), self.path(path))),
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => done(sys::unlink(self.path(path))),
            Op::Rmdir { path } => done(sys::rmdir(self.path(path))),
            Op::Rename { from, to, how } => {
                let flags = match how {
                    Renaming::Replace => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                };
                done(sys::renameat_with(CWD, self.path(from), CWD, self.path(to), flags))
            }
            Op::Open { path, slot, how } => self.open(path, *slot, *how),
            Op::Tmpfile { path, mode, slot } => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let file: OwnedFd =
                    sys::open(self.path(path), flags, Mode::from(*mode)).map_err(errno)?;
                self.slots.insert(*slot, File::from(file));
                Ok(Value::Done)
            }
            Op::Close { slot } => self.slots.remove(slot).map(|_| Value::Done).ok_or(Errno::EBADF),
            _ => self.apply_to_bytes(op),
        }
    }

    fn dump(&mut self) -> Result<Tree, Errno> {
        let mut tree = Tree { namespace: Namespace::default(), files: BTreeMap::new() };
        self.dump_object("", &mut tree)?;
        self.dump_directory("", &mut tree)?;
        Ok(tree)
    }
}

impl Host {
    fn apply_to_bytes(&self, op: &Op) -> Outcome {
        match op {
            Op::Write { file, offset, length, stamp } => {
                self.on_file(file, OFlags::WRONLY, |file| {
                    let bytes = bytes(*stamp, *offset, *length);
                    let written = file.write_at(&bytes, *offset).map_err(io_errno)?;
                    Ok(Value::Count(written as u64))
                })
            }
            Op::Read { file, offset, length } => self.on_file(file, OFlags::RDONLY, |file| {
                let mut bytes = vec![0; *length as usize];
                let read = file.read_at(&mut bytes, *offset).map_err(io_errno)?;
                bytes.truncate(read);
                Ok(Value::Bytes(bytes))
            }),
            Op::SetSize { file: Target::Path(path), size } => {
                done(truncate(&self.path(path), *size))
            }
            Op::SetSize { file: Target::Slot(slot), size } => {
                done(sys::ftruncate(self.slot(*slot)?, *size))
            }
            Op::Fallocate { file, how, offset, length } => {
                self.on_file(file, OFlags::RDWR, |file| {
                    done(sys::fallocate(file, fallocate_flags(*how), *offset, *length))
                })
            }
            Op::CopyRange { from, from_offset, to, to_offset, length } => {
                self.copy_range((from, *from_offset), (to, *to_offset), *length)
            }
            _ => self.apply_to_attributes(op),
        }
    }

    fn apply_to_attributes(&self, op: &Op) -> Outcome {
        match op {
            Op::Chmod { object: Target::Path(path), mode } => {
                done(sys::chmod(self.path(path), Mode::from(*mode)))
            }
            Op::Chmod { object: Target::Slot(slot), mode } => {
                done(sys::fchmod(self.slot(*slot)?, Mode::from(*mode)))
            }
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(sys::chownat(CWD, self.path(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            }
            Op::SetXattr { path, name, value, how } => {
                let flags = match how {
                    XattrWrite::Any => XattrFlags::empty(),
                    XattrWrite::Create => XattrFlags::CREATE,
                    XattrWrite::Replace => XattrFlags::REPLACE,
                };
                done(sys::lsetxattr(self.path(path), name.as_str(), value, flags))
            }
            Op::RemoveXattr { path, name } => {
                done(sys::lremovexattr(self.path(path), name.as_str()))
            }
            Op::Xattr { path, name } => self.xattr(path, name).map(Value::Bytes),
            Op::Xattrs { path } => self.xattrs(path).map(Value::Names),
            Op::Stat { object } => self.stat(object).map(|(_, status)| Value::Status(status)),
            Op::ReadDir { path } => self.read_dir(path).map(Value::Entries),
            Op::ReadLink { path } => read_link(&self.path(path)).map(Value::Text),
            // Syncing the host would only cost time; that it fails where it should is compared.
            Op::Fsync { object } => self.on_file(object, OFlags::RDONLY, |_| Ok(Value::Done)),
            Op::Sync => Ok(Value::Done),
            _ => unreachable!("{op:?} is taken care of"),
        }
    }
}

/// `truncate(2)`: unlike opening and truncating, it says EISDIR and EINVAL by itself.
fn truncate(path: &Path, size: u64) -> rustix::io::Result<()> {
    let kind = fs::metadata(path).map(|found| kind(found.file_type()));
    match kind {
        Ok(Kind::Directory) => Err(SysErrno::ISDIR),
        Ok(Kind::File) => {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            sys::ftruncate(sys::open(path, flags, Mode::empty())?, size)
        }
        Ok(_) => Err(SysErrno::INVAL),
        Err(error) => Err(SysErrno::from_io_error(&error).expect("an error of the system")),
    }
}

fn compare_with_host(seed: u64, count: usize) {
    let mut host = Host::new(&format!("host-{seed}"));
    let ops = Workload::generate(seed, Profile::ANSWERS, count);
    if let Err(failure) = compare(&mut host, &ops) {
        panic!("seed {seed}: {failure}");
    }
}

#[test]
fn the_model_answers_what_linux_answers() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for seed in 1..=3 {
        compare_with_host(seed, 800);
    }
}
