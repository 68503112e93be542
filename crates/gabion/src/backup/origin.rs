//! Where a filesystem's snapshots are made, held and compared: at the daemon of its mount, or in
//! the map of what nobody has in use.
//!
//! Each backup has a snapshot of its own, whose name says which place it went to and which stream
//! it is: `backup-PLACE-STREAM`. It is held when the stream is complete, and then the next one to
//! that place can begin there. So a snapshot that is not held is one of a backup that did not end;
//! if it is locked, that is under way.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gabion_backup::StreamId;
use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_base::ids::{SubvolId, Uuid};
use gabion_fuse::mountinfo::Mount;
use gabion_host::file_disk::{FileDisk, OpenMode};
use gabion_map::Limits;
use gabion_map::removal::Removing;
use gabion_node::{Delta, LocalFs, Settings};
use gabion_volume::volume::Volume;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{beside, delta};
use crate::cmd::status::{Subject, User};
use crate::control::wire::{Reply, Request, Snapshot, SnapshotAction, Status, SubvolumeAction};
use crate::failure::{Failure, Result};
use crate::locations::Location;
use crate::mount::SystemClock;
use crate::mounts;
use crate::snapshots;
use crate::target::not_opened;
use crate::volumes::{self, Place};

/// How long a daemon may take: as long as a commit with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(600);
/// Memory to work on what is not mounted, in bytes.
const MEMORY: u64 = 128 << 20;

/// A filesystem that is to be saved.
pub enum Origin {
    /// Its mount's daemon does it.
    Mounted {
        /// The mount.
        mount: Box<Mount>,
        /// The subvolume, from the root of the filesystem.
        within: String,
        /// The same as a path here.
        dir: PathBuf,
    },
    /// Nobody has it in use, but this.
    Stored {
        /// It.
        fs: Box<LocalFs>,
        /// The subvolume.
        of: SubvolId,
        /// The volume that it is on.
        volume: Option<Arc<Volume>>,
        /// What people call it.
        name: String,
    },
}

/// The name of the snapshot of a stream.
pub fn snapshot_name(place: &str, stream: StreamId) -> String {
    format!("{}{stream}", prefix(place))
}

fn prefix(place: &str) -> String {
    format!("backup-{place}-")
}

impl Origin {
    /// What the command line means: a filesystem, in use or not, or a subvolume of one.
    pub fn open(subject: &Path) -> Result<Self> {
        let Location { filesystem, path } = Location::of(subject)?;
        match filesystem {
            Subject::InUse(User::Mount(mount)) => {
                let dir = match path.as_str() {
                    "" => mount.mountpoint.clone(),
                    within => mount.mountpoint.join(within),
                };
                Ok(Self::Mounted { mount: Box::new(mount), within: path, dir })
            }
            Subject::InUse(User::Server { name, .. }) => {
                Err(Failure::new(format!("{name} is served and not mounted here"))
                    .next("Stop serving it, or save it where a mount of it can make snapshots."))
            }
            Subject::Target(place) => Self::open_target(&place, &path),
        }
    }

    fn open_target(place: &Place, path: &str) -> Result<Self> {
        let target = &place.path;
        let name = place.name();
        let volume = match &place.volume {
            Some(volume) => {
                let surroundings = volumes::surroundings(None, "gabion backup")?;
                Some(Arc::new(volumes::open(volume, &surroundings)?))
            }
            None => None,
        };
        let disk: Arc<dyn Disk> =
            match &volume {
                Some(volume) => Arc::clone(volume) as Arc<dyn Disk>,
                None => {
                    let disk = FileDisk::open(target, OpenMode::ReadWrite);
                    Arc::new(disk.map_err(|error| {
                        not_opened(&format!("cannot open {name}"), target, &error)
                    })?)
                }
            };
        let limits = Limits::within(MEMORY);
        let settings = Settings::default();
        let mode = gabion_map::OpenMode::ReadWrite;
        let fs = LocalFs::open(disk, mode, limits, settings, Arc::new(SystemClock));
        let fs = fs.map_err(|error| Failure::of(format!("cannot open {name}"), &error))?;
        let of = snapshots::find_subvolume(&fs, path);
        let of = of.map_err(|message| Failure::new(format!("{name}: {message}")))?;
        let name = if path.is_empty() { name } else { format!("{name}:/{path}") };
        Ok(Self::Stored { fs: Box::new(fs), of, volume, name })
    }

