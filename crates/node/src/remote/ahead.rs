//! Directories that are fetched before somebody lists them.
//!
//! Who walks through a tree lists directories that he has found in those which he has just listed.
//! Then the others that are known are asked for, some with each call and some calls at a time,
//! while he looks at the first ones; and when they have come, those below them. What nobody has
//! listed yet of what was fetched is bounded, so the walker is not left far behind, nor is much
//! fetched in vain when he stops.
//!
//! ```text
//!   known (found in what was listed or fetched) --> asked for --> fetched --> listed
//! ```
//!
//! What is fetched so is leased only if nobody stands against it: it is a guess.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::format::dirent::Dirents;
use gabion_fs::format::inode::Inode;
use gabion_fs::{Caller, FileType, Result};
use gabion_link::cache::Cache;
use gabion_link::message::{Call, Prefetch};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Kind, LockMode};

use super::RemoteFs;

/// Directories that were listed last: the parents of those that a walk comes to.
const LISTED_MAX: usize = 64;
/// From this many directories in a row on it is a walk.
const STEPS: u32 = 2;
/// How often the number of steps is doubled.
const IN_VAIN_MAX: u32 = 8;
/// Directories that one call asks for.
const BATCH: usize = 16;
/// Calls under way.
const CALLS_MAX: usize = 4;
/// Directories that were fetched, or are, and not listed.
const AHEAD_MAX: usize = 256;
/// Directories that are known.
const KNOWN_MAX: usize = 4096;
/// How long somebody waits for what is being fetched before he asks himself.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AskedFor,
    Fetched,
}

#[derive(Default)]
struct State {
    listed: VecDeque<FileId>,
    /// Directories in a row that were found in those that were listed before them.
    steps: u32,
    /// How often in a row nothing came that was asked for.
    in_vain: u32,
    known: VecDeque<FileId>,
    ahead: BTreeMap<FileId, Stage>,
    calls: usize,
    /// What has just come, and who had it fetched.
    come: Vec<(Caller, Vec<FileId>)>,
}

impl State {
    /// What the next call is to ask for.
    fn next_batch(&mut self, cache: &Cache) -> Vec<FileId> {
        let mut batch = Vec::new();
        while batch.len() < BATCH && self.ahead.len() < AHEAD_MAX {
            let Some(dir) = self.known.pop_front() else { break };
            if self.ahead.contains_key(&dir) || cache.covers(&KeyRange::names(dir)) {
                continue;
            }
            self.ahead.insert(dir, Stage::AskedFor);
            batch.push(dir);
        }
        batch
    }

    /// A call was answered, with these directories in what came. If nothing came, others have it
    /// to themselves, and probably more: the walk has to go further before the next guess.
    fn has_come(&mut self, is_there: bool, below: Vec<FileId>) {
        match is_there {
            true => self.in_vain = 0,
            false => {
                self.in_vain = (self.in_vain + 1).min(IN_VAIN_MAX);
                self.steps = 0;
                self.known.clear();
            }
        }
        self.come_to(below);
    }

    /// The walk goes on below these, before all else that is known.
    fn come_to(&mut self, dirs: Vec<FileId>) {
        for dir in dirs.into_iter().rev() {
            self.known.push_front(dir);
        }
        self.known.truncate(KNOWN_MAX);
    }
}

/// The walks through one mount.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    fetched: Condvar,
}

impl Ahead {
    /// Somebody is going to list a directory. If it is being fetched, waits for it.
    fn await_fetched(&self, dir: FileId) {
        let mut state = self.state.lock();
        while state.ahead.get(&dir) == Some(&Stage::AskedFor) {
            if self.fetched.wait_for(&mut state, PATIENCE).timed_out() {
                break;
            }
        }
        state.ahead.remove(&dir);
    }

    /// Somebody has listed a directory of this parent. Whether that is a step of a walk.
    fn has_listed(&self, dir: FileId, parent: Option<FileId>) -> bool {
        let mut state = self.state.lock();
        let is_below = parent.is_some_and(|parent| state.listed.contains(&parent));
        state.steps = if is_below { state.steps + 1 } else { 0 };
        if !is_below {
            state.known.clear();
            state.ahead.retain(|_, stage| *stage == Stage::AskedFor);
        }
        if !state.listed.contains(&dir) {
            state.listed.push_back(dir);
        }
        if state.listed.len() > LISTED_MAX {
            state.listed.pop_front();
        }
        state.steps >= STEPS << state.in_vain
    }

