//! The rules of files on the map, as a local mount uses them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use gabion_base::disk::Disk;
use gabion_base::ids::{SubvolId, Uuid};
use gabion_fs::{
    Caller, Context, Error, Groups, IfExists, OpenRequest, OpenState, Privileges, ROOT, Trust,
    WriteAt,
};
use gabion_host::clock;
use gabion_host::file_disk::{FileDisk, OpenMode as DiskMode};
use gabion_map::open::{FormatOptions, format};
use gabion_map::{FileId, Limits, LocalMap, LocalTxn, OpenMode, Payload};

use super::Subject;

/// Memory of the map, in bytes: the default of a mount.
const MEMORY: u64 = 192 << 20;
/// Between commits that nothing else asks for.
const COMMIT: Duration = Duration::from_secs(5);

/// A filesystem on an image, with its thread in the background. Dropping it ends that.
pub struct Engine {
    map: Arc<LocalMap>,
    subvol: SubvolId,
    seed: u64,
    stopping: Arc<AtomicBool>,
    background: Option<JoinHandle<()>>,
}

impl Engine {
    /// Makes a filesystem on the image and opens it.
    pub fn open(image: &Path) -> Result<Self> {
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(image, DiskMode::ReadWrite)?);
        let options = FormatOptions {
            uuid: Uuid([7; 16]),
            label: "bench".to_owned(),
            name_seed: 0x5eed,
            created: clock::now().seconds,
            blocks: None,
        };
        format(&disk, &options)?;
        let map = LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(MEMORY))?;
        let map = Arc::new(map);
        let subvol = map.create_subvolume()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let background = {
            let (map, stopping) = (Arc::clone(&map), Arc::clone(&stopping));
            std::thread::spawn(move || work_in_background(&map, &stopping))
        };
        let seed = map.name_seed();
        let engine = Self { map, subvol, seed, stopping, background: Some(background) };
        let ctx = engine.context();
        engine.run(|txn| gabion_fs::format_root(txn, &ctx, subvol, 0o755))?;
        Ok(engine)
    }

    fn context(&self) -> Context {
        let trust = Trust::CheckedByKernel;
        let caller = Caller { uid: 0, gid: 0, groups: Groups::default(), umask: 0o022, trust };
        Context { seed: self.seed, now: clock::coarse_now(), caller }
    }

    fn run<T>(&self, operation: impl FnMut(&mut LocalTxn<'_>) -> Result<T, Error>) -> Result<T> {
        self.map.transact(operation).map_err(|error| anyhow!("{error}"))
    }
}

/// What a mount's background thread does.
fn work_in_background(map: &LocalMap, stopping: &AtomicBool) {
    let mut last = Instant::now();
    while !stopping.load(Ordering::Acquire) {
        let pressure = map.wait_for_pressure(COMMIT.saturating_sub(last.elapsed()));
        if pressure.writeback {
            map.write_back_some().expect("a benchmark's image can be written");
        }
        if pressure.commit || last.elapsed() >= COMMIT {
            map.commit().expect("a benchmark's image can be written");
            last = Instant::now();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.map.wake();
        if let Some(background) = self.background.take() {
            let _ = background.join();
        }
    }
}

impl Subject for Engine {
    type Directory = FileId;
    type File = FileId;

    fn make_directory(&self, name: &str) -> Result<FileId> {
        let (ctx, root) = (self.context(), FileId::new(self.subvol, ROOT));
        Ok(self.run(|txn| gabion_fs::mkdir(txn, &ctx, root, name.as_bytes(), 0o755))?.file)
    }

    fn create(&self, directory: &FileId, name: &str) -> Result<FileId> {
        let (ctx, parent, name) = (self.context(), *directory, name.as_bytes());
        let (mode, request) = (IfExists::Fail, OpenRequest::READ);
        let made =
            self.run(|txn| gabion_fs::create(txn, &ctx, parent, name, 0o644, mode, &request))?;
        Ok(made.0.file)
    }

    fn write(&self, file: &FileId, offset: u64, block: &[u8]) -> Result<()> {
        let (ctx, at) = (self.context(), WriteAt::Offset(offset));
        self.run(|txn| {
            let payload = Payload::Copied(block);
            gabion_fs::write(txn, &ctx, *file, at, payload, Privileges::Keep)
        })?;
        Ok(())
    }

    fn lookup(&self, directory: &FileId, name: &str) -> Result<()> {
        let ctx = self.context();
        self.run(|txn| gabion_fs::lookup(txn, &ctx, *directory, name.as_bytes()))?;
        Ok(())
    }

    fn unlink(&self, directory: &FileId, name: &str) -> Result<()> {
        let (ctx, nobody) = (self.context(), |_| OpenState::Closed);
        self.run(|txn| gabion_fs::unlink(txn, &ctx, *directory, name.as_bytes(), &nobody))?;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.map.sync().map_err(|error| anyhow!("{error}"))
    }
}
