//! The known formats: where which bytes stand, and where the format keeps its name and identity.
//!
//! A format is found if any one of its marks is there. Copies are where a format keeps spare
//! superblocks: often they survive the next format that is put over it, so they count only when no
//! format has a mark. Whatever wraps other formats (encryption, RAID) comes before them, whatever
//! leaves the place of others' marks alone comes behind them.

use std::io;

use self::Field::{Absent, Text, Uuid};
use super::probe::{Found, Probe, is_mbr, names_ext, zfs_uberblocks};

/// A place on the device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Bytes from the head.
    Head(u64),
    /// `before` bytes before the end, once that is rounded down to a multiple of `align`.
    Tail { align: u64, before: u64 },
}

/// Bytes that a format has at a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub(super) place: Place,
    pub(super) bytes: &'static [u8],
}

/// Where a format keeps a text or an identity; offsets are from the head of the device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Absent,
    /// Text of at most so many bytes, ended by a zero byte or padded with blanks.
    Text(u64, usize),
    /// 16 bytes of an identity.
    Uuid(u64),
}

/// One format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) name: &'static str,
    pub(super) marks: &'static [Mark],
    pub(super) copies: &'static [Mark],
    pub(super) label: Field,
    pub(super) uuid: Field,
    /// Finds marks that a table cannot hold, or decides between names.
    pub(super) special: Special,
}

