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
fn a_difference_tells_names_that_are_no_text_in_all_their_bytes() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let at = |name: &[u8]| mnt.join(OsStr::from_bytes(name));
    fs::write(at(b"\xff"), "one").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "one"]).succeeded();
    fs::rename(at(b"\xff"), at(b"moved\xfe")).unwrap();
    fs::write(at(b"\xfd"), "two").unwrap();
    fs::write(at(b"text"), "two").unwrap();
    folder.gabion(&["snapshot", "create", "mnt", "two"]).succeeded();
    let wanted = "+ \\375\n+ text\nR \\377 -> moved\\376\n";
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(|line| format!("{line}\n")).collect();
        lines.sort();
        lines.concat()
    };
    let json = |subject: &str| {
        let text = folder.gabion(&["snapshot", "diff", "--json", subject, "one", "two"]);
        let Value::Array(mut rows) = serde_json::from_str(&text.succeeded()).unwrap() else {
            panic!("it is a list")
        };
        rows.sort_by_key(|row| row["path"].as_str().unwrap().len());
        rows
    };
    let told = folder.gabion(&["snapshot", "diff", "mnt", "one", "two"]).succeeded();
    assert_eq!(sorted(told), wanted);
    let rows = json("mnt");
    assert_eq!((&rows[0]["path"], &rows[0]["path_bytes"]), (&"\u{fffd}".into(), &"fd".into()));
    assert!(rows[1]["path"] == "text" && rows[1].get("path_bytes").is_none(), "{rows:?}");
    let renamed = (&rows[2]["path_bytes"], &rows[2]["from_bytes"]);
    assert_eq!(renamed, (&"6d6f766564fe".into(), &"ff".into()));
    folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(json("disk.img"), rows);
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
