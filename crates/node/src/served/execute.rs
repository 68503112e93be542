//! Calls, run on the filesystem by the same code that runs a local mount's.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::BLOCK_SIZE;
use gabion_fs::lock::{Lock, LockOwner, Wait};
use gabion_fs::{
    Attributes, Context, CopyRequest, Disposition, Error, OpenState, RenameRequest, Result, Unnamed,
};
use gabion_link::message::{Answer, Call, Grant, ReadLease, ToClient};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Key, Kind, LocalTxn, LockMode, Payload, Stop, Value};

use crate::bytes::COPY_CHUNK;
use crate::references::Reference;

use super::guarded::{Grip, Guarded};
use super::{Executed, Job, Outcome, Served};

/// Bytes that one call reads at most.
const READ_MAX: u32 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A transaction of the local map that touches only what it may.
type Txn<'a, 'g, 'm> = Guarded<'a, 'g, LocalTxn<'m>>;

/// What is left to do when a change is made.
enum Rest {
    Nothing,
    /// The client knows all of an object that was made.
    Made(FileId),
    /// The same of an empty directory.
    MadeDirectory(FileId),
    /// An object has lost a name.
    LostName(Unnamed),
}

impl Served {
    pub(super) fn execute(&self, job: &Job) -> Executed {
        if !job.call.files().iter().all(|file| self.is_served(*file)) {
            return plain(Err(Error::Stale));
        }
        match &job.call {
            Call::Acquire { ranges, prefetch } => self.acquire(job, ranges, *prefetch),
            Call::Read { file, offset, length, lease } => {
                self.read(job, *file, *offset, *length, *lease)
            }
            Call::Create { .. } | Call::Tmpfile { .. } => self.make_open(job),
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
                let owner = LockOwner { client: job.session.id.0, number: *owner };
                self.fs.locks().release(*file, *class, owner, *range);
                plain(Ok(Answer::Done))
            }
            Call::TestLock { lock } => {
                let conflict = self.fs.locks().conflict(&own(job, lock));
                plain(Ok(Answer::Lock(conflict)))
            }
            _ => self.change(job),
        }
    }

    /// Runs one operation. What it changes and how long the files are then is in the grip.
    fn guard<T>(
        &self,
        grip: &mut Grip<'_>,
        mut operation: impl FnMut(&mut Txn<'_, '_, '_>) -> Result<T>,
    ) -> Result<T> {
        self.fs.run(|txn| {
            let mut guarded = grip.on(txn);
            let value = operation(&mut guarded)?;
            guarded.settle()?;
            Ok(value)
        })
    }

    fn read(
        &self,
        job: &Job,
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
        let mut bytes = vec![0; length as usize];
        let read = self.guard(&mut grip, |txn| {
            if lease != ReadLease::None {
                txn.hold(pages, LockMode::Shared)?;
            }
            gabion_fs::read(txn, file, offset, &mut bytes)
        });
        match read {
            Ok(count) => {
                bytes.truncate(count);
                let grants = match lease {
                    ReadLease::None => Vec::new(),
                    _ => vec![Grant { range: pages, items: Vec::new() }],
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

    /// Makes a file that the client has open from then on.
    fn make_open(&self, job: &Job) -> Executed {
        let ctx = self.fs.context(&job.caller);
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        let made = self.fs.run_referring(
            &[Reference::Open],
            |txn| {
                let mut txn = grip.on(txn);
                let made = match &job.call {
                    Call::Create { parent, name, permissions, if_exists, request } => {
                        let how = *if_exists;
                        gabion_fs::create(&mut txn, &ctx, *parent, name, *permissions, how, request)
                    }
                    Call::Tmpfile { parent, permissions, linkable } => {
                        gabion_fs::tmpfile(&mut txn, &ctx, *parent, *permissions, *linkable)
                            .map(|made| (made, Disposition::Created))
                    }
                    other => unreachable!("{other:?} makes no open file"),
                }?;
                txn.settle()?;
                Ok(made)
            },
            |(attributes, _)| attributes,
        );
        if let Ok((attributes, _)) = &made {
            if attributes.nlink == 0 {
                self.fs.expect_orphan(attributes.file);
            }
            // The session needs one reference only, however often it counts.
            if !job.session.opened(attributes.file) {
                self.fs.release(attributes.file);
            }
        }
        let made = made.map(|(attributes, disposition)| {
            let rest = match disposition {
                Disposition::Created => Rest::Made(attributes.file),
                Disposition::Opened => Rest::Nothing,
            };
            (Answer::Made(attributes, disposition), rest)
        });
        self.changed(grip, made)
    }

    /// Every other operation that changes something.
    fn change(&self, job: &Job) -> Executed {
        let ctx = self.fs.context(&job.caller);
        let mut grip = Grip::new(&self.grants, job.request, job.client());
        let done = self.guard(&mut grip, |txn| self.operate(txn, &ctx, &job.call));
        self.changed(grip, done)
    }

    fn operate(
        &self,
        txn: &mut Txn<'_, '_, '_>,
        ctx: &Context,
        call: &Call,
    ) -> Result<(Answer, Rest)> {
        let opens = |file: FileId| -> OpenState { self.fs.open_state(file) };
        let made = |made: Attributes| {
            let rest = Rest::Made(made.file);
            (Answer::Object(made), rest)
        };
        let done = |()| (Answer::Done, Rest::Nothing);
        match call {
            Call::Write { file, at, privileges, bytes } => {
                let payload = Payload::Copied(bytes);
                let written = gabion_fs::write(txn, ctx, *file, *at, payload, *privileges)?;
                let (offset, length) = (written.offset, written.length as u64);
                Ok((Answer::Written { offset, length }, Rest::Nothing))
            }
            Call::Mknod { parent, name, file_type, permissions, rdev } => {
                gabion_fs::mknod(txn, ctx, *parent, name, *file_type, *permissions, *rdev).map(made)
            }
            Call::Mkdir { parent, name, permissions } => {
                let made = gabion_fs::mkdir(txn, ctx, *parent, name, *permissions)?;
                // Nobody else knows it yet, so nobody minds.
                txn.hold(KeyRange::names(made.file), LockMode::Shared)?;
                let rest = Rest::MadeDirectory(made.file);
                Ok((Answer::Object(made), rest))
            }
            Call::Symlink { parent, name, target } => {
                gabion_fs::symlink(txn, ctx, *parent, name, target).map(made)
            }
            Call::Link { file, parent, name } => gabion_fs::link(txn, ctx, *file, *parent, name)
                .map(|found| (Answer::Object(found), Rest::Nothing)),
            Call::Unlink { parent, name } => gabion_fs::unlink(txn, ctx, *parent, name, &opens)
                .map(|unnamed| (Answer::Done, Rest::LostName(unnamed))),
            Call::Rmdir { parent, name } => gabion_fs::rmdir(txn, ctx, *parent, name, &opens)
                .map(|unnamed| (Answer::Done, Rest::LostName(unnamed))),
            Call::Rename {
                source_parent,
                source_name,
                target_parent,
                target_name,
                if_taken,
                leave,
            } => {
                let request = RenameRequest {
                    source_parent: *source_parent,
                    source_name,
                    target_parent: *target_parent,
                    target_name,
                    if_taken: *if_taken,
                    leave: *leave,
                };
                let renamed = gabion_fs::rename(txn, ctx, &request, &opens)?;
                let rest = renamed.replaced.map_or(Rest::Nothing, Rest::LostName);
                Ok((Answer::Done, rest))
            }
            Call::Setattr { file, changes } => gabion_fs::setattr(txn, ctx, *file, changes)
                .map(|found| (Answer::Object(found), Rest::Nothing)),
            Call::SetXattr { file, name, value, condition, set_group } => {
                let (condition, set_group) = (*condition, *set_group);
                gabion_fs::xattr::set(txn, ctx, *file, name, value, condition, set_group).map(done)
            }
            Call::RemoveXattr { file, name } => {
                gabion_fs::xattr::remove(txn, ctx, *file, name).map(done)
            }
            Call::Fallocate { file, request, offset, length, privileges } => {
                let (request, offset, length) = (*request, *offset, *length);
                gabion_fs::fallocate(txn, ctx, *file, request, offset, length, *privileges)
                    .map(done)
            }
            Call::Copy { source, source_offset, target, target_offset, length, privileges } => {
                let request = CopyRequest {
                    source: *source,
                    source_offset: *source_offset,
                    target: *target,
                    target_offset: *target_offset,
                    length: (*length).min(COPY_CHUNK),
                };
                gabion_fs::copy_range(txn, ctx, &request, *privileges)
                    .map(|count| (Answer::Number(count), Rest::Nothing))
            }
            Call::Seek { file, offset, target } => gabion_fs::seek(txn, *file, *offset, *target)
                .map(|found| (Answer::Number(found), Rest::Nothing)),
            _ => Err(Error::InvalidArgument),
        }
    }

    /// What to answer when an operation is through.
    fn changed(&self, grip: Grip<'_>, done: Result<(Answer, Rest)>) -> Executed {
        let (answer, rest) = match done {
            Ok(done) => done,
            Err(Error::Stop(Stop::Lease)) => return Executed::Blocked(grip.denied().to_vec()),
            Err(error) => return plain(Err(error)),
        };
        let changed = grip.into_changed();
        let grants = match rest {
            Rest::LostName(unnamed) => {
                self.fs.lost_name(unnamed);
                known(&changed, &[])
            }
            Rest::Nothing => known(&changed, &[]),
            Rest::Made(file) => known(&changed, &[KeyRange::attributes(file)]),
            Rest::MadeDirectory(dir) => {
                known(&changed, &[KeyRange::attributes(dir), KeyRange::names(dir)])
            }
        };
        let is_told = |key: &Key| grants.iter().any(|grant| grant.range.contains(*key));
        let updates = changed.into_iter().filter(|(key, _)| !is_told(key)).collect();
        Executed::Ended(Outcome { result: Ok(answer), updates, grants })
    }

    fn lock(&self, job: &Job, lock: &Lock, wait: Wait) -> Executed {
        let (session, id) = (Arc::clone(&job.session), job.id);
        let end = move |result: Result<()>| {
            session.lock_answered(id);
            let result = result.map(|()| Answer::Done);
            let (updates, grants) = (Vec::new(), Vec::new());
            session.peer.send(ToClient::Answer { id, result, updates, grants });
        };
        let locks = self.fs.locks();
        if let Some(ticket) = locks.acquire(own(job, lock), wait, Box::new(end))
            && job.session.lock_waits(job.id, ticket)
        {
            locks.cancel(ticket);
        }
        // The session may have ended, and given up all of its locks, just before this one.
        if job.session.is_over() {
            locks.release_client(job.session.id.0);
        }
        Executed::AnswersLater
    }
}

fn plain(result: Result<Answer>) -> Executed {
    Executed::Ended(Outcome::plain(result))
}

/// The lock as the session's, whoever it says that it is.
fn own(job: &Job, lock: &Lock) -> Lock {
    let owner = LockOwner { client: job.session.id.0, number: lock.owner.number };
    Lock { owner, ..*lock }
}

/// Leases on what the client knows completely after the change: names that were changed, and
/// `ranges`, in which nothing was before.
fn known(changed: &BTreeMap<Key, Option<Value>>, ranges: &[KeyRange]) -> Vec<Grant> {
    let names = changed.keys().filter(|key| key.kind == Kind::DIRENT);
    let ranges = names.map(|key| KeyRange::key(*key)).chain(ranges.iter().copied());
    let grant = |range: KeyRange| {
        let inside = changed.range(range.first()..=range.last());
        let items = inside.filter_map(|(key, value)| Some((*key, Value::clone(value.as_ref()?))));
        Grant { range, items: items.collect() }
    };
    ranges.map(grant).collect()
}
