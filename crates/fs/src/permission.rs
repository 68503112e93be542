//! Who may do what: mode bits, ACLs, owners and the sticky bit.
//!
//! Every check passes at once for a caller whom the kernel has checked, see
//! [`Trust::CheckedByKernel`](crate::Trust), and for the superuser, but for one rule: what nobody
//! may execute, the superuser may not execute either.

use std::ops::BitOr;

use gabion_map::{FileId, Txn};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::format::inode::{Flags, Inode};
use crate::mode;
use crate::object;
use crate::xattr;

/// A set of ways to use an object, numbered as in access(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Only whether it exists.
    pub const EXISTS: Access = Access(0);
    /// To execute a file, to go through a directory.
    pub const EXECUTE: Access = Access(1);
    /// To write.
    pub const WRITE: Access = Access(2);
    /// To read.
    pub const READ: Access = Access(4);

    /// The set that access(2) writes as `bits`.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits <= 7 { Some(Self(bits as u8)) } else { None }
    }

    /// Whether all of `other` are in the set.
    pub const fn has(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Whether the caller may use `file` in these ways, as access(2) asks. `AccessDenied` if not.
pub fn access<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    wanted: Access,
) -> Result<()> {
    let inode = object::load(txn, file)?;
    check(txn, ctx, file, &inode, wanted)
}

/// Fails with `AccessDenied` unless the caller may use the object in these ways.
pub(crate) fn check<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
    wanted: Access,
) -> Result<()> {
    let caller = &ctx.caller;
    if !caller.is_checked_here() {
        return Ok(());
    }
    if caller.is_superuser() {
        let is_executable = inode.is_directory() || inode.permissions & 0o111 != 0;
        let is_denied = wanted.has(Access::EXECUTE) && !is_executable;
        return if is_denied { Err(Error::AccessDenied) } else { Ok(()) };
    }
    let is_granted = match access_acl(txn, ctx, file, inode)? {
        Some(acl) => acl.grants(caller, inode.uid, inode.gid, wanted.0),
        None => mode_grants(ctx, inode, wanted),
    };
    if is_granted { Ok(()) } else { Err(Error::AccessDenied) }
}

fn access_acl<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
) -> Result<Option<crate::acl::Acl>> {
    if !inode.flags.has(Flags::ACCESS_ACL) {
        return Ok(None);
    }
    xattr::load_acl(txn, ctx, file, xattr::AclKind::Access)
}

fn mode_grants(ctx: &Context, inode: &Inode, wanted: Access) -> bool {
    let shift = if ctx.caller.uid == inode.uid {
        6
    } else if ctx.caller.is_in_group(inode.gid) {
        3
    } else {
        0
    };
    (inode.permissions >> shift) as u8 & 7 & wanted.0 == wanted.0
}

/// Fails unless the caller may look up names in the directory.
pub(crate) fn check_search<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    dir: FileId,
    inode: &Inode,
) -> Result<()> {
    check(txn, ctx, dir, inode, Access::EXECUTE)
}

/// Fails unless the caller may add, remove and rename entries of the directory.
pub(crate) fn check_change<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    dir: FileId,
    inode: &Inode,
) -> Result<()> {
    check(txn, ctx, dir, inode, Access::WRITE | Access::EXECUTE)
}

/// Whether the caller has the rights of the object's owner.
pub(crate) fn is_owner(ctx: &Context, inode: &Inode) -> bool {
    let caller = &ctx.caller;
    !caller.is_checked_here() || caller.is_superuser() || caller.uid == inode.uid
}

/// Fails with `NotPermitted` unless the caller has the rights of the object's owner.
pub(crate) fn check_owner(ctx: &Context, inode: &Inode) -> Result<()> {
    if is_owner(ctx, inode) { Ok(()) } else { Err(Error::NotPermitted) }
}

/// Fails with `NotPermitted` unless the caller is the superuser.
pub(crate) fn check_superuser(ctx: &Context) -> Result<()> {
    let is_allowed = !ctx.caller.is_checked_here() || ctx.caller.is_superuser();
    if is_allowed { Ok(()) } else { Err(Error::NotPermitted) }
}

/// Whether the caller may give an object of group `gid` the set-group bit.
pub(crate) fn may_set_group(ctx: &Context, gid: u32) -> bool {
    let caller = &ctx.caller;
    !caller.is_checked_here() || caller.is_superuser() || caller.is_in_group(gid)
}

/// In a sticky directory only the owners of it or of the object remove or rename an entry.
pub(crate) fn check_sticky(ctx: &Context, dir: &Inode, object: &Inode) -> Result<()> {
    let is_free = dir.permissions & mode::STICKY == 0;
    if is_free || is_owner(ctx, dir) || is_owner(ctx, object) {
        return Ok(());
    }
    Err(Error::NotPermitted)
}
