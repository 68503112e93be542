//! Calls, run on the filesystem by the same code that runs a local mount's.

use std::collections::BTreeMap;

use gabion_base::BLOCK_SIZE;
use gabion_base::time::Timestamp;
use gabion_fs::{Context, Error, OpenState, Result};
use gabion_link::message::{Answer, Call, Grant, ReadLease};
use gabion_link::range::KeyRange;
use gabion_link::table::{ClientId, RequestId};
use gabion_map::map::SpaceReport;
use gabion_map::{FileId, Key, Kind, LocalTxn, LockMode, Stop, Txn as _, Value};

use crate::operation::{Rest, operate};
use crate::references::Reference;

use super::guarded::{self, Grip};
use super::ledger::{DoneCall, Note, kept_of, note_kept};
use super::rights::asked_access;
use super::rounds::Said;
use super::{Executed, Outcome, Request, Served, Session};

/// Bytes that one call reads at most.
const READ_MAX: u32 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;
/// Parts of a file's bytes that one client has leases on. Who reads one more gets all, if nobody
/// minds: else reading here and there in a large file would make both sides remember each page.
const PARTS_MAX: usize = 64;

/// A transaction of the local map that touches only what it may.
type Txn<'a, 'g, 'm> = guarded::Guarded<'a, 'g, LocalTxn<'m>>;

/// What an operation has come to.
pub(super) struct Guarded {
    pub(super) answer: Answer,
    pub(super) rest: Rest,
    /// Its place among changes, if it was noted as a call.
    pub(super) order: u64,
}

impl Served {
    pub(super) fn execute(&self, job: &Request) -> Executed {
        let is_known = |file: &FileId| self.is_known(&job.session, *file);
        if !job.call.files().iter().all(is_known) {
            return plain(Err(Error::Stale));
        }
        if let Err(error) = self.permit(&job.session, &job.caller, &job.call) {
            return plain(Err(error));
        }
        if let Some(done) = job.session.unheard.lock().remove(&job.id) {
            let done_at = Some((done.order, done.now));
            return Executed::Ended(Outcome { done: done_at, ..Outcome::plain(Ok(done.answer)) });
        }
        match &job.call {
            Call::Acquire { needed, welcome, prefetch } => {
                self.acquire(job, needed, welcome, *prefetch)
            }
            Call::Read { file, offset, length, lease } => {
                self.read(job, *file, *offset, *length, *lease)
            }
            Call::Numbers { of, count } => plain(self.numbers(&job.session, *of, *count)),
            Call::Sync { file } => {
                let synced = match file {
                    Some(file) => self.sync_file(*file),
                    None => self.settle_round(),
                };
                plain(synced.map(|()| Answer::Done))
            }
            Call::Space { of } => {
                // Who has mounted a part sees no other subvolume.
                let rights = &job.session.rights;
                let of = if rights.have_all() { *of } else { self.subvolume_of(rights) };
                let SpaceReport { total, available, used, objects, objects_left } =
                    self.fs.map().space_of(of);
                plain(Ok(Answer::Space { total, available, used, objects, objects_left }))
            }
            Call::Lock { lock, wait } => self.lock(job, lock, *wait),
            Call::Unlock { file, class, owner, range } => {
                self.unlock(job, *file, (*class, *owner), *range)
            }
            Call::TestLock { lock } => self.test_lock(job, lock),
            _ => self.change(job),
        }
    }

