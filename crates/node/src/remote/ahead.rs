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
//! What is fetched so is leased only if nobody stands against it: it is a guess. So is the order:
//! of the directories in one, the walk comes to the first one first, or to the last one if it has
//! begun so.

use std::collections::{BTreeMap, VecDeque};
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

/// Directories with others in them that were listed last: the parents of those that a walk comes
/// to.
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

/// What is in a directory that was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Directories,
    /// Nothing that a walk could go on with.
    NoDirectories,
}

/// A directory with others in it that was listed.
struct Listed {
    dir: FileId,
    /// Those in it are known.
    is_spread: bool,
}

#[derive(Default)]
struct State {
    /// Those in which something was listed most recently are the last ones.
    listed: VecDeque<Listed>,
    /// It is the last directory of several that is listed first.
    is_backward: bool,
    /// Some that were known are not any more.
    is_cut: bool,
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
        if self.ahead.len() + BATCH > AHEAD_MAX {
            // Not one by one, each time that one is listed.
            return batch;
        }
        while batch.len() < BATCH {
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
                self.forget_known();
            }
        }
        self.come_to(below);
    }

    fn forget_known(&mut self) {
        self.known.clear();
        self.is_cut = false;
        self.listed.iter_mut().for_each(|listed| listed.is_spread = false);
    }

    /// A walk goes on with what is in the last one of what was listed, and then in those before it.
    /// What is in each is added once.
    fn spread(&mut self, cache: &Cache) {
        if self.is_cut && self.known.is_empty() {
            self.forget_known();
        }
        let mut next = Vec::new();
        for index in (0..self.listed.len()).rev() {
            if self.listed[index].is_spread {
                continue;
            }
            self.listed[index].is_spread = true;
            let mut dirs = subdirectories(cache, self.listed[index].dir);
            if let [first, .., last] = dirs[..] {
                let is_there = |dir: FileId| cache.covers(&KeyRange::names(dir));
                match (is_there(first), is_there(last)) {
                    (true, false) => self.is_backward = false,
                    (false, true) => self.is_backward = true,
                    _ => {}
                }
            }
            if self.is_backward {
                dirs.reverse();
            }
            next.extend(dirs);
        }
        self.come_to(next);
    }

    /// The walk goes on below these, before all else that is known.
    fn come_to(&mut self, dirs: Vec<FileId>) {
        for dir in dirs.into_iter().rev() {
            self.known.push_front(dir);
        }
        self.is_cut |= self.known.len() > KNOWN_MAX;
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
    fn has_listed(&self, dir: FileId, parent: Option<FileId>, content: Content) -> bool {
        let mut state = self.state.lock();
        let of_parent = parent
            .and_then(|parent| state.listed.iter().position(|listed| listed.dir == parent))
            .and_then(|index| state.listed.remove(index));
        match of_parent {
            Some(parent) => {
                state.steps += 1;
                state.listed.push_back(parent);
            }
            None => {
                state.steps = 0;
                state.forget_known();
                state.ahead.retain(|_, stage| *stage == Stage::AskedFor);
            }
        }
        let is_new = state.listed.iter().all(|listed| listed.dir != dir);
        if is_new && content == Content::Directories {
            state.listed.push_back(Listed { dir, is_spread: false });
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
        let content = match subdirectories(&cache, dir).is_empty() {
            true => Content::NoDirectories,
            false => Content::Directories,
        };
        if !self.ahead.has_listed(dir, parent, content) {
            return;
        }
        self.ahead.state.lock().spread(&cache);
        drop(cache);
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

    /// Goes on below what has come.
    pub(super) fn go_on_ahead(&self) {
        let come = std::mem::take(&mut self.ahead.state.lock().come);
        for (caller, batch) in come {
            let cache = self.cache.read();
            let is_there = batch.iter().any(|dir| cache.covers(&KeyRange::names(*dir)));
            let mut state = self.ahead.state.lock();
            let is_backward = state.is_backward;
            let below = batch.iter().flat_map(|dir| {
                let mut dirs = subdirectories(&cache, *dir);
                if is_backward {
                    dirs.reverse();
                }
                dirs
            });
            state.has_come(is_there, below.collect());
            drop(state);
            drop(cache);
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
