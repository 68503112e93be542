//! New objects: files, directories, symbolic links, devices, files without a name.
//!
//! A new object belongs to the caller; in a set-group directory it takes the directory's group,
//! and a directory the bit as well. Its permissions are those asked for, cut by the umask or, if
//! the directory has a default ACL, by that instead. Nothing is checked twice: what the kernel
//! checks is left to it, see [`Trust`](crate::Trust).

use gabion_base::ids::{Ino, SubvolId};
use gabion_map::{FileId, Kind, LockMode, Txn};

use crate::attributes::{self, Attributes};
use crate::context::Context;
use crate::entry::{self, Place, Target};
use crate::error::{Error, Result};
use crate::format::inode::{Flags, Inode};
use crate::lookup::load_named;
use crate::mode::{self, FileType};
use crate::object::{self, LINKS_MAX, ROOT};
use crate::open::{self, OpenRequest};
use crate::orphan;
use crate::permission;
use crate::xattr::{self, AclKind};

/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_LENGTH_MAX: usize = 4095;

/// What to do if the name exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// Open what is there.
    Open,
    /// Fail with `Exists` (`O_EXCL`).
    Fail,
}

/// Whether a file was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It was made.
    Created,
    /// It was there.
    Opened,
}

/// Whether a file without a name may be given one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkable {
    /// It may.
    Yes,
    /// It never will (`O_TMPFILE | O_EXCL`).
    No,
}

/// Makes the root directory of a subvolume in which nothing was made before.
pub fn format_root<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    subvol: SubvolId,
    permissions: u32,
) -> Result<Attributes> {
    let root = FileId::new(subvol, ROOT);
    txn.lock(root, LockMode::Exclusive)?;
    if object::find(txn, root)?.is_some() {
        return Err(Error::Exists);
    }
    txn.require_space()?;
    // The root has the first number; it is taken so that nothing else gets it.
    txn.new_inode(subvol)?;
    let mut inode = blank(ctx, FileType::Directory);
    inode.permissions = permissions & mode::CHANGEABLE;
    inode.nlink = 2;
    inode.parent = ROOT;
    object::store(txn, root, &inode)?;
    Ok(attributes::of_new(root, &inode))
}

/// Makes and opens a regular file, or opens what is there (`open` with `O_CREAT`).
pub fn create<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    permissions: u32,
    if_exists: IfExists,
    request: &OpenRequest,
) -> Result<(Attributes, Disposition)> {
    if entry::is_dots(name) {
        return Err(Error::IsDirectory);
    }
    let (parent_inode, place) = enter(txn, ctx, parent, name)?;
    let Some(target) = place.target() else {
        let object = NewObject::new(FileType::Regular, permissions);
        let attributes = add(txn, ctx, parent, parent_inode, place, &object)?;
        return Ok((attributes, Disposition::Created));
    };
    if if_exists == IfExists::Fail {
        return Err(Error::Exists);
    }
    match target.file_type {
        FileType::Directory => return Err(Error::IsDirectory),
        // The caller has looked up something else before, and has to follow the link now.
        FileType::Symlink => return Err(Error::Stale),
        _ => {}
    }
    if target.subvolume().is_some() {
        return Err(Error::IsDirectory);
    }
    let file = FileId::new(parent.subvol, target.ino);
    if request.truncate.is_some() {
        txn.lock(file, LockMode::Exclusive)?;
    }
    let inode = load_named(txn, file)?;
    let attributes = open::open_inode(txn, ctx, file, inode, request)?;
    Ok((attributes, Disposition::Opened))
}

/// Makes a file, pipe, socket or device. `file_type` is none of directory and symbolic link.
pub fn mknod<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    file_type: FileType,
    permissions: u32,
    rdev: u32,
) -> Result<Attributes> {
    let mut object = NewObject::new(file_type, permissions);
    match file_type {
        FileType::Directory => return Err(Error::NotPermitted),
        FileType::Symlink => return Err(Error::InvalidArgument),
        FileType::CharDevice | FileType::BlockDevice => object.rdev = rdev,
        FileType::Regular | FileType::Fifo | FileType::Socket => {}
    }
    if object.rdev != 0 || file_type == FileType::BlockDevice {
        // A character device 0:0 is a whiteout, which everyone may make.
        permission::check_superuser(ctx)?;
    }
    add_absent(txn, ctx, parent, name, &object)
}

/// Makes a directory.
pub fn mkdir<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    permissions: u32,
) -> Result<Attributes> {
    // A directory has set-user and set-group only by inheritance or by chmod.
    let permissions = permissions & (mode::PERMISSIONS | mode::STICKY);
    add_absent(txn, ctx, parent, name, &NewObject::new(FileType::Directory, permissions))
}

/// Makes a symbolic link to `target`, which is 1 to [`SYMLINK_LENGTH_MAX`] bytes long.
pub fn symlink<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    target: &[u8],
) -> Result<Attributes> {
    if target.is_empty() {
        return Err(Error::NotFound);
    }
    if target.len() > SYMLINK_LENGTH_MAX {
        return Err(Error::NameTooLong);
    }
    if target.contains(&0) {
        return Err(Error::InvalidArgument);
    }
    let mut object = NewObject::new(FileType::Symlink, mode::PERMISSIONS);
    object.target = target;
    add_absent(txn, ctx, parent, name, &object)
}

/// Makes a regular file without a name in the filesystem of `parent` (`O_TMPFILE`). It is an
/// orphan: unless it gets a name it goes when it is closed, or at the next mount.
pub fn tmpfile<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    permissions: u32,
    linkable: Linkable,
) -> Result<Attributes> {
    let parent_inode = object::load_directory(txn, parent)?;
    permission::check_change(txn, ctx, parent, &parent_inode)?;
    txn.require_space()?;
    let object = NewObject::new(FileType::Regular, permissions);
    let (file, mut inode) = make(txn, ctx, parent, &parent_inode, &object)?;
    inode.nlink = 0;
    if linkable == Linkable::Yes {
        inode.flags.set(Flags::LINKABLE);
    }
    object::store(txn, file, &inode)?;
    orphan::put(txn, file)?;
    Ok(attributes::of_new(file, &inode))
}

