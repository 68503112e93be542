//! What volumes keep on their members and with the coordinator; nothing else in this crate makes
//! bytes that last.
//!
//! All integers on disks are little-endian. `docs/volumes.md` says where the structures are.

pub mod bitmap;
pub mod header;
pub mod record;
