//! Names that the kernel keeps until it is told that they are no longer true, where others change
//! the filesystem, too.
//!
//! The kernel is told so by a new epoch, which waits for nobody. But it drops each name of an
//! earlier epoch that it comes across, whatever that stands for, and takes away what is mounted
//! there or below. So it matters whether something is mounted on the filesystem:
//!
//! ```text
//!                      nothing is                  something is
//!   a name is told     kept, and noted here        not kept: the kernel asks at each use, and goes
//!                                                  on with what it has if that is the same object
//!   it is not true     noted? a new epoch          noted? once it is expired
//!   any more
//! ```
//!
//! What was noted before something was mounted is expired, name by name, which takes nothing away.
//! That waits for whoever looks up or changes names of the same directory, who may wait for the
//! server, and that for this kernel. So a thread of its own does it, and who needs it waits for a
//! second at most: then there is a new epoch all the same, as a name that is not true is worse
//! than a mount that is gone.
//!
//! In a directory in which names are lost all the time none is kept for a while. That saves epochs,
//! each of which takes all names from the kernel, and also a mount that is just being made.
//!
//! What is mounted in the daemon's own namespace is known at once. In those of other processes, as
//! containers are, it is looked for now and then: there is nothing that would tell.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};
use gabion_fs::format::dirent::position;
use gabion_fuse::mountinfo::{MountTable, names_to_mounts};
use gabion_fuse::{NodeId, Notifier};
use gabion_link::range::KeyRange;
use gabion_map::FileId;

use crate::mounts::mounts_elsewhere;

/// Memory of the mount for each name that is noted at most, in bytes: one takes some eighty.
const NAME_BYTES: u64 = 256;
const NAMES_MIN: u64 = 4096;
/// How long a name that is not true any more may wait for being expired.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it takes at most until programs have made use of what their kernel was told. Before
/// that an expired name could be taken for a new one.
const SETTLING: Duration = Duration::from_millis(100);
/// Losses of kept names that make a directory busy, with no longer than that between two of them.
const BUSY_LOSSES: u32 = 4;
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long it is busy after the last loss of a name.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// Directories of which losses are remembered.
const LOSSES_MAX: usize = 1024;
/// How often other namespaces are looked at, while the kernel keeps names.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// How much longer than a look the time between two of them is at least.
const ELSEWHERE_PART: u32 = 100;
/// Names that are expired between two looks at what is wanted first.
const AT_ONCE: usize = 256;

/// The directory, the place of the name in it, the name.
type Name = (FileId, u64, Box<[u8]>);

/// The names that the kernel of one mount keeps.
pub struct CachedNames {
    names_max: usize,
    kernel: OnceLock<Kernel>,
    state: Mutex<State>,
    expired: Condvar,
}

struct Kernel {
    notifier: Notifier,
    /// Of the places of names.
    seed: u64,
    device: (u32, u32),
    /// Nothing where mounts cannot be listed.
    mounts: Option<MountTable>,
}

#[derive(Default)]
struct State {
    /// What the kernel may keep, by the numbers by which it knows the directories.
    kept: BTreeMap<Name, NodeId>,
    losses: BTreeMap<FileId, Loss>,
    /// The names on the ways to what is mounted on the filesystem, and those in other namespaces.
    ways: [BTreeSet<OsString>; 2],
    /// Since when something is known to be mounted on it, if something is.
    mounted: Option<Instant>,
    /// How often nothing was mounted on it any more.
    round: u64,
    /// What somebody waits for.
    wanted: Vec<KeyRange>,
    is_expiring: bool,
}

/// That names of a directory were lost.
struct Loss {
    last: Instant,
    /// Soon after each other.
    count: u32,
}

impl State {
    fn is_busy(&self, dir: FileId) -> bool {
        let is_busy = |loss: &Loss| loss.count >= BUSY_LOSSES && loss.last.elapsed() < BUSY_FOR;
        self.losses.get(&dir).is_some_and(is_busy)
    }

