//! What belongs to a session while it lasts, and ends with it: what is open, and what is locked.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use gabion_fs::lock::{Lock, LockClass, LockOwner, LockRange, Strength, Wait};
use gabion_fs::{Access, Error, IfExists, OpenRequest, WriteAt};
use gabion_link::message::{Answer, Call, CallId, ChangeNumber, SessionId, ToClient, ToServer};
use gabion_map::FileId;
use gabion_node::served::{Job, Rights, Served};

use crate::shared::{Server, ToPeer, await_that, caller};
use crate::world::World;

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
    b.run(|fs| fs.space(b.root.subvol)).unwrap();
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
    await_that(|| server.world.fs.locks().held().is_empty());
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
