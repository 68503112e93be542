//! Operations that change something: made here, if the leases for that can be had, else asked for.
//!
//! ```text
//!   change --room?--> ChangeTxn --ok--> the cache, then the stream to the server; answered at once
//!                        |  leases or numbers are missing
//!                        '--> acquired --> once more
//!             no room, others change it too, only the server can --> call
//! ```
//!
//! Changes are made and sent in one order, which is the lock `order`'s: the server makes them in
//! the same one. What was made is in the stream before anything that is given up after it.
//!
//! The result of an operation that fails here is final, as all that it has looked at is leased.

use std::collections::{BTreeMap, BTreeSet};

use gabion_base::ids::SubvolId;
use gabion_fs::format::dirent::{self, Dirents};
use gabion_fs::{Caller, Error, OpenState, Result};
use gabion_link::change::{ChangeTxn, Lack};
use gabion_link::message::{Answer, Call, Change, ChangeNumber, Prefetch, ToServer};
use gabion_link::range::KeyRange;
use gabion_link::table::Want;
use gabion_map::{FileId, Kind, LockMode, Stop};

use crate::operation::{may_make, operate, resolved};

use super::RemoteFs;
use super::failures::{nonsense, silent};
use super::gate::answer_by_hearsay;
use super::losses::Refused;
use super::pending::Room;

/// How often leases are acquired for one change before the server is asked to make it.
const ATTEMPTS_MAX: usize = 4;
/// Numbers for new objects that are asked for at once.
const NUMBERS: u32 = 2048;
/// What a change takes at the server besides its bytes, at most.
pub(super) const CHANGE_BYTES: u64 = 16 << 10;
/// Objects whose leases are asked for with that of one of their siblings.
const SIBLINGS: usize = 256;

/// What has to be there for a change to be made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bond {
    /// The session with its connection, and the leases.
    Server,
    /// The leases: they are forgotten with the session, and not before this change is kept.
    Leases,
    /// The same, and nothing has it wait: whoever gives the leases back waits for it. It has not
    /// completed for anybody, so it may come before an instant or after it.
    Pages,
}

/// How an attempt has ended.
pub(super) enum Attempt {
    /// With all objects that were changed.
    Made(Answer, Vec<FileId>),
    /// The call is given back.
    Lacks(Lack, Call),
    /// Nothing may be changed just now. The call is given back.
    Frozen(Call),
    /// There is less room than it was found to be. The call is given back.
    Crowded(Call),
}

/// Files whose bytes leases to change are asked for.
#[derive(Default)]
pub(super) struct Acquiring {
    /// How often each is, also by whom a new session makes ask once more.
    asked: BTreeMap<FileId, u32>,
    /// Those that nobody waits for any more, and that may come in this session.
    unanswered: BTreeSet<FileId>,
}

impl Acquiring {
    fn begin(&mut self, files: &[FileId]) {
        files.iter().for_each(|file| *self.asked.entry(*file).or_default() += 1);
    }

    fn end(&mut self, files: &[FileId], is_answered: bool) {
        for file in files {
            let count = self.asked.get_mut(file).expect("it was asked for");
            *count -= 1;
            if *count == 0 {
                self.asked.remove(file);
            }
            if !is_answered {
                self.unanswered.insert(*file);
            }
        }
    }

    /// Whether leases on the file may be on their way.
    fn may_come(&self, file: FileId) -> bool {
        self.asked.contains_key(&file) || self.unanswered.contains(&file)
    }

    /// What was asked before this moment is answered no more, unless whoever waits asks again.
    pub(super) fn forget_unanswered(&mut self) {
        self.unanswered.clear();
    }
}

