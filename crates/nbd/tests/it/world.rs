//! Folders, servers and disks of a test, which go with it however it ends.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, MemDisk, Ticket};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;
use gabion_nbd::address::{Address, Uri};
use gabion_nbd::client::Client;
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a test rests between two looks at what it waits for: others need the processors.
pub const GLANCE: Duration = Duration::from_millis(1);

/// What a machine without the programs of others is told.
pub const NEEDED: &str = "\nneeded: apt-get install nbdkit libnbd-bin qemu-utils";

/// A disk that becomes longer, which shows when it is measured.
pub struct Growing {
    disk: MemDisk,
    is: AtomicU64,
    shown: AtomicU64,
}

impl Growing {
    /// One that has `now` blocks and later `most`.
    pub fn new(now: u64, most: u64) -> Arc<Self> {
        let (is, shown) = (AtomicU64::new(now), AtomicU64::new(now));
        Arc::new(Self { disk: MemDisk::new(most), is, shown })
    }

    pub fn grow(&self) {
        self.is.store(self.disk.blocks(), Ordering::Relaxed);
    }
}

impl Disk for Growing {
    fn name(&self) -> Arc<str> {
        "growing".into()
    }

    fn blocks(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    fn remeasure(&self) -> Result<u64, DiskError> {
        self.shown.store(self.is.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(self.blocks())
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        match request.check(&self.name(), self.blocks()) {
            Ok(()) => self.disk.submit(request),
            Err(error) => Ticket::ready(Err(error)),
        }
    }
}

/// A folder for one test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-nbd-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The export `name` at the socket of this folder.
    pub fn uri(&self, name: &str) -> Uri {
        Uri { address: self.address(), export: name.to_owned(), tls: None }
    }

    pub fn address(&self) -> Address {
        Address::Unix(self.join("socket"))
    }

    /// Serves `disk` as "disk" at the socket of this folder.
    pub fn serve(&self, disk: Arc<dyn Disk>, permission: Permission) -> Server {
        let exports = Exports::new(vec![Export::new("disk", disk, permission)]);
        Server::start(exports, vec![Listener::bind(&self.address()).unwrap()]).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Somebody else's server in the background.
pub struct Foreign {
    pidfd: OwnedFd,
    pid: Pid,
}

impl Foreign {
    /// Runs a program that goes to the background when it is ready, having written `pid`.
    #[track_caller]
    pub fn start(folder: &Folder, program: &str, arguments: &[&str]) -> Self {
        let output = Command::new(program).args(arguments).current_dir(folder.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}{NEEDED}"));
        assert!(output.status.success(), "{program}: {output:?}");
        // nbdkit listens first and writes this then.
        let pid = loop {
            match fs::read_to_string(folder.join("pid")) {
                Ok(text) if text.ends_with('\n') => break text.trim().parse().unwrap(),
                _ => std::thread::sleep(GLANCE),
            }
        };
        fs::remove_file(folder.join("pid")).unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        Self { pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap(), pid }
    }

    /// nbdkit with `arguments` at the socket of the folder.
    #[track_caller]
    pub fn nbdkit(folder: &Folder, arguments: &[&str]) -> Self {
        let own = ["-P", "pid", "-U", "socket"];
        Self::start(folder, "nbdkit", &[&own[..], arguments].concat())
    }

    pub fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).unwrap();
        // Its threads stop one after the other, and may answer until then.
        while signal == Signal::STOP && !self.is_stopped() {
            std::thread::sleep(GLANCE);
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid.as_raw_nonzero())).unwrap();
        threads.map(|thread| thread.unwrap().path().join("stat")).all(|stat| {
            let text = fs::read_to_string(stat).unwrap_or_default();
            text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// Blocks that say which they are.
pub fn pattern(addr: u64, count: usize, seed: u64) -> BlockSlice {
    let mut blocks = Blocks::zeroed(count);
    for (index, block) in blocks.bytes_mut().chunks_mut(BLOCK_SIZE).enumerate() {
        let mark = (addr + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
        for word in block.chunks_mut(8) {
            word.copy_from_slice(&mark.to_le_bytes());
        }
    }
    BlockSlice::new(blocks)
}

/// Asserts that the blocks at `addr` are those of [`pattern`].
#[track_caller]
pub fn assert_pattern(disk: &dyn Disk, addr: u64, count: usize, seed: u64) {
    let mut read = Blocks::zeroed(count);
    disk.read(BlockAddr(addr), read.bytes_mut()).unwrap();
    assert!(read.bytes() == pattern(addr, count, seed).bytes(), "{count} blocks at {addr}");
}

/// Uses everything that a disk can do, many requests at a time.
pub fn exercise(disk: &Arc<Client>) {
    let tickets: Vec<_> = (0..64)
        .map(|at| {
            let durability = if at % 3 == 0 { Durability::Fua } else { Durability::Cached };
            let parts = vec![pattern(at * 16, 15, at), pattern(at * 16 + 15, 1, at)];
            disk.submit(DiskRequest::Write { addr: BlockAddr(at * 16), parts, durability })
        })
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    disk.flush().unwrap();
    disk.submit(DiskRequest::WriteZeroes { addr: BlockAddr(16), count: 16 }).wait().unwrap();
    disk.submit(DiskRequest::Discard { addr: BlockAddr(32), count: 16 }).wait().unwrap();
    disk.flush().unwrap();
    for at in (0..64).filter(|at| *at != 1 && *at != 2) {
        assert_pattern(&**disk, at * 16, 16, at);
    }
    let mut zeros = vec![1; 16 * 4096];
    disk.read(BlockAddr(16), &mut zeros).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
}

/// A disk in memory whose unflushed writes a power cut takes.
pub struct Volatile {
    state: Mutex<Media>,
    blocks: u64,
}

struct Media {
    cache: Vec<u8>,
    stable: Vec<u8>,
    flushes: usize,
}

impl Volatile {
    pub fn new(blocks: u64) -> Arc<Self> {
        let image = vec![0; blocks as usize * BLOCK_SIZE];
        let media = Media { cache: image.clone(), stable: image, flushes: 0 };
        Arc::new(Self { state: Mutex::new(media), blocks })
    }

    pub fn cut_power(&self) {
        let media = &mut *self.state.lock();
        media.cache.copy_from_slice(&media.stable);
    }

    pub fn stable(&self) -> Vec<u8> {
        self.state.lock().stable.clone()
    }

    pub fn flushes(&self) -> usize {
        self.state.lock().flushes
    }
}

impl Disk for Volatile {
    fn name(&self) -> Arc<str> {
        "volatile".into()
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let media = &mut *self.state.lock();
        let (addr, count) = request.extent();
        let start = addr.byte_offset() as usize;
        let span = start..start + count as usize * BLOCK_SIZE;
        Ticket::ready(Ok(match request {
            DiskRequest::Read { .. } => Some(Blocks::from_bytes(&media.cache[span])),
            DiskRequest::Write { parts, durability, .. } => {
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).copied().collect();
                media.cache[span.clone()].copy_from_slice(&bytes);
                if durability == Durability::Fua {
                    media.stable[span].copy_from_slice(&bytes);
                }
                None
            }
            DiskRequest::WriteZeroes { .. } => {
                media.cache[span].fill(0);
                None
            }
            DiskRequest::Flush => {
                media.stable.copy_from_slice(&media.cache);
                media.flushes += 1;
                None
            }
            DiskRequest::Discard { .. } => None,
        }))
    }
}
