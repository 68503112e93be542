//! Snapshots, clones and subvolumes of a filesystem that clients use meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gabion_base::ids::SubvolId;
use gabion_fs::{Caller, WriteAt};
use gabion_link::errand::{Errand, Report, SnapshotRow};
use gabion_map::FileId;

use crate::shared::{Client, Server};

fn create(name: &str) -> Errand {
    Errand::Snapshot { path: Vec::new(), name: name.as_bytes().to_vec(), created: 77 }
}

fn remove(name: &str) -> Errand {
    Errand::RemoveSnapshots { path: Vec::new(), names: vec![name.as_bytes().to_vec()] }
}

fn list() -> Errand {
    Errand::Snapshots { path: Vec::new(), after: SubvolId(0) }
}

fn rows(report: Report) -> Vec<SnapshotRow> {
    match report {
        Report::Snapshots { rows, more: false } => rows,
        other => panic!("{other:?}"),
    }
}

impl Client {
    fn errand(&self, errand: Errand) -> Report {
        self.fs.run_errand(&Caller::superuser(), errand).unwrap()
    }

    fn refused(&self, caller: &Caller, errand: Errand) -> String {
        gabion_link::wire::said(&self.fs.run_errand(caller, errand).unwrap_err())
    }

    fn snapshots(&self) -> Vec<String> {
        let rows = rows(self.errand(list())).into_iter();
        rows.map(|row| String::from_utf8(row.name).unwrap()).collect()
    }
}

/// The number that a file of a snapshot says; 0 if it is empty.
fn number_in(server: &Server, snapshot: &str, name: &str) -> u64 {
    let world = &server.world;
    let list = world.lookup(".snapshots").unwrap().file;
    let root = world.fs.lookup(&world.caller, list, snapshot.as_bytes()).unwrap().file;
    let file = world.fs.lookup(&world.caller, root, name.as_bytes()).unwrap().file;
    let bytes = world.read(file);
    if bytes.is_empty() { 0 } else { String::from_utf8(bytes).unwrap().parse().unwrap() }
}

fn write_number(client: &Client, file: FileId, number: u64) {
    client.write(file, WriteAt::Offset(0), format!("{number:08}").as_bytes());
}

#[test]
fn a_client_makes_shows_and_removes_snapshots() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    write_number(&a, file, 1);
    assert_eq!(rows(b.errand(create("one"))).len(), 1);
    write_number(&a, file, 2);
    assert_eq!(rows(a.errand(create("two")))[0].created, 77);
    assert_eq!((number_in(&server, "one", "file"), number_in(&server, "two", "file")), (1, 2));
    assert_eq!(a.snapshots(), ["one", "two"]);
    assert!(b.refused(&Caller::superuser(), create("one")).contains("already"));
    assert!(b.refused(&Caller::superuser(), remove("three")).contains("no snapshot \"three\""));
    a.errand(Errand::Hold { path: Vec::new(), name: b"one".to_vec(), is_held: true });
    assert!(b.refused(&Caller::superuser(), remove("one")).contains("held"));
    assert_eq!(rows(b.errand(remove("two")))[0].name, b"two");
    assert_eq!(b.snapshots(), ["one"]);
    // Who is at the server itself.
    server.served.run_errand(&create("three")).unwrap();
    assert_eq!(b.snapshots(), ["one", "three"]);
}

#[test]
fn a_snapshot_has_whatever_comes_before_something_that_it_has() {
    let server = Server::new();
    let (a, b) = (Arc::new(server.client()), Arc::new(server.client()));
    let (x, y) = (a.create("x"), b.create("y"));
    // What this one does the server learns late.
    a.move_away();
    let (tell, told) = crossbeam_channel::bounded::<u64>(64);
    let done = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let (writer, completed, ends) = (Arc::clone(&a), Arc::clone(&done), Arc::clone(&is_over));
    let first = thread::spawn(move || {
        for number in 1.. {
            if ends.load(Ordering::Relaxed) {
                return;
            }
            write_number(&writer, x, number);
            completed.store(number, Ordering::SeqCst);
            tell.send(number).unwrap();
        }
    });
    let second = Arc::clone(&b);
    let second = thread::spawn(move || {
        while let Ok(number) = told.recv() {
            write_number(&second, y, number);
        }
    });
    for round in 0..30 {
        let (name, before) = (format!("s{round}"), done.load(Ordering::SeqCst));
        let by = if round % 2 == 0 { &a } else { &b };
        by.errand(create(&name));
        let after = done.load(Ordering::SeqCst);
        let (x, y) = (number_in(&server, &name, "x"), number_in(&server, &name, "y"));
        assert!(y <= x, "{name} has {y} at the second client, and {x} before it at the first");
        assert!(before <= x, "{before} was done before the snapshot {name}, which has {x}");
        assert!(x <= after + 1, "{name} has {x}, which comes after {after}");
    }
    is_over.store(true, Ordering::Relaxed);
    first.join().unwrap();
    second.join().unwrap();
}
