//! Whatever programs do between two backups, the chain restores each moment.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use gabion_base::rng::Rng;
use rustix::fs::FallocateFlags;

use super::trees::{assert_same, survey};
use super::{backups, mount, other};
use crate::world::Folder;

/// The longest file, in bytes.
const LENGTH: u64 = 300_000;

/// A program that does anything, within one directory.
struct Program {
    rng: Rng,
    root: PathBuf,
}

impl Program {
    /// All paths below the root but the root's.
    fn paths(&self, wanted: impl Fn(&fs::FileType) -> bool) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut waiting = vec![self.root.clone()];
        while let Some(dir) = waiting.pop() {
            for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    waiting.push(entry.path());
                }
                if wanted(&kind) {
                    found.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }

    fn one(&mut self, of: &[PathBuf]) -> Option<PathBuf> {
        (!of.is_empty()).then(|| of[self.rng.below(of.len() as u64) as usize].clone())
    }

    /// A name in any directory; it may be taken.
    fn name(&mut self) -> PathBuf {
        let mut dirs = self.paths(fs::FileType::is_dir);
        dirs.push(self.root.clone());
        let dir = self.one(&dirs).expect("there is the root");
        dir.join(format!("{}", self.rng.below(12)))
    }

    /// A range, by whole blocks or not.
    fn range(&mut self) -> (u64, u64) {
        let unit = if self.rng.chance(1, 2) { 4096 } else { 1 };
        let from = self.rng.below(LENGTH) / unit * unit;
        (from, (1 + self.rng.below(40_000)).div_ceil(unit) * unit)
    }

    fn noise(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.rng.fill(&mut bytes);
        bytes
    }

    /// Does something, or finds that it cannot be done: then a file's name was taken by a
    /// directory, or the other way round.
    fn act(&mut self) {
        let files = self.paths(fs::FileType::is_file);
        let all = self.paths(|_| true);
        let (file, any, name) = (self.one(&files), self.one(&all), self.name());
        let (from, length) = self.range();
        match (self.rng.below(14), file, any) {
            (0, ..) => _ = fs::create_dir(&name),
            (1, ..) => {
                let bytes = self.noise(length % 3000);
                let _ = fs::write(&name, bytes);
            }
            (2, ..) => _ = symlink(format!("to {from}"), &name),
            (3, Some(file), _) => _ = fs::hard_link(file, &name),
            (4, _, Some(any)) => _ = fs::rename(any, &name),
            (5, _, Some(any)) => _ = fs::remove_file(&any).or_else(|_| fs::remove_dir(&any)),
            (6, _, Some(any)) if !any.is_symlink() => {
                let mode = 0o600 + self.rng.below(0o100) as u32;
                fs::set_permissions(any, fs::Permissions::from_mode(mode)).unwrap();
            }
            (7, Some(file), _) => {
                let value = self.noise(length % 50);
                let name = format!("user.{}", from % 3);
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(&file, name, &value, flags).unwrap();
            }
            (8, Some(file), _) => open(&file).set_len(from).unwrap(),
            (9, Some(file), _) => {
                let modes = [
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::COLLAPSE_RANGE,
                    FallocateFlags::INSERT_RANGE,
                    FallocateFlags::empty(),
                ];
                let mode = modes[self.rng.below(modes.len() as u64) as usize];
                let _ = rustix::fs::fallocate(open(&file), mode, from, length);
            }
            (10, Some(file), _) => {
                let to = File::options().create(true).truncate(false).write(true).open(&name);
                if let Ok(to) = to {
                    let source = File::open(file).unwrap();
                    let (mut at, mut into) = (from / 2 / 4096 * 4096, from / 4096 * 4096);
                    let length = length as usize;
                    let to = rustix::fs::copy_file_range(
                        &source,
                        Some(&mut at),
                        &to,
                        Some(&mut into),
                        length,
                    );
                    // Not within one file onto itself.
                    let _ = to;
                }
            }
            (_, Some(file), _) => {
                let bytes = self.noise(length);
                open(&file).write_all_at(&bytes, from).unwrap();
            }
            _ => {}
        }
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn whatever_programs_do_between_two_backups_each_moment_is_restored() {
    for seed in 1..=2 {
        let Some(folder) = Folder::for_mounts() else { return };
        folder.gabion(&["mkfs", "--size", "256M", "disk.img"]).succeeded();
        let root = mount(&folder);
        fs::create_dir(folder.join("store")).unwrap();
        let mut program = Program { rng: Rng::new(seed), root: root.clone() };
        let mut moments = Vec::new();
        for round in 0..6 {
            for _ in 0..60 {
                program.act();
            }
            let option: &[&str] = if round > 0 { &["--incremental"] } else { &[] };
            folder.gabion(&[&["backup", "mnt", "store"], option].concat()).succeeded();
            moments.push(survey(&root));
        }
        folder.gabion(&["verify", "store"]).succeeded();
        other(&folder);
        for (row, wanted) in backups(&folder, "store").iter().zip(&moments) {
            let at = row["stream"].as_str().unwrap();
            folder.gabion(&["restore", "--at", at, "store", "other/tree"]).succeeded();
            eprintln!("seed {seed}, {at}: {} objects", wanted.len());
            assert_same(wanted, &folder.join("other/tree"));
            fs::remove_dir_all(folder.join("other/tree")).unwrap();
        }
        assert!(moments.iter().all(|moment| moment.len() > 5));
        folder.gabion(&["scrub", "--allocation", "mnt"]).succeeded();
        folder.gabion(&["scrub", "--allocation", "other"]).succeeded();
    }
}
