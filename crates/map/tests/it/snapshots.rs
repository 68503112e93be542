//! Snapshots, clones and their removal, on a disk in memory: what is read is what it was, and what
//! is in use is what somebody needs, to the block.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gabion_base::disk::{Disk, MemDisk};
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::rng::Rng;

use gabion_map::audit::audit;
use gabion_map::format::subvolume::{Hold, Most};
use gabion_map::removal::Removing;
use gabion_map::subvolumes::Refusal;
use gabion_map::{FileId, Kind, Limits, LocalMap, MapError, Stop, Txn};

use super::local::{Model, assert_exact, file, format_on, open, random_step, read, write};

const SUBVOL: SubvolId = SubvolId(1);

pub fn formatted(blocks: u64) -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new(blocks));
    format_on(&disk);
    disk
}

/// Makes all steps of all removals.
fn remove_all(map: &LocalMap) {
    while map.remove_step().expect("a working disk") == Removing::Step {}
}

fn refusal(result: Result<(), MapError>) -> Refusal {
    match result {
        Err(MapError::Subvolume(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// Blocks in use by what the last commit has.
fn used(map: &LocalMap) -> u64 {
    map.sync().expect("a working disk");
    audit(map).expect("readable").used
}

/// What should be there.
struct World {
    disk: Arc<dyn Disk>,
    map: LocalMap,
    rng: Rng,
    /// Writable subvolumes.
    live: BTreeMap<SubvolId, Model>,
    /// Snapshots, and of which subvolume.
    snapshots: BTreeMap<SubvolId, (SubvolId, Model)>,
    /// Which subvolumes need a snapshot: clones, and those that were rolled back to it.
    bases: BTreeMap<SubvolId, SubvolId>,
    names: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = formatted(32_768);
        let map = open(&disk);
        let live = BTreeMap::from([(SUBVOL, Model::default())]);
        let (snapshots, bases) = Default::default();
        Self { disk, map, rng: Rng::new(seed), live, snapshots, bases, names: 0 }
    }

    fn pick<V>(rng: &mut Rng, from: &BTreeMap<SubvolId, V>) -> Option<SubvolId> {
        from.keys().nth(rng.below(1 + from.len() as u64) as usize).copied()
    }

    fn name(&mut self) -> Vec<u8> {
        self.names += 1;
        format!("snapshot {}", self.names).into_bytes()
    }

    fn step(&mut self) {
        match self.rng.below(60) {
            0..=3 => self.take_snapshot(),
            4..=6 => self.remove_snapshot(),
            7 => self.clone_one(),
            8 => self.remove_subvolume(),
            9 => self.roll_back(),
            10..=13 => drop(self.map.remove_step().expect("a working disk")),
            14 => drop(self.map.commit().expect("a working disk")),
            15 => self.limit(),
            _ => {
                let live = Self::pick(&mut self.rng, &self.live).unwrap_or(SUBVOL);
                let model = self.live.get_mut(&live).expect("the first stays");
                random_step(&mut self.rng, &self.map, model);
            }
        }
    }

    fn take_snapshot(&mut self) {
        let of = Self::pick(&mut self.rng, &self.live).unwrap_or(SUBVOL);
        let name = self.name();
        let id = self.map.create_snapshot(of, &name, 7).expect("room");
        let model = Model { subvol: id, ..self.live[&of].clone() };
        self.snapshots.insert(id, (of, model));
        if let Some(base) = self.bases.get(&of) {
            self.bases.insert(id, *base);
        }
    }

    /// What is limited is counted from then on, and each check compares.
    fn limit(&mut self) {
        let of = Self::pick(&mut self.rng, &self.live).unwrap_or(SUBVOL);
        let most = self.rng.chance(3, 4).then_some(1 << 40);
        self.map.set_quota(of, Most { blocks: most, objects: None }).expect("a working disk");
    }

    fn remove_snapshot(&mut self) {
        let Some(id) = Self::pick(&mut self.rng, &self.snapshots) else { return };
        if self.bases.values().any(|base| *base == id) {
            let refused = refusal(self.map.remove(&[id]));
            assert!(matches!(refused, Refusal::HasClones(_) | Refusal::RolledBackTo(_)));
            return;
        }
        self.map.remove(&[id]).expect("a working disk");
        self.snapshots.remove(&id);
        self.bases.remove(&id);
    }

    fn clone_one(&mut self) {
        let Some(of) = Self::pick(&mut self.rng, &self.snapshots) else { return };
        let id = self.map.clone_snapshot(of, SUBVOL, 7).expect("room");
        self.live.insert(id, Model { subvol: id, ..self.snapshots[&of].1.clone() });
        self.bases.insert(id, of);
    }

    fn remove_subvolume(&mut self) {
        let live = Self::pick(&mut self.rng, &self.live).filter(|id| *id != SUBVOL);
        let Some(live) = live else { return };
        let its = self.snapshots.iter().filter(|(_, (of, _))| *of == live).map(|(id, _)| *id);
        let mut ids: Vec<_> = its.collect();
        if !ids.is_empty() {
            assert_eq!(refusal(self.map.remove(&[live])), Refusal::HasSnapshots);
        }
        ids.push(live);
        let needed = |base: &SubvolId| ids.contains(base);
        if self.bases.iter().any(|(id, base)| !ids.contains(id) && needed(base)) {
            return;
        }
        self.map.remove(&ids).expect("a working disk");
        for id in ids {
            self.live.remove(&id);
            self.snapshots.remove(&id);
            self.bases.remove(&id);
        }
    }

    fn roll_back(&mut self) {
        let Some(to) = Self::pick(&mut self.rng, &self.snapshots) else { return };
        let (of, name) = (self.snapshots[&to].0, self.name());
        let kept = self.map.rollback(of, to, &name, 7).expect("room");
        let was = self.live[&of].clone();
        self.snapshots.insert(kept, (of, Model { subvol: kept, ..was }));
        self.live.insert(of, Model { subvol: of, ..self.snapshots[&to].1.clone() });
        match self.bases.insert(of, to) {
            Some(base) => self.bases.insert(kept, base),
            None => None,
        };
    }

    fn check(&self) {
        assert_exact(&self.map);
        self.live.values().for_each(|model| model.check(&self.map));
        self.snapshots.values().for_each(|(_, model)| model.check(&self.map));
    }

    /// Goes on as if the process had died, with what was durable.
    fn die(self) -> Self {
        self.map.sync().expect("a working disk");
        let Self { disk, map, rng, live, snapshots, bases, names } = self;
        drop(map);
        let map = open(&disk);
        Self { disk, map, rng, live, snapshots, bases, names }
    }
}

#[test]
fn snapshots_clones_and_rollbacks_read_as_they_should_and_use_no_block_too_many() {
    for seed in 0..2 {
        let mut world = World::new(seed);
        for _ in 0..6 {
            for _ in 0..40 {
                world.step();
            }
            world.check();
            if world.rng.chance(1, 3) {
                world = world.die();
            }
        }
        world.check();
    }
}

#[test]
fn when_all_is_removed_all_is_free() {
    for seed in 100..120 {
        let mut world = World::new(seed);
        let empty = used(&world.map);
        for _ in 0..150 {
            world.step();
        }
        let others: Vec<_> = world.live.keys().filter(|id| **id != SUBVOL).copied().collect();
        let ids: Vec<_> = others.into_iter().chain(world.snapshots.keys().copied()).collect();
        // The first is what it is of a snapshot: that one goes with it.
        let needed = world.bases.get(&SUBVOL).copied();
        let ids: Vec<_> = ids.into_iter().filter(|id| Some(*id) != needed).collect();
        match world.map.remove(&ids) {
            Ok(()) => {}
            // What is needed may itself be a clone's.
            Err(MapError::Subvolume(_)) if needed.is_some() => continue,
            Err(error) => panic!("{error}"),
        }
        if needed.is_some() {
            continue;
        }
        remove_all(&world.map);
        for ino in 10..16 {
            world.map.transact(|txn| txn.remove_bytes(file(ino))).expect("readable");
        }
        assert_exact(&world.map);
        // The forest may have become a few nodes higher, and comes down when it is rewritten.
        let left = used(&world.map);
        assert!(left <= empty + 16, "{left} blocks in use, and {empty} in the beginning");
    }
}

#[test]
fn a_removal_goes_on_after_a_crash_at_any_step() {
    let mut world = World::new(5);
    for _ in 0..12 {
        for _ in 0..12 {
            let model = world.live.get_mut(&SUBVOL).expect("the first stays");
            random_step(&mut world.rng, &world.map, model);
        }
        world.take_snapshot();
    }
    let keep = *world.snapshots.keys().nth(6).expect("twelve");
    let ids: Vec<_> = world.snapshots.keys().filter(|id| **id != keep).copied().collect();
    world.map.remove(&ids).expect("a working disk");
    world.snapshots.retain(|id, _| *id == keep);
    loop {
        world.check();
        if world.map.remove_step().expect("a working disk") == Removing::Nothing {
            break;
        }
        world = world.die();
    }
    assert!(!world.map.is_removing());
}

#[test]
fn the_last_of_a_chain_can_be_removed_and_leaves_the_others_whole() {
    let mut world = World::new(6);
    for _ in 0..4 {
        for _ in 0..30 {
            let model = world.live.get_mut(&SUBVOL).expect("the first stays");
            random_step(&mut world.rng, &world.map, model);
        }
        world.take_snapshot();
    }
    let first = *world.snapshots.keys().next().expect("four");
    let kept = world.map.rollback(SUBVOL, first, b"before", 0).expect("room");
    world.live.insert(SUBVOL, Model { subvol: SUBVOL, ..world.snapshots[&first].1.clone() });
    world.check();
    // From the end on, each is the last of its chain.
    let rest: Vec<_> = world.snapshots.keys().filter(|id| **id != first).copied().collect();
    for id in std::iter::once(kept).chain(rest.into_iter().rev()) {
        world.map.remove(&[id]).expect("a working disk");
        world.snapshots.remove(&id);
        world.check();
        remove_all(&world.map);
        world.check();
    }
}

/// Writes, sets aside and punches until it is told to stop.
fn write_all_the_time(map: &LocalMap, ino: u64, stop: &AtomicBool) {
    let mut rng = Rng::new(ino);
    while !stop.load(Ordering::Relaxed) {
        let offset = rng.below(60) * 4096;
        match rng.below(4) {
            0 => {
                map.transact(|txn| txn.allocate(file(ino), offset, offset + 20_000)).expect("room");
            }
            1 => map.transact(|txn| txn.punch(file(ino), offset, offset + 9000)).expect("room"),
            _ => write(map, file(ino), offset, &[rng.below(256) as u8; 10_000]).expect("room"),
        }
        if rng.chance(1, 4) {
            map.flush_file(file(ino)).expect("a working disk");
        }
    }
}

/// It used to count as born before, and when it died it stood on the deadlist of a snapshot that
/// never had it.
#[test]
fn what_an_operation_makes_while_a_snapshot_is_made_is_not_in_it() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let mut made = None;
    let done: Result<(), Stop> = map.transact(|txn| {
        txn.allocate(file(10), 0, 1000 * 4096)?;
        // A commit needs no lock of the operation.
        made.get_or_insert_with(|| map.create_snapshot(SUBVOL, b"one", 0).expect("room"));
        Ok(())
    });
    done.expect("room");
    let with = used(&map);
    map.transact(|txn| txn.remove_bytes(file(10))).expect("readable");
    let without = used(&map);
    assert!(with >= without + 1000, "{with} blocks in use, then {without}");
}

#[test]
fn snapshots_beside_writers_have_just_the_blocks_that_their_births_say() {
    let disk = formatted(65_536);
    let map = open(&disk);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for ino in 10..14 {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || write_all_the_time(map, ino, stop));
        }
        let mut rng = Rng::new(1);
        for number in 0..60 {
            map.create_snapshot(SUBVOL, format!("{number}").as_bytes(), 0).expect("room");
            let there = map.snapshots(SUBVOL);
            if there.len() > 6 {
                let (id, _) = there[rng.below(there.len() as u64) as usize];
                map.remove(&[id]).expect("a working disk");
            }
            for _ in 0..rng.below(4) {
                map.remove_step().expect("a working disk");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    remove_all(&map);
    assert_exact(&map);
    // Each of them becomes the last of its chain: its deadlist is void then.
    let first = map.snapshots(SUBVOL)[0].0;
    map.rollback(SUBVOL, first, b"end", 0).expect("room");
    for (id, _) in map.snapshots(SUBVOL).into_iter().skip(1).rev() {
        map.remove(&[id]).expect("a working disk");
        remove_all(&map);
        assert_exact(&map);
    }
}

#[test]
fn blocks_with_several_owners_are_freed_once_when_their_subvolume_goes() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let empty = used(&map);
    let subvol = map.add_subvolume(SUBVOL, 0).expect("room");
    let id = |ino| FileId::new(subvol, Ino(ino));
    // More copies than a step takes down at once, of overlapping parts.
    let blocks = vec![7; 64 * 4096];
    write(&map, id(10), 0, &blocks).expect("room");
    map.sync().expect("a working disk");
    for ino in 11..3000 {
        let from = ino % 60 * 4096;
        map.transact(|txn| txn.share(id(10), from, id(ino), 0, 4 * 4096)).expect("room");
        map.transact(|txn| txn.put(id(ino).key(Kind::XATTR, 0), vec![1; 900])).expect("room");
    }
    map.sync().expect("a working disk");
    map.remove(&[subvol]).expect("a working disk");
    let mut steps = 0;
    while map.remove_step().expect("a working disk") == Removing::Step {
        assert_exact(&map);
        steps += 1;
        // What became free is used again at once.
        write(&map, file(20), steps * 4096, &[steps as u8; 4096]).expect("room");
    }
    assert!(steps > 4, "{steps} steps");
    map.transact(|txn| txn.remove_bytes(file(20))).expect("readable");
    assert!(used(&map) <= empty + 16);
}

#[test]
fn bytes_on_their_way_end_with_their_subvolume() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let subvol = map.add_subvolume(SUBVOL, 0).expect("room");
    let id = FileId::new(subvol, Ino(10));
    write(&map, id, 0, &[1; 100_000]).expect("room");
    map.sync_file(id).expect("a working disk");
    write(&map, id, 50_000, &[2; 100_000]).expect("room");
    map.remove(&[subvol]).expect("a working disk");
    assert!(matches!(write(&map, id, 0, &[3; 10]), Err(Stop::Map(MapError::ReadOnly))));
    let space = map.space();
    remove_all(&map);
    assert!(map.space().available > space.available);
    assert_exact(&map);
    drop(map);
    assert_exact(&open(&disk));
}

/// As backups do. What the last commit has besides is used again, which opening may meet, too.
#[test]
fn a_snapshot_is_read_beside_who_goes_on_writing() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let bytes = |ino: u64| vec![ino as u8; 40_000];
    (10..60).for_each(|ino| write(&map, file(ino), 0, &bytes(ino)).expect("room"));
    let snapshot = map.create_snapshot(SUBVOL, b"one", 0).expect("room");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for ino in 10..14 {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || write_all_the_time(map, ino, stop));
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                map.commit().expect("room");
            }
        });
        for _ in 0..20 {
            let limits = Limits::within(4 << 20);
            let open = || LocalMap::open_beside(Arc::clone(&disk), limits).ok();
            let beside = std::iter::repeat_with(open).take(1000).flatten().next().expect("a lull");
            for ino in 10..60 {
                let old = FileId::new(snapshot, Ino(ino));
                assert_eq!(read(&beside, old, 0, 50_000), bytes(ino), "{ino}");
            }
            assert!(matches!(beside.check_writable(), Err(MapError::ReadOnly)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(map);
    assert_exact(&open(&disk));
}

#[test]
fn a_snapshot_has_all_that_completed_and_nothing_that_came_later() {
    let disk = formatted(16_384);
    let map = open(&disk);
    write(&map, file(10), 0, &[1; 10_000]).expect("room");
    let snapshot = map.create_snapshot(SUBVOL, b"one", 5).expect("room");
    write(&map, file(10), 0, &[2; 20_000]).expect("room");
    map.sync().expect("a working disk");
    let old = FileId::new(snapshot, Ino(10));
    assert_eq!(read(&map, old, 0, 30_000), vec![1; 10_000]);
    assert_eq!(map.find_snapshot(SUBVOL, b"one"), Some(snapshot));
    let refused = map.transact(|txn| txn.set_size(old, 0));
    assert!(matches!(refused, Err(Stop::Map(MapError::ReadOnly))));
    drop(map);
    let map = open(&disk);
    let listed = map.snapshots(SUBVOL);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].1.extended.name[..], listed[0].1.extended.created), (&b"one"[..], 5));
    assert_eq!(read(&map, old, 0, 30_000), vec![1; 10_000]);
}

