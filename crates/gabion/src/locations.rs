//! What the arguments of commands about subvolumes and snapshots stand for: a path in a filesystem.
//!
//! ```text
//!   /mnt/shelf/home               a path in what is mounted
//!   disk.img, /dev/sdb1, tank     the root of what is on a disk, or on a volume
//!   disk.img:/home, tank:/home    a path in it
//! ```
//!
//! Whoever has the filesystem in use is asked to act on the path. What nobody has in use is opened
//! here, for one command. A path that is there means itself, whatever its name.

use std::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use gabion_host::file_disk::{self, FileDisk};
use gabion_map::removal::Removing;
use gabion_map::{Limits, OpenMode};
use gabion_node::LocalFs;

use crate::cmd::mkfs;
use crate::cmd::status::{self, Subject, User};
use crate::failure::{Failure, Result, chain};
use crate::mount::SystemClock;
use crate::mounts;
use crate::remote;
use crate::volumes::{self, Place};

/// Stands between a target and the path in it, and begins the latter.
const WITHIN: &str = ":/";
/// Memory to work on what nobody has in use, in bytes.
const MEMORY: u64 = 32 << 20;

/// A path in a filesystem.
pub struct Location {
    /// The filesystem.
    pub filesystem: Subject,
    /// The path from its root, without a slash at either end; empty for the root.
    pub path: String,
}

impl Location {
    /// What `text` means.
    pub fn of(text: &Path) -> Result<Self> {
        if let Some(location) = Self::within_target(text)? {
            return Ok(location);
        }
        if let Some((mount, path)) = mounts::containing(text)? {
            return Ok(Self { filesystem: Subject::InUse(User::Mount(mount)), path });
        }
        if is_absent(text) && Place::of(text)?.volume.is_none() {
            check_folder(text)?;
            return Err(Failure::new(format!(
                "{} is neither in a mounted Gabion filesystem, nor a device, an image or a volume",
                text.display()
            ))
            .next("To see what is mounted: gabion status. In what is not, say disk.img:/PATH."));
        }
        check_no_plain_file(text)?;
        Ok(Self { filesystem: status::subject(text)?, path: String::new() })
    }

    /// What `text` means if it is TARGET:/PATH, and nothing if it is not.
    pub fn within_target(text: &Path) -> Result<Option<Self>> {
        let Some((target, path)) = split(text)? else { return Ok(None) };
        if path.split('/').any(|name| name == "..") {
            return Err(Failure::new(format!("{} has \"..\" in it", text.display()))
                .next("Say the path without it."));
        }
        let path = path.trim_matches('/').to_owned();
        Ok(Some(Self { filesystem: status::subject(target)?, path }))
    }

    /// Fails if it is the root, which `text` says.
    pub fn check_below_root(&self, text: &Path) -> Result<()> {
        if !self.path.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("{} is a whole filesystem", text.display()))
            .next("Say a path in it, as in MOUNTPOINT/PATH or TARGET:/PATH."))
    }

    /// Whether both are in the same filesystem.
    fn is_beside(&self, other: &Self) -> bool {
        match (&self.filesystem, &other.filesystem) {
            (Subject::InUse(User::Mount(one)), Subject::InUse(User::Mount(other))) => {
                one.id == other.id
            }
            (
                Subject::InUse(User::Server { socket: one, .. }),
                Subject::InUse(User::Server { socket: other, .. }),
            ) => one == other,
            (Subject::Target(one), Subject::Target(other)) => {
                let [one, other] = [one, other].map(|place| place.path.canonicalize());
                one.is_ok_and(|one| other.is_ok_and(|other| one == other))
            }
            _ => false,
        }
    }
}

