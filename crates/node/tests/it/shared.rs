//! A server and clients of it in one process, whose kernels are told what to forget.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::sync::Mutex;
use gabion_fs::lock::{Lock, Wait};
use gabion_fs::{
    Access, Caller, Detail, Error, IfExists, IfTaken, Leave, OpenRequest, Privileges,
    RenameRequest, Trust, WriteAt,
};
use gabion_link::errand::{Errand, Report};
use gabion_link::message::{SessionId, ToClient, ToServer, Welcome};
use gabion_link::range::KeyRange;
use gabion_link::wire::PAYLOAD_BYTES_MAX;
use gabion_map::{FileId, Payload};
use gabion_node::Clock;
use gabion_node::remote::{Kernel, RemoteFs, RemoteSettings, Wire};
use gabion_node::served::{Job, Peer, Rights, Served, Session};

use crate::world::{TestClock, World};

/// A server with workers, until it is dropped.
pub struct Server {
    pub world: World,
    pub served: Arc<Served>,
    jobs: crossbeam_channel::Sender<Job>,
    sessions: AtomicU64,
}

impl Server {
    pub fn new() -> Self {
        Self::with_disk(64 << 20)
    }

    /// On a disk of so many bytes.
    pub fn with_disk(bytes: u64) -> Self {
        let world = World::new(bytes);
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let sender = jobs.clone();
        let fs = Arc::clone(&world.fs);
        let served = Served::new(fs, 1, Box::new(move |job| drop(sender.send(job))));
        let served = Arc::new(served.expect("a sound map"));
        let settler = Arc::clone(&served);
        thread::spawn(move || settler.keep_settled(&|error| panic!("a round failed: {error}")));
        let errands = Arc::clone(&served);
        thread::spawn(move || errands.keep_errands());
        for _ in 0..4 {
            let (served, queue) = (Arc::downgrade(&served), queue.clone());
            thread::spawn(move || {
                while let Ok(job) = queue.recv() {
                    let Some(served) = served.upgrade() else { return };
                    served.run(job);
                }
            });
        }
        Self { world, served, jobs, sessions: AtomicU64::new(1) }
    }

    pub fn client(&self) -> Client {
        self.client_limited(Rights::TRUSTED, RemoteSettings::default().objects_max)
    }

    pub fn client_with(&self, rights: Rights) -> Client {
        self.client_limited(rights, RemoteSettings::default().objects_max)
    }

    pub fn client_limited(&self, rights: Rights, objects_max: usize) -> Client {
        let (client, messages) = self.unheard_client(rights, objects_max);
        client.hear(messages);
        client
    }

    /// A client that is not told yet what the server says to it.
    pub fn unheard_client(
        &self,
        rights: Rights,
        objects_max: usize,
    ) -> (Client, crossbeam_channel::Receiver<ToClient>) {
        let deadline = Duration::from_secs(20);
        self.client_of(rights, RemoteSettings { deadline, objects_max, ..Default::default() })
    }

    /// The same with other settings.
    pub fn client_of(
        &self,
        rights: Rights,
        settings: RemoteSettings,
    ) -> (Client, crossbeam_channel::Receiver<ToClient>) {
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (to_client, messages) = crossbeam_channel::unbounded();
        let session =
            self.served.begin(id, format!("client {}", id.0), rights, Arc::new(ToPeer(to_client)));
        let welcome = self.welcome(&session);
        let wire = Arc::new(ToSession {
            served: Arc::clone(&self.served),
            session: Mutex::new(session),
            sent: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            road: Mutex::default(),
        });
        let is_part = (rights.root, rights.subvolume) != (gabion_fs::ROOT, None);
        let settings = RemoteSettings { is_part, ..settings };
        let clock = Arc::new(TestClock::default());
        let its_clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let to_server = Arc::clone(&wire) as Arc<dyn Wire>;
        let fs = Arc::new(RemoteFs::new(&welcome, settings, its_clock, to_server));
        fs.confirmed(Duration::ZERO, Duration::from_secs(1_000_000));
        let kernel = Arc::new(FakeKernel::default());
        fs.set_kernel(Arc::clone(&kernel) as Arc<dyn Kernel>);
        for attend in [RemoteFs::attend, RemoteFs::attend_later] {
            let fs = Arc::clone(&fs);
            thread::spawn(move || attend(&fs));
        }
        let root = fs.root();
        (Client { fs, kernel, wire, clock, root }, messages)
    }

    pub fn welcome(&self, session: &Session) -> Welcome {
        let rights = session.rights();
        Welcome {
            session: session.id(),
            secret: 0,
            received: 0,
            patience_ms: 1_000_000,
            filesystem: self.world.fs.map().uuid(),
            subvol: self.served.subvolume_of(&rights),
            seed: self.world.fs.map().name_seed(),
            read_only: false,
            start: 1,
            now: self.served.now(),
            credit: self.served.credit(session),
            identities: rights.identities,
            root: rights.root,
            eras: self.served.eras(),
        }
    }

