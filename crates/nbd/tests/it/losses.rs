//! Servers that die, come back, fall silent or talk nonsense while a client uses them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::disk::{Disk, DiskRequest, Durability};
use gabion_base::ids::BlockAddr;
use gabion_nbd::client::{Client, ClientOptions};
use gabion_nbd::server::Permission;
use rustix::process::Signal;

use crate::world::{Folder, Foreign, Growing, Volatile, assert_pattern, pattern};

fn with_deadline(milliseconds: u64) -> ClientOptions {
    ClientOptions { deadline: Duration::from_millis(milliseconds), ..ClientOptions::default() }
}

#[test]
fn writes_complete_though_the_server_is_killed_and_started_again() {
    let folder = Folder::new();
    fs::File::create(folder.join("image")).unwrap().set_len(16 << 20).unwrap();
    let start = || Foreign::nbdkit(&folder, &["file", "image"]);
    let mut server = start();
    let client = Client::open(&folder.uri(""), ClientOptions::default()).unwrap();
    let mut tickets = Vec::new();
    for at in 0..1024 {
        if at % 256 == 100 {
            server.signal(Signal::KILL);
        }
        let parts = vec![pattern(at * 4, 4, 3)];
        let write =
            DiskRequest::Write { addr: BlockAddr(at * 4), parts, durability: Durability::Cached };
        tickets.push(client.submit(write));
        if at % 256 == 200 {
            fs::remove_file(folder.join("socket")).unwrap();
            server = start();
        }
    }
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    client.flush().unwrap();
    assert_pattern(&client, 0, 4096, 3);
    drop((client, server));
    let image = fs::read(folder.join("image")).unwrap();
    assert!(image == pattern(0, 4096, 3).bytes());
}

#[test]
fn an_export_that_became_longer_can_be_used_up_to_its_new_end() {
    let folder = Folder::new();
    let disk = Growing::new(1024, 1536);
    let _server = folder.serve(disk.clone(), Permission::ReadWrite);
    let client = Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap();
    assert_eq!((client.remeasure().unwrap(), client.blocks()), (1024, 1024));
    client.write(BlockAddr(1), pattern(1, 2, 1), Durability::Cached).unwrap();
    disk.grow();
    assert_eq!(client.blocks(), 1024, "nobody has looked");
    let reads: Vec<_> = (0..64)
        .map(|at| client.submit(DiskRequest::Read { addr: BlockAddr(at * 16), count: 16 }))
        .collect();
    assert_eq!((client.remeasure().unwrap(), client.blocks()), (1536, 1536));
    reads.into_iter().for_each(|read| drop(read.wait().unwrap()));
    client.write(BlockAddr(1534), pattern(1534, 2, 2), Durability::Cached).unwrap();
    client.flush().unwrap();
    assert_pattern(&client, 1, 2, 1);
    assert_pattern(&client, 1534, 2, 2);
}

#[test]
fn a_foreign_server_that_comes_back_longer_is_used_up_to_its_new_end() {
    let folder = Folder::new();
    let file = fs::File::create(folder.join("image")).unwrap();
    file.set_len(4 << 20).unwrap();
    let server = Foreign::nbdkit(&folder, &["file", "image"]);
    let client = Client::open(&folder.uri(""), ClientOptions::default()).unwrap();
    client.write(BlockAddr(7), pattern(7, 1, 1), Durability::Cached).unwrap();
    file.set_len(6 << 20).unwrap();
    server.signal(Signal::KILL);
    fs::remove_file(folder.join("socket")).unwrap();
    let _server = Foreign::nbdkit(&folder, &["file", "image"]);
    client.flush().unwrap();
    assert_eq!(client.blocks(), 1536);
    assert_pattern(&client, 7, 1, 1);
    client.write(BlockAddr(1535), pattern(1535, 1, 2), Durability::Fua).unwrap();
}

#[test]
fn a_flush_covers_writes_that_a_power_cut_took_from_the_server() {
    let folder = Folder::new();
    let disk = Volatile::new(64);
    let server = folder.serve(disk.clone(), Permission::ReadWrite);
    let client = Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap();
    client.write(BlockAddr(1), pattern(1, 2, 1), Durability::Cached).unwrap();
    client.flush().unwrap();
    client.write(BlockAddr(2), pattern(2, 2, 2), Durability::Cached).unwrap();
    client.write(BlockAddr(3), pattern(3, 1, 3), Durability::Fua).unwrap();
    client.submit(DiskRequest::WriteZeroes { addr: BlockAddr(1), count: 1 }).wait().unwrap();
    server.stop(Duration::from_secs(5));
    disk.cut_power();
    assert_eq!(disk.stable()[4096..8192], *pattern(1, 1, 1).bytes());
    let _server = folder.serve(disk.clone(), Permission::ReadWrite);
    client.flush().unwrap();
    let stable = disk.stable();
    assert!(stable[4096..8192].iter().all(|byte| *byte == 0), "the zeros");
    assert_eq!(stable[8192..12288], *pattern(2, 1, 2).bytes(), "the write that was not flushed");
    assert_eq!(stable[12288..16384], *pattern(3, 1, 3).bytes(), "the newest write to its block");
}

