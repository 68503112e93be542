//! A filesystem that a server keeps, used from here as if it were local.
//!
//! ```text
//!   front end -> RemoteFs: operations run on the Cache where leases allow, else at the server
//!                  |  changes, calls, notes              ^ answers      | revocations
//!                  v                                     |              v
//!                 Wire (every message once, in order)  receive        attend, a thread
//!                                                                       | Kernel: forget
//! ```
//!
//! What is true of everything that is answered from here:
//!
//! - It is covered by a lease, or the server has just said it.
//! - A change that is made here is covered by exclusive leases, and on its way to the server before
//!   the answer; the server has made it before anybody else can look (`changing`).
//! - The session is alive by this machine's own clock: a client that is cut off stops to answer
//!   from its cache before the server gives its leases to others.
//! - A revocation is answered when the kernel has forgotten, and nothing that was found out before
//!   is still on its way to it.
//!
//! Every wait for the server ends after the deadline.
//!
//! Absent: sockets, which are the owner's.

mod ahead;
mod beginning;
mod calls;
mod changing;
mod contention;
mod errands;
mod failures;
mod filesystem;
mod freezing;
mod gate;
mod listings;
mod locking;
mod losses;
mod lost_locks;
mod mapped;
mod needs;
mod opens;
mod operations;
mod pages;
mod pending;
mod places;
mod reading;
mod readings;
mod revocations;
mod server_time;
mod subvolumes;
mod synced;
mod unsynced;
mod vanishing;
mod ways;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::ids::{Ino, SubvolId, Uuid};
use gabion_base::sync::{Condvar, Mutex, RwLock};
use gabion_fs::{AtimePolicy, AtimeRules, Attributes};
use gabion_link::cache::Cache;
use gabion_link::identities::Identities;
use gabion_link::message::{ToServer, Welcome};
use gabion_link::range::KeyRange;
use gabion_map::map::SpaceReport;
use gabion_map::{FileId, Kind};

use crate::clock::Clock;

pub use self::losses::{Loss, LossKeeper};
pub use self::lost_locks::{LockLoss, LockLossTeller};

use self::ahead::Ahead;
use self::calls::Calls;
use self::changing::Acquiring;
use self::contention::Contention;
use self::freezing::Freezing;
use self::gate::Gate;
use self::listings::Listings;
use self::locking::Locking;
use self::losses::Losses;
use self::lost_locks::LockLosses;
use self::mapped::Mapped;
use self::needs::Needed;
use self::opens::Opens;
use self::pages::Pages;
use self::pending::{Extent, Pending};
use self::places::Places;
use self::readings::Readings;
use self::revocations::Revocations;
use self::server_time::ServerTime;
use self::unsynced::Unsynced;
use self::vanishing::{Held, Removals};
use self::ways::Ways;

/// Where messages to the server go. They arrive once, in the order in which they were sent, or the
/// session ends.
pub trait Wire: Send + Sync {
    /// Sends, without waiting for anybody.
    fn send(&self, message: ToServer);

    /// The server has lost what was sent: there is no connection, and what is sent from now on is
    /// the beginning.
    fn begin_again(&self);
}

/// The kernel's caches. Calls may be made from any thread but one that handles a request.
pub trait Kernel: Send + Sync {
    /// Attributes of an object are no longer true. Does not wait.
    fn forget_attributes(&self, file: FileId);

    /// Names in these ranges are no longer true. True: it has forgotten all the others, too. Waits
    /// for nobody, or for a moment after something was mounted in the filesystem.
    fn forget_names(&self, ranges: &[KeyRange]) -> bool;

    /// The same of all names.
    fn forget_all_names(&self);

    /// One name of a directory is no longer true. Waits for whoever changes names of it.
    fn forget_name(&self, parent: FileId, name: &[u8]);

    /// Whether [`Kernel::forget_names`] can be relied on. Where not, the kernel keeps no names.
    fn can_forget_names(&self) -> bool;

    /// Whether names like this are on the way to something that is mounted on the filesystem.
    fn leads_to_mount(&self, _name: &[u8]) -> bool {
        false
    }

