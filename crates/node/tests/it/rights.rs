//! What sessions may do: clients that claim what is not so, and ordinary ones that must not notice.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fs::format::dirent;
use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Caller, Changes, Detail, Error, FileType, Groups, IfExists, OpenRequest, Privileges,
    Result, SetTime, Through, Trust, WriteAt,
};
use gabion_link::identities::{Identities, NOBODY, Squash};
use gabion_link::message::{
    Answer, Call, CallId, Change, ChangeNumber, Grant, Prefetch, ReadLease, SessionId, ToClient,
    ToServer,
};
use gabion_link::range::KeyRange;
use gabion_link::table::RevokeId;
use gabion_map::{FileId, Kind, LockMode, MapError, Payload, Stop};
use gabion_node::served::{Changing, Peer, Rights, Session};

use crate::shared::Server;

const READ_ONLY: Rights = Rights { changing: Changing::Refused, ..Rights::CHECKED };
const ROOT_SQUASH: Rights = Rights {
    identities: Identities { squash: Squash::Root, ..Identities::CHECKED },
    ..Rights::CHECKED
};
const ALL_SQUASH: Rights = Rights {
    identities: Identities { squash: Squash::All, uid: 70, gid: 71, ..Identities::CHECKED },
    ..Rights::CHECKED
};

/// A client that says what it likes.
pub struct Raw<'s> {
    server: &'s Server,
    pub session: Arc<Session>,
    messages: crossbeam_channel::Receiver<ToClient>,
    calls: Mutex<u64>,
    /// Told before any lease is given back.
    locked: Arc<Mutex<Vec<Lock>>>,
}

/// Takes answers to where they are waited for, and gives back at once what is revoked.
struct RawPeer {
    answers: crossbeam_channel::Sender<ToClient>,
    revoked: crossbeam_channel::Sender<RevokeId>,
}

impl Peer for RawPeer {
    fn send(&self, message: ToClient) {
        let _ = match message {
            ToClient::Revoke { id, .. } => self.revoked.send(id).is_ok(),
            answer => self.answers.send(answer).is_ok(),
        };
    }

    fn sent(&self) -> u64 {
        0
    }

    fn arrived(&self) -> u64 {
        0
    }
}

impl<'s> Raw<'s> {
    pub fn new(server: &'s Server, id: u64, rights: Rights) -> Self {
        let (answers, messages) = crossbeam_channel::unbounded();
        let (revoked, revocations) = crossbeam_channel::unbounded();
        let peer = Arc::new(RawPeer { answers, revoked });
        let session = server.served.begin(SessionId(1000 + id), format!("raw {id}"), rights, peer);
        let (served, own) = (Arc::downgrade(&server.served), Arc::downgrade(&session));
        let locked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&locked);
        std::thread::spawn(move || {
            while let Ok(id) = revocations.recv() {
                let (Some(served), Some(own)) = (served.upgrade(), own.upgrade()) else { return };
                served.receive(&own, ToServer::Locked(std::mem::take(&mut *told.lock())));
                served.receive(&own, ToServer::Released(vec![id]));
            }
        });
        Self { server, session, messages, calls: Mutex::new(0), locked }
    }

    fn told(&self, by: &Caller, call: Call) -> (Result<Answer>, Vec<Grant>) {
        let id = {
            let mut calls = self.calls.lock();
            *calls += 1;
            CallId(*calls)
        };
        let after = ChangeNumber(0);
        let call = ToServer::Call { id, caller: by.clone(), call, after };
        self.server.served.receive(&self.session, call);
        loop {
            match self.messages.recv_timeout(Duration::from_secs(20)).expect("an answer") {
                ToClient::Answer { id: of, result, grants, .. } if of == id => {
                    return (result, grants);
                }
                _ => {}
            }
        }
    }

    pub fn ask(&self, by: &Caller, call: Call) -> Result<Answer> {
        self.told(by, call).0
    }

    pub fn open(&self, by: &Caller, file: FileId, access: Access) {
        let opened = ToServer::Opened { file, caller: by.clone(), access };
        self.server.served.receive(&self.session, opened);
    }

    pub fn read(&self, by: &Caller, file: FileId) -> Result<Answer> {
        self.ask(by, Call::Read { file, offset: 0, length: 10, lease: ReadLease::None })
    }

    pub fn write(&self, by: &Caller, file: FileId) -> Result<Answer> {
        let (at, bytes) = (WriteAt::Offset(0), b"x".to_vec());
        let bytes = Arc::new(bytes);
        self.ask(by, Call::Write { file, at, privileges: Privileges::Keep, bytes })
    }

    pub fn names(&self, by: &Caller, range: KeyRange) -> Result<Vec<Grant>> {
        let (needed, welcome) = (vec![(range, LockMode::Shared)], Vec::new());
        let call = Call::Acquire { needed, welcome, prefetch: Prefetch::Names };
        let (result, grants) = self.told(by, call);
        result.map(|_| grants)
    }

    /// Makes a change as if it had the leases for it, and says whether the server has made it.
    pub fn change(&self, number: u64, by: &Caller, call: Call) -> Result<()> {
        let (number, caller) = (ChangeNumber(number), by.clone());
        let now = self.server.served.now();
        let change = Change { number, order: number.0, now, made: None, caller, call };
        self.server.served.receive(&self.session, ToServer::Change(change));
        let mut outcome = Ok(());
        loop {
            match self.messages.recv_timeout(Duration::from_secs(20)).expect("an answer") {
                ToClient::Failed { number: of, error } if of == number => outcome = Err(error),
                ToClient::Applied { number: of, .. } if of >= number => return outcome,
                _ => {}
            }
        }
    }

    pub fn lock(
        &self,
        by: &Caller,
        file: FileId,
        class: LockClass,
        strength: Strength,
    ) -> Result<Answer> {
        let (owner, range) = (LockOwner { client: 0, number: 7 }, LockRange::WHOLE);
        let lock = Lock { file, class, owner, pid: 1, strength, range };
        let answer = self.ask(by, Call::Lock { lock, wait: Wait::No })?;
        self.locked.lock().push(lock);
        Ok(answer)
    }
}

