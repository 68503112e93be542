//! The local client as a value: no kernel, no threads, no real disk.

mod background;
mod files;
mod locks;
mod orphans;
mod shared;
mod world;
