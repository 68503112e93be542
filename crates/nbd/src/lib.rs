//! The network block device protocol (NBD): disks of other machines, and ours for them.
//!
//! ```text
//!              server                                     client
//!   listeners -> connections -> execute -> Disk    Disk -> table -> link
//!                     |                                      |
//!                  handshake            wire              handshake
//! ```
//!
//! - [`wire`] turns bytes into values and back, and does no I/O.
//! - [`medium`] is a disk that remembers who may write to it.
//! - [`server`] offers any [`gabion_base::disk::Disk`] under a name to any NBD client.
//! - [`client`] makes any NBD server's export a `Disk`, which survives the loss of its connection.
//!
//! Both sides encrypt if they want to, by [`gabion_tls`].
//!
//! Only the newstyle-fixed handshake is spoken. Deliberately absent: the oldstyle handshake,
//! resizing, and the extension for 64-bit lengths.

#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod medium;
mod percent;
pub mod server;
mod stream;
pub mod wire;