    /// Names of a directory are no longer true. `is_kept`: also some that the kernel keeps.
    fn lose(&mut self, dir: FileId, is_kept: bool) {
        let was_busy = self.is_busy(dir);
        if !is_kept && !was_busy {
            return;
        }
        if self.losses.len() >= LOSSES_MAX && !self.losses.contains_key(&dir) {
            self.losses.clear();
        }
        let loss = self.losses.entry(dir).or_insert(Loss { last: Instant::now(), count: 0 });
        loss.count = match was_busy || loss.last.elapsed() < BUSY_PAUSE {
            true => loss.count.saturating_add(1),
            false => 1,
        };
        loss.last = Instant::now();
    }

    fn keeps(&self, ranges: &[KeyRange]) -> bool {
        ranges.iter().any(|range| self.within(range).next().is_some())
    }

    fn within(&self, range: &KeyRange) -> impl Iterator<Item = (&Name, &NodeId)> {
        let dir = range.file();
        let names = range.intersection(&KeyRange::names(dir));
        let names = names.map(|names| (names.first().at, names.last().at));
        names.into_iter().flat_map(move |(first, last)| {
            let from = (dir, first, Box::default());
            self.kept.range(from..).take_while(move |((of, at, _), _)| *of == dir && *at <= last)
        })
    }

    /// Some names, beginning with those that somebody waits for.
    fn some(&mut self) -> Vec<(Name, NodeId)> {
        let own = |(name, node): (&Name, &NodeId)| (name.clone(), *node);
        let wanted = std::mem::take(&mut self.wanted);
        let first: Vec<_> = wanted.iter().flat_map(|range| self.within(range)).map(own).collect();
        match first.is_empty() {
            true => self.kept.iter().take(AT_ONCE).map(own).collect(),
            false => first,
        }
    }

    fn begin_epoch(&mut self, notifier: &Notifier) {
        // In this order: what is told in between is noted in vain.
        self.kept.clear();
        // Of a mount that is gone nothing is left to be forgotten.
        let _ = notifier.inc_epoch();
    }
}

impl CachedNames {
    /// With so much memory for all of the mount, in bytes.
    pub(super) fn new(memory: u64) -> Self {
        let names_max = (memory / NAME_BYTES).max(NAMES_MIN) as usize;
        let (kernel, state, expired) = Default::default();
        Self { names_max, kernel, state, expired }
    }

    /// From now on names are noted. The mount has this device number, and `seed` says where names
    /// are in directories.
    pub(super) fn begin(
        self: &Arc<Self>,
        notifier: Notifier,
        device: (u32, u32),
        seed: u64,
    ) -> io::Result<Watch> {
        let kernel = Kernel { notifier, seed, device, mounts: MountTable::open().ok() };
        let _ = self.kernel.set(kernel);
        Watch::start(Arc::clone(self))
    }

    /// Whether the kernel may keep what it is going to be told of a name in the directory that it
    /// knows as `node`.
    pub(super) fn keep(self: &Arc<Self>, dir: FileId, node: NodeId, name: &[u8]) -> bool {
        // Who keeps the kernel's names true by himself needs no notes.
        let Some(kernel) = self.kernel.get() else { return true };
        let name = (dir, position(name, kernel.seed), name.into());
        let mut state = self.state.lock();
        if state.kept.len() >= self.names_max {
            self.look(kernel, &mut state);
            if state.mounted.is_none() {
                state.begin_epoch(&kernel.notifier);
            }
        }
        let may_keep = state.mounted.is_none() && !state.is_busy(dir);
        if may_keep {
            state.kept.insert(name, node);
        }
        may_keep
    }

    /// The kernel is going to move what it keeps from one name to another, in a directory that it
    /// knows as `node`, and keeps it there just as long. False: it keeps nothing.
    pub(super) fn moved(&self, from: (FileId, &[u8]), to: (FileId, &[u8]), node: NodeId) -> bool {
        let Some(kernel) = self.kernel.get() else { return false };
        let place = |(dir, name): (FileId, &[u8])| (dir, position(name, kernel.seed), name.into());
        let mut state = self.state.lock();
        let is_kept = state.kept.contains_key(&place(from));
        if is_kept {
            state.kept.insert(place(to), node);
        }
        is_kept
    }

