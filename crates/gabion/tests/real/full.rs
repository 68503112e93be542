//! A disk that is full, over and over: nothing synced is lost, deleting always works and frees,
//! and what statfs says is available can really be written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::MIB;
use crate::numbers::Numbers;
use crate::site::{Kind, Site, is_long};

/// Of what statfs says is available, so much must really be had by one large file: 31/32, which
/// leaves room for the file's own metadata.
const HAD_OF_32: u64 = 31;

/// Which files are synced. Unmounting in order keeps the others, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Synced {
    All,
    OneOfFive,
}

/// A file whose bytes follow from its number.
#[derive(Clone, Debug)]
struct Kept {
    number: u64,
    path: PathBuf,
    length: usize,
}

impl Kept {
    /// One block that is the file's own, over and over, with the place of each in it.
    fn bytes(&self) -> Vec<u8> {
        const BLOCK: usize = 4096;
        let mut numbers = Numbers(self.number);
        let words = (0..BLOCK / 8).map(|_| numbers.below(u64::MAX));
        let block: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let mut bytes = block.repeat(self.length.div_ceil(BLOCK));
        for (index, block) in bytes.chunks_mut(BLOCK).enumerate() {
            block[..8].copy_from_slice(&(index as u64).to_le_bytes());
        }
        bytes.truncate(self.length);
        bytes
    }

    /// Writes it, and syncs some; says no if there is no room.
    fn write(&self, synced: Synced) -> bool {
        let written = File::create(&self.path).and_then(|file| {
            file.write_all_at(&self.bytes(), 0)?;
            match synced {
                Synced::OneOfFive if !self.number.is_multiple_of(5) => Ok(()),
                _ => file.sync_all(),
            }
        });
        match written {
            Ok(()) => true,
            Err(error) => {
                assert_full(&error);
                false
            }
        }
    }

    fn check(&self) {
        let found = fs::read(&self.path).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        assert!(found == self.bytes(), "{self:?} does not hold what was written");
    }
}

fn assert_full(error: &io::Error) {
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{error}");
}

fn available(site: &Site) -> u64 {
    let found = rustix::fs::statvfs(site.root()).unwrap();
    found.f_bavail * found.f_frsize
}

fn sync(site: &Site) {
    rustix::fs::syncfs(File::open(site.root()).unwrap()).unwrap();
}

fn stays_sound_when_filled(name: &str, mib: u64, rounds: u32, synced: Synced) {
    let options: &[&str] = match synced {
        Synced::All => &["writeback"],
        Synced::OneOfFive => &["writethrough"],
    };
    let site = Site::with_options(name, mib * MIB, options);
    let mut numbers = Numbers(mib);
    sync(&site);
    let empty = available(&site);
    let mut files: Vec<Kept> = Vec::new();
    let mut next = 0;
    for round in 0..rounds {
        let largest = match round % 3 {
            0 => mib * MIB / 20,
            1 => MIB / 2,
            _ => MIB * 2,
        };
        loop {
            next += 1;
            let length = 1 + numbers.below(largest) as usize;
            let path = site.path(&format!("file {next}"));
            let file = Kept { number: next, path, length };
            if !file.write(synced) {
                // What was not promised may be there in part, and goes.
                let _ = fs::remove_file(&file.path);
                break;
            }
            files.push(file);
        }
        if round % 10 == 9 {
            files.iter().for_each(Kept::check);
        }
        if round % 25 == 24 {
            site.remount();
            files.iter().for_each(Kept::check);
            site.scrub();
        }
        // From a few files to nearly all of them.
        let kept = numbers.below(100);
        files.retain(|file| {
            let stays = numbers.below(100) < kept;
            if !stays {
                fs::remove_file(&file.path)
                    .unwrap_or_else(|error| panic!("round {round}: {file:?} stays: {error}"));
            }
            stays
        });
    }
    site.remount();
    files.iter().for_each(Kept::check);
    files.iter().for_each(|file| fs::remove_file(&file.path).unwrap());
    site.remount();
    let again = available(&site);
    eprintln!("{name}: {empty} bytes available at first, {again} after {rounds} rounds");
    assert!(again >= empty - MIB, "{} bytes are gone", empty - again);
    site.scrub();
}

#[test]
fn a_small_disk_stays_sound_when_it_is_filled_again_and_again() {
    let rounds = if is_long() { 500 } else { 50 };
    stays_sound_when_filled("full-small", 64, rounds, Synced::OneOfFive);
}

#[test]
fn a_larger_disk_stays_sound_when_it_is_filled_again_and_again() {
    let rounds = if is_long() { 500 } else { 8 };
    stays_sound_when_filled("full-larger", 300, rounds, Synced::All);
}

/// Writes one file until there is no more room; gives its length.
fn fill_one(path: &PathBuf) -> u64 {
    let file = File::create(path).unwrap();
    let block = vec![0xa5; 128 << 10];
    let mut offset = 0;
    loop {
        match file.write_at(&block, offset) {
            Ok(count) => offset += count as u64,
            Err(error) => {
                assert_full(&error);
                break;
            }
        }
    }
    // What was accepted has a place.
    file.sync_all().unwrap();
    offset
}

