//! Mounting in two steps: the filesystem first, then its place in the tree.
//!
//! ```text
//!   fsopen -> options -> create     the filesystem: its device number, INIT is sent
//!          -> fsmount               a mount that is nowhere
//!   move_mount                      at the mountpoint, for everybody to see
//! ```
//!
//! In between whoever serves it can get ready for those who see it. A process that is killed then
//! takes the filesystem along.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::mount::{MountError, MountFlags, MountOptions};
use crate::mountinfo;

/// The second step of a mount. Dropped without it the filesystem ends: until then somebody must
/// serve it, or nobody have the device open.
#[derive(Debug)]
pub struct Attachment {
    mountpoint: PathBuf,
    fstype: String,
    /// The mount; nothing if it is in the tree already.
    tree: Option<OwnedFd>,
}

impl Attachment {
    /// Of what was mounted in one step.
    pub(crate) fn made(mountpoint: &Path, options: &MountOptions) -> Self {
        Self { mountpoint: mountpoint.to_owned(), fstype: options.fstype(), tree: None }
    }

    /// Mounts, but nowhere, with the connection that `device` is a descriptor of.
    pub(crate) fn prepare(
        mountpoint: &Path,
        options: &MountOptions,
        device: i32,
    ) -> Result<Self, MountError> {
        let mut attachment = Self::made(mountpoint, options);
        let tree = create(options, device).map_err(|errno| attachment.failed(errno.into()))?;
        attachment.tree = Some(tree);
        Ok(attachment)
    }

    /// Whether it is in the tree.
    pub fn is_made(&self) -> bool {
        self.tree.is_none()
    }

    /// The device number of the filesystem, major and minor. Asks nobody who serves it.
    pub fn device_number(&self) -> io::Result<(u32, u32)> {
        let Some(tree) = &self.tree else {
            let found = mountinfo::find(&self.mountpoint)?;
            return found.map(|mount| mount.device).ok_or(io::ErrorKind::NotFound.into());
        };
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(tree, "", flags, StatxFlags::TYPE)?;
        Ok((stat.stx_dev_major, stat.stx_dev_minor))
    }

    /// Puts it into the tree, unless it is there.
    pub fn make(&mut self) -> Result<(), MountError> {
        self.put(MoveMountFlags::empty())
    }

    /// The same, but beneath what is mounted there: it is seen once that is unmounted. EINVAL if
    /// nothing is mounted there, or the kernel is older than 6.5.
    pub fn make_beneath(&mut self) -> Result<(), MountError> {
        self.put(MoveMountFlags::MOVE_MOUNT_BENEATH)
    }

    fn put(&mut self, flags: MoveMountFlags) -> Result<(), MountError> {
        let Some(tree) = &self.tree else { return Ok(()) };
        let flags = flags | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let moved = move_mount(tree, "", CWD, &self.mountpoint, flags);
        moved.map_err(|errno| self.failed(errno.into()))?;
        // As long as it is open it is in use.
        self.tree = None;
        Ok(())
    }

    /// Ends the filesystem if it is not in the tree.
    pub fn give_up(&mut self) {
        self.tree = None;
    }

    fn failed(&self, error: io::Error) -> MountError {
        let (mountpoint, fstype) = (self.mountpoint.clone(), self.fstype.clone());
        MountError::Mount { mountpoint, fstype, error }
    }
}

fn create(options: &MountOptions, device: i32) -> Result<OwnedFd, Errno> {
    let context = fsopen(options.kind(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", options.source())?;
    fsconfig_set_string(&context, "subtype", &options.subtype)?;
    fsconfig_set_string(&context, "fd", device.to_string())?;
    for (name, value) in [("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")] {
        fsconfig_set_string(&context, name, value)?;
    }
    for option in options.own() {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(&context, name, value)?,
            None => fsconfig_set_flag(&context, &option)?,
        }
    }
    for (flag, name) in [
        (MountFlags::READ_ONLY, "ro"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if options.flags.contains(flag) {
            fsconfig_set_flag(&context, name)?;
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options.flags))
}

/// Those of the mount; the others are the filesystem's.
fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (MountFlags::READ_ONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ] {
        attributes.set(attribute, flags.contains(flag));
    }
    // One of three; by itself it is the third, RELATIME.
    if flags.contains(MountFlags::STRICTATIME) {
        attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    } else if flags.contains(MountFlags::NOATIME) {
        attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME;
    }
    attributes
}
