//! Snapshots as a front end sees them.

use gabion_base::ids::Ino;
use gabion_fs::xattr::{SetCondition, SetGroupBit};
use gabion_fs::{
    Access, Changes, CopyRequest, Detail, Error, FileType, IfExists, IfTaken, Leave, OpenRequest,
    Privileges, ROOT, RenameRequest, SpaceRequest, WriteAt, errno,
};
use gabion_map::{FileId, MapError, OpenMode, Payload, Stop};
use gabion_node::served::Rights;
use gabion_node::{Change, Filesystem, Kept, differences};

use crate::shared::{Server, caller};
use crate::world::{MIB, World};

/// A filesystem with a snapshot `one` that has the file `file` and the directory `dir`.
fn world() -> (World, FileId) {
    let world = World::new(64 * MIB);
    world.file("file", b"as it was");
    world.fs.mkdir(&world.caller, world.root(), b"dir", 0o700).unwrap();
    world.fs.map().create_snapshot(world.root().subvol, b"one", 77).unwrap();
    let snapshots = world.lookup(".snapshots").unwrap().file;
    let root = world.fs.lookup(&world.caller, snapshots, b"one").unwrap().file;
    (world, root)
}

#[test]
fn a_snapshot_is_found_by_name_and_has_what_was_there() {
    let (world, root) = world();
    let now = world.lookup("file").unwrap().file;
    let at = WriteAt::Offset(0);
    let payload = Payload::Copied(b"changed since, and longer");
    world.fs.write(&world.caller, now, at, &payload, Privileges::Keep).unwrap();
    world.unlink("file");
    let was = world.fs.lookup(&world.caller, root, b"file").unwrap();
    assert_eq!((was.size, world.read(was.file)), (9, b"as it was".to_vec()));
    let dir = world.fs.lookup(&world.caller, root, b"dir").unwrap();
    assert_eq!(dir.mode & 0o7777, 0o700);
    assert_eq!(world.names(), ["dir"], "no listing shows the snapshots");
    let above = world.fs.lookup(&world.caller, world.lookup(".snapshots").unwrap().file, b"..");
    assert_eq!(above.unwrap().file, world.root());
    assert!(matches!(world.fs.lookup(&world.caller, root, b".snapshots"), Err(Error::NotFound)));
    let after = world.after_crash(OpenMode::ReadOnly);
    assert_eq!(after.read(was.file), b"as it was");
}

#[test]
fn the_directory_of_snapshots_lists_them_all_however_it_is_read() {
    let (world, _) = world();
    let subvol = world.root().subvol;
    for number in 0..20 {
        world.fs.map().create_snapshot(subvol, format!("{number}").as_bytes(), 99).unwrap();
    }
    let gone = world.fs.map().find_snapshot(subvol, b"7").unwrap();
    world.fs.map().remove(&[gone]).unwrap();
    let dir = world.lookup(".snapshots").unwrap();
    assert_eq!((dir.file_type(), dir.mode & 0o7777, dir.size), (FileType::Directory, 0o555, 20));
    assert_eq!(dir.mtime.seconds, 99);
    for limit in [1, 3, 100] {
        let (mut cookie, mut names) = (0, Vec::new());
        loop {
            let listing = world.fs.readdir(dir.file, cookie, limit, Detail::Attributes).unwrap();
            for entry in &listing.entries {
                cookie = entry.cookie;
                names.push(String::from_utf8(entry.name().to_vec()).unwrap());
                let number = entry.attributes.as_ref().map(|found| world.fs.number(found.file));
                assert!(number.is_none_or(|number| number == entry.ino));
            }
            if listing.is_complete {
                break;
            }
        }
        assert_eq!(names[..4], [".", "..", "one", "0"]);
        assert_eq!(names.len(), 22, "{names:?}");
        assert!(!names.contains(&"7".to_owned()));
    }
}

