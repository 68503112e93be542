//! A filesystem in memory, just large enough to exercise the protocol, and a record of what the
//! kernel asked of it.
//!
//! Names with a meaning of their own when looked up: `hole` is answered only if resent, else its
//! reply is kept; `dropped` has its reply dropped; `panic` panics; what begins with `stuck`
//! occupies its thread until told otherwise. Waits for locks are never granted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gabion_fuse::mount::{MountOptions, Source, Unmount, mount, unmount};
use gabion_fuse::mountinfo::Mount;
use gabion_fuse::*;
use parking_lot::{Condvar, Mutex};

pub const FOREVER: Duration = Duration::MAX;
/// Longer than any test takes: whoever waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default, Clone)]
struct Inode {
    attr: Attr,
    bytes: Vec<u8>,
    names: BTreeMap<Vec<u8>, u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the kernel asked.
#[derive(Default)]
pub struct Record {
    pub holes: Vec<Reply>,
    pub lock_waits: Vec<LockRequest>,
    pub locks: Vec<LockRequest>,
    pub cancelled: Vec<(CancelReason, Outcome)>,
    pub resent: usize,
    pub stuck: usize,
    pub unstuck: bool,
    pub write_sizes: Vec<usize>,
    pub write_misaligned: usize,
    pub syncfs: usize,
    pub destroyed: usize,
    pub forgotten: BTreeMap<u64, u64>,
    pub readdirplus: usize,
    pub lookups: usize,
    pub released: usize,
    pub umasks: Vec<u32>,
}

pub struct MemFs {
    inodes: Mutex<BTreeMap<u64, Inode>>,
    record: Mutex<Record>,
    changed: Condvar,
}

impl Default for MemFs {
    fn default() -> Self {
        let attr = Attr { ino: 1, mode: libc::S_IFDIR | 0o755, nlink: 2, ..Attr::default() };
        let root = Inode { attr, ..Inode::default() };
        Self {
            inodes: Mutex::new(BTreeMap::from([(1, root)])),
            record: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl MemFs {
    /// Waits until the record satisfies `condition` and returns what it yields.
    pub fn wait_for<T>(&self, mut condition: impl FnMut(&mut Record) -> Option<T>) -> T {
        let mut record = self.record.lock();
        loop {
            if let Some(value) = condition(&mut record) {
                return value;
            }
            let timed_out = self.changed.wait_for(&mut record, PATIENCE).timed_out();
            assert!(!timed_out, "the kernel did not ask for what the test expects");
        }
    }

    pub fn record<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let result = change(&mut self.record.lock());
        self.changed.notify_all();
        result
    }

    /// Changes a file behind the kernel's back.
    pub fn overwrite(&self, ino: u64, bytes: &[u8]) {
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&ino).unwrap();
        inode.bytes = bytes.to_vec();
        inode.attr.size = bytes.len() as u64;
    }

    /// Adds a file behind the kernel's back.
    pub fn plant(&self, ino: u64, name: &str) {
        let mut inodes = self.inodes.lock();
        let attr = Attr { ino, mode: libc::S_IFREG | 0o644, nlink: 1, ..Attr::default() };
        inodes.insert(ino, Inode { attr, ..Inode::default() });
        inodes.get_mut(&1).unwrap().names.insert(name.as_bytes().to_vec(), ino);
    }

    fn entry(&self, inodes: &BTreeMap<u64, Inode>, ino: u64) -> Entry {
        let attr = inodes[&ino].attr;
        let node = NodeId(ino);
        Entry { node, generation: 0, attr, entry_ttl: FOREVER, attr_ttl: FOREVER }
    }

    fn add(&self, request: &Request<'_>, name: &[u8], mode: u32) -> Result<Entry, i32> {
        let mut inodes = self.inodes.lock();
        let ino = inodes.last_key_value().unwrap().0 + 1;
        let parent = inodes.get_mut(&request.node.0).ok_or(libc::ENOENT)?;
        if !name.is_empty() && parent.names.insert(name.to_vec(), ino).is_some() {
            return Err(libc::EEXIST);
        }
        let (uid, gid) = (request.uid, request.gid);
        let attr = Attr { ino, mode, nlink: 1, uid, gid, block_size: 4096, ..Attr::default() };
        inodes.insert(ino, Inode { attr, ..Inode::default() });
        Ok(self.entry(&inodes, ino))
    }

    fn lookup(&self, request: &Request<'_>, name: &[u8], reply: Reply) {
        self.record(|record| {
            record.lookups += 1;
            record.resent += usize::from(request.is_resent());
        });
        match name {
            b"hole" if !request.is_resent() => {
                self.record(|record| record.holes.push(reply));
                return;
            }
            b"dropped" => return drop(reply),
            b"panic" => panic!("asked for by the test"),
            name if name.starts_with(b"stuck") => {
                self.record(|record| record.stuck += 1);
                self.wait_for(|record| record.unstuck.then_some(()));
            }
            _ => {}
        }
        let inodes = self.inodes.lock();
        match inodes[&request.node.0].names.get(name) {
            Some(ino) => reply.entry(&self.entry(&inodes, *ino)),
            None => reply.entry_absent(FOREVER),
        };
    }

    fn set_attr(&self, ino: u64, change: &Setattr, reply: Reply) {
        let mut inodes = self.inodes.lock();
        let Some(inode) = inodes.get_mut(&ino) else {
            return {
                reply.error(libc::ENOENT);
            };
        };
        if let Some(size) = change.size {
            inode.bytes.resize(size as usize, 0);
            inode.attr.size = size;
        }
        inode.attr.mode = change.mode.map_or(inode.attr.mode, |mode| mode);
        inode.attr.uid = change.uid.unwrap_or(inode.attr.uid);
        inode.attr.gid = change.gid.unwrap_or(inode.attr.gid);
        for (field, time) in
            [(&mut inode.attr.atime, change.atime), (&mut inode.attr.mtime, change.mtime)]
        {
            match time {
                Some(SetTime::At(at)) => *field = at,
                Some(SetTime::Now) => *field = Timestamp { seconds: 1, nanoseconds: 0 },
                None => {}
            }
        }
        reply.attr(&inode.attr, FOREVER);
    }

    fn write(&self, ino: u64, write: Write<'_>, reply: Reply) {
        let bytes = write.payload.take();
        self.record(|record| {
            record.write_sizes.push(bytes.len());
            record.write_misaligned += usize::from(!(bytes.as_ptr() as usize).is_multiple_of(PAGE));
        });
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&ino).unwrap();
        let end = write.offset as usize + bytes.len();
        if inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
            inode.attr.size = end as u64;
        }
        inode.bytes[write.offset as usize..end].copy_from_slice(&bytes);
        reply.written(bytes.len() as u32);
    }

