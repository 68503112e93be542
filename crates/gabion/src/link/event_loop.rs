//! A thread that advances many connections, each as far as is possible without waiting.
//!
//! ```text
//!   listener ---> every loop accepts; whoever is first has the connection for its life
//!   sockets  ---> what can be read or written  -->  that conversation advances
//!   clock    ---> now and then: conversations that take too long end
//! ```
//!
//! So a client that says nothing costs no thread. Nothing here waits for another client or for a
//! worker, and for a disk only what is rare: a new session, and a machine that joins.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::conversation::{Conversation, Progress};
use super::server::Shared;
use super::watch::{LISTENER, Watcher, has_hung_up};

/// Threads that read. They decode what is said, and decrypt it.
pub(super) const LOOPS: usize = 2;
/// How often conversations are looked for that take too long.
const GLANCE: Duration = Duration::from_millis(250);
/// Bytes that are read at once.
const SCRATCH_BYTES: usize = 256 << 10;
/// Connections that are accepted before others have their turn.
const ACCEPTED_MAX: usize = 16;

/// One thread's connections.
pub(super) struct EventLoop {
    shared: Arc<Shared>,
    watcher: Watcher,
    listener: Arc<TcpListener>,
    /// Numbers for conversations, which all loops share.
    numbers: Arc<AtomicU64>,
    conversations: BTreeMap<u64, Conversation>,
    is_listening: bool,
}

impl EventLoop {
    /// As many as there are to be.
    pub(super) fn all(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<Vec<Self>> {
        // Another loop may have been faster.
        listener.set_nonblocking(true)?;
        let listener = Arc::new(listener);
        let numbers = Arc::new(AtomicU64::new(LISTENER + 1));
        let new = |_| {
            Ok(Self {
                shared: Arc::clone(shared),
                watcher: Watcher::new()?,
                listener: Arc::clone(&listener),
                numbers: Arc::clone(&numbers),
                conversations: BTreeMap::new(),
                is_listening: false,
            })
        };
        (0..LOOPS).map(new).collect()
    }

    /// Runs until the server ends.
    pub(super) fn run(mut self) {
        let mut events = Vec::new();
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut looked = Instant::now();
        while !self.shared.is_ending() {
            if !self.is_listening {
                self.is_listening = self.watcher.listen(&self.listener).is_ok();
            }
            if self.watcher.wait(&mut events, GLANCE).is_err() {
                // Out of memory: others may give some back.
                thread::sleep(GLANCE);
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    number => self.advance(number, has_hung_up(event), &mut scratch),
                }
            }
            let now = Instant::now();
            if now.duration_since(looked) >= GLANCE {
                looked = now;
                let overdue = self.conversations.extract_if(.., |_, one| one.is_overdue(now));
                overdue.for_each(|(_, conversation)| conversation.end());
            }
        }
        self.conversations.into_values().for_each(Conversation::end);
    }

    fn advance(&mut self, number: u64, has_hung_up: bool, scratch: &mut [u8]) {
        // It may have ended by an event before.
        let Some(conversation) = self.conversations.get_mut(&number) else { return };
        if conversation.advance(&self.shared, scratch, has_hung_up) == Progress::Over
            && let Some(conversation) = self.conversations.remove(&number)
        {
            conversation.end();
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTED_MAX {
            let (socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    // Out of descriptors or memory: others may give some back meanwhile.
                    self.watcher.leave(&self.listener);
                    self.is_listening = false;
                    return;
                }
            };
            let now = Instant::now();
            let Some(stranger) = self.shared.gate.enter(peer.ip(), now) else { continue };
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let prepared = socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true));
            let watched = prepared.and_then(|()| self.watcher.watch(&socket, number));
            // Without that the connection closes, and its client tries again.
            if let Ok(watch) = watched {
                let conversation = Conversation::new(number, peer, (socket, watch), stranger);
                self.conversations.insert(number, conversation);
            }
        }
    }
}