/// A user of whom it is claimed that the kernel has checked everything.
pub fn user(uid: u32) -> Caller {
    let groups = Groups::default();
    Caller { uid, gid: uid, groups, umask: 0, trust: Trust::CheckedByKernel }
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::AccessDenied)), "{result:?}");
}

#[track_caller]
fn not_permitted(result: Result<Answer>) {
    assert!(matches!(result, Err(Error::NotPermitted)), "{result:?}");
}

/// Makes a directory of root's with these permissions.
pub fn mkdir(server: &Server, name: &str, permissions: u32) -> FileId {
    let fs = &server.world.fs;
    let made = fs.mkdir(&user(0), fs.root(), name.as_bytes(), permissions).unwrap();
    made.file
}

/// Makes a file of `owner` with these permissions.
pub fn file(server: &Server, dir: FileId, owner: u32, permissions: u32) -> FileId {
    let name = format!("file of {owner} {permissions:o}");
    let fs = &server.world.fs;
    let kind = FileType::Regular;
    let made = fs.mknod(&user(owner), dir, name.as_bytes(), kind, permissions, 0).unwrap();
    server.world.write(made.file, 0, b"content");
    made.file
}

fn chmod(permissions: u32) -> Changes {
    Changes { permissions: Some(permissions), ..Changes::default() }
}

#[test]
fn a_read_only_session_changes_nothing() {
    let server = Server::new();
    let root = server.world.root();
    let old = file(&server, root, 0, 0o666);
    let raw = Raw::new(&server, 1, READ_ONLY);
    let name = || b"name".to_vec();
    let (permissions, request) = (0o644, OpenRequest::READ);
    let calls = [
        Call::Create {
            parent: root,
            name: name(),
            permissions,
            if_exists: IfExists::Open,
            request,
        },
        Call::Mkdir { parent: root, name: name(), permissions },
        Call::Symlink { parent: root, name: name(), target: name() },
        Call::Link { file: old, parent: root, name: name() },
        Call::Unlink { parent: root, name: b"file of 0 666".to_vec() },
        Call::Setattr { file: old, changes: chmod(0o777) },
        Call::RemoveXattr { file: old, name: b"user.a".to_vec() },
        Call::Acquire {
            needed: vec![(KeyRange::attributes(old), LockMode::Exclusive)],
            welcome: Vec::new(),
            prefetch: Prefetch::Names,
        },
    ];
    let is_refused =
        |result: Result<Answer>| matches!(result, Err(Error::Stop(Stop::Map(MapError::ReadOnly))));
    for call in calls {
        assert!(is_refused(raw.ask(&user(0), call.clone())), "{call:?}");
    }
    raw.open(&user(0), old, Access::READ | Access::WRITE);
    assert!(is_refused(raw.write(&user(0), old)));
    assert_eq!(raw.read(&user(0), old).unwrap(), Answer::Bytes(b"content".to_vec()));
    raw.lock(&user(0), old, LockClass::Posix, Strength::Shared).unwrap();
    assert!(is_refused(raw.lock(&user(0), old, LockClass::Posix, Strength::Exclusive)));
    raw.lock(&user(0), old, LockClass::Flock, Strength::Exclusive).unwrap();
}

