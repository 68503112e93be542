//! After a crash: clients say again what may be lost, and it is done in the order that it had.
//!
//! ```text
//!   start   sessions are remembered: nothing is done until all of them have come back,
//!           or have been silent for so long that their clients have given them up
//!   client  Opened ..  Change ..  Done ..  Locked ..  Call ..  Recovered
//!   then    what all have opened; all changes and calls that were answered, of all clients in one
//!           order; what is locked; a round; and from there on as always
//! ```
//!
//! What of it is in the map already the [ledger](super::ledger) says: of that, bytes alone are
//! written again, as they may be missing. Between two rounds nothing is left out, so bytes that
//! were overwritten are overwritten again.
//!
//! The order is that of a logical clock (Lamport, "Time, clocks, and the ordering of events in a
//! distributed system", 1978): what comes later by any chain of messages has a higher number.
//!
//! Of a client that does not come back, what was not durable is lost, as of any machine that dies.
//! What others have done since is done as if it had never been, by name: so a rename moves what the
//! name stands for then, and the name is free for what was made there later. What cannot be done
//! fails, and they are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fs::{Caller, Context, Error, Result, SizeRule, SpaceRequest, WriteAt};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, SessionId, ToServer, Witness,
};
use gabion_map::{FileId, Kind, LockMode, Payload, Txn};

use crate::operation::{resolved, written_by};

use super::ledger::{self, Credentials, DoneCall, Note, Pages, Record, Standing};
use super::rights::asked_access;
use super::session::Resumed;
use super::{Job, Peer, Rights, Served, Session, Work};

/// Bytes that one transaction writes again: much less than it may use of the reserve.
const WRITTEN_AT_ONCE: usize = 128 << 10;

/// A session of an earlier start.
struct Awaited {
    pages: Pages,
    record: Record,
    /// It has come, and not said all yet.
    has_come: bool,
}

/// What is waited for.
#[derive(Default)]
pub(super) struct Recovery {
    awaited: Mutex<BTreeMap<SessionId, Awaited>>,
    /// Nobody is waited for any more.
    is_due: Mutex<bool>,
}

/// Something that is done once more.
struct Again {
    order: u64,
    session: Arc<Session>,
    what: What,
}

enum What {
    Change(Change),
    /// A call that was answered.
    Call(CallId, Change),
    /// A call that was done and, as far as its client knows, not answered.
    Unheard(Change),
    /// The same, and nothing is left of it but that others have seen it.
    Witnessed(CallId, Change),
}

impl Again {
    /// What decides between two that have not to do with each other; of one session its own order.
    fn key(&self) -> (u64, SessionId, ChangeNumber) {
        let number = match &self.what {
            What::Change(change) => change.number,
            What::Call(..) | What::Unheard(_) | What::Witnessed(..) => ChangeNumber(0),
        };
        (self.order, self.session.id, number)
    }
}

impl Recovery {
    /// Waits for those of `remembered` whose clients may live.
    pub(super) fn of(remembered: Vec<(Pages, Record)>) -> Self {
        let awaited = |(pages, record): (Pages, Record)| {
            (record.session, Awaited { pages, record, has_come: false })
        };
        let awaited = remembered.into_iter().map(awaited).collect();
        Self { awaited: Mutex::new(awaited), is_due: Mutex::default() }
    }

    pub(super) fn is_needed(&self) -> bool {
        !self.awaited.lock().is_empty()
    }

    /// Somebody has come to go on with a session. Nothing if it cannot go on.
    fn come(&self, session: SessionId) -> Option<(Pages, Record)> {
        let mut awaited = self.awaited.lock();
        let one = awaited.get_mut(&session)?;
        if one.has_come || one.record.standing != Standing::Alive {
            return None;
        }
        one.has_come = true;
        Some((one.pages, one.record.clone()))
    }

    /// He could not: the session is waited for like those of whom nobody has come, and no longer.
    fn come_in_vain(&self, session: SessionId) {
        if let Some(one) = self.awaited.lock().get_mut(&session) {
            one.has_come = false;
        }
    }

