//! A filesystem in an image, mounted in this process, for tests of the front end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use gabion::mount::{Coherence, Locking, MountRequest, Mounted, SystemClock, WritePolicy};
use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::disk::Disk;
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_fuse::mount::{Source, Unmount};
use gabion_host::file_disk::{Claim, FileDisk, OpenMode as DiskMode, OpenOptions, create_image};
use gabion_host::loop_device::{LoopAccess, LoopDevice};
use gabion_map::open::FormatOptions;
use gabion_map::{Limits, OpenMode};
use gabion_node::{Filesystem, LocalFs, Settings};

use crate::world::Folder;

const IMAGE_BYTES: u64 = 256 << 20;
const MEMORY: u64 = 64 << 20;
/// Blocks of an image that are copied at once.
const COPIED_BLOCKS: usize = 256;
/// What most of them are.
static ZEROS: [u8; COPIED_BLOCKS * BLOCK_SIZE] = [0; COPIED_BLOCKS * BLOCK_SIZE];
/// Tells the test program that it is to be a process of a test.
const ROLE: &str = "GABION_TEST_ROLE";

/// How a test wants its mount.
#[derive(Clone, Copy)]
pub struct Kind {
    pub coherence: Coherence,
    pub writes: WritePolicy,
    pub locking: Locking,
    /// Whether the mount is made over a block device.
    pub block_device: bool,
}

pub const USUAL: Kind = Kind {
    coherence: Coherence::Alone,
    writes: WritePolicy::Through,
    locking: Locking::Kernel,
    block_device: false,
};
pub const BACK: Kind = Kind { writes: WritePolicy::Back, ..USUAL };
pub const LOCKS: Kind = Kind { locking: Locking::Filesystem, ..USUAL };
/// The policies are those that must give way.
pub const SHARED: Kind = Kind { coherence: Coherence::Shared, writes: WritePolicy::Back, ..USUAL };
pub const BLOCK_DEVICE: Kind = Kind { block_device: true, ..USUAL };

/// What is mounted for a local filesystem.
type Serve = Box<dyn Fn(Arc<LocalFs>) -> Arc<dyn Filesystem>>;

/// A mounted filesystem. Nothing is committed unless somebody asks for it.
pub struct World {
    // In the order in which they have to go.
    pub mounted: Option<Mounted>,
    fs: Option<Arc<LocalFs>>,
    device: Option<LoopDevice>,
    pub folder: Folder,
    kind: Kind,
    serve: Serve,
}

impl World {
    /// A new filesystem; `None` where mounting is not possible.
    pub fn new(kind: Kind) -> Option<Self> {
        Self::serving(kind, Box::new(|fs| fs))
    }

