//! Journal units and the batches in them.
//!
//! ```text
//! unit     offset size  field
//!               0    4  magic "GBJU"
//!               4    4  length of the payload (bytes)
//!               8   16  filesystem UUID
//!              24    8  own position (block within the ring)
//!              32    8  sequence number: one more than that of the unit that replay sees before
//!              40    8  checksum of the unit before it
//!              48    8  reserved, zero
//!              56    8  CRC-64/NVME of bytes 0..56 and the payload
//!              64    n  payload: batches; then zeros up to a whole block
//!
//! batch    length u32 (of what follows), then
//!          items:     count u32, each: subvolume u32, inode u64, kind u8, at u64,
//!                     length u32 (u32::MAX: the item is removed), value
//!          bytes:     count u32, each: subvolume u32, inode u64, offset u64, length u32, bytes
//!          dropped:   count u32, each: subvolume u32, inode u64, from u64, to u64 (bytes)
//!          allocated: count u32, each: address u64, count u32
//!          freed:     count u32, each: subvolume u32, address u64, count u32, birth u64
//! ```
//!
//! A unit that would not fit between its position and the end of the ring stands at position 0
//! instead. Replay stops at the first position where neither place holds the expected unit: a torn
//! or older unit differs in sequence, predecessor or checksum.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::checksum::crc64_of;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, Ino, SubvolId, Txg, Uuid};

use crate::key::{FileId, Key, Kind};
use crate::txn::{VALUE_LENGTH_MAX, Value};

const MAGIC: u32 = u32::from_le_bytes(*b"GBJU");
/// Bytes of a unit before its payload.
pub const UNIT_HEADER: usize = 64;
const CHECKSUM_AT: usize = 56;
const REMOVED: u32 = u32::MAX;

/// What a unit is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitId {
    /// The filesystem.
    pub uuid: Uuid,
    /// Block within the ring.
    pub position: u64,
    /// Sequence number.
    pub sequence: u64,
    /// Checksum of the unit before it.
    pub previous: u64,
}

/// Blocks that a unit with `payload` bytes occupies.
pub fn unit_blocks(payload: usize) -> u64 {
    (UNIT_HEADER + payload).div_ceil(BLOCK_SIZE) as u64
}

/// A unit and its checksum.
pub fn encode_unit(id: &UnitId, payload: &[u8]) -> (Blocks, u64) {
    let mut head = Vec::with_capacity(UNIT_HEADER);
    head.put_u32(MAGIC);
    head.put_u32(u32::try_from(payload.len()).expect("a unit is shorter than the ring"));
    head.extend_from_slice(&id.uuid.0);
    head.put_u64(id.position);
    head.put_u64(id.sequence);
    head.put_u64(id.previous);
    head.put_u64(0);
    let checksum = crc64_of(&[&head, payload]);
    head.put_u64(checksum);
    let mut blocks = Blocks::zeroed(unit_blocks(payload.len()) as usize);
    let bytes = blocks.bytes_mut();
    bytes[..UNIT_HEADER].copy_from_slice(&head);
    bytes[UNIT_HEADER..UNIT_HEADER + payload.len()].copy_from_slice(payload);
    (blocks, checksum)
}

/// The payload length that a first block announces, if it is the head of the unit `id`.
pub fn decode_unit_length(block: &[u8], id: &UnitId) -> Result<usize, DecodeError> {
    let mut reader = Reader::new(block);
    if reader.u32()? != MAGIC {
        return Err(DecodeError::Invalid("magic"));
    }
    let length = reader.u32()? as usize;
    let found = UnitId {
        uuid: Uuid(reader.array()?),
        position: reader.u64()?,
        sequence: reader.u64()?,
        previous: reader.u64()?,
    };
    if found != *id {
        return Err(DecodeError::Invalid("identity of a journal unit"));
    }
    Ok(length)
}

/// The payload and the checksum of a whole unit whose head was checked already.
pub fn decode_unit(bytes: &[u8], length: usize) -> Result<(&[u8], u64), DecodeError> {
    let mut reader = Reader::new(bytes);
    let head = reader.bytes(CHECKSUM_AT)?;
    let checksum = reader.u64()?;
    let payload = reader.bytes(length)?;
    if crc64_of(&[head, payload]) != checksum {
        return Err(DecodeError::Invalid("checksum"));
    }
    Ok((payload, checksum))
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub addr: BlockAddr,
    /// Number of blocks.
    pub count: u32,
}

