//! Which of the backups at a place is meant.

use std::fs;

use crate::world::Folder;

#[test]
fn of_several_subvolumes_at_one_place_none_is_taken_unasked() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let run = |words: &str| folder.gabion(&words.split(' ').collect::<Vec<_>>()).succeeded();
    run("subvolume create mnt/home");
    fs::write(mnt.join("file"), "of the root").unwrap();
    fs::write(mnt.join("home/file"), "of home").unwrap();
    fs::create_dir(folder.join("place")).unwrap();
    run("backup mnt place");
    run("backup mnt/home place");
    let restore = |more: &[&str]| {
        folder.gabion(&[&["restore", "--to-directory"], more, &["place", "tree"]].concat())
    };
    restore(&[]).failed(1, &["several subvolumes", "--at"]);
    restore(&["--at", "99"]).failed(1, &["\"99\" is too short", "4 digits"]);
    let first = run("backups place")[..8].to_owned();
    restore(&["--at", &first]).succeeded();
    assert_eq!(fs::read_to_string(folder.join("tree/file")).unwrap(), "of the root");
}

#[test]
fn one_filesystem_by_two_names_is_one() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let run = |words: &str| folder.gabion(&words.split(' ').collect::<Vec<_>>()).succeeded();
    fs::create_dir(folder.join("place")).unwrap();
    run("backup mnt place");
    fs::write(mnt.join("file"), "later").unwrap();
    run("umount mnt");
    // It goes on with the chain, and so says what it is.
    run("backup --incremental disk.img place");
    run("backup disk.img place");
    run("restore --to-directory place tree");
    assert_eq!(fs::read_to_string(folder.join("tree/file")).unwrap(), "later");
}