/// What a format needs beyond its marks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Special {
    Nothing,
    /// The name depends on the features: ext2, ext3 or ext4.
    Name(fn(&Probe<'_>) -> io::Result<&'static str>),
    /// The marks alone prove nothing.
    OnlyIf(fn(&Probe<'_>) -> io::Result<bool>),
    /// The marks are found by search, not in the table.
    Search(fn(&Probe<'_>) -> io::Result<Vec<Found>>),
}

const fn at(offset: u64, bytes: &'static [u8]) -> Mark {
    Mark { place: Place::Head(offset), bytes }
}

const fn tail(align: u64, before: u64, bytes: &'static [u8]) -> Mark {
    Mark { place: Place::Tail { align, before }, bytes }
}

const fn format(name: &'static str, marks: &'static [Mark]) -> Format {
    named(name, marks, Absent, Absent)
}

const fn named(name: &'static str, marks: &'static [Mark], label: Field, uuid: Field) -> Format {
    Format { name, marks, copies: &[], label, uuid, special: Special::Nothing }
}

impl Format {
    const fn with_copies(mut self, copies: &'static [Mark]) -> Self {
        self.copies = copies;
        self
    }

    const fn with_special(mut self, special: Special) -> Self {
        self.special = special;
        self
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// The magic at the head of a Gabion superblock.
pub(super) const GABION: (u64, &[u8]) = (64 * KIB, b"GABIONFS");

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const MD_BIG: &[u8] = &[0xa9, 0x2b, 0x4e, 0xfc];
const BCACHE: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const BCACHEFS: &[u8] = &[
    0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
];
const LUKS_COPY: &[u8] = b"SKUL\xba\xbe";
const BTRFS: &[u8] = b"_BHRfS_M";
const F2FS: &[u8] = &[0x10, 0x20, 0xf5, 0xf2];
const GPT: &[u8] = b"EFI PART";

/// Every format that is known.
pub(super) const FORMATS: &[Format] = &[
    format("Gabion filesystem", &[at(GABION.0, GABION.1)]),
    format("medium of a Gabion target", &[at(0, b"GABIONMD"), at(4 * KIB, b"GABIONMD")]),
    format("member of a Gabion volume", &[at(0, b"GABIONMB"), at(4 * KIB, b"GABIONMB")]),
    named("LUKS encrypted device", &[at(0, b"LUKS\xba\xbe")], Absent, Text(168, 40)).with_copies(
        &[
            at(0x4000, LUKS_COPY),
            at(0x8000, LUKS_COPY),
            at(0x10000, LUKS_COPY),
            at(0x20000, LUKS_COPY),
            at(0x40000, LUKS_COPY),
            at(0x80000, LUKS_COPY),
            at(0x100000, LUKS_COPY),
            at(0x200000, LUKS_COPY),
            at(0x400000, LUKS_COPY),
        ],
    ),
    format(
        "LVM physical volume",
        &[
            at(0x018, b"LVM2 001"),
            at(0x218, b"LVM2 001"),
            at(0x418, b"LVM2 001"),
            at(0x618, b"LVM2 001"),
        ],
    ),
    format(
        "Linux RAID member",
        &[
            at(0, MD),
            at(4 * KIB, MD),
            tail(4 * KIB, 8 * KIB, MD),
            tail(64 * KIB, 64 * KIB, MD),
            tail(64 * KIB, 64 * KIB, MD_BIG),
        ],
    ),
    format("Ceph BlueStore", &[at(0, b"bluestore block device\n")]),
    named("bcachefs", &[at(4 * KIB + 24, BCACHEFS)], Text(4 * KIB + 72, 32), Uuid(4 * KIB + 56)),
    named("bcache", &[at(4 * KIB + 24, BCACHE)], Text(4 * KIB + 72, 32), Uuid(4 * KIB + 40)),
    named("btrfs", &[at(64 * KIB + 64, BTRFS)], Text(64 * KIB + 299, 256), Uuid(64 * KIB + 32))
        .with_copies(&[at(64 * MIB + 64, BTRFS), at(256 * GIB + 64, BTRFS)]),
    named("xfs", &[at(0, b"XFSB")], Text(108, 12), Uuid(32)),
    named("ext2", &[at(KIB + 56, &[0x53, 0xef])], Text(KIB + 120, 16), Uuid(KIB + 104))
        .with_special(Special::Name(names_ext)),
    named("f2fs", &[at(KIB, F2FS)], Absent, Uuid(KIB + 108)).with_copies(&[at(5 * KIB, F2FS)]),
    named("erofs", &[at(KIB, &[0xe2, 0xe1, 0xf5, 0xe0])], Text(KIB + 64, 16), Uuid(KIB + 48)),
    // Revision 2.0, checksummed header: the magic number alone is two letters.
    named(
        "nilfs2",
        &[at(KIB, &[2, 0, 0, 0, 0, 0, 0x34, 0x34])],
        Text(KIB + 168, 80),
        Uuid(KIB + 152),
    ),
    format(
        "ocfs2",
        &[
            at(KIB, b"OCFSV2"),
            at(2 * KIB, b"OCFSV2"),
            at(4 * KIB, b"OCFSV2"),
            at(8 * KIB, b"OCFSV2"),
        ],
    ),
    // The magic number, and the kind of block that a superblock is.
    format("gfs2", &[at(64 * KIB, &[0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1])]),
    named("jfs", &[at(32 * KIB, b"JFS1")], Text(32 * KIB + 152, 16), Uuid(32 * KIB + 136)),
    named(
        "reiserfs",
        &[at(64 * KIB + 52, b"ReIsEr"), at(8 * KIB + 52, b"ReIsEr"), at(64 * KIB, b"ReIsEr4")],
        Text(64 * KIB + 100, 16),
        Uuid(64 * KIB + 84),
    ),
    format("hfs+", &[at(KIB, &[b'H', b'+', 0, 4]), at(KIB, &[b'H', b'X', 0, 5])]),
    format("apfs", &[at(32, b"NXSB")]),
    format("squashfs", &[at(0, b"hsqs"), at(0, b"sqsh")]),
    named(
        "iso9660",
        &[at(32 * KIB + 1, b"CD001"), at(34 * KIB + 1, b"CD001")],
        Text(32 * KIB + 40, 32),
        Absent,
    ),
    named(
        "swap",
        &[
            at(4 * KIB - 10, b"SWAPSPACE2"),
            at(4 * KIB - 10, b"SWAP-SPACE"),
            at(8 * KIB - 10, b"SWAPSPACE2"),
            at(16 * KIB - 10, b"SWAPSPACE2"),
            at(32 * KIB - 10, b"SWAPSPACE2"),
            at(64 * KIB - 10, b"SWAPSPACE2"),
            at(4 * KIB - 10, b"S1SUSPEND"),
        ],
        Text(KIB + 28, 16),
        Uuid(KIB + 12),
    ),
    format("ntfs", &[at(3, b"NTFS    ")]),
    format("exfat", &[at(3, b"EXFAT   ")]),
    named("vfat", &[at(82, b"FAT32   ")], Text(71, 11), Absent),
    named("vfat", &[at(54, b"FAT16   "), at(54, b"FAT12   ")], Text(43, 11), Absent),
    format("zfs", &[]).with_special(Special::Search(zfs_uberblocks)),
    format("GPT partition table", &[at(512, GPT), at(4 * KIB, GPT)])
        .with_copies(&[tail(512, 512, GPT), tail(4 * KIB, 4 * KIB, GPT)]),
    format("MBR partition table", &[at(510, &[0x55, 0xaa])]).with_special(Special::OnlyIf(is_mbr)),
];
