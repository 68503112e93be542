//! Sizes, places and constants of the format, and a sample of every structure, as text.

use std::fmt::Write;

use gabion_base::BLOCK_SIZE;
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};

use gabion_map::format::alloc::{PageCopy, PageRef, encode_table, page_checksum};
use gabion_map::format::item::{
    Access, Dead, EXTENT_BLOCKS_MAX, Extent, FileData, INLINE_LENGTH_MAX, Reference, Sharing,
    SubvolRecord, UNWRITTEN_BLOCKS_MAX, Unwritten, encode_file, encode_freed,
};
use gabion_map::format::journal::{
    Batch, DroppedRange, FreedRun, JournaledBytes, Run, UNIT_HEADER, UnitId, encode_unit,
};
use gabion_map::format::node::{
    Draft, INTERIOR_SLOT, ItemKey, LEAF_SLOT, LEVEL_MAX, NODE_BLOCKS, NODE_CAPACITY, NODE_SIZE,
    NodePtr, Place,
};
use gabion_map::format::subvolume::{Count, Extended, Hold, Most, Quota, Removal, Schedule};
use gabion_map::format::superblock::{
    INCOMPATIBLE, JournalStart, LABEL_LENGTH_MAX, READ_ONLY_COMPATIBLE, Superblock, VERSION,
};
use gabion_map::key::INO_END;
use gabion_map::layout::{
    BLOCKS_MAX, BLOCKS_MIN, GROUP_BLOCKS, HEAD_SLOTS, LaidOut, Layout, SLOTS_EACH_END,
    TABLE_ENTRIES,
};
use gabion_map::txn::{FILE_SIZE_MAX, FileExtent, VALUE_LENGTH_MAX};
use gabion_map::{FileId, Kind};

use super::listing::hex;

const UUID: Uuid = Uuid(*b"0123456789abcdef");
const ADDR: BlockAddr = BlockAddr(0x0102_0304);

fn numbers() -> Vec<(&'static str, u64)> {
    vec![
        ("BLOCK_SIZE", BLOCK_SIZE as u64),
        ("VERSION", u64::from(VERSION)),
        ("INCOMPATIBLE", INCOMPATIBLE),
        ("READ_ONLY_COMPATIBLE", READ_ONLY_COMPATIBLE),
        ("LABEL_LENGTH_MAX", LABEL_LENGTH_MAX as u64),
        ("GROUP_BLOCKS", GROUP_BLOCKS),
        ("TABLE_ENTRIES", TABLE_ENTRIES),
        ("SLOTS_EACH_END", SLOTS_EACH_END),
        ("HEAD_SLOTS", HEAD_SLOTS),
        ("BLOCKS_MIN", BLOCKS_MIN),
        ("BLOCKS_MAX", BLOCKS_MAX),
        ("NODE_BLOCKS", NODE_BLOCKS as u64),
        ("NODE_SIZE", NODE_SIZE as u64),
        ("NODE_CAPACITY", NODE_CAPACITY as u64),
        ("LEVEL_MAX", u64::from(LEVEL_MAX)),
        ("LEAF_SLOT", LEAF_SLOT as u64),
        ("INTERIOR_SLOT", INTERIOR_SLOT as u64),
        ("VALUE_LENGTH_MAX", VALUE_LENGTH_MAX as u64),
        ("FILE_SIZE_MAX", FILE_SIZE_MAX),
        ("INO_END", INO_END),
        ("EXTENT_BLOCKS_MAX", EXTENT_BLOCKS_MAX as u64),
        ("UNWRITTEN_BLOCKS_MAX", u64::from(UNWRITTEN_BLOCKS_MAX)),
        ("INLINE_LENGTH_MAX", INLINE_LENGTH_MAX as u64),
        ("UNIT_HEADER", UNIT_HEADER as u64),
        ("INODE", u64::from(Kind::INODE.0)),
        ("FILE", u64::from(Kind::FILE.0)),
        ("SYMLINK", u64::from(Kind::SYMLINK.0)),
        ("XATTR", u64::from(Kind::XATTR.0)),
        ("DIRENT", u64::from(Kind::DIRENT.0)),
        ("DATA", u64::from(Kind::DATA.0)),
        ("ORPHAN", u64::from(Kind::ORPHAN.0)),
        ("REFERENCE", u64::from(Kind::REFERENCE.0)),
        ("SUBVOLUME", u64::from(Kind::SUBVOLUME.0)),
        ("DEAD", u64::from(Kind::DEAD.0)),
    ]
}

