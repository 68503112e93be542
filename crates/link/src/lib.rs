//! The link between machines: leases on ranges of the map, what clients cache under them, and the
//! words in which both sides speak.
//!
//! A lease is the right to cache a range of keys. As everything in a filesystem is an item at a
//! key, one mechanism keeps names, attributes and bytes coherent:
//!
//! ```text
//!   client                                      server
//!   an operation runs on the Cache
//!     -> a range is not covered  -- Acquire -->  LeaseTable: others' leases stand against it?
//!                                                  Revoke --> other clients --> Released
//!     <-- the range and its items ------------   the range is read, the lease entered
//!   the operation runs again
//!   a change, under exclusive leases, is made here
//!                                -- Change -->   the same operation runs on the map itself
//!     <-- Applied ----------------------------
//!   any other change             -- call ---->   the same, touching only what the table lets it
//!                                                  touch
//!     <-- result, changed items --------------   the holds end when the answer is on its way
//! ```
//!
//! - [`range`]: ranges of keys, and sets of them.
//! - [`table`]: who has which lease, who waits for whom. A machine without clock and threads.
//! - [`cache`]: a client's copy of leased ranges, as a transaction that operations can run on.
//! - [`change`]: the same for operations that change something.
//! - [`errand`]: what administrators ask for.
//! - [`identities`]: whom the server takes a client's callers for.
//! - [`join`]: how a machine comes to a certificate, by which it is let in.
//! - [`message`]: what both sides say, as values.
//! - [`wire`]: how these values look as bytes.
//! - [`stream`]: every message once and in order, whatever connections do.
//!
//! Absent: sockets, threads, clocks, and the rules of files, which are `gabion_fs`'s on both
//! sides.

#![forbid(unsafe_code)]

pub mod cache;
pub mod change;
pub mod errand;
pub mod identities;
pub mod join;
pub mod message;
pub mod range;
pub mod stream;
pub mod table;
pub mod wire;
