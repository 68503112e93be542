//! The ground floor: words that every other crate of Gabion shares.
//!
//! Nothing here knows what a filesystem is. `base` holds the identifiers, the unit of storage
//! (a block of 4 KiB), the buffers that blocks travel in, checksums, bounded decoding of bytes, the
//! [`event::Event`]s that administrators are told, and the [`disk::Disk`] seam behind which the
//! real and the simulated media stand.
//!
//! Deliberately absent: clocks, files, sockets and randomness from the system. Whoever needs them
//! gets them passed in. Threads are only started in [`sync`], and only there is looked at the time
//! for which they wait: somebody else may decide when they run.

#![forbid(unsafe_code)]

pub mod batch;
pub mod buffer;
pub mod checksum;
pub mod codec;
pub mod disk;
pub mod event;
pub mod ids;
pub mod rng;
pub mod sync;
pub mod time;
pub mod window;

/// Bytes in a block, the unit of all storage and of all addresses.
pub const BLOCK_SIZE: usize = 4096;
