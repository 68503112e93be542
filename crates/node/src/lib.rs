//! Gabion's programs as values: what a process runs, without the process.
//!
//! ```text
//!   front end (FUSE mount, tests, simulator)
//!        |  Filesystem: operations, forget    |  threads: what is to be done in the background
//!        v                                    v
//!   LocalFs: one subvolume of one map, and what is true of it only while it is in use
//!        |   References   who still refers to which object
//!        |   Reaper       orphans that nobody refers to any more
//!        |   Locks        advisory locks and who waits for them
//!        v
//!   gabion_fs operations  over  gabion_map::LocalMap
//! ```
//!
//! - [`Filesystem`]: what a front end needs, whoever keeps the files;
//! - [`LocalFs`]: all file operations of one local filesystem;
//! - [`format_filesystem`]: makes a filesystem with one empty subvolume;
//! - [`Locks`]: advisory locks with waiters, on top of the state machine of `gabion_fs`.
//!
//! Invariant: an object that somebody refers to is not removed from the map, and one without a
//! name that nobody refers to is removed sooner or later, at the latest after the next start.
//!
//! Absent: threads, clocks (a [`Clock`] is given), the kernel's protocol, networks, and any rule
//! of files: those are `gabion_fs`'s.

#![forbid(unsafe_code)]

mod background;
mod bytes;
mod clock;
mod delta;
mod differences;
mod eras;
mod filesystem;
mod format;
mod local;
mod local_filesystem;
mod locks;
mod names;
mod numbering;
mod objects;
mod operation;
mod path;
mod reaper;
mod references;
pub mod remote;
mod rollback;
mod schedules;
pub mod served;
mod snapshots;
mod stretches;
mod subvolumes;
mod together;

pub use bytes::{COPY_BYTES_MAX, COPY_CHUNK};
pub use clock::Clock;
pub use delta::{Delta, Touched, delta, delta_from};
pub use differences::{Change, differences};
pub use eras::Eras;
pub use filesystem::{BackgroundLoop, Filesystem, Kept, Reader};
pub use format::format_filesystem;
pub use local::{LocalFs, Settings};
pub use locks::{LockEnd, LockList, Locks};
pub use numbering::number;
pub use reaper::Reaped;
pub use rollback::{RolledBack, kept_name, left_without_name};
pub use schedules::FilesystemWatcher;
pub use snapshots::SNAPSHOTS_NAME;
pub use stretches::Stretch;
pub use subvolumes::Attached;
