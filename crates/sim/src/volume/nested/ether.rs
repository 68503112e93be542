//! Members, and what is on its way to them and back.
//!
//! A courier brings what was sent when its time has come: requests are done by the member, answers
//! are put where the line looks for them ([`super::line`]).

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gabion_base::disk::{DiskRequest, DiskResult};
use gabion_base::ids::Uuid;
use gabion_base::rng::Rng;

use super::super::Sabotage;
use super::super::member::{Grant, Member, failure, fenced};
use super::HOSTS;

/// Where the courier waits. Lines wait at places behind it.
pub(super) const COURIER: usize = 1;
/// The longest that a request takes on its way to a slow member.
const SLOW: Duration = Duration::from_millis(400);
/// How long the courier waits if nothing is on its way.
const PAUSE: Duration = Duration::from_secs(1);

/// Names a line.
pub(super) type LineId = usize;

/// The member's end of a line.
struct End {
    host: usize,
    member: usize,
    /// Which disk it was at first: another one is not used in its place.
    disk: Uuid,
    /// Nothing for somebody who only looks.
    grant: Option<Grant>,
    /// The connection, counted: what comes on an earlier one is too late.
    connection: u64,
    is_lost: bool,
    answers: VecDeque<(u64, DiskResult)>,
}

/// What is on its way.
enum Parcel {
    Request { sent: Sent, boot: u32, request: DiskRequest },
    Answer { sent: Sent, result: DiskResult },
}

/// How something was sent, and how its answer is to be told from others.
#[derive(Clone, Copy)]
struct Sent {
    line: LineId,
    connection: u64,
    grant: Option<Grant>,
    cookie: u64,
}

struct State {
    rng: Rng,
    members: Vec<Member>,
    cuts: Vec<[bool; HOSTS]>,
    lines: Vec<End>,
    parcels: BTreeMap<(Duration, u64), Parcel>,
    sent: u64,
}

/// All members, and the network.
pub(super) struct Ether {
    state: Mutex<State>,
    sabotage: Sabotage,
}

/// Why there is no connection.
pub(super) enum NoLine {
    Unreachable,
    Fenced,
}

impl Ether {
    pub(super) fn new(seed: u64, members: Vec<Member>, sabotage: Sabotage) -> Self {
        let state = State {
            rng: Rng::new(seed ^ 0xe7e4_0000),
            cuts: vec![[false; HOSTS]; members.len()],
            members,
            lines: Vec::new(),
            parcels: BTreeMap::new(),
            sent: 0,
        };
        Self { state: Mutex::new(state), sabotage }
    }

