//! Clients that work on the same files: each of them sees what the others have done.

use std::collections::BTreeSet;
use std::thread;

use gabion_base::ids::Ino;
use gabion_fs::{Error, WriteAt};
use gabion_map::{FileId, OpenMode};

use crate::shared::{Server, caller, rename};
use crate::world::World;

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
fn numbers_that_were_given_are_not_given_again_after_a_commit_and_a_crash() {
    let world = World::new(64 << 20);
    let subvol = world.root().subvol;
    let first = world.fs.map().reserve_inodes(subvol, 1000).unwrap();
    world.fs.syncfs().unwrap();
    let world = world.after_crash(OpenMode::ReadWrite);
    let next = world.fs.map().reserve_inodes(subvol, 1).unwrap();
    assert!(next.0 >= first.0 + 1000, "{next:?} after {first:?}");
}
