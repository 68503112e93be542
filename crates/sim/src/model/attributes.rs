//! Operations on attributes, extended ones included.

use super::{Model, Number};
use crate::op::{Errno, Kind, Outcome, Status, Target, Value, XattrWrite};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o0010;
const MODE: u32 = 0o7777;
/// The longest name of an extended attribute in bytes, with its prefix.
const XATTR_NAME_LENGTH_MAX: usize = 255;

impl Model {
    pub(super) fn stat(&self, object: &Target) -> Outcome {
        let number = match object {
            Target::Path(path) => self.lookup(path)?,
            Target::Slot(slot) => self.slot(*slot)?,
        };
        Ok(Value::Status(self.inode(number).status()))
    }

    pub(super) fn chmod(&mut self, object: &Target, mode: u32) -> Outcome {
        let number = self.followed(object)?;
        self.inode_mut(number).mode = mode & MODE;
        Ok(Value::Done)
    }

    /// Changing the owner takes away the set-user-id bit, and the set-group-id bit where it means
    /// that and not mandatory locking.
    pub(super) fn chown(&mut self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Outcome {
        let number = self.lookup(path)?;
        let inode = self.inode_mut(number);
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        if inode.kind() != Kind::Directory {
            inode.mode &= !SETUID;
            if inode.mode & GROUP_EXECUTE != 0 {
                inode.mode &= !SETGID;
            }
        }
        Ok(Value::Done)
    }

    pub(super) fn set_xattr(
        &mut self,
        path: &str,
        name: &str,
        value: &[u8],
        how: XattrWrite,
    ) -> Outcome {
        check_xattr_length(name)?;
        let number = self.lookup(path)?;
        self.check_xattr(number, name, Errno::EPERM)?;
        let xattrs = &mut self.inode_mut(number).xattrs;
        match (how, xattrs.contains_key(name)) {
            (XattrWrite::Create, true) => return Err(Errno::EEXIST),
            (XattrWrite::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_owned(), value.to_vec());
        Ok(Value::Done)
    }

    pub(super) fn remove_xattr(&mut self, path: &str, name: &str) -> Outcome {
        check_xattr_length(name)?;
        let number = self.lookup(path)?;
        self.check_xattr(number, name, Errno::EPERM)?;
        let removed = self.inode_mut(number).xattrs.remove(name);
        removed.map(|_| Value::Done).ok_or(Errno::ENODATA)
    }

    pub(super) fn xattr(&self, path: &str, name: &str) -> Outcome {
        check_xattr_length(name)?;
        let number = self.lookup(path)?;
        self.check_xattr(number, name, Errno::ENODATA)?;
        let value = self.inode(number).xattrs.get(name).ok_or(Errno::ENODATA)?;
        Ok(Value::Bytes(value.clone()))
    }

    pub(super) fn xattrs(&self, path: &str) -> Outcome {
        let number = self.lookup(path)?;
        Ok(Value::Names(self.inode(number).xattrs.keys().cloned().collect()))
    }

    /// Attributes of users are for files and directories; those of the administrator for all.
    fn check_xattr(&self, number: Number, name: &str, other_kinds: Errno) -> Result<(), Errno> {
        let Status { kind, .. } = self.inode(number).status();
        match name.split_once('.') {
            Some(("user", _)) if matches!(kind, Kind::File | Kind::Directory) => Ok(()),
            Some(("user", _)) => Err(other_kinds),
            Some(("trusted", _)) => Ok(()),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

fn check_xattr_length(name: &str) -> Result<(), Errno> {
    match name.len() {
        1..=XATTR_NAME_LENGTH_MAX => Ok(()),
        _ => Err(Errno::ERANGE),
    }
}
