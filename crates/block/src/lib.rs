//! Volumes: disks of several machines as one.
//!
//! Nothing here talks to a peer or reads a clock. A mirror is a machine that takes events and the
//! time and says what is to be done; who keeps the record of a volume is behind
//! [`coordinator::Coordinator`].

#![forbid(unsafe_code)]

pub mod coordinator;
