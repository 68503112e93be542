//! What stat(2) and statx(2) tell of an object.

use gabion_base::BLOCK_SIZE;
use gabion_base::time::Timestamp;
use gabion_map::format::item::INLINE_LENGTH_MAX;
use gabion_map::{FileId, Txn};

use crate::error::Result;
use crate::format::inode::Inode;
use crate::mode::FileType;
use crate::object;

const SECTORS_PER_BLOCK: u64 = BLOCK_SIZE as u64 / 512;

/// An object's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The object.
    pub file: FileId,
    /// Tells apart objects that had the same number in different histories of a subvolume.
    pub generation: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Bytes of a file, entries of a directory, bytes of a symlink's target.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub sectors: u64,
    /// Last reading.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Counts changes; for caches that have to know whether anything happened. Writes of bytes in
    /// one tick of the clock count once.
    pub change: u64,
}

impl Attributes {
    /// What the object is.
    pub fn file_type(&self) -> FileType {
        FileType::of_mode(self.mode).expect("the mode was made from a type")
    }
}

/// The attributes of `file`. `Stale` if it is gone.
pub fn stat<T: Txn + ?Sized>(txn: &mut T, file: FileId) -> Result<Attributes> {
    let inode = object::load(txn, file)?;
    of_inode(txn, file, &inode)
}

/// The attributes of an object whose inode is at hand.
pub(crate) fn of_inode<T: Txn + ?Sized>(
    txn: &mut T,
    file: FileId,
    inode: &Inode,
) -> Result<Attributes> {
    let (size, blocks) = match inode.file_type {
        FileType::Regular => {
            let extent = txn.file(file)?;
            // The bytes of a small file lie in its item. Zero blocks would say that it is a hole:
            // some programs that look for holes believe it without reading.
            let inline = extent.size > 0 && extent.size <= INLINE_LENGTH_MAX as u64;
            (extent.size, extent.blocks.max(u64::from(inline)))
        }
        _ => (inode.length, 0),
    };
    Ok(assemble(file, inode, size, blocks))
}

/// The attributes of an object that was just made and has no bytes.
pub(crate) fn of_new(file: FileId, inode: &Inode) -> Attributes {
    assemble(file, inode, inode.length, 0)
}

fn assemble(file: FileId, inode: &Inode, size: u64, blocks: u64) -> Attributes {
    Attributes {
        file,
        generation: inode.generation,
        mode: inode.mode(),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size,
        sectors: blocks.saturating_mul(SECTORS_PER_BLOCK),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
        change: inode.change,
    }
}