    /// The session is not waited for any more. Whether nobody is.
    fn is_through(&self, session: SessionId) -> bool {
        let mut awaited = self.awaited.lock();
        awaited.remove(&session);
        awaited.is_empty()
    }
}

impl Served {
    /// Whether it waits for clients of an earlier start, and does nothing else.
    pub fn is_recovering(&self) -> bool {
        self.is_recovering.load(Ordering::SeqCst)
    }

    /// How long clients of an earlier start may believe in their sessions, from this start on.
    pub fn patience_before(&self) -> Duration {
        let awaited = self.recovery.awaited.lock();
        let patience = awaited.values().map(|awaited| awaited.record.patience_ms).max();
        Duration::from_millis(patience.unwrap_or(0).into())
    }

    /// Sessions of an earlier start whose clients have not come back.
    pub fn awaited(&self) -> Vec<SessionId> {
        let awaited = self.recovery.awaited.lock();
        awaited.values().filter(|one| !one.has_come).map(|one| one.record.session).collect()
    }

    /// Who may go on with a session of an earlier start, if it can go on.
    pub fn remembered(&self, session: SessionId) -> Option<Credentials> {
        let awaited = self.recovery.awaited.lock();
        let awaited = awaited.get(&session)?;
        let is_possible = awaited.record.standing == Standing::Alive && !awaited.has_come;
        is_possible.then(|| awaited.record.credentials.clone())
    }

    /// The client of a session of an earlier start has come back, who may do what `rights` say.
    /// Nothing if it cannot go on any more.
    pub fn resume(
        &self,
        id: SessionId,
        name: String,
        rights: Rights,
        peer: Arc<dyn Peer>,
    ) -> Result<Option<Arc<Session>>> {
        let Some((pages, record)) = self.recovery.come(id) else { return Ok(None) };
        let (applied, settled) =
            self.progress_of(pages).inspect_err(|_| self.recovery.come_in_vain(id))?;
        let mut session = Session::new(id, name, rights, peer);
        session.pages = Some(pages);
        session.record = Some(record);
        session.resumed = Some(Resumed { applied, settled });
        session.lane.lock().goes_on_from(applied);
        let session = Arc::new(session);
        self.sessions.write().insert(id, Arc::clone(&session));
        Ok(Some(session))
    }

    /// The client has said all that may be lost.
    pub(super) fn has_recovered(&self, session: &Session) {
        if self.is_recovering() && self.recovery.is_through(session.id) {
            self.recover_soon();
        }
    }

    /// Waits no longer for those who have not come: they have lost their sessions. Who has come is
    /// waited for until he has said all, or is silent.
    pub fn stop_waiting(&self) {
        let mut awaited = self.recovery.awaited.lock();
        let late: Vec<_> = awaited.extract_if(.., |_, one| !one.has_come).collect();
        let nobody_is_left = awaited.is_empty();
        drop(awaited);
        for (_, Awaited { pages, record, .. }) in late {
            // Before anybody goes on without what it would say again: after another crash it could
            // come back for that. If this fails the disk does, and nobody goes on.
            let _ = self.write_record(pages, &Record { standing: Standing::Left, ..record });
            self.forget_soon(pages);
        }
        if self.is_recovering() && nobody_is_left {
            self.recover_soon();
        }
    }

    /// Waits no longer for the session, as somebody has said: its client, which may believe in it
    /// for a while, has lost it. False if it has come, or is not waited for.
    pub fn give_up_awaited(&self, session: SessionId) -> bool {
        let found = self.recovery.awaited.lock().get_mut(&session).and_then(|awaited| {
            // It cannot come any more.
            let is_first = !std::mem::replace(&mut awaited.has_come, true);
            is_first.then(|| (awaited.pages, awaited.record.clone()))
        });
        let Some((pages, record)) = found else { return false };
        // Before anybody goes on, as in `stop_waiting`. After another crash it is waited for as
        // long as its client may believe in it.
        let rest = Duration::from_millis(record.patience_ms.into()) * 2;
        let _ = self.write_record(pages, &Record { standing: Standing::Cut, ..record });
        self.forget_after(pages, rest);
        if self.recovery.is_through(session) {
            self.recover_soon();
        }
        true
    }

