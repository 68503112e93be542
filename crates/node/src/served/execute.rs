//! Calls, run on the filesystem by the same code that runs a local mount's.

use std::collections::BTreeMap;

use gabion_base::BLOCK_SIZE;
use gabion_fs::{Context, Error, OpenState, Result};
use gabion_link::message::{Answer, Call, Grant, ReadLease};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Key, Kind, LocalTxn, LockMode, Stop, Value};

use crate::operation::{Rest, operate};
use crate::references::Reference;

use super::guarded::{Grip, Guarded};
use super::rights::asked_access;
use super::{Executed, Outcome, Request, Served, Session};

/// Bytes that one call reads at most.
const READ_MAX: u32 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A transaction of the local map that touches only what it may.
type Txn<'a, 'g, 'm> = Guarded<'a, 'g, LocalTxn<'m>>;

impl Served {
    pub(super) fn execute(&self, job: &Request) -> Executed {
        let is_known = |file: &FileId| self.is_known(&job.session, *file);
        if !job.call.files().iter().all(is_known) {
            return plain(Err(Error::Stale));
        }
        if let Err(error) = self.permit(&job.session, &job.caller, &job.call) {
            return plain(Err(error));
        }
        match &job.call {
            Call::Acquire { needed, welcome, prefetch } => {
                self.acquire(job, needed, welcome, *prefetch)
            }
            Call::Read { file, offset, length, lease } => {
                self.read(job, *file, *offset, *length, *lease)
            }
            Call::Numbers { count } => plain(self.numbers(&job.session, *count)),
            Call::Sync { file } => {
                let synced = match file {
                    Some(file) => self.fs.fsync(*file),
                    None => self.fs.syncfs(),
                };
                plain(synced.map(|()| Answer::Done))
            }
            Call::Space => {
                let space = self.fs.map().space();
                let (total, available, used) = (space.total, space.available, space.used);
                plain(Ok(Answer::Space { total, available, used }))
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
    ) -> Result<(Answer, Rest)> {
        let opens = |file: FileId| -> OpenState { self.fs.open_state(file) };
        let attempt = |txn: &mut LocalTxn<'_>, grip: &mut Grip<'_>| {
            let mut guarded = grip.on(txn);
            let (answer, rest) = operate(&mut guarded, ctx, call, &opens)?;
            if let Rest::Made(file) = &rest {
                // Nobody else knows it yet, so nobody minds.
                guarded.hold(KeyRange::object(*file), LockMode::Exclusive)?;
            }
            guarded.settle()?;
            Ok((answer, rest))
        };
        if !matches!(call, Call::Create { .. } | Call::Tmpfile { .. }) {
            return self.fs.run(|txn| attempt(txn, grip));
        }
        let made = self.fs.run_referring(
            &[Reference::Open],
            |txn| match attempt(txn, grip)? {
                (Answer::Made(attributes, disposition), rest) => {
                    Ok((attributes, disposition, rest))
                }
                _ => Err(Error::InvalidArgument),
            },
            |(attributes, ..)| attributes,
        );
        let (attributes, disposition, rest) = made?;
        if attributes.nlink == 0 {
            self.fs.expect_orphan(attributes.file);
        }
        // The session needs one reference only, however often it counts.
        if !session.opened(attributes.file, asked_access(call)) {
            self.fs.release(attributes.file);
        }
        Ok((Answer::Made(attributes, disposition), rest))
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
        let read = self.fs.run(|txn| {
            let mut txn: Txn<'_, '_, '_> = grip.on(txn);
            if lease != ReadLease::None {
                txn.hold(pages, LockMode::Shared)?;
            }
            gabion_fs::read(&mut txn, file, offset, &mut bytes)
        });
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
                        vec![Grant { range: pages, mode, items }]
                    }
                };
                let result = Ok(Answer::Bytes(bytes));
                Executed::Ended(Outcome { result, updates: Vec::new(), grants })
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
        if let Call::Seek { .. } = job.call {
            grip.begin_informed();
        }
        let (answer, rest) = match self.guard(&mut grip, &job.session, &ctx, &job.call) {
            Ok(done) => done,
            Err(Error::Stop(Stop::Lease)) => return Executed::Blocked(grip.denied().to_vec()),
            Err(error) => return plain(Err(error)),
        };
        let changed = grip.into_changed();
        let made = match rest {
            Rest::Made(file) => Some(KeyRange::object(file)),
            Rest::LostName(unnamed) => {
                self.fs.lost_name(unnamed);
                None
            }
            Rest::Nothing => None,
        };
        let grants = known(&changed, made);
        let is_told = |key: &Key| grants.iter().any(|grant| grant.range.contains(*key));
        let updates = changed.into_iter().filter(|(key, _)| !is_told(key)).collect();
        Executed::Ended(Outcome { result: Ok(answer), updates, grants })
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
