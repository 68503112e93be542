//! Images that nobody has made for us: a command says what is wrong with them, and nothing worse.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use gabion_base::rng::Rng;

use crate::world::Folder;

/// Images with damage that are looked at.
const DAMAGED_IMAGES: u64 = 25;
/// Images with damage that are mounted.
const DAMAGED_MOUNTS: u64 = 20;

#[test]
fn garbage_is_refused_with_a_reason() {
    let folder = Folder::new();
    let mut garbage = vec![0; 17 << 20];
    Rng::new(1).fill(&mut garbage);
    fs::write(folder.join("garbage.img"), garbage).unwrap();
    fs::write(folder.join("empty.img"), "").unwrap();
    fs::write(folder.join("short.img"), [0; 5000]).unwrap();
    for image in ["garbage.img", "empty.img", "short.img"] {
        for command in ["status", "scrub", "inspect"] {
            let refused = folder.gabion(&[command, image]);
            refused.failed(1, &[image, "holds no Gabion filesystem"]);
        }
    }
    folder.gabion(&["status", "missing.img"]).failed(1, &["missing.img", "No such file"]);
}

#[test]
fn a_truncated_image_says_how_much_is_missing() {
    let folder = Folder::new();
    let image = folder.image();
    fs::File::options().write(true).open(image).unwrap().set_len(32 << 20).unwrap();
    folder.gabion(&["status", "disk.img"]).failed(1, &["8192", "16384"]);
}

/// Places that get other bytes.
fn damage(seed: u64, places: &[usize]) -> Vec<(usize, u8)> {
    let mut rng = Rng::new(seed);
    (0..1 + seed % 4)
        .map(|_| (places[rng.below(places.len() as u64) as usize], rng.below(256) as u8))
        .collect()
}

/// A command may show the damage, refuse, or not be concerned; it may not crash or hang.
#[test]
fn damaged_images_end_every_command_in_order() {
    let folder = Folder::new();
    let image = folder.image();
    let good = fs::read(&image).unwrap();
    let file = fs::File::options().write(true).open(&image).unwrap();
    // Where the metadata of a new filesystem is; journal and free space come after it.
    let places: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    for seed in 0..DAMAGED_IMAGES {
        let damage = damage(seed, &places);
        for (at, byte) in &damage {
            file.write_all_at(&[*byte], *at as u64).unwrap();
        }
        for arguments in [
            &["status", "disk.img"][..],
            &["scrub", "disk.img"],
            &["inspect", "disk.img", "tree"],
            &["inspect", "disk.img", "alloc"],
        ] {
            let outcome = folder.gabion(arguments);
            assert!(
                matches!(outcome.code(), Some(0 | 1 | 4)),
                "seed {seed}: {arguments:?}: {outcome:#?}"
            );
        }
        for (at, _) in &damage {
            file.write_all_at(&good[*at..=*at], *at as u64).unwrap();
        }
    }
}

/// Where files are: names without bytes, short files, long ones, holes and many names.
fn fill(mountpoint: &Path) {
    for folder in 0..5 {
        let folder = mountpoint.join(format!("folder-{folder}"));
        fs::create_dir(&folder).unwrap();
        for number in 0..60 {
            fs::write(folder.join(format!("file-{number}")), vec![7; number * 100]).unwrap();
        }
        symlink("file-1", folder.join("link")).unwrap();
    }
}

/// Everything may fail but what the daemon is there for: to answer, and to end when it is told to.
fn use_all(mountpoint: &Path) {
    let mut folders = vec![mountpoint.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.take(1000).filter_map(Result::ok) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && folders.len() < 100 => folders.push(entry.path()),
                _ => {
                    let _ = fs::read(entry.path());
                    let _ = fs::metadata(entry.path());
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        let _ = fs::write(folder.join("new"), "new");
    }
    let _ = fs::File::open(mountpoint).and_then(|root| root.sync_all());
}

#[test]
fn damaged_images_do_not_crash_the_daemon() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.damages();
    let image = folder.image();
    fill(&folder.mount(""));
    folder.gabion(&["umount", "mnt"]).succeeded();
    let good = fs::read(&image).unwrap();
    let blocks = good.chunks(4096).zip(0..).map(|(block, index)| (index * 4096, block));
    let blocks: Vec<(u64, &[u8])> = blocks.filter(|(_, block)| *block != [0; 4096]).collect();
    // Not among the bytes of files: nobody trusts those.
    let places: Vec<usize> = (0..good.len()).filter(|at| ![0, 7].contains(&good[*at])).collect();
    for seed in 0..DAMAGED_MOUNTS {
        let file = fs::File::create(&image).unwrap();
        file.set_len(good.len() as u64).unwrap();
        for (at, block) in &blocks {
            file.write_all_at(block, *at).unwrap();
        }
        for (at, byte) in damage(seed, &places) {
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        drop(file);
        let mounted = folder.gabion(&["mount", "disk.img", "mnt"]);
        if !mounted.status.success() {
            mounted.failed(1, &["disk.img"]);
            assert!(folder.mountpoints().is_empty(), "seed {seed}");
            continue;
        }
        use_all(&folder.join("mnt"));
        let ended = folder.gabion(&["umount", "mnt"]);
        let crashed = ended.stderr.contains("killed") || ended.stderr.contains("gone");
        assert!(!crashed && matches!(ended.code(), Some(0 | 1)), "seed {seed}: {ended:#?}");
        assert!(folder.mountpoints().is_empty(), "seed {seed}");
    }
}
