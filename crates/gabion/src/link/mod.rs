//! Sessions over sockets: what serves a filesystem to other machines, and what uses one.
//!
//! ```text
//!   server                                         client
//!   listener -> greeter: Hello, Welcome            connector: Hello, Welcome, again and again
//!     '-> reader of each connection -> Served        reader -> RemoteFs -> FUSE
//!           workers run its calls                    pinger: the session lives
//!           keeper ends silent sessions              attendants: revocations
//!           Pipe <--------------------------------> Pipe
//! ```
//!
//! A connection that breaks ends nothing: the client comes back with its session, and each side
//! sends again what may have been lost. A client that stays away ends its session by its own
//! clock, and the server by its own a moment later.
//!
//! Absent: encryption. Clients are believed in who their users are.

mod client;
mod kernel;
mod pipe;
mod server;

pub use client::{ConnectError, Connected, connect};
pub use kernel::NotifiedKernel;
pub use server::{LinkServer, ServeOptions, Sessions};