    /// The bytes `from..to` are no longer true. Waits for READs of them.
    fn forget_bytes(&self, file: FileId, from: u64, to: u64);

    /// The names of a directory that were collected from its listings are no longer true. False:
    /// it knows no such directory. Waits for nobody who waits for the filesystem.
    fn forget_listing(&self, dir: FileId) -> bool;

    /// All objects of a subvolume are others than before, whatever their numbers: what is asked
    /// about those that were known is refused from now on. Who keeps nothing does nothing.
    fn renumber(&self, _subvol: SubvolId) {}

    /// Waits until all who were listing a directory when this was called have made use of what they
    /// were told. `name` is one that may have been looked up there. False: that cannot be known.
    fn await_listings(&self, dir: FileId, name: Option<&[u8]>) -> bool;
}

/// Where is told, for people, what nobody has asked for.
pub type Report = Box<dyn Fn(&str) + Send + Sync>;

/// What can be chosen about a filesystem in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSettings {
    /// How long an operation waits for the server.
    pub deadline: Duration,
    /// Objects on which leases are kept at the same time, about: what an operation under way needs
    /// is kept until it has ended.
    pub objects_max: usize,
    /// When reading is recorded.
    pub atime: AtimeRules,
    /// Whether a folder or a subvolume of what is served is asked for.
    pub is_part: bool,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        let atime = AtimeRules::all(AtimePolicy::Relative);
        Self { deadline: Duration::from_secs(30), objects_max: 100_000, atime, is_part: false }
    }
}

/// What the server told at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    filesystem: Uuid,
    subvol: SubvolId,
    seed: u64,
    is_read_only: bool,
    root: Ino,
}

/// Whether the session lives.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    /// By our clock: then the server may have given our leases to others.
    ends: Duration,
    /// There is no connection just now. What is asked waits for one: asked before, it could be
    /// lost without anybody knowing.
    is_cut_off: bool,
    is_closed: bool,
    /// Of the server that was last heard of.
    start: u64,
    /// How often something may have been lost with a server.
    losses: u64,
}

/// What is answered even if the server is away.
#[derive(Default)]
struct LastKnown {
    root: Option<Attributes>,
    /// Of some subvolumes.
    spaces: BTreeMap<SubvolId, SpaceReport>,
}

/// A filesystem on another machine, in use.
pub struct RemoteFs {
    identity: Identity,
    settings: RemoteSettings,
    clock: Arc<dyn Clock>,
    cache: RwLock<Cache>,
    needed: Needed,
    /// The order in which changes are made here and sent.
    order: Mutex<()>,
    pending: Pending,
    acquiring: Mutex<Acquiring>,
    /// The directory from which a name was removed last.
    removed_from: Mutex<Option<FileId>>,
    contention: Contention,
    server_time: ServerTime,
    gate: Gate,
    freezing: Freezing,
    pages: Arc<Pages>,
    mapped: Mapped,
    listings: Arc<Listings>,
    ahead: Arc<Ahead>,
    calls: Calls,
    opens: Opens,
    locking: Locking,
    places: Arc<Places>,
    readings: Readings,
    removals: Removals,
    held: Held,
    revocations: Revocations,
    kernel: Mutex<Option<Arc<dyn Kernel>>>,
    life: Mutex<Life>,
    revived: Condvar,
    last: Mutex<LastKnown>,
    ways: Ways,
    unsynced: Unsynced,
    losses: Losses,
    lock_losses: LockLosses,
    report: Mutex<Option<Report>>,
    /// Whom the server takes callers for, in this session.
    identities: Mutex<Identities>,
    /// Subvolumes that were rolled back, and when.
    eras: Mutex<BTreeMap<SubvolId, SubvolId>>,
}

fn eras_of(welcome: &Welcome) -> BTreeMap<SubvolId, SubvolId> {
    welcome.eras.iter().map(|era| (era.subvol, era.chain)).collect()
}

