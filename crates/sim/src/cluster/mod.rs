//! A world of machines that share one filesystem through the link, in which everything fails.
//!
//! ```text
//!   client 0: programs -> kernel -> RemoteFs ─┐                        ┌─ Served -> LocalFs
//!   client 1: ...                             ├── frames, delayed ─────┤      on a SimDisk,
//!   client 7: ...                             ┘   connections break    └─ crashes, starts again
//! ```
//!
//! One seed decides everything: the product's own [`RemoteFs`](gabion_node::remote::RemoteFs) and
//! [`Served`](gabion_node::served::Served) run with all their threads, one at a time ([`baton`]).
//! What stands around them in the product, sockets and the kernel, is written down here a second
//! time, as short as it can be (`client`, `server`, `network`, `kernel`).
//!
//! 1. Clients come, whose `programs` use few names and few files at the same time.
//! 2. Meanwhile things fail (`faults`): connections break; clients are cut off, for less and for
//!    more than a session lasts, sleep, crash and come back; the server crashes, its disk loses
//!    what was not flushed, and it starts again. All clocks of clients go wrong, by less than the
//!    server's margin.
//! 3. Everything is healed, and progress is demanded: each client looks at everything and changes
//!    something, and no call may take longer than its deadline.
//! 4. All answers of all programs have to be explained by one sequence of calls ([`judge`]).
//!
//! Broken on purpose ([`Sabotage`]), each promise is seen to be broken.
//!
//! Extended attributes and advisory locks are used in some of the worlds. The latter are judged by
//! themselves (`locks`). In others the disk becomes full, or a quota is used up (`programs`): no
//! change that a client has answered may fail for that, nothing goes over the quota, and in the end
//! all can write again. In others programs make
//! snapshots, and roll back to them.
//!
//! Not here: directories that come and go, and servers with faulty disks.

pub mod baton;
mod cell;
mod client;
mod clock;
mod directories;
mod faults;
pub mod history;
pub mod judge;
mod kernel;
mod locks;
mod network;
mod pipe;
mod programs;
pub mod search;
mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use gabion_base::ids::{SubvolId, Uuid};
use gabion_base::rng::Rng;
use gabion_fs::{Caller, FileType};
use gabion_map::format::subvolume::Most;
use gabion_map::open::FormatOptions;
use gabion_map::{FileId, Limits, OpenMode};
use gabion_node::served::Rights;
use gabion_node::{LocalFs, Settings, format_filesystem};

use self::baton::Baton;
use self::faults::Director;
use self::history::{History, Number, Place, SnapshotNumber};
use self::network::Network;
use crate::disk::SimDisk;
use crate::image::Image;

/// After how much silence a session ends.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// By how much the server is more patient than it told the client.
pub const MARGIN: Duration = Duration::from_millis(400);
/// How long a client may take to give back what was revoked.
pub const REVOKE_PATIENCE: Duration = Duration::from_secs(3);
/// How long an operation waits for the server.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// The disk's length in blocks.
const DISK_BLOCKS: u64 = 1 << 14;
/// The same of one of which also many clients are promised parts, so that they change things by
/// themselves.
const LARGE_DISK_BLOCKS: u64 = 1 << 16;
/// Files that take its space: as many as there are clients.
const HOGS: u64 = 9;
/// Directories and files that are there from the beginning, at most.
const DIRS_MAX: u64 = 2;
const FILES_MAX: u64 = 3;
/// Names that programs use in each directory.
const NAMES: u8 = 4;
/// In which directory the files' own names are, which nobody touches.
const HIDDEN: u8 = u8::MAX;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    Nothing,
    /// Kernels do not forget names when they are told.
    KernelKeepsNames,
    /// Kernels do not forget attributes.
    KernelKeepsAttributes,
    /// Kernels keep extended attributes, which they do not.
    KernelKeepsXattrs,
    /// The server does not hear which locks clients have when they give up their leases on them.
    LostLocks,
    /// The server does not hear that clients have given up locks.
    LostUnlocks,
    /// Kernels do not drop pages.
    KernelKeepsPages,
    /// Kernels do not forget what they have collected of directories, nor look whether they have
    /// changed.
    KernelKeepsListings,
    /// The server gives leases without asking for those in the way.
    GrantsAnyway,
    /// Clients say that they have forgotten before they have.
    ReleasedAtOnce,
    /// Clients believe that their sessions never end.
    EndlessSessions,
    /// A server that starts again waits for nobody.
    NoGrace,
    /// The server's disk does not flush.
    IgnoredFlushes,
    /// The server does not learn what clients have open.
    ForgottenOpens,
    /// The server overhears calls.
    LostCalls,
    /// The server overhears what clients have changed by themselves.
    LostChanges,
    /// A server that starts again does not hear what clients have changed before.
    NothingSaidAgain,
    /// A server that starts again does what clients say again in the order in which they come.
    NoOrder,
    /// The server promises clients room for whatever they change.
    EndlessCredit,
    /// The server takes clients for standing still that do not.
    SnapshotsAnyway,
    /// A rollback is answered and not made.
    RollbacksOfNothing,
    /// Kernels say that the disk is full though they have asked nobody.
    ImaginaryFullness,
}

