//! Volumes that become longer while they are open.

use std::fs;

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::Disk;
use gabion_base::event::{Event, VolumeEvent};
use gabion_block::format::header::Header;
use gabion_block::growth::{self, Lengths};
use gabion_block::mirror::Trust;
use gabion_block::record::{Layout, Record};
use gabion_coordinator::Reach;
use gabion_volume::create::{Content, Occupied, prepare_part};
use gabion_volume::layout;
use gabion_volume::member::length_of;
use gabion_volume::register::{RegisterError, change};
use gabion_volume::volume::Volume;

use crate::world::{World, assert_block, await_sync, block, end, trust, until, write};

/// Bytes of a member at first, and of a longer one.
const SHORT: u64 = 32 << 20;
const LONG: u64 = 80 << 20;

impl World {
    fn wish(&self, wish: impl Fn(&mut Record)) {
        let coordinator = self.surroundings().coordinator;
        change::<_, RegisterError>(&*coordinator, "tank", |record| {
            wish(record);
            Ok(())
        })
        .unwrap();
    }

    /// Makes the files of members longer, and has the record know.
    pub fn lengthen(&self, names: &[&str]) {
        for name in names {
            let file = fs::File::options().write(true).open(self.path(name)).unwrap();
            file.set_len(LONG).unwrap();
        }
        self.measure();
    }

    /// What an administrator's command does.
    fn measure(&self) {
        self.wish(|record| {
            let members = record.layout.members().into_iter().cloned().collect::<Vec<_>>();
            let length = |url: &str| length_of(url).ok();
            let lengths: Lengths =
                members.iter().filter_map(|one| Some((one.uuid, length(&one.url)?))).collect();
            growth::lengthen(&mut record.layout, &lengths);
        });
    }

    fn append(&self, text: &str) {
        let part = self.prepare(text);
        self.wish(|record| record.append = Some(part.clone()));
    }

    fn prepare(&self, text: &str) -> Layout {
        let record = Record::decode(&self.stored()).unwrap();
        let (content, occupied) = (Content::Equal, Occupied::Refuse);
        let layout = layout::parse(text).unwrap();
        prepare_part(&record, layout, content, occupied, &self.surroundings()).unwrap()
    }

    fn stored(&self) -> String {
        self.surroundings().coordinator.read("tank").unwrap().unwrap().text
    }
}

fn blocks(bytes: u64) -> u64 {
    bytes / BLOCK_SIZE as u64
}

#[track_caller]
fn await_blocks(volume: &Volume, blocks: u64) {
    until("the new length", || volume.blocks() == blocks && !volume.has_to_grow());
}

/// Writes up to the end, comes back and finds it.
#[track_caller]
fn use_and_reopen(world: &World, volume: Volume, blocks: u64) -> Volume {
    write(&volume, blocks - 1, 7);
    volume.flush().unwrap();
    end(volume);
    let volume = world.open();
    assert_eq!(volume.blocks(), blocks);
    assert_block(&volume, blocks - 1, 7);
    volume
}

#[test]
fn a_mirror_of_targets_grows_while_it_is_written_to() {
    let world = World::new();
    let _targets = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    let volume = world.open();
    write(&volume, 5, 1);
    let before = volume.blocks();
    let mut mark = 1;
    world.lengthen(&["a", "b"]);
    until("the new length", || {
        mark = mark % 250 + 1;
        write(&volume, 5, mark);
        volume.blocks() > before
    });
    let more = blocks(LONG - SHORT);
    assert_eq!(volume.blocks(), before + more);
    let bytes = (before + more) * BLOCK_SIZE as u64;
    world.await_event(|event| {
        matches!(event, Event::Volume { event: VolumeEvent::Grown { bytes: told }, .. }
            if *told == bytes)
    });
    assert_eq!(trust(&volume), [Trust::InSync; 2], "nobody was given up for it");
    let volume = use_and_reopen(&world, volume, before + more);
    assert_eq!(trust(&volume), [Trust::InSync; 2]);
    assert_block(&volume, 5, mark);
    end(volume);
    let read = |name| fs::read(world.path(name)).unwrap()[2 << 20..].to_vec();
    assert!(read("a") == read("b"), "the copies differ");
}

