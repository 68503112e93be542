//! The bytes of the items that the rules of files own.
//!
//! | item    | module      | at                                   |
//! |---------|-------------|--------------------------------------|
//! | INODE   | [`inode`]   | 0                                    |
//! | DIRENT  | [`dirent`]  | [`dirent::position`] of the name     |
//! | XATTR   | [`xattr`]   | [`xattr::position`] of the name      |
//! | SYMLINK | none        | 0; the value is the target, bare     |
//! | ORPHAN  | none        | the inode; the value is empty        |
//!
//! Each of the first three starts with a version byte. Decoders accept any bytes and answer with
//! a value or a reason. All numbers are little-endian.

pub mod acl;
pub mod dirent;
pub mod inode;
pub mod xattr;
