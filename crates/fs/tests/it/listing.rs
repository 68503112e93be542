//! readdir.

use std::collections::BTreeSet;

use gabion_base::ids::Ino;
use gabion_fs::format::dirent;
use gabion_fs::{self as fs, Detail, FileType};
use gabion_map::{FileId, Kind};

use crate::world::{ROOT, World};

fn list(world: &mut World, cookie: u64, limit: usize) -> (Vec<(String, u64)>, bool) {
    let listing = world.map.run(|txn| fs::readdir(txn, ROOT, cookie, limit, Detail::Names));
    let listing = listing.unwrap();
    let names = listing
        .entries
        .iter()
        .map(|entry| (String::from_utf8(entry.name().to_vec()).unwrap(), entry.cookie));
    (names.collect(), listing.is_complete)
}

#[test]
fn the_dots_come_first_and_all_names_once_in_batches_of_any_size() {
    let mut world = World::new();
    let mut expected: BTreeSet<String> = (0..50).map(|i| format!("name {i}")).collect();
    for name in &expected {
        world.create(name, 0o644).unwrap();
    }
    expected.extend([".".to_string(), "..".to_string()]);
    for limit in [1, 2, 3, 7, 51, 52, 53, 1000] {
        let mut seen = Vec::new();
        let mut cookie = 0;
        loop {
            let (batch, is_complete) = list(&mut world, cookie, limit);
            assert!(batch.len() <= limit);
            assert!(batch.iter().all(|(_, at)| *at > cookie && *at <= i64::MAX as u64));
            cookie = batch.last().map_or(cookie, |(_, at)| *at);
            seen.extend(batch.into_iter().map(|(name, _)| name));
            if is_complete {
                break;
            }
        }
        assert_eq!(seen[..2], [".", ".."]);
        assert_eq!(seen.len(), expected.len());
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn an_interrupted_listing_loses_and_repeats_nothing_that_stays() {
    let mut world = World::new();
    for i in 0..40 {
        world.create(&format!("stays {i}"), 0o644).unwrap();
        world.create(&format!("goes {i}"), 0o644).unwrap();
    }
    let mut seen = Vec::new();
    let (mut cookie, mut round) = (0, 0);
    loop {
        let (batch, is_complete) = list(&mut world, cookie, 5);
        cookie = batch.last().map_or(cookie, |(_, at)| *at);
        seen.extend(batch.into_iter().map(|(name, _)| name));
        if is_complete {
            break;
        }
        if round < 40 {
            world.unlink(&format!("goes {round}")).unwrap();
            world.create(&format!("comes {round}"), 0o644).unwrap();
        }
        round += 1;
    }
    let mut stayed: Vec<&String> = seen.iter().filter(|n| n.starts_with("stays")).collect();
    stayed.sort();
    assert_eq!(stayed.len(), 40);
    stayed.dedup();
    assert_eq!(stayed.len(), 40);
}

/// No two names are known that share a hash, so the item is made by hand.
#[test]
fn names_that_share_a_hash_are_listed_by_their_slots() {
    let mut world = World::new();
    let at = dirent::position(b"first", world.ctx.seed);
    let mut value = dirent::encode_first(b"first", Ino(100), FileType::Regular);
    for (i, name) in [&b"second"[..], b"third", b"fourth"].iter().enumerate() {
        let ino = Ino(101 + i as u64);
        value = dirent::insert(&value, name, ino, FileType::Regular).unwrap().unwrap();
    }
    let key = ROOT.key(Kind::DIRENT, at);
    world.map.items.insert(key, value.clone().into());
    let (batch, is_complete) = list(&mut world, 2, 2);
    assert_eq!(batch, [("first".into(), at + 1), ("second".into(), at + 2)]);
    assert!(!is_complete);
    let first = dirent::Dirents::decode(&value).unwrap().find(b"first").unwrap().unwrap();
    let less = dirent::remove(&value, &first).unwrap();
    world.map.items.insert(key, less.into());
    let (batch, is_complete) = list(&mut world, at + 2, 2);
    assert_eq!(batch, [("third".into(), at + 3), ("fourth".into(), at + 4)]);
    assert!(is_complete);
    assert_eq!(list(&mut world, at + 4, 2), (vec![], true));
    world.map.items.remove(&key);
}

#[test]
fn a_listing_with_attributes_tells_what_stat_tells() {
    let mut world = World::new();
    world.create("/file", 0o640).unwrap();
    world.write("/file", 0, b"bytes").unwrap();
    world.mkdir("/dir", 0o755).unwrap();
    let listing = world.map.run(|txn| fs::readdir(txn, ROOT, 0, 10, Detail::Attributes)).unwrap();
    assert!(listing.is_complete);
    assert_eq!(listing.entries.len(), 4);
    for entry in &listing.entries {
        let file = FileId::new(ROOT.subvol, entry.ino);
        let expected = world.map.run(|txn| fs::stat(txn, file)).unwrap();
        assert_eq!(entry.file_type, expected.file_type());
        let is_dots = entry.name().starts_with(b".");
        assert_eq!(entry.attributes, (!is_dots).then_some(expected));
    }
}
