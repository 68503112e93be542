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
fn a_backup_that_does_not_say_what_it_is_is_damage() {
    let Some(folder) = Folder::for_mounts() else { return };
    folder.image();
    let mnt = folder.mount("");
    let gabion = |words: &str| folder.gabion(&words.split(' ').collect::<Vec<_>>());
    fs::create_dir(folder.join("place")).unwrap();
    gabion("backup mnt place/1.gabion").succeeded();
    fs::write(mnt.join("file"), "later").unwrap();
    gabion("backup mnt place/2.gabion").succeeded();
    fs::write(folder.join("place/notes"), "no backup at all").unwrap();
    gabion("verify place").succeeded();
    let newest = folder.join("place/2.gabion");
    let whole = fs::read(&newest).unwrap();
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    for (bytes, part) in [(&flipped[..], "the header"), (&b""[..], "not a backup")] {
        fs::write(&newest, bytes).unwrap();
        gabion("verify place").failed(4, &["place/2.gabion", part, "cannot be restored"]);
        // The one before is no answer to who wants the newest.
        gabion("restore --to-directory place tree").failed(1, &["may be the newest", "--at"]);
        gabion("verify place/1.gabion").succeeded();
    }
    // Nor is it, if the newest is a copy that has not come to its end.
    for length in [500, whole.len() - 1] {
        fs::write(&newest, &whole[..length]).unwrap();
        let parts = ["place/2.gabion", "not complete", "cannot be restored"];
        gabion("verify place").failed(4, &parts);
        let parts = ["place/2.gabion", "not complete", "is the newest", "--at"];
        gabion("restore --to-directory place tree").failed(1, &parts);
    }
    fs::write(&newest, whole).unwrap();
    // Of one that was begun that is no wonder.
    fs::write(folder.join("place/3.gabion.partial"), "GABIONBK").unwrap();
    gabion("verify place").succeeded();
    gabion("restore --to-directory place tree").succeeded();
    assert_eq!(fs::read_to_string(folder.join("tree/file")).unwrap(), "later");
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
