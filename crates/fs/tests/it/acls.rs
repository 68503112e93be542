//! POSIX ACLs, as attributes and in force.

use gabion_fs::acl::{Acl, Entry, Tag};
use gabion_fs::format;
use gabion_fs::xattr::{self, AclKind, SetCondition, SetGroupBit};
use gabion_fs::{Access, FileType, OpenRequest, Result};

use crate::world::{World, failure, user};

fn acl(entries: &[(Tag, u8)]) -> Vec<u8> {
    let entries =
        entries.iter().map(|(tag, permissions)| Entry { tag: *tag, permissions: *permissions });
    format::acl::encode(&Acl::new(entries.collect()).expect("a valid ACL"))
}

/// Owner rwx, user 5 rw-, owning group r-x, mask rw-, others ---.
fn rich() -> Vec<u8> {
    acl(&[
        (Tag::Owner, 7),
        (Tag::User(5), 6),
        (Tag::OwningGroup, 5),
        (Tag::Mask, 6),
        (Tag::Others, 0),
    ])
}

fn set(world: &mut World, path: &str, kind: AclKind, value: &[u8]) -> Result<()> {
    let file = world.resolve(path)?;
    world.tick();
    let (always, bit) = (SetCondition::Always, SetGroupBit::Keep);
    let ctx = &world.ctx;
    world.map.run(|txn| xattr::set(txn, ctx, file, kind.name(), value, always, bit))
}

fn value(world: &mut World, path: &str, kind: AclKind) -> Result<Vec<u8>> {
    let file = world.resolve(path)?;
    world.map.run(|txn| xattr::value(txn, &world.ctx, file, kind.name()))
}

fn permissions(world: &mut World, path: &str) -> u32 {
    world.stat(path).unwrap().mode & 0o7777
}

#[test]
fn an_access_acl_and_the_mode_follow_each_other() {
    let mut world = World::new();
    world.create("/file", 0o600).unwrap();
    set(&mut world, "/file", AclKind::Access, &rich()).unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o760);
    assert_eq!(value(&mut world, "/file", AclKind::Access).unwrap(), rich());
    world.chmod("/file", 0o1704).unwrap();
    let expected = acl(&[
        (Tag::Owner, 7),
        (Tag::User(5), 6),
        (Tag::OwningGroup, 5),
        (Tag::Mask, 0),
        (Tag::Others, 4),
    ]);
    assert_eq!(value(&mut world, "/file", AclKind::Access).unwrap(), expected);
    assert_eq!(permissions(&mut world, "/file"), 0o1704);
}

#[test]
fn an_acl_that_says_no_more_than_the_mode_is_not_kept() {
    let mut world = World::new();
    world.create("/file", 0o600).unwrap();
    set(&mut world, "/file", AclKind::Access, &rich()).unwrap();
    let plain = acl(&[(Tag::Owner, 6), (Tag::OwningGroup, 4), (Tag::Others, 4)]);
    set(&mut world, "/file", AclKind::Access, &plain).unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o644);
    assert_eq!(failure(value(&mut world, "/file", AclKind::Access)), "NoAttribute");
}

#[test]
fn an_acl_grants_what_the_mode_alone_does_not() {
    let mut world = World::new();
    world.create("/file", 0o600).unwrap();
    set(&mut world, "/file", AclKind::Access, &rich()).unwrap();
    let open = |world: &mut World, uid, access| {
        let request = OpenRequest { access, truncate: None };
        world.as_caller(user(uid, &[]), |world| world.open("/file", request))
    };
    open(&mut world, 5, Access::READ | Access::WRITE).unwrap();
    assert_eq!(failure(open(&mut world, 5, Access::EXECUTE)), "AccessDenied");
    assert_eq!(failure(open(&mut world, 6, Access::READ)), "AccessDenied");
    world.chmod("/file", 0o700).unwrap();
    assert_eq!(failure(open(&mut world, 5, Access::READ)), "AccessDenied");
}

#[test]
fn a_default_acl_stands_in_for_the_umask() {
    let mut world = World::new();
    world.mkdir("/dir", 0o755).unwrap();
    set(&mut world, "/dir", AclKind::Default, &rich()).unwrap();
    world.ctx.caller.umask = 0o777;
    world.create("/dir/file", 0o666).unwrap();
    assert_eq!(permissions(&mut world, "/dir/file"), 0o660);
    let expected = acl(&[
        (Tag::Owner, 6),
        (Tag::User(5), 6),
        (Tag::OwningGroup, 5),
        (Tag::Mask, 6),
        (Tag::Others, 0),
    ]);
    assert_eq!(value(&mut world, "/dir/file", AclKind::Access).unwrap(), expected);
    assert_eq!(failure(value(&mut world, "/dir/file", AclKind::Default)), "NoAttribute");
    world.mkdir("/dir/sub", 0o777).unwrap();
    assert_eq!(value(&mut world, "/dir/sub", AclKind::Default).unwrap(), rich());
    assert_eq!(value(&mut world, "/dir/sub", AclKind::Access).unwrap(), rich());
    world.symlink("/dir/link", b"x").unwrap();
    assert_eq!(permissions(&mut world, "/dir/link"), 0o777);
    world.mknod("/dir/sub/pipe", FileType::Fifo, 0).unwrap();
    assert_eq!(permissions(&mut world, "/dir/sub/pipe"), 0o640);
    let file = world.resolve("/dir/sub").unwrap();
    for _ in 0..2 {
        let name = AclKind::Default.name();
        world.map.run(|txn| xattr::remove(txn, &world.ctx, file, name)).unwrap();
        assert_eq!(failure(value(&mut world, "/dir/sub", AclKind::Default)), "NoAttribute");
    }
    // A directory may lose it again, and what is made then obeys the umask.
    set(&mut world, "/dir", AclKind::Default, &[2, 0, 0, 0]).unwrap();
    world.ctx.caller.umask = 0o022;
    world.create("/dir/plain", 0o666).unwrap();
    assert_eq!(permissions(&mut world, "/dir/plain"), 0o644);
}

#[test]
fn acls_are_the_owners_and_only_where_they_make_sense() {
    let mut world = World::new();
    world.create("/file", 0o666).unwrap();
    world.symlink("/link", b"file").unwrap();
    let mut fails = |path: &str, kind, bytes: &[u8]| failure(set(&mut world, path, kind, bytes));
    assert_eq!(fails("/file", AclKind::Default, &rich()), "AccessDenied");
    assert_eq!(fails("/link", AclKind::Access, &rich()), "NotSupported");
    assert_eq!(fails("/file", AclKind::Access, &rich()[..40]), "InvalidArgument");
    world.as_caller(user(5, &[]), |world| {
        assert_eq!(failure(set(world, "/file", AclKind::Access, &rich())), "NotPermitted");
    });
}

#[test]
fn a_stranger_to_the_group_loses_set_group_by_an_acl() {
    let mut world = World::new();
    world.create("/file", 0o666).unwrap();
    world.chown("/file", 5, 50).unwrap();
    world.chmod("/file", 0o2755).unwrap();
    world.as_caller(user(5, &[]), |world| set(world, "/file", AclKind::Access, &rich())).unwrap();
    assert_eq!(permissions(&mut world, "/file"), 0o760);
}