#[test]
fn a_part_is_appended_while_the_volume_is_open_and_stays() {
    let world = World::new();
    let (a, b, c, d) = (world.file("a"), world.file("b"), world.target("c"), world.file("d"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let before = volume.blocks();
    write(&volume, before - 1, 1);
    world.append(&format!("mirror({},{d})", world.url("c")));
    // The target's own header takes a MiB.
    let longer = before + before - 256;
    await_blocks(&volume, longer);
    write(&volume, before, 2);
    assert_block(&volume, before - 1, 1);
    // Its mirror is one as any other.
    drop(c);
    write(&volume, before, 3);
    until("the loss", || volume.status().values().flatten().any(|it| it.trust == Trust::Stale));
    let _c = world.target("c");
    until("sync", || volume.status().values().flatten().all(|it| it.trust == Trust::InSync));
    let volume = use_and_reopen(&world, volume, longer);
    assert_block(&volume, before, 3);
    let text = layout::text(&volume.record().layout);
    assert_eq!(text, format!("linear(mirror({a},{b}),mirror({},{d}))", world.url("c")));
}

#[test]
fn a_part_that_cannot_be_reached_is_told_and_appended_later() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.target("b"));
    world.create(&a);
    let volume = world.open();
    let before = volume.blocks();
    let part = world.prepare(&world.url("b"));
    drop(b);
    world.wish(|record| record.append = Some(part.clone()));
    world.await_event(|event| {
        matches!(event, Event::Volume { event: VolumeEvent::NotGrown { .. }, .. })
    });
    write(&volume, before - 1, 1);
    assert_eq!(volume.blocks(), before);
    let _b = world.target("b");
    await_blocks(&volume, before + before - 256);
    use_and_reopen(&world, volume, before + before - 256);
}

#[test]
fn whoever_opens_the_volume_next_goes_on_growing() {
    let world = World::new();
    let (a, b, c) = (world.file("a"), world.file("b"), world.file("c"));
    world.create(&format!("mirror({a},{b})"));
    let volume = world.open();
    let before = volume.blocks();
    write(&volume, 3, 3);
    drop(volume);
    world.lengthen(&["a", "b"]);
    world.append(&c);
    let volume = world.open();
    let longer = before + blocks(LONG - SHORT) + blocks(SHORT) - 256;
    await_blocks(&volume, longer);
    until("sync", || trust(&volume) == [Trust::InSync; 2]);
    let volume = use_and_reopen(&world, volume, longer);
    assert_block(&volume, 3, 3);
}

#[test]
fn a_copy_that_was_away_while_the_mirror_grew_catches_up() {
    let world = World::new();
    let (_a, b) = (world.target("a"), world.target("b"));
    world.create(&format!("mirror({},{})", world.url("a"), world.url("b")));
    let volume = world.open();
    let before = volume.blocks();
    // It is measured, and goes before the mirror has heard of it.
    for name in ["a", "b"] {
        let file = fs::File::options().write(true).open(world.path(name)).unwrap();
        file.set_len(LONG).unwrap();
    }
    drop(b);
    write(&volume, 1, 1);
    assert_eq!(trust(&volume), [Trust::InSync, Trust::Stale]);
    let b = world.target("b");
    world.measure();
    drop(b);
    let longer = before + blocks(LONG - SHORT);
    await_blocks(&volume, longer);
    write(&volume, longer - 1, 2);
    let _b = world.target("b");
    await_sync(&volume);
    let volume = use_and_reopen(&world, volume, longer);
    end(volume);
    let read = |name| fs::read(world.path(name)).unwrap()[2 << 20..].to_vec();
    assert!(read("a") == read("b"), "the copies differ");
}

