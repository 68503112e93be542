//! The program `gabion` as its users meet it: command lines, exit codes, real mounts.
//!
//! What needs root and `/dev/fuse` is left out without them, and says so.

mod backups;
mod events;
mod exports;
mod failover;
mod formatting;
mod grow;
#[path = "../guard/mod.rs"]
mod guard;
mod guarded;
mod hostile;
mod joining;
mod link_limits;
mod mapped;
mod misuse;
mod mount8;
mod mount_files;
mod mount_locks;
mod mount_shared;
mod mount_sync;
mod mount_world;
mod mounting;
mod mounts_inside;
mod offline;
mod ordinary;
mod quotas;
mod raw;
mod readme;
mod renewals;
mod repairs;
mod rollbacks;
mod schedules;
mod scrubbing;
mod served_policies;
mod served_snapshots;
mod shared;
mod shared_admin;
mod shared_failures;
mod snapshots;
mod strange_names;
mod subvolume_names;
mod target;
mod times;
mod undelete;
mod up;
mod volumes;
mod walks;
mod wiretap;
mod world;
