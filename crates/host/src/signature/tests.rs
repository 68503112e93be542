use std::env;
use std::fs;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::table::{GABION, Mark, Place};
use super::*;

const MIB: u64 = 1024 * 1024;

struct Image {
    file: File,
    path: PathBuf,
}

impl Image {
    /// A sparse file.
    fn new(bytes: u64) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("gabion-signature-{}-{number}", process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(bytes).unwrap();
        Self { file, path }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    fn name(&self) -> Option<&'static str> {
        identify(&self.file).unwrap().map(|signature| signature.name)
    }

    /// Whether all of the image is zeros.
    fn is_clear(&self) -> bool {
        fs::read(&self.path).unwrap().iter().all(|byte| *byte == 0)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// An image with nothing but one mark, of a length that is whole sectors but not whole blocks.
fn image_with(mark: &Mark) -> Image {
    let least = 2 * MIB + 3 * 512;
    let (image, offset) = match mark.place {
        Place::Head(offset) => (Image::new(least + offset), offset),
        Place::Tail { align, before } => (Image::new(least), least - least % align - before),
    };
    image.put(offset, mark.bytes);
    image
}

#[test]
fn an_empty_image_has_no_signature() {
    for bytes in [0, 1, 511, 4096, 2 * MIB] {
        let image = Image::new(bytes);
        assert_eq!(image.name(), None);
        assert_eq!(wipe(&image.file).unwrap(), []);
    }
}

#[test]
fn every_mark_of_every_format_is_found_and_wiped() {
    let mut count = 0;
    for format in FORMATS {
        for mark in format.marks.iter().chain(format.copies) {
            if matches!(format.special, Special::OnlyIf(_)) {
                continue;
            }
            let image = image_with(mark);
            assert_eq!(image.name(), Some(format.name), "{mark:?}");
            wipe(&image.file).unwrap();
            assert_eq!(image.name(), None, "{mark:?}");
            count += 1;
        }
    }
    assert!(count > 60, "{count} marks");
}

#[test]
fn a_wipe_clears_both_ends_and_keeps_the_middle() {
    let image = Image::new(MIB);
    image.put(0, &vec![1; MIB as usize]);
    wipe(&image.file).unwrap();
    let bytes = fs::read(&image.path).unwrap();
    let ends = 64 * 1024;
    let is = |range: &[u8], value| range.iter().all(|byte| *byte == value);
    assert!(is(&bytes[..ends], 0) && is(&bytes[bytes.len() - ends..], 0));
    assert!(is(&bytes[ends..bytes.len() - ends], 1));
}

#[test]
fn a_wipe_of_less_than_its_ends_does_not_make_the_image_longer() {
    let image = Image::new(5000);
    image.put(0, &[1; 5000]);
    wipe(&image.file).unwrap();
    assert_eq!(fs::metadata(&image.path).unwrap().len(), 5000);
    assert!(image.is_clear());
}

#[test]
fn a_gabion_superblock_is_found_behind_an_old_table() {
    let image = Image::new(MIB);
    image.put(510, &[0x55, 0xaa]);
    image.put(GABION.0, GABION.1);
    assert_eq!(image.name(), Some("Gabion filesystem"));
}

#[test]
fn zfs_is_found_by_any_uberblock_of_either_byte_order() {
    let uberblock = 0x00ba_b10c_u64;
    for offset in [128 * 1024, 128 * 1024 + 17 * 1024, 8 * MIB - 1024] {
        for bytes in [uberblock.to_le_bytes(), uberblock.to_be_bytes()] {
            let image = Image::new(8 * MIB + 4096);
            image.put(offset, &bytes);
            assert_eq!(image.name(), Some("zfs"), "at {offset}");
            assert_eq!(wipe(&image.file).unwrap().len(), 1);
            assert_eq!(image.name(), None);
        }
    }
}

#[test]
fn a_boot_sector_without_partitions_is_no_partition_table() {
    let image = Image::new(MIB);
    image.put(510, &[0x55, 0xaa]);
    assert_eq!(image.name(), None);
    image.put(446 + 4, &[0x83]);
    image.put(446 + 12, &[0, 8, 0, 0]);
    assert_eq!(image.name(), Some("MBR partition table"));
    // Bytes of a program where the table would be.
    image.put(446 + 16, &[0x7c]);
    assert_eq!(image.name(), None);
}

#[test]
fn ext_is_named_by_its_features() {
    for (compatible, incompatible, read_only, name) in
        [(0x38, 0x2, 0x3, "ext2"), (0x3c, 0x2, 0x3, "ext3"), (0x3c, 0x2c2, 0x46b, "ext4")]
    {
        let image = Image::new(MIB);
        image.put(1024 + 56, &[0x53, 0xef]);
        for (offset, features) in [(92, compatible), (96, incompatible), (100, read_only)] {
            image.put(1024 + offset, &u32::to_le_bytes(features));
        }
        assert_eq!(image.name(), Some(name));
    }
}

#[test]
fn an_old_copy_does_not_hide_what_is_there_now() {
    let image = Image::new(128 * MIB);
    image.put(64 * MIB + 64, b"_BHRfS_M");
    image.put(0x4000, b"SKUL\xba\xbe");
    image.put(0, b"XFSB");
    image.put(108, b"archive");
    image.put(32, &[0xab; 16]);
    let found = identify(&image.file).unwrap().unwrap();
    let shown = "xfs \"archive\" (abababab-abab-abab-abab-abababababab)";
    assert_eq!(found.to_string(), shown);
}

#[test]
fn a_label_with_control_characters_is_shown_without_them() {
    let image = Image::new(MIB);
    image.put(0, b"XFSB");
    image.put(108, b"a\x1b[2Jb\xff  ");
    let label = identify(&image.file).unwrap().unwrap().label.unwrap();
    assert_eq!(label, "a[2Jb\u{fffd}");
}
