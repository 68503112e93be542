//! The front end of a mount: takes the kernel's requests to a
//! [`Filesystem`](gabion_node::Filesystem) and the answers back.
//!
//! ```text
//!   kernel <-> gabion_fuse::Session --(Front: decode, call, encode)--> Filesystem
//!      ^                                   its background loops ---^   |  (a thread each)
//!      +------------------------ Notifier <----------------------------+  (only if shared)
//! ```
//!
//! With [`Coherence::Alone`], only this kernel changes the filesystem, so whatever it caches stays
//! true: names, absent names, attributes, pages and listings are cached without end, and it
//! invalidates by itself what its own operations change. What follows from that:
//!
//! - Nobody is asked to open or close ([`Locking::Kernel`]): the first OPEN is answered ENOSYS, and
//!   the kernel opens by itself from then on. Unlinked files are safe, because the kernel does not
//!   forget what it has open.
//! - Advisory locks are the kernel's own, for all who lock are its processes. Then FLUSH has
//!   nothing to tell either. With [`Locking::Filesystem`] the locks are kept in the filesystem's
//!   table, opens are counted, and FLUSH and RELEASE are listened to: for a filesystem that is
//!   reached in other ways too.
//! - The kernel checks permissions, by mode, owner and ACL. That nothing in a snapshot can be
//!   written it does not know: see `refused.rs`.
//!
//! With [`Coherence::Shared`], others change it, too:
//!
//! - Names and attributes are cached without end where the filesystem says that it will tell when
//!   they are no longer true, and else not at all. It tells through [`Mounted::notifier`], once the
//!   request is answered, which it learns on the thread that handled it; of names through
//!   [`CachedNames`], as they are not cached while something is mounted on the filesystem.
//! - All files and directories are opened and closed, and locks are the filesystem's. Listings are
//!   not cached, and the kernel collects no writes: it would take its own size and times for true.
//! - A file that is open for writing is read and written past the page cache; one that is open for
//!   reading keeps its pages, as long as its time of modification stays. What is appended is put
//!   where the file ends by then.
//! - A file that is open for both can be mapped. The filesystem is told of such openings, as it
//!   gives pages then that programs may change; and what the kernel hands over of them later is
//!   not what a program writes now.
//! - Where a file ends the kernel learns from its attributes alone: pages are filled to their ends.
//!
//! The end: unmounted (or the connection aborted) -> all requests answered -> orphans reaped,
//! everything committed -> on a block device, umount(2) returns -> background threads end ->
//! [`Mounted::wait`] returns.
//!
//! Absent: rules of files, which are `gabion_fs`'s, and errno numbers but those of the protocol
//! itself.

mod bytes;
mod cached_names;
mod curtain;
mod descriptions;
mod encode;
mod front;
mod groups;
mod kernel;
mod locks;
mod mounted;
mod names;
mod objects;
mod refused;
mod rollbacks;
mod seeks;
mod shortages;
mod system_clock;

pub use cached_names::CachedNames;
pub use curtain::Curtain;
pub use mounted::{End, Error, MountRequest, Mounted};
pub use rollbacks::Rollbacks;
pub use system_clock::SystemClock;

/// Who keeps bytes that were just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePolicy {
    /// The kernel collects them and hands them over when a file is closed or synced, memory is
    /// short, or time has passed.
    Back,
    /// The filesystem gets each write at once.
    Through,
}

/// Who keeps advisory locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// This kernel, for its own processes.
    Kernel,
    /// The filesystem, for everybody who reaches it.
    Filesystem,
}

/// Who changes the filesystem of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    /// Only this kernel.
    Alone,
    /// Others, too. Locks are the filesystem's and writes go through, whatever else is said.
    Shared,
}

/// Who may use a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// Only who mounted it.
    Owner,
    /// Everybody, by the files' permissions.
    Everybody,
}