/// Fails if it is a file of a mounted filesystem, and no image of another one.
fn check_no_plain_file(text: &Path) -> Result<()> {
    let is_within = || -> Result<bool> {
        let real = text.canonicalize().ok();
        let folder = real.as_deref().and_then(Path::parent);
        Ok(folder.map(mounts::of_path).transpose()?.flatten().is_some())
    };
    let is_image = || {
        let disk = FileDisk::open(text, file_disk::OpenMode::ReadOnlyShared);
        disk.is_ok_and(|disk| mkfs::found(&disk).is_ok_and(|found| found.is_some()))
    };
    if !text.is_file() || !is_within()? || is_image() {
        return Ok(());
    }
    let what = format!("{} is a file in a mounted filesystem, and no image", text.display());
    Err(Failure::new(what).next("Say a mountpoint, or the folder of a subvolume below one."))
}

/// Fails if the folder is not there that a path would be in.
fn check_folder(text: &Path) -> Result<()> {
    // What is not there may be a target with a path in it, too.
    let is_plain =
        !text.as_os_str().as_encoded_bytes().windows(2).any(|at| at == WITHIN.as_bytes());
    let folder = text.parent().filter(|folder| is_plain && !folder.as_os_str().is_empty());
    match folder.map(|folder| (folder, fs::metadata(folder))) {
        Some((folder, Err(error))) => {
            Err(Failure::of(format!("{}: {}", text.display(), folder.display()), &error))
        }
        _ => Ok(()),
    }
}

/// Fails unless both, which the paths say, are in one filesystem.
pub fn check_beside(one: (&Path, &Location), other: (&Path, &Location)) -> Result<()> {
    match one.1.is_beside(other.1) {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "{} and {} are not in one mount or image",
            one.0.display(),
            other.0.display()
        ))),
    }
}

/// The target and the path in it, if `text` says both. The longest target that is there counts.
fn split(text: &Path) -> Result<Option<(&Path, &str)>> {
    let Some(text) = text.to_str() else { return Ok(None) };
    if !text.contains(WITHIN) || text.starts_with(remote::SCHEME) || !is_absent(Path::new(text)) {
        return Ok(None);
    }
    for (at, _) in text.rmatch_indices(WITHIN) {
        let (target, path) = (Path::new(&text[..at]), &text[at + 1..]);
        let is_file = || fs::metadata(target).is_ok_and(|metadata| !metadata.is_dir());
        if Place::of(target)?.volume.is_some() || is_file() {
            return Ok(Some((target, path)));
        }
    }
    Ok(None)
}

fn is_absent(path: &Path) -> bool {
    let looked = fs::symlink_metadata(path);
    looked
        .is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Does something with a filesystem that nobody has in use. `program` is told to others who want it
/// meanwhile.
pub fn act_on_unused<T>(
    place: &Place,
    program: &str,
    mode: OpenMode,
    act: impl FnOnce(&LocalFs, &str) -> std::result::Result<T, String>,
) -> Result<T> {
    with_unused(place, program, mode, |fs, name| {
        act(fs, name).map_err(|message| Failure::new(format!("{name}: {message}")))
    })
}

/// The same for those who say themselves what a failure is about.
pub fn with_unused<T>(
    place: &Place,
    program: &str,
    mode: OpenMode,
    act: impl FnOnce(&LocalFs, &str) -> Result<T>,
) -> Result<T> {
    let name = place.name();
    volumes::with_disk(&place.path, place, program, mode, |disk| {
        let (limits, settings) = (Limits::within(MEMORY), gabion_node::Settings::default());
        let fs = LocalFs::open(disk, mode, limits, settings, Arc::new(SystemClock));
        let fs = fs.map_err(|error| Failure::of(format!("cannot open {name}"), &error))?;
        act(&fs, &name)
    })
}

/// Ends the sessions of those who had mounted what was served: of what they would say again some is
/// undone now, or about what is gone.
pub fn end_sessions(fs: &LocalFs) -> std::result::Result<(), String> {
    let ended = fs.forget_sessions();
    ended.map_err(|error| format!("cannot end the sessions of its clients: {}", chain(&error)))
}

/// Makes the space of what was removed free now: no daemon does it later.
pub fn free_removed(fs: &LocalFs) -> std::result::Result<(), String> {
    let text = |error: &dyn Error| format!("cannot free what was removed: {}", chain(error));
    while fs.map().remove_step().map_err(|error| text(&error))? == Removing::Step {}
    Ok(())
}
