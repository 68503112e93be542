//! The structures of the map.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::checksum::{crc64, crc64_of};
use gabion_base::codec::{DecodeError, Reader};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};

use gabion_map::format::alloc::{PageCopy, PageRef, decode_table, encode_table};
use gabion_map::format::item::{
    Access, Dead, Extent, FileData, Reference, Sharing, SubvolRecord, Unwritten, decode_file,
    encode_file,
};
use gabion_map::format::journal::{
    Batch, DroppedRange, FreedRun, JournaledBytes, Run, UnitId, decode_unit, decode_unit_length,
    encode_unit,
};
use gabion_map::format::node::{Draft, Expected, ItemKey, NODE_SIZE, Node, NodePtr, Place};
use gabion_map::format::subvolume::{Extended, Hold, Removal};
use gabion_map::format::superblock::{JournalStart, LAID_OUT, Superblock};
use gabion_map::layout::LaidOut;
use gabion_map::txn::FileExtent;
use gabion_map::{FileId, Kind};

use super::inputs::Target;

const ADDR: BlockAddr = BlockAddr(40);
const UUID: Uuid = Uuid([7; 16]);

/// All targets of the map.
pub fn targets() -> Vec<Target> {
    let target = |name, run, samples| Target { name, run, samples };
    vec![
        target("superblock", superblock, vec![superblock_sample()]),
        target("node", node, node_samples()),
        target("table", table, vec![table_sample()]),
        target("data", data, data_samples()),
        target("file", file, vec![encode_file(FileExtent { size: 5000, blocks: 2 })]),
        target("reference", reference, vec![Reference { count: 3, more: 2 }.encode()]),
        target("subvolume", subvolume, vec![record().encode(), long_record().encode()]),
        target("dead", dead, vec![Dead { count: 3, owners: 1, birth: Txg(4) }.encode()]),
        target("unit", unit, vec![unit_sample()]),
        target("batch", batch, vec![batch_sample()]),
    ]
}

/// The first `length` bytes, zeros where there are fewer.
fn padded(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut all = bytes[..bytes.len().min(length)].to_vec();
    all.resize(length, 0);
    all
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut reader = Reader::new(&bytes[at..]);
    reader.u64().expect("within a whole structure")
}

/// A superblock at its own address.
pub fn superblock(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut block = padded(bytes, BLOCK_SIZE);
    let checksum = crc64(&block[..BLOCK_SIZE - 8]);
    block[BLOCK_SIZE - 8..].copy_from_slice(&checksum.to_le_bytes());
    let addr = BlockAddr(word(&block, 56));
    let decoded = Superblock::decode(&block, addr)?;
    let again = Superblock::decode(decoded.encode(addr).bytes(), addr);
    assert_eq!(again, Ok(decoded));
    Ok(())
}

fn superblock_sample() -> Vec<u8> {
    let sample = Superblock {
        compatible: 0,
        read_only_compatible: 0,
        incompatible: LAID_OUT,
        uuid: UUID,
        txg: Txg(9),
        blocks: 4096,
        name_seed: 1,
        next_subvol: SubvolId(2),
        free_blocks: 3000,
        forest: Some(pointer()),
        forest_level: 1,
        alloc: PageRef { free: 3000, clusters: 0, copy: PageCopy::A, checksum: 2 },
        journal: JournalStart { position: 3, sequence: 4, previous: 5 },
        created: 6,
        label: "label".into(),
        laid_out: Some(LaidOut { blocks: 8192, journal_blocks: 256 }),
    };
    sample.encode(ADDR).bytes()[..264].to_vec()
}

fn pointer() -> NodePtr {
    NodePtr { addr: BlockAddr(80), birth: Txg(3), checksum: 4 }
}

/// A node, found by a pointer that agrees with it.
pub fn node(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut bytes = padded(bytes, NODE_SIZE);
    let checksum = crc64_of(&[&bytes[..40], &[0; 8], &bytes[48..]]);
    bytes[40..48].copy_from_slice(&checksum.to_le_bytes());
    let uuid = Uuid(*bytes[8..].first_chunk().expect("a whole node"));
    let (addr, birth) = (BlockAddr(word(&bytes, 24)), Txg(word(&bytes, 32)));
    let ptr = NodePtr { addr, birth, checksum };
    // A node is only looked for where a pointer can point to.
    let mut encoded = Vec::new();
    NodePtr::encode_optional(Some(ptr), &mut encoded);
    NodePtr::decode_optional(&mut Reader::new(&encoded))?;
    let expected = Expected { ptr, uuid, owner: None, level: bytes[6] };
    let node = Node::decode(BlockSlice::new(Blocks::from_bytes(&bytes)), &expected);
    let node = node.map_err(|_| DecodeError::Invalid("node"))?;
    let items = node.items();
    let all = 0..items.count();
    for index in all.clone() {
        assert_eq!(items.find(items.key(index)), Some(index));
    }
    // There is one encoding only.
    let draft = if node.level() == 0 {
        let entries: Vec<_> = all.map(|index| (items.key(index), items.value(index))).collect();
        Draft::leaf(&entries)
    } else {
        let children: Vec<_> = all.map(|index| (items.key(index), items.child(index))).collect();
        Draft::interior(node.level(), &children)
    };
    let again = draft.seal(&Place { uuid, addr, birth, owner: node.owner() });
    assert!(again.blocks().bytes() == bytes, "another encoding");
    Ok(())
}

