//! What the server knows of one client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_fs::Access;
use gabion_fs::lock::Ticket;
use gabion_link::message::{CallId, ChangeNumber, SessionId, ToClient};
use gabion_map::FileId;

use super::lane::Lane;
use super::ledger::{DoneCall, Pages, Record};
use super::pledges::Pledge;
use super::rights::Rights;
use super::rounds::Progress;
use super::subtree::Below;

/// Objects that a session may have open. More are not kept for it when they lose their names.
const OPENS_MAX: usize = 1 << 20;

/// Where messages to a client go. They arrive in the order in which they were sent.
pub trait Peer: Send + Sync {
    /// Sends, without waiting for anybody.
    fn send(&self, message: ToClient);

    /// How many messages were sent so far.
    fn sent(&self) -> u64;

    /// How many of them have arrived, as far as that is known.
    fn arrived(&self) -> u64;

    /// The session has ended and its client does not know: it is to find that out soon. Who has no
    /// connection that could be closed does nothing.
    fn cut(&self) {}
}

/// One client.
pub struct Session {
    pub(crate) id: SessionId,
    pub(crate) name: String,
    pub(crate) rights: Rights,
    pub(crate) peer: Arc<dyn Peer>,
    pub(super) lane: Mutex<Lane>,
    /// Where is noted what it has had done, if it is to outlive the server.
    pub(super) pages: Option<Pages>,
    pub(super) record: Option<Record>,
    pub(super) progress: Mutex<Progress>,
    /// What was noted before, of a session that has outlived a server.
    pub(super) resumed: Option<Resumed>,
    /// Up to where it was told of calls of others.
    pub(super) witnessed: Mutex<u64>,
    /// Calls that the server before this one has done and not answered.
    pub(super) unheard: Mutex<BTreeMap<CallId, DoneCall>>,
    /// Calls that were said to the server before this one, too, and not answered.
    pub(super) said_again: Mutex<BTreeSet<CallId>>,
    /// What is known of the objects that it may use, if that is not all.
    pub(super) below: Mutex<Below>,
    pub(super) pledge: Mutex<Pledge>,
    state: Mutex<State>,
}

/// How far the server before this one came with a session's changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resumed {
    /// All up to this one are in the map, but perhaps for bytes.
    pub(super) applied: ChangeNumber,
    /// All up to this one are, with all bytes.
    pub(super) settled: ChangeNumber,
}

#[derive(Default)]
struct State {
    opens: BTreeMap<FileId, Open>,
    /// Calls for advisory locks that have no answer yet.
    lock_calls: BTreeMap<CallId, LockCall>,
    is_over: bool,
}

/// An object that is open.
struct Open {
    /// How often: it may be closed while it is being opened once more.
    count: u32,
    /// What the openings were allowed, together.
    granted: Access,
}

enum LockCall {
    Asked,
    Waits(Ticket),
    /// It was given up before it began to wait.
    GivenUp,
}

impl Session {
    pub(crate) fn new(id: SessionId, name: String, rights: Rights, peer: Arc<dyn Peer>) -> Self {
        Self {
            id,
            name,
            rights,
            peer,
            lane: Mutex::default(),
            pages: None,
            record: None,
            progress: Mutex::default(),
            resumed: None,
            witnessed: Mutex::default(),
            unheard: Mutex::default(),
            said_again: Mutex::default(),
            below: Mutex::default(),
            pledge: Mutex::default(),
            state: Mutex::default(),
        }
    }

    /// Its name for the protocol.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it may do.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Whether something that it has said waits for its turn.
    pub fn is_behind(&self) -> bool {
        self.lane.lock().is_running
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.state.lock().is_over
    }

