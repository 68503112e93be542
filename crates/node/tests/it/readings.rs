//! Times of reading: what the clients of a server tell it, and what it makes of that.

use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Changes, WriteAt};
use gabion_link::message::{Call, ToServer};
use gabion_map::FileId;
use gabion_node::served::{Changing, Rights};

use crate::rights::Raw;
use crate::shared::{Client, Server, caller};

/// Who asks for it knows what time it is at the server, and that all is done that was told before.
fn sync(client: &Client, file: FileId) {
    client.run(|fs| fs.fsync(file)).unwrap();
}

fn atime(client: &Client, file: FileId) -> Timestamp {
    client.run(|fs| fs.stat(file)).unwrap().atime
}

fn at_server(server: &Server, file: FileId) -> Timestamp {
    server.world.fs.stat(file).unwrap().atime
}

/// A file that is new and written, some time ago.
fn written(server: &Server, client: &Client) -> FileId {
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), b"content");
    sync(client, file);
    server.world.clock.advance(10);
    file
}

#[test]
fn reading_is_told_to_the_server_and_takes_nothing_from_others() {
    let server = Server::new();
    let (a, b, writer) = (server.client(), server.client(), server.client());
    let file = written(&server, &writer);
    let made = atime(&a, file);
    assert_eq!(atime(&b, file), made);
    sync(&a, file);
    assert_eq!(a.read(file, 0, 7), b"content");
    let (first, calls) = a.calls(|a| atime(a, file));
    assert!(first > made && calls == 0, "{first:?}, {calls} calls");
    sync(&a, file);
    assert_eq!(at_server(&server, file), first);
    // It is not told again: what reading costs is the bytes.
    let before = a.messages();
    assert_eq!(a.read(file, 0, 7), b"content");
    assert_eq!(a.messages(), before + 1);
    // Another one has what it had, and reads later.
    assert_eq!(b.calls(|b| atime(b, file)), (made, 0));
    assert!(!b.kernel.attributes.lock().contains(&file));
    server.world.clock.advance(10);
    sync(&b, file);
    b.read(file, 0, 7);
    sync(&b, file);
    let second = atime(&b, file);
    assert!(second > first);
    assert_eq!(at_server(&server, file), second);
    assert_eq!(a.calls(|a| atime(a, file)), (first, 0));
    // Who changes it knows what was before, and reads what is new.
    server.world.clock.advance(10);
    sync(&a, file);
    a.write(file, WriteAt::Offset(0), b"changed");
    a.read(file, 0, 7);
    let changes = Changes { permissions: Some(0o600), ..Changes::default() };
    a.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
    sync(&a, file);
    let (here, there) = (a.run(|fs| fs.stat(file)).unwrap(), server.world.fs.stat(file).unwrap());
    assert_eq!((here.atime, here.mtime, here.ctime), (there.atime, there.mtime, there.ctime));
    assert!(here.atime > second && here.mode & 0o777 == 0o600);
}

#[test]
fn where_nothing_may_be_changed_no_reading_is_recorded() {
    let server = Server::new();
    let writer = server.client();
    let file = written(&server, &writer);
    let made = at_server(&server, file);
    let refused = server.client_with(Rights { changing: Changing::Refused, ..Rights::TRUSTED });
    sync(&refused, file);
    refused.read(file, 0, 7);
    sync(&refused, file);
    assert_eq!(at_server(&server, file), made);

    let map = server.world.fs.map();
    let snapshot = map.create_snapshot(server.world.root().subvol, b"one", 0).unwrap();
    server.world.fs.clone_snapshot(snapshot, b"copy").unwrap();
    let client = server.client();
    let in_dir = |dir, name: &[u8]| client.run(|fs| fs.lookup(&caller(), dir, name)).unwrap().file;
    let snapshots = client.lookup(".snapshots").unwrap();
    let frozen = in_dir(in_dir(snapshots, b"one"), b"file");
    let living = in_dir(client.lookup("copy").unwrap(), b"file");
    let wanted = [(frozen, false), (living, true), (file, true)];
    for (file, is_recorded) in wanted {
        assert_eq!(atime(&client, file), made);
        assert_eq!(client.read(file, 0, 7), b"content");
        sync(&client, file);
        assert_eq!(atime(&client, file) > made, is_recorded, "{file:?}");
        assert_eq!(at_server(&server, file) > made, is_recorded, "{file:?}");
    }
}

#[test]
fn nobody_records_a_reading_of_what_he_may_not_read() {
    let server = Server::new();
    let writer = server.client();
    let file = written(&server, &writer);
    let made = at_server(&server, file);
    let user = Caller { uid: 1000, gid: 1000, ..Caller::superuser() };
    let mode = |permissions| {
        let changes = Changes { permissions: Some(permissions), ..Changes::default() };
        server.world.fs.setattr(&Caller::superuser(), file, &changes).unwrap();
    };
    let claim = |raw: &Raw<'_>, at| {
        let accessed = ToServer::Accessed { file, caller: user.clone(), at };
        server.served.receive(&raw.session, accessed);
        raw.ask(&user, Call::Sync { file: None }).unwrap();
        at_server(&server, file)
    };
    let raw = Raw::new(&server, 1, Rights::CHECKED);
    mode(0o640);
    let now = server.served.now();
    assert_eq!(claim(&raw, now), made);
    mode(0o644);
    assert_eq!(claim(&raw, now), now);
    // Nor is a time believed that has not come.
    let future = Timestamp::new(i64::MAX, 0);
    assert_eq!(claim(&raw, future), now);
}
