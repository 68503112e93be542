//! Reading marks and fields of formats from a file or device, and the few formats that need more
//! than a comparison of bytes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use gabion_base::ids;

use super::table::{Field, Mark, Place};

/// Where a mark was found, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A file or device of known length that is read in bytes. Behind its end there are zeros.
pub(super) struct Probe<'a> {
    file: &'a File,
    pub(super) bytes: u64,
}

impl<'a> Probe<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        // A device's metadata has no length, but its end can be gone to.
        let mut end = file;
        Ok(Self { file, bytes: end.seek(SeekFrom::End(0))? })
    }

    /// Those of `marks` that are there.
    pub(super) fn matching(&self, marks: &[Mark]) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for mark in marks {
            let Some(offset) = self.offset(mark.place) else {
                continue;
            };
            let mut bytes = vec![0; mark.bytes.len()];
            self.read(offset, &mut bytes)?;
            if bytes == mark.bytes {
                found.push(Found { offset, length: bytes.len() as u64 });
            }
        }
        Ok(found)
    }

    /// The offset of a place, if it is on the device.
    pub(super) fn offset(&self, place: Place) -> Option<u64> {
        match place {
            Place::Head(offset) => (offset < self.bytes).then_some(offset),
            Place::Tail { align, before } => (self.bytes - self.bytes % align).checked_sub(before),
        }
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read(&self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        while !buffer.is_empty() {
            match self.file.read_at(buffer, at) {
                Ok(0) => {
                    buffer.fill(0);
                    break;
                }
                Ok(count) => {
                    at += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn array<const N: usize>(&self, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&self, offset: u64) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array(offset)?))
    }

    /// A field as text for people; none if it is empty.
    pub(super) fn field(&self, field: Field) -> io::Result<Option<String>> {
        match field {
            Field::Absent => Ok(None),
            Field::Text(offset, length) => {
                let mut bytes = vec![0; length];
                self.read(offset, &mut bytes)?;
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(length);
                let text = String::from_utf8_lossy(&bytes[..end]);
                let text: String = text.trim().chars().filter(|char| !char.is_control()).collect();
                Ok((!text.is_empty()).then_some(text))
            }
            Field::Uuid(offset) => {
                let bytes: [u8; 16] = self.array(offset)?;
                Ok((bytes != [0; 16]).then(|| ids::Uuid(bytes).to_string()))
            }
        }
    }
}

/// ext2, ext3 and ext4 share a magic number and differ in features: ext3 has a journal, ext4 has
/// any feature that ext3 does not know.
pub(super) fn names_ext(probe: &Probe<'_>) -> io::Result<&'static str> {
    const SUPERBLOCK: u64 = 1024;
    const COMPATIBLE_JOURNAL: u32 = 0x4;
    // filetype, needs recovery, separate journal, meta block groups.
    const INCOMPATIBLE_EXT3: u32 = 0x2 | 0x4 | 0x8 | 0x10;
    // sparse superblocks, large files, directories as trees.
    const READ_ONLY_EXT3: u32 = 0x1 | 0x2 | 0x4;
    let compatible = probe.u32(SUPERBLOCK + 92)?;
    let incompatible = probe.u32(SUPERBLOCK + 96)?;
    let read_only = probe.u32(SUPERBLOCK + 100)?;
    if incompatible & !INCOMPATIBLE_EXT3 != 0 || read_only & !READ_ONLY_EXT3 != 0 {
        Ok("ext4")
    } else if compatible & COMPATIBLE_JOURNAL != 0 {
        Ok("ext3")
    } else {
        Ok("ext2")
    }
}

/// Many boot sectors end in the two bytes of a partition table. In a table, each entry is marked as
/// active or not and nothing else, and at least one has a type and a length.
pub(super) fn is_mbr(probe: &Probe<'_>) -> io::Result<bool> {
    let entries: [u8; 64] = probe.array(446)?;
    let mut used = false;
    for entry in entries.chunks_exact(16) {
        if entry[0] & 0x7f != 0 {
            return Ok(false);
        }
        used |= entry[4] != 0 && entry[12..16] != [0; 4];
    }
    Ok(used)
}

/// ZFS has four labels of 256 KiB, two at the head and two at the end; the second half of each is
/// an array of uberblocks, any of which may be the only one written. Gives those found.
pub(super) fn zfs_uberblocks(probe: &Probe<'_>) -> io::Result<Vec<Found>> {
    const LABEL: u64 = 256 * 1024;
    const SLOT: usize = 1024;
    const MAGIC: u64 = 0x00ba_b10c;
    if probe.bytes < 4 * LABEL {
        return Ok(Vec::new());
    }
    let end = probe.bytes - probe.bytes % LABEL;
    let mut found = Vec::new();
    let mut half = vec![0; LABEL as usize / 2];
    for label in [0, LABEL, end - 2 * LABEL, end - LABEL] {
        let start = label + LABEL / 2;
        probe.read(start, &mut half)?;
        for (slot, bytes) in half.chunks_exact(SLOT).enumerate() {
            let magic = bytes.first_chunk().expect("a slot is longer than a number");
            if u64::from_le_bytes(*magic) == MAGIC || u64::from_be_bytes(*magic) == MAGIC {
                found.push(Found { offset: start + (slot * SLOT) as u64, length: 8 });
            }
        }
    }
    Ok(found)
}
