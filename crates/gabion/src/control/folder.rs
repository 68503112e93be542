//! Where sockets and logs are: a folder for each user, that nobody else can write to.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use gabion_fuse::mountinfo::Mount;

/// The name of the log.
pub const LOG: &str = "gabion.log";
/// A log that is longer than this many bytes starts anew.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// The folder of the user `uid`.
fn of_user(uid: u32) -> PathBuf {
    if uid == 0 {
        return PathBuf::from("/run/gabion");
    }
    let own = uid == rustix::process::geteuid().as_raw();
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| own) {
        return PathBuf::from(folder).join("gabion");
    }
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    if usual.is_dir() {
        return usual.join("gabion");
    }
    std::env::temp_dir().join(format!("gabion-{uid}"))
}

/// The folder of this process's user, made if it is not there.
pub fn own() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let folder = of_user(uid);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // It may be in a place where everybody can make folders.
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        let text = format!("{} is not a folder that only its user writes to", folder.display());
        return Err(io::Error::other(text));
    }
    Ok(folder)
}

/// The socket of the mount with this device number, in `folder`.
fn socket_name((major, minor): (u32, u32)) -> String {
    format!("{major}-{minor}.sock")
}

/// The socket of a mount of ours, to be made.
pub fn own_socket(device: (u32, u32)) -> io::Result<PathBuf> {
    Ok(own()?.join(socket_name(device)))
}

/// The socket of a mount, whoever mounted it.
pub fn socket_of(mount: &Mount) -> PathBuf {
    of_user(owner(mount)).join(socket_name(mount.device))
}

/// The user who mounted it.
pub fn owner(mount: &Mount) -> u32 {
    let options = mount.super_options.split(',');
    let mut uids = options.filter_map(|option| option.strip_prefix("user_id="));
    uids.next().and_then(|uid| uid.parse().ok()).unwrap_or(0)
}

/// The file that daemons in the background write to, together.
pub fn log() -> io::Result<PathBuf> {
    let log = own()?.join(LOG);
    if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        fs::rename(&log, log.with_extension("log.old"))?;
    }
    Ok(log)
}
