//! Opening: what may be done through a handle is checked once, here.

use gabion_map::{FileId, LockMode, Txn};

use crate::attributes::{self, Attributes};
use crate::context::{Context, Privileges};
use crate::error::{Error, Result};
use crate::format::inode::Inode;
use crate::mode::FileType;
use crate::object;
use crate::permission::{self, Access};
use crate::setattr;

/// What an object is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// To read, to write, to execute.
    pub access: Access,
    /// Whether all bytes go (`O_TRUNC`), and what then becomes of the set-user and set-group
    /// bits.
    pub truncate: Option<Privileges>,
}

impl OpenRequest {
    /// To read.
    pub const READ: OpenRequest = OpenRequest { access: Access::READ, truncate: None };
}

/// Checks that the caller may open `file` and, if asked for, removes its bytes.
pub fn open<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    request: &OpenRequest,
) -> Result<Attributes> {
    if request.truncate.is_some() {
        txn.lock(file, LockMode::Exclusive)?;
    }
    let inode = object::load(txn, file)?;
    open_inode(txn, ctx, file, inode, request)
}

/// The same with the inode at hand. The file is locked exclusively if it is to be truncated.
pub(crate) fn open_inode<T: Txn + ?Sized>(
    txn: &mut T,
    ctx: &Context,
    file: FileId,
    mut inode: Inode,
    request: &OpenRequest,
) -> Result<Attributes> {
    let changes = request.access.has(Access::WRITE) || request.truncate.is_some();
    if inode.is_directory() && changes {
        return Err(Error::IsDirectory);
    }
    let mut access = request.access;
    if request.truncate.is_some() {
        access = access | Access::WRITE;
    }
    permission::check(txn, ctx, file, &inode, access)?;
    // Of pipes and devices there is nothing to remove.
    if let Some(privileges) = request.truncate
        && inode.file_type == FileType::Regular
    {
        setattr::clear_privileges(txn, ctx, file, &mut inode, privileges)?;
        inode.touch_content(ctx);
        object::store(txn, file, &inode)?;
        txn.set_size(file, 0)?;
    }
    attributes::of_inode(txn, file, &inode)
}