#[test]
fn stripes_of_mirrors_and_mirrors_of_stripes_grow() {
    for text in ["stripe(mirror(A,B),mirror(C,D))", "mirror(stripe(A,B),linear(C,D))"] {
        let world = World::new();
        let mut text = text.to_owned();
        for name in ["a", "b", "c", "d"] {
            text = text.replace(&name.to_uppercase(), &world.file(name));
        }
        world.create(&text);
        let volume = world.open();
        let before = volume.blocks();
        for addr in [0, 64, 200, before - 1] {
            write(&volume, addr, 9);
        }
        world.lengthen(&["a", "b", "c", "d"]);
        let record = Record::decode(&world.stored()).unwrap();
        let longer = growth::reach(&record.layout).unwrap();
        assert!(longer > before, "{text}");
        await_blocks(&volume, longer);
        let volume = use_and_reopen(&world, volume, longer);
        for addr in [0, 64, 200, before - 1] {
            assert_block(&volume, addr, 9);
        }
        assert!(volume.status().values().flatten().all(|copy| copy.trust == Trust::InSync));
    }
}

#[test]
fn growing_waits_for_the_coordinator_and_the_volume_goes_on_meanwhile() {
    for reach in [Reach::None, Reach::AnswersLost] {
        let world = World::new();
        let (a, b, c) = (world.file("a"), world.file("b"), world.file("c"));
        world.create(&format!("mirror({a},{b})"));
        let volume = world.open();
        let before = volume.blocks();
        world.lengthen(&["a", "b"]);
        world.append(&c);
        world.coordinator.set_reach(reach);
        let mut mark = 0;
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_millis(1500) {
            mark = mark % 250 + 1;
            write(&volume, 4, mark);
        }
        world.coordinator.set_reach(Reach::Full);
        let longer = before + blocks(LONG - SHORT) + blocks(SHORT) - 256;
        await_blocks(&volume, longer);
        let volume = use_and_reopen(&world, volume, longer);
        assert_block(&volume, 4, mark);
    }
}

/// What was never written on a longer disk may be anything, and must not be read.
#[test]
fn what_is_behind_the_old_end_reads_as_zeros_on_all_copies() {
    let world = World::new();
    let (a, b) = (world.file("a"), world.file("b"));
    world.create(&format!("mirror({a},{b})"));
    for (name, byte) in [("a", 1), ("b", 2)] {
        let mut bytes = fs::read(world.path(name)).unwrap();
        bytes.resize(LONG as usize, byte);
        fs::write(world.path(name), bytes).unwrap();
    }
    let volume = world.open();
    let before = volume.blocks();
    world.measure();
    let longer = before + blocks(LONG - SHORT);
    await_blocks(&volume, longer);
    for copy in 0..2 {
        for addr in [before, longer - 1] {
            let mut found = block(9).bytes().to_vec();
            volume.read_copy(copy, gabion_base::ids::BlockAddr(addr), &mut found).unwrap();
            assert!(found.iter().all(|byte| *byte == 0), "copy {copy}, block {addr}");
        }
    }
}

/// A mirror in a copy that is away has not grown yet, and the record must not say that the mirror
/// around it has: nobody could open such a volume.
#[test]
fn a_mirror_waits_for_the_mirror_in_a_copy_that_is_away() {
    let world = World::new();
    let targets = (world.target("a"), world.target("b"));
    let c = world.file("c");
    world.create(&format!("mirror(mirror({},{}),{c})", world.url("a"), world.url("b")));
    let volume = world.open();
    let before = volume.blocks();
    write(&volume, 5, 1);
    end(volume);
    world.lengthen(&["a", "b", "c"]);
    drop(targets);
    let volume = world.open();
    assert!(volume.has_to_grow());
    write(&volume, 5, 2);
    let length = || Header::newest(&fs::read(&c).unwrap()[..8192]).map(|header| header.blocks);
    until("the length of what is there", || length() == Some(blocks(LONG)));
    write(&volume, 6, 3);
    volume.flush().unwrap();
    end(volume);
    let record = Record::decode(&world.stored()).unwrap();
    assert_eq!(record.layout.blocks(), Some(before), "c alone is longer");
    let _targets = (world.target("a"), world.target("b"));
    let volume = world.open();
    // A target's own header takes a MiB.
    await_blocks(&volume, before + blocks(LONG - SHORT));
    until("sync", || volume.status().values().flatten().all(|it| it.trust == Trust::InSync));
    let volume = use_and_reopen(&world, volume, before + blocks(LONG - SHORT));
    assert_block(&volume, 5, 2);
    assert_block(&volume, 6, 3);
    end(volume);
}
