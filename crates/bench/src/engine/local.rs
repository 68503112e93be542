//! A local filesystem without the kernel: the calls that the mount's front end makes.

use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use gabion_base::disk::Disk;
use gabion_base::ids::Uuid;
use gabion_base::time::Timestamp;
use gabion_fs::{Access, Caller, Error, Groups, IfExists, OpenRequest, Privileges, Trust, WriteAt};
use gabion_host::clock;
use gabion_host::file_disk::{FileDisk, OpenMode as DiskMode};
use gabion_map::open::FormatOptions;
use gabion_map::{FileId, Limits, OpenMode, Payload};
use gabion_node::{Clock, LocalFs, Settings, format_filesystem};

use super::Subject;

/// Memory of the map, in bytes: the default of a mount.
const MEMORY: u64 = 192 << 20;

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        clock::coarse_now()
    }

    fn monotonic(&self) -> Duration {
        clock::monotonic()
    }
}

/// What a mount does in the background.
#[derive(Clone, Copy)]
enum Loop {
    Commit,
    Reap,
}

impl Loop {
    fn run(self, fs: &LocalFs) {
        let report = |error: &Error| eprintln!("in the background: {error}");
        match self {
            Self::Commit => fs.keep_committed(&report),
            Self::Reap => fs.keep_reaped(&report),
        }
    }
}

/// A filesystem on an image, with its threads in the background. Dropping it ends those.
pub struct Local {
    fs: Arc<LocalFs>,
    caller: Caller,
    background: Vec<JoinHandle<()>>,
}

impl Local {
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
        let wrong = |error| anyhow!("{error}");
        format_filesystem(Arc::clone(&disk), &options).map_err(wrong)?;
        let (mode, limits) = (OpenMode::ReadWrite, Limits::within(MEMORY));
        let (settings, clock) = (Settings::default(), Arc::new(SystemClock));
        let fs = Arc::new(LocalFs::open(disk, mode, limits, settings, clock).map_err(wrong)?);
        let background = [Loop::Commit, Loop::Reap].map(|work| {
            let fs = Arc::clone(&fs);
            thread::spawn(move || work.run(&fs))
        });
        let background = background.into();
        let trust = Trust::CheckedByKernel;
        let caller = Caller { uid: 0, gid: 0, groups: Groups::default(), umask: 0o022, trust };
        Ok(Self { fs, caller, background })
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.fs.end_background();
        for thread in self.background.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Subject for Local {
    type Directory = FileId;
    type File = FileId;

    fn make_directory(&self, name: &str) -> Result<FileId> {
        let made = self.fs.mkdir(&self.caller, self.fs.root(), name.as_bytes(), 0o755);
        made.map(|made| made.file).map_err(|error| anyhow!("{error}"))
    }

    fn create(&self, directory: &FileId, name: &str) -> Result<FileId> {
        let (name, mode) = (name.as_bytes(), IfExists::Fail);
        let request = OpenRequest { access: Access::READ | Access::WRITE, truncate: None };
        let made = self.fs.create(&self.caller, *directory, name, 0o644, mode, &request);
        made.map(|(made, _)| made.file).map_err(|error| anyhow!("{error}"))
    }

    fn close(&self, file: FileId) {
        self.fs.release(file);
        self.fs.forget(file, 1);
    }

    fn write(&self, file: &FileId, offset: u64, block: &[u8]) -> Result<()> {
        let (at, payload) = (WriteAt::Offset(offset), Payload::Copied(block));
        let written = self.fs.write(&self.caller, *file, at, &payload, Privileges::Keep);
        written.map(drop).map_err(|error| anyhow!("{error}"))
    }

    fn lookup(&self, directory: &FileId, name: &str) -> Result<()> {
        let found = self.fs.lookup(&self.caller, *directory, name.as_bytes());
        let found = found.map_err(|error| anyhow!("{error}"))?;
        self.fs.forget(found.file, 1);
        Ok(())
    }

    fn unlink(&self, directory: &FileId, name: &str) -> Result<()> {
        let removed = self.fs.unlink(&self.caller, *directory, name.as_bytes());
        removed.map_err(|error| anyhow!("{error}"))
    }

    fn sync(&self) -> Result<()> {
        self.fs.syncfs().map_err(|error| anyhow!("{error}"))
    }
}