#[test]
fn the_superuser_of_a_squashed_session_is_nobody() {
    let server = Server::new();
    let root = server.world.root();
    let open = mkdir(&server, "open", 0o777);
    let secret = file(&server, open, 0, 0o600);
    let theirs = file(&server, open, 1000, 0o600);
    let raw = Raw::new(&server, 1, ROOT_SQUASH);
    let mkdir = |parent| Call::Mkdir { parent, name: b"made".to_vec(), permissions: 0o755 };
    denied(raw.ask(&user(0), mkdir(root)));
    let Answer::Object(made) = raw.ask(&user(0), mkdir(open)).unwrap() else { panic!() };
    assert_eq!((made.uid, made.gid), (NOBODY, NOBODY));
    for file in [secret, theirs] {
        raw.open(&user(0), file, Access::READ | Access::WRITE);
        denied(raw.read(&user(0), file));
        denied(raw.write(&user(0), file));
        denied(raw.lock(&user(0), file, LockClass::Flock, Strength::Shared));
        not_permitted(raw.ask(&user(0), Call::Setattr { file, changes: chmod(0o666) }));
    }
    // Its other users are themselves.
    raw.open(&user(1000), theirs, Access::READ);
    assert_eq!(raw.read(&user(1000), theirs).unwrap(), Answer::Bytes(b"content".to_vec()));
}

#[test]
fn all_users_of_a_session_can_be_one() {
    let server = Server::new();
    let open = mkdir(&server, "open", 0o777);
    let theirs = file(&server, open, 1000, 0o640);
    let raw = Raw::new(&server, 1, ALL_SQUASH);
    let call = Call::Mkdir { parent: open, name: b"made".to_vec(), permissions: 0o700 };
    let Answer::Object(made) = raw.ask(&user(1000), call).unwrap() else { panic!() };
    assert_eq!((made.uid, made.gid), (70, 71));
    raw.open(&user(1000), theirs, Access::READ);
    denied(raw.read(&user(1000), theirs));
    raw.names(&user(5), KeyRange::names(made.file)).unwrap();
}

#[test]
fn the_server_checks_whatever_a_client_claims() {
    let server = Server::new();
    let root = server.world.root();
    let roots = file(&server, root, 0, 0o600);
    let by = user(1000);
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    let name = b"file of 0 600".to_vec();
    denied(raw.ask(&by, Call::Unlink { parent: root, name: name.clone() }));
    denied(raw.ask(&by, Call::Mkdir { parent: root, name: b"made".to_vec(), permissions: 0o700 }));
    not_permitted(raw.ask(&by, Call::Setattr { file: roots, changes: chmod(0o666) }));
    let owner = Changes { uid: Some(1000), ..Changes::default() };
    not_permitted(raw.ask(&by, Call::Setattr { file: roots, changes: owner }));
    let times = Changes { mtime: Some(SetTime::Now), ..Changes::default() };
    not_permitted(raw.ask(&by, Call::Setattr { file: roots, changes: times }));
    denied(raw.read(&by, roots));
    denied(raw.write(&by, roots));
    raw.open(&by, roots, Access::READ | Access::WRITE);
    denied(raw.read(&by, roots));
    denied(raw.write(&by, roots));
    let size = Some((0, Privileges::Keep));
    let cut = Changes { size, through: Through::Handle, ..Changes::default() };
    denied(raw.ask(&by, Call::Setattr { file: roots, changes: cut }));
    let copy = |source, target| Call::Copy {
        source,
        source_offset: 0,
        target,
        target_offset: 0,
        length: 7,
        privileges: Privileges::Keep,
    };
    let own = file(&server, mkdir(&server, "open", 0o777), 1000, 0o600);
    denied(raw.ask(&by, copy(roots, own)));
    denied(raw.ask(&by, copy(own, roots)));
    // Where the client's kernel is trusted it is believed.
    let trusted = Raw::new(&server, 2, Rights::TRUSTED);
    assert_eq!(trusted.read(&by, roots).unwrap(), Answer::Bytes(b"content".to_vec()));
    trusted.ask(&by, Call::Unlink { parent: root, name }).unwrap();
}