    /// The client's session ends.
    pub fn end(&self, client: &Client) {
        self.served.end(&client.session());
    }

    /// The client's session ends, and it begins another one, in which nobody answers it.
    pub fn begin_again(&self, client: &Client) {
        drop(self.begin_unheard(client));
    }

    /// The same. What it is not told is given.
    pub fn begin_unheard(&self, client: &Client) -> crossbeam_channel::Receiver<ToClient> {
        self.served.end(&client.session());
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (to_client, messages) = crossbeam_channel::unbounded();
        let session =
            self.served.begin(id, String::new(), Rights::TRUSTED, Arc::new(ToPeer(to_client)));
        let welcome = self.welcome(&session);
        *client.wire.session.lock() = session;
        client.wire.is_cut.store(false, Ordering::Relaxed);
        client.fs.begin_again(&welcome);
        messages
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.served.close();
        self.served.end_rounds();
        self.served.end_errands();
        let _ = &self.jobs;
    }
}

pub struct ToPeer(pub crossbeam_channel::Sender<ToClient>);

impl Peer for ToPeer {
    fn send(&self, message: ToClient) {
        // As bytes and back, as on a wire.
        let bytes = message.encode();
        assert!(bytes.len() <= PAYLOAD_BYTES_MAX, "{} bytes fit into no frame", bytes.len());
        let message = ToClient::decode(&bytes).expect("what is sent is understood");
        let _ = self.0.send(message);
    }

    fn sent(&self) -> u64 {
        0
    }

    fn arrived(&self) -> u64 {
        0
    }
}

struct ToSession {
    served: Arc<Served>,
    session: Mutex<Arc<Session>>,
    /// Messages so far.
    sent: AtomicU64,
    /// What is sent does not arrive.
    is_cut: AtomicBool,
    /// Where messages are on their way, if that takes time.
    road: Mutex<Option<crossbeam_channel::Sender<ToServer>>>,
}

impl ToSession {
    fn arrive(&self, message: ToServer) {
        let session = Arc::clone(&*self.session.lock());
        self.served.receive(&session, message);
    }
}

impl Wire for ToSession {
    fn send(&self, message: ToServer) {
        let message = ToServer::decode(&message.encode()).expect("what is sent is understood");
        if self.is_cut.load(Ordering::Relaxed) {
            return;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        match &*self.road.lock() {
            Some(road) => road.send(message).unwrap(),
            None => self.arrive(message),
        }
    }

    fn begin_again(&self) {
        // What is sent has arrived.
    }
}

/// What a kernel was told to forget.
#[derive(Default)]
pub struct FakeKernel {
    pub attributes: Mutex<BTreeSet<FileId>>,
    pub names: AtomicU64,
    pub is_old: AtomicBool,
    pub bytes: Mutex<Vec<(FileId, u64, u64)>>,
    pub listings: Mutex<Vec<FileId>>,
    /// Held by who has not made use of a listing yet.
    pub listing: Mutex<()>,
    pub places: Mutex<Vec<(FileId, String)>>,
}

impl Kernel for FakeKernel {
    fn forget_attributes(&self, file: FileId) {
        self.attributes.lock().insert(file);
    }

    fn forget_names(&self, ranges: &[KeyRange]) -> bool {
        assert!(ranges.iter().all(|range| range.overlaps(&KeyRange::names(range.file()))));
        self.names.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn forget_all_names(&self) {
        self.names.fetch_add(1, Ordering::Relaxed);
    }

    fn forget_name(&self, parent: FileId, name: &[u8]) {
        self.places.lock().push((parent, String::from_utf8(name.to_vec()).unwrap()));
    }

    fn can_forget_names(&self) -> bool {
        !self.is_old.load(Ordering::Relaxed)
    }

    fn forget_bytes(&self, file: FileId, from: u64, to: u64) {
        self.bytes.lock().push((file, from, to));
    }

    fn forget_listing(&self, dir: FileId) -> bool {
        self.listings.lock().push(dir);
        true
    }

    fn await_listings(&self, _: FileId, _: Option<&[u8]>) -> bool {
        let _listing = self.listing.lock();
        true
    }
}

pub struct Client {
    pub fs: Arc<RemoteFs>,
    pub kernel: Arc<FakeKernel>,
    wire: Arc<ToSession>,
    pub clock: Arc<TestClock>,
    pub root: FileId,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.fs.close();
    }
}

/// How long something may take that happens at once on a machine that has time for it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long who waits for it rests between two looks: others need the processors.
pub const GLANCE: Duration = Duration::from_micros(200);

#[track_caller]
pub fn await_that(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "it does not become so");
        thread::sleep(GLANCE);
    }
}

