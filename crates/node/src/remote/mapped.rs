//! Files that programs of this machine may have mapped to change them (`mmap` with `MAP_SHARED`).
//!
//! The kernel does not tell when a program stores into a page that is mapped. It has asked for the
//! page before, and hands it over later, when it likes, or when it is to drop it:
//!
//! ```text
//!   READ of a page of a file that is       leases on all of its bytes and attributes, exclusive:
//!   open for reading and writing here      what is stored from now on is a change made here
//!   a program stores                       nobody is told
//!   WRITE of the page                      the change: made under these leases, sent on as any
//!   another client wants one of them       READs wait | the kernel drops all pages, and hands
//!                                          over those with changes | leases given up | Released
//! ```
//!
//! So a file that several machines have mapped moves among them whole, with all its pages.
//!
//! - A file counts as mapped from the moment when somebody opens it for both, as another reader's
//!   READ can bring in the page that is then stored to; and as long as the kernel may have pages.
//!   Those that it had under shared leases it drops itself when the file is mapped.
//! - A WRITE from the page cache waits for nobody but for room and for the end of an instant, and
//!   for neither while pages are being dropped: whoever drops them waits for it. It is made as long
//!   as the leases are here, also if the server is away; what comes without leases is lost, and
//!   kept aside.
//! - A WRITE of a program to the same page must not be undone by the older bytes around a store.
//!   So the page is dropped before it is made, and not read meanwhile.
//! - While the kernel waits for a SETATTR of the size it hands no page over. So nobody is waited
//!   for then: the leases are here, or there are no pages and none are read.
//! - Before leases end otherwise, with the session or its server, pages are dropped as well.
//! - The kernel keeps no attributes of such a file. It takes no size from an answer if it was told
//!   to forget any while it waited for that, though the program gets it: pages behind the older
//!   end, which it maps then, would be out of reach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use gabion_base::ids::SubvolId;
use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::{Caller, Error, Privileges, Result, WriteAt, Written};
use gabion_link::cache::{Cache, CacheTxn};
use gabion_link::message::{Call, Change, ChangeNumber, Prefetch, ReadLease};
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_map::{FileId, LockMode, Payload};

use super::RemoteFs;
use super::changing::{Attempt, Bond, CHANGE_BYTES};
use super::failures::unleased;
use super::opens::through_handle;
use super::pages::{Course, Pages, pages};
use super::pending::Room;
use super::revocations::Revoked;

/// All of a file.
const ALL: (u64, u64) = (0, u64::MAX);
/// How long a program has what it was given last, at least: as long as it takes to run on.
const TENURE: Duration = Duration::from_millis(2);
/// How long a WRITE from the page cache waits for room, or the end of an instant, at once and in
/// all.
const ROOM_GLANCE: Duration = Duration::from_millis(100);
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

/// A file that may be mapped.
#[derive(Debug, Default)]
struct File {
    /// Openings for reading and writing.
    openings: u32,
    /// READs that have asked for the leases, or have them and have not begun yet.
    wanting: u32,
    /// The kernel may have pages, which may have been changed.
    has_pages: bool,
    /// When it got the last one.
    given: Duration,
    /// It has no attributes.
    has_no_attributes: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<FileId, File>,
    /// How many have the kernel drop pages.
    dropping: u32,
}

/// The files of one mount that may be mapped.
#[derive(Default)]
pub(super) struct Mapped {
    state: Mutex<State>,
    /// How many files there are. Mostly there are none, and nobody has to wait for the lock.
    count: AtomicUsize,
    /// How many are about to forget all leases: no page is given any more. Pages are given of files
    /// that are counted before.
    forgetting: AtomicU32,
    /// Fewer are about to forget leases.
    fewer: Condvar,
}

impl Mapped {
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// What is known of the file from now on.
    fn file(&self, state: &mut State, file: FileId, change: impl FnOnce(&mut File)) {
        change(state.files.entry(file).or_default());
        self.count.store(state.files.len(), Ordering::SeqCst);
    }

    /// Whether pages of the file that the kernel reads may be changed by programs.
    fn concerns(&self, file: FileId) -> bool {
        !self.is_empty() && self.state.lock().files.contains_key(&file)
    }

    /// Whether the kernel may have pages that were changed.
    pub(super) fn has_pages(&self, file: FileId) -> bool {
        !self.is_empty()
            && self.state.lock().files.get(&file).is_some_and(|mapped| mapped.has_pages)
    }

