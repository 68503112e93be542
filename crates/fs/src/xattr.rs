//! Extended attributes, and the ACLs that are kept in them.
//!
//! | namespace   | who reads            | who writes           | on what                    |
//! |-------------|----------------------|----------------------|----------------------------|
//! | `user.`     | who may read bytes   | who may write bytes  | files and directories      |
//! | `trusted.`  | superuser            | superuser            | everything                 |
//! | `security.` | everyone             | superuser            | everything                 |
//! | `system.`   | everyone             | owner                | the two POSIX ACLs only    |
//!
//! Names of other namespaces are not supported. Flags of the inode say which of the attributes
//! that hot paths ask for are there, so that asking for an absent one reads nothing more.

use gabion_map::txn::VALUE_LENGTH_MAX as ITEM_LENGTH_MAX;
use gabion_map::{FileId, Key, Kind, Txn};

use crate::acl::Acl;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::format;
use crate::format::inode::{Flags, Inode};
use crate::format::xattr::{AttributeList, NAME_LENGTH_MAX, VALUE_LENGTH_MAX};
use crate::mode::{self, FileType};
use crate::object::{self, bad_item};
use crate::permission::{self, Access};

/// The longest value that the system call knows; longer than what is kept here.
pub const CALL_VALUE_LENGTH_MAX: usize = 65_536;
/// The longest list of names, in bytes.
pub const LIST_LENGTH_MAX: usize = 65_536;

const CAPABILITY: &[u8] = b"security.capability";
const SCAN_BATCH: usize = 64;

/// Which ACL of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclKind {
    /// Who may use the object.
    Access,
    /// What objects in the directory start with.
    Default,
}

impl AclKind {
    /// The attribute's name.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }

    fn of_name(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| kind.name() == name)
    }

    const fn flag(self) -> Flags {
        match self {
            Self::Access => Flags::ACCESS_ACL,
            Self::Default => Flags::DEFAULT_ACL,
        }
    }
}

/// What an attribute may be set over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetCondition {
    /// Anything.
    Always,
    /// Nothing (`XATTR_CREATE`).
    Absent,
    /// A value (`XATTR_REPLACE`).
    Present,
}

/// What becomes of the set-group bit when an access ACL is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetGroupBit {
    /// It stays (unless the check made here finds that it may not).
    Keep,
    /// It goes: the kernel found that the caller is not in the group.
    Clear,
}

/// The value of an attribute. `NoAttribute` if it is not set.
pub fn value<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    name: &[u8],
) -> Result<Vec<u8>> {
    let inode = object::load(txn, file)?;
    let namespace = Namespace::of(name)?;
    check_read(txn, ctx, file, &inode, namespace)?;
    if !inode.flags.has(flag_of(name)) {
        return Err(Error::NoAttribute);
    }
    let key = key_of(ctx, file, name);
    let item = txn.get(key)?.ok_or(Error::NoAttribute)?;
    let list = AttributeList::decode(&item).map_err(|source| bad_item(key, source))?;
    let found = list.find(name).map_err(|source| bad_item(key, source))?;
    found.map(<[u8]>::to_vec).ok_or(Error::NoAttribute)
}

/// Sets an attribute. An empty ACL removes it.
pub fn set<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    name: &[u8],
    value: &[u8],
    condition: SetCondition,
    set_group: SetGroupBit,
) -> Result<()> {
    let mut inode = object::load_exclusive(txn, file)?;
    let namespace = Namespace::of(name)?;
    if value.len() > CALL_VALUE_LENGTH_MAX {
        return Err(Error::AttributeTooLarge);
    }
    check_write(txn, ctx, file, &inode, namespace)?;
    if value.len() > VALUE_LENGTH_MAX {
        return Err(Error::ObjectFull);
    }
    txn.require_space()?;
    if let Some(kind) = AclKind::of_name(name) {
        let acl = format::acl::decode(value).map_err(|_| Error::InvalidArgument)?;
        return set_acl(txn, ctx, file, inode, kind, acl, set_group);
    }
    store_value(txn, ctx, file, name, value, condition)?;
    inode.flags.set(flag_of(name));
    inode.flags.set(Flags::ATTRIBUTES);
    inode.touch(ctx);
    object::store(txn, file, &inode)
}