#[test]
fn changes_that_clients_have_made_by_themselves_are_checked() {
    let server = Server::new();
    let root = server.world.root();
    let roots = file(&server, root, 0, 0o600);
    let by = user(1000);
    let name = b"file of 0 600".to_vec();
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    let leased = [
        KeyRange::attributes(root),
        KeyRange::names(root),
        KeyRange::attributes(roots),
        KeyRange::bytes_from(roots, 0),
    ];
    let acquire = |raw: &Raw<'_>| {
        let needed = leased.map(|range| (range, LockMode::Exclusive)).to_vec();
        let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
        raw.ask(&user(0), Call::Acquire { needed, welcome, prefetch }).map(drop)
    };
    acquire(&raw).unwrap();
    let call = || Call::Unlink { parent: root, name: name.clone() };
    denied(raw.change(1, &by, call()));
    let changes = chmod(0o666);
    let outcome = raw.change(2, &by, Call::Setattr { file: roots, changes });
    assert!(matches!(outcome, Err(Error::NotPermitted)), "{outcome:?}");
    let (at, bytes) = (WriteAt::Offset(0), b"x".to_vec());
    let bytes = Arc::new(bytes);
    let write = Call::Write { file: roots, at, privileges: Privileges::Keep, bytes };
    denied(raw.change(3, &by, write));
    let squashed = Raw::new(&server, 2, ROOT_SQUASH);
    acquire(&squashed).unwrap();
    denied(squashed.change(1, &user(0), call()));
    let read_only = Raw::new(&server, 3, READ_ONLY);
    let outcome = read_only.change(1, &user(0), call());
    assert!(matches!(outcome, Err(Error::Stop(Stop::Map(MapError::ReadOnly)))), "{outcome:?}");
    assert_eq!(server.world.read(roots), b"content");
    acquire(&raw).unwrap();
    raw.change(4, &user(0), call()).unwrap();
    assert!(server.world.lookup("file of 0 600").is_err());
}

#[test]
fn what_was_opened_stays_usable_whatever_becomes_of_its_mode() {
    let server = Server::new();
    let open = mkdir(&server, "open", 0o777);
    let file = file(&server, open, 0, 0o666);
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    raw.open(&user(1000), file, Access::READ | Access::WRITE);
    server.world.fs.setattr(&user(0), file, &chmod(0o600)).unwrap();
    raw.read(&user(1000), file).unwrap();
    // Also for who was given the descriptor.
    raw.write(&user(33), file).unwrap();
    raw.lock(&user(33), file, LockClass::Posix, Strength::Exclusive).unwrap();
    let late = Raw::new(&server, 2, Rights::CHECKED);
    late.open(&user(1000), file, Access::READ | Access::WRITE);
    denied(late.read(&user(1000), file));
    denied(late.lock(&user(1000), file, LockClass::Posix, Strength::Shared));
    // An opening to read does not let write.
    let own = self::file(&server, open, 33, 0o444);
    raw.open(&user(1000), own, Access::READ | Access::WRITE);
    raw.read(&user(1000), own).unwrap();
    denied(raw.write(&user(1000), own));
    server.served.receive(&raw.session, ToServer::Closed(file));
    denied(raw.read(&user(1000), file));
}

