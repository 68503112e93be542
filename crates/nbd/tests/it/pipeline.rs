//! Exports whose disk is elsewhere: small requests in flight without a thread for each.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use gabion_base::batch::Batch;
use gabion_base::buffer::BlockSlice;
use gabion_base::disk::{
    Completion, Disk, DiskError, DiskRequest, DiskResult, Durability, MemDisk, Ticket,
};
use gabion_base::ids::BlockAddr;
use gabion_base::sync::Mutex;
use gabion_nbd::client::{Client, ClientOptions};
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server, Stopped};

use crate::world::{Folder, GLANCE, assert_pattern, exercise, pattern};

/// A server's bound for one client.
const IN_FLIGHT_MAX: usize = 128;
/// A block that cannot be written.
const BAD: u64 = 1000;

/// A disk that answers nothing before so many requests are in flight, and then all of them.
struct Together {
    disk: MemDisk,
    wanted: AtomicUsize,
    held: Mutex<Vec<(Completion, DiskResult)>>,
    most: AtomicUsize,
}

impl Together {
    fn new(wanted: usize) -> Arc<Self> {
        let (disk, most) = (MemDisk::new(1024), AtomicUsize::new(0));
        Arc::new(Self { disk, wanted: AtomicUsize::new(wanted), held: Mutex::default(), most })
    }

    fn let_go(&self) {
        for (completion, result) in std::mem::take(&mut *self.held.lock()) {
            completion.complete(result);
        }
    }
}

impl Disk for Together {
    fn name(&self) -> Arc<str> {
        "together".into()
    }

    fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let is_bad = matches!(request, DiskRequest::Write { addr: BlockAddr(BAD), .. });
        let result = match is_bad {
            true => {
                let source = Arc::new(io::Error::other("a bad sector"));
                let (device, operation, addr) = (self.name(), "write", BlockAddr(BAD));
                Err(DiskError::Io { device, operation, addr, source })
            }
            false => self.disk.submit(request).wait(),
        };
        let (ticket, completion) = Ticket::pair();
        let mut held = self.held.lock();
        held.push((completion, result));
        let count = held.len();
        drop(held);
        self.most.fetch_max(count, Ordering::Relaxed);
        if count >= self.wanted.load(Ordering::Relaxed) {
            self.let_go();
        }
        ticket
    }
}

fn serve(folder: &Folder, disk: Arc<dyn Disk>) -> Server {
    let export = Export::new("disk", disk, Permission::ReadWrite).pipelined();
    let listener = Listener::bind(&folder.address()).unwrap();
    Server::start(Exports::new(vec![export]), vec![listener]).unwrap()
}

fn open(folder: &Folder) -> Arc<Client> {
    Arc::new(Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap())
}

fn write(addr: u64, part: BlockSlice) -> DiskRequest {
    DiskRequest::Write { addr: BlockAddr(addr), parts: vec![part], durability: Durability::Cached }
}

#[test]
fn many_small_requests_are_in_flight_at_once_and_each_has_its_answer() {
    let folder = Folder::new();
    let disk = Together::new(64);
    let server = serve(&folder, disk.clone());
    let client = open(&folder);
    let batch = Batch::begin();
    let writes: Vec<_> = (0..64).map(|at| client.submit(write(at, pattern(at, 1, 5)))).collect();
    drop(batch);
    writes.into_iter().for_each(|write| drop(write.wait().unwrap()));
    let reads: Vec<_> = (0..64)
        .map(|at| client.submit(DiskRequest::Read { addr: BlockAddr(at), count: 1 }))
        .collect();
    for (at, read) in (0..).zip(reads) {
        let blocks = read.wait().unwrap().expect("a read gives blocks");
        assert!(blocks.bytes() == pattern(at, 1, 5).bytes(), "block {at}");
    }
    disk.wanted.store(1, Ordering::Relaxed);
    let error = client.submit(write(BAD, pattern(BAD, 1, 5))).wait().unwrap_err().to_string();
    assert!(error.contains("a bad sector"), "{error}");
    client.flush().unwrap();
    exercise(&client);
    drop(client);
    assert_eq!(server.stop(Duration::from_secs(5)), Stopped::Clean);
}

#[test]
fn what_one_client_has_in_flight_is_bounded() {
    let folder = Folder::new();
    let disk = Together::new(usize::MAX);
    let _server = serve(&folder, disk.clone());
    let client = open(&folder);
    thread::scope(|scope| {
        // What the server does not read fills the socket, so that the client waits.
        let answered = scope.spawn(|| {
            let write = |at| client.submit(write(at, pattern(at, 1, 6)));
            let tickets: Vec<_> = (0..400).map(write).collect();
            tickets.into_iter().for_each(|ticket| drop(ticket.wait().unwrap()));
        });
        while !answered.is_finished() {
            let count = disk.held.lock().len();
            if count >= IN_FLIGHT_MAX || disk.most.load(Ordering::Relaxed) >= IN_FLIGHT_MAX {
                disk.let_go();
            }
            thread::yield_now();
        }
    });
    assert_eq!(disk.most.load(Ordering::Relaxed), IN_FLIGHT_MAX);
    disk.wanted.store(1, Ordering::Relaxed);
    assert_pattern(&*client, 0, 400, 6);
}

#[test]
fn a_server_that_ends_answers_what_is_in_flight() {
    let folder = Folder::new();
    let disk = Together::new(usize::MAX);
    let server = serve(&folder, disk.clone());
    let client = open(&folder);
    let tickets: Vec<_> = (0..8).map(|at| client.submit(write(at, pattern(at, 1, 7)))).collect();
    while disk.held.lock().len() < 8 {
        thread::sleep(GLANCE);
    }
    let stopped = thread::spawn(move || server.stop(Duration::from_secs(20)));
    disk.let_go();
    tickets.into_iter().for_each(|ticket| drop(ticket.wait().unwrap()));
    assert_eq!(stopped.join().unwrap(), Stopped::Clean);
}

#[test]
fn parts_of_blocks_and_whole_ones_do_not_undo_each_other() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(2));
    let _server = serve(&folder, disk.clone());
    let uri = folder.uri("disk").to_string();
    thread::scope(|scope| {
        for part in 0..16_u32 {
            let uri = &uri;
            scope.spawn(move || {
                let part = format!("write -P {} {} 256", part + 1, part * 256);
                let whole = "write -P 99 4096 4096";
                let mut program = Command::new("qemu-io");
                program.args(["-f", "raw", uri, "-c", &part, "-c", whole, "-c", "flush"]);
                let output = program.output().unwrap();
                assert!(output.status.success(), "{output:?}");
            });
        }
    });
    let parts = (0..4096).map(|at| (at / 256 + 1) as u8);
    let wanted: Vec<u8> = parts.chain([99; 4096]).collect();
    assert_eq!(disk.image(), wanted);
}
