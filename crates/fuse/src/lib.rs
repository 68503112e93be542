//! The kernel's FUSE protocol: our own, and all of it that a coherent filesystem needs.
//!
//! ```text
//!   mount ------> Device ------> Session ------> Handler <------> your filesystem
//!   mountinfo       ^  reads, threads, deadlines     |
//!                   |                                v
//!                   +------ Notifier           Request / Reply
//! ```
//!
//! - [`mount`]: attach a [`Device`] to a directory, detach it;
//! - [`mountinfo`]: find mounts, dead ones too, without touching them; [`probe`]: tell which are
//!   dead;
//! - [`namespace`]: mounts that only one thread sees;
//! - [`Session`]: negotiate, read on several threads, interrupt, time out, end;
//! - [`Request`], [`Op`]: what the kernel asks, decoded and bounds-checked;
//! - [`Reply`]: the answers, each sent exactly once;
//! - [`Notifier`]: cache invalidation;
//! - [`abi`]: the bytes.
//!
//! Invariants: every request is answered in bounded time, whatever the handler does (locks: until a
//! signal); something always reads, so signals and forgets are never stuck behind requests; memory
//! is one buffer a thread plus a bounded backlog; nothing the kernel sends can make decoding panic.
//!
//! Absent: an inode table, caching, async runtimes, FUSE over io_uring, passthrough, DAX, CUSE, and
//! any knowledge of Gabion.

pub mod abi;
mod attachment;
mod attr;
mod bits;
mod buffer;
mod crew;
pub mod decode;
mod device;
mod directory;
mod features;
mod flight;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
mod notify;
mod probe;
mod reply;
mod request;
mod session;
mod unmount;
mod wake;

pub use attr::{Attr, Entry, ExtendedAttr, OpenFlags, Opened, Statfs};
pub use buffer::{PAGE, PAYLOAD_MAX, Payload, PayloadBuffer};
pub use device::Device;
pub use directory::{DirectoryBuffer, DirectoryEntry, DirectoryPlusBuffer, Fit, Listing};
pub use features::{Features, InitReply, KernelOffer};
pub use flight::{Cancel, CancelReason};
pub use notify::{ByteRange, Notifier};
pub use probe::{Liveness, probe};
pub use reply::{Errno, Outcome, Reply};
pub use request::*;
pub use session::{Config, End, Handler, Session, SessionError};