/// A run of blocks that its owner no longer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreedRun {
    /// The subvolume that owned it.
    pub subvol: SubvolId,
    /// The blocks.
    pub run: Run,
    /// When they were written first.
    pub birth: Txg,
}

/// File bytes that ride in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournaledBytes {
    /// The file.
    pub file: FileId,
    /// Offset in bytes, a multiple of the block size.
    pub offset: u64,
    /// The bytes; zeros follow up to a whole block.
    pub bytes: Vec<u8>,
}

/// A range of a file whose accepted but unwritten bytes are void, or are in items now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedRange {
    /// The file.
    pub file: FileId,
    /// First byte, a multiple of the block size.
    pub from: u64,
    /// Past the last byte: a multiple of the block size or `u64::MAX`.
    pub to: u64,
}

/// All changes of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Items put (`Some`) or removed.
    pub items: Vec<(Key, Option<Value>)>,
    /// File bytes.
    pub bytes: Vec<JournaledBytes>,
    /// File bytes that are void; applied before `bytes`.
    pub dropped: Vec<DroppedRange>,
    /// Blocks that items of this batch began to use.
    pub allocated: Vec<Run>,
    /// Blocks that are no longer used.
    pub freed: Vec<FreedRun>,
}

impl Batch {
    /// Appends the batch to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32(0);
        out.put_u32(self.items.len() as u32);
        for (key, value) in &self.items {
            put_file(out, key.file());
            out.put_u8(key.kind.0);
            out.put_u64(key.at);
            match value {
                None => out.put_u32(REMOVED),
                Some(value) => {
                    out.put_u32(value.len() as u32);
                    out.extend_from_slice(value);
                }
            }
        }
        out.put_u32(self.bytes.len() as u32);
        for part in &self.bytes {
            put_file(out, part.file);
            out.put_u64(part.offset);
            out.put_u32(part.bytes.len() as u32);
            out.extend_from_slice(&part.bytes);
        }
        out.put_u32(self.dropped.len() as u32);
        for range in &self.dropped {
            put_file(out, range.file);
            out.put_u64(range.from);
            out.put_u64(range.to);
        }
        out.put_u32(self.allocated.len() as u32);
        for run in &self.allocated {
            out.put_u64(run.addr.0);
            out.put_u32(run.count);
        }
        out.put_u32(self.freed.len() as u32);
        for freed in &self.freed {
            out.put_u32(freed.subvol.0);
            out.put_u64(freed.run.addr.0);
            out.put_u32(freed.run.count);
            out.put_u64(freed.birth.0);
        }
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Reads the next batch.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = reader.u32()? as usize;
        let mut reader = Reader::new(reader.bytes(length)?);
        // Vectors grow as elements are found: a count alone allocates nothing.
        let mut batch = Self::default();
        for _ in 0..reader.u32()? {
            let file = take_file(&mut reader)?;
            let key = file.key(Kind(reader.u8()?), reader.u64()?);
            let value = match reader.u32()? {
                REMOVED => None,
                length if length as usize <= VALUE_LENGTH_MAX => {
                    Some(Value::from(reader.bytes(length as usize)?))
                }
                _ => return Err(DecodeError::Invalid("length of an item")),
            };
            batch.items.push((key, value));
        }
        for _ in 0..reader.u32()? {
            let file = take_file(&mut reader)?;
            let offset = aligned(reader.u64()?)?;
            let length = reader.u32()? as usize;
            let bytes = reader.bytes(length)?.to_vec();
            // The last block that a file can have ends one byte past the greatest size.
            let end = offset.checked_add(length as u64);
            if bytes.is_empty() || end.is_none_or(|end| end > crate::txn::FILE_SIZE_MAX + 1) {
                return Err(DecodeError::Invalid("range of file bytes"));
            }
            batch.bytes.push(JournaledBytes { file, offset, bytes });
        }
        for _ in 0..reader.u32()? {
            let file = take_file(&mut reader)?;
            let (from, to) = (aligned(reader.u64()?)?, reader.u64()?);
            if to != u64::MAX {
                aligned(to)?;
            }
            if from > to {
                return Err(DecodeError::Invalid("range of dropped bytes"));
            }
            batch.dropped.push(DroppedRange { file, from, to });
        }
        for _ in 0..reader.u32()? {
            batch.allocated.push(take_run(&mut reader)?);
        }
        for _ in 0..reader.u32()? {
            let subvol = SubvolId(reader.u32()?);
            let run = take_run(&mut reader)?;
            batch.freed.push(FreedRun { subvol, run, birth: Txg(reader.u64()?) });
        }
        reader.finish()?;
        Ok(batch)
    }
}

