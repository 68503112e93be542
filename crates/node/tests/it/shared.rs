//! Clients of one server, in one process: what each of them sees, what their kernels are told, and
//! how many messages it takes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use gabion_base::ids::Ino;
use gabion_base::sync::Mutex;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Caller, Changes, Detail, Error, IfExists, OpenRequest, Privileges, Trust, WriteAt,
};
use gabion_link::message::{
    Answer, Call, CallId, ChangeNumber, Prefetch, SessionId, ToClient, ToServer, Welcome,
};
use gabion_link::range::KeyRange;
use gabion_link::wire::PAYLOAD_BYTES_MAX;
use gabion_map::{FileId, LockMode, OpenMode, Payload};
use gabion_node::remote::{Kernel, RemoteFs, RemoteSettings, Wire};
use gabion_node::served::{Job, Peer, Rights, Served, Session};
use gabion_node::{Clock, Filesystem, Kept};

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
        let world = World::new(64 << 20);
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
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (to_client, messages) = crossbeam_channel::unbounded();
        let session =
            self.served.begin(id, format!("client {}", id.0), rights, Arc::new(ToPeer(to_client)));
        let wire = Arc::new(ToSession {
            served: Arc::clone(&self.served),
            session: Mutex::new(session),
            sent: AtomicU64::new(0),
            is_cut: AtomicBool::new(false),
            road: Mutex::default(),
        });
        let settings = RemoteSettings { deadline: Duration::from_secs(20), objects_max };
        let clock = Arc::new(TestClock::default());
        let its_clock = Arc::clone(&clock) as Arc<dyn Clock>;
        let to_server = Arc::clone(&wire) as Arc<dyn Wire>;
        let fs = Arc::new(RemoteFs::new(&self.welcome(id, rights), settings, its_clock, to_server));
        fs.confirmed(Duration::ZERO, Duration::from_secs(1_000_000));
        let kernel = Arc::new(FakeKernel::default());
        fs.set_kernel(Arc::clone(&kernel) as Arc<dyn Kernel>);
        let receiver = Arc::clone(&fs);
        thread::spawn(move || {
            while let Ok(message) = messages.recv() {
                receiver.receive(message);
            }
        });
        for attend in [RemoteFs::attend, RemoteFs::attend_later] {
            let fs = Arc::clone(&fs);
            thread::spawn(move || attend(&fs));
        }
        Client { fs, kernel, wire, clock, root: self.world.root() }
    }

    fn welcome(&self, session: SessionId, rights: Rights) -> Welcome {
        Welcome {
            session,
            secret: 0,
            received: 0,
            patience_ms: 1_000_000,
            filesystem: self.world.fs.map().uuid(),
            subvol: self.world.root().subvol,
            seed: self.world.fs.map().name_seed(),
            read_only: false,
            start: 1,
            now: self.served.now(),
            credit: self.served.credit(),
            identities: rights.identities,
            root: rights.root,
        }
    }

    /// The client's session ends.
    pub fn end(&self, client: &Client) {
        self.served.end(&client.session());
    }

    /// The client's session ends, and it begins another one, in which nobody answers it.
    pub fn begin_again(&self, client: &Client) {
        self.served.end(&client.session());
        let id = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (to_client, _) = crossbeam_channel::unbounded();
        let session =
            self.served.begin(id, String::new(), Rights::TRUSTED, Arc::new(ToPeer(to_client)));
        *client.wire.session.lock() = session;
        client.wire.is_cut.store(false, Ordering::Relaxed);
        client.fs.begin_again(&self.welcome(id, Rights::TRUSTED));
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

struct ToPeer(crossbeam_channel::Sender<ToClient>);

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
        unreachable!("this server does not crash");
    }
}

/// What a kernel was told to forget.
#[derive(Default)]
pub struct FakeKernel {
    attributes: Mutex<BTreeSet<FileId>>,
    names: AtomicU64,
    is_old: AtomicBool,
    bytes: Mutex<Vec<(FileId, u64, u64)>>,
    pub listings: Mutex<Vec<FileId>>,
    /// Held by who has not made use of a listing yet.
    pub listing: Mutex<()>,
    places: Mutex<Vec<(FileId, String)>>,
}

