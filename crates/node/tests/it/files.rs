//! Operations, and what lies between them and the map: flushing, committing, references.

use gabion_fs::{
    Changes, CopyRequest, Detail, Error, IfTaken, Leave, Privileges, RenameRequest, WriteAt,
};
use gabion_map::{MapError, OpenMode, Payload, Stop};

use crate::world::{MIB, World};

#[test]
fn what_was_written_is_there_after_closing_and_opening() {
    let world = World::new(64 * MIB);
    let content: Vec<u8> = (0..300_000_u32).map(|index| ((index * 7) >> 3) as u8).collect();
    let file = world.file("a", &content);
    world.file("b", b"small");
    assert_eq!(world.read(file), content);
    world.fs.close().unwrap();
    let world = world.after_crash(OpenMode::ReadWrite);
    let found = world.lookup("a").unwrap();
    assert_eq!(found.size, 300_000);
    assert_eq!(world.read(found.file), content);
    assert_eq!(world.read(world.lookup("b").unwrap().file), b"small");
}

#[test]
fn fsync_makes_a_file_and_its_name_durable() {
    let world = World::new(64 * MIB);
    let file = world.file("synced", b"kept");
    world.fs.fsync(file).unwrap();
    let after = world.after_crash(OpenMode::ReadWrite);
    assert_eq!(after.read(after.lookup("synced").unwrap().file), b"kept");
}

#[test]
fn renaming_over_a_file_writes_the_new_bytes_first() {
    let world = World::new(64 * MIB);
    let old = world.file("target", b"old");
    world.fs.fsync(old).unwrap();
    world.file("new", &[7; 100_000]);
    let request = RenameRequest {
        source_parent: world.root(),
        source_name: b"new",
        target_parent: world.root(),
        target_name: b"target",
        if_taken: IfTaken::Replace,
        leave: Leave::Nothing,
    };
    world.fs.rename(&world.caller, &request).unwrap();
    world.fs.map().commit().unwrap();
    let after = world.after_crash(OpenMode::ReadWrite);
    assert_eq!(after.names(), ["target"]);
    assert_eq!(after.read(after.lookup("target").unwrap().file), [7; 100_000]);
}

#[test]
fn copying_a_file_flushes_it_and_shares_its_blocks() {
    let world = World::new(64 * MIB);
    let source = world.file("source", &[3; 10_000_000]);
    let target = world.file("target", b"");
    let request =
        CopyRequest { source, source_offset: 0, target, target_offset: 0, length: u64::MAX };
    world.fs.syncfs().unwrap();
    let used = world.fs.space().used;
    let copied = world.fs.copy_range(&world.caller, &request, Privileges::Keep).unwrap();
    assert_eq!(copied, 10_000_000);
    assert_eq!(world.read(target), world.read(source));
    // 2,442 blocks for one of them, hardly more for both.
    world.fs.syncfs().unwrap();
    assert!(world.fs.space().used < used + 500, "{used} before, {:?}", world.fs.space());
    let onto_itself = CopyRequest { target: source, target_offset: 4096, ..request };
    let refused = world.fs.copy_range(&world.caller, &onto_itself, Privileges::Keep);
    assert!(matches!(refused, Err(Error::InvalidArgument)));
}

#[test]
fn listing_with_attributes_counts_a_lookup_of_each_entry() {
    let world = World::new(64 * MIB);
    for index in 0..10 {
        let file = world.file(&format!("file{index}"), b"");
        world.fs.forget(file, 1);
    }
    assert_eq!(world.fs.references_held(), 0);
    let read = |detail| world.fs.readdir(world.root(), 0, 100, detail).unwrap();
    read(Detail::Names);
    assert_eq!(world.fs.references_held(), 0);
    let listing = read(Detail::Attributes);
    assert_eq!(world.fs.references_held(), 10);
    for entry in listing.entries.iter().filter_map(|entry| entry.attributes.as_ref()) {
        world.fs.forget(entry.file, 1);
    }
    assert_eq!(world.fs.references_held(), 0);
}

#[test]
fn an_operation_that_fails_counts_no_reference() {
    let world = World::new(64 * MIB);
    let dir = world.fs.mkdir(&world.caller, world.root(), b"dir", 0o755).unwrap();
    world.fs.forget(dir.file, 1);
    assert!(matches!(world.lookup("absent"), Err(Error::NotFound)));
    assert!(world.fs.mkdir(&world.caller, world.root(), b"dir", 0o755).is_err());
    assert!(world.fs.link(&world.caller, dir.file, world.root(), b"second").is_err());
    assert_eq!(world.fs.references_held(), 0);
}

#[test]
fn reading_is_recorded_once_after_each_change() {
    let world = World::new(64 * MIB);
    let file = world.file("file", b"x");
    let atime = || world.fs.stat(file).unwrap().atime.seconds;
    let made = atime();
    world.clock.advance(10);
    world.read(file);
    assert_eq!(atime(), made + 10);
    world.clock.advance(10);
    world.read(file);
    assert_eq!(atime(), made + 10, "nothing has changed since");
    world.write(file, 0, b"y");
    world.clock.advance(10);
    world.read(file);
    assert_eq!(atime(), made + 30);
    world.fs.setattr(&world.caller, file, &Changes::default()).unwrap();
    world.clock.advance(10);
    world.read(file);
    assert_eq!(atime(), made + 40);
    world.clock.advance(24 * 60 * 60);
    world.read(file);
    assert_eq!(atime(), made + 40 + 24 * 60 * 60, "a day is long enough");
}

#[test]
fn a_filesystem_opened_to_read_refuses_changes_and_reads() {
    let world = World::new(64 * MIB);
    let file = world.file("file", b"content");
    world.fs.fsync(file).unwrap();
    let before = world.disk.image();
    let world = world.after_crash(OpenMode::ReadOnly);
    assert_eq!(world.read(world.lookup("file").unwrap().file), b"content");
    let refused = world.fs.mkdir(&world.caller, world.root(), b"dir", 0o755);
    assert!(matches!(refused, Err(Error::Stop(Stop::Map(MapError::ReadOnly)))), "{refused:?}");
    let refused = world.fs.unlink(&world.caller, world.root(), b"file");
    assert!(matches!(refused, Err(Error::Stop(Stop::Map(MapError::ReadOnly)))), "{refused:?}");
    world.fs.syncfs().unwrap();
    world.fs.close().unwrap();
    assert!(world.disk.image() == before, "a read-only filesystem wrote");
}

#[test]
fn a_full_filesystem_gives_space_again_when_a_file_is_removed() {
    let world = World::new(16 * MIB);
    let chunk = vec![9; 256 * 1024];
    let file = world.file("big", b"");
    let fill = |file| {
        for index in 0..1000 {
            let at = WriteAt::Offset(index * chunk.len() as u64);
            let payload = Payload::Copied(&chunk);
            match world.fs.write(&world.caller, file, at, &payload, Privileges::Keep) {
                Ok(_) => {}
                Err(Error::Stop(Stop::Map(MapError::NoSpace))) => return index,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it is never full");
    };
    let first = fill(file);
    assert!(first > 10, "{first} chunks of 256 KiB in 16 MiB");
    world.unlink("big");
    // Nobody reaps but the next operation that needs space.
    world.fs.forget(file, 1);
    let second = fill(world.file("again", b""));
    assert!(second + 2 >= first, "{second} after {first}");
}