    /// A new filesystem, which `serve` stands before.
    pub fn serving(kind: Kind, serve: Serve) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        let image = folder.join("image");
        create_image(&image, IMAGE_BYTES).unwrap();
        let options = FormatOptions {
            uuid: Uuid::from_random([9; 16]),
            label: "mount".to_owned(),
            name_seed: 1234,
            created: 1_700_000_000,
            blocks: None,
        };
        let disk = FileDisk::open(&image, DiskMode::ReadWrite).unwrap();
        gabion_node::format_filesystem(Arc::new(disk), &options).unwrap();
        fs::create_dir(folder.join("mnt")).unwrap();
        let mut world = Self { mounted: None, fs: None, device: None, folder, kind, serve };
        world.mount();
        Some(world)
    }

    fn mount(&mut self) {
        let mut options = OpenOptions::new(DiskMode::ReadWrite);
        let (disk, source) = if self.kind.block_device {
            let device = LoopDevice::attach(&self.image(), LoopAccess::ReadWrite).unwrap();
            options.claim = Claim::Shared;
            let path = device.path().to_owned();
            let disk = FileDisk::open_with(&path, options).unwrap();
            self.device = Some(device);
            (disk, Source::BlockDevice { path, block_size: 4096 })
        } else {
            let disk = FileDisk::open_with(&self.image(), options).unwrap();
            (disk, Source::Name("test".to_owned()))
        };
        let settings =
            Settings { commit_interval: Duration::from_secs(100_000), ..Settings::default() };
        let fs = Arc::new(open(disk, OpenMode::ReadWrite, settings));
        let mut request = MountRequest::new(self.folder.join("mnt"), source);
        request.coherence = self.kind.coherence;
        request.writes = self.kind.writes;
        request.locking = self.kind.locking;
        self.mounted = Some(Mounted::start((self.serve)(fs.clone()), &request).unwrap());
        self.fs = Some(fs);
    }

    pub fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join("mnt").join(name)
    }

    pub fn fs(&self) -> &LocalFs {
        self.fs.as_ref().unwrap()
    }

    /// Unmounts, as umount(8) does, and waits for the end.
    pub fn unmount(&mut self) {
        let mounted = self.mounted.take().unwrap();
        mounted.unmount(Unmount::Plain).unwrap();
        mounted.wait().unwrap();
        drop(mounted);
        self.fs = None;
        if let Some(device) = self.device.take() {
            device.detach().unwrap();
        }
    }

    /// All caches are gone after this.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// What a crash of this moment would leave: a copy of the image, opened to read. What goes on
    /// in the background, such as a commit, comes to its end before.
    pub fn after_crash(&self) -> LocalFs {
        let copy = self.folder.join("copy");
        // Past the page cache, which need not notice what is written past it meanwhile.
        let disk = FileDisk::open(&self.image(), DiskMode::ReadOnlyShared).unwrap();
        // A copy is one of a moment only if nothing was written while it was made.
        let mut seen = copy_disk(&disk, &copy);
        loop {
            let again = copy_disk(&disk, &copy);
            if again == seen {
                break;
            }
            seen = again;
        }
        let disk = FileDisk::open(&copy, DiskMode::ReadOnly).unwrap();
        open(disk, OpenMode::ReadOnly, Settings::default())
    }
}

/// Copies a disk into a file, and tells what by checksums.
fn copy_disk(disk: &FileDisk, copy: &Path) -> Vec<(u64, u64)> {
    let file = fs::File::create(copy).unwrap();
    file.set_len(disk.blocks() * BLOCK_SIZE as u64).unwrap();
    let mut blocks = Blocks::zeroed(COPIED_BLOCKS);
    let mut sums = Vec::new();
    for from in (0..disk.blocks()).step_by(COPIED_BLOCKS) {
        let count = COPIED_BLOCKS.min((disk.blocks() - from) as usize);
        let bytes = &mut blocks.bytes_mut()[..count * BLOCK_SIZE];
        disk.read(BlockAddr(from), bytes).unwrap();
        if *bytes != ZEROS[..bytes.len()] {
            file.write_all_at(bytes, from * BLOCK_SIZE as u64).unwrap();
            sums.push((from, gabion_base::checksum::crc64(bytes)));
        }
    }
    sums
}

fn open(disk: FileDisk, mode: OpenMode, settings: Settings) -> LocalFs {
    let limits = Limits::within(MEMORY);
    LocalFs::open(Arc::new(disk), mode, limits, settings, Arc::new(SystemClock)).unwrap()
}

/// A process of a test: this program once more, running what [`crate::mount_locks`] does in that
/// role. It is killed with the test.
pub struct Role {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Role {
    pub fn start(role: &str, file: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mount_locks::in_a_role", "--nocapture"])
            .env(ROLE, format!("{role}:{}", file.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The role of this process and its file, if it has one.
    pub fn own() -> Option<(String, PathBuf)> {
        let role = std::env::var(ROLE).ok()?;
        let (role, file) = role.split_once(':')?;
        Some((role.to_owned(), file.into()))
    }

    /// Waits until the process says `word`.
    #[track_caller]
    pub fn expect(&mut self, word: &str) {
        let found = self.lines.any(|line| line.unwrap().ends_with(&format!("role: {word}")));
        assert!(found, "the process ended without saying {word:?}");
    }

    pub fn say(word: &str) {
        println!("role: {word}");
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets the process go on, which waits for its input's end, and waits for its end.
    pub fn finish(&mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