impl Kernel for FakeKernel {
    fn forget_attributes(&self, file: FileId) {
        self.attributes.lock().insert(file);
    }

    fn forget_names(&self) {
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

/// Somebody whose kernel has checked permissions.
pub fn caller() -> Caller {
    Caller { trust: Trust::CheckedByKernel, ..Caller::superuser() }
}

impl Client {
    pub fn session(&self) -> Arc<Session> {
        Arc::clone(&*self.wire.session.lock())
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

    fn size(&self, file: FileId) -> u64 {
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
        let count = self.run(|fs| fs.read_pages(&caller(), file, offset, &mut bytes)).unwrap();
        bytes.truncate(count);
        bytes
    }

    pub fn names(&self, dir: FileId) -> Vec<String> {
        let detail = Detail::Attributes;
        let listing = self.run(|fs| fs.readdir(&caller(), dir, 2, 100_000, detail)).unwrap();
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

#[test]
fn what_one_client_makes_and_removes_the_others_see_at_once() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    assert!(matches!(b.lookup("file"), Err(Error::NotFound)));
    let file = a.create("file");
    assert_eq!(b.lookup("file").unwrap(), file);
    a.write(file, WriteAt::Offset(0), b"content");
    assert_eq!((b.size(file), b.read(file, 0, 100)), (7, b"content".to_vec()));
    a.run(|fs| fs.rename(&caller(), &rename(a.root, "file", "other"))).unwrap();
    assert!(matches!(b.lookup("file"), Err(Error::NotFound)));
    assert_eq!(b.names(b.root), ["other"]);
    a.run(|fs| fs.unlink(&caller(), a.root, b"other")).unwrap();
    assert_eq!(b.names(b.root), [""; 0]);
}

pub fn rename<'a>(dir: FileId, from: &'a str, to: &'a str) -> gabion_fs::RenameRequest<'a> {
    gabion_fs::RenameRequest {
        source_parent: dir,
        source_name: from.as_bytes(),
        target_parent: dir,
        target_name: to.as_bytes(),
        if_taken: gabion_fs::IfTaken::Replace,
        leave: gabion_fs::Leave::Nothing,
    }
}

#[test]
fn what_is_known_costs_no_message_until_somebody_changes_it() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    assert_eq!(b.names(b.root), ["file"]);
    assert_eq!(b.calls(|b| (b.lookup("file").unwrap(), b.size(file))).1, 0);
    // Absent names are known, too.
    assert_eq!(b.calls(|b| b.lookup("absent").is_err()), (true, 0));
    assert_eq!(b.kernel.attributes.lock().len(), 0);
    a.write(file, WriteAt::Offset(0), b"1");
    assert!(b.kernel.attributes.lock().contains(&file), "the kernel was told before");
    assert_eq!(b.calls(|b| b.size(file)), (1, 1));
    // A change of one name takes no more than that name.
    let told = b.kernel.names.load(Ordering::Relaxed);
    a.create("another");
    assert_eq!(b.kernel.names.load(Ordering::Relaxed), told + 1);
    assert_eq!(b.calls(|b| b.lookup("file").unwrap()).1, 0);
}

#[test]
fn a_kernel_forgets_by_which_name_it_knew_a_folder_that_others_have_moved() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let mkdir = |name: &str| a.run(|fs| fs.mkdir(&caller(), a.root, name.as_bytes(), 0o755));
    let folder = mkdir("old").unwrap().file;
    assert_eq!(b.lookup("old").unwrap(), folder);
    b.lookup("new").unwrap_err();
    assert_eq!(b.lookup("old").unwrap(), folder);
    a.run(|fs| fs.rename(&caller(), &rename(a.root, "old", "new"))).unwrap();
    assert!(b.kernel.places.lock().is_empty());
    assert_eq!(b.lookup("new").unwrap(), folder);
    let began = std::time::Instant::now();
    while *b.kernel.places.lock() != [(b.root, "old".to_owned())] {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", b.kernel.places.lock());
        thread::yield_now();
    }
    // What it has moved itself it knows.
    b.run(|fs| fs.rename(&caller(), &rename(b.root, "new", "newest"))).unwrap();
    assert_eq!(b.lookup("newest").unwrap(), folder);
    assert_eq!(b.kernel.places.lock().len(), 1);
}

#[test]
fn a_kernel_that_cannot_forget_names_keeps_none() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    let (attributes, name) =
        (Kept::Attributes(file), Kept::Name { dir: client.root, name: b"file" });
    let kept = || [attributes, name].map(|kept| client.run(|fs| Filesystem::is_kept(fs, kept)));
    assert_eq!(kept(), [true, true]);
    client.kernel.is_old.store(true, Ordering::Relaxed);
    assert_eq!(kept(), [true, false]);
}

#[test]
fn a_walk_costs_one_message_for_each_directory() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    for dir in 0..10 {
        let name = format!("d{dir}");
        let made = a.run(|fs| fs.mkdir(&caller(), a.root, name.as_bytes(), 0o755)).unwrap().file;
        for file in 0..20 {
            let name = format!("f{file}");
            let mode = gabion_fs::FileType::Regular;
            a.run(|fs| fs.mknod(&caller(), made, name.as_bytes(), mode, 0o644, 0)).unwrap();
        }
    }
    let walk = |client: &Client| {
        let mut count = 0;
        for name in client.names(client.root) {
            let dir = client.lookup(&name).unwrap();
            for name in client.names(dir) {
                let found = client.run(|fs| fs.lookup(&caller(), dir, name.as_bytes())).unwrap();
                assert_eq!(found.nlink, 1);
                count += 1;
            }
        }
        count
    };
    let (count, calls) = b.calls(walk);
    assert_eq!(count, 200);
    // One of the first name, and guesses at what others have to themselves.
    assert!(calls <= 14, "{calls} calls for 11 directories");
    assert_eq!(b.calls(walk), (200, 0));
    // Who made it all knows it already.
    assert!(a.calls(walk).1 <= 2);
}

