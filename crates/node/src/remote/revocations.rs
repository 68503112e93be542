//! Leases that the server wants back.
//!
//! ```text
//!   names, attributes   forget here | barrier | kernel forgets | Released
//!   bytes               READs wait | forget here | barrier | kernel drops pages | Released | READs
//!                                                                                        go on
//! ```
//!
//! Files of which the kernel may have pages that programs change are another matter: see
//! [`mapped`](super::mapped).
//!
//! One thread does this, [`RemoteFs::attend`], in batches; it never waits for the server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::lock::{LockClass, LockOwner, LockRange};
use gabion_link::message::ToServer;
use gabion_link::range::KeyRange;
use gabion_link::table::{Keep, RevokeId};
use gabion_map::{FileId, Kind, LockMode};

use super::RemoteFs;
use super::losses::Refused;

/// What may wait for the server.
enum Later {
    Run(Box<dyn FnOnce() + Send>),
    Unlock(FileId, LockClass, LockOwner, LockRange),
    /// These changes could not be made.
    Refused(Vec<Refused>),
}

pub(super) type Revoked = (RevokeId, KeyRange, Keep);

/// Of each file of which the kernel may have pages that programs change.
type OfMapped = BTreeMap<FileId, Vec<Revoked>>;

#[derive(Default)]
struct Queue {
    revoked: VecDeque<Revoked>,
    later: VecDeque<Later>,
    is_closed: bool,
}

/// What waits to be attended to.
#[derive(Default)]
pub(super) struct Revocations {
    queue: Mutex<Queue>,
    later: Condvar,
    arrived: Condvar,
}

impl Revocations {
    pub(super) fn push(&self, id: RevokeId, range: KeyRange, keep: Keep) {
        self.queue.lock().revoked.push_back((id, range, keep));
        self.arrived.notify_one();
    }

    /// Has something run on a thread that may wait for the server.
    pub(super) fn later(&self, run: Box<dyn FnOnce() + Send>) {
        self.queue.lock().later.push_back(Later::Run(run));
        self.later.notify_one();
    }

    /// An owner's locks are to be given up.
    pub(super) fn unlock_later(
        &self,
        file: FileId,
        class: LockClass,
        owner: LockOwner,
        range: LockRange,
    ) {
        self.queue.lock().later.push_back(Later::Unlock(file, class, owner, range));
        self.later.notify_one();
    }

    /// A change could not be made. Those that are told of together are lost together.
    pub(super) fn refused(&self, one: Refused) {
        let mut queue = self.queue.lock();
        match queue.later.back_mut() {
            Some(Later::Refused(others)) => others.push(one),
            _ => queue.later.push_back(Later::Refused(vec![one])),
        }
        self.later.notify_one();
    }

    /// The session has ended: nobody wants an answer.
    pub(super) fn clear(&self) {
        self.queue.lock().revoked.clear();
    }

    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.arrived.notify_all();
        self.later.notify_all();
    }

    /// All revocations that wait; nothing at the end.
    fn next(&self) -> Option<Vec<Revoked>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if !queue.revoked.is_empty() {
                return Some(queue.revoked.drain(..).collect());
            }
            self.arrived.wait(&mut queue);
        }
    }

    fn next_later(&self) -> Option<Later> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(run) = queue.later.pop_front() {
                return Some(run);
            }
            if queue.is_closed {
                return None;
            }
            self.later.wait(&mut queue);
        }
    }
}

impl RemoteFs {
    /// Gives back what the server wants back, until the end. For a thread of its own.
    pub fn attend(&self) {
        while let Some(revoked) = self.revocations.next() {
            let now = self.clock.monotonic();
            for (_, range, _) in &revoked {
                self.contention.revoked(range.file(), now);
                self.give_back_locks(range);
            }
            let (mapped, bytes, others) = self.take_items(revoked);
            if !others.is_empty() {
                self.give_back_items(&others);
            }
            for one in bytes {
                self.give_back_bytes(&one);
            }
            for (file, revoked) in mapped {
                self.give_back_mapped(file, &revoked);
            }
        }
    }

    /// Runs what may wait for the server, until the end. For a thread of its own.
    pub fn attend_later(&self) {
        while let Some(run) = self.revocations.next_later() {
            match run {
                Later::Run(run) => run(),
                Later::Unlock(file, class, owner, range) => {
                    // Nobody is left to be told of a failure.
                    let _ = self.unlock(file, class, owner, range);
                }
                Later::Refused(refused) => self.changes_failed(refused),
            }
            self.answered();
        }
    }