    /// Whether leases on the file are given back with regard to pages: those that the kernel may
    /// have, and those that it is about to get.
    pub(super) fn has_or_wants_pages(&self, file: FileId) -> bool {
        if self.is_empty() {
            return false;
        }
        let state = self.state.lock();
        state.files.get(&file).is_some_and(|mapped| mapped.has_pages || mapped.wanting > 0)
    }

    /// A READ asks for the leases. With the first that come it begins.
    fn want(&self, file: FileId) -> Wanting<'_> {
        self.file(&mut self.state.lock(), file, |mapped| mapped.wanting += 1);
        Wanting { mapped: self, file }
    }

    fn opened(&self, file: FileId) {
        self.file(&mut self.state.lock(), file, |mapped| mapped.openings += 1);
    }

    fn closed(&self, file: FileId) {
        self.change(file, |mapped| mapped.openings = mapped.openings.saturating_sub(1));
    }

    fn dropped(&self, file: FileId) {
        self.change(file, |mapped| mapped.has_pages = false);
    }

    /// Whether the kernel is to be told to forget attributes of the file, which it is now.
    pub(super) fn forgets_attributes(&self, file: FileId) -> bool {
        if self.is_empty() {
            return true;
        }
        let mut state = self.state.lock();
        let Some(mapped) = state.files.get_mut(&file) else { return true };
        !std::mem::replace(&mut mapped.has_no_attributes, true)
    }

    fn change(&self, file: FileId, change: impl FnOnce(&mut File)) {
        let mut state = self.state.lock();
        let Some(mapped) = state.files.get_mut(&file) else { return };
        change(mapped);
        if mapped.openings == 0 && mapped.wanting == 0 && !mapped.has_pages {
            state.files.remove(&file);
            self.count.store(state.files.len(), Ordering::SeqCst);
        }
    }

    /// The kernel is about to get a page. False: it must not.
    fn give(&self, file: FileId, now: Duration) -> bool {
        let mut state = self.state.lock();
        if self.is_forgetting() {
            return false;
        }
        self.file(&mut state, file, |mapped| (mapped.has_pages, mapped.given) = (true, now));
        true
    }

    fn is_forgetting(&self) -> bool {
        self.forgetting.load(Ordering::SeqCst) > 0
    }

    /// Files of which the kernel may have pages.
    fn all_with_pages(&self) -> Vec<FileId> {
        if self.is_empty() {
            return Vec::new();
        }
        let state = self.state.lock();
        let with_pages = state.files.iter().filter(|(_, mapped)| mapped.has_pages);
        with_pages.map(|(file, _)| *file).collect()
    }

    fn is_dropping(&self) -> bool {
        self.state.lock().dropping > 0
    }

    /// Waits until whoever was given the last page has had it for a moment.
    fn wait_for_tenure(&self, file: FileId, clock: impl Fn() -> Duration) {
        let mut state = self.state.lock();
        while let Some(mapped) = state.files.get(&file) {
            let left = (mapped.given + TENURE).saturating_sub(clock());
            if left.is_zero() || self.is_forgetting() {
                return;
            }
            self.fewer.wait_for(&mut state, left);
        }
    }

    /// Waits until pages may be given, for `patience` at most.
    fn wait_until_given(&self, patience: Duration) {
        let mut state = self.state.lock();
        while self.is_forgetting() && !self.fewer.wait_for(&mut state, patience).timed_out() {}
    }
}

/// While it lives a READ wants pages of the file.
struct Wanting<'a> {
    mapped: &'a Mapped,
    file: FileId,
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.mapped.change(self.file, |mapped| mapped.wanting -= 1);
    }
}

/// While it lives no page is given that programs may change.
pub(super) struct Forgetting<'a> {
    mapped: &'a Mapped,
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        self.mapped.forgetting.fetch_sub(1, Ordering::SeqCst);
        if !self.mapped.is_empty() {
            // Whoever looks does so with this lock held.
            drop(self.mapped.state.lock());
            self.mapped.fewer.notify_all();
        }
    }
}

/// While it lives pages of a range are not read.
pub(super) struct Unread<'a> {
    pages: &'a Pages,
    file: FileId,
    id: u64,
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.pages.dropped(self.file, self.id);
    }
}