fn layout(blocks: u64, laid_out: LaidOut) -> String {
    let layout = Layout::new(blocks, laid_out).expect("large enough");
    let top = layout.tables.len() - 1;
    let room = match laid_out {
        _ if laid_out == LaidOut::exactly(blocks) => String::new(),
        LaidOut { blocks: room, .. } => format!(", laid out for {room} of {}", layout.reach()),
    };
    format!(
        "layout of {blocks} blocks{room}: {} groups, tables {:?}, top table at {}, bitmap 0 at {}, \
         journal at {} of {}, reserve {}, slots 0, 1, 2, 15 at {:?}, last group fixed {:?}",
        layout.groups,
        layout.tables,
        layout.table_page(top, 0).0,
        layout.bitmap_page(0).0,
        layout.journal.0,
        layout.journal_blocks,
        layout.reserve_clusters,
        [0, 1, 2, 15].map(|slot| layout.slot(slot).0),
        layout.fixed_runs(layout.groups - 1),
    )
}

/// Bytes with runs of zeros counted.
fn dump(name: &str, bytes: &[u8]) -> String {
    let mut text = format!("{name}, {} bytes:", bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let zeros = bytes[at..].iter().take_while(|byte| **byte == 0).count();
        if zeros > 8 || zeros == bytes.len() - at {
            write!(text, " [{zeros} zeros]").expect("memory");
            at += zeros;
            continue;
        }
        let end = (at + 8).min(bytes.len());
        write!(text, " {}", hex(&bytes[at..end])).expect("memory");
        at = end;
    }
    text
}

fn superblock() -> Superblock {
    Superblock {
        compatible: 0x11,
        read_only_compatible: 0x12,
        incompatible: 0x13,
        uuid: UUID,
        txg: Txg(0x14),
        blocks: 0x15,
        name_seed: 0x16,
        next_subvol: SubvolId(0x17),
        free_blocks: 0x18,
        forest: Some(pointer()),
        forest_level: 0x2,
        alloc: page_ref(),
        journal: JournalStart { position: 0x1a, sequence: 0x1b, previous: 0x1c },
        created: 0x1d,
        label: "label".into(),
        laid_out: Some(LaidOut { blocks: 0x1e, journal_blocks: 0x1f }),
    }
}

fn pointer() -> NodePtr {
    NodePtr { addr: ADDR, birth: Txg(0x21), checksum: 0x22 }
}

fn page_ref() -> PageRef {
    PageRef { free: 0x31, clusters: 0x32, copy: PageCopy::B, checksum: 0x33 }
}