#[test]
fn pages_are_dropped_before_others_bytes_are_accepted() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    a.write(file, WriteAt::Offset(0), &[1; 20_000]);
    // Who has not looked for it might ask before the server knows of it.
    b.lookup("file").unwrap();
    assert_eq!(b.read(file, 0, 20_000), [1; 20_000]);
    assert!(b.kernel.bytes.lock().is_empty());
    a.write(file, WriteAt::Offset(5000), &[2; 10]);
    assert_eq!(*b.kernel.bytes.lock(), [(file, 4096, 8192)]);
    assert_eq!(b.read(file, 4096, 4096)[904..914], [2; 10]);
    // A client's own pages go the same way: others than the writer may have read them.
    a.read(file, 0, 4096);
    a.write(file, WriteAt::Offset(0), &[3]);
    assert_eq!(*a.kernel.bytes.lock(), [(file, 0, 4096)]);
    // To cut and to extend a file are changes of bytes.
    b.read(file, 16_384, 4096);
    let size = Some((17_000, Privileges::Keep));
    let changes = Changes { size, ..Changes::default() };
    a.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
    assert_eq!(b.kernel.bytes.lock().last(), Some(&(file, 16_384, 20_480)));
    assert_eq!(b.size(file), 17_000);
}

#[test]
fn what_a_client_has_open_outlives_its_last_name() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    a.write(file, WriteAt::Offset(0), b"kept");
    a.fs.release(file);
    b.lookup("file").unwrap();
    let request = OpenRequest { access: Access::READ, truncate: None };
    b.run(|fs| fs.open_file(&caller(), file, &request)).unwrap();
    a.run(|fs| fs.unlink(&caller(), a.root, b"file")).unwrap();
    server.world.reap();
    assert_eq!(b.read(file, 0, 10), b"kept");
    b.fs.release(file);
    b.fs.ping();
    server.world.reap();
    assert!(matches!(server.world.fs.stat(file), Err(Error::Stale)));
}

#[test]
fn a_new_session_knows_at_once_what_the_client_has_open() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = b.create("file");
    b.run(|fs| fs.fsync(file)).unwrap();
    server.begin_again(&b);
    a.run(|fs| fs.unlink(&caller(), a.root, b"file")).unwrap();
    a.run(|fs| fs.syncfs()).unwrap();
    server.world.reap();
    assert_eq!(server.world.fs.stat(file).unwrap().nlink, 0);
}