    fn list_plus(&self, ino: u64, read: &ReadDirectory, reply: Reply) {
        self.record(|record| record.readdirplus += 1);
        let inodes = self.inodes.lock();
        let mut buffer = DirectoryPlusBuffer::new(read.size);
        for (index, (name, child)) in inodes[&ino].names.iter().enumerate() {
            let next_offset = index as u64 + 1;
            if next_offset <= read.offset {
                continue;
            }
            let entry = self.entry(&inodes, *child);
            let mode = entry.attr.mode;
            let listed = DirectoryEntry { ino: *child, next_offset, mode, name };
            if buffer.push(&listed, Some(&entry)) == Fit::Full {
                break;
            }
        }
        reply.directory(&buffer);
    }

    fn lock(self: &Arc<Self>, lock: LockRequest, reply: Reply) {
        let (fs, cancel) = (Arc::clone(self), reply.cancel());
        self.record(|record| record.lock_waits.push(lock));
        cancel.on_cancel(move |reason| {
            let outcome = reply.error(libc::EINTR);
            fs.record(|record| record.cancelled.push((reason, outcome)));
        });
    }

    fn xattr(&self, ino: u64, op: &Op<'_>, reply: Reply) {
        let mut inodes = self.inodes.lock();
        let xattrs = &mut inodes.get_mut(&ino).unwrap().xattrs;
        match *op {
            Op::Setxattr { name, value, .. } => {
                xattrs.insert(name.to_vec(), value.to_vec());
                reply.ok();
            }
            Op::Getxattr { name, size } => match xattrs.get(name) {
                Some(value) => {
                    reply.xattr(size, value);
                }
                None => {
                    reply.error(libc::ENODATA);
                }
            },
            Op::Listxattr { size } => {
                let names: Vec<_> = xattrs.keys().map(|name| [name, &b"\0"[..]].concat()).collect();
                reply.xattr(size, &names.concat());
            }
            _ => {
                reply.error(libc::ENOTSUP);
            }
        }
    }
}

/// The handler given to the session; the filesystem itself is shared with the test.
pub struct Served(pub Arc<MemFs>);

impl Handler for Served {
    fn init(&self, offer: &KernelOffer) -> InitReply {
        InitReply::network(offer)
    }

