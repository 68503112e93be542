//! Volumes in use.
//!
//! ```text
//!   volume        opening, closing, what administrators want     create   making volumes
//!   keeper        what stands behind the mirrors of a volume     register its record
//!   assembly      members put together                           layout   as people write it
//!   mirror_disk   a mirror's machine with disks, time and threads
//!   member        where members are, and their headers         look     at many at once
//!   gate          disks that can be closed       growth   volumes that become longer
//!   tenure        whether it is its opener's still
//! ```
//!
//! What to trust and what to do is decided in `gabion-block`; here it is done.

#![forbid(unsafe_code)]

mod assembly;
pub mod create;
pub mod gate;
mod growth;
mod keeper;
pub mod layout;
mod look;
pub mod member;
pub mod mirror_disk;
pub mod register;
pub mod surroundings;
pub mod tenure;
pub mod volume;