#[test]
fn a_file_that_is_closed_while_it_is_opened_once_more_stays() {
    let server = Server::new();
    let a = server.client();
    let (peer, messages) = crossbeam_channel::unbounded();
    let session = server.served.begin(
        SessionId(1000),
        String::new(),
        Rights::TRUSTED,
        Arc::new(ToPeer(peer)),
    );
    let create = |id| {
        let (name, if_exists) = (b"file".to_vec(), IfExists::Open);
        let request = OpenRequest { access: Access::EXISTS, truncate: None };
        let call = Call::Create { parent: a.root, name, permissions: 0o644, if_exists, request };
        let call =
            ToServer::Call { id: CallId(id), caller: caller(), call, after: ChangeNumber(0) };
        server.served.receive(&session, call);
        loop {
            match messages.recv_timeout(Duration::from_secs(20)) {
                Ok(ToClient::Answer { result: Ok(Answer::Made(made, _)), .. }) => return made.file,
                Ok(ToClient::Revoke { id, .. }) => {
                    server.served.receive(&session, ToServer::Released(vec![id]));
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let file = create(1);
    // The client says that it has closed it before it hears that it is open once more.
    assert_eq!(create(2), file);
    server.served.receive(&session, ToServer::Closed(file));
    server.world.fs.unlink(&caller(), a.root, b"file").unwrap();
    server.world.reap();
    assert_eq!(server.world.fs.stat(file).unwrap().nlink, 0);
    server.served.receive(&session, ToServer::Closed(file));
    server.world.reap();
    assert!(matches!(server.world.fs.stat(file), Err(Error::Stale)));
}

#[test]
fn a_session_that_ends_leaves_nothing_behind() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    b.lookup("file").unwrap();
    b.read(file, 0, 10);
    let lock = lock_of(file, Strength::Exclusive);
    let (told, locked) = crossbeam_channel::bounded(1);
    let first = told.clone();
    let end = Box::new(move |result: Result<(), Error>| first.send(result.is_ok()).unwrap());
    b.run(|fs| fs.lock(lock, Wait::Yes, end));
    assert!(locked.recv().unwrap());
    let end = Box::new(move |result: Result<(), Error>| told.send(result.is_ok()).unwrap());
    a.run(|fs| fs.lock(lock, Wait::Yes, end));
    assert!(locked.try_recv().is_err());
    // It does not answer any more.
    b.fs.close();
    server.served.end(&b.session());
    assert!(locked.recv().unwrap());
    a.write(file, WriteAt::Offset(0), b"x");
    let clients = server.served.clients();
    assert_eq!(clients.len(), 1);
    let (leases, waiting) = server.served.leases();
    assert!(waiting.is_empty());
    assert!(leases.iter().all(|lease| lease.client.0 == a.session().id().0));
}

fn lock_of(file: FileId, strength: Strength) -> Lock {
    let owner = LockOwner { client: 0, number: 7 };
    let (class, range) = (LockClass::Posix, LockRange::WHOLE);
    Lock { file, class, owner, pid: 1, strength, range }
}

#[test]
fn a_lock_is_waited_for_across_clients_and_can_be_given_up() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    b.lookup("file").unwrap();
    let lock = lock_of(file, Strength::Exclusive);
    a.try_lock(lock).unwrap();
    assert!(b.run(|fs| fs.lock_conflict(&lock)).unwrap().is_some());
    let (told, ended) = crossbeam_channel::bounded(1);
    let second = told.clone();
    let end = Box::new(move |result| second.send(result).unwrap());
    let ticket = b.run(|fs| fs.lock(lock, Wait::Yes, end));
    b.fs.cancel_lock(ticket.unwrap());
    assert!(matches!(ended.recv().unwrap(), Err(Error::Interrupted)));
    let end = Box::new(move |result| told.send(result).unwrap());
    assert!(b.run(|fs| fs.lock(lock, Wait::Yes, end)).is_some());
    let (class, owner, range) = (lock.class, lock.owner, lock.range);
    a.run(|fs| fs.unlock(file, class, owner, range)).unwrap();
    ended.recv().unwrap().unwrap();
}

#[test]
fn whoever_asks_the_server_without_a_request_of_the_kernel_holds_up_no_revocation() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    // As `gabion status` does, on a thread that handles no requests.
    b.run(RemoteFs::space).unwrap();
    let see_and_change = |byte: &[u8]| {
        b.lookup("file").unwrap();
        a.write(file, WriteAt::Offset(0), byte);
    };
    see_and_change(b"1");
    // As a lock that was waited for and whose owner is gone.
    let lock = lock_of(file, Strength::Exclusive);
    let (class, owner, range) = (lock.class, lock.owner, lock.range);
    a.try_lock(lock).unwrap();
    let (told, ended) = crossbeam_channel::bounded(1);
    let fs = Arc::clone(&b.fs);
    let end = Box::new(move |result: Result<(), Error>| {
        result.unwrap();
        fs.unlock_soon(file, class, owner, range);
        told.send(()).unwrap();
    });
    assert!(b.run(|fs| fs.lock(lock, Wait::Yes, end)).is_some());
    a.run(|fs| fs.unlock(file, class, owner, range)).unwrap();
    ended.recv().unwrap();
    while !server.world.fs.locks().held().is_empty() {
        thread::yield_now();
    }
    see_and_change(b"2");
}

#[test]
fn a_lock_that_is_asked_for_while_the_session_ends_is_nobodys() {
    let world = World::new(16 << 20);
    let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
    let served =
        Served::new(Arc::clone(&world.fs), 1, Box::new(move |job| jobs.send(job).unwrap()))
            .expect("a sound map");
    let lock = lock_of(world.root(), Strength::Exclusive);
    for round in 1..2000 {
        let (peer, _messages) = crossbeam_channel::unbounded();
        let session =
            served.begin(SessionId(round), String::new(), Rights::TRUSTED, Arc::new(ToPeer(peer)));
        let call = Call::Lock { lock, wait: Wait::Yes };
        served.receive(
            &session,
            ToServer::Call { id: CallId(1), caller: caller(), call, after: ChangeNumber(0) },
        );
        let job = queue.recv().unwrap();
        let both = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                served.run(job);
            });
            both.wait();
            served.end(&session);
        });
        assert_eq!(world.fs.locks().held(), [], "in round {round}");
    }
}

