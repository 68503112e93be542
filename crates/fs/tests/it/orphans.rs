//! Files that lost their last name.

use gabion_base::ids::Ino;
use gabion_fs::{self as fs, Fate, WriteAt};
use gabion_map::txn::Removal;
use gabion_map::{FileId, Kind};

use crate::world::{SUBVOL, World, failure};

#[test]
fn an_open_file_outlives_its_last_name() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    world.open.insert(file);
    world.write("/file", 0, b"before").unwrap();
    assert_eq!(world.unlink("/file").unwrap().fate, Fate::Orphaned);
    world.check();
    assert_eq!(world.orphans(), [file]);
    let item = FileId::new(SUBVOL, Ino(0)).key(Kind::ORPHAN, file.ino.0);
    assert!(world.map.items[&item].is_empty());
    world.write_to(file, WriteAt::End, b" after").unwrap();
    let attributes = world.map.run(|txn| fs::stat(txn, file)).unwrap();
    assert_eq!((attributes.nlink, attributes.size), (0, 12));
    world.close(file);
    assert_eq!(failure(world.map.run(|txn| fs::stat(txn, file))), "Stale");
    assert_eq!(world.orphans(), []);
    assert!(world.map.files.is_empty());
}

#[test]
fn a_large_file_goes_step_by_step_and_every_step_is_sound() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    world.write("/file", 0, &[1; 50 * 4096]).unwrap();
    let always = fs::xattr::SetCondition::Always;
    let bit = fs::xattr::SetGroupBit::Keep;
    for i in 0..150 {
        let name = format!("user.{i}");
        let ctx = &world.ctx;
        let set =
            world.map.run(|txn| fs::xattr::set(txn, ctx, file, name.as_bytes(), b"x", always, bit));
        set.unwrap();
    }
    assert_eq!(world.unlink("/file").unwrap().fate, Fate::Orphaned);
    world.check();
    let mut steps = 1;
    while world.map.run(|txn| fs::reap(txn, file)).unwrap() == Removal::Partial {
        world.check();
        assert_eq!(world.orphans(), [file]);
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
    assert_eq!(world.map.run(|txn| fs::reap(txn, file)).unwrap(), Removal::Complete);
    assert_eq!(world.map.items.len(), 1);
}

#[test]
fn orphans_are_listed_in_parts() {
    let mut world = World::new();
    let mut files = Vec::new();
    for i in 0..5 {
        let path = format!("/{i}");
        files.push(world.create(&path, 0o644).unwrap().file);
        world.open.insert(files[i]);
        world.unlink(&path).unwrap();
    }
    let first = world.map.run(|txn| fs::orphans(txn, SUBVOL, Ino(0), 3)).unwrap();
    let rest = world.map.run(|txn| fs::orphans(txn, SUBVOL, first[2].ino, 3)).unwrap();
    assert_eq!([first, rest].concat(), files);
    let none = world.map.run(|txn| fs::orphans(txn, SUBVOL, Ino(u64::MAX), 3)).unwrap();
    assert_eq!(none, []);
}

#[test]
fn reaping_leaves_alone_what_has_a_name() {
    let mut world = World::new();
    let file = world.create("/file", 0o644).unwrap().file;
    assert_eq!(world.map.run(|txn| fs::reap(txn, file)).unwrap(), Removal::Complete);
    world.stat("/file").unwrap();
}
