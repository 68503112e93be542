//! Snapshots, clones and subvolumes of a filesystem that clients use meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use gabion_base::ids::SubvolId;
use gabion_fs::{
    Access, Caller, Changes, Error, FileType, IfExists, OpenRequest, Privileges, RenameRequest,
    WriteAt, errno,
};
use gabion_link::errand::{DeltaPlace, DeltaRow, Errand, Report, SnapshotRow};
use gabion_map::{FileId, Payload};
use gabion_node::Stretch;
use gabion_node::remote::RemoteFs;

use crate::shared::{Client, Server, caller, rename};

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

impl Client {
    fn at(&self, path: &str) -> gabion_fs::Result<FileId> {
        let mut at = self.root;
        for name in path.split('/') {
            at = self.run(|fs| fs.lookup(&caller(), at, name.as_bytes()))?.file;
        }
        Ok(at)
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(self.at(path).unwrap(), 0, 100)).unwrap()
    }
}

#[test]
fn clients_see_what_snapshots_have_and_remember_it() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let file = a.create("file");
    write_number(&a, file, 1);
    assert!(b.at(".snapshots").is_ok());
    let list = b.at(".snapshots").unwrap();
    assert_eq!(b.names(list), [""; 0]);
    a.errand(create("one"));
    write_number(&a, file, 2);
    a.run(|fs| fs.unlink(&caller(), a.root, b"file")).unwrap();
    assert_eq!(b.names(list), ["one"]);
    assert_eq!((a.text(".snapshots/one/file"), b.text(".snapshots/one/file")), same("00000001"));
    assert_eq!(b.names(b.root), [""; 0], "no listing shows the snapshots");
    let root = b.at(".snapshots/one").unwrap();
    assert_eq!(b.names(root), ["file"]);
    // What was looked at costs nothing, as it never changes.
    let look = |b: &Client| (b.at(".snapshots/one/file").unwrap(), b.names(root), b.names(list));
    look(&b);
    assert_eq!(b.calls(look).1, 0);
    a.create("another");
    a.errand(create("two"));
    assert_eq!(b.names(list), ["one", "two"]);
    assert!(matches!(b.at(".snapshots/one/.snapshots"), Err(Error::NotFound)));
    assert!(matches!(b.at(".snapshots/three"), Err(Error::NotFound)));
}

fn same(text: &str) -> (String, String) {
    (text.to_owned(), text.to_owned())
}

#[test]
fn nothing_in_a_snapshot_is_changed_by_a_client() {
    let server = Server::new();
    let a = server.client();
    let file = a.create("file");
    write_number(&a, file, 1);
    a.errand(create("one"));
    let (list, root) = (a.at(".snapshots").unwrap(), a.at(".snapshots/one").unwrap());
    let old = a.at(".snapshots/one/file").unwrap();
    let fails = |error: Error, number: i32| assert_eq!(errno(&error), number, "{error:?}");
    let write = OpenRequest { access: Access::WRITE, truncate: None };
    fails(a.run(|fs| fs.open_file(&caller(), old, &write)).unwrap_err(), libc::EROFS);
    let payload = Payload::Copied(b"x");
    let at = WriteAt::Offset(0);
    let written = a.run(|fs| fs.write(&caller(), old, at, &payload, Privileges::Keep));
    fails(written.unwrap_err(), libc::EROFS);
    for dir in [list, root] {
        fails(a.run(|fs| fs.mkdir(&caller(), dir, b"dir", 0o755)).unwrap_err(), libc::EROFS);
    }
    fails(a.run(|fs| fs.unlink(&caller(), root, b"file")).unwrap_err(), libc::EROFS);
    let chmod = Changes { permissions: Some(0o600), ..Changes::default() };
    fails(a.run(|fs| fs.setattr(&caller(), old, &chmod)).unwrap_err(), libc::EROFS);
    fails(a.run(|fs| fs.link(&caller(), old, a.root, b"more")).unwrap_err(), libc::EXDEV);
    fails(a.run(|fs| fs.mkdir(&caller(), a.root, b".snapshots", 0o755)).unwrap_err(), libc::EROFS);
    fails(a.run(|fs| fs.rmdir(&caller(), a.root, b".snapshots")).unwrap_err(), libc::EROFS);
    assert_eq!(a.text(".snapshots/one/file"), "00000001");
}

#[test]
fn what_clients_know_of_a_removed_snapshot_they_forget() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    write_number(&a, a.create("file"), 1);
    a.errand(create("one"));
    let file = b.at(".snapshots/one/file").unwrap();
    assert_eq!(b.read(file, 0, 8), b"00000001");
    a.errand(remove("one"));
    assert!(matches!(b.at(".snapshots/one"), Err(Error::NotFound)));
    assert!(matches!(b.run(|fs| fs.stat(file)), Err(Error::Stale)));
    let mut bytes = [0; 8];
    assert!(b.run(|fs| fs.read_pages(&caller(), file, 0, &mut bytes)).is_err());
    assert_eq!(b.names(b.at(".snapshots").unwrap()), [""; 0]);
}

