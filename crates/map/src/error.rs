//! What can go wrong in the map, one variant for each cause, each with what it happened to.

use gabion_base::codec::DecodeError;
use gabion_base::disk::DiskError;
use gabion_base::ids::{BlockAddr, Uuid};
use thiserror::Error;

use crate::key::{FileId, Key};
use crate::subvolumes::Refusal;

/// A failure of the world below the map: the device, its content, its space.
#[derive(Clone, Debug, Error)]
pub enum MapError {
    /// The device failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A metadata block is not what its parent points to.
    #[error("{structure} at {addr} is damaged: {reason}")]
    Corrupt {
        /// "node", "journal unit", "allocation page", "superblock".
        structure: &'static str,
        /// Where it stands.
        addr: BlockAddr,
        /// What does not fit.
        reason: &'static str,
    },
    /// A block of file data does not match its checksum.
    #[error("bytes of file {file:?} at offset {offset} ({addr}) do not match their checksum")]
    BadData {
        /// The file.
        file: FileId,
        /// Byte offset of the block in the file.
        offset: u64,
        /// Where the block stands.
        addr: BlockAddr,
    },
    /// An item's value cannot be decoded.
    #[error("the item {key:?} cannot be decoded: {source}")]
    BadItem {
        /// The item.
        key: Key,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// No superblock was found.
    #[error("{device} holds no Gabion filesystem: {reason}")]
    NotGabion {
        /// The device's name.
        device: String,
        /// What was found instead.
        reason: String,
    },
    /// The filesystem uses a feature that this program does not know.
    #[error("{device} uses the unknown {set} features {bits:#x}; a newer gabion is needed")]
    UnknownFeatures {
        /// The device's name.
        device: String,
        /// "incompatible" or "read-only compatible".
        set: &'static str,
        /// The unknown bits.
        bits: u64,
    },
    /// The device is smaller than the filesystem on it.
    #[error(
        "{device} has {actual} blocks, but the filesystem on it needs {needed}; give it that \
         length again: {} bytes", needed * 4096
    )]
    Truncated {
        /// The device's name.
        device: String,
        /// The device's length in blocks.
        actual: u64,
        /// The filesystem's length in blocks.
        needed: u64,
    },
    /// The device cannot hold a filesystem.
    #[error(
        "{} KiB are too few: a filesystem needs at least {} MiB", blocks * 4, minimum / 256
    )]
    TooSmall {
        /// The length asked for, in blocks.
        blocks: u64,
        /// The least there is, in blocks.
        minimum: u64,
    },
    /// A filesystem was to become shorter.
    #[error(
        "the filesystem has {blocks} blocks of 4 KiB and cannot become shorter, as {wanted} would \
         be; to have less, make a new one and copy the files"
    )]
    Shrinking {
        /// The filesystem's length in blocks.
        blocks: u64,
        /// The length asked for, in blocks.
        wanted: u64,
    },
    /// A filesystem was to become longer than its device.
    #[error(
        "{device} has {actual} blocks of 4 KiB, but the filesystem is to have {wanted}; make the \
         device longer first"
    )]
    DiskTooShort {
        /// The device's name.
        device: String,
        /// The device's length in blocks.
        actual: u64,
        /// The length asked for, in blocks.
        wanted: u64,
    },
    /// The tables of the allocation map have no place for so many blocks.
    #[error(
        "the filesystem cannot have {wanted} blocks of 4 KiB: the tables that were laid out when \
         it was made reach {reach}; grow it to that, or make a new one and copy the files"
    )]
    TooFar {
        /// The length asked for, in blocks.
        wanted: u64,
        /// The most it can have, in blocks.
        reach: u64,
    },
    /// No space for what was asked.
    #[error("no space left on the filesystem")]
    NoSpace,
    /// The subvolume may not refer to more.
    #[error("the quota of the subvolume is used up")]
    OverQuota,
    /// The file would grow past what an offset can say.
    #[error("a file ends before 2^63 bytes")]
    TooLarge,
    /// A value is longer than an item may be.
    #[error("the item {key:?} of {length} bytes is too long")]
    ItemTooLong {
        /// The item.
        key: Key,
        /// Its length.
        length: usize,
    },
    /// An earlier failure to write made the filesystem read-only until it is mounted again.
    #[error("the filesystem {uuid} stopped writing after an earlier error: {cause}")]
    Stopped {
        /// The filesystem.
        uuid: Uuid,
        /// The first error.
        cause: String,
    },
    /// A subvolume or snapshot cannot be had, made or removed.
    #[error(transparent)]
    Subvolume(#[from] Refusal),
    /// The filesystem was opened for reading only.
    #[error("the filesystem is mounted read-only")]
    ReadOnly,
}