impl RemoteFs {
    /// The filesystem that the server told of. `clock` must go on while the machine sleeps.
    pub fn new(
        welcome: &Welcome,
        settings: RemoteSettings,
        clock: Arc<dyn Clock>,
        wire: Arc<dyn Wire>,
    ) -> Self {
        let identity = Identity {
            filesystem: welcome.filesystem,
            subvol: welcome.subvol,
            seed: welcome.seed,
            is_read_only: welcome.read_only,
            root: welcome.root,
        };
        let fs = Self {
            identity,
            settings,
            clock,
            cache: RwLock::default(),
            needed: Needed::default(),
            order: Mutex::default(),
            pending: Pending::default(),
            acquiring: Mutex::default(),
            removed_from: Mutex::default(),
            contention: Contention::default(),
            server_time: ServerTime::default(),
            gate: Gate::default(),
            freezing: Freezing::default(),
            pages: Arc::default(),
            mapped: Mapped::default(),
            listings: Arc::default(),
            ahead: Arc::default(),
            calls: Calls::new(wire),
            opens: Opens::default(),
            locking: Locking::default(),
            places: Arc::default(),
            readings: Readings::default(),
            removals: Removals::default(),
            held: Held::default(),
            revocations: Revocations::default(),
            kernel: Mutex::default(),
            life: Mutex::new(Life { start: welcome.start, ..Life::default() }),
            revived: Condvar::new(),
            last: Mutex::default(),
            ways: Ways::default(),
            unsynced: Unsynced::default(),
            losses: Losses::default(),
            lock_losses: LockLosses::default(),
            report: Mutex::default(),
            identities: Mutex::new(welcome.identities),
            eras: Mutex::new(eras_of(welcome)),
        };
        fs.meet(welcome);
        fs
    }

    /// Whom the server takes callers for.
    fn identities(&self) -> Identities {
        *self.identities.lock()
    }

    /// What a welcome says that is true from now on.
    fn meet(&self, welcome: &Welcome) {
        self.pending.set_credit(welcome.credit);
        self.server_time.told(welcome.now, self.clock.monotonic());
    }

    /// Whom to tell what people should know.
    pub fn set_report(&self, report: Report) {
        *self.report.lock() = Some(report);
    }

    fn report(&self, text: &str) {
        if let Some(report) = &*self.report.lock() {
            report(text);
        }
    }

