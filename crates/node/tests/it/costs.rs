//! How many messages it takes to look and to change, and what a client keeps.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{Access, Changes, Detail, Error, IfExists, OpenRequest, WriteAt};
use gabion_link::message::{
    Call, CallId, Change, ChangeNumber, Prefetch, SessionId, ToClient, ToServer,
};
use gabion_link::range::KeyRange;
use gabion_link::table::Lease;
use gabion_map::{FileId, LockMode, OpenMode};
use gabion_node::remote::RemoteFs;
use gabion_node::served::{Peer, Rights, Served};

use crate::shared::{Client, Server, ToPeer, caller};
use crate::world::World;

/// Else both sides would remember each page, as long as the file is not closed and long after.
#[test]
fn who_reads_here_and_there_in_a_large_file_has_few_leases() {
    let server = Server::new();
    let (maker, a, b) = (server.client(), server.client(), server.client());
    let file = maker.create("file");
    let page = |number: u64| 2 * 4096 * number;
    maker.write(file, WriteAt::Offset(page(500)), b"end");
    maker.run(|fs| fs.syncfs()).unwrap();
    // Whoever may change some of it minds.
    server.end(&maker);
    b.lookup("file").unwrap();
    for number in 0..500 {
        b.read(file, page(number), 4096);
    }
    let session = b.session().id().0;
    let leases = |of: u64| {
        let all = server.served.leases().0.into_iter();
        let is_meant = |lease: &Lease| lease.client.0 == of && lease.range.file() == file;
        all.filter(is_meant).count()
    };
    assert!(leases(session) < 100, "{} leases", leases(session));
    // It loses what others change, and nothing besides.
    a.write(file, WriteAt::Offset(page(3)), b"changed");
    assert_eq!(b.kernel.bytes.lock()[..], [(file, page(3), page(3) + 4096)]);
    assert_eq!(b.read(file, page(3), 7), b"changed");
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
fn a_path_costs_one_message_for_each_of_its_names() {
    let server = Server::new();
    let maker = server.client();
    let mut dir = maker.root;
    let mut dirs = Vec::new();
    for name in ["one", "two", "three"] {
        dir = maker.run(|fs| fs.mkdir(&caller(), dir, name.as_bytes(), 0o755)).unwrap().file;
        dirs.push((name, dir));
    }
    maker.run(|fs| fs.syncfs()).unwrap();
    // What its maker has exclusively nobody else gets unless he asks for it.
    server.end(&maker);
    let other = server.client();
    let follow = |client: &Client| {
        let mut parent = client.root;
        for (name, dir) in &dirs {
            let found = client.run(|fs| fs.lookup(&caller(), parent, name.as_bytes())).unwrap();
            assert_eq!(found.file, *dir);
            parent = found.file;
        }
    };
    assert_eq!(other.calls(follow).1, 3);
    assert_eq!(other.calls(follow).1, 0);
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
    let listed = world.fs.readdir(dir, 2, 100_000, Detail::Names).unwrap();
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

/// Keeps what a client is told.
#[derive(Default)]
struct Told(Mutex<Vec<ToClient>>);

impl Peer for Told {
    fn send(&self, message: ToClient) {
        self.0.lock().push(message);
    }

    fn sent(&self) -> u64 {
        self.0.lock().len() as u64
    }

    fn arrived(&self) -> u64 {
        0
    }
}

#[test]
fn changes_that_come_together_are_confirmed_together() {
    let world = World::new(64 << 20);
    let file = world.file("file", b"");
    let (jobs, queue) = crossbeam_channel::unbounded();
    let queued = Box::new(move |job| drop(jobs.send(job)));
    let served = Served::new(Arc::clone(&world.fs), 1, queued).unwrap();
    let told = Arc::new(Told::default());
    let peer = Arc::clone(&told) as Arc<dyn Peer>;
    let session = served.begin(SessionId(1), "a client".to_owned(), Rights::TRUSTED, peer);
    let say = |message| served.receive(&session, message);
    let confirmed = || {
        while let Ok(job) = queue.try_recv() {
            served.run(job);
        }
        told.0.lock().drain(..).filter_map(applied_up_to).collect::<Vec<_>>()
    };
    let needed = vec![(KeyRange::object(file), LockMode::Exclusive)];
    let (welcome, prefetch) = (Vec::new(), Prefetch::Names);
    let call = Call::Acquire { needed, welcome, prefetch };
    say(ToServer::Call { id: CallId(1), caller: caller(), call, after: ChangeNumber(0) });
    assert_eq!(confirmed(), []);
    let change = |order: u64| {
        let changes = Changes { permissions: Some(0o600 + order as u32), ..Changes::default() };
        let (number, call) = (ChangeNumber(order), Call::Setattr { file, changes });
        let now = served.now();
        say(ToServer::Change(Change { number, order, now, made: None, caller: caller(), call }));
    };
    // Between two changes it says what it has open, as who makes files does.
    for number in 1..=20 {
        change(number);
        say(ToServer::Opened { file, caller: caller(), access: Access::READ });
        say(ToServer::Closed(file));
    }
    assert_eq!(confirmed(), [ChangeNumber(20)]);
    // What it gives up is free for others only when it knows how far its changes have come.
    change(21);
    say(ToServer::Yielded(vec![KeyRange::object(file)]));
    change(22);
    assert_eq!(confirmed(), [ChangeNumber(21), ChangeNumber(22)]);
}

fn applied_up_to(message: ToClient) -> Option<ChangeNumber> {
    match message {
        ToClient::Applied { number, .. } => Some(number),
        ToClient::Failed { number, error } => panic!("{number:?}: {error}"),
        _ => None,
    }
}
