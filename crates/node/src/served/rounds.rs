//! Rounds: what was noted of all sessions becomes durable with its bytes, and is told.
//!
//! ```text
//!   begin: what is new of each session --> sync --> noted as settled, durable --> Durable
//!   client: Settled --> what is noted of its calls is forgotten with the next round
//!           nothing for long --> it has lost its session: its notes would grow without a bound
//! ```
//!
//! Between two rounds is known which files were written to, by whom, and how far: where several
//! clients write, or bytes are moved, it is noted how far the bytes are in the map, lest older ones
//! should be written again over them after a crash. What is made while a round begins may be
//! durable with it, and is none that it tells: so it counts for the next one, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fs::Result;
use gabion_link::message::{Answer, Call, CallId, ChangeNumber, SessionId, ToClient};
use gabion_map::{FileId, Key, Kind, LocalTxn, LockMode, MapError, Stop, Txn};

use super::ledger::{
    SETTLED, forget_call, kept_before, kept_key, note_kept, order_kept, settle_call,
};
use super::{Served, Session};
use crate::operation::written_by;

/// Notes that one transaction takes away.
const FORGOTTEN_AT_ONCE: usize = 1000;
/// Calls after which a round is due.
const CALLS_MAX: usize = 2048;

/// How long a client may keep to itself that it has heard of a round. It says so with the next
/// thing that it says, and it says something several times in a session's time.
const TOLD_MAX: Duration = Duration::from_secs(30);

/// A round with calls that the client was told of.
#[derive(Debug)]
struct ToldRound {
    round: u64,
    at: Duration,
    calls: Vec<CallId>,
}

/// How far a session has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes of changes since the last round began.
    bytes: u64,
    /// Calls that were done since then.
    calls: Vec<CallId>,
    settled: ChangeNumber,
    round: u64,
    /// Those that the client has not heard of, as far as it has said.
    told: VecDeque<ToldRound>,
    /// Calls that the client will not say again.
    heard: Vec<CallId>,
}

/// What a round is about, of one session.
struct Part {
    number: ChangeNumber,
    calls: Vec<CallId>,
    heard: Vec<CallId>,
}

/// The last change of a file's bytes.
#[derive(Clone, Copy, Debug)]
struct Latest {
    order: u64,
    by: SessionId,
    /// Others have changed some, too.
    is_shared: bool,
}

impl Latest {
    fn after(self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self };
        let is_shared = self.is_shared || before.is_shared || before.by != self.by;
        let later = if self.order >= before.order { self } else { *before };
        Self { is_shared, ..later }
    }
}

/// A change or a call, as no other one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Said {
    Change(SessionId, ChangeNumber),
    Call(SessionId, CallId),
}

/// Files with bytes that no round has made durable.
#[derive(Debug, Default)]
struct Written {
    now: BTreeMap<FileId, Latest>,
    /// Before the round that goes on.
    before: BTreeMap<FileId, Latest>,
    /// Those of which is noted how far their bytes are in the map.
    kept: BTreeSet<FileId>,
    /// Those of what is made and not done yet: no round that begins now tells that it is durable.
    under_way: BTreeMap<Said, FileId>,
}

impl Written {
    fn latest(&self, file: FileId) -> Option<Latest> {
        let before = self.before.get(&file);
        self.now.get(&file).map(|latest| latest.after(before)).or(before.copied())
    }

    fn note(&mut self, file: FileId, latest: Latest) {
        let latest = latest.after(self.now.get(&file));
        self.now.insert(file, latest);
    }

    /// A round begins. Gives the files of which it may forget how far their bytes are in the map,
    /// and the place of the last change of each that it is about.
    fn begin_round(&mut self) -> BTreeMap<FileId, u64> {
        let under_way: BTreeSet<FileId> = self.under_way.values().copied().collect();
        // A round that failed has left some.
        for (file, latest) in std::mem::take(&mut self.now) {
            let latest = latest.after(self.before.get(&file));
            self.before.insert(file, latest);
            if under_way.contains(&file) {
                self.now.insert(file, latest);
            }
        }
        let kept = self.kept.extract_if(.., |file| !under_way.contains(file));
        let order = |file| self.before.get(&file).map_or(0, |latest| latest.order);
        kept.map(|file| (file, order(file))).collect()
    }
}

/// What is not durable yet, of all sessions.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// One round after the other.
    round: Mutex<()>,
    written: Mutex<Written>,
}