#[test]
fn what_is_asked_for_at_once_and_fits_into_no_answer_comes_in_parts() {
    let server = Server::new();
    let a = server.client();
    let value = [7; 4000];
    let make = |name: &str, attributes: usize| {
        let file = a.create(name);
        for number in 0..attributes {
            let attribute = format!("user.{number}");
            let (how, bit) = (SetCondition::Always, SetGroupBit::Keep);
            let set = |fs: &RemoteFs| {
                fs.set_xattr(&caller(), file, attribute.as_bytes(), &value, how, bit)
            };
            a.run(set).unwrap();
        }
        file
    };
    let files: Vec<FileId> = (0..4).map(|file| make(&format!("file {file}"), 280)).collect();
    let (peer, messages) = crossbeam_channel::unbounded();
    let session = server.served.begin(
        SessionId(1000),
        String::new(),
        Rights::TRUSTED,
        Arc::new(ToPeer(peer)),
    );
    let want = |file: &FileId| (KeyRange::attributes(*file), LockMode::Shared);
    let needed = files.iter().map(want).collect();
    let call = Call::Acquire { needed, welcome: Vec::new(), prefetch: Prefetch::Names };
    server.served.receive(
        &session,
        ToServer::Call { id: CallId(1), caller: caller(), call, after: ChangeNumber(0) },
    );
    let answer = messages.recv_timeout(Duration::from_secs(20));
    let Ok(ToClient::Answer { result: Ok(_), grants, .. }) = answer else {
        panic!("it is answered");
    };
    assert_eq!(grants.len(), 1);
    // What does not fit at all is refused.
    let large = make("large", 600);
    a.run(|fs| fs.syncfs()).unwrap();
    let b = server.client();
    assert!(matches!(b.run(|fs| fs.stat(large)), Err(Error::AttributeTooLarge)));
    assert_eq!(b.run(|fs| fs.stat(files[3])).unwrap().file, files[3]);
}