pub fn caller() -> Caller {
    Caller { trust: Trust::CheckedByKernel, ..Caller::superuser() }
}

impl Client {
    pub fn session(&self) -> Arc<Session> {
        Arc::clone(&*self.wire.session.lock())
    }

    pub fn errand(&self, errand: Errand) -> Report {
        self.fs.run_errand(&Caller::superuser(), errand).unwrap()
    }

    /// Why an errand is not done.
    pub fn refused(&self, caller: &Caller, errand: Errand) -> String {
        gabion_link::wire::said(&self.fs.run_errand(caller, errand).unwrap_err())
    }

    /// It is told these from now on.
    pub fn hear(&self, messages: crossbeam_channel::Receiver<ToClient>) {
        let receiver = Arc::clone(&self.fs);
        thread::spawn(move || {
            while let Ok(message) = messages.recv() {
                receiver.receive(message);
            }
        });
    }

    /// What it says does not arrive any more, until a new session begins.
    pub fn cut(&self) {
        self.wire.is_cut.store(true, Ordering::Relaxed);
    }

    /// Runs one request to its answer.
    pub fn run<T>(&self, request: impl FnOnce(&RemoteFs) -> T) -> T {
        let value = request(&self.fs);
        self.fs.answered();
        value
    }

    /// What it says from now on takes some time to arrive.
    pub fn move_away(&self) {
        let (road, messages) = crossbeam_channel::unbounded();
        *self.wire.road.lock() = Some(road);
        let wire = Arc::downgrade(&self.wire);
        thread::spawn(move || {
            while let Ok(message) = messages.recv() {
                thread::sleep(Duration::from_micros(300));
                let Some(wire) = wire.upgrade() else { return };
                wire.arrive(message);
            }
        });
    }

    /// Messages that were sent to the server so far.
    pub fn messages(&self) -> u64 {
        self.wire.sent.load(Ordering::Relaxed)
    }

    pub fn create(&self, name: &str) -> FileId {
        let request = OpenRequest { access: Access::WRITE, truncate: None };
        let (name, how) = (name.as_bytes(), IfExists::Open);
        self.run(|fs| fs.create(&caller(), self.root, name, 0o644, how, &request)).unwrap().0.file
    }

    pub fn lookup(&self, name: &str) -> Result<FileId, Error> {
        let found = self.run(|fs| fs.lookup(&caller(), self.root, name.as_bytes()));
        found.map(|found| found.file)
    }

    pub fn size(&self, file: FileId) -> u64 {
        self.run(|fs| fs.stat(file)).unwrap().size
    }

    pub fn try_lock(&self, lock: Lock) -> Result<(), Error> {
        let (tell, told) = crossbeam_channel::bounded(1);
        let end = Box::new(move |result| tell.send(result).unwrap());
        self.run(|fs| fs.lock(lock, Wait::No, end));
        told.recv_timeout(Duration::from_secs(20)).expect("it ends")
    }

    pub fn write(&self, file: FileId, at: WriteAt, bytes: &[u8]) {
        let payload = Payload::Copied(bytes);
        self.run(|fs| fs.write(&caller(), file, at, &payload, Privileges::Keep)).unwrap();
    }

    /// As a kernel that keeps what it reads.
    pub fn read(&self, file: FileId, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = |fs: &RemoteFs| {
            let count = fs.read_pages(&caller(), file, offset, &mut bytes);
            fs.record_reading(&caller(), file);
            count
        };
        let count = self.run(read).unwrap();
        bytes.truncate(count);
        bytes
    }

    pub fn names(&self, dir: FileId) -> Vec<String> {
        let detail = Detail::Attributes;
        let list = |fs: &RemoteFs| {
            let listing = fs.readdir(&caller(), dir, 2, 100_000, detail);
            fs.record_reading(&caller(), dir);
            listing
        };
        let listing = self.run(list).unwrap();
        let name = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        listing.entries.iter().map(|entry| name(entry.name())).collect()
    }

    /// How many calls `run` takes.
    pub fn calls<T>(&self, run: impl FnOnce(&Self) -> T) -> (T, u64) {
        let before = self.fs.calls_sent();
        let value = run(self);
        (value, self.fs.calls_sent() - before)
    }
}

pub fn rename<'a>(dir: FileId, from: &'a str, to: &'a str) -> RenameRequest<'a> {
    RenameRequest {
        source_parent: dir,
        source_name: from.as_bytes(),
        target_parent: dir,
        target_name: to.as_bytes(),
        if_taken: IfTaken::Replace,
        leave: Leave::Nothing,
    }
}
