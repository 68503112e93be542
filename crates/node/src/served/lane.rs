//! What a client says in its order, where that matters.
//!
//! ```text
//!   Change  Change  Released  Call(after)  Change ...  --> one after the other, by one worker
//! ```
//!
//! A change is applied before anything behind it is looked at, and the client told so, but before
//! more changes and what it has open. So what a client gives up is free only when all is applied
//! that it did under it, and a call that depends on changes comes after them; and what the client
//! is told of a file's length is not older than what it knows. A call does not wait for calls
//! before it: it leaves the lane when its turn has come. Calls that depend on no change that waits
//! do not enter it, if nothing but changes waits, and times of reading, on which no call depends.
//!
//! A change touches only what its client has leased, so it hardly ever has to wait: for others who
//! just look whether a new object is there. Then all behind it waits, too.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use gabion_base::ids::SubvolId;
use gabion_fs::{Caller, Context, Error, Result};
use gabion_link::message::{Call, Change, ChangeNumber, ToClient, ToServer, Witness};
use gabion_link::range::KeyRange;
use gabion_link::table::{ClientId, RequestId, Want};
use gabion_map::{FileId, Key, Kind, LockMode, MapError, Stop, Value};

use crate::operation::{Rest, may_make};

use super::execute::Guarded;
use super::freezing::Passing;
use super::guarded::Grip;
use super::ledger::Note;
use super::rounds::Said;
use super::{Job, Served, Session, Work, gone};

/// Changes after which a worker looks after others.
const TURN_MAX: usize = 64;
/// A client is told that its changes are durable when they come to this part of its credit,
const ROUND_SHARE: u64 = 4;
/// or to so many bytes.
const ROUND_BYTES_MIN: u64 = 1 << 20;
/// What a change counts besides its bytes.
pub(super) const CHANGE_BYTES: u64 = 16 << 10;

/// What waits for its turn.
#[derive(Default)]
pub(super) struct Lane {
    waiting: VecDeque<ToServer>,
    /// How many of them, and of what is just being done, are no changes.
    others: usize,
    /// A worker is at it, or is going to be.
    pub(super) is_running: bool,
    applied: ChangeNumber,
    /// The client was told that all up to this one are applied.
    told: ChangeNumber,
    /// Extents of files as they are after what was applied and not told yet.
    extents: BTreeMap<Key, Option<Value>>,
    /// The request of the change at the head, if it had to wait.
    parked: Option<RequestId>,
    /// Numbers that the client may give to new objects.
    pub(super) numbers: VecDeque<(SubvolId, Range<u64>)>,
}

impl Lane {
    /// The last change that is applied.
    pub(super) fn applied(&self) -> ChangeNumber {
        self.applied
    }

    /// The last change of which the client was told that it is.
    pub(super) fn told(&self) -> ChangeNumber {
        self.told
    }

    /// So far the server before this one has come.
    pub(super) fn goes_on_from(&mut self, applied: ChangeNumber) {
        self.applied = applied;
    }

    /// Calls of others that the client was told of.
    pub(super) fn witnessed(&self) -> impl Iterator<Item = &Witness> {
        self.waiting.iter().flat_map(|message| match message {
            ToServer::Witnessed(calls) => calls.as_slice(),
            _ => &[],
        })
    }