#[test]
fn a_snapshot_is_found_by_its_name_only_when_it_can_be_read() {
    let map = open(&formatted(16_384));
    write(&map, file(10), 0, &[1; 10_000]).expect("room");
    map.sync().expect("a working disk");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..200 {
                let name = format!("snapshot {number}");
                map.create_snapshot(SUBVOL, name.as_bytes(), 0).expect("room");
            }
            is_over.store(true, Ordering::Release);
        });
        let mut next = 0;
        while !is_over.load(Ordering::Acquire) {
            let name = format!("snapshot {next}");
            let Some(found) = map.find_snapshot(SUBVOL, name.as_bytes()) else { continue };
            let old = FileId::new(found, Ino(10));
            assert_eq!(read(&map, old, 0, 10_000), vec![1; 10_000], "{name}");
            next += 1;
        }
    });
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let one = map.create_snapshot(SUBVOL, b"one", 0).expect("room");
    let taken = map.create_snapshot(SUBVOL, b"one", 0).map(drop);
    assert_eq!(refusal(taken), Refusal::NameTaken("one".to_owned()));
    for name in [&b""[..], b"a/b", b"..", &[b'n'; 256]] {
        let refused = refusal(map.create_snapshot(SUBVOL, name, 0).map(drop));
        assert!(matches!(refused, Refusal::BadName(_)), "{refused:?}");
    }
    assert_eq!(refusal(map.create_snapshot(one, b"two", 0).map(drop)), Refusal::Absent);
    assert_eq!(refusal(map.clone_snapshot(SUBVOL, SUBVOL, 0).map(drop)), Refusal::NoSnapshot);
    map.set_hold(one, Hold::Held).expect("a working disk");
    assert_eq!(refusal(map.remove(&[one])), Refusal::Held("one".to_owned()));
    map.set_hold(one, Hold::Released).expect("a working disk");
    let clone = map.clone_snapshot(one, SUBVOL, 0).expect("room");
    assert_eq!(refusal(map.remove(&[one])), Refusal::HasClones("one".to_owned()));
    map.remove(&[clone]).expect("a working disk");
    // Its name is free at once, although its blocks are not yet.
    map.remove(&[one]).expect("a working disk");
    assert_eq!(refusal(map.remove(&[one])), Refusal::Absent);
    map.create_snapshot(SUBVOL, b"one", 0).expect("room");
    remove_all(&map);
    assert_exact(&map);
}

