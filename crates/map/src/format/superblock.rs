//! The superblock: one block that leads to everything else.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "GABIONFS"
//!      8     4  version (1)
//!     12     4  reserved, zero
//!     16     8  compatible features: an older program may ignore them
//!     24     8  read-only compatible features: it may read, not write
//!     32     8  incompatible features: it must refuse
//!     40    16  filesystem UUID
//!     56     8  own address (block)
//!     64     8  transaction group: which commit this is
//!     72     8  length of the filesystem (blocks)
//!     80     8  seed of name hashes
//!     88     4  next subvolume id
//!     92     4  reserved, zero
//!     96     8  free blocks
//!    104    24  root of the forest: address, birth, checksum (address 0: empty)
//!    128     1  level of the forest's root
//!    129     7  reserved, zero
//!    136    16  the highest table page: 16 bytes, see `format::alloc`
//!    152     8  journal: block in the ring where the first unit to replay would stand
//!    160     8  journal: sequence number of that unit
//!    168     8  journal: checksum of the unit before it
//!    176     8  creation time, seconds
//!    184    64  label, UTF-8, zero-padded
//!    248     8  laid out: blocks that the tables have places for; zero without the feature
//!    256     8  length of the journal (blocks); zero without the feature
//!    264  3824  reserved, zero
//!   4088     8  CRC-64/NVME of all before
//! ```
//!
//! Incompatible feature 1 says that the fields "laid out" and "length of the journal" count.
//! Without it both follow from the length of the filesystem, as [`LaidOut::exactly`] has it.
//!
//! Commit N writes slot N mod 16 with FUA after a flush. A mount takes the valid superblock with
//! the greatest transaction group, so a torn write of one leaves the commit before it.

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::Blocks;
use gabion_base::checksum::crc64;
use gabion_base::codec::{DecodeError, Put, Reader};
use gabion_base::ids::{BlockAddr, SubvolId, Txg, Uuid};

use crate::error::MapError;
use crate::format::alloc::PageRef;
use crate::format::node::{LEVEL_MAX, NodePtr};
use crate::layout::{LaidOut, Layout};

/// First bytes of every superblock.
pub const MAGIC: &[u8; 8] = b"GABIONFS";
/// The version of the whole format that this program writes.
pub const VERSION: u32 = 1;
/// Incompatible feature: the superblock says what the fixed structures were laid out for.
pub const LAID_OUT: u64 = 1;
/// Incompatible feature: records of subvolumes may have the long form.
pub const LONG_RECORDS: u64 = 2;
/// Incompatible feature: records of subvolumes may have a quota or a schedule. Whoever changes the
/// subvolume keeps the count of what it refers to.
pub const QUOTAS: u64 = 4;
/// Incompatible features that this program knows.
pub const INCOMPATIBLE: u64 = LAID_OUT | LONG_RECORDS | QUOTAS;
/// Read-only compatible features that this program knows. None yet.
pub const READ_ONLY_COMPATIBLE: u64 = 0;
/// Longest label in bytes.
pub const LABEL_LENGTH_MAX: usize = 64;

const RESERVED_AT: usize = 264;
const CHECKSUM_AT: usize = BLOCK_SIZE - 8;

/// Where replaying starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStart {
    /// Block within the ring.
    pub position: u64,
    /// Sequence number of the first unit.
    pub sequence: u64,
    /// Checksum of the unit before it.
    pub previous: u64,
}

/// A decoded superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Compatible features.
    pub compatible: u64,
    /// Read-only compatible features.
    pub read_only_compatible: u64,
    /// Incompatible features.
    pub incompatible: u64,
    /// The filesystem's identity.
    pub uuid: Uuid,
    /// Which commit this is.
    pub txg: Txg,
    /// Length in blocks.
    pub blocks: u64,
    /// Seed of name hashes.
    pub name_seed: u64,
    /// The id that the next subvolume gets.
    pub next_subvol: SubvolId,
    /// Free blocks as of this commit.
    pub free_blocks: u64,
    /// The forest's root.
    pub forest: Option<NodePtr>,
    /// Level of the forest's root.
    pub forest_level: u8,
    /// The highest table page of the allocation map.
    pub alloc: PageRef,
    /// Where the journal goes on.
    pub journal: JournalStart,
    /// Creation time in seconds since 1970.
    pub created: i64,
    /// The label.
    pub label: String,
    /// What the fixed structures were laid out for; there is one with [`LAID_OUT`] only.
    pub laid_out: Option<LaidOut>,
}

