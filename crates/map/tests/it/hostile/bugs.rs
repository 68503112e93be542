//! The smallest image for each fact that was once taken on trust.

use std::ops::ControlFlow;
use std::sync::Arc;

use gabion_base::disk::{Disk, DiskError, DiskRequest, Ticket};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg};

use gabion_map::audit::audit;
use gabion_map::format::item::{
    Access, Dead, Extent, FileData, Reference, Sharing, SubvolRecord, Unwritten,
};
use gabion_map::format::journal::{Batch, JournaledBytes};
use gabion_map::format::node::ItemKey;
use gabion_map::layout::HEAD_SLOTS;
use gabion_map::open::superblocks;
use gabion_map::scrub::scrub;
use gabion_map::txn::Removal;
use gabion_map::{FileId, Kind, Limits, LocalMap, MapError, OpenMode, Payload, Stop, Txn};

use super::forge::{Forge, Item, NodeBytes, payload, recount};
use super::sample::{self, SUBVOL, file, open};
use crate::image::{Image, ImageDisk};

fn opened(image: Image) -> LocalMap {
    open(&ImageDisk::new(image)).expect("nothing that opening looks at is forged")
}

/// Why an image is not opened.
fn refusal(image: Image) -> String {
    match open(&ImageDisk::new(image)) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was opened"),
    }
}

fn forge() -> Forge {
    Forge::new(sample::image())
}

/// The sample with other items in one leaf of a tree: the one that `key` would be in.
fn with_items(tree: SubvolId, key: ItemKey, edit: impl Fn(&mut Vec<Item>)) -> Image {
    let mut forge = forge();
    edit_leaf(&mut forge, tree, key, edit);
    forge.image
}

fn edit_leaf(forge: &mut Forge, tree: SubvolId, key: ItemKey, edit: impl Fn(&mut Vec<Item>)) {
    let mut leaves: Vec<(ItemKey, BlockAddr)> = Vec::new();
    forge.nodes(&mut |found, node| {
        if found == tree && node.level() == 0 {
            leaves.push((node.key(0), node.addr));
        }
    });
    leaves.sort_unstable();
    let index = leaves.partition_point(|(first, _)| *first <= key).saturating_sub(1);
    let leaf = leaves[index].1;
    forge.nodes(&mut |_, node: &mut NodeBytes| {
        if node.addr == leaf {
            let mut items = node.items();
            edit(&mut items);
            node.set_items(items);
        }
    });
}

/// The sample with more items in its subvolume.
fn with_all(items: &[Item]) -> Image {
    let mut forge = forge();
    for item in items {
        edit_leaf(&mut forge, SUBVOL, item.0, |items| items.push(item.clone()));
    }
    forge.image
}

fn subvol_key(id: u64) -> ItemKey {
    ItemKey { ino: Ino(id), kind: Kind::SUBVOLUME, at: 0 }
}

/// The sample with another record of the subvolume.
fn with_record(edit: impl Fn(&mut SubvolRecord)) -> Image {
    with_items(SubvolId(0), subvol_key(1), |items| {
        let item = items.iter_mut().find(|item| item.0 == subvol_key(1)).expect("its record");
        let mut record = SubvolRecord::decode(&item.1).expect("a whole sample");
        edit(&mut record);
        item.1 = record.encode();
    })
}

/// The sample with one more item, in an inode of its own.
fn with_item(kind: Kind, at: u64, value: Vec<u8>) -> Image {
    with_all(&[(ItemKey { ino: Ino(30), kind, at }, value)])
}

fn with_batch(batch: Batch) -> Image {
    let mut forge = forge();
    forge.journal(&mut |units| units.push(payload(std::slice::from_ref(&batch))));
    forge.image
}

#[test]
fn subvolume_ids_that_run_out_are_no_space() {
    let mut forge = forge();
    forge.superblock.next_subvol = SubvolId(u32::MAX);
    forge.seal();
    let map = opened(forge.image);
    assert!(matches!(map.create_subvolume(), Err(MapError::NoSpace)));
    assert!(matches!(map.snapshot(SUBVOL), Err(MapError::NoSpace)));
    map.sync().expect("nothing else is hindered");
}

#[test]
fn a_subvolume_id_that_would_be_given_twice_is_refused() {
    for next in [0, 1] {
        let mut forge = forge();
        forge.superblock.next_subvol = SubvolId(next);
        forge.seal();
        assert!(refusal(forge.image).contains("its next subvolume exists already"));
    }
}