/// What everybody knows.
pub struct World {
    /// Who runs, and what time it is.
    pub baton: Arc<Baton>,
    network: Arc<Network>,
    /// What was asked and answered.
    pub history: History,
    sabotage: Sabotage,
    subvol: SubvolId,
    dirs: Vec<FileId>,
    files: Vec<Number>,
    /// Files that take the space of a disk that can become full: one for each client.
    hogs: Vec<Number>,
    /// Blocks that can be used of an empty disk.
    room: u64,
    /// What clients may do: all that they ask for, whoever checks it.
    rights: Rights,
    /// Of a hundred calls, so many are about bytes.
    share_of_bytes: u64,
    /// Whether programs use extended attributes.
    has_xattrs: bool,
    /// Whether they use advisory locks.
    has_locks: bool,
    /// Whether they make snapshots, and roll back to them.
    has_snapshots: bool,
    can_roll_back: bool,
    /// Whether some of what they write comes from other files.
    has_copies: bool,
    /// Whether kernels take their time to forget.
    has_slow_kernels: bool,
    /// Snapshots that there may be.
    snapshots: Mutex<Vec<SnapshotNumber>>,
    snapshots_made: AtomicU64,
    stamps: AtomicU64,
    owners: AtomicU64,
    sessions: AtomicU64,
    is_healed: AtomicBool,
}

impl World {
    fn new_stamp(&self) -> u32 {
        self.stamps.fetch_add(1, Ordering::Relaxed) as u32 + 1
    }

    /// Whether programs fill the disk.
    fn can_be_full(&self) -> bool {
        !self.hogs.is_empty()
    }

    fn new_snapshot(&self) -> SnapshotNumber {
        self.snapshots_made.fetch_add(1, Ordering::Relaxed) as SnapshotNumber + 1
    }

    fn new_owner(&self) -> u32 {
        self.owners.fetch_add(1, Ordering::Relaxed) as u32 + 1
    }

    /// A client has something to say.
    fn reported(&self, client: usize, text: &str) {
        self.baton.note(|| format!("client {client} says: {text}"));
        // What is built on changes of clients that did not come back after a crash may fail.
        if text.starts_with("a change could not be made") && !self.history.has_lost_by_crash() {
            self.baton.fail(&format!("client {client}: {text}"));
        }
    }

    fn is_healed(&self) -> bool {
        self.is_healed.load(Ordering::Relaxed)
    }

    fn new_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What a trial that found nothing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Calls that were answered.
    pub answered: u64,
    /// Calls of which nobody knows whether they were done.
    pub unknown: u64,
    /// Objects of which was not found out in time whether all answers were right.
    pub undecided: u64,
    /// Steps that were made.
    pub steps: u64,
    /// A sum over all choices, to compare two runs.
    pub digest: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What decided everything.
    pub seed: u64,
    /// What is wrong.
    pub violation: String,
    /// What happened last.
    pub log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        write!(f, "seed {}: {}", self.seed, self.violation)
    }
}

/// A disk with the files of the beginning, and who they are.
struct Beginning {
    image: Image,
    subvol: SubvolId,
    dirs: Vec<FileId>,
    files: Vec<Number>,
    hogs: Vec<Number>,
    /// Blocks that can be used.
    room: u64,
}

