//! Calls that were done, and of which their clients may not know when the server dies.
//!
//! Their effect may be seen by others before: so a client that asks such a call again must not have
//! it done behind what others have built on it. The others know where it belongs: each answer
//! brings them what was done since their last one and may be unknown to those who asked for it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use gabion_base::sync::Mutex;
use gabion_link::message::{SessionId, ToClient, Witness};

use super::{Peer, Served, Session};

/// Calls that are remembered at most.
const CALLS_MAX: usize = 4096;
/// What one message tells.
const TOLD_MAX: usize = 1024;

struct Done {
    /// Its place in the list, for ever.
    place: u64,
    witness: Witness,
    /// The message that tells its client, when that was sent; and where to.
    message: Option<u64>,
    peer: Weak<dyn Peer>,
}

impl Done {
    /// Whether its client knows of it, or is not there to ask.
    fn is_heard(&self) -> bool {
        match (self.peer.upgrade(), self.message) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(peer), Some(message)) => peer.arrived() >= message,
        }
    }
}

#[derive(Default)]
struct State {
    last: u64,
    done: VecDeque<Done>,
}

/// The calls.
#[derive(Default)]
pub(super) struct Witnesses {
    state: Mutex<State>,
}

impl Witnesses {
    /// The call is done, and its client is going to be told. Gives it a name.
    fn add(&self, witness: Witness, peer: &Arc<dyn Peer>) -> u64 {
        let mut state = self.state.lock();
        while state.done.front().is_some_and(Done::is_heard) {
            state.done.pop_front();
        }
        if state.done.len() >= CALLS_MAX {
            state.done.pop_front();
        }
        state.last += 1;
        let place = state.last;
        let peer = Arc::downgrade(peer);
        state.done.push_back(Done { place, witness, message: None, peer });
        place
    }

    /// Its client was told, by the `message`-th message at the latest.
    fn was_told(&self, place: u64, message: u64) {
        let mut state = self.state.lock();
        let index = state.done.binary_search_by_key(&place, |done| done.place);
        if let Ok(index) = index {
            state.done[index].message = Some(message);
        }
    }

    /// What a client has to know that has been told everything up to the place `told`.
    fn since(&self, told: &mut u64, session: SessionId) -> Vec<Witness> {
        let state = self.state.lock();
        let since = state.done.iter().rev().take_while(|done| done.place > *told);
        let others = since.filter(|done| done.witness.session != session && !done.is_heard());
        let mut news: Vec<Witness> = others.map(|done| done.witness.clone()).collect();
        *told = state.last;
        news.reverse();
        news
    }
}

impl Served {
    /// Tells the client what it may come to depend on by what it is told next.
    pub(super) fn tell_witnessed(&self, session: &Session) {
        let mut told = session.witnessed.lock();
        let news = self.witnesses.since(&mut told, session.id);
        for part in news.chunks(TOLD_MAX) {
            session.peer.send(ToClient::Witness(part.to_vec()));
        }
    }

    /// Sends the answer to a call that has changed something, before anybody can see what.
    pub(super) fn send_witnessed(&self, session: &Session, witness: Witness, answer: ToClient) {
        let place = self.witnesses.add(witness, &session.peer);
        session.peer.send(answer);
        self.witnesses.was_told(place, session.peer.sent());
    }
}
