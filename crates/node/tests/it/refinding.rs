//! Servers that crash, and what clients that use a folder say again of it.

use gabion_fs::{Access, Caller, FileType, IfTaken, Leave};
use gabion_link::message::{Answer, Call, ToServer};
use gabion_map::{FileId, OpenMode};
use gabion_node::served::Rights;

use crate::recovery::{Kept, Server, create};

/// A server that has a folder with a folder with a file, all durable, and something beside it.
fn server() -> (Server, FileId, FileId) {
    let server = Server::new();
    let (fs, caller) = (&server.world.fs, Caller::superuser());
    let folder = fs.mkdir(&caller, server.world.root(), b"folder", 0o777).unwrap().file;
    let deep = fs.mkdir(&caller, folder, b"deep", 0o777).unwrap().file;
    let file = fs.mknod(&caller, deep, b"file", FileType::Regular, 0o666, 0).unwrap().file;
    server.world.file("outside", b"outside");
    fs.syncfs().unwrap();
    (server, folder, file)
}

fn content(server: &Server, path: &[&str]) -> String {
    let (fs, caller) = (&server.world.fs, Caller::superuser());
    let find = |dir, name: &&str| fs.lookup(&caller, dir, name.as_bytes()).unwrap().file;
    let file = path.iter().fold(server.world.root(), find);
    String::from_utf8(server.world.read(file)).unwrap()
}

fn rights(folder: FileId, of: Rights) -> Rights {
    Rights { root: folder.ino, ..of }
}

fn made(kept: &Kept) -> FileId {
    match &kept.answer {
        Answer::Made(made, _) => made.file,
        answer => panic!("{answer:?}"),
    }
}

fn opened(file: FileId) -> ToServer {
    ToServer::Opened { file, caller: Caller::superuser(), access: Access::READ | Access::WRITE }
}

#[test]
fn what_was_written_in_a_folder_is_written_again() {
    for of in [Rights::TRUSTED, Rights::CHECKED] {
        let (before, folder, file) = server();
        let deep = before.world.fs.lookup(&Caller::superuser(), folder, b"deep").unwrap().file;
        let mut a = before.begin_as(1, rights(folder, of));
        a.list(deep);
        a.say(opened(file));
        let written = a.write(file, 0, b"written");
        // Another name, and a file of its own in a directory of its own.
        let moved = a.done(Call::Rename {
            source_parent: deep,
            source_name: b"file".to_vec(),
            target_parent: folder,
            target_name: b"moved".to_vec(),
            if_taken: IfTaken::Replace,
            leave: Leave::Nothing,
        });
        let more = a.write(file, 7, b" more");
        let new = a.done(create(deep, "new"));
        let filled = a.write(made(&new), 0, b"new");
        let server = before.after_crash();
        assert_eq!(content(&server, &["folder", "deep", "file"]), "");
        let a = server.resume_as(1, rights(folder, of));
        a.say(opened(file));
        a.say(opened(made(&new)));
        a.say_again(&[&written, &moved, &more, &new, &filled]);
        a.has_recovered();
        assert!(!a.has_heard_of_failures());
        assert_eq!(content(&server, &["folder", "moved"]), "written more");
        assert_eq!(content(&server, &["folder", "deep", "new"]), "new");
        // What it has open stays so.
        let mut a = a;
        a.write(made(&new), 3, b"er");
        assert_eq!(content(&server, &["folder", "deep", "new"]), "newer");
        let after = server.world.after_crash(OpenMode::ReadOnly);
        assert!(after.fs.lookup(&Caller::superuser(), folder, b"moved").is_ok(), "durable");
    }
}

#[test]
fn what_another_client_makes_again_in_a_folder_is_found() {
    let (before, folder, _) = server();
    let (mut a, mut b) = (before.begin_as(1, rights(folder, Rights::TRUSTED)), {
        before.begin_as(2, Rights::TRUSTED)
    });
    let new = b.done(create(folder, "new"));
    a.list(folder);
    a.say(opened(made(&new)));
    let filled = a.write(made(&new), 0, b"filled");
    let server = before.after_crash();
    let (a, b) = (server.resume_as(1, rights(folder, Rights::TRUSTED)), {
        server.resume_as(2, Rights::TRUSTED)
    });
    a.say(opened(made(&new)));
    a.say_again(&[&filled]);
    a.has_recovered();
    b.say_again(&[&new]);
    b.has_recovered();
    assert!(!a.has_heard_of_failures());
    assert_eq!(content(&server, &["folder", "new"]), "filled");
}

#[test]
fn who_uses_a_folder_says_nothing_again_of_what_is_outside() {
    let (before, folder, _) = server();
    let outside = before.world.lookup("outside").unwrap().file;
    let mut whole = before.begin_as(1, Rights::TRUSTED);
    whole.say(opened(outside));
    let written = whole.write(outside, 0, b"changed");
    let new = whole.done(create(before.world.root(), "new"));
    let filled = whole.write(made(&new), 0, b"changed");
    let server = before.after_crash();
    // The same client would now be one of the folder.
    let a = server.resume_as(1, rights(folder, Rights::TRUSTED));
    a.say(opened(outside));
    a.say(opened(made(&new)));
    a.say_again(&[&written, &new, &filled]);
    a.has_recovered();
    assert!(a.has_heard_of_failures());
    assert_eq!(content(&server, &["outside"]), "outside");
    assert!(server.world.lookup("new").is_err());
}