    /// Waits for nobody any more: who has come and has not said all by now has lost its session.
    pub fn cut_stragglers(&self) {
        self.stop_waiting();
        let is_awaited =
            |session: &Arc<Session>| self.recovery.awaited.lock().contains_key(&session.id);
        let stragglers = self.all_sessions().into_iter().filter(is_awaited);
        stragglers.for_each(|session| self.cut(&session));
    }

    fn recover_soon(&self) {
        if !std::mem::replace(&mut *self.recovery.is_due.lock(), true) {
            (self.queue)(Job(Work::Recovery));
        }
    }

    /// Does again what may be lost, and goes on as always.
    pub(super) fn recover(&self) {
        let (mut again, mut locked) = (Vec::new(), Vec::new());
        let mut witnessed = BTreeMap::new();
        for session in self.all_sessions() {
            let lane = session.lane.lock();
            for one in lane.witnessed() {
                witnessed.insert((one.session, one.call), one.clone());
            }
        }
        for session in self.all_sessions() {
            self.take_up(&session, &witnessed, &mut again, &mut locked);
        }
        again.sort_by_key(Again::key);
        for one in again {
            self.do_again(one);
        }
        self.forget_openings();
        // What is locked is there by now. Nobody has asked for a lock yet.
        for (session, message) in locked {
            self.attend(&session, message);
        }
        // Who keeps it still is told at the next one, if this one fails.
        let _ = self
            .settle_round()
            .and_then(|()| self.forget_all_kept())
            .and_then(|()| self.forget_over());
        self.fs.let_orphans_go();
        self.is_recovering.store(false, Ordering::SeqCst);
        // What is due has waited for this.
        self.fs.schedule_changed();
        for session in self.all_sessions() {
            self.start_lane(&session);
        }
    }

    /// Takes what a client has said from its lane: what it has open at once, what it has changed
    /// for its turn among that of all.
    fn take_up(
        &self,
        session: &Arc<Session>,
        witnessed: &BTreeMap<(SessionId, CallId), Witness>,
        again: &mut Vec<Again>,
        locked: &mut Vec<(Arc<Session>, ToServer)>,
    ) {
        let said = session.lane.lock().take_all();
        self.find_places(session, &said);
        let mut rest = Vec::new();
        let mut said = said.into_iter();
        for message in said.by_ref() {
            let mut push = |order, what| {
                again.push(Again { order, session: Arc::clone(session), what });
            };
            match message {
                ToServer::Recovered => break,
                ToServer::Opened { .. } if self.opens_later(session, &message) => {}
                ToServer::Opened { .. } => self.attend(session, message),
                ToServer::Locked(_) => locked.push((Arc::clone(session), message)),
                ToServer::Change(change) => push(change.order, What::Change(change)),
                ToServer::Done { id, change } => push(change.order, What::Call(id, change)),
                ToServer::Call { id, caller, call, after } => {
                    if matches!(call, Call::Run(_)) {
                        session.said_again.lock().insert(id);
                    }
                    if let Ok(Some(done)) = self.done_call(session, id) {
                        if !done.is_settled {
                            let change = repeated(caller.clone(), &call, &done);
                            push(change.order, What::Unheard(change));
                        }
                        self.find_done(session, id, &call, done);
                    } else if let Some(Witness { order, now, made, .. }) =
                        witnessed.get(&(session.id, id)).cloned()
                    {
                        let (number, call) = (ChangeNumber(0), call.clone());
                        let change =
                            Change { number, order, now, made, caller: caller.clone(), call };
                        push(order, What::Witnessed(id, change));
                    }
                    rest.push(ToServer::Call { id, caller, call, after });
                }
                message => rest.push(message),
            }
        }
        rest.extend(said);
        session.lane.lock().put_back(rest);
    }

    /// A call was done before, and its answer was lost: it is answered when its turn comes.
    fn find_done(&self, session: &Session, id: CallId, call: &Call, done: DoneCall) {
        if let (Call::Create { .. } | Call::Tmpfile { .. }, Answer::Made(made, _)) =
            (call, &done.answer)
        {
            self.fs.refer(made.file);
            if !session.opened(made.file, asked_access(call)) {
                self.fs.release(made.file);
            }
        }
        session.unheard.lock().insert(id, done);
    }

