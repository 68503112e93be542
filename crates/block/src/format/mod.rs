//! The bytes that volumes keep on their members; nothing else in this crate makes bytes for disks.
//!
//! All integers are little-endian. `docs/volumes.md` says where the structures are.

pub mod bitmap;
pub mod header;
