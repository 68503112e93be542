//! Images that nobody has made for us: a command says what is wrong with them, and nothing worse.

use std::fs;
use std::os::unix::fs::FileExt;

use gabion_base::rng::Rng;

use crate::world::Folder;

/// Images with damage that are tried.
const DAMAGED_IMAGES: u64 = 40;

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
        let mut rng = Rng::new(seed);
        let damage: Vec<_> = (0..1 + seed % 4)
            .map(|_| (places[rng.below(places.len() as u64) as usize], rng.below(256) as u8))
            .collect();
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