    /// What is broken on purpose.
    pub(super) fn sabotage(&self) -> Sabotage {
        self.sabotage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to a member.
    pub(super) fn member<T>(
        &self,
        member: usize,
        act: impl FnOnce(&mut Member, &mut Rng) -> T,
    ) -> T {
        let state = &mut *self.state();
        act(&mut state.members[member], &mut state.rng)
    }

    pub(super) fn set_cut(&self, host: usize, member: usize, is_cut: bool) {
        self.state().cuts[member][host] = is_cut;
    }

    /// The power of a member goes; what was on its way to it may have been done, in part.
    pub(super) fn cut_power(&self, member: usize) {
        let state = &mut *self.state();
        let boot = state.members[member].boot;
        let mut under_way = Vec::new();
        for parcel in state.parcels.values() {
            if let Parcel::Request { sent, boot: sent_to, request } = parcel
                && state.lines[sent.line].member == member
                && *sent_to == boot
                && sent.grant.is_some_and(|grant| state.members[member].is_granted(grant))
            {
                under_way.push(request.clone());
            }
        }
        let disk = &mut state.members[member];
        if !disk.powered {
            return;
        }
        disk.cut_power(&mut state.rng);
        for request in under_way {
            if state.rng.chance(1, 2) {
                disk.be_interrupted(&request, &mut state.rng);
            }
        }
        for line in state.lines.iter_mut().filter(|line| line.member == member) {
            line.is_lost = true;
        }
    }

    /// Another disk stands where a member was; gives the one that was there.
    pub(super) fn replace(&self, member: usize, mut disk: Member) -> Member {
        self.cut_power(member);
        let place = &mut self.state().members[member];
        (disk.boot, disk.powered) = (disk.boot.max(place.boot) + 1, true);
        std::mem::replace(place, disk)
    }

    /// Two disks change places.
    pub(super) fn exchange(&self, one: usize, other: usize) {
        self.cut_power(one);
        self.cut_power(other);
        let members = &mut self.state().members;
        members.swap(one, other);
        let boot = members[one].boot.max(members[other].boot) + 1;
        for member in [one, other] {
            (members[member].boot, members[member].powered) = (boot, true);
        }
    }

    /// How long a member is by now, if the line's disk can be asked.
    pub(super) fn length(&self, now: Duration, line: LineId) -> Option<u64> {
        let state = self.state();
        let End { host, member, disk, .. } = &state.lines[line];
        let found = &state.members[*member];
        (state.reaches(now, *host, *member) && found.uuid == *disk).then_some(found.blocks)
    }

    /// A new line; its first connection is granted already.
    pub(super) fn connect(
        &self,
        now: Duration,
        host: usize,
        member: usize,
        grant: Option<Grant>,
    ) -> Result<LineId, NoLine> {
        let state = &mut *self.state();
        if !state.reaches(now, host, member) {
            return Err(NoLine::Unreachable);
        }
        if let Some(grant) = grant {
            state.members[member].claim(grant).map_err(|_| NoLine::Fenced)?;
        }
        let (disk, answers) = (state.members[member].uuid, VecDeque::new());
        let (connection, is_lost) = (0, false);
        state.lines.push(End { host, member, disk, grant, connection, is_lost, answers });
        Ok(state.lines.len() - 1)
    }

    /// The next connection of a line, which fences the one before; and what the server may have
    /// lost is done again, before anything else.
    pub(super) fn reconnect(
        &self,
        now: Duration,
        line: LineId,
        again: &[DiskRequest],
    ) -> Result<(), NoLine> {
        let state = &mut *self.state();
        let (host, member) = (state.lines[line].host, state.lines[line].member);
        let is_same = state.members[member].uuid == state.lines[line].disk;
        let is_trusted = is_same || self.sabotage == Sabotage::TrustedForeign;
        if !state.reaches(now, host, member) || !is_trusted {
            return Err(NoLine::Unreachable);
        }
        let end = &mut state.lines[line];
        end.connection += 1;
        end.answers.clear();
        end.is_lost = false;
        if let Some(grant) = &mut end.grant {
            grant.connection += 1;
            let grant = *grant;
            state.members[member].claim(grant).map_err(|_| NoLine::Fenced)?;
            if self.sabotage != Sabotage::NoReplay {
                for request in again {
                    // A write that fails now is refused again when it is flushed: the disk is ill.
                    if state.members[member].execute(request, grant).is_err() {
                        state.lines[line].is_lost = true;
                        return Err(NoLine::Unreachable);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends a request on its way.
    pub(super) fn send(&self, now: Duration, line: LineId, cookie: u64, request: DiskRequest) {
        let state = &mut *self.state();
        let end = &state.lines[line];
        let sent = Sent { line, connection: end.connection, grant: end.grant, cookie };
        let boot = state.members[end.member].boot;
        let time = state.latency(line);
        state.post(now + time, Parcel::Request { sent, boot, request });
    }

    /// What has come for a line, and whether its connection is lost.
    pub(super) fn receive(&self, line: LineId) -> (Vec<(u64, DiskResult)>, bool) {
        let mut state = self.state();
        let end = &mut state.lines[line];
        (end.answers.drain(..).collect(), end.is_lost)
    }

    /// The line hangs up.
    pub(super) fn hang_up(&self, line: LineId) {
        let mut state = self.state();
        let end = &mut state.lines[line];
        end.connection += 1;
        end.is_lost = true;
        end.answers.clear();
    }

    /// Brings what has to come by now. Gives when to look again, and whose answers have come.
    pub(super) fn bring(&self, now: Duration) -> (Duration, Vec<LineId>) {
        let state = &mut *self.state();
        let mut woken = Vec::new();
        while let Some(entry) = state.parcels.first_entry() {
            if entry.key().0 > now {
                return (entry.key().0 - now, woken);
            }
            let line = match entry.remove() {
                Parcel::Request { sent, boot, request } => {
                    state.deliver(now, (sent, boot), request, self.sabotage)
                }
                Parcel::Answer { sent, result } => state.answer(sent, result),
            };
            woken.extend(line);
        }
        (PAUSE, woken)
    }
}

impl State {
    fn reaches(&self, now: Duration, host: usize, member: usize) -> bool {
        !self.cuts[member][host] && self.members[member].answers(now)
    }

    fn latency(&mut self, line: LineId) -> Duration {
        let most = self.members[self.lines[line].member].latency.min(SLOW);
        Duration::from_micros(self.rng.below(most.as_micros() as u64 + 1))
    }

    fn post(&mut self, then: Duration, parcel: Parcel) {
        self.sent += 1;
        self.parcels.insert((then, self.sent), parcel);
    }

    /// A request arrives; gives the line if its connection is lost by that.
    fn deliver(
        &mut self,
        now: Duration,
        (sent, boot): (Sent, u32),
        request: DiskRequest,
        sabotage: Sabotage,
    ) -> Option<LineId> {
        let (host, member) = (self.lines[sent.line].host, self.lines[sent.line].member);
        let disk = &mut self.members[member];
        if !disk.powered || disk.boot != boot {
            return self.lose(sent);
        }
        if disk.frozen > now {
            let later = disk.frozen + Duration::from_micros(self.rng.below(5000));
            self.post(later, Parcel::Request { sent, boot, request });
            return None;
        }
        let is_cut = self.cuts[member][host];
        // What a lost connection has left in the member's queue may be done or not.
        if is_cut && self.rng.chance(1, 2) {
            return self.lose(sent);
        }
        let lies = sabotage == Sabotage::LostWrites && member == 1;
        let is_write = matches!(request, DiskRequest::Write { .. });
        let result = match (sent.grant, &request) {
            (Some(_), _) if lies && is_write && self.rng.chance(1, 4) => Ok(None),
            (Some(grant), _) => self.members[member].execute(&request, grant),
            (None, DiskRequest::Read { .. }) => self.members[member].perform(&request),
            (None, _) => Err(fenced(request.operation())),
        };
        if is_cut {
            return self.lose(sent);
        }
        let then = now + self.latency(sent.line);
        self.post(then, Parcel::Answer { sent, result });
        None
    }

    fn answer(&mut self, sent: Sent, result: DiskResult) -> Option<LineId> {
        let end = &mut self.lines[sent.line];
        if self.cuts[end.member][end.host] {
            return self.lose(sent);
        }
        if end.connection != sent.connection || end.is_lost {
            return None;
        }
        end.answers.push_back((sent.cookie, result));
        Some(sent.line)
    }

    fn lose(&mut self, sent: Sent) -> Option<LineId> {
        let end = &mut self.lines[sent.line];
        let is_new = end.connection == sent.connection && !end.is_lost;
        end.is_lost |= is_new;
        is_new.then_some(sent.line)
    }
}

/// That there is nobody at the other end.
pub(super) fn gone(request: &DiskRequest) -> gabion_base::disk::DiskError {
    failure(request, io::ErrorKind::TimedOut)
}