#[test]
fn the_locks_of_a_session_on_a_file_end_when_it_closes_it() {
    let server = Server::new();
    let file = file(&server, server.world.root(), 0, 0o666);
    let (one, two) = (Raw::new(&server, 1, Rights::CHECKED), Raw::new(&server, 2, Rights::CHECKED));
    for raw in [&one, &two] {
        raw.open(&user(0), file, Access::READ | Access::WRITE);
    }
    one.open(&user(0), file, Access::READ);
    let lock = |raw: &Raw<'_>| raw.lock(&user(0), file, LockClass::OpenFile, Strength::Exclusive);
    lock(&one).unwrap();
    for _ in 0..2 {
        assert!(matches!(lock(&two), Err(Error::WouldBlock)));
        server.served.receive(&one.session, ToServer::Closed(file));
    }
    lock(&two).unwrap();
}

#[test]
fn who_makes_a_file_writes_it_whatever_its_mode() {
    let server = Server::new();
    let open = mkdir(&server, "open", 0o777);
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    let request = OpenRequest { access: Access::WRITE, truncate: None };
    let (name, if_exists) = (b"made".to_vec(), IfExists::Fail);
    let create = Call::Create { parent: open, name, permissions: 0o444, if_exists, request };
    let made = raw.ask(&user(1000), create.clone()).unwrap();
    let Answer::Made(made, _) = made else { panic!("{made:?}") };
    raw.write(&user(33), made.file).unwrap();
    // Who only finds it has to be allowed what it is opened for.
    let Call::Create { parent, name, permissions, request, .. } = create else { panic!() };
    let if_exists = IfExists::Open;
    let late = Raw::new(&server, 2, Rights::CHECKED);
    denied(late.ask(&user(33), Call::Create { parent, name, permissions, if_exists, request }));
    // A program is read to be run.
    let program = file(&server, open, 0, 0o711);
    denied(late.read(&user(1000), program));
    late.open(&user(1000), program, Access::EXECUTE);
    late.read(&user(1000), program).unwrap();
}

#[test]
fn leases_tell_no_more_names_than_the_caller_may_see() {
    let server = Server::new();
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    let fs = &server.world.fs;
    let by = user(1000);
    let [closed, searched, listed] =
        [0o700, 0o711, 0o744].map(|mode| mkdir(&server, &format!("{mode:o}"), mode));
    let name_in = |dir: FileId, name: &[u8]| {
        KeyRange::key(dir.key(Kind::DIRENT, dirent::position(name, fs.map().name_seed())))
    };
    for dir in [closed, searched, listed] {
        for permissions in [0o600, 0o601] {
            file(&server, dir, 0, permissions);
        }
    }
    denied(raw.names(&by, KeyRange::names(closed)));
    denied(raw.names(&by, name_in(closed, b"file of 0 600")));
    denied(raw.names(&by, KeyRange::names(searched)));
    let one = name_in(searched, b"file of 0 600");
    let half = KeyRange::new(searched.key(Kind::DIRENT, 0), one.last()).unwrap();
    denied(raw.names(&by, half));
    let granted = raw.names(&by, one).unwrap();
    assert_eq!((granted[0].range, granted[0].items.len()), (one, 1));
    let [_, Grant { range, .. }] = &granted[..] else { panic!("{granted:?}") };
    assert_eq!(*range, KeyRange::attributes(range.file()), "of what the name stands for");
    let granted = raw.names(&by, name_in(listed, b"file of 0 600")).unwrap();
    assert_eq!((granted[0].range, granted[0].items.len()), (KeyRange::names(listed), 2));
    raw.names(&user(0), KeyRange::names(closed)).unwrap();
}

#[test]
fn what_is_fetched_ahead_tells_no_more_names_than_the_caller_may_see() {
    let server = Server::new();
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    let dirs = [0o700, 0o711, 0o744].map(|mode| mkdir(&server, &format!("{mode:o}"), mode));
    for dir in dirs {
        file(&server, dir, 0, 0o600);
    }
    let welcome = dirs.map(|dir| (KeyRange::names(dir), LockMode::Shared)).to_vec();
    let prefetch = Prefetch::Children;
    let call = Call::Acquire { needed: Vec::new(), welcome, prefetch };
    let (result, grants) = raw.told(&user(1000), call);
    result.unwrap();
    let of_names = grants.iter().filter(|grant| grant.range.kind() == Some(Kind::DIRENT));
    let told: Vec<FileId> = of_names.map(|grant| grant.range.file()).collect();
    assert_eq!(told, [dirs[2]]);
    assert_eq!(grants.len(), 2, "the attributes of what is in it, and no others");
}