impl RemoteFs {
    /// Makes a change.
    pub(super) fn change(&self, caller: &Caller, call: Call) -> Result<Answer> {
        call.check()?;
        self.check_edge(&call)?;
        if self.is_for_server(&call) {
            return self.change_at_server(caller, call);
        }
        let (of, bytes) = (subvolume(&call), CHANGE_BYTES + payload(&call));
        // Whoever waits must not be waited for.
        self.gate.leave_own();
        let resizing = self.without_reads(&call);
        let has_pages = resizing.as_ref().is_some_and(|(_, has_pages)| *has_pages);
        let bond = if has_pages { Bond::Leases } else { Bond::Server };
        let room = match bond {
            Bond::Leases | Bond::Pages => Room::Enough,
            Bond::Server => self.pending.wait_for_room(of, bytes, self.settings.deadline),
        };
        match room {
            Room::Enough => {}
            Room::None => return self.change_at_server(caller, call),
            Room::TimedOut => return Err(silent(self.settings.deadline)),
        }
        let mut needed = self.foreseen(&call);
        let mut call = call;
        let is_removal = is_removal(&call);
        let mut attempt = 0;
        while attempt < ATTEMPTS_MAX {
            let unread = self.without_pages(&call);
            let result = self.attempt(caller, call, bytes, &needed, bond)?;
            drop(unread);
            let lack = match result {
                Attempt::Frozen(left) => {
                    call = left;
                    self.gate.leave_own();
                    if !self.freezing.wait(self.settings.deadline) {
                        return Err(silent(self.settings.deadline));
                    }
                    continue;
                }
                Attempt::Crowded(left) => {
                    call = left;
                    self.gate.leave_own();
                    match self.pending.wait_for_room(of, bytes, self.settings.deadline) {
                        Room::Enough => continue,
                        Room::None => break,
                        Room::TimedOut => return Err(silent(self.settings.deadline)),
                    }
                }
                Attempt::Made(answer, files) => {
                    // Names may stand for something else by now than what the kernel has seen.
                    if is_removal && attempt > 0 {
                        self.kernel_forgets_attributes_soon(files);
                    }
                    return Ok(answer);
                }
                Attempt::Lacks(lack, left) => {
                    call = left;
                    lack
                }
            };
            attempt += 1;
            match lack {
                Lack::Server => break,
                Lack::Number => self.fetch_numbers(of)?,
                Lack::Leases(missing) => {
                    if !self.acquire_for_change(caller, &call, &mut needed, missing)? {
                        break;
                    }
                }
            }
        }
        self.change_at_server(caller, call)
    }

    /// Has the server make the change.
    fn change_at_server(&self, caller: &Caller, call: Call) -> Result<Answer> {
        if !self.pending.wait_for_calls(self.settings.deadline) {
            return Err(silent(self.settings.deadline));
        }
        let mut marks = marks(&call, call.files());
        let marks_made = mark_of_made(&call);
        let moves_elsewhere = moves_elsewhere(&call);
        let removing = is_removal(&call).then(|| self.removals.begin());
        let (answer, losses) = self.call_counting(caller, call)?;
        drop(removing);
        answer_by_hearsay();
        if moves_elsewhere {
            self.kernel_lists_anew();
        }
        if let Answer::Made(made, _) | Answer::Object(made) = &answer {
            marks.push((made.file, marks_made));
        }
        self.mark(&marks);
        if self.losses() != losses {
            let files: Vec<FileId> = marks.into_iter().map(|(file, _)| file).collect();
            self.unsynced.lose_files(&files);
        }
        Ok(answer)
    }

    /// These objects have something that may not be durable.
    fn mark(&self, marks: &[(FileId, Mark)]) {
        for (file, mark) in marks {
            match mark {
                Mark::Bytes => self.unsynced.written(*file),
                Mark::Items => self.unsynced.changed(*file),
            }
        }
    }

