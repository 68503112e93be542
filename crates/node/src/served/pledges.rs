//! Room that clients are told there is for what they change by themselves.
//!
//! ```text
//!   credit told  --> so much is pledged: nobody else gets it         (map: space, quota)
//!   no room for a call, while some is pledged
//!                --> each client: no credit any more, Freeze, Thaw; the call waits
//!   Frozen       --> all that it changed before it knew is applied: nothing is pledged to it
//!   nothing is pledged --> the call is made once more
//! ```
//!
//! What a client has answered has to find room, however long ago it was told, and whoever has
//! filled the disk or a quota since. On the other hand a disk is full only when nothing is left,
//! and not when idle clients could have used the rest, and so is a quota. So pledges hold until
//! they are given up, and are given up when somebody needs them. Whoever sets a quota waits for
//! that, too: nothing that was answered is over it later.
//!
//! A client is frozen and thawed at once: it does not stand still, but what it says in between
//! ([`ToServer::Frozen`]) parts what it changed before from what it changes when it knows better.
//! Numbers of such freezes are none of an instant's (`freezing`).
//!
//! Credits are not told anew with every little change of what is free. They are looked at when
//! changes were applied, and with every round: so who had none, as the disk was full, has one when
//! there is room again.
//!
//! [`ToServer::Frozen`]: gabion_link::message::ToServer::Frozen

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::{Error, Result};
use gabion_link::message::ToClient;
use gabion_map::{MapError, Stop};

use super::lane::CHANGE_BYTES;
use super::tight::bytes_of;
use super::{Changing, Job, Outcome, Request, Served, Session, Work};

/// Bytes of changes of a client that may be not durable.
pub(super) const CREDIT_MAX: u64 = 128 << 20;
/// With less, changes are not worth the trouble.
pub(super) const CREDIT_MIN: u64 = 4 << 20;
/// What is promised to all clients together is this part of what is free.
pub(super) const CREDIT_SHARE: u64 = 4;
/// Blocks that are pledged besides the bytes: an operation asks for a few more than it takes.
const MARGIN: u64 = 64;
/// Numbers of freezes that part what a client changes are from here on.
const FENCES: u64 = 1 << 63;
/// How often one call waits for what is pledged: meanwhile others may be told of a credit again.
const WITHDRAWALS_MAX: u8 = 4;
/// How long who sets a quota waits for what is pledged: longer than a session that does not answer
/// lasts.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often clients are told again meanwhile, which is put off during a common instant.
const ASKED_EVERY: Duration = Duration::from_millis(500);

/// What one client was told.
#[derive(Debug, Default)]
pub(super) struct Pledge {
    credit: u64,
    /// What is kept for it: of a credit that is not less.
    kept_for: u64,
    /// The version of what is tight that it was told.
    tight: Option<u64>,
    /// When this comes back all that was changed under an earlier, greater credit is applied.
    fence: Option<u64>,
    /// The client has been greeted.
    has_begun: bool,
    is_over: bool,
}

/// What waits for pledges to be given up.
#[derive(Default)]
pub(super) struct Pledges {
    waiting: Mutex<Vec<Request>>,
    /// Nothing was pledged any more, for a moment at least.
    given_up: Condvar,
    /// How many let nothing be pledged.
    forbidding: AtomicUsize,
    /// Counts pledges that were tried.
    raises: AtomicU64,
    fences: AtomicU64,
}

impl Pledges {
    /// Whether somebody needs what is pledged.
    fn are_needed(&self) -> bool {
        self.forbidding.load(Ordering::SeqCst) > 0 || !self.waiting.lock().is_empty()
    }
}

/// What was pledged at a moment.
#[derive(Clone, Copy)]
pub(super) struct Pledging {
    raises: u64,
    is_pledged: bool,
    /// The version of what is tight.
    tight: u64,
}

/// What has become of a pledge that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Raised {
    /// It stands, or there was none.
    Kept,
    /// It was given back. Who has come to wait in between has seen it, and nobody who would give it
    /// up: so it has to be looked whether he can go on.
    GivenBack,
}

/// Nothing is pledged until this is dropped.
pub(super) struct Unpledged<'a>(&'a Served);