/// Each client adds to counters that it reads as a kernel does, keeping what it has read until it
/// is told to drop it, under a lock of its own making: the rename of a file.
#[test]
fn counters_in_files_are_exact_whoever_adds_to_them() {
    const CLIENTS: usize = 4;
    const ROUNDS: u64 = 60;
    let server = Server::new();
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    let counter = clients[0].create("counter");
    clients[0].write(counter, WriteAt::Offset(0), &0_u64.to_le_bytes());
    clients[0].create("token");
    thread::scope(|scope| {
        for (index, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                let own = format!("token of {index}");
                client.lookup("counter").unwrap();
                for _ in 0..ROUNDS {
                    // Whoever has renamed it has it.
                    let take = rename(client.root, "token", &own);
                    while client.run(|fs| fs.rename(&caller(), &take)).is_err() {
                        thread::yield_now();
                    }
                    let value = client.read(counter, 0, 8);
                    let value = u64::from_le_bytes(value.try_into().unwrap()) + 1;
                    client.write(counter, WriteAt::Offset(0), &value.to_le_bytes());
                    let give = rename(client.root, &own, "token");
                    client.run(|fs| fs.rename(&caller(), &give)).unwrap();
                }
            });
        }
    });
    let value = clients[1].read(counter, 0, 8);
    assert_eq!(u64::from_le_bytes(value.try_into().unwrap()), CLIENTS as u64 * ROUNDS);
}

#[test]
fn appends_of_all_clients_are_all_there() {
    let server = Server::new();
    let clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    let file = clients[0].create("log");
    thread::scope(|scope| {
        for (index, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                client.lookup("log").unwrap();
                for round in 0..100_u32 {
                    client.write(file, WriteAt::End, format!("{index} {round:05}\n").as_bytes());
                }
            });
        }
    });
    let text = String::from_utf8(clients[2].read(file, 0, 1 << 16)).unwrap();
    let lines: BTreeSet<_> = text.lines().collect();
    assert_eq!((lines.len(), text.lines().count()), (300, 300));
}

#[test]
fn what_was_made_durable_is_there_after_a_crash() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), b"durable");
    client.run(|fs| fs.fsync(file)).unwrap();
    let world = server.world.after_crash(OpenMode::ReadOnly);
    assert_eq!(world.read(world.lookup("file").unwrap().file), b"durable");
}

#[test]
fn what_is_made_and_written_in_a_new_directory_costs_no_call_for_each_file() {
    const FILES: usize = 500;
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let (dir, calls) = a.calls(|a| {
        let dir = a.run(|fs| fs.mkdir(&caller(), a.root, b"dir", 0o755)).unwrap().file;
        for number in 0..FILES {
            let (name, how) = (format!("file {number}"), IfExists::Fail);
            let request = OpenRequest { access: Access::WRITE, truncate: None };
            let make =
                |fs: &RemoteFs| fs.create(&caller(), dir, name.as_bytes(), 0o644, how, &request);
            let file = a.run(make).unwrap().0.file;
            a.write(file, WriteAt::Offset(0), name.as_bytes());
            let changes = Changes { permissions: Some(0o600), ..Changes::default() };
            a.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
            a.fs.release(file);
        }
        dir
    });
    assert!(calls <= 4, "{calls} calls for {FILES} files");
    // Who looks sees all of it, and whoever made it goes on reading without asking.
    assert_eq!(b.names(dir).len(), FILES);
    let number = |client: &Client| {
        let found = client.run(|fs| fs.lookup(&caller(), dir, b"file 77")).unwrap();
        (found.size, found.mode & 0o777)
    };
    assert_eq!(number(&b), (7, 0o600));
    assert_eq!(a.calls(number), ((7, 0o600), 0));
    a.run(|fs| fs.fsync(dir)).unwrap();
    assert_eq!(a.fs.under_way(), (0, 0));
    let world = server.world.after_crash(OpenMode::ReadOnly);
    let listed = world.fs.readdir(&caller(), dir, 2, 100_000, Detail::Names).unwrap();
    assert_eq!(listed.entries.len(), FILES);
}