impl Superblock {
    /// Where everything fixed is. Fails if the lengths are impossible.
    pub fn layout(&self) -> Result<Layout, MapError> {
        Layout::new(self.blocks, self.laid_out.unwrap_or(LaidOut::exactly(self.blocks)))
    }

    /// The block as it stands at `addr`.
    pub fn encode(&self, addr: BlockAddr) -> Blocks {
        let has_feature = self.incompatible & LAID_OUT != 0;
        assert_eq!(has_feature, self.laid_out.is_some(), "a feature and its fields");
        assert!(self.label.len() <= LABEL_LENGTH_MAX, "label of {} bytes", self.label.len());
        let mut out = Vec::with_capacity(BLOCK_SIZE);
        out.extend_from_slice(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.put_u64(self.compatible);
        out.put_u64(self.read_only_compatible);
        out.put_u64(self.incompatible);
        out.extend_from_slice(&self.uuid.0);
        out.put_u64(addr.0);
        out.put_u64(self.txg.0);
        out.put_u64(self.blocks);
        out.put_u64(self.name_seed);
        out.put_u32(self.next_subvol.0);
        out.put_u32(0);
        out.put_u64(self.free_blocks);
        NodePtr::encode_optional(self.forest, &mut out);
        out.put_u8(self.forest_level);
        out.put_zeros(7);
        self.alloc.encode(&mut out);
        out.put_u64(self.journal.position);
        out.put_u64(self.journal.sequence);
        out.put_u64(self.journal.previous);
        out.put_u64(self.created as u64);
        out.extend_from_slice(self.label.as_bytes());
        out.put_zeros(LABEL_LENGTH_MAX - self.label.len());
        if let Some(laid_out) = self.laid_out {
            out.put_u64(laid_out.blocks);
            out.put_u64(laid_out.journal_blocks);
        }
        out.put_zeros(CHECKSUM_AT - out.len());
        let checksum = crc64(&out);
        out.put_u64(checksum);
        Blocks::from_bytes(&out)
    }

    /// Decodes the block read from `addr`.
    pub fn decode(bytes: &[u8], addr: BlockAddr) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes.get(..BLOCK_SIZE).ok_or(DecodeError::Short)?);
        if reader.bytes(8)? != MAGIC {
            return Err(DecodeError::Invalid("magic"));
        }
        if crc64(&bytes[..CHECKSUM_AT]).to_le_bytes() != bytes[CHECKSUM_AT..BLOCK_SIZE] {
            return Err(DecodeError::Invalid("checksum"));
        }
        if reader.u32()? != VERSION {
            return Err(DecodeError::Invalid("version"));
        }
        reader.zeros(4)?;
        let compatible = reader.u64()?;
        let read_only_compatible = reader.u64()?;
        let incompatible = reader.u64()?;
        let uuid = Uuid(reader.array()?);
        if reader.u64()? != addr.0 {
            return Err(DecodeError::Invalid("own address"));
        }
        let txg = Txg(reader.u64()?);
        let blocks = reader.u64()?;
        let name_seed = reader.u64()?;
        let next_subvol = SubvolId(reader.u32()?);
        reader.zeros(4)?;
        let free_blocks = reader.u64()?;
        let forest = NodePtr::decode_optional(&mut reader)?;
        let forest_level = reader.u8()?;
        if forest_level > LEVEL_MAX || (forest.is_none() && forest_level != 0) {
            return Err(DecodeError::Invalid("level of the forest's root"));
        }
        reader.zeros(7)?;
        let alloc = PageRef::decode(&mut reader)?;
        let journal = JournalStart {
            position: reader.u64()?,
            sequence: reader.u64()?,
            previous: reader.u64()?,
        };
        let created = reader.u64()? as i64;
        let label = reader.bytes(LABEL_LENGTH_MAX)?;
        let length = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
        let label = String::from_utf8(label[..length].to_vec());
        let label = label.map_err(|_| DecodeError::Invalid("label"))?;
        let laid_out = if incompatible & LAID_OUT == 0 {
            reader.zeros(16)?;
            None
        } else {
            Some(LaidOut { blocks: reader.u64()?, journal_blocks: reader.u64()? })
        };
        // What stands behind may be the fields of a feature that is refused by its name.
        if incompatible & !INCOMPATIBLE == 0 {
            reader.zeros(CHECKSUM_AT - RESERVED_AT)?;
        }
        Ok(Self {
            compatible,
            read_only_compatible,
            incompatible,
            uuid,
            txg,
            blocks,
            name_seed,
            next_subvol,
            free_blocks,
            forest,
            forest_level,
            alloc,
            journal,
            created,
            label,
            laid_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            compatible: 1,
            read_only_compatible: 2,
            incompatible: 1,
            uuid: Uuid([4; 16]),
            txg: Txg(5),
            blocks: 4096,
            name_seed: 6,
            next_subvol: SubvolId(7),
            free_blocks: 8,
            forest: Some(NodePtr { addr: BlockAddr(8), birth: Txg(5), checksum: 9 }),
            forest_level: 1,
            alloc: PageRef::default(),
            journal: JournalStart { position: 10, sequence: 11, previous: 12 },
            created: -13,
            label: "label".into(),
            laid_out: Some(LaidOut { blocks: 14, journal_blocks: 15 }),
        }
    }