    pub(super) fn take_all(&mut self) -> VecDeque<ToServer> {
        self.others = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Puts messages in front of all that has come since.
    pub(super) fn put_back(&mut self, messages: Vec<ToServer>) {
        let is_other = |message: &&ToServer| !is_change(message);
        self.others += messages.iter().filter(is_other).count();
        messages.into_iter().rev().for_each(|message| self.waiting.push_front(message));
    }
}

/// Whether it changes the filesystem, and calls need not wait for it but for those that say so.
fn is_change(message: &ToServer) -> bool {
    matches!(message, ToServer::Change(_) | ToServer::Accessed { .. })
}

/// Whether it only says what the client has open. A client that makes files says so between each
/// two of its changes, and whether it has been told of those before makes no difference.
fn is_about_openings(message: &ToServer) -> bool {
    matches!(message, ToServer::Opened { .. } | ToServer::Closed(_))
}

/// What a change counts against the credit, in bytes.
pub(super) fn weight(call: &Call) -> u64 {
    CHANGE_BYTES + if let Call::Write { bytes, .. } = call { bytes.len() as u64 } else { 0 }
}

impl Served {
    /// Does what was said, now or when all before it is done.
    pub(super) fn take_turn(&self, session: &Arc<Session>, message: ToServer) {
        let mut lane = session.lane.lock();
        if self.is_recovering() {
            lane.others += usize::from(!is_change(&message));
            lane.waiting.push_back(message);
            // Nobody is at it until everybody has come back.
            lane.is_running = true;
            return;
        }
        let may_pass = match &message {
            // What was read before is made durable, too.
            ToServer::Call { call: Call::Sync { .. }, .. } => false,
            // What it may do depends on what is open, of which the client has told before.
            ToServer::Call { after, .. } => *after <= lane.told && lane.others == 0,
            _ => false,
        };
        let is_change = is_change(&message);
        if may_pass || !lane.is_running && !is_change {
            drop(lane);
            return self.attend(session, message);
        }
        lane.waiting.push_back(message);
        lane.others += usize::from(!is_change);
        if !lane.is_running {
            lane.is_running = true;
            drop(lane);
            (self.queue)(Job(Work::Lane(Arc::clone(session))));
        }
    }

    /// Lets the lane be worked at that could not be before.
    pub(super) fn start_lane(&self, session: &Arc<Session>) {
        let mut lane = session.lane.lock();
        let has_to_tell = lane.applied > lane.told;
        if lane.is_running || has_to_tell {
            lane.is_running = true;
            drop(lane);
            (self.queue)(Job(Work::Lane(Arc::clone(session))));
        }
    }

    /// Does some of what waits in the session's lane.
    pub(super) fn run_lane(&self, session: &Arc<Session>) {
        for _ in 0..TURN_MAX {
            let next = session.lane.lock().waiting.pop_front();
            match next {
                None => break,
                Some(_) if session.is_over() => {}
                Some(message) if is_change(&message) => {
                    let Some(_pass) = self.freezing.enter(Passing::Change) else {
                        session.lane.lock().waiting.push_front(message);
                        let lane = Work::Lane(Arc::clone(session));
                        match self.freezing.hold(Passing::Change, lane) {
                            Some(_) => continue,
                            None => return,
                        }
                    };
                    let goes_on = match message {
                        ToServer::Change(change) => self.apply(session, change, false),
                        ToServer::Accessed { file, caller, at } => {
                            self.accessed(session, &caller, file, at);
                            true
                        }
                        _ => true,
                    };
                    if !goes_on {
                        return;
                    }
                }
                Some(message) => {
                    if !is_about_openings(&message) {
                        self.tell_applied(session);
                    }
                    self.attend(session, message);
                    session.lane.lock().others -= 1;
                }
            }
        }
        self.tell_applied(session);
        let mut lane = session.lane.lock();
        lane.is_running = !lane.waiting.is_empty();
        let goes_on = lane.is_running;
        drop(lane);
        if goes_on {
            (self.queue)(Job(Work::Lane(Arc::clone(session))));
        }
    }

    /// Tells the client how far its changes are applied.
    fn tell_applied(&self, session: &Session) {
        let mut lane = session.lane.lock();
        if lane.told == lane.applied {
            return;
        }
        let (number, extents) = (lane.applied, std::mem::take(&mut lane.extents));
        drop(lane);
        let extents = extents.into_iter().collect();
        self.tell_credit(session, |credit| ToClient::Applied { number, extents, credit });
        session.lane.lock().told = number;
    }

    /// A change could not be made that its client has made.
    pub(super) fn failed(&self, session: &Session, number: ChangeNumber, error: Error) {
        session.peer.send(ToClient::Failed { number, error });
    }

    /// Bytes of changes of one client that are made durable at once.
    pub(super) fn round_bytes(&self, session: &Session) -> u64 {
        (session.credit() / ROUND_SHARE).max(ROUND_BYTES_MIN)
    }