impl Beginning {
    /// Made once.
    fn of(seed: u64) -> &'static Self {
        static SMALL: OnceLock<Beginning> = OnceLock::new();
        static LARGE: OnceLock<Beginning> = OnceLock::new();
        static FULL: OnceLock<Beginning> = OnceLock::new();
        static LIMITED: OnceLock<Beginning> = OnceLock::new();
        match seed % 10 {
            3 if (seed / 10).is_multiple_of(2) => {
                FULL.get_or_init(|| Self::make(LARGE_DISK_BLOCKS, HOGS, Most::default()))
            }
            3 => LIMITED.get_or_init(|| {
                let most = Most { blocks: Some(LARGE_DISK_BLOCKS / 4 * 3), objects: None };
                Self::make(LARGE_DISK_BLOCKS, HOGS, most)
            }),
            5 | 9 => LARGE.get_or_init(|| Self::make(LARGE_DISK_BLOCKS, 0, Most::default())),
            _ => SMALL.get_or_init(|| Self::make(DISK_BLOCKS, 0, Most::default())),
        }
    }

    fn make(blocks: u64, hogs: u64, most: Most) -> Self {
        let disk = Arc::new(SimDisk::new(blocks));
        let options = FormatOptions {
            uuid: Uuid::from_random([7; 16]),
            label: "cluster".to_owned(),
            name_seed: 42,
            created: 1_600_000_000,
            blocks: None,
        };
        format_filesystem(Arc::clone(&disk) as _, &options).expect("a healthy disk");
        let clock = Arc::new(clock::Stopped);
        let (limits, settings) = (Limits::within(16 << 20), Settings::default());
        let mode = OpenMode::ReadWrite;
        let fs = LocalFs::open(Arc::clone(&disk) as _, mode, limits, settings, clock);
        let fs = fs.expect("it was just made");
        let (root, caller) = (fs.root(), Caller::superuser());
        let dir = |number: u64| {
            let made = fs.mkdir(&caller, root, format!("d{number}").as_bytes(), 0o755);
            made.expect("there is room").file
        };
        let file = |number: u64| {
            let name = format!("f{number}");
            let made = fs.mknod(&caller, root, name.as_bytes(), FileType::Regular, 0o644, 0);
            made.expect("there is room").file.ino.0
        };
        let dirs = (0..DIRS_MAX).map(dir).collect();
        let files = (0..FILES_MAX).map(file).collect();
        let hogs = (FILES_MAX..FILES_MAX + hogs).map(file).collect();
        fs.map().set_quota(root.subvol, most).expect("a healthy disk");
        let room = fs.map().space_of(root.subvol).available;
        fs.close().expect("a healthy disk");
        Self { image: disk.image(), subvol: root.subvol, dirs, files, hogs, room }
    }
}

/// Runs the trial of `seed`, in which `sabotage` is broken.
pub fn run(seed: u64, sabotage: Sabotage) -> Result<Summary, Failure> {
    let beginning = Beginning::of(seed);
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let ending = Baton::run(seed, move |baton| {
        let mut rng = Rng::new(seed ^ 0xc1a5_7e40);
        let has_snapshots = matches!(seed % 10, 5 | 9);
        let network = Arc::new(Network::new(Arc::clone(&baton), seed, has_snapshots));
        let dirs = 1 + rng.below(DIRS_MAX) as usize;
        let files = 1 + rng.below(FILES_MAX) as usize;
        let world = Arc::new(World {
            baton,
            network,
            history: History::default(),
            sabotage,
            subvol: beginning.subvol,
            dirs: beginning.dirs[..dirs].to_vec(),
            files: beginning.files[..files].to_vec(),
            hogs: beginning.hogs.clone(),
            room: beginning.room,
            rights: [Rights::TRUSTED, Rights::CHECKED][rng.below(2) as usize],
            share_of_bytes: 20 + 20 * rng.below(4),
            has_xattrs: matches!(seed % 10, 0 | 6),
            has_locks: matches!(seed % 10, 6 | 8),
            has_snapshots,
            can_roll_back: seed % 10 == 9,
            has_copies: seed % 7 == 5 && beginning.hogs.is_empty(),
            has_slow_kernels: seed / 10 % 3 == 1,
            snapshots: Mutex::default(),
            snapshots_made: AtomicU64::new(0),
            stamps: AtomicU64::new(0),
            owners: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            is_healed: AtomicBool::new(false),
        });
        *keep.lock().expect("nobody panics here") = Some(Arc::clone(&world));
        Director::new(&world, rng).direct(&beginning.image);
    });
    let failed = |violation| Failure { seed, violation, log: ending.log.clone() };
    if let Some(violation) = ending.failure.clone() {
        return Err(failed(violation));
    }
    let world = kept.lock().expect("nobody panics here").take().expect("the director has begun");
    let events = world.history.events();
    let hidden = |(at, file): (usize, &Number)| -> (Place, Number) { ((HIDDEN, at as u8), *file) };
    let mut entries: BTreeMap<Place, Number> =
        beginning.files.iter().chain(&beginning.hogs).enumerate().map(hidden).collect();
    for dir in 0..world.dirs.len() as u8 {
        entries.extend((0..NAMES).map(|name| ((dir, name), 0)));
    }
    locks::judge(&events).map_err(failed)?;
    judge::judge_space(world.room, &world.hogs, &events).map_err(failed)?;
    let undecided = judge::judge(&entries, &events).map_err(failed)?;
    let answered = events.iter().filter(|event| event.responded.is_some()).count() as u64;
    let unknown = events.len() as u64 - answered;
    Ok(Summary { answered, unknown, undecided, steps: ending.steps, digest: ending.digest })
}