    /// Whether the object was not open before, and is now. The opening is allowed what `granted`
    /// says.
    pub(crate) fn opened(&self, file: FileId, granted: Access) -> bool {
        let mut state = self.state.lock();
        if state.is_over {
            return false;
        }
        if state.opens.len() >= OPENS_MAX && !state.opens.contains_key(&file) {
            return false;
        }
        let open = state.opens.entry(file).or_insert(Open { count: 0, granted: Access::EXISTS });
        open.count = open.count.saturating_add(1);
        open.granted = open.granted | granted;
        open.count == 1
    }

    /// Whether it has the object open.
    pub(crate) fn has_open(&self, file: FileId) -> bool {
        self.state.lock().opens.contains_key(&file)
    }

    /// What the session may do with an object because it has it open.
    pub(crate) fn granted(&self, file: FileId) -> Access {
        self.state.lock().opens.get(&file).map_or(Access::EXISTS, |open| open.granted)
    }

    /// Whether the object was open before, and is not any more.
    pub(crate) fn closed(&self, file: FileId) -> bool {
        let mut state = self.state.lock();
        let Some(open) = state.opens.get_mut(&file) else { return false };
        open.count -= 1;
        let is_last = open.count == 0;
        if is_last {
            state.opens.remove(&file);
        }
        is_last
    }

    pub(crate) fn opens(&self) -> usize {
        self.state.lock().opens.len()
    }

    /// A call for an advisory lock has come.
    pub(crate) fn lock_asked(&self, id: CallId) {
        self.state.lock().lock_calls.insert(id, LockCall::Asked);
    }

    /// The call waits, unless it was answered already. Whether it was given up before.
    pub(crate) fn lock_waits(&self, id: CallId, ticket: Ticket) -> bool {
        match self.state.lock().lock_calls.get_mut(&id) {
            Some(LockCall::GivenUp) => true,
            Some(call) => {
                *call = LockCall::Waits(ticket);
                false
            }
            None => false,
        }
    }

    /// The call is given up: what to cancel, if it waits.
    pub(crate) fn lock_given_up(&self, id: CallId) -> Option<Ticket> {
        let mut state = self.state.lock();
        let call = state.lock_calls.get_mut(&id)?;
        match std::mem::replace(call, LockCall::GivenUp) {
            LockCall::Waits(ticket) => Some(ticket),
            LockCall::Asked | LockCall::GivenUp => None,
        }
    }

    /// Whether the call for a lock was given up before it began to wait.
    pub(crate) fn is_lock_given_up(&self, id: CallId) -> bool {
        matches!(self.state.lock().lock_calls.get(&id), Some(LockCall::GivenUp))
    }

    /// The call has its answer.
    pub(crate) fn lock_answered(&self, id: CallId) {
        self.state.lock().lock_calls.remove(&id);
    }

    /// Ends it, and gives what it had open.
    pub(crate) fn end(&self) -> Vec<FileId> {
        let mut state = self.state.lock();
        state.is_over = true;
        state.lock_calls.clear();
        std::mem::take(&mut state.opens).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::Ino;
    use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
    use gabion_link::message::Call;

    use super::super::testing::Stage;
    use super::*;

    #[test]
    fn nothing_is_remembered_of_a_call_for_a_lock_however_it_was_answered() {
        let stage = Stage::new();
        let (session, told) = stage.client(1);
        let root = stage.served.fs().root();
        let (class, range, strength) = (LockClass::Flock, LockRange::WHOLE, Strength::Shared);
        let owner = LockOwner { client: 0, number: 1 };
        let is_answered = |id, file| {
            let lock = Lock { file, class, owner, pid: 1, strength, range };
            stage.ask(&session, id, Call::Lock { lock, wait: Wait::Yes });
            stage.run();
            match told.0.lock().pop() {
                Some(ToClient::Answer { result, .. }) => result.is_ok(),
                other => panic!("{other:?}"),
            }
        };
        assert!(is_answered(1, root));
        // In a subvolume that there is not.
        assert!(!is_answered(2, FileId { subvol: gabion_base::ids::SubvolId(77), ino: Ino(1) }));
        assert!(session.state.lock().lock_calls.is_empty());
    }
}
