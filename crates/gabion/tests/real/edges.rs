//! The longest, deepest, last and most: kept exactly, or refused by the right error.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::GIB;
use crate::program::{attempt, program, run};
use crate::site::{Kind, Site};

#[test]
fn names_of_all_bytes_and_lengths_are_kept() {
    let site = Site::new("names", GIB);
    let mut wanted = BTreeSet::new();
    for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
        wanted.insert(vec![b'x', byte]);
        if byte != b'.' {
            wanted.insert(vec![byte]);
        }
        wanted.insert(vec![byte; 255]);
    }
    for length in 1..=255 {
        wanted.insert(vec![b'n'; length]);
    }
    for name in &wanted {
        fs::write(site.root().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let check = || {
        let entries = fs::read_dir(site.root()).unwrap();
        let found: BTreeSet<_> =
            entries.map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
        assert_eq!(found, wanted);
        for name in &wanted {
            let path = site.root().join(OsStr::from_bytes(name));
            assert_eq!(&fs::read(path).unwrap(), name);
        }
    };
    check();
    site.remount();
    check();
    let too_long = site.root().join(OsStr::from_bytes(&[b'n'; 256]));
    let error = File::create(too_long).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
    site.scrub();
}

#[test]
fn folders_nest_deeper_than_paths_are_long() {
    const DEPTH: usize = 1_000;
    let site = Site::new("deep", GIB);
    // Each step is relative: the whole path would be too long for any call.
    let text = format!(
        "import os, sys\n\
         os.chdir(sys.argv[1])\n\
         for level in range({DEPTH}):\n\
         \x20   os.mkdir('a folder of some length')\n\
         \x20   os.chdir('a folder of some length')\n\
         open('bottom', 'w').write('reached')\n"
    );
    run(program("/usr/bin/python3", "python3").arg("-c").arg(text).arg(site.root()));
    site.remount();
    let found = run(program("find", "findutils").arg(site.root()).args(["-name", "bottom"]));
    assert_eq!(found.matches("a folder of some length").count(), DEPTH);
    run(program("rm", "coreutils").arg("-r").arg(site.path("a folder of some length")));
    assert_eq!(fs::read_dir(site.root()).unwrap().count(), 0);
    site.scrub();
}

#[test]
fn sparse_files_end_at_two_to_the_62nd() {
    let site = Site::new("sparse", GIB);
    // The kernel's ext4 ends at 16 TiB.
    let far = if site.kind() == Kind::Ext4 { 1 << 43 } else { 1_u64 << 62 };
    let path = site.path("sparse");
    let file = File::create(&path).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", far).unwrap();
    file.write_all_at(b"middle", far / 2 + 3).unwrap();
    drop(file);
    let check = || {
        let file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), far + 3);
        assert!(metadata.blocks() < 1_000, "{} sectors for 14 bytes", metadata.blocks());
        let mut bytes = [1; 12];
        file.read_exact_at(&mut bytes, far / 2).unwrap();
        assert_eq!(&bytes, b"\0\0\0middle\0\0\0");
        file.read_exact_at(&mut bytes[..5], far - 2).unwrap();
        assert_eq!(&bytes[..5], b"\0\0end");
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 20)).unwrap();
        assert!(data <= far / 2 + 3 && data > far / 2 - (1 << 20), "data begins at {data}");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
        assert!((5..=1 << 20).contains(&hole), "a hole begins at {hole}");
    };
    check();
    site.remount();
    check();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(7).unwrap();
    drop(file);
    site.remount();
    assert_eq!(fs::read(&path).unwrap(), b"begin\0\0");
    site.scrub();
}

fn attribute(path: &Path, name: &str, value: &str) -> (bool, String) {
    let mut setfattr = program("setfattr", "attr");
    attempt(setfattr.args(["-n", name, "-v", value]).arg(path))
}

fn attributes(path: &Path) -> String {
    run(program("getfattr", "attr").args(["--absolute-names", "-d", "-m", "-"]).arg(path))
}

