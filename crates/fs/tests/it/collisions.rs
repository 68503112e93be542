//! Names that share a hash.
//!
//! XXH3 mixes the first 16 of 32 bytes as `(a ^ (secret + seed)) * (b ^ ...)`. A seed that makes
//! the first factor zero for a known `a` takes all influence from `b`: every [`name`] has the same
//! hash under [`SEED`].

use gabion_fs::format::dirent::position;
use gabion_fs::xattr::{self, SetCondition, SetGroupBit};
use gabion_fs::{IfTaken, Leave};

use crate::world::{World, failure};

const SECRET: u64 = 0xbe4b_a423_396c_feb8;
pub const SEED: u64 = u64::from_le_bytes(*b"collides").wrapping_sub(SECRET);

/// One of many names on one position; `label` has at most 8 bytes.
pub fn name(label: &str) -> String {
    assert!(label.len() <= 8);
    format!("collides{label:_<8}sixteen more of it")[..32].to_string()
}

fn path(label: &str) -> String {
    format!("/{}", name(label))
}

#[test]
fn the_seed_makes_names_collide() {
    assert_eq!(position(name("a").as_bytes(), SEED), position(name("b").as_bytes(), SEED));
    assert_ne!(position(name("a").as_bytes(), SEED + 1), position(name("b").as_bytes(), SEED + 1));
}

#[test]
fn each_of_them_is_a_name_of_its_own() {
    let mut world = World::with_seed(SEED);
    let files: Vec<_> =
        (0..15).map(|i| world.create(&path(&i.to_string()), 0o644).unwrap().file).collect();
    assert_eq!(failure(world.create(&path("15"), 0o644)), "ObjectFull");
    assert_eq!(failure(world.create(&path("7"), 0o644)), "Exists");
    for (i, file) in files.iter().enumerate() {
        assert_eq!(world.resolve(&path(&i.to_string())).unwrap(), *file);
    }
    world.unlink(&path("3")).unwrap();
    world.create(&path("15"), 0o644).unwrap();
    assert_eq!(world.names("/").len(), 15);
}

#[test]
fn renames_among_them_see_each_others_changes() {
    let mut world = World::with_seed(SEED);
    let a = world.create(&path("a"), 0o644).unwrap().file;
    let b = world.create(&path("b"), 0o644).unwrap().file;
    let c = world.mkdir(&path("c"), 0o755).unwrap().file;
    world.rename_with(&path("a"), &path("c"), IfTaken::Exchange, Leave::Nothing).unwrap();
    assert_eq!(world.resolve(&path("a")).unwrap(), c);
    assert_eq!(world.resolve(&path("c")).unwrap(), a);
    world.rename(&path("c"), &path("new")).unwrap();
    world.rename(&path("new"), &path("b")).unwrap();
    assert_eq!(world.resolve(&path("b")).unwrap(), a);
    assert_eq!(world.names("/"), [name("a"), name("b")]);
    assert!(!world.map.items.keys().any(|key| key.file() == b));
    world.rename_with(&path("b"), &path("d"), IfTaken::Fail, Leave::Whiteout).unwrap();
    assert_eq!(world.names("/"), [name("a"), name("b"), name("d")]);
}

#[test]
fn attributes_share_an_item_until_it_is_full() {
    let mut world = World::with_seed(u64::from_le_bytes(*b"user.att").wrapping_sub(SECRET));
    let file = world.create("/file", 0o644).unwrap().file;
    let attribute = |i: u32| format!("user.att{i:_<8}sixteen more...");
    let mut set = |i: u32, length: usize| {
        let (always, bit) = (SetCondition::Always, SetGroupBit::Keep);
        let value = vec![i as u8; length];
        let ctx = &world.ctx;
        world
            .map
            .run(|txn| xattr::set(txn, ctx, file, attribute(i).as_bytes(), &value, always, bit))
    };
    set(1, 2000).unwrap();
    set(2, 2000).unwrap();
    assert_eq!(failure(set(3, 2000)), "ObjectFull");
    set(3, 100).unwrap();
    set(2, 10).unwrap();
    let ctx = &world.ctx;
    for (i, length) in [(1, 2000), (2, 10), (3, 100)] {
        let value = world.map.run(|txn| xattr::value(txn, ctx, file, attribute(i).as_bytes()));
        assert_eq!(value.unwrap(), vec![i as u8; length]);
    }
    world.map.run(|txn| xattr::remove(txn, ctx, file, attribute(1).as_bytes())).unwrap();
    let names = world.map.run(|txn| xattr::list(txn, ctx, file)).unwrap();
    assert_eq!(names, format!("{}\0{}\0", attribute(2), attribute(3)).into_bytes());
}
