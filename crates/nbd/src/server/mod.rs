//! Disks for NBD clients: listeners, and a thread or a few for each client.
//!
//! - [`Server::start`] listens; each client is a connection of its own, and none waits for
//!   another except for the disk itself.
//! - At most `CLIENTS_MAX` clients; the next is disconnected at once.
//! - [`Server::stop`]: 1. nobody new; 2. requests in flight are answered, later ones refused;
//!   3. after the grace, what is left is cut off. Sockets in the file system are removed.
//!
//! Whoever can connect can write, unless the export is read-only or a medium that is another
//! client's; with certificates of clients (see [`gabion_tls`]) not everybody can connect.
//! Deliberately absent: permissions that depend on the certificate.

mod answer;
mod connection;
mod entry;
mod execute;
mod export;
pub mod handshake;
mod input;
mod listen;
mod pace;
mod pipeline;
mod pool;
mod ranges;
mod room;
mod status;
mod telling;
mod transmission;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};
use gabion_tls::ServerTls;

pub use self::export::{Export, Exports, Permission, Replies};
pub use self::listen::Listener;

use self::connection::Connection;
use self::listen::Wake;
use crate::stream::Stream;

/// Clients at the same time.
const CLIENTS_MAX: usize = 256;

/// A server that is running.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
    wakes: Vec<Wake>,
}

struct Shared {
    exports: Exports,
    tls: Option<ServerTls>,
    stopping: AtomicBool,
    clients: Mutex<Clients>,
    gone: Condvar,
}

#[derive(Default)]
struct Clients {
    connected: BTreeMap<u64, Arc<Connection>>,
    next: u64,
}

/// How a server has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything that was in flight has been answered.
    Clean,
    /// This many clients had requests in flight when the grace was over.
    CutOff(usize),
}

impl Server {
    /// Serves `exports` at all `listeners` until [`Server::stop`], without encryption.
    pub fn start(exports: Exports, listeners: Vec<Listener>) -> io::Result<Self> {
        Self::start_with(exports, listeners, None)
    }

    /// Serves clients that encrypt, and nobody else.
    pub fn start_encrypted(
        exports: Exports,
        listeners: Vec<Listener>,
        tls: ServerTls,
    ) -> io::Result<Self> {
        Self::start_with(exports, listeners, Some(tls))
    }

    fn start_with(
        exports: Exports,
        listeners: Vec<Listener>,
        tls: Option<ServerTls>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            exports,
            tls,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
            gone: Condvar::new(),
        });
        let mut server = Self { shared, listeners: Vec::new(), wakes: Vec::new() };
        for listener in listeners {
            let (wake, woken) = listen::wake()?;
            server.wakes.push(wake);
            let shared = Arc::clone(&server.shared);
            let thread = thread::Builder::new().name("nbd listener".into());
            let accept = move || {
                while let Some(stream) = listener.accept(&woken) {
                    shared.admit(stream);
                }
            };
            server.listeners.push(thread.spawn(accept)?);
        }
        Ok(server)
    }

    /// Ends the server; takes hardly longer than `grace`.
    pub fn stop(mut self, grace: Duration) -> Stopped {
        self.end(grace)
    }

    fn end(&mut self, grace: Duration) -> Stopped {
        self.shared.stopping.store(true, Ordering::Release);
        self.wakes.clear();
        for listener in self.listeners.drain(..) {
            // It has no reason to panic, and if it did there is one listener less to end.
            let _ = listener.join();
        }
        let deadline = Instant::now() + grace;
        let mut clients = self.shared.clients.lock();
        for connection in clients.connected.values() {
            connection.close();
        }
        while !clients.connected.is_empty() {
            if self.shared.gone.wait_until(&mut clients, deadline).timed_out() {
                break;
            }
        }
        for connection in clients.connected.values() {
            connection.abort();
        }
        match clients.connected.len() {
            0 => Stopped::Clean,
            left => Stopped::CutOff(left),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.listeners.is_empty() {
            self.end(Duration::ZERO);
        }
    }
}

impl Shared {
    /// Gives a client a thread, or drops it.
    fn admit(self: &Arc<Self>, stream: Stream) {
        let connection = Arc::new(Connection::new(stream, self.tls.clone()));
        let id = {
            let mut clients = self.clients.lock();
            if clients.connected.len() >= CLIENTS_MAX || self.stopping.load(Ordering::Acquire) {
                return;
            }
            let id = clients.next;
            clients.next += 1;
            clients.connected.insert(id, Arc::clone(&connection));
            id
        };
        let left = Leaving { shared: Arc::clone(self), id };
        let thread = thread::Builder::new().name("nbd client".into());
        // Without a thread the closure is dropped, and with it the client leaves.
        let _ = thread.spawn(move || {
            connection.serve(&left.shared.exports);
            drop(left);
        });
    }
}

/// Strikes a client off the list, however its thread ends.
struct Leaving {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shared.clients.lock().connected.remove(&self.id);
        self.shared.gone.notify_all();
    }
}