#[test]
fn no_two_objects_of_a_mount_have_one_number() {
    let (world, root) = world();
    let fs: &dyn Filesystem = &*world.fs;
    let was = fs.lookup(&world.caller, root, b"file").unwrap().file;
    let now = world.lookup("file").unwrap().file;
    let snapshots = world.lookup(".snapshots").unwrap().file;
    assert_eq!(was.ino, now.ino);
    let files = [was, now, root, world.root(), snapshots];
    let mut numbers = files.map(|file| fs.number(file));
    for (file, number) in files.into_iter().zip(numbers) {
        assert_ne!(number, Ino(0));
        assert_eq!(fs.file(number), file);
    }
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]));
    // What never changes may be kept; which snapshots there are, not.
    assert!(fs.is_kept(Kept::Attributes(was)) && fs.is_kept(Kept::Name { dir: root, name: b"x" }));
    assert!(!fs.is_kept(Kept::Name { dir: snapshots, name: b"one" }));
}

/// Whether it failed because nothing may be changed there.
fn is_read_only<T: std::fmt::Debug>(outcome: Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Stop(Stop::Map(MapError::ReadOnly))))
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    let (world, root) = world();
    let World { fs, caller, .. } = &world;
    let file = fs.lookup(caller, root, b"file").unwrap().file;
    let snapshots = world.lookup(".snapshots").unwrap().file;
    let open = OpenRequest { access: Access::READ | Access::WRITE, truncate: None };
    assert!(is_read_only(fs.open_file(caller, file, &open)));
    fs.open_file(caller, file, &OpenRequest::READ).unwrap();
    for dir in [root, snapshots] {
        let made = fs.create(caller, dir, b"new", 0o644, IfExists::Open, &OpenRequest::READ);
        assert!(is_read_only(made));
        assert!(is_read_only(fs.mkdir(caller, dir, b"new", 0o755)));
        assert!(is_read_only(fs.symlink(caller, dir, b"new", b"target")));
        assert!(is_read_only(fs.setattr(caller, dir, &Changes::default())));
    }
    assert!(is_read_only(fs.rmdir(caller, snapshots, b"one")));
    assert!(is_read_only(fs.unlink(caller, root, b"file")));
    assert!(is_read_only(fs.rmdir(caller, root, b"dir")));
    assert!(is_read_only(fs.link(caller, file, root, b"new")));
    let always = SetCondition::Always;
    let keep = Privileges::Keep;
    let set = fs.set_xattr(caller, file, b"user.x", b"1", always, SetGroupBit::Keep);
    assert!(is_read_only(set));
    let payload = Payload::Copied(b"no");
    assert!(is_read_only(fs.write(caller, file, WriteAt::Offset(0), &payload, keep)));
    assert!(is_read_only(fs.fallocate(caller, file, SpaceRequest::Punch, 0, 4096, keep)));
    let now = world.lookup("file").unwrap().file;
    let copy = |source, target| {
        let (source_offset, target_offset, length) = (0, 0, 4);
        CopyRequest { source, source_offset, target, target_offset, length }
    };
    assert!(is_read_only(fs.copy_range(caller, &copy(now, file), keep)));
    assert_eq!(fs.copy_range(caller, &copy(file, now), keep).unwrap(), 4);
    let before = fs.stat(file).unwrap().atime;
    world.clock.advance(100_000);
    world.read(file);
    assert_eq!(fs.stat(file).unwrap().atime, before);
}

