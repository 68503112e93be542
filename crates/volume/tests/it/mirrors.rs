//! Mirrors on files and on targets that come and go.

use std::fs;
use std::os::unix::fs::FileExt;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Disk, Repair};
use gabion_base::event::{Event, MemberEvent, ResyncEvent};
use gabion_base::ids::BlockAddr;
use gabion_block::coordinator::CoordinatorError;
use gabion_block::geometry::METADATA_BLOCKS;
use gabion_block::mirror::Trust;
use gabion_volume::register::{RegisterError, change};
use gabion_volume::volume::{Volume, VolumeError};

use crate::world::{World, assert_block, await_sync, block, end, trust, until, write};

/// Bytes at the head of a target's file that are its own, and a member's.
const OWN_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 1 << 20;

#[test]
fn what_was_written_is_on_all_copies_after_closing() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    write(&volume, 5, 1);
    write(&volume, 5000, 2);
    end(volume);
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    assert!(a[HEADER_BYTES..] == b[HEADER_BYTES..]);
    let volume = world.open();
    assert_eq!(trust(&volume), [Trust::InSync; 2], "nothing was left to be done");
    assert_block(&volume, 5, 1);
    assert_block(&volume, 5000, 2);
    assert_block(&volume, 6, 0);
}

#[test]
fn a_target_that_goes_away_is_done_without_and_comes_back_in_sync() {
    let world = World::new();
    let (_a, b) = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    let volume = world.open();
    write(&volume, 1, 1);
    drop(b);
    write(&volume, 1, 2);
    write(&volume, 3000, 3);
    assert_eq!(trust(&volume), [Trust::InSync, Trust::Stale]);
    let is_stale =
        |event: &Event| matches!(event, Event::Member { event: MemberEvent::Stale { .. }, .. });
    world.await_event(is_stale);
    let _b = world.target("b");
    await_sync(&volume);
    world.await_event(|event| {
        matches!(event, Event::Resync { event: ResyncEvent::Finished { .. }, .. })
    });
    end(volume);
    let read = |name| fs::read(world.path(name)).unwrap()[OWN_BYTES + HEADER_BYTES..].to_vec();
    assert!(read("a") == read("b"), "the copies differ");
    let volume = world.open();
    assert_block(&volume, 1, 2);
    assert_block(&volume, 3000, 3);
}

#[test]
fn a_copy_that_was_replaced_by_an_empty_disk_is_filled_again() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    write(&volume, 7, 9);
    end(volume);
    world.file("b");
    let volume = world.open();
    assert_block(&volume, 7, 9);
    await_sync(&volume);
    end(volume);
    assert!(fs::read(a).unwrap()[HEADER_BYTES..] == fs::read(b).unwrap()[HEADER_BYTES..]);
}

#[test]
fn a_writer_that_dies_leaves_copies_that_become_equal() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    write(&volume, 7, 9);
    volume.flush().unwrap();
    // Without being closed.
    drop(volume);
    let volume = world.open();
    assert_block(&volume, 7, 9);
    await_sync(&volume);
    assert_block(&volume, 7, 9);
}

#[test]
fn a_volume_is_open_once() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let error = Volume::open("tank", world.surroundings()).err().unwrap();
    let claimed = RegisterError::Coordinator(CoordinatorError::Claimed {
        volume: "tank".to_owned(),
        holder: "a test".to_owned(),
    });
    assert!(matches!(error, VolumeError::Register(found) if found == claimed));
    drop(volume);
    world.open();
}

#[test]
fn stripes_and_lines_of_mirrors_work() {
    let world = World::new();
    let files = ["a", "b", "c", "d", "e", "f"].map(|name| world.file(name));
    let [a, b, c, d, e, f] = &files;
    world.create(&format!("linear(stripe(mirror({a},{b}),mirror({c},{d})),mirror({e},{f}))"));
    let volume = world.open();
    let last = volume.blocks() - 1;
    for (addr, mark) in [(0, 1), (64, 2), (128, 3), (last, 4)] {
        write(&volume, addr, mark);
    }
    end(volume);
    let volume = world.open();
    for (addr, mark) in [(0, 1), (64, 2), (128, 3), (last, 4)] {
        assert_block(&volume, addr, mark);
    }
}

#[test]
fn a_mirror_of_stripes_survives_the_loss_of_one_part() {
    let world = World::new();
    let _b = world.target("b");
    let (a, c) = (world.file("a"), world.file("c"));
    let d = world.target("d");
    world.create(&format!("mirror(stripe({a},{}),stripe({c},{}))", world.url("b"), world.url("d")));
    let volume = world.open();
    write(&volume, 100, 1);
    drop(d);
    for addr in 0..200 {
        write(&volume, addr, 2);
    }
    assert_eq!(trust(&volume), [Trust::InSync, Trust::Stale]);
    let _d = world.target("d");
    await_sync(&volume);
    assert_block(&volume, 199, 2);
    end(volume);
}