    fn do_again(&self, again: Again) {
        self.saw_order(again.order);
        let session = &again.session;
        match again.what {
            What::Change(change) => self.change_again(session, change),
            What::Call(id, change) => self.call_again(session, id, &change),
            // Whoever asked hears of it by the answer.
            What::Unheard(change) => drop(self.write_again(session, &change)),
            What::Witnessed(id, change) => self.witnessed_again(session, id, &change),
        }
    }

    fn change_again(&self, session: &Arc<Session>, change: Change) {
        let Some(Resumed { applied, settled }) = session.resumed else { return };
        if change.number > applied {
            // Nobody has leases, so it has not to wait.
            self.apply(session, change, true);
        } else if change.number > settled
            && let Err(error) = self.write_again(session, &change)
        {
            self.failed(session, change.number, error);
        }
    }

    /// A call that was answered.
    fn call_again(&self, session: &Arc<Session>, id: CallId, change: &Change) {
        let done = self.done_call(session, id).and_then(|done| match done {
            Some(done) if done.is_settled => Ok(()),
            Some(_) => self.write_again(session, change),
            None => self.do_call_again(session, id, change).map(|answer| {
                self.told_open_already(session, &answer);
            }),
        });
        if let Err(error) = done {
            self.failed(session, ChangeNumber(0), error);
        }
        session.note_done(Some(id), 0, u64::MAX);
    }

    /// A call that others have seen done. If it fails now it is asked for again when its turn
    /// comes.
    fn witnessed_again(&self, session: &Arc<Session>, id: CallId, change: &Change) {
        if let Ok(answer) = self.do_call_again(session, id, change) {
            let (is_settled, order, now) = (false, change.order, change.now);
            session.unheard.lock().insert(id, DoneCall { is_settled, order, now, answer });
        }
    }

    fn do_call_again(&self, session: &Arc<Session>, id: CallId, change: &Change) -> Result<Answer> {
        let caller = session.rights.identities.map(&change.caller);
        self.check(session, &caller, change, true)?;
        let request = self.next_request();
        let mut grip = self.grip(request, session);
        grip.begin_change(change.made);
        let ctx = Context { now: change.now, ..self.fs.context(&caller) };
        let note = Note::CallAgain(id, change.order);
        let done = self.guard(&mut grip, session, &ctx, &change.call, note);
        let changed = grip.into_changed();
        self.times.saw(change.now);
        let done = done.map(|done| {
            let written = written_by(&change.call, &done.answer);
            self.note_written(session, written, change.order);
            self.lose_name(done.rest);
            done.answer
        });
        let changed: Vec<_> = changed.into_iter().collect();
        self.note_told(session, &change.call, &[], &changed);
        self.finish(session, request, &[], &[]);
        done
    }

    /// An opening that is done again was told by itself, if it still counts.
    pub(super) fn told_open_already(&self, session: &Session, answer: &Answer) {
        if let Answer::Made(made, _) = answer
            && session.closed(made.file)
        {
            self.fs.release(made.file);
        }
    }

