//! Names that are no text, or do something to a terminal.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use serde_json::Value;

use crate::world::Folder;

/// A name that would clear a screen, and goes on in another line.
const STRANGE: &str = "a\u{1b}[2J\nb";

#[test]
fn no_name_reaches_a_terminal_as_it_is() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    folder.gabion(&["snapshot", "create", "mnt", STRANGE]).succeeded();
    fs::write(mnt.join(STRANGE), "file").unwrap();
    fs::write(mnt.join("C1 \u{9b}31m"), "file").unwrap();
    let path = mnt.join("volume\u{7}");
    let path = path.to_str().unwrap();
    let mut said = vec![
        folder.gabion(&["snapshot", "create", "mnt", "later"]).succeeded(),
        folder.gabion(&["subvolume", "create", path]).succeeded(),
        folder.gabion(&["snapshot", "list", "mnt"]).succeeded(),
        folder.gabion(&["snapshot", "diff", "mnt", STRANGE, "later"]).succeeded(),
        folder.gabion(&["subvolume", "list", "mnt"]).succeeded(),
        folder.gabion(&["backup", "mnt", STRANGE]).succeeded(),
        folder.gabion(&["undelete", "--from", STRANGE, &format!("mnt/{STRANGE}")]).stderr,
        folder.gabion(&["snapshot", "list", "mnt/\u{1b}[2J"]).stderr,
    ];
    assert!(said[2].contains(r"a\033[2J\nb"), "{said:?}");
    assert!(said[3].contains("+ a\\033[2J\\nb\n"), "{said:?}");
    assert!(said[3].contains(r"C1 \302\23331m"), "{said:?}");
    let json = folder.gabion(&["snapshot", "diff", "--json", "mnt", STRANGE, "later"]).succeeded();
    let changes: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(changes[0]["path"], "C1 \u{9b}31m", "JSON has names as they are");
    assert_eq!(changes[1]["path"], STRANGE);
    said.push(json);
    for text in said {
        assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
    }
}

#[test]
fn what_cannot_be_said_is_told_and_all_else_works() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let mut name = b"mnt/\xff".to_vec();
    let path = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let gabion = |words: [&OsStr; 3]| folder.gabion(&words);
    let [create, subvolume] = ["create", "subvolume"].map(OsStr::new);
    gabion([subvolume, create, &path(&name)]).failed(1, &["not UTF-8", "Rename"]);
    // What daemons need not be told works.
    fs::create_dir(mnt.join(OsStr::from_bytes(b"\xff"))).unwrap();
    fs::write(mnt.join(OsStr::from_bytes(b"\xff/file")), "content").unwrap();
    folder.gabion(&["backup", "mnt", "full.gabion"]).succeeded();
    name.extend(b"/tree");
    let [restore, full] = ["restore", "full.gabion"].map(OsStr::new);
    gabion([restore, full, &path(&name)]).succeeded();
    let restored = mnt.join(OsStr::from_bytes(b"\xff/tree/\xff/file"));
    assert_eq!(fs::read(restored).unwrap(), b"content");
}