    fn handle(&self, request: Request<'_>, reply: Reply) {
        let fs = &self.0;
        let ino = request.node.0;
        match request.op {
            Op::Lookup { name } => fs.lookup(&request, name, reply),
            Op::Getattr { .. } => {
                reply.attr(&fs.inodes.lock()[&ino].attr, FOREVER);
            }
            Op::Setattr(change) => fs.set_attr(ino, &change, reply),
            Op::Create { name, mode, umask, .. } => {
                fs.record(|record| record.umasks.push(umask));
                match fs.add(&request, name, mode) {
                    Ok(entry) => reply.create(&entry, &Opened::default()),
                    Err(errno) => reply.error(errno),
                };
            }
            Op::Tmpfile { mode, .. } => {
                match fs.add(&request, b"", mode) {
                    Ok(entry) => reply.create(&entry, &Opened::default()),
                    Err(errno) => reply.error(errno),
                };
            }
            Op::Mkdir { name, mode, .. } => {
                match fs.add(&request, name, mode | libc::S_IFDIR) {
                    Ok(entry) => reply.entry(&entry),
                    Err(errno) => reply.error(errno),
                };
            }
            Op::Symlink { name, target } => {
                match fs.add(&request, name, libc::S_IFLNK | 0o777) {
                    Ok(entry) => {
                        fs.overwrite(entry.node.0, target);
                        reply.entry(&entry)
                    }
                    Err(errno) => reply.error(errno),
                };
            }
            Op::Readlink => {
                reply.bytes(&fs.inodes.lock()[&ino].bytes);
            }
            Op::Rename { name, new_parent, new_name, .. } => {
                let mut inodes = fs.inodes.lock();
                let moved = inodes.get_mut(&ino).unwrap().names.remove(name).unwrap();
                inodes.get_mut(&new_parent.0).unwrap().names.insert(new_name.to_vec(), moved);
                reply.ok();
            }
            Op::Unlink { name } | Op::Rmdir { name } => {
                fs.inodes.lock().get_mut(&ino).unwrap().names.remove(name);
                reply.ok();
            }
            Op::Open { .. } => {
                let flags = OpenFlags::KEEP_CACHE;
                reply.open(&Opened { handle: Handle(ino), flags });
            }
            Op::Opendir { .. } => {
                reply.open(&Opened::default());
            }
            Op::Read(read) => {
                let inodes = fs.inodes.lock();
                let bytes = &inodes[&ino].bytes;
                let start = bytes.len().min(read.offset as usize);
                let end = bytes.len().min(start + read.size as usize);
                let (first, second) = bytes[start..end].split_at((end - start) / 2);
                let slices = [first, second].map(std::io::IoSlice::new);
                reply.bytes_vectored(&slices);
            }
            Op::Write(write) => fs.write(ino, write, reply),
            Op::Readdirplus(read) => fs.list_plus(ino, &read, reply),
            Op::Setlkw(lock) => fs.lock(lock, reply),
            Op::Setlk(lock) => {
                fs.record(|record| record.locks.push(lock));
                reply.ok();
            }
            Op::Getlk(lock) => {
                reply.lock(Some(&lock.lock));
            }
            Op::Statfs => {
                let statfs =
                    Statfs { block_size: 4096, blocks: 7, name_max: 255, ..Default::default() };
                reply.statfs(&statfs);
            }
            Op::Syncfs => {
                fs.record(|record| record.syncfs += 1);
                reply.ok();
            }
            Op::Release(_) => {
                fs.record(|record| record.released += 1);
                reply.ok();
            }
            Op::Flush { .. } | Op::Fsync { .. } | Op::Releasedir { .. } => {
                reply.ok();
            }
            Op::Lseek { offset, .. } => {
                reply.lseek(offset + 5);
            }
            Op::CopyFileRange(copy) => {
                reply.copied(copy.length);
            }
            Op::Setxattr { .. } | Op::Getxattr { .. } | Op::Listxattr { .. } => {
                fs.xattr(ino, &request.op, reply)
            }
            Op::Statx { .. } => {
                let attr = fs.inodes.lock()[&ino].attr;
                let btime = Some(Timestamp { seconds: 77, nanoseconds: 0 });
                let attr = ExtendedAttr { attr, btime, attributes: 0, attributes_known: 0 };
                reply.statx(&attr, FOREVER);
            }
            Op::Ioctl(_) => {
                reply.error(libc::ENOTTY);
            }
            _ => {
                reply.error(libc::ENOSYS);
            }
        }
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        self.0.record(|record| *record.forgotten.entry(node.0).or_default() += lookups);
    }

    fn destroy(&self) {
        self.0.record(|record| record.destroyed += 1);
    }
}

/// An empty directory to mount at, unmounted by force and removed when dropped. Nobody else sees
/// what is mounted there.
pub struct Mountpoint(PathBuf);

impl Mountpoint {
    pub fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-fuse-{}-{serial}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        namespace::enter(Mount::is_fuse).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        while unmount(&self.0, Unmount::Force).is_ok() {}
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A mounted [`MemFs`]. The mountpoint goes first, which releases whoever still waits.
pub struct Mounted {
    pub at: Mountpoint,
    pub fs: Arc<MemFs>,
    pub session: Session,
}

impl Mounted {
    pub fn new() -> Self {
        Self::with(Config { deadline: Duration::from_secs(3600), ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        Self::of(Source::Name("memory".to_owned()), config)
    }

    pub fn of(source: Source, config: Config) -> Self {
        let at = Mountpoint::new();
        let fs = Arc::new(MemFs::default());
        let device = mount(at.path(), &MountOptions::new(source, "gabion")).unwrap();
        let session = Session::start(device, Served(Arc::clone(&fs)), config).unwrap();
        Self { at, fs, session }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }
}
