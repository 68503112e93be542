//! What a mounted or served filesystem is on: an image file, a device, or a volume.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::disk::{Disk, DiskError};
use gabion_host::file_disk::{Claim, FileDisk, Kind, OpenError, OpenMode, OpenOptions};
use gabion_map::Limits;
use gabion_node::LocalFs;
use gabion_volume::volume::Volume;

use crate::clients;
use crate::failure::{Failure, Result};
use crate::mount::SystemClock;
use crate::mounts;
use crate::options::{Access, Settings};
use crate::patience;
use crate::target::not_opened;
use crate::volumes::{self, Place};

/// How long to wait for another daemon that is about to release the disk.
const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for that without saying so.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long a disk may be in use by somebody who cannot be seen, and how often that is looked at.
const UNSEEN_PATIENCE: Duration = Duration::from_secs(2);
const UNSEEN_GLANCE: Duration = Duration::from_millis(20);

/// What a filesystem is on.
#[derive(Clone)]
pub enum Storage {
    /// An image file or a device.
    File(Arc<FileDisk>),
    /// A volume.
    Volume(Arc<Volume>),
}

impl Storage {
    /// Opens what is at `place`, to `act` with it: "mount", "serve".
    pub fn open(place: &Place, settings: &Settings, act: &str) -> Result<Self> {
        match &place.volume {
            None => Ok(Self::File(Arc::new(open_disk(&place.path, settings, act)?))),
            Some(name) => {
                let surroundings = volumes::surroundings(None, &format!("gabion {act}"))?;
                Self::of_volume(place, volumes::open(name, &surroundings)?)
            }
        }
    }

    /// A volume that is open, and is at `place`.
    pub fn of_volume(place: &Place, volume: Volume) -> Result<Self> {
        // It stands for the volume, also in what lsblk and df show.
        let stand_in = std::fs::File::options().write(true).open(&place.path);
        stand_in
            .and_then(|file| file.set_len(volumes::bytes(&volume)))
            .map_err(|error| Failure::of(format!("cannot use {}", volume.name()), &error))?;
        Ok(Self::Volume(Arc::new(volume)))
    }

    /// Its blocks.
    pub fn disk(&self) -> Arc<dyn Disk> {
        match self {
            Self::File(disk) => Arc::clone(disk) as Arc<dyn Disk>,
            Self::Volume(volume) => Arc::clone(volume) as Arc<dyn Disk>,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::File(disk) => disk.kind(),
            Self::Volume(_) => Kind::Image,
        }
    }

    /// The disk, if it is a file or a device.
    pub fn file(&self) -> Option<&FileDisk> {
        match self {
            Self::File(disk) => Some(disk),
            Self::Volume(_) => None,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::File(disk) => disk.describe(),
            Self::Volume(volume) => format!("volume {}", volume.name()),
        }
    }

    /// Nobody is going to write any more.
    pub fn close(&self) -> std::result::Result<(), DiskError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Volume(volume) => volume.close(),
        }
    }
}

/// Opens the disk. If another of our daemons has just lost its mount, waits until it has ended. One
/// that was killed may hold the disk for a moment when it is not seen any more.
fn open_disk(target: &Path, settings: &Settings, act: &str) -> Result<FileDisk> {
    let mode = match settings.access {
        Access::ReadWrite => OpenMode::ReadWrite,
        Access::ReadOnly => OpenMode::ReadOnly,
    };
    let options = OpenOptions { claim: claim(), ..OpenOptions::new(mode) };
    let open = || FileDisk::open_with(target, options);
    let mut opened = match open() {
        Err(OpenError::InUse { holder: Some(holder), .. })
            if holder.name.as_deref() == Some("gabion")
                && mounts::of_target(target)?.is_none()
                && !is_served(target)
                && !mounts::is_target(holder.pid) =>
        {
            if let Some(end) = patience::End::of(holder.pid)
                && !end.within(AT_ONCE)
            {
                if let Some(user) = mounts::user_of_target_elsewhere(target) {
                    return Err(mounted_elsewhere(target, &user, holder.pid, act));
                }
                eprintln!("gabion: waiting for {holder} to release {}", target.display());
                end.within(DISK_PATIENCE);
            }
            open()
        }
        opened => opened,
    };
    let began = Instant::now();
    // Who has no name any more was seen at its very end.
    let is_unseen = |opened: &std::result::Result<FileDisk, OpenError>| match opened {
        Err(OpenError::InUse { holder, .. }) => {
            holder.as_ref().is_none_or(|holder| holder.name.is_none())
        }
        _ => false,
    };
    while is_unseen(&opened) && began.elapsed() < UNSEEN_PATIENCE {
        thread::sleep(UNSEEN_GLANCE);
        opened = open();
    }
    opened.map_err(|error| {
        let failure = not_opened(&format!("cannot {act}"), target, &error);
        match error {
            OpenError::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                failure.next("It can be read only: gabion mount -o ro, or gabion serve --read-only")
            }
            _ => failure,
        }
    })
}

fn mounted_elsewhere(target: &Path, user: &str, daemon: u32, act: &str) -> Failure {
    let name = target.display();
    let text =
        format!("{name} is unmounted here, but {user} has it in a mount namespace of its own");
    Failure::new(format!("cannot {act}: {text}"))
        .next(format!("End that one, and process {daemon} will end, too."))
}

fn is_served(target: &Path) -> bool {
    clients::socket_if_served(&Place { path: target.to_owned(), volume: None }).is_some()
}

/// Opens the filesystem on `disk`.
pub fn open_fs(disk: Arc<dyn Disk>, settings: &Settings) -> gabion_fs::Result<LocalFs> {
    let mode = match settings.access {
        Access::ReadWrite => gabion_map::OpenMode::ReadWrite,
        Access::ReadOnly => gabion_map::OpenMode::ReadOnly,
    };
    let limits = Limits::within(settings.cache.0);
    let settings =
        gabion_node::Settings { atime: settings.atime(), commit_interval: settings.commit };
    LocalFs::open(disk, mode, limits, settings, Arc::new(SystemClock))
}

/// The kernel itself claims a device that it mounts; who cannot have it do that must claim it.
pub(super) fn claim() -> Claim {
    if rustix::process::geteuid().is_root() { Claim::Shared } else { Claim::Exclusive }
}