    /// Takes leases away where the kernel has no bytes cached, which is where they may be changed
    /// here. Left are those on files with pages that programs may change, by file, and those on
    /// other bytes.
    fn take_items(&self, revoked: Vec<Revoked>) -> (OfMapped, Vec<Revoked>, Vec<Revoked>) {
        // Decided and taken at once: the pages of who yields his right to change bytes, and reads
        // them then, may come before the answer with the lease on them does.
        let mut cache = self.cache.write();
        let is_mapped = |(_, range, _): &Revoked| self.mapped.has_or_wants_pages(range.file());
        let (mapped, revoked): (Vec<_>, Vec<_>) = revoked.into_iter().partition(is_mapped);
        let mut of_mapped = OfMapped::new();
        for one in mapped {
            of_mapped.entry(one.1.file()).or_default().push(one);
        }
        let may_have_pages = |(_, range, _): &Revoked| {
            let bytes = range.intersection(&KeyRange::bytes_from(range.file(), 0));
            bytes.is_some_and(|bytes| !cache.covers_as(&bytes, LockMode::Exclusive))
        };
        let (bytes, others): (Vec<_>, Vec<_>) = revoked.into_iter().partition(may_have_pages);
        for (_, range, keep) in &others {
            cache.give_up(range, *keep);
            self.doubt_items(range, *keep);
        }
        (of_mapped, bytes, others)
    }

    /// Takes leases away.
    pub(super) fn take(&self, revoked: &[Revoked]) {
        let mut cache = self.cache.write();
        for (_, range, keep) in revoked {
            cache.give_up(range, *keep);
            self.doubt_items(range, *keep);
        }
    }

    /// Answers for leases that were taken away.
    pub(super) fn give_back_items(&self, revoked: &[Revoked]) {
        self.gate.barrier();
        let forgotten = revoked.iter().filter(|(.., keep)| *keep == Keep::Nothing);
        let forgotten: Vec<KeyRange> = forgotten.map(|(_, range, _)| *range).collect();
        self.kernel_forgets_items(&forgotten);
        let ids = revoked.iter().map(|(id, ..)| *id).collect();
        self.calls.tell(ToServer::Released(ids));
    }

    /// What the kernel lists by itself may no longer be true. The cache is locked by who calls
    /// this.
    fn doubt_items(&self, range: &KeyRange, keep: Keep) {
        if keep == Keep::Nothing && range.first().kind != Kind::DATA {
            self.listings.revoke(range.file());
        }
    }

    fn kernel_forgets_items(&self, ranges: &[KeyRange]) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let has_names = |range: &&KeyRange| {
            range.first().kind <= Kind::DIRENT && range.last().kind >= Kind::DIRENT
        };
        let names: Vec<KeyRange> = ranges.iter().filter(has_names).copied().collect();
        if !names.is_empty() && kernel.forget_names(&names) {
            self.kernel_lists_anew();
        }
        let has_attributes = |range: &&KeyRange| range.first().kind == Kind::INODE;
        for range in ranges.iter().filter(has_attributes) {
            if self.mapped.forgets_attributes(range.file()) {
                kernel.forget_attributes(range.file());
            }
        }
        self.kernel_forgets_listings(ranges.iter().map(KeyRange::file));
    }

    /// The kernel may not know that these objects were changed by its own request: it takes a name
    /// for what it stood for when it was looked up. Not for threads that handle a request.
    pub(super) fn kernel_forgets_attributes(&self, files: &[FileId]) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        files.iter().for_each(|file| kernel.forget_attributes(*file));
    }

    /// The same, for threads that do.
    pub(super) fn kernel_forgets_attributes_soon(&self, files: Vec<FileId>) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let forget = move || files.into_iter().for_each(|file| kernel.forget_attributes(file));
        self.revocations.later(Box::new(forget));
    }

    fn give_back_bytes(&self, (id, range, keep): &Revoked) {
        let file = range.file();
        let pages = pages_of(range);
        let dropping = self.pages.begin_dropping(file, pages);
        self.take(&[(*id, *range, *keep)]);
        self.gate.barrier();
        if range.first().kind != Kind::DATA {
            self.kernel_forgets_items(&[*range]);
        }
        self.drop_pages(file, pages);
        self.calls.tell(ToServer::Released(vec![*id]));
        self.pages.dropped(file, dropping);
    }

    /// Has the kernel drop pages.
    pub(super) fn drop_pages(&self, file: FileId, range: (u64, u64)) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let drop_pages: Arc<dyn Fn(FileId, (u64, u64)) + Send + Sync> =
            Arc::new(move |file, (from, to)| kernel.forget_bytes(file, from, to));
        self.pages.drop_pages(file, range, &drop_pages);
    }
}

/// The whole pages that a range of bytes touches.
fn pages_of(range: &KeyRange) -> (u64, u64) {
    let from = if range.first().kind == Kind::DATA { range.first().at } else { 0 };
    let last = range.last().at;
    super::pages::pages(from, (last - from).saturating_add(1))
}