#[test]
fn names_do_not_go_across_the_edge_of_a_snapshot() {
    let (world, root) = world();
    let rename = |source_parent, source_name: &[u8], target_parent, target_name: &[u8]| {
        let (if_taken, leave) = (IfTaken::Replace, Leave::Nothing);
        let request = RenameRequest {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken,
            leave,
        };
        let error = world.fs.rename(&world.caller, &request).unwrap_err();
        errno(&error)
    };
    assert_eq!(rename(root, b"file", world.root(), b"out"), libc::EXDEV);
    assert_eq!(rename(world.root(), b"file", root, b"in"), libc::EXDEV);
    assert_eq!(rename(root, b"file", root, b"elsewhere"), libc::EROFS);
    assert_eq!(rename(world.root(), b".snapshots", world.root(), b"mine"), libc::EROFS);
    assert_eq!(rename(world.root(), b"dir", world.root(), b".snapshots"), libc::EROFS);
    let file = world.fs.lookup(&world.caller, root, b"file").unwrap().file;
    let linked = world.fs.link(&world.caller, file, world.root(), b"out");
    assert!(matches!(linked, Err(Error::CrossSubvolume)));
    assert!(is_read_only(world.fs.mkdir(&world.caller, world.root(), b".snapshots", 0o755)));
    // Elsewhere it is a name like any other.
    let dir = world.lookup("dir").unwrap().file;
    world.fs.mkdir(&world.caller, dir, b".snapshots", 0o755).unwrap();
}

#[test]
fn what_is_open_in_a_removed_snapshot_becomes_stale() {
    let (world, root) = world();
    let file = world.fs.lookup(&world.caller, root, b"file").unwrap().file;
    world.fs.map().remove(&[root.subvol]).unwrap();
    assert!(matches!(world.fs.stat(file), Err(Error::Stale)));
    let snapshots = world.lookup(".snapshots").unwrap().file;
    assert!(matches!(world.fs.lookup(&world.caller, snapshots, b"one"), Err(Error::NotFound)));
    let mut into = [0; 10];
    assert!(world.fs.read(file, 0, &mut into).is_err());
}

#[test]
fn the_space_of_a_removed_snapshot_is_there_for_whoever_needs_it() {
    let world = World::new(32 * MIB);
    let file = world.file("large", &vec![7; 20 * MIB as usize]);
    let subvol = world.root().subvol;
    let snapshot = world.fs.map().create_snapshot(subvol, b"one", 0).unwrap();
    world.unlink("large");
    world.fs.forget(file, 1);
    world.reap();
    world.fs.map().commit().unwrap();
    let again = world.file("again", b"");
    let fill = || {
        let payload = Payload::Copied(&[8; MIB as usize]);
        (0..12_u64).try_for_each(|index| {
            let at = WriteAt::Offset(index * MIB);
            let keep = Privileges::Keep;
            world.fs.write(&world.caller, again, at, &payload, keep).map(drop)
        })
    };
    let error = fill().unwrap_err();
    assert_eq!(errno(&error), libc::ENOSPC);
    world.fs.map().remove(&[snapshot]).unwrap();
    fill().unwrap();
}

