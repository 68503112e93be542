//! The rules of files: every POSIX operation, written once, over any map.
//!
//! An operation is a function of a transaction ([`Txn`](gabion_map::Txn)), of its circumstances
//! ([`Context`]) and of its arguments. It reads items, decides, and puts items. A local mount, a
//! server and a client's cache run the same functions on their own transactions, a simulator on
//! its own.
//!
//! - **Pure.** Time, caller and inode numbers come in with the call. An operation can be run again
//!   from its start any time, and is, whenever a lock is missing
//!   ([`Stop::Need`](gabion_map::Stop)).
//! - **Atomic.** An error means that nothing has changed. The only effect before the end is that
//!   of [`Txn::write`](gabion_map::Txn::write), which is therefore the last call.
//! - **Few questions.** `create`, `lookup`, `stat` and `write` are hot: they ask for each item
//!   once, and lock exclusively what they are going to change before they read it.
//!
//! Words: an *object* is anything with an inode; a *file* is an object with bytes; a *name* stands
//! in a directory for an object; an *orphan* is an object without a name.
//!
//! Absent: paths (callers walk them), handles and what is open ([`Opens`] tells), clocks, quotas,
//! the numbers of statfs(2), and whatever only concerns the kernel's own caches. Advisory locks
//! ([`lock`]) live in memory beside the map, never in it.

#![forbid(unsafe_code)]

pub mod acl;
pub mod atime;
pub mod attributes;
pub mod bytes;
pub mod caller;
pub mod context;
pub mod copy;
pub mod create;
pub mod directory;
mod entry;
pub mod errno;
pub mod error;
pub mod format;
pub mod link;
pub mod lock;
pub mod lookup;
pub mod mode;
pub mod object;
pub mod open;
pub mod orphan;
pub mod permission;
pub mod remove;
pub mod rename;
pub mod setattr;
pub mod space;
pub mod subvolume;
pub mod xattr;

pub use atime::{AtimePolicy, AtimeRules, needs_atime, record_reading};
pub use attributes::{Attributes, stat};
pub use bytes::{WriteAt, Written, read, write, write_untimed};
pub use caller::{Caller, Groups, Trust};
pub use context::{Context, OpenState, Opens, Privileges};
pub use copy::{CopyRequest, copy_range};
pub use create::{
    Disposition, IfExists, Linkable, create, format_root, mkdir, mknod, symlink, tmpfile,
};
pub use directory::{Detail, Listed, Listing, readdir};
pub use errno::errno;
pub use error::{Error, Result};
pub use link::{link, readlink};
pub use lookup::{lookup, lookup_parent};
pub use mode::FileType;
pub use object::ROOT;
pub use open::{OpenRequest, open};
pub use orphan::{orphans, reap};
pub use permission::{Access, access};
pub use remove::{Fate, Unnamed, rmdir, unlink};
pub use rename::{IfTaken, Leave, RenameRequest, Renamed, rename};
pub use setattr::{Changes, SetTime, Through, setattr};
pub use space::{SizeRule, SpaceRequest, fallocate, seek};