    /// Makes the change here, if nothing is missing.
    pub(super) fn attempt(
        &self,
        caller: &Caller,
        call: Call,
        bytes: u64,
        needed: &[Want],
        bond: Bond,
    ) -> Result<Attempt> {
        // From here on nothing is revoked behind the back of what is found out.
        self.gate.enter_own();
        // Checked here as it is going to be checked there.
        let ctx = self.context(&self.identities().map(caller));
        let opens = |file: FileId| match self.opens.is_open(file) {
            true => OpenState::Open,
            false => OpenState::Closed,
        };
        let _order = self.order.lock();
        // Without a connection the server may be gone, and the change with it.
        if bond == Bond::Server && (!self.is_alive() || self.is_cut_off()) {
            return Ok(Attempt::Lacks(Lack::Server, call));
        }
        if bond == Bond::Server {
            // Whoever has waited may have lost a lock that he had when the program called.
            self.check_locks_of(&call)?;
        }
        if bond != Bond::Pages && self.freezing.is_frozen() {
            return Ok(Attempt::Frozen(call));
        }
        let of = subvolume(&call);
        // The server may have told so since, and been told here that that is known.
        if bond == Bond::Server && !self.pending.has_room(of, bytes) {
            return Ok(Attempt::Crowded(call));
        }
        let mut cache = self.cache.write();
        let missing = |want: &&Want| !cache.covers_as(&want.0, want.1);
        let missing: Vec<Want> = needed.iter().filter(missing).copied().collect();
        if !missing.is_empty() {
            return Ok(Attempt::Lacks(Lack::Leases(missing), call));
        }
        let number = if may_make(&call) { self.pending.number(of) } else { None };
        let mut txn = ChangeTxn::new(&cache, number);
        let answer = match operate(&mut txn, &ctx, &call, &opens) {
            Ok((answer, _)) => answer,
            Err(Error::Stop(Stop::Lease)) => return Ok(Attempt::Lacks(txn.into_lack(), call)),
            Err(error) => return Err(error),
        };
        let changed = txn.into_changed();
        let made = changed.made.map(|file| file.ino);
        if made.is_some() {
            self.pending.take_number(of);
        }
        let mut files = changed.apply(&mut cache);
        // What is new is found by nobody before the server is told of it, or it could be told of
        // who has it open before.
        let cache = made.map(|_| cache);
        if let Answer::Made(attributes, _) = &answer {
            files.insert(attributes.file);
        }
        let files: Vec<FileId> = files.into_iter().collect();
        if moves_elsewhere(&call) {
            let parents = call.files();
            let moved = files.iter().filter(|file| !parents.contains(file));
            moved.for_each(|file| self.doubt_listing(*file));
        }
        let (now, caller) = (ctx.now, self.told_of_change(caller));
        let (number, order) = (ChangeNumber(0), 0);
        let marks = marks(&call, files.clone());
        let change = Change { number, order, now, made, caller, call };
        let kept = |change: Change| Change { call: resolved(change.call, &answer), ..change };
        let change = self.pending.push(bytes, files.clone(), change, kept);
        // In this order: a sync that begins in between has not to do with it.
        self.mark(&marks);
        self.calls.tell(ToServer::Change(change));
        drop(cache);
        // Not before: it may be what was just made that is given up.
        self.relieve(&mut self.cache.write());
        Ok(Attempt::Made(answer, files))
    }

    /// The leases that the operation is known to need, all of which are had or asked for at once.
    fn foreseen(&self, call: &Call) -> Vec<Want> {
        let mut wants = Vec::new();
        let mut dir = |parent: &FileId, name: &[u8]| {
            let at = dirent::position(name, self.identity.seed);
            wants.push(KeyRange::attributes(*parent));
            wants.push(KeyRange::key(parent.key(Kind::DIRENT, at)));
        };
        match call {
            Call::Create { parent, name, .. }
            | Call::Mknod { parent, name, .. }
            | Call::Mkdir { parent, name, .. }
            | Call::Symlink { parent, name, .. }
            | Call::Unlink { parent, name }
            | Call::Rmdir { parent, name } => dir(parent, name),
            Call::Rename { source_parent, source_name, target_parent, target_name, .. } => {
                dir(source_parent, source_name);
                dir(target_parent, target_name);
            }
            Call::Link { file, parent, name } => {
                dir(parent, name);
                wants.push(KeyRange::attributes(*file));
            }
            _ => {}
        }
        wants.into_iter().map(|range| (range, LockMode::Exclusive)).collect()
    }

