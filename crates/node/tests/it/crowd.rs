//! Threads that use one filesystem at the same moment, with little room on it, beside its
//! background loops and snapshots that come and go. Each has files of its own and knows what is in
//! them. Crashes are tried meanwhile.
//!
//! The order of what threads do is the machine's, so that a seed says only what they try to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gabion_base::rng::Rng;
use gabion_base::sync::Mutex;
use gabion_fs::{
    Access, Changes, CopyRequest, Error, FileType, OpenRequest, Privileges, SizeRule, SpaceRequest,
    WriteAt,
};
use gabion_map::audit::audit;
use gabion_map::format::subvolume::Most;
use gabion_map::{FileId, MapError, OpenMode, Payload, Stop};
use gabion_node::{Filesystem, Settings};

use crate::shared::GLANCE;
use crate::world::{MIB, World};

const THREADS: usize = 6;
const FILES: usize = 3;
const STEPS: usize = 80;
const BLOCK: usize = 4096;

/// The content of a file; `None`: there is none of that name.
type State = Option<Arc<Vec<u8>>>;

/// What a file was since the round began, and which of that was made durable.
struct History {
    states: Vec<State>,
    durable: usize,
}

impl History {
    fn now(&self) -> State {
        self.states.last().expect("there is a first one").clone()
    }
}

/// A name that one thread uses.
struct Slot {
    name: String,
    history: Mutex<History>,
}

impl Slot {
    fn new(name: String) -> Self {
        Self { name, history: Mutex::new(History { states: vec![None], durable: 0 }) }
    }

    fn now(&self) -> State {
        self.history.lock().now()
    }

    /// Does what makes `then` of the file. Whether there was room for it.
    fn change(&self, then: State, run: impl FnOnce() -> gabion_fs::Result<()>) -> bool {
        self.history.lock().states.push(then);
        match run() {
            Ok(()) => true,
            Err(Error::Stop(Stop::Map(MapError::NoSpace | MapError::OverQuota))) => {
                let history = &mut *self.history.lock();
                let before = history.states[history.states.len() - 2].clone();
                history.states.push(before);
                false
            }
            Err(error) => panic!("{}: {error}", self.name),
        }
    }
}

/// One of the threads.
struct Worker<'a> {
    world: &'a World,
    slots: &'a [Slot],
    open: Vec<Option<FileId>>,
    /// Of files.
    size_max: u64,
    rng: Rng,
}

