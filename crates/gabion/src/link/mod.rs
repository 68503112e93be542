//! Sessions over sockets: what serves a filesystem to other machines, and what uses one.
//!
//! ```text
//!   server                                         client
//!   event loops: Hello, Welcome                    connector: Hello, Welcome, again and again
//!     '-> messages of all connections -> Served      reader -> RemoteFs -> FUSE
//!           workers run its calls                    pinger: the session lives
//!           keeper ends silent sessions              attendants: revocations
//!           Pipe <--------------------------------> Pipe
//! ```
//!
//! A connection that breaks ends nothing: the client comes back with its session, and each side
//! sends again what may have been lost. A client that stays away ends its session by its own
//! clock, and the server by its own a moment later.
//!
//! Several servers may be named, of which one has the filesystem at a time: a client goes on with
//! the one that has it by then, in its session. A server that may have lost it lets nobody in, and
//! confirms no sessions.
//!
//! A connection is encrypted, and each side has shown a certificate, unless both are to do without.
//!
//! Absent: who belongs to a filesystem, which is `trust`'s. Clients are believed in who their users
//! are.

mod assembly;
mod client;
mod connection;
mod conversation;
mod dial;
mod event_loop;
mod gate;
mod greeting;
mod jobs;
mod kernel;
mod load;
mod outbox;
mod pipe;
mod server;
mod servers;
mod watch;

pub use client::{Connected, connect};
pub use dial::{ConnectError, apply};
pub use kernel::NotifiedKernel;
pub use server::{LinkServer, ServeOptions, Sessions};
