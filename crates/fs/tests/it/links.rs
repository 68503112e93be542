//! Hard and symbolic links, files without a name.

use gabion_base::ids::Ino;
use gabion_fs::format::dirent::position;
use gabion_fs::format::inode::{Inode, place};
use gabion_fs::{self as fs, Fate, FileType, Linkable};
use gabion_map::Kind;

use crate::world::{ROOT, World, failure};

#[test]
fn all_names_of_a_file_are_equal() {
    let mut world = World::new();
    let file = world.create("/a", 0o644).unwrap().file;
    world.mkdir("/dir", 0o755).unwrap();
    let linked = world.link("/a", "/dir/b").unwrap();
    assert_eq!((linked.file, linked.nlink, linked.ctime), (file, 2, world.ctx.now));
    assert_eq!(world.stat("/dir").unwrap().mtime, world.ctx.now);
    world.write("/a", 0, b"bytes").unwrap();
    let unnamed = world.unlink("/a").unwrap();
    assert_eq!(unnamed.fate, Fate::Named);
    let left = world.stat("/dir/b").unwrap();
    assert_eq!((left.nlink, left.ctime), (1, world.ctx.now));
    assert_eq!(world.read("/dir/b").unwrap(), b"bytes");
}

#[test]
fn an_object_knows_the_last_name_that_it_was_given_until_that_goes() {
    let mut world = World::new();
    let dir = world.mkdir("/dir", 0o755).unwrap().file.ino;
    let file = world.create("/a", 0o644).unwrap().file;
    let at = |name: &[u8], seed| place(position(name, seed));
    let seed = world.ctx.seed;
    let known = |world: &World| {
        let inode = Inode::decode(&world.map.items[&file.key(Kind::INODE, 0)]).unwrap();
        (inode.parent, inode.place)
    };
    assert_eq!(known(&world), (ROOT.ino, at(b"a", seed)));
    world.link("/a", "/dir/b").unwrap();
    assert_eq!(known(&world), (dir, at(b"b", seed)));
    world.unlink("/a").unwrap();
    assert_eq!(known(&world), (dir, at(b"b", seed)));
    world.link("/dir/b", "/c").unwrap();
    world.unlink("/c").unwrap();
    assert_eq!(known(&world), (Ino(0), 0));
    world.rename("/dir/b", "/dir/d").unwrap();
    assert_eq!(known(&world), (dir, at(b"d", seed)));
    assert_eq!(world.stat("/dir/d").unwrap().rdev, 0);
}

#[test]
fn directories_have_one_name() {
    let mut world = World::new();
    world.mkdir("/dir", 0o755).unwrap();
    world.create("/file", 0o644).unwrap();
    assert_eq!(failure(world.link("/dir", "/other")), "NotPermitted");
    assert_eq!(failure(world.link("/file", "/dir")), "Exists");
    assert_eq!(failure(world.link("/absent", "/x")), "NotFound");
    assert_eq!(failure(world.link("/file", "/absent/x")), "NotFound");
}

#[test]
fn a_symbolic_link_keeps_its_target_to_the_byte() {
    let mut world = World::new();
    world.ctx.caller.umask = 0o777;
    let longest = vec![b'x'; 4095];
    let link = world.symlink("/link", &longest).unwrap();
    assert_eq!((link.size, link.mode), (4095, FileType::Symlink.bits() | 0o777));
    assert_eq!(world.map.run(|txn| fs::readlink(txn, link.file)).unwrap(), longest);
    assert_eq!(world.map.items[&link.file.key(Kind::SYMLINK, 0)][..], longest);
    assert_eq!(world.stat("/link").unwrap().size, 4095);
    assert_eq!(failure(world.symlink("/long", &[b'x'; 4096])), "NameTooLong");
    assert_eq!(failure(world.symlink("/empty", b"")), "NotFound");
    let root = world.map.run(|txn| fs::readlink(txn, ROOT));
    assert_eq!(failure(root), "InvalidArgument");
    world.link("/link", "/again").unwrap();
    world.unlink("/link").unwrap();
    world.unlink("/again").unwrap();
}

#[test]
fn a_file_without_a_name_goes_unless_it_gets_one() {
    let mut world = World::new();
    let mut tmpfile = |linkable| {
        let ctx = &world.ctx;
        world.map.run(|txn| fs::tmpfile(txn, ctx, ROOT, 0o600, linkable)).unwrap()
    };
    let kept = tmpfile(Linkable::Yes);
    let lost = tmpfile(Linkable::Yes).file;
    let private = tmpfile(Linkable::No).file;
    assert_eq!(kept.nlink, 0);
    world.open.extend([kept.file, lost, private]);
    assert_eq!(world.orphans(), [kept.file, lost, private]);
    world.write_to(lost, fs::WriteAt::End, b"bytes").unwrap();
    let ctx = world.ctx.clone();
    let mut link = |file, name: &[u8]| world.map.run(|txn| fs::link(txn, &ctx, file, ROOT, name));
    assert_eq!(link(kept.file, b"kept").unwrap().nlink, 1);
    assert_eq!(failure(link(private, b"private")), "NotFound");
    world.check();
    for file in [kept.file, lost, private] {
        world.close(file);
    }
    assert_eq!(world.names("/"), ["kept"]);
    assert_eq!(world.orphans(), []);
    // Once it had a name, it is like any other file.
    world.open.insert(kept.file);
    world.unlink("/kept").unwrap();
    let again = world.map.run(|txn| fs::link(txn, &ctx, kept.file, ROOT, b"again"));
    assert_eq!(failure(again), "NotFound");
}