/// What has to be leased before pages of the file are given that may be changed.
fn wants(file: FileId) -> [Want; 2] {
    let ranges = [KeyRange::attributes(file), KeyRange::bytes_from(file, 0)];
    ranges.map(|range| (range, LockMode::Exclusive))
}

fn covers_all(cache: &Cache, file: FileId) -> bool {
    wants(file).iter().all(|(range, mode)| cache.covers_as(range, *mode))
}

impl RemoteFs {
    /// The file was opened so that it can be mapped to be changed.
    pub fn may_be_mapped(&self, file: FileId) {
        self.mapped.opened(file);
    }

    /// Such an opening is closed, and nothing is mapped through it any more.
    pub fn is_not_mapped(&self, file: FileId) {
        self.mapped.closed(file);
    }

    /// Whether the kernel's pages of the file may be changed by programs.
    pub(super) fn is_mapped(&self, file: FileId) -> bool {
        self.mapped.concerns(file)
    }

    /// The kernel is going to have a page. False: the leases for that are not here.
    fn give_pages(&self, file: FileId) -> bool {
        // Whoever takes leases away has the cache locked, and looks whether there are pages.
        let cache = self.cache.read();
        self.is_alive()
            && covers_all(&cache, file)
            && self.mapped.give(file, self.clock.monotonic())
    }

    /// Reads bytes for pages that programs may change.
    pub(super) fn read_mapped(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        let range = pages(offset, into.len().max(1) as u64);
        let mut wanting = None;
        let begun = self.clock.monotonic();
        // It gets its page with the first leases that come, unless the session ends meanwhile. A
        // fault that fails ends the program, so it is tried for as long as may be.
        while self.clock.monotonic().saturating_sub(begun) < self.settings.deadline {
            let course = self.pages.begin(file, range);
            self.gate.enter_own();
            if course == Course::Flying && self.give_pages(file) {
                // The client has the leases, so the server waits for nobody.
                let count = self.read_call(caller, file, offset, into, ReadLease::None)?;
                if self.give_pages(file) {
                    return Ok(count);
                }
            }
            self.gate.leave_own();
            self.pages.is_in_the_way();
            if !self.pages.wait_for_turn(self.settings.deadline) {
                return Err(Error::Busy);
            }
            self.mapped.wait_until_given(self.settings.deadline);
            wanting.get_or_insert_with(|| self.mapped.want(file));
            self.acquire_all(caller, file)?;
            // What is revoked after this answer waits until this READ has begun once more.
        }
        Err(Error::Busy)
    }

    /// Acquires what pages that may be changed need.
    fn acquire_all(&self, caller: &Caller, file: FileId) -> Result<()> {
        let needed = wants(file).to_vec();
        let files = self.begin_acquiring_bytes(&needed);
        let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
        let acquire = Call::Acquire { needed, welcome, prefetch };
        let acquired = self.call(&through_handle(caller), acquire);
        self.ended_acquiring_bytes(&acquired, &files);
        acquired.map(drop)
    }

    /// Takes bytes that the kernel has in a page that a program has changed. They have no place
    /// behind the file's end.
    pub fn write_back(
        &self,
        caller: &Caller,
        file: FileId,
        offset: u64,
        payload: &Payload<'_>,
    ) -> Result<Written> {
        let length = payload.bytes().len();
        let written = Written { offset, length };
        self.gate.leave_own();
        self.wait_for_some_room(file.subvol, CHANGE_BYTES + length as u64);
        // Nobody cuts the file meanwhile: others lack the leases, and the kernel waits for this.
        let end = {
            let cache = self.cache.read();
            match gabion_fs::stat(&mut CacheTxn::new(&cache), file) {
                Ok(found) => found.size.saturating_sub(offset).min(length as u64) as usize,
                Err(_) => length,
            }
        };
        if end == 0 {
            return Ok(written);
        }
        let bytes = Arc::new(payload.bytes()[..end].to_vec());
        let (at, privileges) = (WriteAt::Offset(offset), Privileges::Keep);
        let mut call = Call::Write { file, at, privileges, bytes };
        let caller = through_handle(caller);
        let bytes = CHANGE_BYTES + end as u64;
        let begun = self.clock.monotonic();
        loop {
            let is_patient = self.clock.monotonic().saturating_sub(begun) < ROOM_PATIENCE;
            let bond = match is_patient && !self.mapped.is_dropping() {
                true => Bond::Leases,
                false => Bond::Pages,
            };
            match self.attempt(&caller, call, bytes, &[], bond)? {
                Attempt::Made(..) => return Ok(written),
                Attempt::Frozen(left) | Attempt::Crowded(left) => {
                    call = left;
                    self.gate.leave_own();
                    self.freezing.wait(ROOM_GLANCE);
                }
                Attempt::Lacks(_, call) => {
                    self.lose_store(file, caller, call);
                    return Err(unleased());
                }
            }
        }
    }

