//! Extended attributes.

use gabion_fs::format::inode::{Flags, Inode};
use gabion_fs::xattr::{self, SetCondition, SetGroupBit};
use gabion_fs::{Changes, FileType, Result, WriteAt};
use gabion_map::{FileId, Kind};

use crate::world::{World, failure, user};

fn set(world: &mut World, path: &str, name: &str, value: &[u8]) -> Result<()> {
    set_if(world, path, name, value, SetCondition::Always)
}

fn set_if(
    world: &mut World,
    path: &str,
    name: &str,
    value: &[u8],
    condition: SetCondition,
) -> Result<()> {
    let file = world.resolve(path)?;
    world.tick();
    let ctx = &world.ctx;
    let bit = SetGroupBit::Keep;
    world.map.run(|txn| xattr::set(txn, ctx, file, name.as_bytes(), value, condition, bit))
}

fn value(world: &mut World, path: &str, name: &str) -> Result<Vec<u8>> {
    let file = world.resolve(path)?;
    world.map.run(|txn| xattr::value(txn, &world.ctx, file, name.as_bytes()))
}

fn remove(world: &mut World, path: &str, name: &str) -> Result<()> {
    let file = world.resolve(path)?;
    world.map.run(|txn| xattr::remove(txn, &world.ctx, file, name.as_bytes()))
}

fn list(world: &mut World, path: &str) -> Vec<String> {
    let file = world.resolve(path).unwrap();
    let names = world.map.run(|txn| xattr::list(txn, &world.ctx, file)).unwrap();
    let mut names: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    assert_eq!(failure(value(&mut world, "/file", "user.a")), "NoAttribute");
    assert_eq!(list(&mut world, "/file"), [""; 0]);
    set(&mut world, "/file", "user.a", b"1").unwrap();
    assert_eq!(world.stat("/file").unwrap().ctime, world.ctx.now);
    set(&mut world, "/file", "user.b", b"").unwrap();
    set(&mut world, "/file", "trusted.c", &[7; 4096]).unwrap();
    set(&mut world, "/file", "user.a", b"longer").unwrap();
    assert_eq!(value(&mut world, "/file", "user.a").unwrap(), b"longer");
    assert_eq!(value(&mut world, "/file", "user.b").unwrap(), b"");
    assert_eq!(value(&mut world, "/file", "trusted.c").unwrap(), [7; 4096]);
    assert_eq!(list(&mut world, "/file"), ["trusted.c", "user.a", "user.b"]);
    remove(&mut world, "/file", "user.a").unwrap();
    assert_eq!(failure(remove(&mut world, "/file", "user.a")), "NoAttribute");
    assert_eq!(list(&mut world, "/file"), ["trusted.c", "user.b"]);
    world.unlink("/file").unwrap();
}

#[test]
fn create_and_replace_look_at_what_is_there() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    let mut set = |condition| set_if(&mut world, "/file", "user.a", b"x", condition);
    assert_eq!(failure(set(SetCondition::Present)), "NoAttribute");
    set(SetCondition::Absent).unwrap();
    assert_eq!(failure(set(SetCondition::Absent)), "Exists");
    set(SetCondition::Present).unwrap();
}

#[test]
fn names_and_values_have_limits() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    let longest = format!("user.{}", "x".repeat(250));
    set(&mut world, "/file", &longest, &[1; 4096]).unwrap();
    let mut fails =
        |name: &str, length: usize| failure(set(&mut world, "/file", name, &vec![0; length]));
    assert_eq!(fails("user.a", 4097), "ObjectFull");
    assert_eq!(fails("user.a", 65_537), "AttributeTooLarge");
    assert_eq!(fails(&format!("{longest}x"), 1), "BufferTooSmall");
    assert_eq!(fails("user.", 1), "InvalidArgument");
    assert_eq!(fails("other.a", 1), "NotSupported");
    assert_eq!(fails("system.a", 1), "NotSupported");
}

#[test]
fn namespaces_have_their_own_rules() {
    let mut world = World::new();
    world.create("/file", 0o666).unwrap();
    world.chmod("/file", 0o604).unwrap();
    world.symlink("/link", b"file").unwrap();
    world.mknod("/pipe", FileType::Fifo, 0).unwrap();
    world.mkdir("/tmp", 0o777).unwrap();
    world.chmod("/tmp", 0o1777).unwrap();
    set(&mut world, "/file", "user.a", b"1").unwrap();
    set(&mut world, "/file", "trusted.a", b"1").unwrap();
    set(&mut world, "/file", "security.a", b"1").unwrap();
    set(&mut world, "/link", "security.a", b"1").unwrap();
    assert_eq!(failure(set(&mut world, "/link", "user.a", b"1")), "NotPermitted");
    assert_eq!(failure(set(&mut world, "/pipe", "user.a", b"1")), "NotPermitted");
    assert_eq!(failure(value(&mut world, "/pipe", "user.a")), "NoAttribute");
    world.as_caller(user(5, &[]), |world| {
        assert_eq!(value(world, "/file", "user.a").unwrap(), b"1");
        assert_eq!(failure(set(world, "/file", "user.a", b"2")), "AccessDenied");
        assert_eq!(failure(value(world, "/file", "trusted.a")), "NoAttribute");
        assert_eq!(failure(set(world, "/file", "trusted.a", b"2")), "NotPermitted");
        assert_eq!(value(world, "/file", "security.a").unwrap(), b"1");
        assert_eq!(failure(set(world, "/file", "security.a", b"2")), "NotPermitted");
        assert_eq!(failure(set(world, "/tmp", "user.a", b"2")), "NotPermitted");
        assert_eq!(list(world, "/file"), ["security.a", "user.a"]);
    });
}

#[test]
fn capabilities_go_when_bytes_or_the_owner_change() {
    let mut world = World::new();
    let file = world.create("/file", 0o755).unwrap().file;
    let name = "security.capability";
    let flags = |world: &World, file: FileId| {
        Inode::decode(&world.map.items[&file.key(Kind::INODE, 0)]).unwrap().flags
    };
    let changes: [fn(&mut World, FileId) -> Result<()>; 3] = [
        |world, file| world.write_to(file, WriteAt::Offset(0), b"x").map(|_| ()),
        |world, _| world.truncate("/file", 0).map(|_| ()),
        |world, _| {
            let changes = Changes { gid: Some(7), ..Changes::default() };
            world.setattr("/file", changes).map(|_| ())
        },
    ];
    for change in changes {
        set(&mut world, "/file", name, b"cap").unwrap();
        assert!(flags(&world, file).has(Flags::CAPABILITY));
        change(&mut world, file).unwrap();
        assert!(!flags(&world, file).has(Flags::CAPABILITY));
        assert_eq!(failure(value(&mut world, "/file", name)), "NoAttribute");
    }
    set(&mut world, "/file", name, b"cap").unwrap();
    remove(&mut world, "/file", name).unwrap();
    assert!(!flags(&world, file).has(Flags::CAPABILITY));
}

#[test]
fn a_list_is_longer_than_one_scan_and_shorter_than_the_call_allows() {
    let mut world = World::new();
    world.create("/file", 0o644).unwrap();
    for i in 0..150 {
        set(&mut world, "/file", &format!("user.{i:03}"), b"x").unwrap();
    }
    assert_eq!(list(&mut world, "/file").len(), 150);
    for i in 0..262 {
        set(&mut world, "/file", &format!("user.{i:0250}"), b"").unwrap();
    }
    let file = world.resolve("/file").unwrap();
    let names = world.map.run(|txn| xattr::list(txn, &world.ctx, file));
    assert_eq!(failure(names), "AttributeTooLarge");
}