#[test]
fn the_difference_of_two_snapshots_names_what_was_added_removed_changed_and_renamed() {
    let world = World::new(64 * MIB);
    let World { fs, caller, .. } = &world;
    let root = world.root();
    for name in ["kept", "changed", "gone", "old name", "moved and changed"] {
        world.file(name, name.as_bytes());
    }
    let dir = fs.mkdir(caller, root, b"dir", 0o755).unwrap().file;
    let deep = fs.mkdir(caller, dir, b"deep", 0o755).unwrap().file;
    fs.mkdir(caller, dir, b"private", 0o755).unwrap();
    let linked = world.file("changed and linked", b"");
    let old = fs.map().create_snapshot(root.subvol, b"old", 0).unwrap();
    world.clock.advance(10);
    let write = |file| {
        let (at, payload) = (WriteAt::Offset(0), Payload::Copied(b"other"));
        fs.write(caller, file, at, &payload, Privileges::Keep).unwrap();
    };
    let rename = |source_name: &[u8], target_parent, target_name: &[u8]| {
        let (if_taken, leave) = (IfTaken::Replace, Leave::Nothing);
        let source_parent = root;
        let request = RenameRequest {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken,
            leave,
        };
        fs.rename(caller, &request).unwrap();
    };
    write(world.lookup("changed").unwrap().file);
    write(world.lookup("moved and changed").unwrap().file);
    world.unlink("gone");
    rename(b"old name", root, b"new name");
    rename(b"moved and changed", deep, b"here");
    let private = fs.lookup(caller, dir, b"private").unwrap().file;
    let changes = Changes { permissions: Some(0o700), ..Changes::default() };
    fs.setattr(caller, private, &changes).unwrap();
    fs.mkdir(caller, deep, b"new", 0o755).unwrap();
    fs.link(caller, world.lookup("kept").unwrap().file, dir, b"second").unwrap();
    write(linked);
    fs.link(caller, linked, dir, b"third").unwrap();
    let new = fs.map().create_snapshot(root.subvol, b"new", 0).unwrap();
    write(world.lookup("kept").unwrap().file);
    let path = |text: &str| text.as_bytes().to_vec();
    let renamed = |from, to| Change::Renamed { from: path(from), to: path(to) };
    let expected = [
        Change::Changed(path("changed")),
        Change::Changed(path("changed and linked")),
        Change::Changed(path("dir/deep/here")),
        renamed("moved and changed", "dir/deep/here"),
        Change::Added(path("dir/deep/new")),
        Change::Changed(path("dir/private")),
        Change::Added(path("dir/second")),
        Change::Added(path("dir/third")),
        Change::Removed(path("gone")),
        renamed("old name", "new name"),
    ];
    assert_eq!(differences(fs.map(), old, new).unwrap(), expected);
    assert_eq!(differences(fs.map(), old, old).unwrap(), []);
    let back = differences(fs.map(), new, old).unwrap();
    assert!(back.contains(&renamed("new name", "old name")), "{back:?}");
    assert!(back.contains(&Change::Added(path("gone"))), "{back:?}");
}

#[test]
fn a_clone_is_a_directory_that_goes_its_own_way() {
    let (world, root) = world();
    let World { fs, caller, .. } = &world;
    let attached = fs.clone_snapshot(root.subvol, b"/dir/work").unwrap();
    let dir = world.lookup("dir").unwrap();
    assert_eq!((attached.parent, dir.nlink), (dir.file, 3));
    let work = fs.lookup(caller, dir.file, b"work").unwrap().file;
    assert_eq!(work, FileId::new(attached.subvol, gabion_fs::ROOT));
    let file = fs.lookup(caller, work, b"file").unwrap().file;
    let payload = Payload::Copied(b"the clone's");
    fs.write(caller, file, WriteAt::Offset(0), &payload, Privileges::Keep).unwrap();
    fs.mkdir(caller, work, b"new", 0o755).unwrap();
    assert_eq!(world.read(file), b"the clone's");
    assert_eq!(world.read(world.lookup("file").unwrap().file), b"as it was");
    let was = fs.lookup(caller, root, b"file").unwrap().file;
    assert_eq!(world.read(was), b"as it was");
    let paths = |world: &World| world.fs.subvolumes().unwrap();
    assert_eq!(paths(&world), [(attached.subvol, Some(b"/dir/work".to_vec()))]);
    assert_eq!(fs.subvolume_of(b"dir/work").unwrap(), attached.subvol);
    assert!(matches!(fs.subvolume_of(b"dir"), Err(Error::InvalidArgument)));
    // It has snapshots of its own.
    fs.map().create_snapshot(attached.subvol, b"mine", 0).unwrap();
    let snapshots = fs.lookup(caller, work, b".snapshots").unwrap().file;
    fs.lookup(caller, snapshots, b"mine").unwrap();
    assert!(matches!(fs.lookup(caller, snapshots, b"one"), Err(Error::NotFound)));
    fs.syncfs().unwrap();
    let after = world.after_crash(OpenMode::ReadWrite);
    assert_eq!(after.read(file), b"the clone's");
    assert_eq!(paths(&after), [(attached.subvol, Some(b"/dir/work".to_vec()))]);
}