    /// Acquires what is missing, and what is known to be missing soon. False: it is better left
    /// to the server.
    fn acquire_for_change(
        &self,
        caller: &Caller,
        call: &Call,
        needed: &mut Vec<Want>,
        missing: Vec<Want>,
    ) -> Result<bool> {
        let now = self.clock.monotonic();
        let is_contended = |want: &Want| self.contention.is_contended(want.0.file(), now);
        if missing.iter().any(is_contended) {
            return Ok(false);
        }
        let siblings = self.siblings(call, &missing);
        let (siblings, welcome) = match self.goes_on_removing(call) {
            true => (siblings, Vec::new()),
            false => (Vec::new(), siblings),
        };
        for want in missing.into_iter().chain(siblings) {
            if !needed.contains(&want) {
                needed.push(want);
            }
        }
        let missing: Vec<Want> = {
            let cache = self.cache.read();
            needed.iter().filter(|want| !cache.covers_as(&want.0, want.1)).copied().collect()
        };
        let files = self.begin_acquiring_bytes(&missing);
        let acquire = Call::Acquire { needed: missing, welcome, prefetch: Prefetch::Names };
        let acquired = self.call(caller, acquire);
        self.ended_acquiring_bytes(&acquired, &files);
        match acquired {
            Ok(_) => Ok(true),
            // The server has its own words for what it is then asked to do.
            Err(Error::Stale | Error::AttributeTooLarge | Error::AccessDenied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether names of the same directory were removed before this one.
    fn goes_on_removing(&self, call: &Call) -> bool {
        let (Call::Unlink { parent, .. } | Call::Rmdir { parent, .. }) = call else {
            return false;
        };
        self.removed_from.lock().replace(*parent) == Some(*parent)
    }

    /// Who removes one name of a directory goes on with the others: leases on all names, and on
    /// what stands behind the removed one.
    fn siblings(&self, call: &Call, missing: &[Want]) -> Vec<Want> {
        let (Call::Unlink { parent, name } | Call::Rmdir { parent, name }) = call else {
            return Vec::new();
        };
        let at = dirent::position(name, self.identity.seed);
        let cache = self.cache.read();
        let names = KeyRange::names(*parent);
        let behind = KeyRange::new(parent.key(Kind::DIRENT, at), names.last());
        let mut wants = vec![(names, LockMode::Exclusive)];
        wants.retain(|want| !cache.covers_as(&want.0, want.1));
        for key in behind.iter().flat_map(|range| cache.keys(range)) {
            let Some(mut entries) = cache.item(key).and_then(|item| Dirents::decode(item).ok())
            else {
                continue;
            };
            while let Ok(Some(entry)) = entries.next_object() {
                let file = FileId::new(parent.subvol, entry.ino);
                let want = (KeyRange::attributes(file), LockMode::Exclusive);
                if !cache.covers_as(&want.0, want.1) && !missing.contains(&want) {
                    wants.push(want);
                }
            }
            if wants.len() >= SIBLINGS {
                break;
            }
        }
        wants
    }

    fn fetch_numbers(&self, of: SubvolId) -> Result<()> {
        match self.call(&Caller::superuser(), Call::Numbers { of, count: NUMBERS })? {
            Answer::Number(first) => {
                self.pending.give_numbers(of, first..first + u64::from(NUMBERS));
                Ok(())
            }
            _ => Err(nonsense()),
        }
    }

    /// The right to change bytes of these files is asked for. Until it has come, what was yielded
    /// before cannot be told from it.
    pub(super) fn begin_acquiring_bytes(&self, wants: &[Want]) -> Vec<FileId> {
        let is_bytes = |(range, _): &&Want| range.kind() == Some(Kind::DATA);
        let files: Vec<FileId> =
            wants.iter().filter(is_bytes).map(|(range, _)| range.file()).collect();
        if !files.is_empty() {
            // Whoever yields is through, and has said so before this is asked.
            let _order = self.order.lock();
            self.acquiring.lock().begin(&files);
        }
        files
    }

    /// They have come, or have not. Without an answer they may still come.
    pub(super) fn ended_acquiring_bytes(&self, acquired: &Result<Answer>, files: &[FileId]) {
        let is_answered = !matches!(acquired, Err(Error::Stop(Stop::Map(_))));
        self.acquiring.lock().end(files, is_answered);
    }

    /// Before pages of the file are read that the kernel keeps: who may change bytes has none of
    /// them cached. Not while more of that right is on its way, which the server would take for
    /// yielded, too; then it asks for it back.
    pub(super) fn yield_bytes(&self, file: FileId) {
        if !self.cache.read().has_bytes(file) {
            return;
        }
        let _order = self.order.lock();
        if self.acquiring.lock().may_come(file) {
            return;
        }
        let is_yielded = {
            let mut cache = self.cache.write();
            !self.mapped.has_pages(file) && cache.yield_bytes(file)
        };
        if is_yielded {
            self.calls.tell(ToServer::Yielded(vec![KeyRange::bytes_from(file, 0)]));
        }
    }

    /// Changes that were made here could not be made at the server: nothing that was found out
    /// since can be relied on. The leases stay until the server wants them back.
    pub(super) fn changes_failed(&self, refused: Vec<Refused>) {
        let Some(first) = refused.first() else { return };
        self.report(&format!("a change could not be made at the server: {}", first.error));
        let reason = format!("the server could not make them: {}", first.error);
        let _forgetting = self.forget_mapped();
        self.remember_paths();
        refused.iter().for_each(|one| self.unsynced.lose_files(&one.files));
        self.lose_changes(refused.into_iter().filter_map(|one| one.change).collect(), reason);
        let ranges = {
            let _order = self.order.lock();
            let mut cache = self.cache.write();
            let ranges = cache.ranges();
            cache.clear_all();
            self.listings.revoke_all();
            ranges
        };
        self.gate.barrier();
        self.kernel_forgets(&ranges);
    }
}

/// Whether what is moved gets another parent, which is in its own listing if it is a directory.
fn moves_elsewhere(call: &Call) -> bool {
    match call {
        Call::Rename { source_parent, target_parent, .. } => source_parent != target_parent,
        _ => false,
    }
}

/// What of an object was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Bytes,
    Items,
}

/// What the change does to these objects.
fn marks(call: &Call, files: Vec<FileId>) -> Vec<(FileId, Mark)> {
    let mark = |file: FileId| match call {
        Call::Write { .. } | Call::Fallocate { .. } | Call::Copy { .. } => (file, Mark::Bytes),
        Call::Setattr { changes, .. } if changes.size.is_some() => (file, Mark::Bytes),
        Call::Create { parent, .. } if file != *parent => (file, mark_of_made(call)),
        _ => (file, Mark::Items),
    };
    files.into_iter().map(mark).collect()
}

/// What the change does to the object that it makes or opens.
fn mark_of_made(call: &Call) -> Mark {
    match call {
        Call::Create { request, .. } if request.truncate.is_some() => Mark::Bytes,
        _ => Mark::Items,
    }
}

/// Whether the change may take a name from an object.
fn is_removal(call: &Call) -> bool {
    matches!(call, Call::Unlink { .. } | Call::Rmdir { .. } | Call::Rename { .. })
}

/// Where the change is: all objects of one are in one subvolume.
fn subvolume(call: &Call) -> SubvolId {
    call.files().first().map_or(SubvolId(0), |file| file.subvol)
}

/// Bytes of a file that the change brings.
pub(super) fn payload(call: &Call) -> u64 {
    match call {
        Call::Write { bytes, .. } => bytes.len() as u64,
        _ => 0,
    }
}