#[test]
fn clones_and_subvolumes_are_folders_of_all_clients() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    write_number(&a, a.create("file"), 1);
    a.errand(create("one"));
    let dir = a.run(|fs| fs.mkdir(&caller(), a.root, b"dir", 0o755)).unwrap().file;
    assert!(matches!(b.at("dir/clone"), Err(Error::NotFound)));
    let make = |path: &str, of: Option<&str>| Errand::Subvolume {
        path: path.as_bytes().to_vec(),
        of: of.map(|of| of.as_bytes().to_vec()),
        created: 78,
    };
    a.errand(make("dir/clone", Some(".snapshots/one")));
    b.errand(make("empty", None));
    assert_eq!(b.names(dir), ["clone"]);
    assert_eq!(b.text("dir/clone/file"), "00000001");
    // Each goes its own way, and all see it.
    let clone = b.at("dir/clone").unwrap();
    let write = OpenRequest { access: Access::WRITE, truncate: None };
    let made = b.run(|fs| fs.create(&caller(), clone, b"new", 0o644, IfExists::Fail, &write));
    write_number(&b, made.unwrap().0.file, 7);
    write_number(&a, a.at("dir/clone/file").unwrap(), 2);
    assert_eq!(
        (a.text("dir/clone/new"), b.text("dir/clone/file")),
        ("00000007".to_owned(), "00000002".to_owned())
    );
    assert_eq!(a.text("file"), "00000001");
    a.run(|fs| fs.rename(&caller(), &rename(clone, "new", "newer"))).unwrap();
    assert_eq!(b.names(clone).len(), 2);
    assert!(b.names(clone).contains(&"newer".to_owned()));
    // Only its own command removes it.
    let removed = b.run(|fs| fs.rmdir(&caller(), dir, b"clone"));
    assert_eq!(errno(&removed.unwrap_err()), libc::EBUSY);
    let Report::Subvolumes { rows, .. } = b.errand(Errand::Subvolumes { after: SubvolId(0) })
    else {
        panic!("something else")
    };
    let paths: Vec<_> = rows.into_iter().map(|row| row.path.unwrap()).collect();
    assert_eq!(paths, [&b"/dir/clone"[..], b"/empty"]);
    // It has snapshots of its own.
    let inner = Errand::Snapshot { path: b"dir/clone".to_vec(), name: b"in".to_vec(), created: 79 };
    b.errand(inner);
    assert_eq!(a.text("dir/clone/.snapshots/in/newer"), "00000007");
    a.errand(Errand::RemoveSubvolume { path: b"dir/clone".to_vec() });
    assert!(matches!(b.at("dir/clone"), Err(Error::NotFound)));
    assert!(b.run(|fs| fs.stat(clone)).is_err());
    b.run(|fs| fs.rmdir(&caller(), b.root, b"dir")).unwrap();
}

#[test]
fn files_in_a_subvolume_are_made_without_asking_for_each() {
    let server = Server::new();
    let client = server.client();
    for name in ["one", "two"] {
        client.errand(Errand::Subvolume { path: name.into(), of: None, created: 1 });
    }
    let dirs = ["one", "two"].map(|name| client.lookup(name).unwrap());
    let make = |dir: FileId, name: &str| {
        let (how, request) =
            (IfExists::Fail, OpenRequest { access: Access::WRITE, truncate: None });
        let make = |fs: &RemoteFs| fs.create(&caller(), dir, name.as_bytes(), 0o644, how, &request);
        client.run(make).unwrap().0.file
    };
    dirs.iter().for_each(|dir| _ = make(*dir, "first"));
    let (made, calls) = client.calls(|_| {
        let names = (0..100).map(|number| format!("{number}"));
        names.flat_map(|name| dirs.map(|dir| make(dir, &name))).collect::<Vec<_>>()
    });
    assert_eq!(calls, 0);
    client.run(|fs| fs.syncfs()).unwrap();
    let numbers: BTreeSet<FileId> = made.iter().copied().collect();
    assert_eq!(numbers.len(), 200);
    let other = server.client();
    for (dir, file) in dirs.iter().cycle().zip(&made).take(6) {
        assert_eq!(dir.subvol, file.subvol);
        assert_eq!(other.names(*dir).len(), 101);
    }
}

#[test]
fn a_subvolume_whose_path_is_too_long_to_be_told_is_listed_without_it() {
    let server = Server::new();
    let a = server.client();
    let name = "n".repeat(255);
    // Two chains of folders, of which one is moved to the end of the other.
    let chain = |first: &str| {
        let mkdir = |dir, name: &str| a.run(|fs| fs.mkdir(&caller(), dir, name.as_bytes(), 0o755));
        let top = mkdir(a.root, first).unwrap().file;
        (0..150).fold(top, |dir, _| mkdir(dir, &name).unwrap().file)
    };
    let (_, end) = (chain("one"), chain("two"));
    let path = format!("one{}/sub", format!("/{name}").repeat(150));
    a.errand(Errand::Subvolume { path: path.into_bytes(), of: None, created: 1 });
    let moving = RenameRequest { target_parent: end, ..rename(a.root, "one", "one") };
    a.run(|fs| fs.rename(&caller(), &moving)).unwrap();
    a.run(|fs| fs.syncfs()).unwrap();
    server.world.fs.map().commit().unwrap();
    let Report::Subvolumes { rows, .. } = a.errand(Errand::Subvolumes { after: SubvolId(0) })
    else {
        panic!("another report")
    };
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].path.as_ref().map(Vec::len), None);
}