impl Session {
    /// The client has heard of a round.
    pub(super) fn settled(&self, round: u64) {
        let progress = &mut *self.progress.lock();
        while let Some(told) = progress.told.pop_front_if(|told| told.round <= round) {
            progress.heard.extend(told.calls);
        }
    }

    /// Since when it has not said that it has heard of a round.
    fn unheard_since(&self) -> Option<Duration> {
        self.progress.lock().told.front().map(|told| told.at)
    }

    /// A change or call is done. Whether a round should not wait, if `bytes_max` are allowed.
    pub(super) fn note_done(&self, call: Option<CallId>, bytes: u64, bytes_max: u64) -> bool {
        let progress = &mut *self.progress.lock();
        progress.bytes += bytes;
        progress.calls.extend(call);
        progress.bytes >= bytes_max || progress.calls.len() >= CALLS_MAX
    }

    /// What a round that begins now is about; nothing if there is nothing new.
    fn begin_round(&self) -> Option<Part> {
        let number = self.lane.lock().applied();
        let progress = &mut *self.progress.lock();
        progress.bytes = 0;
        let calls = std::mem::take(&mut progress.calls);
        let heard = std::mem::take(&mut progress.heard);
        let is_new = number > progress.settled || !calls.is_empty() || !heard.is_empty();
        is_new.then_some(Part { number, calls, heard })
    }

    /// The round has failed.
    fn put_back(&self, part: Part) {
        let progress = &mut *self.progress.lock();
        progress.calls.extend(part.calls);
        progress.heard.extend(part.heard);
    }

    /// The round is durable: what to tell the client, now.
    fn end_round(&self, part: Part, at: Duration) -> Option<ToClient> {
        let progress = &mut *self.progress.lock();
        let is_new = part.number > progress.settled || !part.calls.is_empty();
        if !is_new {
            return None;
        }
        progress.settled = part.number;
        progress.round += 1;
        let round = progress.round;
        if !part.calls.is_empty() {
            progress.told.push_back(ToldRound { round, at, calls: part.calls.clone() });
        }
        Some(ToClient::Durable { round, number: part.number, calls: part.calls })
    }
}

impl Served {
    /// Has the bytes of a file that was changed remembered as not durable.
    pub(super) fn note_written(&self, session: &Session, file: Option<FileId>, order: u64) {
        if let Some(file) = file {
            let latest = Latest { order, by: session.id, is_shared: false };
            self.rounds.written.lock().note(file, latest);
        }
    }

    /// The same, of a change or call that is going to be done soon, as [`Served::end_written`]
    /// says.
    pub(super) fn begin_written(
        &self,
        session: &Session,
        said: Said,
        (call, answer): (&Call, &Answer),
        order: u64,
    ) {
        if let Some(file) = written_by(call, answer) {
            let latest = Latest { order, by: session.id, is_shared: false };
            let mut written = self.rounds.written.lock();
            written.note(file, latest);
            written.under_way.insert(said, file);
        }
    }

    /// The change or call is done: each round that begins from now on is about it.
    pub(super) fn end_written(&self, said: Said) {
        self.rounds.written.lock().under_way.remove(&said);
    }

    /// The file whose bytes the operation moves, or replaces by others that are elsewhere, if some
    /// of them may not be durable. Those must not be written again when it is through: so they are
    /// in the map before it, and it is noted that they are.
    pub(super) fn moved(&self, call: &Call) -> Option<FileId> {
        use gabion_fs::SpaceRequest::{Collapse, Insert};
        let file = match call {
            Call::Copy { target, .. } => *target,
            Call::Fallocate { file, request: Collapse | Insert, .. } => *file,
            _ => return None,
        };
        let mut written = self.rounds.written.lock();
        written.latest(file)?;
        written.kept.insert(file);
        Some(file)
    }

    /// Makes a file durable. If several clients have written to it, it is noted how far: what one
    /// of them says again must not replace what another one, which may be gone, was told is
    /// durable.
    pub(super) fn sync_file(&self, file: FileId) -> Result<()> {
        let latest = {
            let mut written = self.rounds.written.lock();
            let latest = written.latest(file).filter(|latest| latest.is_shared);
            if latest.is_some() {
                written.kept.insert(file);
            }
            latest
        };
        match latest {
            None => self.fs.fsync(file),
            Some(Latest { order, .. }) => {
                let note = || {
                    self.fs.map().transact(|txn| -> std::result::Result<(), Stop> {
                        note_kept(txn, file, order)
                    })
                };
                let world = |stop| match stop {
                    Stop::Map(error) => error,
                    // A transaction of the driver stops for nothing else.
                    Stop::Need { .. } | Stop::Lease => MapError::NoSpace,
                };
                Ok(self.fs.map().sync_file_then(file, || note().map_err(world))?)
            }
        }
    }