/// Removes an attribute. `NoAttribute` if it is not set, but for ACLs.
pub fn remove<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    name: &[u8],
) -> Result<()> {
    let mut inode = object::load_exclusive(txn, file)?;
    let namespace = Namespace::of(name)?;
    check_write(txn, ctx, file, &inode, namespace)?;
    if !remove_value(txn, ctx, file, name)? {
        // To have no ACL is all that who removes one wants.
        let is_acl = matches!(namespace, Namespace::Acl(_));
        return if is_acl { Ok(()) } else { Err(Error::NoAttribute) };
    }
    let flag = flag_of(name);
    if flag != Flags::ATTRIBUTES {
        inode.flags.clear(flag);
    }
    inode.touch(ctx);
    object::store(txn, file, &inode)
}

/// The names of all attributes that the caller may see, each ended by a NUL, as listxattr(2)
/// gives them.
pub fn list<T: Txn + ?Sized>(txn: &mut T, ctx: &Context, file: FileId) -> Result<Vec<u8>> {
    let inode = object::load(txn, file)?;
    let mut names = Vec::new();
    if !inode.flags.has(Flags::ATTRIBUTES) {
        return Ok(names);
    }
    let mut from = file.key(Kind::XATTR, 0);
    let to = file.key(Kind::XATTR, u64::MAX);
    // Each round but the last adds names, and their total length is bounded.
    loop {
        let items = txn.scan(from, to, SCAN_BATCH)?;
        for (key, item) in &items {
            append_names(&mut names, ctx, *key, item)?;
        }
        let next = items.last().and_then(|(key, _)| key.successor());
        match next {
            Some(next) if items.len() == SCAN_BATCH && next <= to => from = next,
            _ => return Ok(names),
        }
    }
}

fn append_names(names: &mut Vec<u8>, ctx: &Context, key: Key, item: &[u8]) -> Result<()> {
    let mut list = AttributeList::decode(item).map_err(|source| bad_item(key, source))?;
    while let Some(attribute) = list.next_attribute().map_err(|source| bad_item(key, source))? {
        if attribute.name.starts_with(b"trusted.") && !ctx.caller.is_superuser() {
            continue;
        }
        if names.len() + attribute.name.len() >= LIST_LENGTH_MAX {
            return Err(Error::AttributeTooLarge);
        }
        names.extend_from_slice(attribute.name);
        names.push(0);
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespace {
    User,
    Trusted,
    Security,
    Acl(AclKind),
}

impl Namespace {
    fn of(name: &[u8]) -> Result<Self> {
        if name.is_empty() || name.len() > NAME_LENGTH_MAX {
            return Err(Error::BufferTooSmall);
        }
        if let Some(kind) = AclKind::of_name(name) {
            return Ok(Self::Acl(kind));
        }
        let namespaces = [
            (&b"user."[..], Self::User),
            (&b"trusted."[..], Self::Trusted),
            (&b"security."[..], Self::Security),
        ];
        for (prefix, namespace) in namespaces {
            match name.strip_prefix(prefix) {
                Some([]) => return Err(Error::InvalidArgument),
                Some(rest) if rest.contains(&0) => return Err(Error::InvalidArgument),
                Some(_) => return Ok(namespace),
                None => {}
            }
        }
        Err(Error::NotSupported)
    }
}

fn has_user_attributes(inode: &Inode) -> bool {
    matches!(inode.file_type, FileType::Regular | FileType::Directory)
}

fn check_read<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
    namespace: Namespace,
) -> Result<()> {
    match namespace {
        Namespace::User if !has_user_attributes(inode) => Err(Error::NoAttribute),
        Namespace::User => permission::check(txn, ctx, file, inode, Access::READ),
        Namespace::Trusted => permission::check_superuser(ctx).map_err(|_| Error::NoAttribute),
        Namespace::Acl(_) if inode.file_type == FileType::Symlink => Err(Error::NotSupported),
        Namespace::Security | Namespace::Acl(_) => Ok(()),
    }
}

fn check_write<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &Inode,
    namespace: Namespace,
) -> Result<()> {
    match namespace {
        Namespace::User if !has_user_attributes(inode) => Err(Error::NotPermitted),
        Namespace::User => {
            if inode.is_directory() && inode.permissions & mode::STICKY != 0 {
                permission::check_owner(ctx, inode)?;
            }
            permission::check(txn, ctx, file, inode, Access::WRITE)
        }
        Namespace::Trusted | Namespace::Security => permission::check_superuser(ctx),
        Namespace::Acl(_) if inode.file_type == FileType::Symlink => Err(Error::NotSupported),
        Namespace::Acl(_) => permission::check_owner(ctx, inode),
    }
}