#[test]
fn a_whole_directory_is_removed_with_a_call_for_many_names() {
    const FILES: usize = 200;
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    for number in 0..FILES {
        let file = a.create(&format!("file {number}"));
        a.fs.release(file);
    }
    let names = b.names(b.root);
    let (removed, calls) = b.calls(|b| {
        let unlink = |name: &String| b.run(|fs| fs.unlink(&caller(), b.root, name.as_bytes()));
        names.iter().filter(|name| unlink(name).is_ok()).count()
    });
    assert_eq!(removed, FILES);
    assert!(calls <= 10, "{calls} calls for {FILES} names");
    assert_eq!(a.names(a.root), [""; 0]);
}

#[test]
fn what_a_client_reads_or_makes_does_not_make_it_grow_without_end() {
    const LIMIT: usize = 50;
    let server = Server::new();
    let a = server.client_limited(Rights::TRUSTED, LIMIT);
    for number in 0..20 * LIMIT {
        let file = a.create(&format!("file {number}"));
        a.fs.release(file);
    }
    a.run(|fs| fs.syncfs()).unwrap();
    let leases = || server.served.clients()[0].leases;
    let began = std::time::Instant::now();
    // What is given back is on its way.
    while leases() > 4 * LIMIT {
        assert!(began.elapsed() < Duration::from_secs(20), "{} leases", leases());
        thread::yield_now();
    }
    assert_eq!(a.names(a.root).len(), 20 * LIMIT);
}

#[test]
fn who_writes_and_reads_in_turns_sees_what_was_written_last() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    for round in 0..50_u8 {
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        writer.write(file, WriteAt::Offset(0), &[round; 5000]);
        assert_eq!(writer.read(file, 0, 5000), [round; 5000], "its own, through the cache");
        assert_eq!(reader.read(file, 0, 5000), [round; 5000]);
        let mut now = [0; 10];
        writer.run(|fs| fs.read_now(&caller(), file, 4990, &mut now)).unwrap();
        assert_eq!(now, [round; 10]);
    }
}

/// Each client works in a directory of its own and in one of all, and in the end all see the same.
#[test]
fn clients_that_work_side_by_side_agree_in_the_end() {
    const CLIENTS: usize = 4;
    let server = Server::new();
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.client()).collect();
    thread::scope(|scope| {
        for (index, client) in clients.iter().enumerate() {
            scope.spawn(move || {
                let name = format!("dir {index}");
                let made = client.run(|fs| {
                    fs.mkdir(&caller(), client.root, name.as_bytes(), 0o755).map(|made| made.file)
                });
                let own = made.unwrap();
                for round in 0..60 {
                    let name = format!("{index} {round}");
                    let file = client.create(&name);
                    client.write(file, WriteAt::End, name.as_bytes());
                    client.fs.release(file);
                    let mut request = rename(client.root, &name, &name);
                    request.target_parent = own;
                    client.run(|fs| fs.rename(&caller(), &request)).unwrap();
                    if round % 3 == 0 {
                        client.run(|fs| fs.unlink(&caller(), own, name.as_bytes())).unwrap();
                    }
                }
            });
        }
    });
    for client in &clients {
        let names = client.names(client.root);
        assert_eq!(names.len(), CLIENTS);
        for name in names {
            let dir = client.lookup(&name).unwrap();
            let files = client.names(dir);
            assert_eq!(files.len(), 40, "in {name}");
            for file in files {
                let found = client.run(|fs| fs.lookup(&caller(), dir, file.as_bytes())).unwrap();
                assert_eq!(client.read(found.file, 0, 100), file.as_bytes());
            }
        }
    }
}

#[test]
fn files_are_closed_and_removed_at_the_same_time() {
    let server = Server::new();
    let a = server.client();
    thread::scope(|scope| {
        for index in 0..4 {
            let a = &a;
            scope.spawn(move || {
                for round in 0..200 {
                    let name = format!("{index} {round}");
                    let file = a.create(&name);
                    a.run(|fs| fs.unlink(&caller(), a.root, name.as_bytes())).unwrap();
                    a.fs.release(file);
                }
            });
        }
    });
    assert_eq!(a.names(a.root), [""; 0]);
    a.run(|fs| fs.syncfs()).unwrap();
    a.fs.ping();
    server.world.reap();
    assert_eq!(server.served.clients()[0].opens, 0);
}