fn what_statfs_says_can_be_had(name: &str, mib: u64) {
    let site = Site::with_options(name, mib * MIB, &["writethrough"]);
    sync(&site);
    let empty = available(&site);
    for round in 0..3 {
        let path = site.path("one file");
        let had = fill_one(&path);
        eprintln!("{name}: {had} of {empty} bytes had, {} left", available(&site));
        assert!(had >= empty / 32 * HAD_OF_32, "round {round}: {had} of {empty}");
        assert!(available(&site) <= empty / 32, "room left that cannot be had");
        // What is freed here can be had at once, even where statfs learns of it later.
        fs::remove_file(&path).unwrap();
    }
    site.remount();
    let again = available(&site);
    assert!(again >= empty - MIB, "{} bytes are gone", empty - again);
    site.scrub();
}

#[test]
fn what_statfs_says_is_available_can_be_written_on_a_small_disk() {
    what_statfs_says_can_be_had("statfs-small", 64);
}

#[test]
fn what_statfs_says_is_available_can_be_written_on_a_larger_disk() {
    what_statfs_says_can_be_had("statfs-larger", 300);
}

#[test]
fn a_disk_full_of_small_files_can_be_emptied() {
    // They lie in the map.
    const BYTES: usize = 1900;
    let (mib, rounds) = if is_long() { (32, 20) } else { (16, 1) };
    let site = Site::with_options("full-of-files", mib * MIB, &["writethrough"]);
    sync(&site);
    let empty = available(&site);
    let files_max = if site.kind() == Kind::Ext4 { 10_000 } else { 1_000_000 };
    for round in 0..rounds {
        let folder = site.path(&format!("folder {round}"));
        fs::create_dir(&folder).unwrap();
        let mut count = 0;
        while count < files_max {
            match fs::write(folder.join(count.to_string()), [b'x'; BYTES]) {
                Ok(()) => count += 1,
                Err(error) => {
                    assert_full(&error);
                    break;
                }
            }
        }
        eprintln!("full-of-files: {count} files of {BYTES} bytes");
        // Nothing else fits, and nothing of it breaks anything.
        let refused = fs::create_dir(folder.join("one more"));
        let linked = fs::hard_link(folder.join("0"), folder.join("another name"));
        for error in [refused, linked].into_iter().filter_map(Result::err) {
            assert_full(&error);
        }
        site.remount();
        for number in (0..count).step_by(97) {
            assert_eq!(fs::read(folder.join(number.to_string())).unwrap(), [b'x'; BYTES]);
        }
        fs::remove_dir_all(&folder).unwrap();
        site.remount();
        let again = available(&site);
        assert!(again >= empty - MIB, "round {round}: {} bytes are gone", empty - again);
    }
    site.scrub();
}

#[test]
fn refused_overwrites_leave_synced_bytes_alone() {
    let site = Site::with_options("full-overwrite", 64 * MIB, &["writethrough"]);
    let path = site.path("database");
    let block = |round: u64| vec![round as u8; 64 << 10];
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    for index in 0..128 {
        file.write_all_at(&block(0), index << 16).unwrap();
    }
    file.sync_all().unwrap();
    fill_one(&site.path("filling"));
    let mut refused = 0;
    for round in 1..20 {
        let mut numbers = Numbers(round);
        for _ in 0..32 {
            let offset = numbers.below(128) << 16;
            match file.write_all_at(&block(round), offset) {
                Ok(()) => {}
                Err(error) => {
                    assert_full(&error);
                    refused += 1;
                }
            }
        }
        file.sync_all().unwrap();
    }
    eprintln!("full-overwrite: {refused} of 608 refused");
    let wanted = fs::read(&path).unwrap();
    drop(file);
    site.remount();
    assert!(fs::read(&path).unwrap() == wanted, "synced bytes changed");
    site.scrub();
}

#[test]
fn what_the_kernel_collected_for_a_full_disk_is_an_error_at_the_sync() {
    let site = Site::with_options("full-late", 64 * MIB, &["writeback"]);
    let path = site.path("one file");
    let file = File::create(&path).unwrap();
    let block = vec![0xa5; MIB as usize];
    let mut synced = 0;
    let error = loop {
        let written = file.write_all_at(&block, synced).and_then(|()| file.sync_all());
        match written {
            Ok(()) => synced += MIB,
            Err(error) => break error,
        }
        assert!(synced <= 64 * MIB, "more was accepted than the disk can hold");
    };
    assert_full(&error);
    drop(file);
    site.remount();
    let found = fs::read(&path).unwrap();
    assert!(found.len() as u64 >= synced);
    assert!(found[..synced as usize].iter().all(|byte| *byte == 0xa5), "synced bytes are gone");
    fs::remove_file(&path).unwrap();
    site.scrub();
}