    /// Whether the bytes of the file are in the map as a change that has this place made them, or a
    /// later one.
    pub(super) fn has_bytes(
        &self,
        txn: &mut LocalTxn<'_>,
        file: FileId,
        order: u64,
    ) -> Result<bool> {
        let key = kept_key(file);
        txn.lock(key.file(), LockMode::Shared)?;
        match txn.get(key)? {
            None => Ok(false),
            Some(value) => Ok(order_kept(key, &value)? >= order),
        }
    }

    /// Makes all that was done so far durable, and tells the clients.
    pub fn settle_round(&self) -> Result<()> {
        let _round = self.rounds.round.lock();
        // First of all: what is under way now and done when its session is asked counts twice.
        let kept = self.rounds.written.lock().begin_round();
        let sessions = self.all_sessions();
        let begin = |session: &Arc<Session>| Some((Arc::clone(session), session.begin_round()?));
        let parts: Vec<_> = sessions.iter().filter_map(begin).collect();
        self.renew_credits();
        if let Err(error) = self.settle_parts(&parts, &kept) {
            self.rounds.written.lock().kept.extend(kept.into_keys());
            parts.into_iter().for_each(|(session, part)| session.put_back(part));
            return Err(error);
        }
        self.rounds.written.lock().before.clear();
        for (session, part) in parts {
            if let Some(told) = session.end_round(part, self.fs.clock.monotonic()) {
                session.peer.send(told);
            }
        }
        Ok(())
    }

    /// Whether the client has long been told that calls are durable, and has not said that it has
    /// heard of it: until it does, what is noted of them has to stay.
    pub fn is_hoarding(&self, session: &Session) -> bool {
        let now = self.fs.clock.monotonic();
        session.unheard_since().is_some_and(|since| now.saturating_sub(since) > TOLD_MAX)
    }

    /// `kept`: files of which may be noted how far their bytes are in the map, and the place of the
    /// last change of them that the round is about.
    fn settle_parts(
        &self,
        parts: &[(Arc<Session>, Part)],
        kept: &BTreeMap<FileId, u64>,
    ) -> Result<()> {
        self.fs.syncfs()?;
        let mut last = None;
        for (session, part) in parts {
            let Some(pages) = session.pages else { continue };
            let file = pages.changes();
            let settled = file.key(Kind::SESSION, SETTLED);
            self.fs.run(|txn| {
                txn.lock(file, LockMode::Exclusive)?;
                Ok(txn.put(settled, part.number.0.to_le_bytes().to_vec())?)
            })?;
            for calls in part.calls.chunks(FORGOTTEN_AT_ONCE) {
                self.fs.run(|txn| calls.iter().try_for_each(|id| settle_call(txn, pages, *id)))?;
            }
            for calls in part.heard.chunks(FORGOTTEN_AT_ONCE) {
                self.fs.run(|txn| calls.iter().try_for_each(|id| forget_call(txn, pages, *id)))?;
            }
            last = Some(file);
        }
        // Not before: until then their changes may be said again.
        for (file, order) in kept {
            if !self.forget_kept(kept_key(*file), *order)? {
                self.rounds.written.lock().kept.insert(*file);
            }
        }
        match last {
            Some(file) => Ok(self.fs.map().sync_file(file)?),
            None => Ok(()),
        }
    }

    /// Forgets how far the bytes of a file are in the map, if that is no farther than `order`: what
    /// was noted since is about changes that may be said again. Whether nothing is left.
    fn forget_kept(&self, key: Key, order: u64) -> Result<bool> {
        if self.is_removed(key.file()) {
            return Ok(true);
        }
        self.fs.run(|txn| {
            txn.lock(key.file(), LockMode::Exclusive)?;
            let Some(value) = txn.get(key)? else { return Ok(true) };
            let is_settled = order_kept(key, &value)? <= order;
            if is_settled {
                txn.delete(key)?;
            }
            Ok(is_settled)
        })
    }

    /// Forgets of all files how far their bytes are in the map.
    pub(super) fn forget_all_kept(&self) -> Result<()> {
        let kept = kept_before(&self.fs)?.into_iter();
        kept.map(|(key, order)| self.forget_kept(key, order)).try_for_each(|gone| gone.map(drop))
    }
}