fn put_file(out: &mut Vec<u8>, file: FileId) {
    out.put_u32(file.subvol.0);
    out.put_u64(file.ino.0);
}

fn take_file(reader: &mut Reader<'_>) -> Result<FileId, DecodeError> {
    Ok(FileId::new(SubvolId(reader.u32()?), Ino(reader.u64()?)))
}

fn take_run(reader: &mut Reader<'_>) -> Result<Run, DecodeError> {
    let run = Run { addr: BlockAddr(reader.u64()?), count: reader.u32()? };
    if run.count == 0 || run.addr.0.checked_add(u64::from(run.count)).is_none() {
        return Err(DecodeError::Invalid("run of blocks"));
    }
    Ok(run)
}

fn aligned(offset: u64) -> Result<u64, DecodeError> {
    if offset.is_multiple_of(BLOCK_SIZE as u64) {
        Ok(offset)
    } else {
        Err(DecodeError::Invalid("alignment of a range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let file = FileId::new(SubvolId(1), Ino(7));
        Batch {
            items: vec![
                (file.key(Kind::INODE, 0), Some(Value::from(&b"attributes"[..]))),
                (file.key(Kind::DATA, 4096), None),
            ],
            bytes: vec![JournaledBytes { file, offset: 8192, bytes: vec![9; 100] }],
            dropped: vec![DroppedRange { file, from: 4096, to: u64::MAX }],
            allocated: vec![Run { addr: BlockAddr(900), count: 3 }],
            freed: vec![FreedRun {
                subvol: SubvolId(1),
                run: Run { addr: BlockAddr(800), count: 2 },
                birth: Txg(5),
            }],
        }
    }

    #[test]
    fn a_batch_round_trips_and_every_truncation_is_an_error() {
        let mut bytes = Vec::new();
        batch().encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Batch::decode(&mut reader), Ok(batch()));
        assert_eq!(reader.finish(), Ok(()));
        for length in 0..bytes.len() {
            assert!(Batch::decode(&mut Reader::new(&bytes[..length])).is_err());
        }
    }

    #[test]
    fn impossible_ranges_are_refused() {
        let file = FileId::new(SubvolId(1), Ino(7));
        let decode = |batch: Batch| {
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            Batch::decode(&mut Reader::new(&bytes))
        };
        let dropped = |from, to| {
            decode(Batch { dropped: vec![DroppedRange { file, from, to }], ..Batch::default() })
        };
        assert!(dropped(8192, u64::MAX).is_ok());
        assert_eq!(dropped(8192, 4096), Err(DecodeError::Invalid("range of dropped bytes")));
        let bytes = |offset, length| {
            let bytes = vec![1; length];
            let bytes = vec![JournaledBytes { file, offset, bytes }];
            decode(Batch { bytes, ..Batch::default() })
        };
        let last = (1 << 63) - 4096;
        assert!(bytes(last, 4096).is_ok(), "the last block of the longest file");
        assert!(bytes(last, 4097).is_err() && bytes(last + 4096, 1).is_err());
    }

    #[test]
    fn a_unit_is_recognised_only_whole_and_at_its_place() {
        let id = UnitId { uuid: Uuid([1; 16]), position: 3, sequence: 9, previous: 77 };
        let (blocks, checksum) = encode_unit(&id, &[5; 5000]);
        assert_eq!(blocks.count() as u64, unit_blocks(5000));
        let length = decode_unit_length(blocks.bytes(), &id).expect("its own head");
        assert_eq!(decode_unit(blocks.bytes(), length), Ok((&[5; 5000][..], checksum)));
        let elsewhere = UnitId { position: 4, ..id };
        assert!(decode_unit_length(blocks.bytes(), &elsewhere).is_err());
        let mut torn = blocks.bytes().to_vec();
        torn[4500] ^= 1;
        assert!(decode_unit(&torn, length).is_err());
    }
}