    /// What people call it.
    pub fn name(&self) -> String {
        match self {
            Self::Mounted { dir, .. } => dir.display().to_string(),
            Self::Stored { name, .. } => name.clone(),
        }
    }

    /// Its identity, and the bytes that are in use in it.
    pub fn identity(&self) -> Result<([u8; 16], u64)> {
        match self {
            Self::Stored { fs, .. } => {
                let used = fs.space().used.saturating_mul(BLOCK_SIZE as u64);
                Ok((fs.map().superblock().uuid.0, used))
            }
            Self::Mounted { .. } => {
                let Status { uuid, used_bytes, .. } = *self.status()?;
                let uuid = Uuid::parse(&uuid);
                let uuid = uuid.ok_or_else(|| Failure::new("the daemon names no identity"))?;
                Ok((uuid.0, used_bytes))
            }
        }
    }

    /// What the daemon tells of it.
    fn status(&self) -> Result<Box<Status>> {
        match self.ask(Request::Status)?.pop() {
            Some(Reply::Status(status)) => Ok(status),
            other => Err(unexpected(other)),
        }
    }

    /// The snapshot `name`, past the mount, if it is one and that can be; and the snapshot `base`
    /// there, if it has it.
    pub fn beside(&self, name: &str, base: Option<&str>) -> Option<(LocalFs, Option<SubvolId>)> {
        let Self::Mounted { .. } = self else { return None };
        let snapshots = self.list().ok()?;
        let find = |name: &str| snapshots.iter().find(|snapshot| snapshot.name == name);
        let fs = beside::open(&*self.status().ok()?, find(name)?)?;
        let base = base.and_then(find).filter(|base| beside::is_there(&fs, base));
        let base = base.map(|base| SubvolId(base.id));
        Some((fs, base))
    }

    fn ask(&self, request: Request) -> Result<Vec<Reply>> {
        let Self::Mounted { mount, .. } = self else { return Ok(Vec::new()) };
        let user = User::Mount((**mount).clone());
        let ask = || -> io::Result<Vec<Reply>> {
            let mut connection = user.connect()?;
            connection.ask(request, PATIENCE)?;
            let mut replies = Vec::new();
            loop {
                let reply = connection.reply()?;
                let goes_on = matches!(&reply, Reply::Delta(part) if part.more);
                replies.push(reply);
                if !goes_on {
                    return Ok(replies);
                }
            }
        };
        ask().map_err(|error| user.unreachable(&error))
    }

    fn act(&self, action: SnapshotAction) -> Result<Vec<Reply>> {
        let replies = match self {
            Self::Mounted { within, .. } => {
                self.ask(Request::Snapshots { path: Some(within.clone()), action })?
            }
            Self::Stored { fs, of, name, .. } => {
                let done = snapshots::act(fs.map(), name, *of, &action);
                done.map_err(|message| Failure::new(format!("{name}: {message}")))?
            }
        };
        match replies.last() {
            Some(Reply::Error { message }) => {
                Err(Failure::new(format!("{}: {message}", self.name())))
            }
            _ => Ok(replies),
        }
    }

    /// The snapshots of streams to a place, oldest first, and whether the streams are complete.
    pub fn snapshots(&self, place: &str) -> Result<Vec<(String, bool)>> {
        let prefix = prefix(place);
        let all = self.all_snapshots()?;
        Ok(all.into_iter().filter(|(name, _)| name.starts_with(&prefix)).collect())
    }

    /// All snapshots, oldest first, and whether they are held.
    pub fn all_snapshots(&self) -> Result<Vec<(String, bool)>> {
        let all = self.list()?.into_iter();
        Ok(all.map(|Snapshot { name, held, .. }| (name, held)).collect())
    }

    fn list(&self) -> Result<Vec<Snapshot>> {
        match self.act(SnapshotAction::List)?.pop() {
            Some(Reply::Snapshots(found)) => Ok(found.snapshots),
            other => Err(unexpected(other)),
        }
    }

    /// Makes a snapshot of everything that programs have written by now.
    pub fn create(&self, name: &str) -> Result<()> {
        if let Self::Mounted { dir, .. } = self {
            let synced = mounts::hand_over(dir);
            synced.map_err(|error| Failure::of(format!("cannot sync {}", self.name()), &error))?;
        }
        self.act(SnapshotAction::Create { name: name.to_owned() }).map(|_| ())
    }

