//! What the server knows of one client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_fs::lock::Ticket;
use gabion_link::message::{CallId, SessionId, ToClient};
use gabion_map::FileId;

/// Where messages to a client go. They arrive in the order in which they were sent.
pub trait Peer: Send + Sync {
    /// Sends, without waiting for anybody.
    fn send(&self, message: ToClient);
}

/// One client.
pub struct Session {
    pub(crate) id: SessionId,
    pub(crate) name: String,
    pub(crate) peer: Arc<dyn Peer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opens: BTreeSet<FileId>,
    /// Advisory locks that are waited for.
    lock_waits: BTreeMap<CallId, Ticket>,
    is_over: bool,
}

impl Session {
    pub(crate) fn new(id: SessionId, name: String, peer: Arc<dyn Peer>) -> Self {
        Self { id, name, peer, state: Mutex::default() }
    }

    /// Its name for the protocol.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.state.lock().is_over
    }

    /// Whether the object was not open before, and is now.
    pub(crate) fn opened(&self, file: FileId) -> bool {
        let mut state = self.state.lock();
        !state.is_over && state.opens.insert(file)
    }

    /// Whether the object was open before, and is not any more.
    pub(crate) fn closed(&self, file: FileId) -> bool {
        self.state.lock().opens.remove(&file)
    }

    pub(crate) fn opens(&self) -> usize {
        self.state.lock().opens.len()
    }

    pub(crate) fn waits_for_lock(&self, id: CallId, ticket: Ticket) {
        self.state.lock().lock_waits.insert(id, ticket);
    }

    pub(crate) fn lock_wait_ended(&self, id: CallId) -> Option<Ticket> {
        self.state.lock().lock_waits.remove(&id)
    }

    /// Ends it, and gives what it had open.
    pub(crate) fn end(&self) -> BTreeSet<FileId> {
        let mut state = self.state.lock();
        state.is_over = true;
        state.lock_waits.clear();
        std::mem::take(&mut state.opens)
    }
}
