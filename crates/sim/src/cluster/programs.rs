//! What programs do on the clients: system calls by seed, written down with their answers.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::rng::Rng;
use gabion_fs::xattr::SetCondition;
use gabion_fs::{
    Attributes, Changes, Detail, Disposition, Error, IfExists, IfTaken, Privileges, Result, WriteAt,
};
use gabion_map::{FileId, Stop};

use super::client::Client;
use super::history::{GRAIN, Number, OnlyIf, Op, Outcome, Place};
use super::judge::{GRAINS_MAX, XATTRS};
use super::{DEADLINE, NAMES, World};

mod copying;
mod filling;
mod locking;
mod snapshots;

use self::filling::{adds, is_lack_of_room};
use self::locking::Locks;

/// Grains in a page.
pub const PAGE_GRAINS: u32 = (BLOCK_SIZE / GRAIN) as u32;
/// Calls of a program at most.
const CALLS_MAX: u64 = 50;
/// Files that a program has open at most.
const OPEN_MAX: usize = 2;
/// No call may take longer: one may wait its turn for as long as another one asks the server twice,
/// and for its answer for one more deadline.
const CALL_MAX: Duration = Duration::from_secs(3 * DEADLINE.as_secs() + 2);

/// The same of what waits for all clients.
const ERRAND_MAX: Duration = Duration::from_secs(60);

/// A file that a program has open.
struct Open {
    file: Number,
    /// The client's session then.
    session: u64,
}

/// How a program uses its calls.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Calls that it makes at least.
    pub calls: u64,
    /// How long it rests between two calls at most, in milliseconds.
    pub rest: u64,
}

/// A program on a client.
pub struct Program {
    world: Arc<World>,
    client: Arc<Client>,
    rng: Rng,
    open: Vec<Open>,
    /// Locks that it may have.
    locks: Locks,
    /// Whether it is the first one of its client.
    is_first: bool,
    /// Files that it has seen.
    seen: Vec<Number>,
    only_reads: bool,
    /// What it looks at: a snapshot, for the time of a call.
    subvol: SubvolId,
    /// Its last call, which is what it makes again and again if it only reads.
    last: Option<Op>,
}

fn name(number: u8) -> Vec<u8> {
    vec![b'a' + number]
}

fn xattr_name(number: u8) -> Vec<u8> {
    format!("user.{number}").into_bytes()
}

/// A value that tells of which call it is. Some are long enough to be kept by themselves.
fn xattr_value(stamp: u32) -> Vec<u8> {
    let count = if stamp.is_multiple_of(4) { 300 } else { 1 + stamp % 9 };
    stamp.to_le_bytes().repeat(count as usize)
}

/// Bytes that tell of which write they are.
fn bytes(count: u32, stamp: u32) -> Vec<u8> {
    stamp.to_le_bytes().repeat(count as usize * GRAIN / 4)
}

/// The stamp of each grain, or where one has several.
fn stamps(bytes: &[u8]) -> std::result::Result<Vec<u32>, usize> {
    let stamp = |(at, grain): (usize, &[u8])| {
        let stamp = grain[..4].try_into().map(u32::from_le_bytes).expect("a grain has 4 bytes");
        let is_whole = grain.chunks(4).all(|part| part == stamp.to_le_bytes());
        if is_whole { Ok(stamp) } else { Err(at) }
    };
    bytes.chunks(GRAIN).enumerate().map(stamp).collect()
}

impl Program {
    /// One on `client`, whose choices follow from `seed`.
    pub fn new(world: &Arc<World>, client: &Arc<Client>, seed: u64, is_first: bool) -> Self {
        let (world, client) = (Arc::clone(world), Arc::clone(client));
        let (open, seen, last) = Default::default();
        let locks = Locks::of(world.new_owner());
        let rng = Rng::new(seed);
        let (only_reads, subvol) = (false, world.subvol);
        Self { world, client, rng, open, locks, is_first, seen, only_reads, subvol, last }
    }