impl Worker<'_> {
    fn fs(&self) -> &dyn Filesystem {
        &*self.world.fs
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            let index = self.rng.below(self.slots.len() as u64) as usize;
            match self.open[index] {
                None => self.create(index),
                Some(file) => self.step(index, file),
            }
        }
        for file in self.open.iter().flatten() {
            self.fs().release(*file);
        }
    }

    fn create(&mut self, index: usize) {
        let slot = &self.slots[index];
        let (fs, caller) = (self.fs(), &self.world.caller);
        let mut made = None;
        slot.change(Some(Arc::default()), || {
            let (parent, name) = (self.world.root(), slot.name.as_bytes());
            let file = fs.mknod(caller, parent, name, FileType::Regular, 0o644, 0)?.file;
            fs.open_file(caller, file, &OpenRequest { access: Access::WRITE, truncate: None })?;
            fs.forget(file, 1);
            made = Some(file);
            Ok(())
        });
        self.open[index] = made;
    }

    fn step(&mut self, index: usize, file: FileId) {
        let slot = &self.slots[index];
        let content = slot.now().expect("it is open");
        let (fs, caller, keep) =
            (&*self.world.fs as &dyn Filesystem, &self.world.caller, Privileges::Keep);
        let mut offset = self.rng.below(self.size_max);
        let mut length = 1 + self.rng.below(self.size_max - offset);
        if self.rng.chance(1, 2) {
            (offset, length) = (offset / 4096 * 4096, length.div_ceil(4096) * 4096);
        }
        let end = (offset + length) as usize;
        let mut then = Vec::clone(&content);
        match self.rng.below(20) {
            0..8 => {
                let mut part = [0; 4096];
                self.rng.fill(&mut part);
                let bytes: Vec<u8> = part.into_iter().cycle().take(length as usize).collect();
                then.resize(then.len().max(end), 0);
                then[offset as usize..end].copy_from_slice(&bytes);
                slot.change(Some(Arc::new(then)), || {
                    let (at, payload) = (WriteAt::Offset(offset), Payload::Copied(&bytes));
                    fs.write(caller, file, at, &payload, keep).map(drop)
                });
            }
            8..10 => {
                then.resize(offset as usize, 0);
                let changes = Changes { size: Some((offset, keep)), ..Changes::default() };
                slot.change(Some(Arc::new(then)), || fs.setattr(caller, file, &changes).map(drop));
            }
            10 => {
                then.resize(then.len().max(end), 0);
                let request = SpaceRequest::Allocate(SizeRule::Extend);
                slot.change(Some(Arc::new(then)), || {
                    fs.fallocate(caller, file, request, offset, length, keep)
                });
            }
            11 => {
                let to = then.len().min(end);
                let from = to.min(offset as usize);
                then[from..to].fill(0);
                slot.change(Some(Arc::new(then)), || {
                    fs.fallocate(caller, file, SpaceRequest::Punch, offset, length, keep)
                });
            }
            12 => self.copy(index, file),
            13 => {
                slot.change(None, || fs.unlink(caller, self.world.root(), slot.name.as_bytes()));
                fs.release(file);
                self.open[index] = None;
            }
            14..17 => {
                let last = slot.history.lock().states.len() - 1;
                let synced = if self.rng.chance(1, 4) { fs.syncfs() } else { fs.fsync(file) };
                synced.unwrap_or_else(|error| panic!("{}: {error}", slot.name));
                slot.history.lock().durable = last;
            }
            _ => {
                let mut found = vec![0; length as usize];
                let count = self.world.fs.read(file, offset, &mut found);
                found.truncate(count.expect("it can be read"));
                let to = content.len().min(end);
                let from = to.min(offset as usize);
                assert!(found == content[from..to], "{}: at {offset}", slot.name);
            }
        }
    }

    /// Copies blocks of another file, which are shared then.
    fn copy(&mut self, index: usize, file: FileId) {
        let other = self.rng.below(self.slots.len() as u64) as usize;
        let Some(source) = self.open[other].filter(|_| other != index) else { return };
        let bytes = self.slots[other].now().expect("it is open");
        let slot = &self.slots[index];
        let before = slot.now().expect("it is open");
        let blocks = self.size_max / 4096;
        let (from, to) = (self.rng.below(blocks) * 4096, self.rng.below(blocks) * 4096);
        let length =
            ((1 + self.rng.below(16)) * 4096).min((bytes.len() as u64).saturating_sub(from));
        if length == 0 {
            return;
        }
        let mut copied = 0;
        while copied < length {
            let request = CopyRequest {
                source,
                source_offset: from + copied,
                target: file,
                target_offset: to + copied,
                length: length - copied,
            };
            let mut then = Vec::clone(&slot.now().unwrap_or(Arc::clone(&before)));
            let (start, end) = ((to + copied) as usize, (to + length) as usize);
            then.resize(then.len().max(end), 0);
            then[start..end].copy_from_slice(&bytes[(from + copied) as usize..][..end - start]);
            let mut count = 0;
            let is_done = slot.change(Some(Arc::new(then)), || {
                let keep = Privileges::Keep;
                count = self.world.fs.copy_range(&self.world.caller, &request, keep)?;
                Ok(())
            });
            if !is_done {
                return;
            }
            copied += count;
            if copied < length {
                // What came so far.
                let mut then = Vec::clone(&slot.now().expect("just pushed"));
                let end = (to + copied) as usize;
                let before = slot.history.lock().states.iter().rev().nth(1).cloned().flatten();
                let before = before.expect("it was open");
                for (at, byte) in then.iter_mut().enumerate().skip(end) {
                    *byte = before.get(at).copied().unwrap_or(0);
                }
                then.truncate(before.len().max(end));
                slot.history.lock().states.push(Some(Arc::new(then)));
            }
        }
    }
}

/// What a crash left of a file is, block by block, what it was when it was last made durable, or
/// later.
fn check_crashed(after: &World, slot: &Slot, durable: usize) {
    let history = slot.history.lock();
    let allowed = &history.states[durable..];
    let found = match after.lookup(&slot.name) {
        Ok(found) => after.read(found.file),
        Err(_) => return assert!(allowed.contains(&None), "{} is gone", slot.name),
    };
    let states: Vec<&Arc<Vec<u8>>> = allowed.iter().flatten().collect();
    let is_size = states.iter().any(|state| state.len() == found.len());
    let sizes: Vec<_> = states.iter().map(|state| state.len()).collect();
    assert!(is_size, "{}: {} bytes of {sizes:?}", slot.name, found.len());
    for (number, block) in found.chunks(BLOCK).enumerate() {
        let was = |state: &&Arc<Vec<u8>>| {
            let from = state.len().min(number * BLOCK);
            let part = &state[from..state.len().min(from + block.len())];
            block[..part.len()] == *part && block[part.len()..].iter().all(|byte| *byte == 0)
        };
        assert!(states.iter().any(was), "{}: block {number}", slot.name);
    }
}