    /// Nobody will tell when what the kernel moves is no longer true. While something is mounted it
    /// is expired soon, as all the rest.
    pub(super) fn forget_moved(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut state = self.state.lock();
        if state.mounted.is_none() {
            state.begin_epoch(&kernel.notifier);
        }
    }

    /// Names in these ranges are no longer true, and no answer that says so is on its way any more.
    /// True: the kernel has forgotten all names.
    pub fn forget(self: &Arc<Self>, ranges: &[KeyRange]) -> bool {
        let mut state = self.state.lock();
        let mut dirs: BTreeMap<FileId, bool> = BTreeMap::new();
        for range in ranges {
            *dirs.entry(range.file()).or_default() |= state.within(range).next().is_some();
        }
        dirs.into_iter().for_each(|(dir, is_kept)| state.lose(dir, is_kept));
        drop(state);
        self.forget_if(ranges, |state| state.keeps(ranges))
    }

    /// The same of all names.
    pub fn forget_all(self: &Arc<Self>) {
        self.forget_if(&[], |state| !state.kept.is_empty());
    }

    fn forget_if(self: &Arc<Self>, ranges: &[KeyRange], is_kept: impl Fn(&State) -> bool) -> bool {
        let Some(kernel) = self.kernel.get() else { return false };
        let mut state = self.state.lock();
        if !is_kept(&state) {
            return false;
        }
        self.look(kernel, &mut state);
        let end = Instant::now() + PATIENCE;
        while state.mounted.is_some() {
            state.wanted.extend(ranges);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.expired.wait_for(&mut state, left);
            if !is_kept(&state) {
                return false;
            }
        }
        state.begin_epoch(&kernel.notifier);
        true
    }

    /// Whether something is mounted on the filesystem.
    pub fn has_mounts(self: &Arc<Self>) -> bool {
        let Some(kernel) = self.kernel.get() else { return false };
        let mut state = self.state.lock();
        self.look(kernel, &mut state);
        state.mounted.is_some()
    }

    /// Whether names like this are on the way to something that is mounted.
    pub fn leads_to_mount(&self, name: &[u8]) -> bool {
        let state = self.state.lock();
        state.ways.iter().any(|names| names.contains(OsStr::from_bytes(name)))
    }

    /// Looks at what is mounted, if that has changed.
    fn look(self: &Arc<Self>, kernel: &Kernel, state: &mut State) {
        let Some(table) = &kernel.mounts else { return };
        if table.has_changed().unwrap_or(true)
            && let Ok(mounts) = table.mounts()
        {
            self.found(state, 0, names_to_mounts(kernel.device, &mounts));
        }
    }

    /// Looks at what is mounted in namespaces of other processes. May wait for any process.
    fn look_elsewhere(self: &Arc<Self>) {
        let Some(kernel) = self.kernel.get() else { return };
        let state = self.state.lock();
        if state.kept.is_empty() && state.ways[1].is_empty() {
            return;
        }
        drop(state);
        let names = mounts_elsewhere(|mounts| names_to_mounts(kernel.device, &mounts));
        self.found(&mut self.state.lock(), 1, names.into_iter().flatten().collect());
    }

    /// What was found here (0), or elsewhere (1).
    fn found(self: &Arc<Self>, state: &mut State, at: usize, names: BTreeSet<OsString>) {
        state.ways[at] = names;
        let has_mounts = state.ways.iter().any(|names| !names.is_empty());
        match (state.mounted, has_mounts) {
            (None, true) => state.mounted = Some(Instant::now()),
            (Some(_), false) => {
                state.mounted = None;
                state.round += 1;
                self.expired.notify_all();
            }
            (None, false) | (Some(_), true) => {}
        }
        if has_mounts && !state.kept.is_empty() && !state.is_expiring {
            let own = Arc::clone(self);
            let started = thread::Builder::new().name("gabion-expire".to_owned());
            state.is_expiring = started.spawn(move || own.expire()).is_ok();
        }
    }