    /// The sample with some bytes changed and the checksum put right.
    fn forged(at: usize, bytes: &[u8]) -> Result<Superblock, DecodeError> {
        let mut block = sample().encode(BlockAddr(20)).bytes().to_vec();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let checksum = crc64(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        Superblock::decode(&block, BlockAddr(20))
    }

    #[test]
    fn a_superblock_round_trips_at_its_own_place_only() {
        assert_eq!(forged(0, b"GABIONFS"), Ok(sample()));
        let block = sample().encode(BlockAddr(20));
        let elsewhere = Superblock::decode(block.bytes(), BlockAddr(21));
        assert_eq!(elsewhere, Err(DecodeError::Invalid("own address")));
    }

    #[test]
    fn impossible_fields_are_refused_although_the_checksum_is_right() {
        let invalid = |reason| Err(DecodeError::Invalid(reason));
        assert_eq!(forged(8, &[2]), invalid("version"));
        assert_eq!(forged(12, &[1]), invalid("reserved bytes"));
        assert_eq!(forged(104, &[1]), invalid("node pointer"));
        assert_eq!(forged(104, &[0; 24]), invalid("level of the forest's root"));
        assert_eq!(forged(128, &[13]), invalid("level of the forest's root"));
        assert_eq!(forged(184, &[0xff; 64]), invalid("label"));
        assert_eq!(forged(4087, &[1]), invalid("reserved bytes"));
    }

    #[test]
    fn fields_count_only_with_their_feature() {
        let invalid = Err(DecodeError::Invalid("reserved bytes"));
        assert_eq!(forged(32, &[0]), invalid, "there are fields, but the feature is not set");
        let sample = Superblock { incompatible: 0, laid_out: None, ..sample() };
        let block = sample.encode(BlockAddr(20));
        assert_eq!(Superblock::decode(block.bytes(), BlockAddr(20)), Ok(sample));
        assert!(block.bytes()[248..CHECKSUM_AT].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_later_feature_is_named_although_it_has_fields_of_its_own() {
        let mut block = sample().encode(BlockAddr(20)).bytes().to_vec();
        (block[32], block[300]) = (15, 7);
        let checksum = crc64(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        let decoded = Superblock::decode(&block, BlockAddr(20));
        assert_eq!(decoded.map(|superblock| superblock.incompatible), Ok(15));
    }
}
