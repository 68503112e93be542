//! What carries requests to a member, and does not give up when a connection is lost.
//!
//! It behaves as `gabion_nbd`'s client does: everything unanswered is sent again on the next
//! connection, after what was acknowledged and not flushed, as the member may have lost that. A new
//! connection fences the one before, so that what that one left behind cannot come later.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use gabion_base::buffer::Blocks;
use gabion_base::disk::{DiskRequest, DiskResult, Durability};
use gabion_block::copies::CopyIndex;
use gabion_block::format::header::MEMBER_DATA_START;
use gabion_block::mirror::{Input, Sent};

use super::World;
use super::growth::lengths;
use super::host::Life;
use super::member::{Grant, behind_header, failure, fenced};
use super::{Event, Sabotage};

/// After how long without a connection requests fail.
const LOST: Duration = Duration::from_millis(1500);

pub(super) struct Client {
    pub(super) life: Life,
    copy: CopyIndex,
    grant: Grant,
    /// Since when there is no connection.
    down: Option<Duration>,
    closed: bool,
    fenced: bool,
    next: u64,
    pending: BTreeMap<u64, Pending>,
    acknowledged: u64,
    unflushed: Vec<(u64, DiskRequest)>,
}

struct Pending {
    sent: Sent,
    request: DiskRequest,
    /// How much had been acknowledged when it was sent.
    acknowledged: u64,
}

/// Names a client of the world.
pub(super) type ClientId = usize;

/// A request on its way to a member.
pub(super) struct Letter {
    client: ClientId,
    grant: Grant,
    boot: u32,
    cookie: u64,
}

impl World {
    /// A client whose connection has been granted already.
    pub(super) fn connect(&mut self, life: Life, copy: CopyIndex, grant: Grant) -> ClientId {
        self.clients.push(Client {
            life,
            copy,
            grant,
            down: None,
            closed: false,
            fenced: false,
            next: 0,
            pending: BTreeMap::new(),
            acknowledged: 0,
            unflushed: Vec::new(),
        });
        self.clients.len() - 1
    }

    pub(super) fn disconnect(&mut self, client: ClientId) {
        self.clients[client].closed = true;
        self.clients[client].pending.clear();
    }

    /// Has `copy` do `request`; the answer is told to the mirror.
    pub(super) fn send(&mut self, id: ClientId, sent: Sent, request: DiskRequest) {
        let client = &mut self.clients[id];
        let request = behind_header(request);
        let lost = client.down.is_some_and(|since| self.now - since >= LOST);
        if client.closed || client.fenced || lost {
            let result = match client.fenced {
                true => Err(fenced(request.operation())),
                false => Err(failure(&request, io::ErrorKind::NotConnected)),
            };
            let life = client.life;
            return self.schedule(Duration::ZERO, Event::Answer { life, sent, result });
        }
        let cookie = client.next;
        client.next += 1;
        let acknowledged = client.acknowledged;
        client.pending.insert(cookie, Pending { sent, request, acknowledged });
        if client.down.is_none() {
            self.post(id, cookie);
        }
    }

    fn post(&mut self, id: ClientId, cookie: u64) {
        let client = &self.clients[id];
        let member = &self.members[client.copy.at()];
        let letter = Letter { client: id, grant: client.grant, boot: member.boot, cookie };
        let request = client.pending[&cookie].request.clone();
        let latency = self.delay(self.members[client.copy.at()].latency);
        self.schedule(latency, Event::Deliver { letter, request });
    }

    /// Where on a disk the blocks begin that the record does not know to be used.
    fn end(&self) -> u64 {
        lengths(&self.coordinator.record).0 + MEMBER_DATA_START
    }

    /// What has been sent to a member that would do it, and has not arrived.
    pub(super) fn under_way_to(&self, copy: CopyIndex) -> Vec<DiskRequest> {
        let member = &self.members[copy.at()];
        let is_for = |letter: &Letter| {
            self.clients[letter.client].copy == copy
                && letter.boot == member.boot
                && member.powered
                && member.is_granted(letter.grant)
        };
        let sent = self.queue.values().filter_map(|event| match event {
            Event::Deliver { letter, request } if is_for(letter) => Some(request.clone()),
            _ => None,
        });
        sent.collect()
    }