    /// Makes calls, until everything is healed.
    pub fn run(&mut self, habits: Habits) {
        self.only_reads = self.rng.chance(1, 3);
        let mut made = 0;
        while made < habits.calls || made < CALLS_MAX && !self.world.is_healed() {
            if self.rng.chance(1, 2) {
                let rest = self.rng.below(habits.rest);
                self.world.baton.sleep(Duration::from_millis(rest));
            }
            if self.world.has_snapshots && self.rng.chance(1, 4) {
                self.step_snapshots();
            } else if self.world.has_locks && self.rng.chance(1, 4) {
                self.step_locks();
            } else if !(self.world.can_be_full() && self.rng.chance(1, 4) && self.step_space()) {
                self.step();
            }
            made += 1;
        }
        self.unlock_all();
        while let Some(open) = self.open.pop() {
            self.client.mount.close(self.id(open.file));
        }
    }

    /// Looks at everything, and changes something. All of it has to succeed.
    pub fn finish(&mut self, _: u64) {
        for dir in 0..self.world.dirs.len() as u8 {
            self.make(Op::List { dir });
            let at = self.place();
            self.make(Op::Lookup { at });
        }
        for file in self.world.files.clone() {
            for page in 0..GRAINS_MAX as u32 / PAGE_GRAINS {
                self.make(Op::Read { file, grain: page * PAGE_GRAINS, count: PAGE_GRAINS });
            }
            self.make(Op::Stat { file });
            if self.world.has_xattrs {
                (0..XATTRS).for_each(|name| self.make(Op::Xattr { file, name }));
            }
            if self.world.has_locks {
                self.lock_once(file);
            }
        }
        if self.world.has_snapshots {
            self.finish_snapshots();
        }
        let file = self.file();
        let stamp = self.world.new_stamp();
        self.make(Op::Write { file, grain: 0, count: 1, stamp });
        self.make(Op::Fsync { file });
    }

    fn make(&mut self, op: Op) {
        let outcome = self.call(op.clone());
        // Of an fsync, the failure may be the news that something was lost.
        let may_fail = matches!(op, Op::Fsync { .. });
        let is_made = !matches!(outcome, Outcome::Unknown | Outcome::Refused | Outcome::Full);
        if !is_made && !may_fail {
            let number = self.client.number;
            let text = format!("after all was healed, on client {number}: {op:?} is {outcome:?}");
            self.world.baton.fail(&text);
        }
    }

    fn id(&self, file: Number) -> FileId {
        FileId::new(self.subvol, Ino(file))
    }

    fn dir(&self, dir: u8) -> FileId {
        FileId::new(self.subvol, self.world.dirs[usize::from(dir)].ino)
    }

    fn place(&mut self) -> Place {
        let dirs = self.world.dirs.len() as u64;
        (self.rng.below(dirs) as u8, self.rng.below(NAMES.into()) as u8)
    }

    /// A file that is there whatever others do.
    fn file(&mut self) -> Number {
        let count = (self.world.files.len() + self.open.len()) as u64;
        let at = self.rng.below(count) as usize;
        match at.checked_sub(self.world.files.len()) {
            None => self.world.files[at],
            Some(at) => self.open[at].file,
        }
    }

    fn step(&mut self) {
        let op = self.choose();
        match op {
            Op::Create { .. } if self.open.len() == OPEN_MAX => {
                let open = self.open.remove(0);
                self.client.mount.close(self.id(open.file));
            }
            _ => {}
        }
        let outcome = self.call(op.clone());
        self.last = Some(op.clone());
        match outcome {
            Outcome::Found(file) => {
                self.seen.insert(0, file);
                self.seen.truncate(3);
                if self.rng.chance(1, 3) && self.open.len() < OPEN_MAX {
                    self.open(file);
                }
            }
            Outcome::Made(file, _) => self.opened(file),
            Outcome::Gone => self.open.retain(|open| Some(open.file) != op.file()),
            _ => {}
        }
    }

    fn opened(&mut self, file: Number) {
        self.open.push(Open { file, session: self.client.earliest_session() });
    }

    fn open(&mut self, file: Number) {
        let session = self.client.earliest_session();
        match self.client.mount.open(self.id(file)) {
            Ok(()) => self.open.push(Open { file, session }),
            // It has lost its last name meanwhile, or nobody answered.
            Err(Error::Stale | Error::NotFound) => {}
            Err(error) if is_trouble(&error) => {}
            Err(error) => self.world.baton.fail(&format!("opening {file}: {error}")),
        }
    }

    fn choose(&mut self) -> Op {
        if let Some(last) = self.last.clone().filter(|_| self.only_reads && self.rng.chance(2, 3)) {
            return last;
        }
        loop {
            let op = match self.rng.below(100) < self.world.share_of_bytes {
                true => self.choose_bytes(),
                false => self.choose_names(),
            };
            if op.only_reads() || !self.only_reads {
                return op;
            }
        }
    }