/// The copy that is right lies beside one that has rotted, within a copy, and is found there.
#[test]
fn what_has_rotted_on_copies_within_copies_is_put_right() {
    let world = World::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| world.file(name));
    world.create(&format!("mirror(mirror({a},{b}),{c})"));
    let volume = world.open();
    write(&volume, 7, 9);
    end(volume);
    // Behind the member's header there are the bitmaps of each mirror.
    for (path, mirrors) in [(&a, 2), (&c, 1)] {
        let at = HEADER_BYTES as u64 + (mirrors * METADATA_BLOCKS + 7) * BLOCK_SIZE as u64;
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut found = [0; 1];
        file.read_exact_at(&mut found, at).unwrap();
        assert_eq!(found, [9], "{path}");
        file.write_all_at(&[5; BLOCK_SIZE], at).unwrap();
    }
    let volume = world.open();
    let addr = BlockAddr(7);
    let marks = |volume: &Volume| {
        let mark = |copy| {
            let mut found = vec![0; BLOCK_SIZE];
            volume.read_copy(copy, addr, &mut found).unwrap();
            found[0]
        };
        (0..volume.copies()).map(mark).collect::<Vec<_>>()
    };
    assert_eq!(marks(&volume), [5, 9, 5]);
    let repair = |copy| volume.repair_copy(copy, addr, block(5).bytes(), block(9)).unwrap();
    assert_eq!([0, 1, 2].map(repair), [Repair::Repaired, Repair::Changed, Repair::Repaired]);
    assert_eq!(marks(&volume), [9; 3]);
    world.await_event(|event| matches!(event, Event::Block { .. }));
    end(volume);
    assert!(fs::read(a).unwrap()[HEADER_BYTES..] == fs::read(b).unwrap()[HEADER_BYTES..]);
}

/// Only a part of a copy is mirrored there: what has rotted on the other part is nobody's but the
/// outer mirror's.
#[test]
fn what_has_rotted_on_a_part_without_copies_within_a_copy_is_put_right() {
    let world = World::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| world.file(name));
    world.create(&format!("mirror(linear({a},mirror({b},{c})),{d})"));
    let volume = world.open();
    write(&volume, 7, 9);
    end(volume);
    let at = HEADER_BYTES as u64 + (METADATA_BLOCKS + 7) * BLOCK_SIZE as u64;
    let file = fs::File::options().read(true).write(true).open(&a).unwrap();
    let mut found = [0; 1];
    file.read_exact_at(&mut found, at).unwrap();
    assert_eq!(found, [9]);
    file.write_all_at(&[5; BLOCK_SIZE], at).unwrap();
    let volume = world.open();
    let repair = |copy| volume.repair_copy(copy, BlockAddr(7), block(5).bytes(), block(9)).unwrap();
    assert_eq!([0, 1, 2].map(repair), [Repair::Repaired, Repair::Changed, Repair::Changed]);
    end(volume);
    file.read_exact_at(&mut found, at).unwrap();
    assert_eq!(found, [9]);
}

#[test]
fn a_repaired_copy_is_right_again() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    write(&volume, 9, 1);
    volume.flush().unwrap();
    let mut copies = Vec::new();
    for copy in 0..volume.copies() {
        let mut found = vec![0; 4096];
        volume.read_copy(copy, BlockAddr(9), &mut found).unwrap();
        copies.push(found[0]);
    }
    assert_eq!(copies, [1, 1]);
    let (addr, bad) = (BlockAddr(9), block(1));
    let repaired = volume.repair_copy(1, addr, bad.bytes(), block(5)).unwrap();
    assert_eq!(repaired, Repair::Repaired);
    let mut found = vec![0; 4096];
    volume.read_copy(1, addr, &mut found).unwrap();
    assert_eq!(found[0], 5);
    let changed = volume.repair_copy(1, addr, bad.bytes(), block(6)).unwrap();
    assert_eq!(changed, Repair::Changed);
}