#[test]
fn a_snapshot_does_not_show_the_subvolumes_below() {
    let server = Server::new();
    let (a, b) = (server.client(), server.client());
    let dir = a.run(|fs| fs.mkdir(&caller(), a.root, b"dir", 0o755)).unwrap().file;
    a.errand(Errand::Subvolume { path: b"dir/sub".to_vec(), of: None, created: 1 });
    a.errand(create("one"));
    assert_eq!(b.names(dir), ["sub"]);
    assert_eq!(b.names(b.at(".snapshots/one/dir").unwrap()), [""; 0]);
    assert!(matches!(b.at(".snapshots/one/dir/sub"), Err(Error::NotFound)));
    // In a clone the name is free for others.
    let of = Some(b".snapshots/one".to_vec());
    a.errand(Errand::Subvolume { path: b"clone".to_vec(), of, created: 2 });
    let inner = b.at("clone/dir").unwrap();
    assert_eq!(b.names(inner), [""; 0]);
    b.run(|fs| fs.mkdir(&caller(), inner, b"sub", 0o755)).unwrap();
    assert_eq!(a.names(inner), ["sub"]);
}

#[test]
fn what_a_backup_has_to_read_is_told_in_parts_that_go_on_where_one_ended() {
    // More names in one directory than one part tells.
    const NEW: u64 = 4200;
    let server = Server::new();
    let a = server.client();
    let file = a.create("file");
    a.errand(create("one"));
    write_number(&a, file, 1);
    let world = &server.world;
    for number in 0..NEW {
        let name = format!("new-{number}").into_bytes();
        let (by, root) = (&world.caller, world.root());
        world.fs.mknod(by, root, &name, FileType::Regular, 0o644, 0).unwrap();
    }
    a.errand(create("two"));
    let map = server.world.fs.map();
    let root = server.world.root().subvol;
    let find = |name: &[u8]| map.find_snapshot(root, name).unwrap();
    let whole = gabion_node::delta(map, find(b"one"), find(b"two")).unwrap();
    let (mut names, mut touched, mut stretches) = (Vec::new(), Vec::new(), Vec::new());
    let (mut after, mut parts) = (Some(DeltaPlace::default()), 0);
    while let Some(place) = after {
        let (from, to) = (b"one".to_vec(), b"two".to_vec());
        let asked = Errand::Delta { path: Vec::new(), from, to, after: place };
        let Report::Delta { rows, next } = a.errand(asked) else { panic!("another report") };
        assert!(rows.len() <= 4096);
        for row in rows {
            match row {
                DeltaRow::Name { dir, name, ino } => names.push((dir, name, ino)),
                DeltaRow::Touched { ino, path, is_new } => touched.push((path, ino, is_new)),
                DeltaRow::Stretch { ino, from, to, is_hole } => {
                    stretches.push((ino, Stretch { from, to, is_hole }));
                }
                other => panic!("{other:?}"),
            }
        }
        (after, parts) = (next, parts + 1);
    }
    assert!(parts >= 3, "{parts} parts");
    assert_eq!(names, whole.names);
    let of = |it: &gabion_node::Touched| (it.path.clone(), it.ino, it.is_new);
    touched.sort();
    assert_eq!(touched, whole.touched.iter().map(of).collect::<Vec<_>>());
    assert_eq!(touched.len() as u64, NEW + 2);
    assert_eq!(stretches, [(file.ino, Stretch { from: 0, to: 4096, is_hole: false })]);
    let (path, from, to) = (Vec::new(), b"one".to_vec(), b"two".to_vec());
    let asked = Errand::Delta { path, from, to, after: DeltaPlace::default() };
    let user = Caller { uid: 1000, ..caller() };
    assert!(a.refused(&user, asked).contains("only the superuser"));
}

#[test]
fn a_rollback_that_is_asked_for_once_more_is_not_made_again_though_what_it_kept_was_removed() {
    let server = Server::new();
    let client = server.client();
    client.create("first");
    client.errand(create("s"));
    let roll_back = || Errand::Rollback {
        path: Vec::new(),
        name: b"s".to_vec(),
        keep_as: b"kept".to_vec(),
        created: 78,
    };
    let made = client.errand(roll_back());
    // All sessions have ended.
    let (client, other) = (server.client(), server.client());
    other.create("later");
    other.errand(remove("kept"));
    assert_eq!(client.errand(roll_back()), made);
    assert!(client.lookup("later").is_ok(), "it was rolled back once more");
    assert_eq!(client.snapshots(), ["s"]);
}
