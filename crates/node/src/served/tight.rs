//! Subvolumes whose quotas leave so little that clients change nothing there by themselves.
//!
//! ```text
//!   a quota leaves little --> nothing is pledged to anybody, for a moment      (`pledges`)
//!                         --> the subvolume is tight: clients are told, and have credits again
//!   it leaves enough again --> the same way back
//! ```
//!
//! A credit holds wherever its client changes something. So without this the one quota that is
//! nearly used up would leave nobody a credit, and have everybody wait for the server everywhere.

use std::collections::BTreeSet;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::SubvolId;
use gabion_base::sync::Mutex;
use gabion_link::message::{Call, ToClient};

use super::lane::CHANGE_BYTES;
use super::pledges::{CREDIT_MIN, CREDIT_SHARE};
use super::{Served, Session};

/// What is tight, and what is to be.
#[derive(Default)]
pub(super) struct Tight {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: BTreeSet<SubvolId>,
    /// As soon as nothing is pledged.
    next: Option<BTreeSet<SubvolId>>,
    /// Counts how often it has changed.
    version: u64,
}

impl Tight {
    /// Whether it is about to change.
    pub(super) fn is_changing(&self) -> bool {
        self.state.lock().next.is_some()
    }

    pub(super) fn version(&self) -> u64 {
        self.state.lock().version
    }

    /// Whether all that the call is about is tight, and has been since this version.
    pub(super) fn has_been_among(&self, call: &Call, version: u64) -> bool {
        let state = self.state.lock();
        state.version == version && call.files().iter().all(|file| state.now.contains(&file.subvol))
    }

    /// Whether a client that was told this version knows it all.
    pub(super) fn is_known(&self, told: Option<u64>) -> bool {
        let state = self.state.lock();
        state.now.is_empty() || told == Some(state.version)
    }
}

/// Bytes of changes that can still be made.
pub(super) fn bytes_of(room: gabion_map::quota::Room) -> u64 {
    let objects = room.objects.map_or(u64::MAX, |left| left.saturating_mul(CHANGE_BYTES));
    room.blocks.saturating_mul(BLOCK_SIZE as u64).min(objects)
}

impl Served {
    /// Looks whether other subvolumes should be tight.
    pub(super) fn look_for_tight(&self) {
        let clients = self.sessions.read().len().max(1) as u64;
        let least = CREDIT_SHARE * clients * CREDIT_MIN;
        let mut state = self.tight.state.lock();
        if state.next.is_some() {
            return;
        }
        let rooms = self.fs.map().rooms().into_iter();
        let is_tight = |(of, room)| {
            // So that what comes and goes does not change it each time.
            let enough = if state.now.contains(&of) { 2 * least } else { least };
            (bytes_of(room) < enough).then_some(of)
        };
        let next: BTreeSet<SubvolId> = rooms.filter_map(is_tight).collect();
        match next == state.now {
            // A quota that was set anew has forgotten it.
            true => self.fs.map().pledge_nothing_in(&state.now),
            false => state.next = Some(next),
        }
    }

    /// Nothing is pledged: what is to be tight becomes so.
    pub(super) fn tighten(&self) {
        let mut state = self.tight.state.lock();
        let Some(next) = state.next.take() else { return };
        self.fs.map().pledge_nothing_in(&next);
        state.now = next;
        state.version += 1;
    }

    /// Tells a client what is tight, unless it was `told`.
    pub(super) fn tell_tight(&self, session: &Session, told: &mut Option<u64>) {
        let state = self.tight.state.lock();
        if *told != Some(state.version) {
            session.peer.send(ToClient::Tight(state.now.iter().copied().collect()));
            *told = Some(state.version);
        }
    }
}
