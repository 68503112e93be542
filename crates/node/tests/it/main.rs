//! The local client as a value: no kernel, no threads, no real disk.

mod background;
mod files;
mod locks;
mod orphans;
mod rights;
mod shared;
mod snapshots;
mod subtree;
mod world;
