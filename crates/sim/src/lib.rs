//! The world that Gabion is tested in, and the judges of what it does there.
//!
//! ```text
//!  workload ── operations ──► a system ──── requests ──► SimDisk ── log ──► CrashPoints
//!      │                         │ answers, dump                                │ images
//!      └────► model ◄─ compare ──┘                                              ▼
//!               └──── history ──► check::verify ◄── dump ── the system, mounted again
//! ```
//!
//! - [`disk`], [`image`], [`faults`], [`crash`]: a disk with a volatile cache that remembers
//!   everything, and every crash it may suffer.
//! - [`op`], [`workload`], [`model`], [`tree`]: operations, seeded sequences of them, a naive
//!   filesystem that knows the right answers, and a filesystem written down.
//! - [`history`], [`check`]: what was promised to whom, and what a crash may leave of it.
//! - [`trial`]: all of it together, for any [`trial::Engine`].
//!
//! - [`forest`]: a naive forest of subvolumes, snapshots and clones.
//! - [`volume`]: a world of its own for mirrors: hosts, members, a network, a coordinator; and one
//!   for whole volumes of mirrors within other things.
//! - [`cluster`]: another one for the link: clients with kernels and programs, a server, a network.
//!
//! Everything follows from seeds; there is no clock and no file here, and no thread but those of
//! [`cluster`] and [`volume::nested`], of which one runs at a time. What keeps a filesystem comes
//! to it as a trait, and the judges share no code with it. Of the product the crate knows
//! `gabion-base`, `gabion-block` for [`volume`], and what it takes to run volumes for
//! [`volume::nested`], and a client and a server for [`cluster`], alone.

#![forbid(unsafe_code)]

pub mod check;
pub mod cluster;
pub mod crash;
pub mod disk;
pub mod faults;
pub mod forest;
pub mod history;
pub mod image;
pub mod model;
pub mod op;
pub mod tree;
pub mod trial;
pub mod volume;
pub mod workload;