#[test]
fn extended_attributes_are_kept_up_to_their_limits() {
    let site = Site::new("attributes", GIB);
    let path = site.path("file");
    fs::write(&path, "with attributes").unwrap();
    for namespace in ["user", "trusted"] {
        for number in 0..20 {
            let name = format!("{namespace}.number {number}");
            let (success, text) = attribute(&path, &name, &"v".repeat(number * 7));
            assert!(success, "{name}: {text}");
        }
    }
    let longest = format!("user.{}", "n".repeat(250));
    assert!(attribute(&path, &longest, "of the longest name").0);
    let (success, text) = attribute(&path, &format!("{longest}n"), "");
    assert!(!success && text.contains("out of range"), "{text}");
    if site.kind() == Kind::Gabion {
        // Values of a block, as many as one likes; of more, none.
        let large = site.path("large");
        fs::write(&large, "").unwrap();
        for number in 0..20 {
            let (success, text) = attribute(&large, &format!("user.{number}"), &"z".repeat(4096));
            assert!(success, "{number}: {text}");
        }
        let (success, text) = attribute(&large, "user.too large", &"z".repeat(4097));
        assert!(!success && text.contains("No space left"), "{text}");
        let wanted = attributes(&large);
        assert_eq!(wanted.matches("zzzz\"").count(), 20);
        site.remount();
        assert_eq!(attributes(&large), wanted);
    }
    let (success, text) = attribute(&path, "nonsense.name", "");
    assert!(!success && text.contains("not supported"), "{text}");
    let wanted = attributes(&path);
    assert_eq!(wanted.matches("number").count(), 40);
    site.remount();
    assert_eq!(attributes(&path), wanted);
    run(program("setfattr", "attr").args(["-x", "user.number 3"]).arg(&path));
    assert_eq!(attributes(&path).matches("number").count(), 39);
    let copy = site.path("copy");
    run(program("cp", "coreutils").arg("-a").arg(&path).arg(&copy));
    assert_eq!(attributes(&copy).replace("/copy", "/file"), attributes(&path));
    site.scrub();
}

fn acl(path: &Path) -> String {
    let mut getfacl = program("getfacl", "acl");
    run(getfacl.args(["--omit-header", "--absolute-names", "--numeric"]).arg(path))
}

fn reads_as(user: &str, path: &Path) -> bool {
    let mut setpriv = program("setpriv", "util-linux");
    setpriv.args(["--reuid", user, "--regid", "65534", "--clear-groups", "cat"]);
    attempt(setpriv.arg(path)).0
}

#[test]
fn access_control_lists_are_kept_inherited_and_obeyed() {
    let site = Site::new("acl", GIB);
    // Whoever is asked must be able to reach the files.
    let folder = site.path("folder");
    fs::create_dir(&folder).unwrap();
    let set = |path: &Path, arguments: &[&str]| {
        run(program("setfacl", "acl").args(arguments).arg(path));
    };
    let path = folder.join("secret");
    fs::write(&path, "secret").unwrap();
    set(&path, &["-m", "u::rw,g::-,o::-"]);
    assert!(!reads_as("12345", &path));
    set(&path, &["-m", "u:12345:r,g:777:rw"]);
    assert!(reads_as("12345", &path));
    assert!(!reads_as("12346", &path));
    let wanted = "user::rw-\nuser:12345:r--\ngroup::---\ngroup:777:rw-\nmask::rw-\nother::---\n\n";
    assert_eq!(acl(&path), wanted);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    // chmod changes the mask, which takes away what the entry gave.
    run(program("chmod", "coreutils").arg("600").arg(&path));
    assert!(!reads_as("12345", &path));
    run(program("chmod", "coreutils").arg("640").arg(&path));
    assert!(reads_as("12345", &path));
    set(&folder, &["-d", "-m", "u:12345:rwx,o::-"]);
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap();
    let child = inner.join("child");
    fs::write(&child, "inherited").unwrap();
    assert!(acl(&inner).contains("default:user:12345:rwx"), "{}", acl(&inner));
    assert!(acl(&child).contains("user:12345:rwx"), "{}", acl(&child));
    let (inner_acl, child_acl) = (acl(&inner), acl(&child));
    site.remount();
    assert_eq!((acl(&inner), acl(&child)), (inner_acl, child_acl));
    assert!(reads_as("12345", &child) && !reads_as("12346", &child));
    set(&path, &["-b"]);
    assert!(!reads_as("12345", &path));
    site.scrub();
}