    /// A request arrives at its member.
    pub(super) fn deliver(&mut self, letter: Letter, request: DiskRequest) {
        let Letter { client: id, grant, boot, cookie } = letter;
        let (life, copy) = (self.clients[id].life, self.clients[id].copy);
        let member = &mut self.members[copy.at()];
        if !member.powered || member.boot != boot {
            return self.lose(id, grant);
        }
        if member.frozen > self.now {
            let later = member.frozen - self.now + self.delay(Duration::from_millis(5));
            return self.schedule(later, Event::Deliver { letter, request });
        }
        let is_cut = self.is_cut(life.host, copy);
        // What a lost connection has left in the member's queue may be done or not.
        if is_cut && self.rng.chance(1, 2) {
            return self.lose(id, grant);
        }
        let lies = self.sabotage == Sabotage::LostWrites && copy.0 == 1;
        let result = match &request {
            DiskRequest::Write { .. } if lies && self.rng.chance(1, 4) => Ok(None),
            DiskRequest::Read { addr, count }
                if self.sabotage == Sabotage::RubbishBehindTheEnd && addr.0 >= self.end() =>
            {
                Ok(Some(Blocks::zeroed(*count)))
            }
            _ => self.members[copy.at()].execute(&request, grant),
        };
        if is_cut {
            return self.lose(id, grant);
        }
        let latency = self.delay(self.members[copy.at()].latency);
        self.schedule(latency, Event::Reply { client: id, grant, cookie, result });
    }

    pub(super) fn reply(&mut self, id: ClientId, grant: Grant, cookie: u64, result: DiskResult) {
        let (life, copy) = (self.clients[id].life, self.clients[id].copy);
        if self.is_cut(life.host, copy) {
            return self.lose(id, grant);
        }
        let client = &mut self.clients[id];
        if client.grant != grant || client.down.is_some() {
            return;
        }
        let Some(pending) = client.pending.remove(&cookie) else { return };
        match (&pending.request, &result) {
            (DiskRequest::Flush, Ok(_)) => {
                client.unflushed.retain(|(number, _)| *number > pending.acknowledged);
            }
            (DiskRequest::Read { .. }, _) | (_, Err(_)) => {}
            (request, Ok(_)) => {
                client.acknowledged += 1;
                let fua = is_fua(request);
                if !(fua && client.unflushed.is_empty()) {
                    client.unflushed.push((client.acknowledged, pending.request));
                }
            }
        }
        self.answer(life, Input::Done { sent: pending.sent, result });
    }

    /// The connection of this grant is lost.
    fn lose(&mut self, id: ClientId, grant: Grant) {
        let client = &mut self.clients[id];
        if client.grant == grant && client.down.is_none() && !client.closed {
            client.down = Some(self.now);
            let wait = self.delay(Duration::from_millis(50));
            self.schedule(wait, Event::Reconnect { client: id });
        }
    }

    /// All connections to a member are lost.
    pub(super) fn lose_all(&mut self, copy: CopyIndex) {
        for id in 0..self.clients.len() {
            if self.clients[id].copy == copy {
                self.lose(id, self.clients[id].grant);
            }
        }
    }

    pub(super) fn reconnect(&mut self, id: ClientId) {
        let (life, copy) = (self.clients[id].life, self.clients[id].copy);
        if self.clients[id].closed || !self.is_alive(life) {
            return;
        }
        if !self.reaches(life.host, copy) {
            let lost = self.clients[id].down.is_some_and(|since| self.now - since >= LOST);
            if lost {
                self.fail_pending(id, false);
            }
            let wait = Duration::from_millis(50) + self.delay(Duration::from_millis(100));
            return self.schedule(wait, Event::Reconnect { client: id });
        }
        let client = &mut self.clients[id];
        client.grant.connection += 1;
        let (grant, member) = (client.grant, &mut self.members[copy.at()]);
        if member.claim(grant).is_err() {
            client.fenced = true;
            return self.fail_pending(id, true);
        }
        client.down = None;
        if self.sabotage != Sabotage::NoReplay {
            for (_, request) in &client.unflushed {
                // A write that fails now is refused again when it is flushed: the disk is ill.
                if member.execute(request, grant).is_err() {
                    return self.lose(id, grant);
                }
            }
        }
        let cookies: Vec<_> = self.clients[id].pending.keys().copied().collect();
        for cookie in cookies {
            self.post(id, cookie);
        }
    }

    fn fail_pending(&mut self, id: ClientId, by_fence: bool) {
        let life = self.clients[id].life;
        for (_, pending) in std::mem::take(&mut self.clients[id].pending) {
            let result = match by_fence {
                true => Err(fenced(pending.request.operation())),
                false => Err(failure(&pending.request, io::ErrorKind::TimedOut)),
            };
            self.answer(life, Input::Done { sent: pending.sent, result });
        }
    }
}

fn is_fua(request: &DiskRequest) -> bool {
    matches!(request, DiskRequest::Write { durability: Durability::Fua, .. })
}
