//! The protocol against the kernel: real mounts of a filesystem in memory. All but `decode` and
//! `wire` need root and `/dev/fuse`.
//!
//! A call that may hang is made by a process of its own: a thread of this one would keep the device
//! open, and with it the mount, beyond the end of the test.

mod attaching;
mod decode;
mod ending;
mod files;
mod memfs;
mod namespaces;
mod waiting;
mod wire;