    /// Makes a change that a client has made, perhaps once more, as it was lost with a server.
    /// False: it has to wait, and the lane with it.
    pub(super) fn apply(&self, session: &Arc<Session>, change: Change, is_again: bool) -> bool {
        let (number, client) = (change.number, ClientId(session.id.0));
        let said = Said::Change(session.id, number);
        let parked = session.lane.lock().parked.take();
        let request = parked.unwrap_or_else(|| self.next_request());
        let mut grip = Grip::new(&self.grants, request, client);
        grip.begin_change(change.made);
        let caller = session.rights.identities.map(&change.caller);
        let applied = self.check(session, &caller, &change, is_again).and_then(|()| {
            let now = change.now;
            let ctx = Context { now, ..self.fs.context(&caller) };
            self.guard(&mut grip, session, &ctx, &change.call, Note::Change(number))
        });
        let is_blocked = matches!(applied, Err(Error::Stop(Stop::Lease)));
        if is_blocked && !grip.denied().is_empty() {
            let denied = grip.denied().to_vec();
            {
                let mut lane = session.lane.lock();
                lane.parked = Some(request);
                lane.waiting.push_front(ToServer::Change(change));
            }
            self.settle(|grants| match session.is_over() {
                true => grants.table.withdraw(request),
                false => grants.park_lane(session, request, &denied),
            });
            return false;
        }
        self.times.saw(change.now);
        self.saw_order(change.order);
        let mut leases: Vec<Want> = Vec::new();
        let changed = match applied {
            Ok(Guarded { answer, rest, .. }) => {
                self.begin_written(session, said, (&change.call, &answer), change.order);
                if is_again {
                    self.told_open_already(session, &answer);
                }
                let made = match &rest {
                    Rest::Made(file) => Some(file.ino),
                    Rest::LostName(_) | Rest::Nothing => None,
                };
                if made != change.made {
                    // It has come to something else here than it did there.
                    self.failed(session, number, Error::Exists);
                }
                if let Rest::Made(file) = rest
                    && !is_again
                {
                    leases.push((KeyRange::object(file), LockMode::Exclusive));
                }
                self.lose_name(rest);
                grip.into_changed()
            }
            Err(error) => {
                self.failed(session, number, error);
                BTreeMap::new()
            }
        };
        let changed: Vec<(Key, Option<Value>)> = changed.into_iter().collect();
        self.note_told(session, &change.call, &[], &changed);
        self.finish(session, request, &leases, &gone(&changed));
        let (weight, most) = (weight(&change.call), self.round_bytes(session));
        self.settle_soon_if(session.note_done(None, weight, most));
        let mut lane = session.lane.lock();
        lane.applied = lane.applied.max(number);
        lane.extents.extend(changed.into_iter().filter(|(key, _)| key.kind == Kind::FILE));
        drop(lane);
        self.end_written(said);
        true
    }

    /// Whether the change is one that the client may have made. Of one that is made again the
    /// numbers that its client had are not known any more; that it is nobody's is looked at later.
    pub(super) fn check(
        &self,
        session: &Session,
        caller: &Caller,
        change: &Change,
        is_again: bool,
    ) -> Result<()> {
        if self.fs.is_read_only() {
            return Err(MapError::ReadOnly.into());
        }
        if !change.call.files().iter().all(|file: &FileId| self.is_known(session, *file)) {
            return Err(Error::Stale);
        }
        self.permit(session, caller, &change.call)?;
        let Some(made) = change.made else {
            let makes = may_make(&change.call) && !matches!(change.call, Call::Create { .. });
            return if makes { Err(Error::InvalidArgument) } else { Ok(()) };
        };
        if is_again {
            return Ok(());
        }
        let parents = change.call.files();
        let is_given = |(of, series): &(SubvolId, Range<u64>)| {
            parents.iter().all(|parent| parent.subvol == *of) && series.contains(&made.0)
        };
        // Mostly of those that were given last.
        match session.lane.lock().numbers.iter().rev().any(is_given) {
            true => Ok(()),
            false => Err(Error::InvalidArgument),
        }
    }
}
