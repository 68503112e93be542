//! Sessions that are about a folder, and what is outside of it.

use gabion_base::ids::SubvolId;
use gabion_fs::create::Linkable;
use gabion_fs::lock::{LockClass, Strength};
use gabion_fs::{
    Access, Changes, Detail, Error, FileType, IfExists, IfTaken, Leave, OpenRequest, Privileges,
    RenameRequest, Result, WriteAt,
};
use gabion_link::errand::Errand;
use gabion_link::message::{Answer, Call};
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Payload};
use gabion_node::served::Rights;

use crate::rights::{Raw, file, mkdir, user};
use crate::shared::Server;

/// Two folders with a file each.
struct Folders {
    server: Server,
    inside: FileId,
    outside: FileId,
    /// A file in the first, and one in the second.
    mine: FileId,
    theirs: FileId,
}

const NAME: &[u8] = b"file of 0 666";

impl Folders {
    fn new() -> Self {
        let server = Server::new();
        let [inside, outside] = ["inside", "outside"].map(|name| mkdir(&server, name, 0o777));
        let [mine, theirs] = [inside, outside].map(|dir| file(&server, dir, 0, 0o666));
        Self { server, inside, outside, mine, theirs }
    }

    fn rights(&self) -> Rights {
        Rights { root: self.inside.ino, ..Rights::CHECKED }
    }
}

fn rename<'a>(from: (FileId, &'a [u8]), to: (FileId, &'a [u8])) -> Call {
    Call::Rename {
        source_parent: from.0,
        source_name: from.1.to_vec(),
        target_parent: to.0,
        target_name: to.1.to_vec(),
        if_taken: IfTaken::Replace,
        leave: Leave::Nothing,
    }
}

#[track_caller]
fn unknown<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::Stale)), "{result:?}");
}

#[test]
fn a_session_of_a_folder_uses_nothing_outside_of_it() {
    let folders = Folders::new();
    let Folders { server, inside, outside, mine, theirs } = &folders;
    let raw = Raw::new(server, 1, folders.rights());
    let root = user(0);
    let name = || b"name".to_vec();
    let mut change = 0;
    for object in [*theirs, *outside, server.world.root()] {
        unknown(raw.names(&root, KeyRange::attributes(object)));
        unknown(raw.names(&root, KeyRange::names(object)));
        raw.open(&root, object, Access::READ | Access::WRITE);
        unknown(raw.read(&root, object));
        unknown(raw.write(&root, object));
        unknown(raw.lock(&root, object, LockClass::Flock, Strength::Shared));
        unknown(raw.ask(&root, Call::Setattr { file: object, changes: Changes::default() }));
        unknown(raw.ask(&root, Call::Link { file: object, parent: *inside, name: name() }));
        let parent = object;
        unknown(raw.ask(&root, Call::Mkdir { parent, name: name(), permissions: 0o700 }));
        unknown(raw.ask(&root, Call::Unlink { parent, name: NAME.to_vec() }));
        unknown(raw.ask(&root, rename((parent, NAME), (*inside, b"name"))));
        unknown(raw.ask(&root, rename((*inside, NAME), (parent, b"name"))));
        unknown(raw.ask(&root, Call::Sync { file: Some(object) }));
        // Nor what it says that it has done already.
        change += 1;
        unknown(raw.change(change, &root, Call::Unlink { parent, name: NAME.to_vec() }));
    }
    // What is inside it knows by its name only.
    unknown(raw.read(&root, *mine));
    raw.names(&root, KeyRange::names(*inside)).unwrap();
    assert_eq!(raw.read(&root, *mine).unwrap(), Answer::Bytes(b"content".to_vec()));
    let deep = Call::Mkdir { parent: *inside, name: name(), permissions: 0o777 };
    let Answer::Object(deep) = raw.ask(&root, deep).unwrap() else { panic!() };
    let made = file(server, deep.file, 0, 0o644);
    raw.names(&root, KeyRange::names(deep.file)).unwrap();
    raw.read(&root, made).unwrap();
    // Another name of what is outside is inside.
    server.world.fs.link(&root, *theirs, deep.file, b"link").unwrap();
    unknown(raw.read(&root, *theirs));
    raw.names(&root, KeyRange::names(deep.file)).unwrap();
    raw.read(&root, *theirs).unwrap();
}