#[test]
fn what_is_gone_is_stale_and_not_empty() {
    let server = Server::new();
    let client = server.client();
    let gone = FileId::new(client.root.subvol, Ino(1 << 40));
    let mut bytes = [0; 10];
    let read = client.run(|fs| fs.read_now(&caller(), gone, 0, &mut bytes));
    assert!(matches!(read, Err(Error::Stale)), "{read:?}");
    let read = client.run(|fs| fs.read_pages(&caller(), gone, 0, &mut bytes));
    assert!(matches!(read, Err(Error::Stale)), "{read:?}");
}

#[test]
fn what_the_server_has_said_without_a_lease_is_not_kept_in_kernels() {
    let server = Server::new();
    let client = server.client();
    let file = client.create("file");
    let kept = Kept::Attributes(file);
    assert!(client.run(|fs| fs.stat(file).map(|_| Filesystem::is_kept(fs, kept))).unwrap());
    // From now on the server makes the changes.
    let (number, extents) = (ChangeNumber(0), Vec::new());
    client.fs.receive(ToClient::Applied { number, extents, credit: 0 });
    let changes = Changes { permissions: Some(0o600), ..Changes::default() };
    let is_kept = client.run(|fs| {
        fs.setattr(&caller(), file, &changes).unwrap();
        // Another request has got the lease since.
        let fs = Arc::clone(&client.fs);
        thread::scope(|scope| {
            let stat = || (fs.stat(file).map(|_| Filesystem::is_kept(&*fs, kept)), fs.answered()).0;
            assert!(scope.spawn(stat).join().unwrap().unwrap());
        });
        Filesystem::is_kept(&*fs, kept)
    });
    assert!(!is_kept);
}

/// Programs of one client write a file and read it through the kernel's cache, others do so too.
#[test]
fn pages_and_changes_of_the_same_client_hold_nobody_up() {
    const ROUNDS: u64 = 400;
    let server = Server::new();
    let clients = [server.client(), server.client()];
    let file = clients[0].create("file");
    clients[0].write(file, WriteAt::Offset(0), &[0; 16_384]);
    clients[1].lookup("file").unwrap();
    let written: Vec<AtomicU64> = (0..2).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for (index, client) in clients.iter().enumerate() {
            let (at, written) = (index as u64 * 8192, &written);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    client.write(file, WriteAt::Offset(at), &round.to_le_bytes());
                    written[index].store(round, Ordering::Release);
                }
            });
            scope.spawn(move || {
                let is_over = || written.iter().all(|one| one.load(Ordering::Acquire) == ROUNDS);
                while !is_over() {
                    let least = written[1 - index].load(Ordering::Acquire);
                    let bytes = client.read(file, 8192 - at, 8);
                    assert!(u64::from_le_bytes(bytes.try_into().unwrap()) >= least);
                    client.read(file, 0, 16_384);
                }
            });
        }
    });
    assert_eq!(server.served.clients().iter().map(|client| client.owed).max(), Some(0));
}

#[test]
fn numbers_that_were_given_are_not_given_again_after_a_commit_and_a_crash() {
    let world = World::new(64 << 20);
    let subvol = world.root().subvol;
    let first = world.fs.map().reserve_inodes(subvol, 1000).unwrap();
    world.fs.syncfs().unwrap();
    let world = world.after_crash(OpenMode::ReadWrite);
    let next = world.fs.map().reserve_inodes(subvol, 1).unwrap();
    assert!(next.0 >= first.0 + 1000, "{next:?} after {first:?}");
}

#[test]
fn what_was_just_made_can_be_locked() {
    let server = Server::new();
    let a = server.client_with(Rights::CHECKED);
    for round in 0..200 {
        let file = a.create(&format!("file {round}"));
        let owner = LockOwner { client: 0, number: 1 };
        let (class, range, strength) = (LockClass::Flock, LockRange::WHOLE, Strength::Exclusive);
        let lock = Lock { file, class, owner, pid: 1, strength, range };
        a.try_lock(lock).unwrap();
    }
}
