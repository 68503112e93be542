//! The local client as a value: no kernel, no threads, no real disk.

mod background;
mod costs;
mod differences;
mod files;
mod kernels;
mod locking;
mod locking_model;
mod locks;
mod losses;
mod orphans;
mod quotas;
mod readings;
mod recovery;
mod refinding;
mod rights;
mod room;
mod schedules;
mod served_snapshots;
mod sessions;
mod shared;
mod snapshots;
mod stale;
mod subtree;
mod together;
mod walks;
mod world;