    /// The items that were changed are in the map. Bytes, and what decides how many there are, may
    /// not be.
    fn write_again(&self, session: &Session, change: &Change) -> Result<()> {
        let caller = session.rights.identities.map(&change.caller);
        let call = &change.call;
        let (file, from, to) = match call {
            Call::Write { file, at: WriteAt::Offset(offset), bytes, .. } => {
                (*file, *offset, offset.saturating_add(bytes.len() as u64))
            }
            Call::Setattr { file, changes } => match changes.size {
                Some((size, _)) => (*file, size, size),
                None => return Ok(()),
            },
            Call::Fallocate { file, offset, length, .. } => {
                (*file, *offset, offset.saturating_add(*length))
            }
            _ => return Ok(()),
        };
        if !self.is_known(session, file) {
            return Err(Error::Stale);
        }
        self.note_written(session, Some(file), change.order);
        let permitted = self.permit(session, &caller, call);
        // A full disk has room for a part at a time: what it replaces is free before the next one.
        let parts: Vec<&[u8]> = match call {
            Call::Write { bytes, .. } => bytes.chunks(WRITTEN_AT_ONCE).collect(),
            _ => vec![&[]],
        };
        let mut at = from;
        for part in parts {
            self.write_part_again(file, change, (at, part), to, &permitted)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_part_again(
        &self,
        file: FileId,
        change: &Change,
        (from, part): (u64, &[u8]),
        to: u64,
        permitted: &Result<()>,
    ) -> Result<()> {
        self.fs.run(|txn| {
            txn.pay_again();
            txn.lock(file, LockMode::Exclusive)?;
            // What is gone by now needs none.
            if txn.get(file.key(Kind::INODE, 0))?.is_none()
                || self.has_bytes(txn, file, change.order)?
            {
                return Ok(());
            }
            permitted.clone()?;
            match &change.call {
                Call::Write { .. } => {
                    txn.write(file, from, Payload::Copied(part))?;
                }
                Call::Setattr { .. } => txn.set_size(file, from)?,
                Call::Fallocate { request, .. } => reserve_again(txn, file, *request, from, to)?,
                _ => {}
            }
            Ok(())
        })
    }
}

fn reserve_again<T: Txn>(
    txn: &mut T,
    file: FileId,
    request: SpaceRequest,
    from: u64,
    to: u64,
) -> Result<()> {
    let size = txn.file(file)?.size;
    match request {
        SpaceRequest::Punch => txn.punch(file, from, to.min(size).max(from))?,
        SpaceRequest::Zero(_) => txn.punch(file, from, to)?,
        // Nothing of these is in memory only.
        SpaceRequest::Allocate(_) | SpaceRequest::Collapse | SpaceRequest::Insert => {}
    }
    if let SpaceRequest::Zero(SizeRule::Extend) | SpaceRequest::Allocate(SizeRule::Extend) = request
        && size < to
    {
        txn.set_size(file, to)?;
    }
    Ok(())
}

/// A call that was done, as the change that it was.
fn repeated(caller: Caller, call: &Call, done: &DoneCall) -> Change {
    let call = resolved(call.clone(), &done.answer);
    let number = ChangeNumber(0);
    Change { number, order: done.order, now: done.now, made: None, caller, call }
}

impl Served {
    /// A client has come, whose session is to outlive this server. It is noted, durably.
    pub fn begin_remembered(
        &self,
        id: SessionId,
        name: String,
        rights: Rights,
        (credentials, patience): (Credentials, Duration),
        peer: Arc<dyn Peer>,
    ) -> Result<Arc<Session>> {
        let patience_ms = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let standing = Standing::Alive;
        let record = Record { session: id, credentials, patience_ms, standing };
        let _entering = self.entering.pass();
        let pages = self.remember(&record)?;
        let mut session = Session::new(id, name, rights, peer);
        (session.pages, session.record) = (Some(pages), Some(record));
        Ok(self.enter(session))
    }

    /// Sessions of the start before, whose clients may live; what else is noted is forgotten.
    pub(super) fn sort_out(&self, remembered: Vec<(Pages, Record)>) -> Vec<(Pages, Record)> {
        let (left, may_live): (Vec<_>, Vec<_>) =
            remembered.into_iter().partition(|(_, record)| record.standing == Standing::Left);
        left.into_iter().for_each(|(pages, _)| self.forget_soon(pages));
        may_live
    }

    pub(super) fn forget_soon(&self, pages: Pages) {
        self.forget_after(pages, Duration::ZERO);
    }

    /// Has what is noted of a session taken away after some time.
    pub(super) fn forget_after(&self, pages: Pages, rest: Duration) {
        let due = self.fs.clock.monotonic() + rest;
        self.leaving.lock().push((pages, due));
    }

    /// Takes away what is noted of sessions that are over.
    pub(super) fn forget_over(&self) -> Result<()> {
        let now = self.fs.clock.monotonic();
        let due: Vec<_> = self.leaving.lock().extract_if(.., |(_, due)| *due <= now).collect();
        for (pages, _) in due {
            ledger::forget(&self.fs, pages)?;
        }
        Ok(())
    }
}