    /// A store has no leases any more, so it is nobody's.
    fn lose_store(&self, file: FileId, caller: Caller, call: Call) {
        let (number, order, made) = (ChangeNumber(0), self.pending.order(), None);
        let now = self.context(&caller).now;
        let change = Change { number, order, now, made, caller, call };
        self.unsynced.lose_files(&[file]);
        let reason = "the file was mapped, and its leases had ended".to_owned();
        self.lose_changes(vec![change], reason);
    }

    /// Waits for room for a change, unless somebody waits for this thread, who may have it wait no
    /// longer. What the kernel has to hand over is bounded by the kernel.
    fn wait_for_some_room(&self, of: SubvolId, bytes: u64) {
        let begun = self.clock.monotonic();
        let is_patient = || self.clock.monotonic().saturating_sub(begun) < ROOM_PATIENCE;
        while !self.mapped.is_dropping() && !self.is_cut_off() && is_patient() {
            if self.pending.wait_for_room(of, bytes, ROOM_GLANCE) != Room::TimedOut {
                return;
            }
        }
    }

    /// Has the kernel drop pages that programs may have changed, and hand those over.
    fn drop_mapped(&self, file: FileId, range: (u64, u64)) {
        self.mapped.state.lock().dropping += 1;
        self.drop_pages(file, range);
        self.mapped.state.lock().dropping -= 1;
    }

    /// Gives leases on a file back of which the kernel may have pages.
    pub(super) fn give_back_mapped(&self, file: FileId, revoked: &[Revoked]) {
        // Whoever was given leases has begun to read.
        self.gate.barrier();
        let unread = self.unread(file, ALL);
        self.mapped.wait_for_tenure(file, || self.clock.monotonic());
        self.drop_mapped(file, ALL);
        self.mapped.dropped(file);
        self.take(revoked);
        self.give_back_items(revoked);
        drop(unread);
    }

    /// Has pages of the range not read.
    fn unread(&self, file: FileId, range: (u64, u64)) -> Unread<'_> {
        let id = self.pages.begin_dropping(file, range);
        Unread { pages: &self.pages, file, id }
    }

    /// Before a program's own WRITE: the kernel has no pages of where it goes, as long as the
    /// result lives.
    pub(super) fn without_pages(&self, call: &Call) -> Option<Unread<'_>> {
        let Call::Write { file, at, bytes, .. } = call else { return None };
        if !self.mapped.concerns(*file) {
            return None;
        }
        let range = match at {
            WriteAt::Offset(offset) => pages(*offset, bytes.len() as u64),
            WriteAt::End => ALL,
        };
        self.gate.leave_own();
        let unread = self.unread(*file, range);
        if self.mapped.has_pages(*file) {
            self.drop_mapped(*file, range);
        }
        Some(unread)
    }

    /// Before a change of a file's size: no pages are read as long as the result lives. With it
    /// comes whether the kernel may have some.
    pub(super) fn without_reads(&self, call: &Call) -> Option<(Unread<'_>, bool)> {
        let Call::Setattr { file, changes } = call else { return None };
        if changes.size.is_none() || !self.mapped.concerns(*file) {
            return None;
        }
        self.gate.leave_own();
        let unread = self.unread(*file, ALL);
        let has_pages = self.mapped.has_pages(*file);
        Some((unread, has_pages))
    }

    /// All leases are about to be forgotten: first the kernel drops the pages that programs may
    /// have changed, and gets none any more as long as the result lives.
    pub(super) fn forget_mapped(&self) -> Forgetting<'_> {
        self.mapped.forgetting.fetch_add(1, Ordering::SeqCst);
        let files = self.mapped.all_with_pages();
        let forgetting = Forgetting { mapped: &self.mapped };
        if !files.is_empty() {
            // Pages that were given before have reached the kernel.
            self.gate.barrier();
        }
        for file in files {
            self.drop_mapped(file, ALL);
            self.mapped.dropped(file);
        }
        forgetting
    }
}
