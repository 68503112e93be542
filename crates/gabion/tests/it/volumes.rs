//! Volumes as their users meet them: real targets that are killed, stopped, cut off and replaced
//! below a mounted filesystem.
//!
//! ```text
//! stage           targets, hosts, mounts, and waiting for what must come
//! writing         somebody who writes, syncs, and remembers what must be there
//! failures        targets and daemons that die, hang, fail, or talk nonsense
//! openings        two openers; disks that are not what they were
//! administration  copies put in, taken out, left alone; layouts; exports
//! growing         volumes that become longer; copies of inner mirrors
//! etcd            what keeps the records of several hosts
//! machines        etcd, two hosts, a network that goes away
//! durability      what reaches the disks of targets; databases
//! surroundings    full disks, files that were cut short, the log of events, the clock
//! documents       the table of failures in docs/volumes.md names tests that are there
//! ```

mod administration;
mod documents;
mod durability;
pub mod etcd;
mod failures;
mod growing;
mod machines;
mod openings;
pub mod stage;
mod surroundings;
pub mod writing;
