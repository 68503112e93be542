//! The local client as a value: no kernel, no threads, no real disk.

mod files;
mod locks;
mod orphans;
mod world;
