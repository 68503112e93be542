//! The Gabion filesystems that are mounted on this machine, dead ones too.
//!
//! What is mounted is read from the kernel's list, never by looking at a mountpoint: below a mount
//! whose daemon hangs, any look may take as long as the daemon's requests may.
//!
//! A mount is *dead* when its daemon is gone: nobody listens at its control socket any more, and
//! the kernel answers ENOTCONN. Only then is it safe to take it away without asking.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_fuse::mount::{Unmount, unmount};
use gabion_fuse::mountinfo::{self, Mount};
use gabion_host::loop_device;
use rustix::io::Errno;

use crate::control::{client, folder};
use crate::failure::{Failure, Result};

/// What follows `fuse.` or `fuseblk.` in the filesystem's type.
pub const SUBTYPE: &str = "gabion";
/// So many users of a mount are named.
const USERS_MAX: usize = 3;
/// How often it is put up with that something was not taken: what was before, and what is just
/// being written.
const REFUSED_MAX: usize = 8;
/// How long they are looked for.
const SEARCH: Duration = Duration::from_secs(5);

/// Whether a mount's daemon still serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It does, or it cannot be seen that it does not.
    Serving,
    /// Its daemon is gone.
    Dead,
}

/// Whether it is one of ours.
pub fn is_gabion(mount: &Mount) -> bool {
    let kind = mount.fstype.split_once('.');
    matches!(kind, Some(("fuse" | "fuseblk", SUBTYPE)))
}

/// Whether sync(2) and syncfs(2) reach the daemon: the kernel sends them to what is on a device.
pub fn is_synced(mount: &Mount) -> bool {
    mount.fstype.starts_with("fuseblk.")
}

/// All of ours, in the order in which they were mounted.
pub fn all() -> Result<Vec<Mount>> {
    let mut mounts = mountinfo::mounts().map_err(unreadable)?;
    mounts.retain(is_gabion);
    Ok(mounts)
}

/// Has the kernel hand over all that programs have written below a mountpoint. Its daemon must be
/// alive. What a rollback took from programs, or a full disk or a quota has no room for, is told to
/// those programs, and not here; another failure since somebody last asked is.
pub fn hand_over(mountpoint: &Path) -> io::Result<()> {
    let mount = File::open(mountpoint)?;
    for _ in 0..REFUSED_MAX {
        match rustix::fs::syncfs(&mount) {
            Err(Errno::STALE | Errno::NOSPC | Errno::DQUOT) => {}
            synced => return Ok(synced?),
        }
    }
    // Whoever writes more than there is room for is told, however often.
    Ok(())
}

/// What is mounted uppermost at exactly this path, ours or not.
pub fn at(mountpoint: &Path) -> Result<Option<Mount>> {
    mountinfo::find(mountpoint).map_err(unreadable)
}

/// Our mount that the folder `path` is in, and its path from there; nothing if it is no folder.
/// Looks at the path: its daemon must be alive. Fails if that path is no UTF-8, as daemons are told
/// paths in that only.
pub fn containing(path: &Path) -> Result<Option<(Mount, String)>> {
    let Some((mount, within)) = around(path)? else { return Ok(None) };
    match within.into_os_string().into_string() {
        Ok(within) => Ok(Some((mount, within))),
        Err(_) => {
            let what = format!("{} has a name in it that is not UTF-8", path.display());
            Err(Failure::new(what).next("Rename it first: this command cannot say such names."))
        }
    }
}

/// Our mount that the folder `path` is in.
pub fn of_path(path: &Path) -> Result<Option<Mount>> {
    Ok(around(path)?.map(|(mount, _)| mount))
}

fn around(path: &Path) -> Result<Option<(Mount, PathBuf)>> {
    let absolute =
        std::path::absolute(path).map_err(|error| Failure::of(path.display(), &error))?;
    if let Some(mount) = at(&absolute)?.filter(is_gabion) {
        return Ok(Some((mount, PathBuf::new())));
    }
    // What is there is named by its real path; what is to be made, by that of its folder.
    let real = absolute.canonicalize().or_else(|error| match absolute.file_name() {
        Some(name) => Ok(absolute.with_file_name("").canonicalize()?.join(name)),
        None => Err(error),
    });
    let Ok(real) = real else { return Ok(None) };
    if real.is_file() {
        return Ok(None);
    }
    for above in real.ancestors() {
        let Some(mount) = at(above)? else { continue };
        let within = real.strip_prefix(above).ok();
        let within = within.filter(|_| is_gabion(&mount)).map(Path::to_owned);
        return Ok(within.map(|within| (mount, within)));
    }
    Ok(None)
}

/// Our mount of this image or device.
pub fn of_target(target: &Path) -> Result<Option<Mount>> {
    let mounts = all()?;
    if mounts.is_empty() {
        return Ok(None);
    }
    let sources = Sources::of(target);
    Ok(mounts.into_iter().find(|mount| sources.have(mount)))
}

/// What stands as the source of a mount of an image or device.
struct Sources {
    names: Vec<PathBuf>,
    number: Option<u64>,
}

impl Sources {
    fn of(target: &Path) -> Self {
        let mut names: Vec<PathBuf> = target.canonicalize().into_iter().collect();
        // Who may not see the loop devices cannot have mounted through one, either.
        names.extend(loop_device::attached_to(target).unwrap_or_default());
        Self { names, number: device_number(target) }
    }

