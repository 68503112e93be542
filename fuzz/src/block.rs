//! What volumes keep: members' headers, bitmaps of mirrors, records.

use gabion_base::BLOCK_SIZE;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::DecodeError;
use gabion_base::ids::Uuid;

use gabion_block::epoch::{Epoch, Opening};
use gabion_block::format::bitmap::{PAGE_WORDS, PageIdentity};
use gabion_block::format::header::Header;
use gabion_block::record::{CopyState, Layout, Member, MirrorCopy, Record, Wish};

use super::inputs::Target;

/// The page that inputs are taken for.
const PAGE: PageIdentity =
    PageIdentity { mirror: Uuid([3; 16]), slot: 1, page: 2, region_blocks: 1024 };

/// All targets of volumes.
pub fn targets() -> Vec<Target> {
    let target = |name, run, samples| Target { name, run, samples };
    let opening = Opening { epoch: Epoch(2), nonce: 9, seconds: 5, holder: "a host".to_owned() };
    let header = Header {
        volume: Uuid([1; 16]),
        member: Uuid([2; 16]),
        sequence: 3,
        blocks: 4096,
        openings: vec![opening.clone(), opening.clone()],
    };
    let copy = |byte| MirrorCopy {
        state: CopyState::Stale { full: byte == 1 },
        wish: Wish::Use,
        since: Epoch(2),
        on: Layout::Member(Member { uuid: Uuid([byte; 16]), url: "/a".to_owned(), blocks: 4096 }),
    };
    let copies = vec![copy(1), copy(2)];
    let record = Record {
        name: "tank".to_owned(),
        uuid: Uuid([1; 16]),
        openings: vec![opening],
        completed: Epoch(2),
        compare: 0,
        layout: Layout::Mirror { uuid: Uuid([3; 16]), blocks: 3840, grows_to: 3840, copies },
        append: None,
    };
    let bits = [0x5555; PAGE_WORDS];
    vec![
        target("member", member, vec![header.encode().bytes().to_vec()]),
        target("bitmap", bitmap, vec![PAGE.encode(&bits).bytes().to_vec()]),
        target("record", volume_record, vec![record.encode().into_bytes()]),
    ]
}

/// A block of these bytes, with the checksum put right that stands at 56.
fn block(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes[..bytes.len().min(BLOCK_SIZE)].to_vec();
    block.resize(BLOCK_SIZE, 0);
    let checksum = crc64_of(&[&block[..56], &[0; 8], &block[64..]]);
    block[56..64].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// The header of a member.
pub fn member(bytes: &[u8]) -> Result<(), DecodeError> {
    let block = block(bytes);
    let header = Header::decode(&block)?;
    assert_eq!(header.encode().bytes(), block);
    Ok(())
}

/// A page of a bitmap.
pub fn bitmap(bytes: &[u8]) -> Result<(), DecodeError> {
    let block = block(bytes);
    let bits = PAGE.decode(&block)?;
    assert_eq!(PAGE.encode(&bits).bytes(), block);
    Ok(())
}

/// The record of a volume.
pub fn volume_record(bytes: &[u8]) -> Result<(), DecodeError> {
    let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Invalid("UTF-8"))?;
    let record = Record::decode(text).map_err(|_| DecodeError::Invalid("record"))?;
    assert!(record.layout.blocks().is_some());
    assert_eq!(Record::decode(&record.encode()), Ok(record));
    Ok(())
}