#[test]
fn the_forest_is_no_subvolume() {
    for (id, at) in [(0, 0), (1 << 32, 0), (2, 1)] {
        let image = with_items(SubvolId(0), subvol_key(1), |items| {
            let record = items.iter().find(|item| item.0 == subvol_key(1)).expect("its record");
            let key = ItemKey { at, ..subvol_key(id) };
            let record = record.1.clone();
            items.retain(|item| item.0.ino != Ino(id));
            items.push((key, record));
        });
        assert!(refusal(image).contains("subvolume id"));
    }
}

#[test]
fn roots_from_the_future_are_refused() {
    let image = with_record(|record| {
        record.root = record.root.map(|mut root| {
            root.birth = Txg(1 << 40);
            root
        });
    });
    assert!(refusal(image).contains("birth of a subvolume's root"));
    let mut forge = forge();
    forge.superblock.forest = forge.superblock.forest.map(|mut root| {
        root.birth = forge.superblock.txg.next();
        root
    });
    forge.seal();
    assert!(refusal(forge.image).contains("from a later transaction group"));
}

#[test]
fn a_journal_whose_numbers_end_is_refused() {
    let mut forge = forge();
    forge.superblock.journal.sequence = u64::MAX;
    forge.seal();
    assert!(refusal(forge.image).contains("journal"));
}

#[test]
fn inode_numbers_that_run_out_are_no_space() {
    let map = opened(with_record(|record| record.next_ino = 1 << 63));
    let result = map.transact(|txn| txn.new_inode(SUBVOL));
    assert!(matches!(result, Err(Stop::Map(MapError::NoSpace))), "{result:?}");
}

#[test]
fn a_tree_of_more_nodes_than_its_record_says_shrinks() {
    let map = opened(with_record(|record| record.nodes = 0));
    for ino in 1..200 {
        map.transact(|txn| txn.delete(file(ino).key(Kind::XATTR, ino * 77))).expect("readable");
    }
    map.sync().expect("a working disk");
}

#[test]
fn a_run_that_died_as_often_as_can_be_counted_dies_once_more() {
    let dead = |item: &&mut Item| item.0.kind == Kind::DEAD;
    let any = ItemKey { ino: Ino(1 << 32), kind: Kind::DEAD, at: 0 };
    let image = with_items(SubvolId(0), any, |items| {
        assert!(items.iter().any(|item| item.0.kind == Kind::DEAD), "the sample has some");
        for item in items.iter_mut().filter(dead) {
            let dead = Dead::decode(&item.1).expect("a whole sample");
            item.1 = Dead { owners: u32::MAX, ..dead }.encode();
        }
    });
    let map = opened(image);
    for ino in 10..18 {
        while let Ok(Removal::Partial) = map.transact(|txn| txn.remove_bytes(file(ino))) {}
    }
    map.sync().expect("a working disk");
}

#[test]
fn allocation_pages_that_count_wrong_are_refused() {
    let mut many = forge();
    many.pages(&mut |_, page| page.free = 32_768, &mut |_| {});
    assert!(refusal(many.image).contains("more free blocks than blocks"));
    let mut few = forge();
    few.pages(
        &mut |bitmap, page| {
            recount(bitmap, page);
            page.clusters = 0;
        },
        &mut |_| {},
    );
    assert!(refusal(few.image).contains("not as many as its parent says"));
}

/// The value of an extent of two blocks.
fn extent(addr: u64, sharing: Sharing) -> Vec<u8> {
    let checksums = vec![0; 2];
    FileData::Extent(Extent { addr: BlockAddr(addr), birth: Txg(2), sharing, checksums }).encode()
}

/// A file of two blocks that are said to be shared, and what is said about such blocks.
fn with_references(references: &[(u64, Reference)]) -> LocalMap {
    let key = |ino, kind, at| ItemKey { ino: Ino(ino), kind, at };
    let mut items = vec![(key(30, Kind::DATA, 0), extent(2000, Sharing::Shared))];
    let references = references.iter();
    items.extend(references.map(|(at, value)| (key(0, Kind::REFERENCE, *at), value.encode())));
    opened(with_all(&items))
}

#[test]
fn references_that_overlap_are_damage() {
    let reference = Reference { count: 50, more: 1 };
    let map = with_references(&[(1999, reference), (2001, reference)]);
    let result = map.transact(|txn| txn.remove_bytes(file(30)));
    assert!(matches!(result, Err(Stop::Map(MapError::Corrupt { .. }))), "{result:?}");
}