fn nodes() -> [(&'static str, Vec<u8>); 2] {
    let place = Place { uuid: UUID, addr: ADDR, birth: Txg(0x41), owner: SubvolId(0x42) };
    let key = |at| ItemKey { ino: Ino(0x43), kind: Kind::DATA, at };
    let leaf = Draft::leaf(&[(key(0x44), b"one"), (key(0x45), b""), (key(0x46), b"three")]);
    let interior = Draft::interior(3, &[(key(0x47), pointer()), (key(0x48), pointer())]);
    let bytes = |draft: Draft| draft.seal(&place).blocks().bytes().to_vec();
    [("leaf", bytes(leaf)), ("interior node", bytes(interior))]
}

fn batch() -> Batch {
    let file = FileId::new(SubvolId(0x51), Ino(0x52));
    let run = Run { addr: ADDR, count: 0x53 };
    Batch {
        items: vec![
            (file.key(Kind::INODE, 0x54), Some(b"value"[..].into())),
            (file.key(Kind::DIRENT, 0x55), None),
        ],
        bytes: vec![JournaledBytes { file, offset: 0x5000, bytes: b"bytes".to_vec() }],
        dropped: vec![DroppedRange { file, from: 0x6000, to: u64::MAX }],
        allocated: vec![run],
        freed: vec![FreedRun { subvol: file.subvol, run, birth: Txg(0x57) }],
    }
}

fn items() -> Vec<(&'static str, Vec<u8>)> {
    let (addr, birth) = (ADDR, Txg(0x61));
    let extent = Extent { addr, birth, sharing: Sharing::Shared, checksums: vec![0x62, 0x63] };
    let unwritten = Unwritten { addr, birth, sharing: Sharing::Sole, count: 0x64 };
    let record = SubvolRecord {
        access: Access::ReadOnly,
        parent: SubvolId(0x65),
        origin: SubvolId(0x66),
        root: Some(pointer()),
        level: 7,
        birth,
        newest_snapshot_birth: Txg(0x68),
        newest_snapshot: SubvolId(0x69),
        next_ino: 0x6a,
        nodes: 0x6b,
        extended: Extended::default(),
    };
    let extended = Extended {
        chain: SubvolId(0x6c),
        base: SubvolId(0x6d),
        base_birth: Txg(0x6e),
        created: 0x6f,
        removal: Removal::Walking(ItemKey { ino: Ino(0x70), kind: Kind::DATA, at: 0x7000 }),
        hold: Hold::Held,
        name: b"monday".to_vec(),
        quota: None,
        schedule: None,
    };
    let most = Most { blocks: Some(0x78), objects: None };
    let quota = Some(Quota { most, count: Some(Count { blocks: 0x79, objects: 0x7a }) });
    let schedule = Some(Schedule { hourly: 0x7b, daily: 0x7c, weekly: 0x7d, monthly: 0x7e });
    let limited = Extended { quota, schedule, ..extended.clone() };
    let limited = SubvolRecord { extended: limited, ..record.clone() };
    let long = SubvolRecord { extended, ..record.clone() };
    vec![
        ("FILE", encode_file(FileExtent { size: 0x71, blocks: 0x72 })),
        ("DATA, inline", FileData::Inline(b"bytes".to_vec()).encode()),
        ("DATA, extent", FileData::Extent(extent).encode()),
        ("DATA, unwritten", FileData::Unwritten(unwritten).encode()),
        ("REFERENCE", Reference { count: 0x73, more: 0x74 }.encode()),
        ("SUBVOLUME", record.encode()),
        ("SUBVOLUME, long", long.encode()),
        ("SUBVOLUME, with a quota and a schedule", limited.encode()),
        ("DEAD", Dead { count: 0x75, owners: 0x76, birth }.encode()),
        ("FREED", encode_freed(0x77)),
    ]
}

/// All of it.
pub fn text() -> String {
    let mut lines = Vec::new();
    lines.extend(numbers().into_iter().map(|(name, value)| format!("{name} = {value}")));
    let lengths = [4096, 16_384, 32_768, 32_775, 40_000, 1 << 20, (1 << 24) + 5, 1 << 33, 1 << 36];
    lines.extend(lengths.map(|blocks| layout(blocks, LaidOut::exactly(blocks))));
    lines.extend([4096, 40_000, 1 << 20, 1 << 33, 1 << 36].map(|blocks| {
        layout(blocks, LaidOut::with_room(blocks)) // As mkfs makes it.
    }));
    lines.extend([40_000, 1 << 20].map(|blocks| layout(blocks, LaidOut::with_room(4096))));
    lines.push(dump("superblock", superblock().encode(ADDR).bytes()));
    lines.extend(nodes().map(|(name, bytes)| dump(name, &bytes)));
    let page = encode_table(2, Txg(0x81), &[page_ref(), PageRef::default()]);
    lines.push(dump("table page", &page));
    lines.push(format!("checksum of that page: {:#x}", page_checksum(UUID, ADDR, &page)));
    let mut payload = Vec::new();
    batch().encode(&mut payload);
    let id = UnitId { uuid: UUID, position: 0x91, sequence: 0x92, previous: 0x93 };
    lines.push(dump("journal unit", encode_unit(&id, &payload).0.bytes()));
    lines.extend(items().into_iter().map(|(name, bytes)| dump(name, &bytes)));
    lines.join("\n") + "\n"
}
