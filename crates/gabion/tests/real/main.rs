//! Gabion as people use it: the real program mounts an image on a real disk, and other people's
//! programs work on it.
//!
//! ```text
//! trees      untar, git, cargo                     what was put there is there, bit by bit
//! databases  SQLite by several processes           its own checks, before and after a remount
//! backups    PostgreSQL under pgbench              starts from what was saved, and fits together
//! suites     fsx, stress-ng, pjdfstest             as their authors mean them
//! kills      kill -9 of the daemon in the midst    what was synced is there; mounts stay short
//! full       write until it is full, hundreds of   deleting works, nothing synced is lost, what
//!            times                                 statfs says can be had
//! sharing    several processes on the same files   locks, mappings, appends, renames, listings
//! shared     several mounts of one server          all see the same at once; kills, cut links
//! edges      longest names, deepest folders, last  refused or kept exactly
//!            bytes, most attributes
//! waiting    killed callers, busy mounts           nothing hangs
//! ```
//!
//! Run as root: `cargo test -p gabion --test real -- --test-threads=2`. `GABION_LONG=1` makes every
//! test do what a night allows; `GABION_REAL_ON=ext4` runs them on ext4 to test the tests;
//! `GABION_REAL_KEEP=1` keeps the images. A test whose program is missing fails and says what
//! installs it: nothing here is ever skipped.

mod backups;
mod databases;
mod edges;
mod full;
#[path = "../guard/mod.rs"]
mod guard;
mod kills;
mod numbers;
mod program;
mod shared;
mod sharing;
mod site;
mod suites;
mod tree;
mod trees;
mod waiting;

/// A mebibyte.
const MIB: u64 = 1 << 20;
/// A gibibyte.
const GIB: u64 = 1 << 30;