#[test]
fn an_owner_more_than_can_be_counted_is_an_error() {
    let map = with_references(&[(2000, Reference { count: 2, more: u32::MAX })]);
    let result = map.transact(|txn| txn.share(file(30), 0, file(2), 0, 8192));
    assert!(matches!(result, Err(Stop::Map(MapError::Corrupt { .. }))), "{result:?}");
}

#[test]
fn space_set_aside_in_somebody_elses_blocks_is_not_written() {
    let set_aside = |addr| {
        let (addr, count) = (BlockAddr(addr), 4);
        let (birth, sharing) = (Txg(1 << 40), Sharing::Sole);
        FileData::Unwritten(Unwritten { addr, birth, sharing, count }).encode()
    };
    // Superblocks, the bitmap, the journal, free blocks, and past the end.
    for addr in [HEAD_SLOTS, 26, 100, 4000, 5000] {
        let image = with_item(Kind::DATA, 0, set_aside(addr));
        let before = if addr < 5000 { image.read(BlockAddr(addr), 4) } else { Vec::new() };
        let disk = ImageDisk::new(image);
        let map = open(&disk).expect("not looked at yet");
        let superblock = disk.image().read(BlockAddr(addr.min(4000)), 4);
        map.transact(|txn| txn.write(file(30), 0, Payload::Copied(&[9; 4096]))).expect("accepted");
        assert!(matches!(map.flush_file(file(30)), Err(MapError::Corrupt { .. })));
        if addr < 5000 {
            assert_eq!(disk.image().read(BlockAddr(addr), 4), superblock);
            assert_eq!(before.len(), superblock.len());
        }
    }
}

#[test]
fn space_set_aside_behind_the_end_has_no_room_to_move_up() {
    let map = opened(sample::image());
    let end = i64::MAX as u64 & !0xfff;
    map.transact(|txn| {
        txn.allocate(file(30), end - 8192, end)?;
        txn.set_size(file(30), 8192)
    })
    .expect("space");
    let result = map.transact(|txn| txn.insert(file(30), 0, end - 16_384));
    assert!(matches!(result, Err(Stop::Map(MapError::TooLarge))), "{result:?}");
}

#[test]
fn file_data_where_no_file_reaches_is_damage() {
    for at in [1 << 63, u64::MAX - 4095, (1 << 63) - 4096] {
        let value = extent(2000, Sharing::Sole);
        let map = opened(with_item(Kind::DATA, at, value));
        let report = scrub(&map, &mut |_| ControlFlow::Continue(())).expect("it goes on");
        let found: Vec<_> = report.findings.iter().map(|found| &found.error).collect();
        assert!(!found.is_empty(), "it was not seen");
        assert!(found.iter().all(|error| matches!(error, MapError::BadItem { .. })), "{found:?}");
    }
}

#[test]
fn an_audit_of_long_runs_takes_no_longer() {
    let value = Dead { count: 32_768, owners: 1, birth: Txg(1) }.encode();
    let any = ItemKey { ino: Ino(1 << 32), kind: Kind::DEAD, at: 0 };
    let image = with_items(SubvolId(0), any, |items| {
        for at in 0..200 {
            let key = ItemKey { ino: Ino(9), kind: Kind::DEAD, at: 100 + at };
            items.push((key, value.clone()));
        }
    });
    let audit = audit(&opened(image)).expect("readable");
    assert!(!audit.missing.is_empty(), "free blocks are said to be dead");
}

#[test]
fn a_replay_changes_no_snapshot_and_nothing_that_is_not_there() {
    let snapshot = {
        let subvols = opened(sample::image()).subvolumes();
        let found = subvols.iter().find(|(_, record)| record.access == Access::ReadOnly);
        found.expect("the sample has one").0
    };
    for (subvol, reason) in [(snapshot, "a change of a snapshot"), (SubvolId(99), "not exist")] {
        let id = FileId::new(subvol, Ino(10));
        let item = Batch { items: vec![(id.key(Kind::INODE, 0), None)], ..Batch::default() };
        assert!(refusal(with_batch(item)).contains(reason));
        let bytes = vec![JournaledBytes { file: id, offset: 0, bytes: vec![1] }];
        assert!(refusal(with_batch(Batch { bytes, ..Batch::default() })).contains(reason));
    }
}

