//! Objects that go between the moment in which the kernel finds them by name and the moment in
//! which it opens them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use gabion_fs::{Access, Attributes, Error, OpenRequest, WriteAt};
use gabion_link::message::{ChangeNumber, ToClient};
use gabion_map::FileId;

use crate::shared::{Client, Server, caller};

fn open(client: &Client, file: FileId) -> Result<Attributes, Error> {
    let request = OpenRequest { access: Access::READ, truncate: None };
    client.run(|fs| fs.open_file(&caller(), file, &request))
}

fn make(client: &Client, content: &[u8]) -> FileId {
    let file = client.create("file");
    client.write(file, WriteAt::Offset(0), content);
    client.fs.release(file);
    file
}

fn unlink(client: &Client) {
    client.run(|fs| fs.unlink(&caller(), client.root, b"file")).unwrap();
}

/// Sets a flag at the end, also if that comes early.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// How many times more rounds are made until an opening has come in between.
const MORE: usize = 100;

/// One thread makes and removes a file, until it was opened; another opens it as often as it can.
fn open_while_it_is_removed(client: &Client, rounds: usize) {
    let (is_done, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _end = AtEnd(&is_done);
            for round in 0..MORE * rounds {
                if round >= rounds && opened.load(Ordering::Acquire) > 0 {
                    break;
                }
                make(client, b"content");
                unlink(client);
            }
        });
        while !is_done.load(Ordering::Acquire) {
            let Ok(file) = client.lookup("file") else { continue };
            if open(client, file).is_ok() {
                let mut bytes = [0; 10];
                let read = client.run(|fs| fs.read_now(&caller(), file, 0, &mut bytes));
                assert!(read.is_ok(), "{read:?} after {opened:?}");
                client.fs.release(file);
                opened.fetch_add(1, Ordering::AcqRel);
            }
        }
    });
    assert!(opened.into_inner() > 0);
}

#[test]
fn what_was_opened_is_there_though_the_same_client_removes_its_name() {
    let server = Server::new();
    open_while_it_is_removed(&server.client(), 1000);
}

#[test]
fn what_was_opened_is_there_though_the_server_removes_its_name_for_the_same_client() {
    let server = Server::new();
    let client = server.client();
    // From now on the server makes the changes.
    let (number, extents) = (ChangeNumber(0), Vec::new());
    client.fs.receive(ToClient::Applied { number, extents, credit: 0 });
    open_while_it_is_removed(&client, 200);
}

#[test]
fn who_comes_too_late_once_opens_what_is_found_next() {
    let server = Server::new();
    let client = server.client();
    let first = make(&client, b"first");
    assert_eq!(client.lookup("file").unwrap(), first);
    unlink(&client);
    assert!(matches!(open(&client, first), Err(Error::Stale)));
    // The kernel looks again, once, and tells the program if it comes too late again.
    let second = make(&client, b"second");
    assert_eq!(client.lookup("file").unwrap(), second);
    unlink(&client);
    open(&client, second).unwrap();
    let mut bytes = [0; 10];
    let count = client.run(|fs| fs.read_now(&caller(), second, 0, &mut bytes)).unwrap();
    assert_eq!(bytes[..count], *b"second");
    client.fs.release(second);
    // It is not kept for ever.
    client.clock.advance(10);
    client.fs.ping();
    client.run(|fs| fs.syncfs()).unwrap();
    server.world.reap();
    assert!(matches!(server.world.fs.stat(second), Err(Error::Stale)));
}

#[test]
fn what_its_last_user_has_just_closed_is_opened_whole_or_not_at_all() {
    let server = Server::new();
    let client = server.client();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        // As the server does in the background.
        scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                server.world.fs.reap_step().unwrap();
            }
        });
        let _end = AtEnd(&is_done);
        for _ in 0..400 {
            let file = make(&client, b"content");
            open(&client, file).unwrap();
            unlink(&client);
            client.fs.release(file);
            if open(&client, file).is_ok() {
                let mut bytes = [0; 10];
                let read = client.run(|fs| fs.read_now(&caller(), file, 0, &mut bytes));
                assert!(read.is_ok(), "{read:?}");
                client.fs.release(file);
            }
        }
    });
}