#[test]
fn only_its_own_command_removes_a_subvolume() {
    let (world, root) = world();
    let World { fs, caller, .. } = &world;
    let made = fs.create_subvolume(b"sub").unwrap();
    let sub = world.lookup("sub").unwrap();
    assert_eq!((sub.file.subvol, sub.nlink), (made.subvol, 2));
    assert!(matches!(fs.rmdir(caller, world.root(), b"sub"), Err(Error::Busy)));
    assert!(matches!(fs.unlink(caller, world.root(), b"sub"), Err(Error::Busy)));
    let (if_taken, leave) = (IfTaken::Replace, Leave::Nothing);
    for (source_name, target_name) in [(&b"sub"[..], &b"other"[..]), (b"dir", b"sub")] {
        let (source_parent, target_parent) = (world.root(), world.root());
        let request = RenameRequest {
            source_parent,
            source_name,
            target_parent,
            target_name,
            if_taken,
            leave,
        };
        assert!(matches!(fs.rename(caller, &request), Err(Error::Busy)));
    }
    for path in [&b"sub"[..], b"file", b".snapshots", b".snapshots/two", b".snapshots/one/x"] {
        fs.create_subvolume(path).unwrap_err();
    }
    fs.create_subvolume(b"sub/below").unwrap();
    let refused = fs.delete_subvolume(b"sub").unwrap_err().to_string();
    assert!(refused.contains("another subvolume stands in it"), "{refused}");
    assert!(matches!(fs.delete_subvolume(b"dir"), Err(Error::NotFound)));
    let file = fs.mkdir(caller, sub.file, b"inside", 0o755).unwrap().file;
    fs.delete_subvolume(b"sub/below").unwrap();
    fs.delete_subvolume(b"sub").unwrap();
    assert!(matches!(world.lookup("sub"), Err(Error::NotFound)));
    assert!(matches!(fs.stat(file), Err(Error::Stale)));
    let mut names = world.names();
    names.sort();
    assert_eq!(names, ["dir", "file"]);
    assert_eq!(fs.stat(world.root()).unwrap().nlink, 3);
    assert_eq!(fs.subvolumes().unwrap(), []);
    fs.lookup(caller, root, b"file").unwrap();
}

#[test]
fn a_snapshot_or_a_clone_does_not_show_the_subvolumes_below() {
    let (world, _) = world();
    let World { fs, caller, .. } = &world;
    fs.create_subvolume(b"sub").unwrap();
    let two = fs.map().create_snapshot(world.root().subvol, b"two", 0).unwrap();
    fs.clone_snapshot(two, b"copy").unwrap();
    let snapshots = world.lookup(".snapshots").unwrap().file;
    let two = fs.lookup(caller, snapshots, b"two").unwrap().file;
    for root in [two, world.lookup("copy").unwrap().file] {
        assert!(matches!(fs.lookup(caller, root, b"sub"), Err(Error::NotFound)));
        let listing = fs.readdir(root, 0, 1, Detail::Names).unwrap();
        assert_eq!(listing.entries.len(), 1);
        let listing = fs.readdir(root, 0, 100, Detail::Attributes).unwrap();
        let mut names: Vec<_> = listing.entries.iter().map(|entry| entry.name().to_vec()).collect();
        names.sort();
        assert_eq!(names, [&b"."[..], b"..", b"dir", b"file"]);
    }
}

#[test]
fn names_of_subvolumes_that_are_elsewhere_stand_in_nobodys_way() {
    let (world, _) = world();
    let World { fs, caller, .. } = &world;
    for path in [&b"dir/one"[..], b"dir/two", b"sub"] {
        fs.create_subvolume(path).unwrap();
    }
    let two = fs.map().create_snapshot(world.root().subvol, b"two", 0).unwrap();
    fs.clone_snapshot(two, b"copy").unwrap();
    let copy = world.lookup("copy").unwrap().file;
    fs.rmdir(caller, copy, b"dir").unwrap();
    fs.lookup(caller, copy, b"sub").unwrap_err();
    fs.mkdir(caller, copy, b"sub", 0o755).unwrap();
    assert_eq!(fs.stat(copy).unwrap().nlink, 3);
    // Where they are they stay.
    assert!(matches!(fs.rmdir(caller, world.root(), b"dir"), Err(Error::NotEmpty)));
    for path in [&b"dir/one"[..], b"dir/two", b"sub"] {
        fs.subvolume_of(path).unwrap();
    }
}