#[test]
fn what_an_operation_set_aside_goes_back_when_it_fails() {
    let map = opened(sample::image());
    let before = map.space().available;
    for _ in 0..20 {
        let result = map.transact(|txn| -> Result<(), Stop> {
            txn.allocate(file(30), 0, 1 << 20)?;
            txn.lock(file(31), gabion_map::LockMode::Exclusive)?;
            Err(Stop::Map(MapError::TooLarge))
        });
        assert!(matches!(result, Err(Stop::Map(MapError::TooLarge))), "{result:?}");
    }
    assert_eq!(map.space().available, before);
}

/// Else it would be in the journal, which is then refused.
#[test]
fn a_snapshot_is_not_changed() {
    let map = opened(sample::image());
    let subvols = map.subvolumes();
    let snapshot = subvols.iter().find(|(_, record)| record.access == Access::ReadOnly);
    for subvol in [snapshot.expect("the sample has one").0, SubvolId(99)] {
        let id = FileId::new(subvol, Ino(11));
        let read_only = |result: Result<(), Stop>| {
            assert!(matches!(result, Err(Stop::Map(MapError::ReadOnly))), "{result:?}");
        };
        read_only(map.transact(|txn| txn.put(id.key(Kind::INODE, 0), vec![1])));
        read_only(map.transact(|txn| txn.delete(id.key(Kind::INODE, 0))));
        read_only(map.transact(|txn| txn.set_size(id, 5)));
        read_only(map.transact(|txn| txn.write(id, 0, Payload::Copied(b"no"))));
        read_only(map.transact(|txn| txn.allocate(id, 0, 4096)));
        read_only(map.transact(|txn| txn.remove_bytes(id).map(drop)));
    }
    map.sync().expect("nothing was done");
    assert!(audit(&map).expect("readable").is_exact());
}

#[test]
fn a_replay_does_not_blow_up_in_memory() {
    let part = |block: u64| JournaledBytes { file: file(40), offset: block * 4096, bytes: vec![1] };
    let bytes: Vec<_> = (0..1100).map(part).collect();
    let reason = refusal(with_batch(Batch { bytes, ..Batch::default() }));
    assert!(reason.contains("more file bytes than a journal ever holds"), "{reason}");
}

/// Cuts put the rest of a file's last block into the journal: many of them must not add up to more
/// than a replay takes.
#[test]
fn cuts_of_many_files_are_committed_in_time() {
    let disk = ImageDisk::new(sample::image());
    let map = open(&disk).expect("a whole sample");
    for ino in 1000..2100 {
        map.transact(|txn| txn.write(file(ino), 0, Payload::Copied(&[3; 5000]))).expect("space");
    }
    map.sync().expect("a working disk");
    for ino in 1000..2100 {
        map.transact(|txn| txn.set_size(file(ino), 4097)).expect("space");
    }
    map.sync_file(file(1000)).expect("a working disk");
    drop(map);
    let map = open(&disk).expect("what was synced can be replayed");
    let size = map.transact(|txn| txn.file(file(2099))).expect("readable").size;
    assert_eq!(size, 4097);
}

/// A disk with blocks that cannot be read.
struct BadBlocks {
    disk: Arc<ImageDisk>,
    bad: fn(u64) -> bool,
}

impl Disk for BadBlocks {
    fn name(&self) -> Arc<str> {
        Arc::from("bad")
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let (addr, _) = request.extent();
        if matches!(request, DiskRequest::Read { .. }) && (self.bad)(addr.0) {
            let source = Arc::new(std::io::Error::other("medium error"));
            let (device, operation) = (self.name(), "read");
            return Ticket::ready(Err(DiskError::Io { device, operation, addr, source }));
        }
        self.disk.submit(request)
    }
}

#[test]
fn a_slot_that_cannot_be_read_is_as_good_as_an_empty_one() {
    let open = |bad| {
        let disk = Arc::new(BadBlocks { disk: ImageDisk::new(sample::image()), bad });
        let slots = superblocks(&*disk).map(|slots| slots.len());
        (slots, LocalMap::open(disk, OpenMode::ReadWrite, Limits::within(4 << 20)))
    };
    let (slots, map) = open(|block| block == HEAD_SLOTS || block == HEAD_SLOTS + 7);
    assert!(slots.is_ok_and(|count| count == 16) && map.is_ok());
    let (_, map) = open(|block| block < 4096);
    assert!(matches!(map.err(), Some(MapError::Disk(_))));
}