fn node_samples() -> Vec<Vec<u8>> {
    let place = Place { uuid: UUID, addr: ADDR, birth: Txg(5), owner: SubvolId(1) };
    let key = |at| ItemKey { ino: Ino(9), kind: Kind::DATA, at };
    let values = data_samples();
    let entries: Vec<_> = (0..).zip(&values).map(|(at, value)| (key(at), &value[..])).collect();
    let children: Vec<_> = (0..5).map(|at| (key(at), pointer())).collect();
    [Draft::leaf(&entries), Draft::interior(2, &children)]
        .map(|draft| draft.seal(&place).blocks().bytes()[..400].to_vec())
        .to_vec()
}

/// A table page of some level; the last byte says how many children it has.
pub fn table(bytes: &[u8]) -> Result<(), DecodeError> {
    let count = usize::from(bytes.last().copied().unwrap_or(0));
    let page = padded(bytes, BLOCK_SIZE);
    let children = decode_table(&page, page[4], count)?;
    assert_eq!(children.len(), count);
    let again = encode_table(page[4], Txg(word(&page, 8)), &children);
    assert_eq!(decode_table(&again, page[4], count), Ok(children));
    Ok(())
}

fn table_sample() -> Vec<u8> {
    let child = PageRef { free: 9, clusters: 1, copy: PageCopy::B, checksum: 8 };
    let mut page = encode_table(1, Txg(3), &[child; 4])[..100].to_vec();
    page.push(4);
    page
}

/// A DATA item.
pub fn data(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(FileData::decode(bytes)?.encode(), bytes);
    Ok(())
}

fn data_samples() -> Vec<Vec<u8>> {
    let (addr, birth, sharing) = (BlockAddr(500), Txg(6), Sharing::Sole);
    let checksums = vec![1, 2, 3];
    vec![
        FileData::Inline(b"some bytes".to_vec()).encode(),
        FileData::Extent(Extent { addr, birth, sharing, checksums }).encode(),
        FileData::Unwritten(Unwritten { addr, birth, sharing, count: 7 }).encode(),
    ]
}

/// A FILE item.
pub fn file(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(encode_file(decode_file(bytes)?), bytes);
    Ok(())
}

/// A REFERENCE item.
pub fn reference(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(Reference::decode(bytes)?.encode(), bytes);
    Ok(())
}

/// A SUBVOLUME item.
pub fn subvolume(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(SubvolRecord::decode(bytes)?.encode(), bytes);
    Ok(())
}

fn record() -> SubvolRecord {
    SubvolRecord {
        access: Access::Writable,
        parent: SubvolId(0),
        origin: SubvolId(0),
        root: Some(pointer()),
        level: 1,
        birth: Txg(1),
        newest_snapshot_birth: Txg(2),
        newest_snapshot: SubvolId(2),
        next_ino: 100,
        nodes: 7,
        extended: Extended::default(),
    }
}

fn long_record() -> SubvolRecord {
    let place = ItemKey { ino: Ino(5), kind: Kind::DATA, at: 4096 };
    let extended = Extended {
        base: SubvolId(2),
        base_birth: Txg(1),
        created: 9,
        removal: Removal::Walking(place),
        hold: Hold::Held,
        name: b"monday".to_vec(),
        ..Extended::default()
    };
    SubvolRecord { extended, ..record() }
}

/// A DEAD item.
pub fn dead(bytes: &[u8]) -> Result<(), DecodeError> {
    assert_eq!(Dead::decode(bytes)?.encode(), bytes);
    Ok(())
}

/// A journal unit, expected to be what it says it is.
pub fn unit(bytes: &[u8]) -> Result<(), DecodeError> {
    let whole = padded(bytes, bytes.len().next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE));
    let id = UnitId {
        uuid: Uuid(*whole[8..].first_chunk().expect("a whole block")),
        position: word(&whole, 24),
        sequence: word(&whole, 32),
        previous: word(&whole, 40),
    };
    let length = decode_unit_length(&whole, &id)?;
    let (payload, checksum) = decode_unit(&whole, length)?;
    assert_eq!(payload.len(), length);
    assert_eq!(encode_unit(&id, payload).1 == checksum, word(&whole, 48) == 0);
    batch(payload)
}

fn unit_sample() -> Vec<u8> {
    let id = UnitId { uuid: UUID, position: 3, sequence: 9, previous: 77 };
    let payload = batch_sample();
    let (blocks, _) = encode_unit(&id, &payload);
    blocks.bytes()[..64 + payload.len()].to_vec()
}

/// A journal unit's payload.
pub fn batch(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    while reader.remaining() > 0 {
        let before = reader.rest();
        let batch = Batch::decode(&mut reader)?;
        let mut again = Vec::new();
        batch.encode(&mut again);
        assert_eq!(again, before[..before.len() - reader.remaining()]);
    }
    Ok(())
}

fn batch_sample() -> Vec<u8> {
    let file = FileId::new(SubvolId(1), Ino(7));
    let run = Run { addr: BlockAddr(900), count: 3 };
    let batch = Batch {
        items: vec![
            (file.key(Kind::INODE, 0), Some(b"attributes"[..].into())),
            (file.key(Kind::DATA, 4096), None),
        ],
        bytes: vec![JournaledBytes { file, offset: 8192, bytes: vec![9; 50] }],
        dropped: vec![DroppedRange { file, from: 4096, to: u64::MAX }],
        allocated: vec![run],
        freed: vec![FreedRun { subvol: SubvolId(1), run, birth: Txg(5) }],
    };
    let mut out = Vec::new();
    batch.encode(&mut out);
    batch.encode(&mut out);
    out
}
