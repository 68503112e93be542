//! The local client as a value: no kernel, no threads, no real disk.

mod background;
mod files;
mod locking;
mod locks;
mod losses;
mod orphans;
mod quotas;
mod recovery;
mod rights;
mod schedules;
mod served_snapshots;
mod shared;
mod snapshots;
mod stale;
mod subtree;
mod walks;
mod world;