    /// Runs an operation that changes something. What it changes is in the grip.
    pub(super) fn guard(
        &self,
        grip: &mut Grip<'_>,
        session: &Session,
        ctx: &Context,
        call: &Call,
        note: Note,
    ) -> Result<Guarded> {
        // What is done again may come to an object that had lost its name and was open then.
        let is_again = self.is_recovering();
        let opens = |file: FileId| match is_again {
            true => OpenState::Open,
            false => self.fs.open_state(file),
        };
        let copied = copied(call);
        let place = session.pages.and_then(|pages| pages.place(note));
        let place = place.filter(|_| copied.is_none());
        let attempt = |txn: &mut LocalTxn<'_>, grip: &mut Grip<'_>| {
            pay(txn, note, is_again);
            if let Some(place) = place {
                // First of all, as bytes are written when they are, and not with the items.
                txn.lock(place, LockMode::Exclusive)?;
            }
            let moved = self.moved(call);
            if let Some(file) = moved {
                txn.lock(file, LockMode::Exclusive)?;
                if txn.has_unwritten_bytes(file)? {
                    return Err(Error::UnwrittenBytes(file));
                }
                txn.lock(kept_of(file), LockMode::Exclusive)?;
            }
            let mut guarded = grip.on(txn);
            let (answer, rest) = operate(&mut guarded, ctx, call, &opens)?;
            if let Rest::Made(file) = &rest {
                // Nobody else knows it yet, so nobody minds.
                guarded.hold(KeyRange::object(*file), LockMode::Exclusive)?;
            }
            guarded.settle()?;
            if let (None, Some(file)) = (moved, self.moved(call)) {
                // Somebody has written in the moment before it was held.
                return Err(Error::UnwrittenBytes(file));
            }
            // All that it holds it holds now: whatever depends on it comes later.
            let order = match note {
                Note::CallAgain(_, order) => order,
                Note::Call(_) => self.next_order(),
                Note::Change(_) | Note::Nothing => 0,
            };
            let done = Guarded { answer, rest, order };
            if let Some((key, value)) = noted(session, note, ctx.now, &done)
                && copied.is_none()
            {
                guarded.inner().put(key, value)?;
            }
            if let Some(file) = moved {
                note_kept(guarded.inner(), file, order)?;
            }
            Ok(done)
        };
        if let Some(target) = copied {
            let done = self.fs.run(|txn| attempt(txn, grip))?;
            self.fs.map().flush_file(target)?;
            if let Some((key, value)) = noted(session, note, ctx.now, &done) {
                self.fs.run(|txn| {
                    pay(txn, note, is_again);
                    txn.lock(key.file(), LockMode::Exclusive)?;
                    Ok(txn.put(key, value.clone())?)
                })?;
            }
            return Ok(done);
        }
        if !matches!(call, Call::Create { .. } | Call::Tmpfile { .. }) {
            return self.fs.run(|txn| attempt(txn, grip));
        }
        let made = self.fs.run_referring(
            &[Reference::Open],
            |txn| match attempt(txn, grip)? {
                Guarded { answer: Answer::Made(attributes, disposition), rest, order } => {
                    Ok((attributes, disposition, rest, order))
                }
                _ => Err(Error::InvalidArgument),
            },
            |(attributes, ..)| attributes,
        );
        let (attributes, disposition, rest, order) = made?;
        if attributes.nlink == 0 {
            self.fs.expect_orphan(attributes.file);
        }
        // The session needs one reference only, however often it counts.
        if !session.opened(attributes.file, asked_access(call)) {
            self.fs.release(attributes.file);
        }
        Ok(Guarded { answer: Answer::Made(attributes, disposition), rest, order })
    }

    /// What is left to do when an object has lost a name.
    pub(super) fn lose_name(&self, rest: Rest) {
        if let Rest::LostName(unnamed) = rest {
            self.fs.lost_name(unnamed);
        }
    }