    /// A call has ended that asked for `dirs`, which may be there now.
    fn end(&self, caller: Caller, dirs: Vec<FileId>, is_answered: bool) {
        let mut state = self.state.lock();
        state.calls -= 1;
        for dir in &dirs {
            // Unless somebody did not wait for it.
            if let Some(stage) = state.ahead.get_mut(dir) {
                *stage = Stage::Fetched;
            }
        }
        if is_answered {
            state.come.push((caller, dirs));
        }
        drop(state);
        self.fetched.notify_all();
    }
}

impl RemoteFs {
    /// Somebody is going to list a directory from its beginning. Not inside the gate.
    pub(super) fn begins_to_list(&self, dir: FileId) {
        self.ahead.await_fetched(dir);
    }

    /// Somebody has listed a directory from its beginning. Fetches what he will list next.
    pub(super) fn has_listed(&self, caller: &Caller, dir: FileId) {
        let cache = self.cache.read();
        let parent = parent(&cache, dir);
        if !self.ahead.has_listed(dir, parent) {
            return;
        }
        let siblings = parent.map_or_else(Vec::new, |parent| subdirectories(&cache, parent));
        let below = subdirectories(&cache, dir);
        drop(cache);
        {
            let mut state = self.ahead.state.lock();
            let known: BTreeSet<FileId> = state.known.iter().copied().collect();
            state.known.extend(siblings.into_iter().filter(|dir| !known.contains(dir)));
            state.come_to(below);
        }
        self.fetch_ahead(caller);
    }

    fn fetch_ahead(&self, caller: &Caller) {
        loop {
            let batch = {
                let cache = self.cache.read();
                let mut state = self.ahead.state.lock();
                if state.calls >= CALLS_MAX || !self.is_alive() {
                    return;
                }
                let batch = state.next_batch(&cache);
                state.calls += usize::from(!batch.is_empty());
                batch
            };
            if batch.is_empty() {
                return;
            }
            let names = batch.iter().map(|dir| (KeyRange::names(*dir), LockMode::Shared));
            let call = Call::Acquire {
                needed: Vec::new(),
                welcome: names.collect(),
                prefetch: Prefetch::Children,
            };
            let (ahead, who) = (Arc::clone(&self.ahead), caller.clone());
            let end = move |outcome: Result<()>| ahead.end(who, batch, outcome.is_ok());
            self.call_aside(caller, call, Box::new(end));
        }
    }

    /// If something has come, has another thread go on below it.
    pub(super) fn go_on_ahead_later(&self) {
        if !self.ahead.state.lock().come.is_empty() {
            // Each time that it has done something it looks.
            self.revocations.later(Box::new(|| {}));
        }
    }

    /// Goes on below what has come.
    pub(super) fn go_on_ahead(&self) {
        let come = std::mem::take(&mut self.ahead.state.lock().come);
        for (caller, batch) in come {
            let cache = self.cache.read();
            let is_there = batch.iter().any(|dir| cache.covers(&KeyRange::names(*dir)));
            let below = batch.iter().flat_map(|dir| subdirectories(&cache, *dir)).collect();
            drop(cache);
            self.ahead.state.lock().has_come(is_there, below);
            self.fetch_ahead(&caller);
        }
    }
}

fn parent(cache: &Cache, dir: FileId) -> Option<FileId> {
    let inode = Inode::decode(cache.item(dir.key(Kind::INODE, 0))?).ok()?;
    Some(FileId::new(dir.subvol, inode.parent))
}

/// The directories in a directory, as far as they are known.
fn subdirectories(cache: &Cache, dir: FileId) -> Vec<FileId> {
    let mut found = Vec::new();
    for item in cache.keys(&KeyRange::names(dir)).filter_map(|key| cache.item(key)) {
        let Ok(mut entries) = Dirents::decode(item) else { continue };
        while let Ok(Some(entry)) = entries.next_object() {
            if entry.file_type == FileType::Directory {
                found.push(FileId::new(dir.subvol, entry.ino));
            }
        }
    }
    found
}