    /// Whose caches have to be kept true from now on. Before, nothing is kept there.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) {
        *self.kernel.lock() = Some(kernel);
    }

    /// Whether there is a kernel that forgets attributes when it is told.
    fn can_forget_attributes(&self) -> bool {
        self.kernel.lock().is_some()
    }

    fn can_forget_names(&self) -> bool {
        self.kernel.lock().as_ref().is_some_and(|kernel| kernel.can_forget_names())
    }

    /// The root directory.
    pub fn root(&self) -> FileId {
        FileId::new(self.identity.subvol, self.identity.root)
    }

    /// Where names are in directories.
    pub fn seed(&self) -> u64 {
        self.identity.seed
    }

    /// The filesystem's identity.
    pub fn uuid(&self) -> Uuid {
        self.identity.filesystem
    }

    /// Whether nothing may be changed.
    pub fn is_read_only(&self) -> bool {
        self.identity.is_read_only
    }

    /// Ranges that are leased, and items that are kept.
    pub fn cached(&self) -> (usize, usize) {
        let cache = self.cache.read();
        (cache.ranges().len(), cache.len())
    }

    /// Gives leases back that are the least use, if there are too many. The cache is locked by who
    /// calls this.
    fn relieve(&self, cache: &mut Cache) {
        let is_needed = |file| self.needed.contains(file);
        let victims = cache.excess(self.settings.objects_max, is_needed);
        if !victims.is_empty() {
            let ranges = victims.into_iter().map(KeyRange::everything).collect();
            self.calls.note(ToServer::Unwanted(ranges));
        }
    }

    /// Changes, and bytes, that are on their way to the server.
    pub fn under_way(&self) -> (usize, u64) {
        self.pending.under_way()
    }

    /// Calls that were sent so far.
    pub fn calls_sent(&self) -> u64 {
        self.calls.sent()
    }

    /// The server has heard what was sent at `sent`, and keeps the session for `patience` from
    /// then on at least.
    pub fn confirmed(&self, sent: Duration, patience: Duration) {
        let mut life = self.life.lock();
        life.ends = life.ends.max(sent + patience);
        drop(life);
        self.revived.notify_all();
    }

    /// There is no connection to the server.
    pub fn disconnected(&self) {
        self.life.lock().is_cut_off = true;
        // Whoever has not seen that has made its change, and sent it in this session.
        drop(self.order.lock());
    }

    /// There is one again.
    pub fn connected(&self) {
        self.life.lock().is_cut_off = false;
        self.revived.notify_all();
    }

    /// Which start of the server was last heard of.
    pub fn start(&self) -> u64 {
        self.life.lock().start
    }

    /// How often something may have been lost with a server.
    fn losses(&self) -> u64 {
        self.life.lock().losses
    }

    /// Whether there is no connection to the server.
    fn is_cut_off(&self) -> bool {
        self.life.lock().is_cut_off
    }

    /// Whether what is cached may be used.
    pub fn is_alive(&self) -> bool {
        let life = *self.life.lock();
        !life.is_closed && self.clock.monotonic() < life.ends
    }

    /// Whether nobody is going to use it any more.
    pub fn is_closed(&self) -> bool {
        self.life.lock().is_closed
    }

    /// Waits until the session lives and the server can be reached, until `deadline` at most.
    fn wait_for_life(&self, deadline: Duration) -> bool {
        let mut life = self.life.lock();
        loop {
            let now = self.clock.monotonic();
            if life.is_closed || now >= deadline {
                return false;
            }
            if now < life.ends && !life.is_cut_off {
                return true;
            }
            self.revived.wait_for(&mut life, deadline - now);
        }
    }

    /// The session may have ended: nothing that was cached counts any more, here or in the kernel.
    pub fn forget_everything(&self) {
        let _forgetting = self.forget_mapped();
        self.remember_paths();
        let ranges = {
            let mut cache = self.cache.write();
            let ranges = cache.ranges();
            cache.clear_all();
            self.listings.revoke_all();
            ranges
        };
        self.gate.barrier();
        self.kernel_forgets(&ranges);
    }

    /// Has the kernel forget all of the objects that the ranges are of.
    fn kernel_forgets(&self, ranges: &[KeyRange]) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        kernel.forget_all_names();
        let mut files: Vec<FileId> = ranges.iter().map(|range| range.file()).collect();
        files.dedup();
        // Pages last: to drop them takes longest.
        files.iter().for_each(|file| kernel.forget_attributes(*file));
        self.kernel_forgets_all_listings();
        let has_bytes = |range: &KeyRange| range.last().kind == Kind::DATA;
        let mut files: Vec<FileId> =
            ranges.iter().filter(|range| has_bytes(range)).map(KeyRange::file).collect();
        files.dedup();
        files.into_iter().for_each(|file| self.drop_pages(file, (0, u64::MAX)));
    }

    /// Changes that are not durable at the server.
    pub fn kept(&self) -> usize {
        self.pending.kept()
    }

    /// Sees to it that the server has all that was done here, durably.
    fn hand_over(&self) -> gabion_fs::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        if self.unsynced.is_any() || self.pending.under_way().0 > 0 {
            self.syncfs()?;
        } else if self.readings.were_told() && self.is_reachable() {
            // Nobody was promised that.
            let _ = self.syncfs();
        }
        self.pending.settle();
        Ok(())
    }

    /// Whether the server can be asked just now, as far as it is known.
    pub fn is_reachable(&self) -> bool {
        self.is_alive() && !self.is_cut_off()
    }

    /// Nobody is going to use it any more.
    pub fn close(&self) {
        self.life.lock().is_closed = true;
        self.revived.notify_all();
        self.freezing.thaw_all();
        self.calls.lose_all();
        self.lose_pending(Extent::Kept, "it was unmounted before the server had them");
        self.revocations.close();
    }
}