    pub(super) fn grip(&self, request: RequestId, session: &Session) -> Grip<'_> {
        Grip::new(&self.grants, request, ClientId(session.id.0))
    }

    fn read(
        &self,
        job: &Request,
        file: FileId,
        offset: u64,
        length: u32,
        lease: ReadLease,
    ) -> Executed {
        let length = length.min(READ_MAX);
        if length == 0 {
            return plain(Ok(Answer::Bytes(Vec::new())));
        }
        let end = offset.saturating_add(u64::from(length)).checked_next_multiple_of(BLOCK);
        let pages = KeyRange::bytes(file, offset - offset % BLOCK, end.unwrap_or(u64::MAX));
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        match lease {
            ReadLease::None => grip.begin_informed(),
            ReadLease::AtOnce | ReadLease::InTurn => grip.begin_caching(),
        }
        let mut bytes = vec![0; length as usize];
        let all = KeyRange::bytes_from(file, 0);
        let is_scattered = lease != ReadLease::None && grip.has_parts(&all, PARTS_MAX);
        let leased = match is_scattered && grip.try_hold((all, LockMode::Shared)) {
            true => all,
            false => pages,
        };
        let read = self.fs.run(|txn| {
            let mut txn: Txn<'_, '_, '_> = grip.on(txn);
            if lease != ReadLease::None {
                txn.hold(pages, LockMode::Shared)?;
            }
            gabion_fs::read(&mut txn, file, offset, &mut bytes)
        });
        let read = self.fs.unless_removed(file, read);
        // What a client had open may be gone with its session, which is no end of a file.
        let read = match read {
            Ok(0) => self.inode(file).map(|_| 0),
            read => read,
        };
        match read {
            Ok(count) => {
                bytes.truncate(count);
                let grants = match lease {
                    ReadLease::None => Vec::new(),
                    _ => {
                        let (mode, items) = (LockMode::Shared, Vec::new());
                        vec![Grant { range: leased, mode, items }]
                    }
                };
                Executed::Ended(Outcome { grants, ..Outcome::plain(Ok(Answer::Bytes(bytes))) })
            }
            Err(Error::Stop(Stop::Lease)) if lease != ReadLease::AtOnce => {
                Executed::Blocked(grip.denied().to_vec())
            }
            Err(error) => plain(Err(error)),
        }
    }

    /// An operation that may change something, asked for by a client that cannot do it itself.
    fn change(&self, job: &Request) -> Executed {
        let ctx = self.context(&job.caller);
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        let note = match job.call {
            Call::Seek { .. } => {
                grip.begin_informed();
                Note::Nothing
            }
            _ => Note::Call(job.id),
        };
        let guarded = self.guard(&mut grip, &job.session, &ctx, &job.call, note);
        let Guarded { answer, rest, order } = match guarded {
            Ok(done) => done,
            Err(Error::Stop(Stop::Lease)) => return Executed::Blocked(grip.denied().to_vec()),
            Err(error) => return plain(Err(error)),
        };
        let done = (note != Note::Nothing).then_some((order, ctx.now));
        if done.is_some() {
            let said = Said::Call(job.session.id, job.id);
            self.begin_written(&job.session, said, (&job.call, &answer), order);
        }
        let changed = grip.into_changed();
        let made = match rest {
            Rest::Made(file) => Some(KeyRange::object(file)),
            Rest::LostName(_) | Rest::Nothing => None,
        };
        self.lose_name(rest);
        let grants = known(&changed, made);
        let is_told = |key: &Key| grants.iter().any(|grant| grant.range.contains(*key));
        let updates = changed.into_iter().filter(|(key, _)| !is_told(key)).collect();
        Executed::Ended(Outcome { result: Ok(answer), updates, grants, done })
    }
}

/// What an operation that is noted so may use of what is left.
fn pay(txn: &mut LocalTxn<'_>, note: Note, is_again: bool) {
    match note {
        // Its client has told programs that it is done, as far as its credit went.
        Note::Change(_) | Note::CallAgain(..) if is_again => txn.pay_again(),
        Note::Change(_) | Note::CallAgain(..) => txn.pay_from_pledged(),
        Note::Call(_) | Note::Nothing => {}
    }
}

/// What is noted of what was done, and where.
fn noted(session: &Session, note: Note, now: Timestamp, done: &Guarded) -> Option<(Key, Vec<u8>)> {
    let pages = session.pages?;
    match note {
        Note::Nothing => None,
        Note::Change(number) => Some(pages.applied(number)),
        Note::Call(id) | Note::CallAgain(id, _) => {
            let (is_settled, order, answer) = (false, done.order, done.answer.clone());
            Some(pages.done(id, &DoneCall { is_settled, order, now, answer }))
        }
    }
}

/// The file that bytes were copied to. Nobody has them to say them again, and their source may be
/// another one by then. So they are in the map before it is noted that they were copied; and as
/// nobody has seen them until that is answered, they are copied once more if it was not noted.
fn copied(call: &Call) -> Option<FileId> {
    match call {
        Call::Copy { target, .. } => Some(*target),
        _ => None,
    }
}

pub(super) fn plain(result: Result<Answer>) -> Executed {
    Executed::Ended(Outcome::plain(result))
}

/// Leases on what the client knows completely after the change: names that were changed, and all
/// of an object that was made.
fn known(changed: &BTreeMap<Key, Option<Value>>, made: Option<KeyRange>) -> Vec<Grant> {
    let is_in_made = |key: &Key| made.is_some_and(|range| range.contains(*key));
    let names = changed.keys().filter(|key| key.kind == Kind::DIRENT && !is_in_made(key));
    let names = names.map(|key| (KeyRange::key(*key), LockMode::Shared));
    let made = made.map(|range| (range, LockMode::Exclusive));
    let grant = |(range, mode): (KeyRange, LockMode)| {
        let inside = changed.range(range.first()..=range.last());
        let items = inside.filter_map(|(key, value)| Some((*key, Value::clone(value.as_ref()?))));
        Grant { range, mode, items: items.collect() }
    };
    names.chain(made).map(grant).collect()
}