    /// Has the kernel ask for all names that it keeps, while something is mounted.
    fn expire(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        loop {
            let mut state = self.state.lock();
            let Some(mounted) = state.mounted.filter(|_| !state.kept.is_empty()) else {
                state.is_expiring = false;
                return;
            };
            let early = SETTLING.saturating_sub(mounted.elapsed());
            if !early.is_zero() {
                drop(state);
                thread::sleep(early);
                continue;
            }
            let (names, round) = (state.some(), state.round);
            drop(state);
            for ((_, _, name), node) in &names {
                // Of a mount that is gone nothing is left.
                let _ = kernel.notifier.expire_entry(*node, name);
            }
            let mut state = self.state.lock();
            if state.round == round {
                for (name, _) in &names {
                    state.kept.remove(name);
                }
            }
            self.expired.notify_all();
        }
    }
}

/// Watches what is mounted, so that names are expired before somebody has to wait for it. Nobody
/// waits for its end.
pub(super) struct Watch {
    _end: PipeWriter,
}

impl Watch {
    fn start(names: Arc<CachedNames>) -> io::Result<Self> {
        let (ended, end) = io::pipe()?;
        let table = MountTable::open();
        let run = move || {
            let Ok(table) = table else { return };
            let (mut looked, mut pause) = (Instant::now(), ELSEWHERE);
            while table.wait(ended.as_fd(), ELSEWHERE).unwrap_or(false) {
                names.has_mounts();
                if looked.elapsed() >= pause {
                    let begun = Instant::now();
                    names.look_elsewhere();
                    looked = Instant::now();
                    pause = ELSEWHERE.max((looked - begun) * ELSEWHERE_PART);
                }
            }
        };
        thread::Builder::new().name("gabion-mounts".to_owned()).spawn(run)?;
        Ok(Self { _end: end })
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::{Ino, SubvolId};
    use gabion_map::Kind;

    use super::*;

    fn dir(number: u64) -> FileId {
        FileId::new(SubvolId(1), Ino(number))
    }

    #[test]
    fn a_name_is_lost_with_ranges_that_it_is_in() {
        let mut state = State::default();
        for (number, at, name) in [(5, 32, "a"), (5, 32, "b"), (5, 64, "c"), (7, 96, "d")] {
            state.kept.insert((dir(number), at, name.as_bytes().into()), NodeId(number));
        }
        let key = |number, at| KeyRange::key(dir(number).key(Kind::DIRENT, at));
        let names = |range: KeyRange| {
            let names = state.within(&range).map(|((_, _, name), _)| name.clone());
            String::from_utf8(names.collect::<Vec<_>>().concat()).unwrap()
        };
        assert_eq!(names(key(5, 32)), "ab");
        assert_eq!((names(key(5, 48)), names(key(7, 32))), Default::default());
        assert_eq!(names(KeyRange::names(dir(5))), "abc");
        assert_eq!(names(KeyRange::everything(dir(7))), "d");
        assert_eq!(names(KeyRange::attributes(dir(5))), "");
        state.wanted.push(key(5, 64));
        assert_eq!(state.some(), [((dir(5), 64, b"c"[..].into()), NodeId(5))]);
        assert_eq!(state.some().len(), 4);
    }

    #[test]
    fn a_directory_is_busy_when_kept_names_are_lost_one_after_the_other() {
        let mut state = State::default();
        (0..2 * BUSY_LOSSES).for_each(|_| state.lose(dir(5), false));
        assert!(!state.is_busy(dir(5)));
        (1..BUSY_LOSSES).for_each(|_| state.lose(dir(5), true));
        assert!(!state.is_busy(dir(5)));
        state.lose(dir(5), true);
        assert!(state.is_busy(dir(5)) && !state.is_busy(dir(7)));
    }
}