#[test]
fn the_client_flushes_before_it_keeps_too_much() {
    let folder = Folder::new();
    let disk = Volatile::new(1024);
    let _server = folder.serve(disk.clone(), Permission::ReadWrite);
    let client = Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap();
    for round in 0..40 {
        client.write(BlockAddr(0), pattern(0, 1024, round), Durability::Cached).unwrap();
    }
    assert!(disk.flushes() >= 2, "{} flushes", disk.flushes());
    assert_pattern(&client, 0, 1024, 39);
}

#[test]
fn requests_to_a_stopped_server_fail_within_their_deadline() {
    let folder = Folder::new();
    let server = Foreign::nbdkit(&folder, &["memory", "64M"]);
    let client = Client::open(&folder.uri(""), with_deadline(700)).unwrap();
    server.signal(Signal::STOP);
    let start = Instant::now();
    // More than the socket takes, so that sending has to wait as well.
    let writes: Vec<_> = (0..4)
        .map(|at| {
            let (addr, durability) = (BlockAddr(at * 1024), Durability::Cached);
            let parts = vec![pattern(at * 1024, 1024, 1)];
            client.submit(DiskRequest::Write { addr, parts, durability })
        })
        .collect();
    let read = client.submit(DiskRequest::Read { addr: BlockAddr(0), count: 1 });
    let flush = client.submit(DiskRequest::Flush);
    for ticket in writes.into_iter().chain([read, flush]) {
        let error = ticket.wait().unwrap_err().to_string();
        assert!(error.contains("nbd+unix:///") && error.contains("answer"), "{error}");
    }
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    server.signal(Signal::CONT);
    // It is used again as soon as it answers.
    let again = Instant::now() + Duration::from_secs(20);
    while client.write(BlockAddr(0), pattern(0, 1, 2), Durability::Fua).is_err() {
        assert!(Instant::now() < again, "the server is back, and not used");
    }
    assert_pattern(&client, 0, 1, 2);
}

#[test]
fn a_server_that_is_gone_is_named_in_the_error() {
    let folder = Folder::new();
    let server = folder.serve(Volatile::new(8), Permission::ReadWrite);
    let client = Client::open(&folder.uri("disk"), with_deadline(300)).unwrap();
    server.stop(Duration::from_secs(1));
    let error = client.flush().unwrap_err().to_string();
    assert!(error.contains("flush of nbd+unix:///disk"), "{error}");
    assert!(error.contains("no connection for"), "{error}");
}

#[test]
fn requests_do_not_wait_for_a_server_that_is_gone_for_too_long() {
    let folder = Folder::new();
    let disk = Volatile::new(8);
    let server = folder.serve(disk.clone(), Permission::ReadWrite);
    // The deadline is far away.
    let (deadline, lost_patience) = (Duration::from_secs(600), Duration::from_millis(300));
    let options = ClientOptions { deadline, lost_patience, epoch: None };
    let client = Client::open(&folder.uri("disk"), options).unwrap();
    // From before the loss: a busy machine may come here when half of the time is over.
    let start = Instant::now();
    server.stop(Duration::from_secs(1));
    let both = [client.submit(DiskRequest::Flush), client.submit(DiskRequest::Flush)];
    for ticket in both {
        let error = ticket.wait().unwrap_err().to_string();
        assert!(error.contains("no connection for"), "{error}");
    }
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(100), "{waited:?}");
    assert!(client.flush().is_err(), "nothing has changed");
    assert!(start.elapsed() < Duration::from_secs(60));
    let _server = folder.serve(disk, Permission::ReadWrite);
    // It is used again as soon as it is there.
    let again = Instant::now() + Duration::from_secs(20);
    while client.write(BlockAddr(0), pattern(0, 1, 2), Durability::Fua).is_err() {
        assert!(Instant::now() < again, "the server is back, and not used");
    }
    assert_pattern(&client, 0, 1, 2);
}

#[test]
fn a_server_that_talks_nonsense_is_found_out() {
    let folder = Folder::new();
    let real = folder.serve(Volatile::new(8), Permission::ReadWrite);
    let client = Client::open(&folder.uri("disk"), with_deadline(400)).unwrap();
    real.stop(Duration::from_secs(1));
    let listener = UnixListener::bind(folder.join("socket")).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.read(&mut [0; 64]);
        }
    });
    let mut block = [0; 4096];
    let error = client.read(BlockAddr(0), &mut block).unwrap_err().to_string();
    assert!(error.contains("no NBD server"), "{error}");
}

#[test]
fn a_client_that_is_dropped_leaves_nobody_waiting() {
    let folder = Folder::new();
    let server = Foreign::nbdkit(&folder, &["memory", "1M"]);
    let client = Client::open(&folder.uri(""), ClientOptions::default()).unwrap();
    server.signal(Signal::STOP);
    let ticket = client.submit(DiskRequest::Flush);
    drop(client);
    assert!(ticket.wait().unwrap_err().to_string().contains("closed"));
}