    /// The subvolumes that stand in it, by their paths from its root: they are not in its
    /// snapshots. Who may not know of them is told of none.
    pub fn inner_subvolumes(&self) -> Vec<String> {
        let (own, all) = match self {
            Self::Mounted { within, .. } => {
                let action = SubvolumeAction::List;
                let replies = self.ask(Request::Subvolumes { action });
                let Some(Reply::Subvolumes(found)) = replies.ok().and_then(|mut all| all.pop())
                else {
                    return Vec::new();
                };
                let paths = found.subvolumes.into_iter().filter_map(|found| found.path);
                (format!("/{within}"), paths.collect::<Vec<_>>())
            }
            Self::Stored { fs, of, .. } => {
                let found = fs.subvolumes().unwrap_or_default();
                let text = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
                let own = found.iter().find(|(id, _)| id == of);
                let own = own.and_then(|(_, path)| path.as_ref()).map_or_else(String::new, text);
                (own, found.iter().filter_map(|(_, path)| path.as_ref()).map(text).collect())
            }
        };
        let own = Path::new(&own);
        let inner = all.iter().filter_map(|path| Path::new(path).strip_prefix(own).ok());
        let inner = inner.filter(|path| !path.as_os_str().is_empty());
        inner.map(|path| path.display().to_string().trim_start_matches('/').to_owned()).collect()
    }

    /// Tells other backups of this that a snapshot is being read, as long as the answer lives.
    /// Fails if another one says so; what nobody else has in use needs no word.
    pub fn read(&self, snapshot: &str) -> Result<Option<File>> {
        let Self::Mounted { dir, .. } = self else { return Ok(None) };
        let failed = |error: io::Error| {
            Failure::of(format!("cannot use the snapshot {snapshot} of {}", self.name()), &error)
        };
        let root = File::open(dir.join(".snapshots").join(snapshot)).map_err(failed)?;
        match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(root)),
            Err(Errno::WOULDBLOCK) => {
                Err(Failure::new(format!("another backup of {} reads {snapshot}", self.name()))
                    .next("Wait until it is done, or stop it."))
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Keeps a snapshot from being removed, and removes others that it takes the place of. Gives
    /// those that stay.
    pub fn supersede(&self, name: &str, olds: Vec<String>) -> Result<Vec<String>> {
        let any = !olds.is_empty();
        let replies = self.act(SnapshotAction::Supersede { name: name.to_owned(), olds })?;
        if any {
            self.free_removed()?;
        }
        match replies.into_iter().next() {
            Some(Reply::Snapshots(stay)) => {
                Ok(stay.snapshots.into_iter().map(|snapshot| snapshot.name).collect())
            }
            other => Err(unexpected(other)),
        }
    }

    /// Removes a snapshot, even if it is held.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.act(SnapshotAction::Release { name: name.to_owned() })?;
        self.act(SnapshotAction::Delete { names: vec![name.to_owned()] })?;
        self.free_removed()
    }

    /// Frees what removed snapshots alone had, where nobody else does.
    fn free_removed(&self) -> Result<()> {
        if let Self::Stored { fs, name, .. } = self {
            let step = || fs.map().remove_step();
            let failed = |error| Failure::of(format!("cannot remove from {name}"), &error);
            while step().map_err(failed)? == Removing::Step {}
        }
        Ok(())
    }

    /// What has changed from one snapshot to another.
    pub fn delta(&self, from: &str, to: &str) -> Result<Delta> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let mut parts = Vec::new();
        for reply in self.act(SnapshotAction::Delta { from, to })? {
            match reply {
                Reply::Delta(part) => parts.push(part),
                other => return Err(unexpected(Some(other))),
            }
        }
        delta::join(parts).ok_or_else(|| Failure::new("the daemon told a name that is none"))
    }

    /// Lets go of it.
    pub fn close(self) -> Result<()> {
        let Self::Stored { fs, volume: Some(volume), name, .. } = self else { return Ok(()) };
        drop(fs);
        volume.close().map_err(|error| Failure::of(format!("cannot close {name}"), &error))
    }
}

fn unexpected(reply: Option<Reply>) -> Failure {
    match reply {
        Some(Reply::Error { message }) => Failure::new(message),
        other => Failure::new(format!("the daemon answered {other:?}")),
    }
}