#[test]
fn a_snapshot_that_takes_the_place_of_others_is_held_when_they_are_gone() {
    let disk = formatted(16_384);
    let map = open(&disk);
    let make = |name: &[u8]| map.create_snapshot(SUBVOL, name, 0).expect("room");
    write(&map, file(10), 0, &[1; 100_000]).expect("room");
    let (held, free, cloned) = (make(b"held"), make(b"free"), make(b"cloned"));
    write(&map, file(10), 0, &[2; 100_000]).expect("room");
    map.set_hold(held, Hold::Held).expect("a working disk");
    let clone = map.clone_snapshot(cloned, SUBVOL, 0).expect("room");
    let new = make(b"new");
    let before = map.superblock().txg;
    let stay = map.supersede(new, &[held, cloned, free]).expect("a working disk");
    assert_eq!(stay, [(cloned, Refusal::HasClones("cloned".to_owned()))]);
    assert_eq!(map.superblock().txg.0, before.0 + 1, "by one commit");
    drop(map);
    let map = open(&disk);
    let left: Vec<_> = map.snapshots(SUBVOL).into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [cloned, new]);
    assert_eq!(refusal(map.remove(&[new])), Refusal::Held("new".to_owned()));
    assert_eq!(refusal(map.supersede(SUBVOL, &[new]).map(drop)), Refusal::NoSnapshot);
    assert_eq!(map.supersede(new, &[]).expect("a working disk"), []);
    remove_all(&map);
    assert_exact(&map);
    map.remove(&[clone]).expect("a working disk");
    assert_eq!(map.supersede(new, &[cloned]).expect("a working disk"), []);
    remove_all(&map);
    assert_exact(&map);
}
