//! The two checksums of the disk format.
//!
//! File data carries a 32-bit CRC per block, kept in the item that points to it; everything else
//! (nodes, superblocks, journal units, allocation pages) carries 64 bits. Both are CRCs, so every
//! error burst shorter than their width is found, and both run at memory speed here.

use crc_fast::CrcAlgorithm;

/// CRC-32C (Castagnoli, as in iSCSI) of a block of file data.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-64/NVME of a metadata structure.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// CRC-64/NVME of several parts as if they stood side by side.
pub fn crc64_of(parts: &[&[u8]]) -> u64 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme);
    for part in parts {
        digest.update(part);
    }
    digest.finalize()
}

/// XXH3-64 of a name with a seed: where the name's entry stands in its directory.
pub fn name_hash(name: &[u8], seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, to catch a wrong instruction path of the library on some processor.
    fn bitwise(bytes: &[u8], width: u32, reflected_poly: u64) -> u64 {
        let ones = u64::MAX >> (64 - width);
        let mut crc = ones;
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ reflected_poly } else { crc >> 1 };
            }
        }
        crc ^ ones
    }

    #[test]
    fn checksums_agree_with_the_bitwise_definition() {
        let bytes: Vec<u8> = (0..5000_u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for length in [0, 1, 7, 64, 255, 4096, 5000] {
            let part = &bytes[..length];
            assert_eq!(u64::from(crc32c(part)), bitwise(part, 32, 0x82f6_3b78));
            assert_eq!(crc64(part), bitwise(part, 64, 0x9a6c_9329_ac4b_c9b5));
        }
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(crc64_of(&[b"1234", b"", b"56789"]), crc64(b"123456789"));
    }
}