    fn choose_names(&mut self) -> Op {
        let at = self.place();
        match self.rng.below(100) {
            0..30 => Op::Lookup { at },
            30..42 => Op::List { dir: at.0 },
            42..58 => Op::Create { at, is_exclusive: self.rng.chance(1, 2) },
            58..66 => Op::Link { file: self.file(), at },
            66..78 => Op::Unlink { at },
            78..90 => {
                let to = self.place();
                Op::Rename { from: at, to, replaces: self.rng.chance(2, 3) }
            }
            90..97 => Op::Stat { file: self.any() },
            97..99 => Op::Fsync { file: self.file() },
            _ => Op::SyncAll,
        }
    }

    /// A file that may be gone.
    fn any(&mut self) -> Number {
        match self.seen.len() as u64 {
            count if count > 0 && self.rng.chance(1, 2) => {
                self.seen[self.rng.below(count) as usize]
            }
            _ => self.file(),
        }
    }

    fn choose_bytes(&mut self) -> Op {
        let file = self.file();
        let max = GRAINS_MAX as u32;
        if self.world.has_xattrs && self.rng.chance(1, 6) {
            return self.choose_xattr(file);
        }
        match self.rng.below(100) {
            0..25 => {
                let count = 1 + self.rng.below(10) as u32;
                let grain = self.rng.below(u64::from(max - count) + 1) as u32;
                Op::Write { file, grain, count, stamp: self.world.new_stamp() }
            }
            25..33 => {
                let count = 1 + self.rng.below(2) as u32;
                Op::Append { file, count, stamp: self.world.new_stamp() }
            }
            33..65 => {
                let grain = self.rng.below(u64::from(max / PAGE_GRAINS)) as u32 * PAGE_GRAINS;
                Op::Read { file, grain, count: PAGE_GRAINS }
            }
            65..72 => {
                let grain = self.rng.below(u64::from(max - 1)) as u32;
                let count = (1 + self.rng.below(8) as u32).min(max - grain);
                Op::Read { file, grain, count }
            }
            72..86 => Op::Stat { file },
            86..92 => Op::Resize { file, grains: self.rng.below(u64::from(max) / 2) as u32 },
            92..96 => Op::Chmod { file, mode: 0o600 + self.rng.below(64) as u32 },
            _ => Op::Fsync { file },
        }
    }

    fn choose_xattr(&mut self, file: Number) -> Op {
        let name = self.rng.below(XATTRS.into()) as u8;
        match self.rng.below(100) {
            0..40 => {
                let only_if = [OnlyIf::Always, OnlyIf::Always, OnlyIf::Absent, OnlyIf::Present];
                let only_if = only_if[self.rng.below(4) as usize];
                Op::SetXattr { file, name, stamp: self.world.new_stamp(), only_if }
            }
            40..55 => Op::RemoveXattr { file, name },
            55..90 => Op::Xattr { file, name },
            _ => Op::Xattrs { file },
        }
    }