#[test]
fn what_is_moved_out_of_a_folder_is_out_of_reach() {
    let folders = Folders::new();
    let Folders { server, inside, outside, mine, .. } = &folders;
    let root = user(0);
    let (raw, whole) =
        (Raw::new(server, 1, folders.rights()), Raw::new(server, 2, Rights::CHECKED));
    let made = |parent: FileId| {
        let call = Call::Mkdir { parent, name: b"dir".to_vec(), permissions: 0o777 };
        let Answer::Object(made) = whole.ask(&root, call).unwrap() else { panic!() };
        made.file
    };
    let dir = made(*inside);
    let deep = made(dir);
    let below = file(server, deep, 0, 0o666);
    let opened = file(server, deep, 0, 0o644);
    for dir in [*inside, dir, deep] {
        raw.names(&root, KeyRange::names(dir)).unwrap();
    }
    raw.open(&root, opened, Access::READ);
    for file in [*mine, below, opened] {
        raw.read(&root, file).unwrap();
    }
    // Inside it may go where it likes.
    whole.ask(&root, rename((*inside, NAME), (deep, b"moved"))).unwrap();
    unknown(raw.read(&root, *mine));
    raw.names(&root, KeyRange::names(deep)).unwrap();
    raw.read(&root, *mine).unwrap();

    whole.ask(&root, rename((*inside, b"dir"), (*outside, b"dir"))).unwrap();
    unknown(raw.names(&root, KeyRange::names(dir)));
    unknown(raw.names(&root, KeyRange::names(deep)));
    unknown(raw.read(&root, *mine));
    unknown(raw.read(&root, below));
    // What is open stays open.
    raw.read(&root, opened).unwrap();
    whole.ask(&root, rename((*outside, b"dir"), (*inside, b"dir"))).unwrap();
    raw.names(&root, KeyRange::names(deep)).unwrap();
    raw.read(&root, below).unwrap();
    whole.ask(&root, Call::Unlink { parent: deep, name: NAME.to_vec() }).unwrap();
    unknown(raw.read(&root, below));
}

#[test]
fn a_folder_is_used_as_if_it_were_all() {
    let folders = Folders::new();
    let client = folders.server.client_with(folders.rights());
    let by = user(1000);
    let root = client.fs.root();
    assert_eq!(root, folders.inside);
    assert_eq!(client.fs.file(gabion_fs::ROOT), root);
    let names = |dir: FileId| {
        let listing = client.run(|fs| fs.readdir(&by, dir, 2, 100, Detail::Attributes)).unwrap();
        let name = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        listing.entries.iter().map(|entry| name(entry.name())).collect::<Vec<_>>()
    };
    assert_eq!(names(root), ["file of 0 666"]);
    let dir = client.run(|fs| fs.mkdir(&by, root, b"dir", 0o755)).unwrap().file;
    let request = OpenRequest { access: Access::WRITE, truncate: None };
    let how = IfExists::Fail;
    let made = client.run(|fs| fs.create(&by, dir, b"file", 0o600, how, &request)).unwrap();
    let (file, payload) = (made.0.file, Payload::Copied(b"line"));
    client.run(|fs| fs.write(&by, file, WriteAt::End, &payload, Privileges::Clear)).unwrap();
    client.run(|fs| fs.release(file));
    let moved = RenameRequest {
        source_parent: dir,
        source_name: b"file",
        target_parent: root,
        target_name: b"moved",
        if_taken: IfTaken::Replace,
        leave: Leave::Nothing,
    };
    client.run(|fs| fs.rename(&by, &moved)).unwrap();
    client.run(|fs| fs.link(&by, file, dir, b"second")).unwrap();
    client.run(|fs| fs.unlink(&by, root, b"moved")).unwrap();
    let mut bytes = [0; 10];
    client.run(|fs| fs.open_file(&by, file, &OpenRequest::READ)).unwrap();
    assert_eq!(client.run(|fs| fs.read_pages(&by, file, 0, &mut bytes)).unwrap(), 4);
    client.run(|fs| fs.unlink(&by, dir, b"second")).unwrap();
    assert_eq!(client.run(|fs| fs.read_now(&by, file, 0, &mut bytes)).unwrap(), 4);
    let unnamed = client.run(|fs| fs.tmpfile(&by, dir, 0o600, Linkable::Yes)).unwrap().file;
    client.run(|fs| fs.link(&by, unnamed, dir, b"named")).unwrap();
    client.run(|fs| fs.release(unnamed));
    client.run(|fs| fs.open_file(&by, unnamed, &OpenRequest::READ)).unwrap();
    assert_eq!(names(dir), ["named"]);
    assert_eq!(names(root).len(), 2);
}