impl Drop for Unpledged<'_> {
    fn drop(&mut self) {
        self.0.pledges.forbidding.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Blocks, and objects, that are kept for a credit.
fn kept_for(credit: u64) -> (u64, u64) {
    match credit {
        0 => (0, 0),
        credit => (credit.div_ceil(BLOCK_SIZE as u64) + MARGIN, credit.div_ceil(CHANGE_BYTES)),
    }
}

impl Session {
    /// Behind what it has to say that it knows that there is less room.
    pub(super) fn owed_fence(&self) -> Option<u64> {
        self.pledge.lock().fence
    }

    /// The credit that its client was told last.
    pub(super) fn credit(&self) -> u64 {
        self.pledge.lock().credit
    }

    /// Whether its client may change anything.
    fn may_change(&self) -> bool {
        self.rights.changing == Changing::Allowed
    }
}

impl Served {
    /// Bytes of changes of the session's client that may be not durable: what it was told, or is
    /// to be told as the first thing. What they are about finds room.
    pub fn credit(&self, session: &Session) -> u64 {
        let mut pledge = session.pledge.lock();
        pledge.has_begun = true;
        let raised = match pledge.credit == 0 && pledge.fence.is_none() {
            true => self.raise(&mut pledge, self.fair_credit(0)),
            false => Raised::Kept,
        };
        let credit = pledge.credit;
        drop(pledge);
        self.end_raise(raised);
        credit
    }

    /// What a client should be told now that was told so much: an equal part, in whichever
    /// subvolume it is used, also where a quota limits that.
    fn fair_credit(&self, own: u64) -> u64 {
        if self.fs.is_read_only() || self.are_pledges_needed() {
            return 0;
        }
        let clients = self.sessions.read().len().max(1) as u64;
        let available = bytes_of(self.fs.map().room_everywhere());
        let pledged = self.fs.map().pledged().saturating_sub(kept_for(own).0);
        let left = available.saturating_sub(pledged.saturating_mul(BLOCK_SIZE as u64)) / 2;
        let credit = (available / CREDIT_SHARE / clients).min(CREDIT_MAX).min(left);
        if credit < CREDIT_MIN { 0 } else { credit }
    }

    /// Pledges more, if there is room for it.
    fn raise(&self, pledge: &mut Pledge, credit: u64) -> Raised {
        if pledge.is_over || credit <= pledge.credit {
            return Raised::Kept;
        }
        let before = pledge.kept_for;
        self.pledges.raises.fetch_add(1, Ordering::SeqCst);
        self.keep(pledge, credit);
        // Whoever has taken room meanwhile did not see it; from here on everybody does.
        let is_known = || self.tight.is_known(pledge.tight);
        if self.fs.map().keeps_pledges() && !self.are_pledges_needed() && is_known() {
            pledge.credit = credit;
            Raised::Kept
        } else {
            self.keep(pledge, before);
            Raised::GivenBack
        }
    }

    /// To be called when no pledge is locked any more.
    fn end_raise(&self, raised: Raised) {
        match raised {
            Raised::Kept => {}
            Raised::GivenBack => self.withdraw(),
        }
    }

    /// Keeps what a credit needs instead of what was kept.
    fn keep(&self, pledge: &mut Pledge, credit: u64) {
        let (blocks, objects) = kept_for(credit);
        let (blocks_before, objects_before) = kept_for(pledge.kept_for);
        let more = |now: u64, before: u64| now as i64 - before as i64;
        self.fs.map().pledge(more(blocks, blocks_before), more(objects, objects_before));
        pledge.kept_for = credit;
    }

    /// Whether nothing may be pledged for now.
    fn are_pledges_needed(&self) -> bool {
        self.pledges.are_needed() || self.tight.is_changing()
    }

    /// Tells a client what `message` makes of its credit, and of another one if it should have a
    /// very different one.
    pub(super) fn tell_credit(&self, session: &Session, message: impl FnOnce(u64) -> ToClient) {
        let mut pledge = session.pledge.lock();
        self.tell_tight(session, &mut pledge.tight);
        let fair = self.fair_credit(pledge.kept_for);
        let raised = match fair / 2 >= pledge.credit && pledge.fence.is_none() {
            true => self.raise(&mut pledge, fair),
            false => Raised::Kept,
        };
        session.peer.send(message(pledge.credit));
        if fair <= pledge.credit / 2 {
            self.lower(session, &mut pledge, fair);
        }
        drop(pledge);
        self.end_raise(raised);
    }

    /// Tells a client of less room, unless it was told so or others are at a common instant.
    fn lower(&self, session: &Session, pledge: &mut Pledge, credit: u64) {
        if pledge.fence.is_some() || pledge.is_over {
            return;
        }
        let fence = FENCES | self.pledges.fences.fetch_add(1, Ordering::Relaxed);
        let applied = session.lane.lock().told();
        let told = ToClient::Applied { number: applied, extents: Vec::new(), credit };
        if self.freezing.part(session, fence, told) {
            (pledge.credit, pledge.fence) = (credit, Some(fence));
        }
    }

    /// A client has come to a fence.
    pub(super) fn fenced(&self, session: &Session, fence: u64) {
        let mut pledge = session.pledge.lock();
        if pledge.fence != Some(fence) {
            return;
        }
        pledge.fence = None;
        let credit = pledge.credit;
        self.keep(&mut pledge, credit);
        drop(pledge);
        self.withdraw();
    }

    /// The session has ended: nothing is pledged to it any more.
    pub(super) fn end_pledge(&self, session: &Session) {
        let mut pledge = session.pledge.lock();
        self.keep(&mut pledge, 0);
        *pledge = Pledge { is_over: true, ..Pledge::default() };
        drop(pledge);
        self.withdraw();
    }

    /// What [`wait_for_pledged`](Self::wait_for_pledged) has to know of a call that is made now.
    pub(super) fn pledging(&self) -> Pledging {
        let raises = self.pledges.raises.load(Ordering::SeqCst);
        let tight = self.tight.version();
        Pledging { raises, is_pledged: self.fs.map().pledged() > 0, tight }
    }

    /// If there was no room for a call, and something was pledged when it began or since, it waits
    /// until nothing is, and is made once more then; else it is given back.
    pub(super) fn wait_for_pledged(
        &self,
        job: Request,
        outcome: &Outcome,
        pledging: Pledging,
    ) -> Option<Request> {
        let is_lack = match &outcome.result {
            Err(Error::Stop(Stop::Map(MapError::NoSpace))) => true,
            Err(Error::Stop(Stop::Map(MapError::OverQuota))) => {
                !self.tight.has_been_among(&job.call, pledging.tight)
            }
            _ => false,
        };
        if !is_lack || job.withdrawals >= WITHDRAWALS_MAX {
            return Some(job);
        }
        if !pledging.is_pledged && pledging.raises == self.pledges.raises.load(Ordering::SeqCst) {
            return Some(job);
        }
        // What it holds meanwhile could be needed for what is waited for.
        self.settle(|grants| grants.table.withdraw(job.request));
        let (request, withdrawals) = (self.next_request(), job.withdrawals + 1);
        self.pledges.waiting.lock().push(Request { request, withdrawals, ..job });
        self.withdraw();
        None
    }

    /// If somebody needs what is pledged, has clients give it up; if they have, goes on.
    pub(super) fn withdraw(&self) {
        if !self.are_pledges_needed() {
            return;
        }
        for session in self.all_sessions() {
            let mut pledge = session.pledge.lock();
            if pledge.credit > 0 {
                self.lower(&session, &mut pledge, 0);
            }
        }
        if self.fs.map().pledged() == 0 {
            self.tighten();
            let waiting = {
                let mut waiting = self.pledges.waiting.lock();
                self.pledges.given_up.notify_all();
                std::mem::take(&mut *waiting)
            };
            waiting.into_iter().for_each(|job| (self.queue)(Job(Work::Call(job))));
        }
    }

    /// Has clients give up all that is pledged, and pledges nothing until what is returned is
    /// dropped. `Busy`: one of them does not answer, and has not lost its session either.
    pub(super) fn unpledge(&self) -> Result<Unpledged<'_>> {
        let now = || self.fs.clock.monotonic();
        let gives_up = now() + PATIENCE;
        self.pledges.forbidding.fetch_add(1, Ordering::SeqCst);
        let unpledged = Unpledged(self);
        loop {
            self.withdraw();
            let mut waiting = self.pledges.waiting.lock();
            if self.fs.map().pledged() == 0 {
                return Ok(unpledged);
            }
            if now() >= gives_up || self.is_ending() {
                return Err(Error::Busy);
            }
            self.pledges.given_up.wait_for(&mut waiting, ASKED_EVERY);
        }
    }

    /// Tells clients of other credits that should have very different ones.
    pub(super) fn renew_credits(&self) {
        self.look_for_tight();
        self.withdraw();
        for session in self.all_sessions() {
            let is_due = {
                let pledge = session.pledge.lock();
                let fair = self.fair_credit(pledge.kept_for);
                let is_other = fair > 0 && fair / 2 >= pledge.credit;
                is_other && pledge.has_begun && pledge.fence.is_none()
            };
            if is_due && session.may_change() {
                let number = session.lane.lock().told();
                let told = |credit| ToClient::Applied { number, extents: Vec::new(), credit };
                self.tell_credit(&session, told);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gabion_link::message::Call;

    use super::super::testing::Stage;
    use super::*;

    #[test]
    fn whoever_came_to_wait_while_a_pledge_was_tried_goes_on_when_it_is_given_back() {
        let stage = Stage::new();
        let (session, _) = stage.client(1);
        let root = stage.served.fs.root();
        stage.ask(&session, 1, Call::Mkdir { parent: root, name: b"x".into(), permissions: 0 });
        let [Job(Work::Call(job))] = <[Job; 1]>::try_from(stage.take_jobs()).ok().unwrap() else {
            panic!("a call");
        };
        // A pledge is being tried for another one just when it is found that there is no room.
        let pledging = stage.served.pledging();
        let (blocks, objects) = kept_for(CREDIT_MIN);
        stage.served.fs.map().pledge(blocks as i64, objects as i64);
        stage.served.pledges.raises.fetch_add(1, Ordering::SeqCst);
        let full = Outcome::plain(Err(Error::Stop(Stop::Map(MapError::NoSpace))));
        assert!(stage.served.wait_for_pledged(job, &full, pledging).is_none(), "it waits");
        stage.served.fs.map().pledge(-(blocks as i64), -(objects as i64));
        assert_eq!(stage.take_jobs().len(), 0);
        // Whoever tries sees that somebody waits, and gives it back.
        let (other, _) = stage.client(2);
        let raised = stage.served.raise(&mut other.pledge.lock(), CREDIT_MIN);
        assert_eq!(other.credit(), 0);
        stage.served.end_raise(raised);
        assert_eq!(stage.take_jobs().len(), 1);
    }
}
