//! A filesystem on a disk in memory, and a clock that goes only when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gabion_base::disk::MemDisk;
use gabion_base::ids::Uuid;
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_fs::{Attributes, Caller, Detail, FileType, Privileges, WriteAt};
use gabion_map::open::FormatOptions;
use gabion_map::{FileId, Limits, OpenMode, Payload};
use gabion_node::{Clock, LocalFs, Settings};

pub const MIB: u64 = 1 << 20;

#[derive(Default)]
pub struct TestClock {
    seconds: Mutex<u64>,
    looks: AtomicU64,
}

impl TestClock {
    pub fn advance(&self, seconds: u64) {
        *self.seconds.lock() += seconds;
    }

    /// How often somebody has looked how much time has passed.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::new(1_700_000_000 + *self.seconds.lock() as i64, 0)
    }

    fn monotonic(&self) -> Duration {
        self.looks.fetch_add(1, Ordering::SeqCst);
        Duration::from_secs(*self.seconds.lock())
    }
}

pub struct World {
    pub disk: Arc<MemDisk>,
    pub clock: Arc<TestClock>,
    pub fs: Arc<LocalFs>,
    pub caller: Caller,
}

impl World {
    /// A new filesystem of `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        let disk = Arc::new(MemDisk::new(bytes / 4096));
        let options = FormatOptions {
            uuid: Uuid::from_random([5; 16]),
            label: "test".to_owned(),
            name_seed: 42,
            created: 1_600_000_000,
            blocks: None,
        };
        gabion_node::format_filesystem(disk.clone(), &options).unwrap();
        Self::open(disk, OpenMode::ReadWrite)
    }

    pub fn open(disk: Arc<MemDisk>, mode: OpenMode) -> Self {
        Self::open_with(disk, mode, Settings::default())
    }

    pub fn open_with(disk: Arc<MemDisk>, mode: OpenMode, settings: Settings) -> Self {
        let clock = Arc::new(TestClock::default());
        let limits = Limits::within(32 << 20);
        let fs = LocalFs::open(disk.clone(), mode, limits, settings, clock.clone());
        Self { disk, clock, fs: Arc::new(fs.unwrap()), caller: Caller::superuser() }
    }

    /// What a crash at this moment leaves, opened anew.
    pub fn after_crash(&self, mode: OpenMode) -> Self {
        Self::open(Arc::new(MemDisk::from_image(self.disk.image())), mode)
    }

    pub fn root(&self) -> FileId {
        self.fs.root()
    }

    /// A new file of which one lookup is counted.
    pub fn file(&self, name: &str, content: &[u8]) -> FileId {
        let made =
            self.fs.mknod(&self.caller, self.root(), name.as_bytes(), FileType::Regular, 0o644, 0);
        let file = made.unwrap().file;
        self.write(file, 0, content);
        file
    }

    pub fn write(&self, file: FileId, offset: u64, content: &[u8]) {
        let payload = Payload::Copied(content);
        let at = WriteAt::Offset(offset);
        let written = self.fs.write(&self.caller, file, at, &payload, Privileges::Keep).unwrap();
        assert_eq!(written.length, content.len());
    }

    pub fn read(&self, file: FileId) -> Vec<u8> {
        let size = self.fs.stat(file).unwrap().size as usize;
        let mut content = vec![0; size + 1];
        let count = self.fs.read(file, 0, &mut content).unwrap();
        self.fs.record_reading(file);
        content.truncate(count);
        content
    }

    pub fn lookup(&self, name: &str) -> gabion_fs::Result<Attributes> {
        self.fs.lookup(&self.caller, self.root(), name.as_bytes())
    }

    pub fn unlink(&self, name: &str) {
        self.fs.unlink(&self.caller, self.root(), name.as_bytes()).unwrap();
    }

    pub fn names(&self) -> Vec<String> {
        let listing = self.fs.readdir(self.root(), 0, 1000, Detail::Names).unwrap();
        assert!(listing.is_complete);
        let names = listing.entries.iter().skip(2);
        names.map(|entry| String::from_utf8_lossy(entry.name()).into_owned()).collect()
    }

    /// Reaps as long as there is anything; how many steps that took.
    pub fn reap(&self) -> usize {
        let mut steps = 0;
        while self.fs.reap_step().unwrap() == gabion_node::Reaped::Part {
            steps += 1;
            assert!(steps < 10_000, "reaping does not end");
        }
        steps
    }
}