#[test]
fn wishes_in_the_record_are_fulfilled_while_the_volume_is_open() {
    use gabion_block::record::Wish;

    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let uuid = volume.mirror_uuids()[0];
    let wish = |wish| {
        let coordinator = world.surroundings().coordinator;
        change::<_, RegisterError>(&*coordinator, "tank", |record| {
            record.layout.mirror_mut(uuid).unwrap()[1].wish = wish;
            Ok(())
        })
        .unwrap();
    };
    wish(Wish::Suspend);
    until("suspension", || trust(&volume)[1] == Trust::Suspended);
    write(&volume, 3, 3);
    wish(Wish::Use);
    await_sync(&volume);
    wish(Wish::Remove);
    until("removal", || trust(&volume)[1] == Trust::Removed);
    write(&volume, 3, 4);
    end(volume);
    let stored = world.surroundings().coordinator.read("tank").unwrap().unwrap();
    assert!(stored.text.contains("removed"), "{}", stored.text);
    assert_block(&world.open(), 3, 4);
}

#[test]
fn a_new_disk_takes_the_place_of_one_that_was_taken_out() {
    use gabion_block::record::{CopyState, MirrorCopy, Wish};
    use gabion_volume::create::{Content, Occupied, prepare_part};
    use gabion_volume::layout;

    let world = World::new();
    let (a, b, c) = (world.file("a"), world.file("b"), world.file("c"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    write(&volume, 7, 7);
    let uuid = volume.mirror_uuids()[0];
    let surroundings = world.surroundings();
    let edit = |edit: &dyn Fn(&mut MirrorCopy)| {
        change::<_, RegisterError>(&*surroundings.coordinator, "tank", |record| {
            edit(&mut record.layout.mirror_mut(uuid).unwrap()[1]);
            Ok(())
        })
        .unwrap();
    };
    edit(&|copy| copy.wish = Wish::Remove);
    until("removal", || volume.record().layout.mirrors()[0].1[1].state == CopyState::Removed);
    let on = layout::parse(&c).unwrap();
    let (content, occupied) = (Content::Unknown, Occupied::Refuse);
    let on = prepare_part(&volume.record(), on, content, occupied, &surroundings).unwrap();
    edit(&|copy| {
        (copy.wish, copy.state) = (Wish::Use, CopyState::Stale { full: true });
        copy.on = on.clone();
    });
    until("the new copy", || trust(&volume) == [Trust::InSync; 2]);
    end(volume);
    let (a, c) = (fs::read(a).unwrap(), fs::read(c).unwrap());
    assert!(a[HEADER_BYTES..] == c[HEADER_BYTES..]);
}

#[test]
fn a_replaced_copy_leaves_when_the_new_one_is_filled_whoever_has_the_volume() {
    use gabion_block::copies::CopyIndex;
    use gabion_block::record::Wish;
    use gabion_block::wishes;
    use gabion_volume::create::{Content, Occupied, prepare_part};
    use gabion_volume::layout;

    let world = World::new();
    let (a, _b, target) = (world.file("a"), world.target("b"), world.target("c"));
    world.create(&format!("mirror({a},{})", world.url("b")));
    let volume = world.open();
    write(&volume, 7, 7);
    let uuid = volume.mirror_uuids()[0];
    let surroundings = world.surroundings();
    let url = world.url("c");
    let record = volume.record();
    let on = layout::parse(&url).unwrap();
    let (content, occupied) = (Content::Unknown, Occupied::Refuse);
    let on = prepare_part(&record, on, content, occupied, &surroundings).unwrap();
    let change = |edit: &dyn Fn(&mut Vec<gabion_block::record::MirrorCopy>)| {
        change::<_, RegisterError>(&*surroundings.coordinator, "tank", |record| {
            edit(record.layout.mirror_mut(uuid).unwrap());
            Ok(())
        })
        .unwrap();
    };
    // The new one is not there: the old one stays, also for the next who opens the volume.
    drop(target);
    change(&|copies| {
        wishes::replace(copies, CopyIndex(1), on.clone()).unwrap();
    });
    until("the new copy", || trust(&volume).len() == 3);
    write(&volume, 7, 8);
    drop(volume);
    let volume = world.open();
    until("the copies that are there", || {
        trust(&volume) == [Trust::InSync, Trust::InSync, Trust::Stale]
    });
    let _c = world.target("c");
    until("the end", || trust(&volume) == [Trust::InSync, Trust::Removed, Trust::InSync]);
    until("the record", || !volume.is_replacing());
    assert_eq!(volume.record().layout.mirrors()[0].1[1].wish, Wish::Remove);
    assert_block(&volume, 7, 8);
    end(volume);
    let (a, c) = (fs::read(a).unwrap(), fs::read(world.path("c")).unwrap());
    // The file has the room that a target needs for itself left at its end.
    assert!(a[HEADER_BYTES..a.len() - OWN_BYTES] == c[OWN_BYTES + HEADER_BYTES..]);
}
