//! How events get from those who notice to those who must know.
//!
//! ```text
//! publish -> bounded queue -> thread -> FOLDER/log.jsonl          the truth, numbered
//!                                   \-> netlink multicast         wakes who follows
//! Follower <- log.jsonl, log.old.jsonl, from any number on
//! ```
//!
//! - Publishing to a [`Publisher`] never waits. If the queue is full, events are dropped and
//!   counted, and the next event that is written says how many.
//! - Lines are appended below a lock by any number of processes, one write for each, and numbered
//!   without gaps. A log of [`LOG_BYTES_MAX`] becomes the old one, and the old one goes.
//! - A multicast names the folder of its log, as all programs of a machine share the group
//!   ([`GROUP`]). Followers are woken by it and read the log: what a slow one loses of the
//!   multicast it finds there. Where they may not listen (it takes CAP_NET_ADMIN) they look once in
//!   a while.
//! - An event that cannot be written to the log is sent all the same, with number 0. That is the
//!   only kind that is taken from a multicast, and only from root or from the follower's own user.
//!
//! Deliberately absent: flushing the log to the disk. A crash of the machine may take the last
//! events with it, and a filesystem that waits for its own log of events can hang itself.

mod follower;
mod log;
mod netlink;
mod publisher;
#[cfg(test)]
mod tests;

pub use follower::{Follower, Start};
pub use log::LOG_BYTES_MAX;
pub use netlink::GROUP;
pub use publisher::Publisher;