/// What is asked for.
pub(crate) struct NewObject<'a> {
    file_type: FileType,
    permissions: u32,
    rdev: u32,
    target: &'a [u8],
}

impl NewObject<'_> {
    pub(crate) fn new(file_type: FileType, permissions: u32) -> Self {
        Self { file_type, permissions, rdev: 0, target: &[] }
    }
}

/// The directory, locked to be changed, and the place of `name` in it.
pub(crate) fn enter<'n, T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &'n [u8],
) -> Result<(Inode, Place<'n>)> {
    entry::check_name(name)?;
    txn.lock(parent, LockMode::Exclusive)?;
    let inode = object::load_directory(txn, parent)?;
    permission::check_search(txn, ctx, parent, &inode)?;
    let place = Place::find(txn, ctx, parent, name)?;
    Ok((inode, place))
}

fn add_absent<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    name: &[u8],
    object: &NewObject<'_>,
) -> Result<Attributes> {
    if entry::is_dots(name) {
        return Err(Error::Exists);
    }
    let (parent_inode, place) = enter(txn, ctx, parent, name)?;
    if place.target().is_some() {
        return Err(Error::Exists);
    }
    add(txn, ctx, parent, parent_inode, place, object)
}

/// Makes the object and gives it the name of `place`, which is absent.
fn add<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    mut parent_inode: Inode,
    place: Place<'_>,
    object: &NewObject<'_>,
) -> Result<Attributes> {
    check_addition(txn, ctx, parent, &parent_inode, object.file_type)?;
    txn.require_space()?;
    let (file, mut inode) = make(txn, ctx, parent, &parent_inode, object)?;
    inode.named(parent.ino, place.position());
    if inode.is_directory() {
        inode.nlink = 2;
        parent_inode.nlink += 1;
    }
    object::store(txn, file, &inode)?;
    place.insert(txn, Target { ino: file.ino, file_type: inode.file_type })?;
    parent_inode.length += 1;
    parent_inode.touch_content(ctx);
    object::store(txn, parent, &parent_inode)?;
    Ok(attributes::of_new(file, &inode))
}

/// Fails unless the caller may add an entry of this type to the directory.
pub(crate) fn check_addition<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    parent_inode: &Inode,
    file_type: FileType,
) -> Result<()> {
    if parent_inode.nlink == 0 {
        return Err(Error::NotFound);
    }
    permission::check_change(txn, ctx, parent, parent_inode)?;
    if file_type == FileType::Directory && parent_inode.nlink >= LINKS_MAX {
        return Err(Error::TooManyLinks);
    }
    Ok(())
}

/// A new inode with owner, permissions and ACLs, and the target of a link. The inode is not
/// stored yet.
pub(crate) fn make<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    parent_inode: &Inode,
    object: &NewObject<'_>,
) -> Result<(FileId, Inode)> {
    let file = FileId::new(parent.subvol, txn.new_inode(parent.subvol)?);
    let mut inode = blank(ctx, object.file_type);
    inode.permissions = object.permissions & mode::CHANGEABLE;
    inode.rdev = object.rdev;
    if parent_inode.permissions & mode::SET_GROUP != 0 {
        inherit_group(ctx, parent_inode, &mut inode);
    }
    if object.file_type == FileType::Symlink {
        inode.length = object.target.len() as u64;
        txn.put(file.key(Kind::SYMLINK, 0), object.target.to_vec())?;
    } else if parent_inode.flags.has(Flags::DEFAULT_ACL) {
        inherit_acl(txn, ctx, parent, file, &mut inode)?;
    } else {
        inode.permissions &= !(ctx.caller.umask & mode::PERMISSIONS);
    }
    Ok((file, inode))
}

fn inherit_group(ctx: &Context, parent_inode: &Inode, inode: &mut Inode) {
    inode.gid = parent_inode.gid;
    if inode.is_directory() {
        inode.permissions |= mode::SET_GROUP;
        return;
    }
    // Else anybody could make programs that run with the rights of the directory's group.
    let is_program = inode.permissions & mode::GROUP_EXECUTE != 0;
    if is_program && !permission::may_set_group(ctx, inode.gid) {
        inode.permissions &= !mode::SET_GROUP;
    }
}

fn inherit_acl<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    parent: FileId,
    file: FileId,
    inode: &mut Inode,
) -> Result<()> {
    let Some(mut acl) = xattr::load_acl(txn, ctx, parent, AclKind::Default)? else {
        return Ok(());
    };
    if inode.is_directory() {
        xattr::store_acl(txn, ctx, file, inode, AclKind::Default, Some(&acl))?;
    }
    acl.restrict(inode.permissions);
    inode.permissions = inode.permissions & !mode::PERMISSIONS | acl.permissions();
    xattr::store_acl(txn, ctx, file, inode, AclKind::Access, Some(&acl))
}

fn blank(ctx: &Context, file_type: FileType) -> Inode {
    let now = ctx.now;
    Inode {
        permissions: 0,
        file_type,
        flags: Flags::default(),
        uid: ctx.caller.uid,
        gid: ctx.caller.gid,
        nlink: 1,
        rdev: 0,
        // Numbers are used once in a history; the time tells histories apart.
        generation: (now.seconds as u64) << 30 | u64::from(now.nanos),
        parent: Ino(0),
        length: 0,
        place: 0,
        change: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    }
}