#[test]
fn extended_attributes_are_told_only_where_somebody_may_see_them() {
    let server = Server::new();
    let open = mkdir(&server, "open", 0o777);
    let fs = &server.world.fs;
    let (secret, public) = (file(&server, open, 0, 0o600), file(&server, open, 0, 0o644));
    for file in [secret, public] {
        for name in ["user.a", "trusted.b", "security.c"] {
            let (condition, bit) = (SetCondition::Always, SetGroupBit::Keep);
            fs.set_xattr(&user(0), file, name.as_bytes(), b"value", condition, bit).unwrap();
        }
    }
    let told = |rights: Rights, id: u64, file: FileId| {
        let raw = Raw::new(&server, id, rights);
        let grants = raw.names(&user(1000), KeyRange::attributes(file)).unwrap();
        let text = grants[0].items.iter().filter(|(key, _)| key.kind == Kind::XATTR);
        let text: Vec<u8> = text.flat_map(|(_, value)| value.to_vec()).collect();
        let has = |name: &str| text.windows(name.len()).any(|part| part == name.as_bytes());
        ["user.a", "trusted.b", "security.c"].map(has)
    };
    assert_eq!(told(Rights::CHECKED, 1, secret), [true, true, true]);
    assert_eq!(told(ROOT_SQUASH, 2, secret), [false, false, true]);
    assert_eq!(told(ROOT_SQUASH, 3, public), [true, false, true]);
    assert_eq!(told(ALL_SQUASH, 4, secret), [false, false, true]);
}

/// The groups of a "process".
fn staff(process: u32) -> Vec<u32> {
    assert_eq!(process, 77);
    vec![50]
}

#[test]
fn ordinary_users_of_a_checked_session_notice_nothing() {
    let server = Server::new();
    let fs = &server.world.fs;
    let shared = mkdir(&server, "shared", 0o770);
    let staffs = Changes { gid: Some(50), ..Changes::default() };
    fs.setattr(&user(0), shared, &staffs).unwrap();
    let client = server.client_with(Rights::CHECKED);
    let by = Caller { groups: Groups::of_process(77, staff), ..user(1000) };
    let other = user(1001);
    // By a group that the kernel's protocol does not tell.
    let request = OpenRequest { access: Access::WRITE, truncate: None };
    let how = IfExists::Fail;
    let made = client.run(|fs| fs.create(&by, shared, b"file", 0o640, how, &request)).unwrap();
    let file = made.0.file;
    let (at, payload) = (WriteAt::End, Payload::Copied(b"line"));
    client.run(|fs| fs.write(&by, file, at, &payload, Privileges::Clear)).unwrap();
    client.run(|fs| fs.release(file));
    client.run(|fs| fs.setattr(&by, file, &staffs)).unwrap();
    let found = client.run(|fs| fs.readdir(&by, shared, 0, 10, Detail::Names)).unwrap();
    assert_eq!(found.entries.len(), 3);
    // Somebody else opens it by the group, and is told apart by the server.
    let member = Caller { groups: Groups::of_process(77, staff), ..user(1002) };
    let mut bytes = [0; 10];
    client.run(|fs| fs.open_file(&member, file, &OpenRequest::READ)).unwrap();
    assert_eq!(client.run(|fs| fs.read_now(&member, file, 0, &mut bytes)).unwrap(), 4);
    client.run(|fs| fs.release(file));
    denied(client.run(|fs| fs.unlink(&other, shared, b"file")));
    client.run(|fs| fs.unlink(&member, shared, b"file")).unwrap();
}

#[test]
fn a_client_refuses_by_itself_whom_the_server_would_squash() {
    let server = Server::new();
    let open = mkdir(&server, "open", 0o777);
    let theirs = file(&server, open, 1000, 0o600);
    let client = server.client_with(ROOT_SQUASH);
    client.run(|fs| fs.stat(theirs)).unwrap();
    let (outcome, calls) =
        client.calls(|client| client.run(|fs| fs.open_file(&user(0), theirs, &OpenRequest::READ)));
    denied(outcome);
    assert_eq!(calls, 0);
    client.run(|fs| fs.open_file(&user(1000), theirs, &OpenRequest::READ)).unwrap();
}