    fn have(&self, mount: &Mount) -> bool {
        let source = Path::new(&mount.source);
        let same_device = self.number.is_some() && device_number(source) == self.number;
        same_device || self.names.iter().any(|name| name == source)
    }
}

fn device_number(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

/// Whether its daemon still serves it.
pub fn life(mount: &Mount) -> Life {
    if client::is_listening(mount) {
        return Life::Serving;
    }
    // Nobody listens, so there is no daemon that this could wait for.
    // A killed one may be at its end still, with its connection open until then: then the answer
    // is that it was cut off, whatever the error is called.
    match rustix::fs::statvfs(&mount.mountpoint) {
        Ok(_) | Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => Life::Serving,
        Err(_) => Life::Dead,
    }
}

/// Takes away a mount whose daemon is gone, whoever still has files of it open.
pub fn bury(mount: &Mount) -> Result<()> {
    // Nobody listens there. Once it is unmounted its number, and with it the socket's name, may be
    // another mount's.
    let _ = fs::remove_file(folder::socket_of(mount));
    unmount(&mount.mountpoint, Unmount::Lazy).map_err(|error| {
        let mountpoint = mount.mountpoint.display();
        Failure::of(format!("cannot clean up the dead mount at {mountpoint}"), &error)
            .next("Try the same as root.")
    })
}

/// Takes away what killed daemons have left at this mountpoint or of this target.
pub fn bury_dead(target: &Path, mountpoint: &Path) -> Result<()> {
    while let Some(mount) = at(mountpoint)?.filter(is_gabion) {
        if life(&mount) == Life::Serving {
            break;
        }
        bury(&mount)?;
    }
    match of_target(target)? {
        Some(mount) if life(&mount) == Life::Dead => bury(&mount),
        _ => Ok(()),
    }
}

/// Programs that keep a mount busy, as far as can be seen: "process 71 (bash)".
pub fn users(mountpoint: &Path) -> Vec<String> {
    let mountpoint = mountpoint.to_owned();
    let users = search(USERS_MAX, move |pid| uses(pid, &mountpoint));
    users.into_iter().map(process_name).collect()
}

/// A program that sees the filesystem mounted in a mount namespace of its own, as in a container:
/// there it stays when it is unmounted here.
pub fn user_elsewhere(mount: &Mount) -> Option<String> {
    user_of_device_elsewhere(mount.device)
}

/// The same for the mount with this device number.
pub fn user_of_device_elsewhere(device: (u32, u32)) -> Option<String> {
    elsewhere(move |mount| mount.device == device)
}

/// Such a program for our filesystem in this image or device, which is mounted nowhere here.
pub fn user_of_target_elsewhere(target: &Path) -> Option<String> {
    let sources = Sources::of(target);
    elsewhere(move |mount| is_gabion(mount) && sources.have(mount))
}

/// A program that has a mount for which `is_it` is true in a mount namespace of its own.
fn elsewhere(is_it: impl Fn(&Mount) -> bool + Send + 'static) -> Option<String> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let here = namespace("self")?;
    let sees = move |pid: u32| {
        namespace(&pid.to_string()).is_some_and(|there| there != here)
            && mountinfo::mounts_of(pid).is_ok_and(|mounts| mounts.iter().any(&is_it))
    };
    search(1, sees).pop().map(process_name)
}

/// What `read` makes of the mounts of each namespace that is not our own, as far as some process is
/// in it that we may look at. May wait for any process.
pub fn mounts_elsewhere<T>(read: impl Fn(Vec<Mount>) -> T) -> Vec<T> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace("thread-self").into_iter().collect();
    let others = processes()
        .filter(|pid| namespace(&pid.to_string()).is_some_and(|there| seen.insert(there)));
    others.filter_map(|pid| mountinfo::mounts_of(pid).ok()).map(read).collect()
}

/// The first processes, at most `most`, for which `is_it` is true.
///
/// The kernel's answer to a look at a process waits while that hangs in execve(2), as it does if
/// it has a file open on a mount whose daemon hangs. So what waits in the kernel is looked at
/// last, and what was not found within [`SEARCH`] is not.
fn search(most: usize, is_it: impl Fn(u32) -> bool + Send + 'static) -> Vec<u32> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (waiting, others): (Vec<_>, Vec<_>) = processes().partition(|pid| is_waiting(*pid));
        let mut found = others.into_iter().chain(waiting).filter(|pid| is_it(*pid));
        found.try_for_each(|pid| sender.send(pid))
    });
    let end = Instant::now() + SEARCH;
    let next = || receiver.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    std::iter::from_fn(next).take(most).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether it waits in the kernel for something that nothing interrupts.
fn is_waiting(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tD"))
}

fn process_name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({})", name.trim_end())
}

/// Whether the process offers disks to NBD clients, which does not end by itself.
pub fn is_target(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"target")
}

/// Reads links only, which asks the kernel and not the filesystem.
fn uses(pid: u32, mountpoint: &Path) -> bool {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let leads_there =
        |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(mountpoint));
    if ["cwd", "root", "exe"].iter().any(|link| leads_there(folder.join(link))) {
        return true;
    }
    let Ok(descriptors) = fs::read_dir(folder.join("fd")) else { return false };
    descriptors.filter_map(|entry| entry.ok()).any(|entry| leads_there(entry.path()))
}

fn unreadable(error: io::Error) -> Failure {
    Failure::of("cannot read the list of mounts", &error)
}
