//! Volumes: disks of several machines as one.
//!
//! ```text
//!   record    what the coordinator knows of a volume: members, layout, copies to be trusted
//!   epoch     who has opened it, and how to tell that two did not know of each other
//!   format    what is kept: the record's text, the headers of members, the bitmaps of mirrors
//!   mirror    the machine that keeps copies equal
//!   spread    linear and stripe
//!   growth    volumes that become longer
//!   wishes    what administrators want of copies, and what follows from it
//! ```
//!
//! Nothing here talks to a peer, starts a thread or reads a clock. A mirror is a machine that takes
//! events and the time and says what is to be done; who keeps the record is behind
//! [`coordinator::Coordinator`].

#![forbid(unsafe_code)]

pub mod coordinator;
pub mod copies;
pub mod epoch;
pub mod format;
pub mod geometry;
pub mod growth;
pub mod mirror;
pub mod opening;
pub mod record;
pub mod spread;
pub mod wishes;
