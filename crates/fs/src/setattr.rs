//! Changing attributes: chmod, chown, truncate, utimensat, in one step.

use gabion_base::time::Timestamp;
use gabion_map::txn::FILE_SIZE_MAX;
use gabion_map::{FileId, Txn};

use crate::attributes::{self, Attributes};
use crate::context::{Context, Privileges};
use crate::error::{Error, Result};
use crate::format::inode::{Flags, Inode};
use crate::mode::{self, FileType};
use crate::object;
use crate::permission::{self, Access};
use crate::xattr::{self, AclKind};

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The operation's own time, which who may write may set (`UTIME_NOW`).
    Now,
    /// Any time, which only the owner may set.
    At(Timestamp),
}

/// How the caller got at the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// By its name: everything is checked.
    #[default]
    Name,
    /// By a handle that is open for writing: cutting it needs no further permission.
    Handle,
}

/// What to change. What is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes, with what becomes of the set-user and set-group bits.
    pub size: Option<(u64, Privileges)>,
    /// Time of last reading.
    pub atime: Option<SetTime>,
    /// Time of last change of the content.
    pub mtime: Option<SetTime>,
    /// Time of last change of anything: the kernel's, if it keeps it; else the operation's own.
    pub ctime: Option<Timestamp>,
    /// How the caller got here.
    pub through: Through,
}

/// Changes attributes and answers with the new ones.
pub fn setattr<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    changes: &Changes,
) -> Result<Attributes> {
    let mut inode = object::load_exclusive(txn, file)?;
    check(txn, ctx, file, &inode, changes)?;
    if changes.uid.is_some() || changes.gid.is_some() {
        change_owner(txn, ctx, file, &mut inode, changes)?;
    }
    if let Some(permissions) = changes.permissions {
        change_mode(txn, ctx, file, &mut inode, permissions)?;
    }
    if let Some((_, privileges)) = changes.size {
        clear_privileges(txn, ctx, file, &mut inode, privileges)?;
        inode.mtime = ctx.now;
    }
    if let Some(time) = changes.atime {
        inode.atime = resolve(ctx, time);
    }
    if let Some(time) = changes.mtime {
        inode.mtime = resolve(ctx, time);
    }
    inode.touch(ctx);
    if let Some(ctime) = changes.ctime {
        inode.ctime = ctime;
    }
    object::store(txn, file, &inode)?;
    if let Some((size, _)) = changes.size {
        txn.set_size(file, size)?;
    }
    attributes::of_inode(txn, file, &inode)
}

fn check<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
    changes: &Changes,
) -> Result<()> {
    if let Some((size, _)) = changes.size {
        object::require_regular(inode)?;
        if size > FILE_SIZE_MAX {
            return Err(Error::TooLarge);
        }
        if changes.through == Through::Name {
            permission::check(txn, ctx, file, inode, Access::WRITE)?;
        }
    }
    if changes.permissions.is_some() {
        if inode.file_type == FileType::Symlink {
            return Err(Error::NotSupported);
        }
        permission::check_owner(ctx, inode)?;
    }
    if changes.uid.is_some() || changes.gid.is_some() {
        check_owner_change(ctx, inode, changes)?;
    }
    check_times(txn, ctx, file, inode, changes)
}

/// Only the superuser gives an object away; the owner may give it to a group of theirs.
fn check_owner_change(ctx: &Context, inode: &Inode, changes: &Changes) -> Result<()> {
    permission::check_owner(ctx, inode)?;
    if changes.uid.is_some_and(|uid| uid != inode.uid) {
        permission::check_superuser(ctx)?;
    }
    match changes.gid {
        Some(gid) if gid != inode.gid && !permission::may_set_group(ctx, gid) => {
            Err(Error::NotPermitted)
        }
        _ => Ok(()),
    }
}

fn check_times<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
    changes: &Changes,
) -> Result<()> {
    if changes.ctime.is_some() && !permission::is_owner(ctx, inode) {
        return Err(Error::NotPermitted);
    }
    let times = [changes.atime, changes.mtime];
    if times == [None, None] || permission::is_owner(ctx, inode) {
        return Ok(());
    }
    if times == [Some(SetTime::Now); 2] {
        return permission::check(txn, ctx, file, inode, Access::WRITE);
    }
    Err(Error::NotPermitted)
}

/// A program does not keep its rights when it changes hands, not even by the superuser.
fn change_owner<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
    changes: &Changes,
) -> Result<()> {
    if !inode.is_directory() {
        let is_member = permission::may_set_group(ctx, inode.gid);
        if inode.permissions & mode::GROUP_EXECUTE != 0 || !is_member {
            inode.permissions &= !mode::SET_GROUP;
        }
        inode.permissions &= !mode::SET_USER;
        xattr::drop_capability(txn, ctx, file, inode)?;
    }
    inode.uid = changes.uid.unwrap_or(inode.uid);
    inode.gid = changes.gid.unwrap_or(inode.gid);
    Ok(())
}

fn change_mode<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
    permissions: u32,
) -> Result<()> {
    inode.permissions = permissions & mode::CHANGEABLE;
    if !permission::may_set_group(ctx, inode.gid) {
        inode.permissions &= !mode::SET_GROUP;
    }
    if !inode.flags.has(Flags::ACCESS_ACL) {
        return Ok(());
    }
    if let Some(mut acl) = xattr::load_acl(txn, ctx, file, AclKind::Access)? {
        acl.change_mode(inode.permissions);
        xattr::store_acl(txn, ctx, file, inode, AclKind::Access, Some(&acl))?;
    }
    Ok(())
}

/// Whether [`clear_privileges`] would change the inode.
pub(crate) fn has_privileges(ctx: &Context, inode: &Inode, wished: Privileges) -> bool {
    inode.flags.has(Flags::CAPABILITY)
        || ctx.privileges(wished) == Privileges::Clear
            && inode.permissions != without_privileges(inode.permissions)
}

/// Takes from a file whose bytes change what could be abused by it; the inode is not stored.
pub(crate) fn clear_privileges<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
    wished: Privileges,
) -> Result<()> {
    if ctx.privileges(wished) == Privileges::Clear {
        inode.permissions = without_privileges(inode.permissions);
    }
    xattr::drop_capability(txn, ctx, file, inode)
}

fn without_privileges(permissions: u32) -> u32 {
    let is_program = permissions & mode::GROUP_EXECUTE != 0;
    permissions & !mode::SET_USER & !if is_program { mode::SET_GROUP } else { 0 }
}

fn resolve(ctx: &Context, time: SetTime) -> Timestamp {
    match time {
        SetTime::Now => ctx.now,
        SetTime::At(time) => time,
    }
}