/// Makes snapshots and removes them, and crashes.
fn disturb(world: &World, slots: &[Slot], is_over: &AtomicBool, rng: &mut Rng) {
    let map = world.fs.map();
    let of = world.root().subvol;
    let mut number = 0;
    while !is_over.load(Ordering::Acquire) {
        number += 1;
        match rng.below(4) {
            0 => {
                let name = format!("snapshot {number}");
                // There may be no room for one.
                let _ = map.create_snapshot(of, name.as_bytes(), number);
            }
            1 => {
                let ids: Vec<_> = map.snapshots(of).into_iter().map(|(id, _)| id).collect();
                map.remove(&ids).expect("nobody holds them");
            }
            2 => drop(map.commit()),
            _ => {
                let durable: Vec<_> =
                    slots.iter().map(|slot| slot.history.lock().durable).collect();
                let after = world.after_crash(OpenMode::ReadWrite);
                for (slot, durable) in slots.iter().zip(durable) {
                    check_crashed(&after, slot, durable);
                }
                after.fs.syncfs().expect("a working disk");
                let audit = audit(after.fs.map()).expect("readable");
                assert!(audit.is_exact(), "{audit:?}");
            }
        }
    }
    let ids: Vec<_> = map.snapshots(of).into_iter().map(|(id, _)| id).collect();
    map.remove(&ids).expect("nobody holds them");
}

/// Leaves so many bytes free.
fn leave(world: &World, bytes: u64) {
    let free = world.fs.map().space().available * 4096;
    let file = world.file("ballast", b"");
    let request = SpaceRequest::Allocate(SizeRule::Extend);
    let (fs, caller) = (&*world.fs as &dyn Filesystem, &world.caller);
    let length = free.saturating_sub(bytes).max(4096);
    fs.fallocate(caller, file, request, 0, length, Privileges::Keep).expect("that much is free");
    fs.forget(file, 1);
    fs.syncfs().expect("a working disk");
}

fn crowd(seed: u64) {
    let mut rng = Rng::new(seed);
    let world = World::new(64 * MIB);
    let settings = Settings { commit_interval: Duration::ZERO, ..Settings::default() };
    let world = World::open_with(world.disk, OpenMode::ReadWrite, settings);
    leave(&world, MIB + rng.below(4 * MIB));
    if rng.chance(1, 3) {
        let root = world.root().subvol;
        let used = world.fs.map().space().used;
        let most = Most { blocks: Some(used + rng.below(600)), objects: None };
        world.fs.map().set_quota(root, most).expect("a working disk");
    }
    let size_max = if rng.chance(1, 2) { 64 << 10 } else { 2 << 20 };
    let names = |thread| (0..FILES).map(move |file| format!("{thread} {file}"));
    let slots: Vec<Slot> = (0..THREADS).flat_map(names).map(Slot::new).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let fs = Arc::clone(&world.fs);
        let loops: Vec<_> = (fs.background().into_iter())
            .map(|(_, run)| scope.spawn(move || run(&|error| panic!("{error}"))))
            .collect();
        let workers: Vec<_> = slots
            .chunks(FILES)
            .map(|slots| {
                let rng = Rng::new(rng.next_u64());
                let worker =
                    Worker { world: &world, slots, open: vec![None; FILES], size_max, rng };
                scope.spawn(move || worker.run())
            })
            .collect();
        let mut rng = Rng::new(rng.next_u64());
        let (world, slots, is_over) = (&world, &slots, &is_over);
        let disturber = scope.spawn(move || disturb(world, slots, is_over, &mut rng));
        let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Release);
        let disturbed = disturber.join();
        while loops.iter().any(|thread| !thread.is_finished()) {
            world.fs.end_background();
            thread::sleep(GLANCE);
        }
        assert!(ends.iter().all(Result::is_ok) && disturbed.is_ok(), "seed {seed}");
    });
    world.fs.syncfs().expect("all that was accepted has room");
    let check = |world: &World| {
        for slot in &slots {
            let found = world.lookup(&slot.name).map(|found| world.read(found.file)).ok();
            assert!(found == slot.now().map(|state| state.to_vec()), "{}, seed {seed}", slot.name);
        }
        let audit = audit(world.fs.map()).expect("readable");
        assert!(audit.is_exact(), "seed {seed}: {audit:?}");
    };
    check(&world);
    check(&world.after_crash(OpenMode::ReadWrite));
}

#[test]
fn threads_that_share_what_little_room_there_is_lose_nothing_and_see_what_they_did() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let first = number("GABION_SEED").unwrap_or(1);
    let seeds =
        number("GABION_SEEDS").unwrap_or(if number("GABION_SEED").is_some() { 1 } else { 3 });
    (first..first + seeds).for_each(crowd);
}
