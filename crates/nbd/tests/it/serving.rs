//! Our client and our server with each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{Disk, DiskRequest, Durability, MemDisk};
use gabion_base::ids::BlockAddr;
use gabion_nbd::address::{Address, Uri};
use gabion_nbd::client::{Client, ClientOptions, OpenError};
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server, Stopped};

use crate::world::{Folder, Volatile, assert_pattern, pattern};

fn open(uri: &Uri) -> Client {
    Client::open(uri, ClientOptions::default()).unwrap()
}

#[test]
fn an_export_is_a_disk() {
    let folder = Folder::new();
    let disk = Volatile::new(64);
    let _server = folder.serve(disk.clone(), Permission::ReadWrite);
    let client = open(&folder.uri("disk"));
    assert_eq!((client.blocks(), client.is_read_only()), (64, false));
    let parts = vec![pattern(3, 2, 1), pattern(5, 1, 1)];
    let write = DiskRequest::Write { addr: BlockAddr(3), parts, durability: Durability::Cached };
    client.submit(write).wait().unwrap();
    assert_pattern(&client, 3, 3, 1);
    assert!(disk.stable().iter().all(|byte| *byte == 0), "nothing was flushed yet");
    client.flush().unwrap();
    assert!(disk.stable()[3 * 4096..6 * 4096].iter().any(|byte| *byte != 0));
    client.write(BlockAddr(9), pattern(9, 1, 2), Durability::Fua).unwrap();
    assert_eq!(disk.stable()[9 * 4096..10 * 4096], *pattern(9, 1, 2).bytes());
    let zeroes = DiskRequest::WriteZeroes { addr: BlockAddr(4), count: 1 };
    client.submit(zeroes).wait().unwrap();
    let mut read = [1; 4096];
    client.read(BlockAddr(4), &mut read).unwrap();
    assert_eq!(read, [0; 4096]);
    client.submit(DiskRequest::Discard { addr: BlockAddr(0), count: 2 }).wait().unwrap();
    assert!(client.read(BlockAddr(64), &mut read).is_err());
}

#[test]
fn many_requests_are_in_flight_over_tcp_of_both_families() {
    for host in ["127.0.0.1", "::1"] {
        let disk = Arc::new(MemDisk::new(4096));
        let exports = Exports::new(vec![
            Export::new("other", Arc::new(MemDisk::new(1)), Permission::ReadOnly),
            Export::new("disk", disk, Permission::ReadWrite),
        ]);
        let listener = Listener::bind(&Address::Tcp { host: host.to_owned(), port: 0 });
        let listener = listener.unwrap();
        let address = listener.address().unwrap();
        let server = Server::start(exports, vec![listener]).unwrap();
        let client = open(&Uri { address, export: "disk".to_owned(), tls: None });
        let tickets: Vec<_> = (0..512)
            .map(|at| {
                let parts = vec![pattern(at * 8, 8, 7)];
                let (addr, durability) = (BlockAddr(at * 8), Durability::Cached);
                client.submit(DiskRequest::Write { addr, parts, durability })
            })
            .collect();
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        assert_pattern(&client, 0, 4096, 7);
        drop(client);
        assert_eq!(server.stop(Duration::from_secs(5)), Stopped::Clean);
    }
}

#[test]
fn requests_larger_than_the_protocol_allows_are_cut() {
    let folder = Folder::new();
    let blocks = (40 << 20) / 4096;
    let _server = folder.serve(Arc::new(MemDisk::new(blocks)), Permission::ReadWrite);
    let client = open(&folder.uri("disk"));
    let all = pattern(0, blocks as usize, 5);
    client.write(BlockAddr(0), all, Durability::Cached).unwrap();
    assert_pattern(&client, 0, blocks as usize, 5);
}

#[test]
fn a_read_only_export_refuses_to_be_written() {
    let folder = Folder::new();
    let _server = folder.serve(Arc::new(MemDisk::new(8)), Permission::ReadOnly);
    let client = open(&folder.uri("disk"));
    assert!(client.is_read_only());
    let error = client.write(BlockAddr(1), pattern(1, 1, 1), Durability::Cached).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("write of nbd+unix:///disk") && text.contains("block 1"), "{text}");
    assert!(text.contains("read-only"), "{text}");
    client.flush().unwrap();
}

#[test]
fn what_is_not_there_is_said_when_it_is_opened() {
    let folder = Folder::new();
    let options = ClientOptions::default();
    let error = Client::open(&folder.uri("disk"), options.clone()).unwrap_err();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    let _server = folder.serve(Arc::new(MemDisk::new(8)), Permission::ReadOnly);
    let error = Client::open(&folder.uri("nothing"), options).unwrap_err().to_string();
    assert!(error.contains("no such export") && error.contains("/nothing"), "{error}");
    // There is one export, which is the default then.
    assert_eq!(open(&folder.uri("")).blocks(), 8);
}

#[test]
fn clients_that_write_to_parts_of_one_block_do_not_undo_each_other() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(1));
    let _server = folder.serve(disk.clone(), Permission::ReadWrite);
    let uri = folder.uri("disk").to_string();
    // 32 connections write 128 bytes each, with libnbd's own program.
    std::thread::scope(|scope| {
        for part in 0..32_u32 {
            let uri = &uri;
            scope.spawn(move || {
                let write = format!("write -P {} {} 128", part + 1, part * 128);
                let mut program = std::process::Command::new("qemu-io");
                program.args(["-f", "raw", uri, "-c", &write]);
                let output = program.output().unwrap();
                assert!(output.status.success(), "{output:?}");
            });
        }
    });
    let wanted: Vec<u8> = (0..4096).map(|at| (at / 128 + 1) as u8).collect();
    assert_eq!(disk.image(), wanted);
}

/// A disk that answers nothing until it is told to.
struct Held(std::sync::Mutex<()>);

impl Disk for Held {
    fn name(&self) -> Arc<str> {
        "held".into()
    }

    fn blocks(&self) -> u64 {
        1024
    }

    fn submit(&self, _: DiskRequest) -> gabion_base::disk::Ticket {
        drop(self.0.lock());
        gabion_base::disk::Ticket::ready(Ok(None))
    }
}

#[test]
fn a_server_ends_though_a_disk_does_not_answer() {
    let folder = Folder::new();
    let disk = Arc::new(Held(std::sync::Mutex::new(())));
    let held = disk.0.lock().unwrap();
    let server = folder.serve(disk.clone(), Permission::ReadWrite);
    let options = ClientOptions { deadline: Duration::from_millis(500), ..Default::default() };
    let client = Client::open(&folder.uri("disk"), options).unwrap();
    let parts: Vec<BlockSlice> = vec![pattern(0, 1, 1)];
    let write = DiskRequest::Write { addr: BlockAddr(0), parts, durability: Durability::Cached };
    let ticket = client.submit(write);
    // The request fails by its deadline, and the server does not wait for the disk for ever.
    let error = ticket.wait().unwrap_err().to_string();
    assert!(error.contains("without an answer"), "{error}");
    let start = Instant::now();
    assert_eq!(server.stop(Duration::from_millis(100)), Stopped::CutOff(1));
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(held);
}
