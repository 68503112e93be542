//! Clients of a server whose disk becomes full.

use gabion_fs::{Error, Privileges, SizeRule, SpaceRequest, WriteAt};
use gabion_map::{FileId, MapError, Stop};

use crate::shared::{Client, Server, await_that, caller};

const BLOCK: u64 = 4096;

/// Sets space aside for a file from `offset` on, as long as there is some. Where that ends.
fn fill(client: &Client, file: FileId, mut offset: u64) -> u64 {
    for length in (0..12).rev().map(|bits| BLOCK << bits) {
        loop {
            let request = SpaceRequest::Allocate(SizeRule::Extend);
            let keep = Privileges::Keep;
            let fill = |it: &gabion_node::remote::RemoteFs| {
                it.fallocate(&caller(), file, request, offset, length, keep)
            };
            match client.run(fill) {
                Ok(()) => offset += length,
                Err(Error::Stop(Stop::Map(MapError::NoSpace))) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    offset
}

fn empty(client: &Client, file: FileId) {
    let size = Some((0, Privileges::Keep));
    let changes = gabion_fs::Changes { size, ..gabion_fs::Changes::default() };
    client.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
}

#[test]
fn a_client_that_was_idle_while_others_filled_the_disk_loses_nothing_that_it_answers() {
    let server = Server::new();
    let (idle, other) = (server.client(), server.client());
    let file = idle.create("file");
    idle.write(file, WriteAt::Offset(0), b"before");
    idle.run(|fs| fs.syncfs()).unwrap();
    let hog = other.create("hog");
    fill(&other, hog, 0);
    // What is answered here finds room, and what finds none is not answered.
    let mut written = 0;
    loop {
        let payload = gabion_map::Payload::Copied(&[7; BLOCK as usize]);
        let at = WriteAt::Offset(written);
        match idle.run(|fs| fs.write(&caller(), file, at, &payload, Privileges::Keep)) {
            Ok(_) => written += BLOCK,
            Err(Error::Stop(Stop::Map(MapError::NoSpace))) => break,
            Err(error) => panic!("{error}"),
        }
    }
    idle.run(|fs| fs.fsync(file)).unwrap();
    assert_eq!(other.size(file), written.max(6));
}

#[test]
fn a_disk_is_full_when_nothing_is_left_though_clients_were_promised_some() {
    let server = Server::new();
    let left = || server.world.fs.map().space().available;
    let (_idle, other) = (server.client(), server.client());
    assert!(server.world.fs.map().pledged() > 0, "nothing is promised");
    fill(&other, other.create("hog"), 0);
    assert!(left() < 100, "{} blocks are left", left());
}

#[test]
fn a_client_changes_things_by_itself_again_when_there_is_room_again() {
    let server = Server::new();
    let (client, other) = (server.client(), server.client());
    let changes = |name: &str| client.calls(|client| client.fs.release(client.create(name))).1 == 0;
    client.create("first");
    assert!(changes("second"));
    let hog = other.create("hog");
    fill(&other, hog, 0);
    empty(&other, hog);
    other.run(|fs| fs.syncfs()).unwrap();
    let mut number = 0;
    await_that(|| {
        number += 1;
        server.served.settle_round().unwrap();
        changes(&format!("third {number}"))
    });
}