#[test]
fn files_without_a_name_in_a_clone_and_in_other_subvolumes_are_reaped() {
    let (world, _) = world();
    let World { fs, caller, .. } = &world;
    let file = world.lookup("file").unwrap().file;
    fs.open_file(caller, file, &OpenRequest::READ).unwrap();
    world.unlink("file");
    let two = fs.map().create_snapshot(world.root().subvol, b"two", 0).unwrap();
    let made = fs.clone_snapshot(two, b"copy").unwrap();
    let left = FileId::new(made.subvol, file.ino);
    assert_eq!(fs.stat(left).unwrap().nlink, 0);
    world.reap();
    assert!(matches!(fs.stat(left), Err(Error::Stale)));
    assert_eq!(world.read(file), b"as it was", "it is still open where it was");
    let copy = world.lookup("copy").unwrap().file;
    let linkable = gabion_fs::create::Linkable::Yes;
    let unnamed = fs.tmpfile(caller, copy, 0o600, linkable).unwrap().file;
    fs.syncfs().unwrap();
    let after = world.after_crash(OpenMode::ReadWrite);
    assert_eq!(after.fs.stat(unnamed).unwrap().nlink, 0);
    after.reap();
    assert!(matches!(after.fs.stat(unnamed), Err(Error::Stale)));
}

#[test]
fn clients_of_a_server_neither_make_nor_remove_names_of_subvolumes() {
    let server = Server::new();
    let fs = &server.world.fs;
    let root = fs.root();
    for path in [&b"dir/sub"[..], b"sub"] {
        if path.starts_with(b"dir") {
            fs.mkdir(&caller(), root, b"dir", 0o755).unwrap();
        }
        fs.create_subvolume(path).unwrap();
    }
    let client = server.client();
    client.create("file");
    let dir = client.lookup("dir").unwrap();
    for parent in [root, dir] {
        assert!(client.names(parent).contains(&"sub".to_owned()));
        let found = client.run(|fs| fs.lookup(&caller(), parent, b"sub")).unwrap().file;
        assert_ne!((found.subvol, found.ino), (root.subvol, ROOT));
        assert_eq!(client.names(found), [""; 0]);
        let made = client.run(|fs| fs.mkdir(&caller(), parent, b"sub", 0o755));
        assert!(matches!(made, Err(Error::Exists)), "{made:?}");
        let removed = client.run(|fs| fs.rmdir(&caller(), parent, b"sub"));
        assert!(matches!(removed, Err(Error::Busy)), "{removed:?}");
    }
    // Who has mounted a folder sees nothing of them.
    let below = server.client_with(Rights { root: dir.ino, ..Rights::TRUSTED });
    let found = below.run(|fs| fs.lookup(&caller(), dir, b"sub"));
    assert!(matches!(found, Err(Error::CrossSubvolume)), "{found:?}");
    let found = below.run(|fs| fs.lookup(&caller(), dir, b".snapshots"));
    assert!(matches!(found, Err(Error::NotFound)), "{found:?}");
    // What is beside them is listed, changed and removed as ever, with whatever is leased ahead.
    let other = server.client();
    assert_eq!(other.names(root).len(), client.names(root).len());
    other.run(|fs| fs.unlink(&caller(), root, b"file")).unwrap();
    other.run(|fs| fs.mkdir(&caller(), dir, b"new", 0o755)).unwrap();
    client.run(|fs| fs.rmdir(&caller(), dir, b"new")).unwrap();
    assert!(matches!(client.lookup("file"), Err(Error::NotFound)));
    assert_eq!(fs.subvolumes().unwrap().len(), 2);
}
