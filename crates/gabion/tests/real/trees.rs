//! Trees of real files, written and read by the programs that people use for that.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::program::{program, run};
use crate::site::Site;
use crate::{GIB, tree};

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut git = program("git", "git");
    git.current_dir(folder).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    let identity = ["-c", "user.name=Mira", "-c", "user.email=mira@example.org"];
    run(git.args(identity).args(arguments))
}

#[test]
fn an_unpacked_archive_is_what_was_packed() {
    let site = Site::new("untar", 2 * GIB);
    let (source, archive) = (site.beside("source"), site.beside("archive.tar"));
    tree::plant(&source, 5_000);
    run(program("tar", "tar").arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."));
    run(program("tar", "tar").arg("-xpf").arg(&archive).arg("-C").arg(site.root()));
    // The archive knows whole seconds; unpacked on the disk beside it is what is to be had.
    let wanted = site.beside("wanted");
    fs::create_dir(&wanted).unwrap();
    run(program("tar", "tar").arg("-xpf").arg(&archive).arg("-C").arg(&wanted));
    tree::assert_same(&wanted, site.root());
    site.remount();
    tree::assert_same(&wanted, site.root());
    site.scrub();
    // And back again, without the cache's help.
    let back = site.beside("back.tar");
    site.remount();
    run(program("tar", "tar").arg("-cf").arg(&back).arg("-C").arg(site.root()).arg("."));
    let again = site.beside("again");
    fs::create_dir(&again).unwrap();
    run(program("tar", "tar").arg("-xpf").arg(&back).arg("-C").arg(&again));
    tree::assert_same(&wanted, &again);
}

#[test]
fn a_copied_tree_keeps_times_owners_links_and_holes() {
    let site = Site::new("copy", 2 * GIB);
    let source = site.beside("source");
    tree::plant(&source, 800);
    let target = site.path("copy");
    run(program("cp", "coreutils").arg("-a").arg(&source).arg(&target));
    tree::assert_same(&source, &target);
    site.remount();
    tree::assert_same(&source, &target);
    let inside = site.path("copy of the copy");
    run(program("cp", "coreutils").arg("-a").arg(&target).arg(&inside));
    tree::assert_same(&source, &inside);
    run(program("rm", "coreutils").arg("-r").arg(&target));
    site.remount();
    tree::assert_same(&source, &inside);
    site.scrub();
}

#[test]
fn a_cloned_repository_is_sound_through_commits_and_collection() {
    let site = Site::new("git", 2 * GIB);
    let origin = site.beside("origin");
    tree::plant(&origin.join("first"), 1_500);
    fs::remove_dir_all(origin.join("first/oddities")).unwrap();
    git(&origin, &["init", "--quiet", "--initial-branch=main"]);
    for round in 0..4 {
        fs::write(origin.join("round"), round.to_string()).unwrap();
        git(&origin, &["add", "--all"]);
        git(&origin, &["commit", "--quiet", "--message", &format!("round {round}")]);
    }
    let clone = site.path("clone");
    let url = format!("file://{}", origin.display());
    git(site.root(), &["clone", "--quiet", &url, "clone"]);
    git(&clone, &["fsck", "--full", "--strict"]);
    for round in 0..10 {
        let folder = clone.join(format!("new/{round}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..50 {
            fs::write(folder.join(file.to_string()), format!("{round} {file}\n")).unwrap();
        }
        git(&clone, &["add", "--all"]);
        git(&clone, &["commit", "--quiet", "--message", &format!("new {round}")]);
        git(&clone, &["checkout", "--quiet", "-b", &format!("side-{round}"), "HEAD~1"]);
        git(&clone, &["checkout", "--quiet", "main"]);
    }
    git(&clone, &["gc", "--quiet", "--prune=now"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    let head = git(&clone, &["rev-parse", "HEAD"]);
    site.remount();
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    assert_eq!(git(&clone, &["rev-parse", "HEAD"]), head);
    git(&clone, &["fsck", "--full", "--strict"]);
    git(&clone, &["push", "--quiet", &url, "main:copy"]);
    git(&origin, &["fsck", "--full"]);
    site.scrub();
}

const LIBRARY: &str = "
//! Sums.

/// The sum of a slice.
pub fn sum(numbers: &[u64]) -> u64 {
    numbers.iter().sum()
}

#[test]
fn a_sum_is_right() {
    assert_eq!(sum(&[1, 2, 39]), 42);
}
";

const INTEGRATION: &str = "
#[test]
fn the_program_prints_the_sum() {
    let output = std::process::Command::new(env!(\"CARGO_BIN_EXE_sums\")).output().unwrap();
    assert_eq!(output.stdout, b\"6\\n\");
}
";

#[test]
fn a_crate_builds_and_tests_and_rebuilds() {
    let site = Site::new("cargo", 2 * GIB);
    let folder = site.path("sums");
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::create_dir_all(folder.join("tests")).unwrap();
    let manifest =
        "[package]\nname = \"sums\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/lib.rs"), LIBRARY).unwrap();
    let main = |numbers: &str| {
        let text = format!("fn main() {{ println!(\"{{}}\", sums::sum(&[{numbers}])); }}\n");
        fs::write(folder.join("src/main.rs"), text).unwrap();
    };
    main("1, 2, 3");
    fs::write(folder.join("tests/it.rs"), INTEGRATION).unwrap();
    let cargo = |arguments: &[&str]| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(&folder).args(arguments).args(["--offline"]);
        cargo.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        run(&mut cargo)
    };
    let text = cargo(&["test"]);
    assert_eq!(text.matches("test result: ok. 1 passed").count(), 2, "{text}");
    // A change is noticed by its modification time, the rest is not built again.
    main("2, 4");
    assert_eq!(cargo(&["run", "--quiet"]), "6\n");
    site.remount();
    assert_eq!(cargo(&["run", "--quiet"]), "6\n");
    let text = cargo(&["test"]);
    assert_eq!(text.matches("test result: ok. 1 passed").count(), 2, "{text}");
    site.scrub();
}