fn set_acl<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    mut inode: Inode,
    kind: AclKind,
    acl: Option<Acl>,
    set_group: SetGroupBit,
) -> Result<()> {
    match (kind, &acl) {
        (AclKind::Default, Some(_)) if !inode.is_directory() => return Err(Error::AccessDenied),
        (AclKind::Access, Some(acl)) => {
            inode.permissions = inode.permissions & !mode::PERMISSIONS | acl.permissions();
            let must_clear = set_group == SetGroupBit::Clear;
            if must_clear || !permission::may_set_group(ctx, inode.gid) {
                inode.permissions &= !mode::SET_GROUP;
            }
        }
        _ => {}
    }
    store_acl(txn, ctx, file, &mut inode, kind, acl.as_ref())?;
    inode.touch(ctx);
    object::store(txn, file, &inode)
}

/// Puts or removes the ACL's attribute and sets the inode's flag; the inode is not stored. An
/// access ACL that the mode word says as well is not kept.
pub(crate) fn store_acl<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
    kind: AclKind,
    acl: Option<&Acl>,
) -> Result<()> {
    let kept = acl.filter(|acl| kind == AclKind::Default || !acl.is_mode_word());
    match kept {
        Some(acl) => {
            let bytes = format::acl::encode(acl);
            store_value(txn, ctx, file, kind.name(), &bytes, SetCondition::Always)?;
            inode.flags.set(kind.flag());
            inode.flags.set(Flags::ATTRIBUTES);
        }
        None if inode.flags.has(kind.flag()) => {
            remove_value(txn, ctx, file, kind.name())?;
            inode.flags.clear(kind.flag());
        }
        None => {}
    }
    Ok(())
}

/// The ACL of an object whose flags say that it has one.
pub(crate) fn load_acl<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    kind: AclKind,
) -> Result<Option<Acl>> {
    let key = key_of(ctx, file, kind.name());
    let Some(item) = txn.get(key)? else { return Ok(None) };
    let list = AttributeList::decode(&item).map_err(|source| bad_item(key, source))?;
    match list.find(kind.name()).map_err(|source| bad_item(key, source))? {
        Some(bytes) => format::acl::decode(bytes).map_err(|source| bad_item(key, source)),
        None => Ok(None),
    }
}

/// Removes the capabilities of a file whose bytes or owner change; the inode is not stored.
pub(crate) fn drop_capability<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    inode: &mut Inode,
) -> Result<()> {
    if inode.flags.has(Flags::CAPABILITY) {
        remove_value(txn, ctx, file, CAPABILITY)?;
        inode.flags.clear(Flags::CAPABILITY);
    }
    Ok(())
}

fn flag_of(name: &[u8]) -> Flags {
    if name == CAPABILITY {
        return Flags::CAPABILITY;
    }
    AclKind::of_name(name).map_or(Flags::ATTRIBUTES, AclKind::flag)
}

fn key_of(ctx: &Context, file: FileId, name: &[u8]) -> Key {
    file.key(Kind::XATTR, format::xattr::position(name, ctx.seed))
}

fn store_value<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    name: &[u8],
    value: &[u8],
    condition: SetCondition,
) -> Result<()> {
    let key = key_of(ctx, file, name);
    let old = txn.get(key)?;
    let mut is_present = false;
    if let Some(old) = &old {
        let list = AttributeList::decode(old).map_err(|source| bad_item(key, source))?;
        is_present = list.find(name).map_err(|source| bad_item(key, source))?.is_some();
    }
    match condition {
        SetCondition::Absent if is_present => return Err(Error::Exists),
        SetCondition::Present if !is_present => return Err(Error::NoAttribute),
        _ => {}
    }
    let item =
        format::xattr::set(old.as_deref(), name, value).map_err(|source| bad_item(key, source))?;
    if item.len() > ITEM_LENGTH_MAX {
        return Err(Error::ObjectFull);
    }
    Ok(txn.put(key, item)?)
}

/// Whether there was such an attribute.
fn remove_value<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    name: &[u8],
) -> Result<bool> {
    let key = key_of(ctx, file, name);
    let Some(old) = txn.get(key)? else { return Ok(false) };
    let list = AttributeList::decode(&old).map_err(|source| bad_item(key, source))?;
    if list.find(name).map_err(|source| bad_item(key, source))?.is_none() {
        return Ok(false);
    }
    match format::xattr::remove(&old, name).map_err(|source| bad_item(key, source))? {
        Some(item) => txn.put(key, item)?,
        None => txn.delete(key)?,
    }
    Ok(true)
}