#[test]
fn a_session_of_a_subvolume_uses_it_and_its_snapshots_and_nothing_else() {
    let server = Server::new();
    let fs = &server.world.fs;
    for path in [&b"mine"[..], b"mine/within", b"other"] {
        fs.create_subvolume(path).unwrap();
    }
    let [mine, within, other] =
        [&b"mine"[..], b"mine/within", b"other"].map(|path| fs.folder(path).unwrap());
    let of = |dir: FileId| fs.mknod(&user(0), dir, NAME, FileType::Regular, 0o666, 0).unwrap().file;
    let [own, theirs, outside] = [mine, other, server.world.root()].map(of);
    let snapshots = [mine, other].map(|dir| fs.map().create_snapshot(dir.subvol, b"one", 0));
    let [seen, hidden] = snapshots.map(|snapshot| FileId::new(snapshot.unwrap(), gabion_fs::ROOT));
    let rights = Rights { subvolume: Some(mine.subvol), ..Rights::CHECKED };
    let raw = Raw::new(&server, 1, rights);
    let root = user(0);
    for object in [mine, own, seen, FileId::new(seen.subvol, own.ino)] {
        raw.names(&root, KeyRange::attributes(object)).unwrap();
    }
    raw.write(&root, own).unwrap();
    for object in [within, other, theirs, outside, server.world.root(), hidden] {
        unknown(raw.names(&root, KeyRange::attributes(object)));
        unknown(raw.read(&root, object));
        unknown(raw.write(&root, object));
        unknown(raw.ask(&root, rename((mine, NAME), (object, b"stolen"))));
    }
    let asked = raw.ask(&root, Call::Run(Errand::Subvolumes { after: SubvolId(0) }));
    assert!(asked.is_err(), "{asked:?}");
}

#[test]
fn who_has_mounted_a_subvolume_makes_files_in_it_without_a_call_for_each() {
    const FILES: usize = 300;
    let server = Server::new();
    for path in [&b"mine"[..], b"mine/within"] {
        server.world.fs.create_subvolume(path).unwrap();
    }
    let mine = server.world.fs.folder(b"mine").unwrap();
    let rights = Rights { subvolume: Some(mine.subvol), ..Rights::TRUSTED };
    let (own, all) = (server.client_with(rights), server.client());
    assert_eq!(own.root, mine);
    let (_, calls) = own.calls(|own| {
        for number in 0..FILES {
            let file = own.create(&format!("file {number}"));
            own.write(file, WriteAt::Offset(0), b"bytes");
        }
    });
    assert!(calls <= 4, "{calls} calls for {FILES} files");
    assert_eq!(all.names(mine).len(), FILES + 1);
    // What stands in it is not told, but that it is something.
    let found = own.lookup("within");
    assert!(matches!(found, Err(Error::CrossSubvolume)), "{found:?}");
    // The server gives no number twice, whoever asks.
    let made = all.run(|fs| fs.mkdir(&user(0), mine, b"by the other", 0o755)).unwrap().file;
    let found = own.lookup("by the other").unwrap();
    assert_eq!(found, made);
    own.run(|fs| fs.fsync(own.root)).unwrap();
    let after = server.world.after_crash(gabion_map::OpenMode::ReadOnly);
    assert_eq!(after.fs.folder(b"mine/by the other").unwrap(), made);
}
