//! The on-disk format: the only place in this crate where values become bytes and back.
//!
//! Everything is little-endian. Every decoder is total: it returns a value or a reason, never
//! panics, and never allocates by a length that it has not checked.

pub mod alloc;
pub mod item;
pub mod journal;
pub mod node;
pub mod subvolume;
pub mod superblock;