    /// Makes one call and writes it down.
    fn call(&mut self, op: Op) -> Outcome {
        while self.client.is_drowsy() {
            self.world.baton.sleep(Duration::from_millis(1));
        }
        let life = self.client.server_start();
        let began = self.client.monotonic();
        let session = self.client.earliest_session();
        let call = self.world.history.invoke(self.client.number, life, session, op.clone());
        let result = self.perform(&op);
        let took = self.client.monotonic() - began;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => self.failed(&op, &error),
        };
        let number = self.client.number;
        self.world.baton.note(|| format!("client {number}: {op:?} -> {outcome:?} in {took:?}"));
        self.world.history.respond(call, self.client.latest_session(), outcome.clone());
        let is_long =
            matches!(op, Op::Snapshot { .. } | Op::RemoveSnapshot { .. } | Op::Rollback { .. });
        if took > if is_long { ERRAND_MAX } else { CALL_MAX } {
            let text = format!("client {number}: {op:?} took {took:?} by its own clock");
            self.world.baton.fail(&text);
        }
        outcome
    }

    /// What an error says of the call.
    fn failed(&mut self, op: &Op, error: &Error) -> Outcome {
        match error {
            Error::NotFound | Error::NoAttribute => Outcome::Absent,
            Error::Exists => Outcome::Exists,
            Error::WouldBlock => Outcome::Blocked,
            Error::Deadlock => Outcome::Circle,
            Error::Interrupted if matches!(op, Op::Lock { .. }) => Outcome::Refused,
            // What was asked before a rollback is not done after it.
            Error::Stale if self.world.can_roll_back && !op.only_reads() => Outcome::Refused,
            // Nobody saw to it that the file stays.
            Error::Stale if !self.is_kept_open(op) => Outcome::Gone,
            // It was made by somebody who was lost with the server, or everything was rolled back.
            Error::Stale if self.world.history.has_lost_by_crash() => Outcome::Gone,
            Error::Stale if self.world.can_roll_back && op.only_reads() => Outcome::Gone,
            Error::Busy => Outcome::Refused,
            error if self.world.can_be_full() && is_lack_of_room(error) && adds(op) => {
                Outcome::Full
            }
            error if is_trouble(error) => Outcome::Unknown,
            error => {
                let number = self.client.number;
                self.world.baton.fail(&format!("client {number}: {op:?}: {error:?}"));
                Outcome::Refused
            }
        }
    }

    /// Whether the file has to be there: it has a name for ever, or is open since before the
    /// session, in which all that counts.
    fn is_kept_open(&self, op: &Op) -> bool {
        let Some(file) = op.file() else { return false };
        let is_lasting = |open: &Open| open.session == self.client.latest_session();
        self.world.files.contains(&file)
            || self.world.hogs.contains(&file)
            || self.open.iter().any(|open| open.file == file && is_lasting(open))
    }

    fn perform(&mut self, op: &Op) -> Result<Outcome> {
        let client = Arc::clone(&self.client);
        let mount = &client.mount;
        let done = |()| Outcome::Done;
        match *op {
            Op::Lookup { at } => {
                let found = mount.lookup(self.dir(at.0), &name(at.1))?;
                Ok(found.map_or(Outcome::Absent, |found| Outcome::Found(found.ino.0)))
            }
            Op::Create { at, is_exclusive } => {
                let how = if is_exclusive { IfExists::Fail } else { IfExists::Open };
                let (file, made) = mount.create(self.dir(at.0), &name(at.1), how)?;
                Ok(Outcome::Made(file.ino.0, made == Disposition::Created))
            }
            Op::Link { file, at } => {
                mount.link(self.id(file), self.dir(at.0), &name(at.1)).map(done)
            }
            Op::Unlink { at } => mount.unlink(self.dir(at.0), &name(at.1)).map(done),
            Op::Rename { from, to, replaces } => {
                let how = if replaces { IfTaken::Replace } else { IfTaken::Fail };
                let (source, target) = (name(from.1), name(to.1));
                let (from, to) = (self.dir(from.0), self.dir(to.0));
                let renamed = mount.rename((from, &source), (to, &target), how)?;
                Ok(if renamed { Outcome::Done } else { Outcome::Refused })
            }
            Op::List { dir } => self.list(dir),
            Op::Stat { file } => mount.stat(self.id(file)).map(|found| self.status(&found)),
            Op::SyncAll => mount.syncfs().map(done),
            Op::Fsync { file } => mount.fsync(self.id(file)).map(done),
            Op::Crash { .. } => unreachable!("no program asks for it"),
            Op::SetXattr { .. } | Op::RemoveXattr { .. } => self.perform_xattr(op),
            Op::Xattr { .. } | Op::Xattrs { .. } => self.perform_xattr(op),
            Op::Lock { .. } | Op::Unlock { .. } => self.perform_lock(op),
            Op::Snapshot { .. } | Op::RemoveSnapshot { .. } => self.perform_snapshots(op),
            Op::Rollback { .. } | Op::InSnapshot { .. } => self.perform_snapshots(op),
            _ => self.perform_bytes(op),
        }
    }

    fn perform_xattr(&mut self, op: &Op) -> Result<Outcome> {
        let mount = &self.client.mount;
        let done = |()| Outcome::Done;
        match *op {
            Op::SetXattr { file, name, stamp, only_if } => {
                let condition = match only_if {
                    OnlyIf::Always => SetCondition::Always,
                    OnlyIf::Absent => SetCondition::Absent,
                    OnlyIf::Present => SetCondition::Present,
                };
                let value = xattr_value(stamp);
                mount.set_xattr(self.id(file), &xattr_name(name), &value, condition).map(done)
            }
            Op::RemoveXattr { file, name } => {
                mount.remove_xattr(self.id(file), &xattr_name(name)).map(done)
            }
            Op::Xattr { file, name } => {
                let value = mount.xattr(self.id(file), &xattr_name(name))?;
                let stamp = value.first_chunk().map_or(0, |stamp| u32::from_le_bytes(*stamp));
                if value != xattr_value(stamp) {
                    let text = format!("attribute {name} of {file} is of several calls");
                    self.world.baton.fail(&text);
                }
                Ok(Outcome::Value(stamp))
            }
            Op::Xattrs { file } => {
                let names = mount.xattr_names(self.id(file))?;
                let number = |found: &Vec<u8>| (0..XATTRS).find(|name| xattr_name(*name) == *found);
                Ok(Outcome::Attributes(names.iter().filter_map(number).collect()))
            }
            _ => unreachable!("{op:?} is none of the calls on attributes"),
        }
    }

    fn perform_bytes(&mut self, op: &Op) -> Result<Outcome> {
        let client = Arc::clone(&self.client);
        let mount = &client.mount;
        let offset = |grain: u32| u64::from(grain) * GRAIN as u64;
        match *op {
            Op::Write { file, grain, count, stamp } if self.copies(stamp) => {
                self.copy(file, grain, count, stamp)
            }
            Op::Write { file, grain, count, stamp } => {
                let at = WriteAt::Offset(offset(grain));
                mount.write(self.id(file), at, &bytes(count, stamp)).map(|_| Outcome::Done)
            }
            Op::Append { file, count, stamp } => {
                // Nobody appends to what is nearly full.
                let size = mount.stat(self.id(file))?.size;
                if size > offset(GRAINS_MAX as u32 - 12) {
                    return Ok(Outcome::Refused);
                }
                let at = mount.write(self.id(file), WriteAt::End, &bytes(count, stamp))?;
                Ok(Outcome::At((at / GRAIN as u64) as u32))
            }
            Op::Read { file, grain, count } => {
                let is_page = grain.is_multiple_of(PAGE_GRAINS) && count == PAGE_GRAINS;
                let read = if is_page && self.rng.chance(3, 4) {
                    let (page, ahead) = (grain / PAGE_GRAINS, self.rng.below(3));
                    mount.read_page(self.id(file), page.into(), ahead)?.to_vec()
                } else {
                    mount.read_now(self.id(file), offset(grain), count as usize * GRAIN)?
                };
                match stamps(&read) {
                    Ok(stamps) => Ok(Outcome::Grains(stamps)),
                    Err(at) => {
                        let text =
                            format!("grain {} of {file} is of several writes", grain as usize + at);
                        self.world.baton.fail(&text);
                        Ok(Outcome::Refused)
                    }
                }
            }
            Op::Reserve { file, grain, count } => self.reserve(file, grain, count),
            Op::Resize { file, grains } => {
                let size = Some((offset(grains), Privileges::Keep));
                let changes = Changes { size, ..Changes::default() };
                mount.setattr(self.id(file), &changes).map(|()| Outcome::Done)
            }
            Op::Chmod { file, mode } => {
                let changes = Changes { permissions: Some(mode), ..Changes::default() };
                mount.setattr(self.id(file), &changes).map(|()| Outcome::Done)
            }
            _ => unreachable!("{op:?} is none of the calls on bytes"),
        }
    }

    fn list(&mut self, dir: u8) -> Result<Outcome> {
        let detail = if self.rng.chance(1, 2) { Detail::Names } else { Detail::Attributes };
        let listed = self.client.mount.list(self.dir(dir), detail)?;
        let names = listed.iter().map(|(name, file)| (name[0] - b'a', file.ino.0));
        Ok(Outcome::Names(names.collect()))
    }

    fn status(&self, found: &Attributes) -> Outcome {
        let size = (found.size / GRAIN as u64) as u32;
        let Attributes { mode, nlink, .. } = *found;
        Outcome::Status { size, mode: mode & 0o7777, nlink }
    }
}

/// Whether the server, or the way to it, is the reason.
fn is_trouble(error: &Error) -> bool {
    matches!(error, Error::Stop(Stop::Map(gabion_map::MapError::Disk(_))))
}
