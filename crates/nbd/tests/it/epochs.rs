//! Media, and who may write to them.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, MemDisk, Ticket};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::{Condvar, Mutex};
use gabion_nbd::client::{self, Client, ClientOptions, Epoch, OpenError};
use gabion_nbd::medium::Medium;
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server};
use gabion_nbd::wire::name::Claim;

use crate::world::{Folder, Foreign, GLANCE, assert_pattern, pattern};

const BLOCKS: u64 = 256 + 64;

fn serve_as(folder: &Folder, disk: Arc<dyn Disk>, permission: Permission) -> Server {
    let medium = match Medium::open(disk.clone()).unwrap() {
        Some(medium) => medium,
        None => Medium::create(disk, Uuid([0xab; 16])).unwrap(),
    };
    let raw = Export::new("raw", Arc::new(MemDisk::new(8)), Permission::ReadWrite);
    let exports = Exports::new(vec![Export::of_medium("disk", medium, permission), raw]);
    Server::start(exports, vec![Listener::bind(&folder.address()).unwrap()]).unwrap()
}

fn serve(folder: &Folder, disk: Arc<dyn Disk>) -> Server {
    serve_as(folder, disk, Permission::ReadWrite)
}

fn open(folder: &Folder, name: &str) -> Result<Client, OpenError> {
    Client::open(&folder.uri(name), ClientOptions::default())
}

fn write(client: &Client, addr: u64, seed: u64) -> Result<(), String> {
    let written = client.write(BlockAddr(addr), pattern(addr, 1, seed), Durability::Cached);
    written.map_err(|error| error.to_string())
}

#[test]
fn a_medium_without_an_epoch_is_a_plain_export() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(BLOCKS));
    let _server = serve(&folder, disk.clone());
    let client = open(&folder, "disk").unwrap();
    assert_eq!((client.blocks(), client.is_read_only()), (64, false));
    write(&client, 0, 1).unwrap();
    assert_eq!(disk.image()[256 * 4096..257 * 4096], *pattern(0, 1, 1).bytes());
}

#[test]
fn a_higher_epoch_ends_the_writes_of_all_others_but_not_their_reads() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(BLOCKS));
    let _server = serve(&folder, disk.clone());
    let plain = open(&folder, "disk").unwrap();
    write(&plain, 1, 1).unwrap();
    let old = open(&folder, "disk?epoch=7&holder=node%20a").unwrap();
    write(&old, 2, 1).unwrap();
    let error = write(&plain, 3, 9).unwrap_err();
    assert!(error.contains("belongs to epoch 7 since node a"), "{error}");
    let new = open(&folder, "disk?epoch=8&holder=b").unwrap();
    for loser in [&plain, &old] {
        assert!(write(loser, 3, 9).unwrap_err().contains("epoch 8 since b"));
        for request in [
            DiskRequest::WriteZeroes { addr: BlockAddr(1), count: 2 },
            DiskRequest::Discard { addr: BlockAddr(1), count: 2 },
        ] {
            assert!(loser.submit(request).wait().is_err());
        }
        assert_pattern(loser, 1, 2, 1);
        loser.flush().unwrap();
    }
    write(&new, 3, 2).unwrap();
    assert_pattern(&new, 1, 2, 1);
    assert_pattern(&old, 3, 1, 2);
    // Whoever comes without an epoch can look.
    assert!(open(&folder, "disk").unwrap().is_read_only());
}

#[test]
fn an_epoch_outlives_the_server() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(BLOCKS));
    let server = serve(&folder, disk.clone());
    open(&folder, "disk?epoch=7&holder=a").unwrap();
    drop(server);
    let _server = serve(&folder, disk);
    for refused in ["disk?epoch=6&holder=a", "disk?epoch=7&holder=b"] {
        let error = open(&folder, refused).unwrap_err().to_string();
        assert!(error.contains("not allowed") && error.contains("epoch 7 since a"), "{error}");
    }
    write(&open(&folder, "disk?epoch=7&holder=a").unwrap(), 0, 1).unwrap();
    assert!(open(&folder, "disk").unwrap().is_read_only());
}

#[test]
fn what_cannot_keep_an_epoch_refuses_it() {
    let folder = Folder::new();
    let _server = serve(&folder, Arc::new(MemDisk::new(BLOCKS)));
    let refused = |name: &str| open(&folder, name).unwrap_err().to_string();
    assert!(refused("raw?epoch=1&holder=a").contains("no header"));
    assert!(refused("disk?epoch=0&holder=a").contains("begin with 1"));
    assert!(refused("disk?epoch=1").contains("holder"));
    assert!(refused("disk?colour=red").contains("not known"));
    assert!(refused("disc?epoch=1&holder=a").contains("no such export"));
    let folder = Folder::new();
    let _server = serve_as(&folder, Arc::new(MemDisk::new(BLOCKS)), Permission::ReadOnly);
    let error = open(&folder, "disk?epoch=1&holder=a").unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");
}

#[test]
fn to_look_at_an_export_takes_no_epoch() {
    let folder = Folder::new();
    let _server = serve(&folder, Arc::new(MemDisk::new(BLOCKS)));
    let described = |name: &str| {
        let uri = folder.uri(name).to_string();
        let output = Command::new("nbdinfo").args(["--no-content", &uri]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let uuid = Uuid([0xab; 16]);
    let info = described("disk");
    assert!(info.contains(&format!("gabion medium {uuid} epoch 0\n")), "{info}");
    let _client = open(&folder, "disk?epoch=7&holder=a").unwrap();
    let info = described("disk");
    assert!(info.contains("epoch 7 held by a\n") && info.contains("is_read_only: true"), "{info}");
    let uri = folder.uri("").to_string();
    let output = Command::new("nbdinfo").args(["--list", "--no-content", &uri]).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(list.contains("export=\"disk\":") && list.contains("export=\"raw\":"), "{list}");
}

/// A disk whose writes wait until they are let go.
struct Gated {
    disk: MemDisk,
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    failing: AtomicBool,
}

impl Gated {
    fn new() -> Arc<Self> {
        let (closed, opened) = (Mutex::new(false), Condvar::new());
        let (waiting, failing) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Self { disk: MemDisk::new(BLOCKS), closed, opened, waiting, failing })
    }

    fn close(&self) {
        *self.closed.lock() = true;
    }

    fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }

    fn wait_for(&self, waiting: usize) {
        while self.waiting.load(Ordering::SeqCst) < waiting {
            thread::sleep(GLANCE);
        }
    }
}

impl Disk for Gated {
    fn name(&self) -> Arc<str> {
        "gated".into()
    }

    fn blocks(&self) -> u64 {
        BLOCKS
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        if let DiskRequest::Write { addr, .. } = &request {
            let mut closed = self.closed.lock();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            while *closed {
                self.opened.wait(&mut closed);
            }
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if addr.0 < 256 && self.failing.load(Ordering::SeqCst) {
                // As a disk does it that answers nothing but nonsense.
                return self.disk.submit(DiskRequest::Read { addr: BlockAddr(BLOCKS), count: 1 });
            }
        }
        self.disk.submit(request)
    }
}

#[test]
fn no_older_write_takes_effect_after_a_new_epoch_was_granted() {
    for round in 0..4 {
        let folder = Folder::new();
        let disk = Gated::new();
        let _server = serve(&folder, disk.clone());
        let old = open(&folder, "disk?epoch=1&holder=a").unwrap();
        disk.close();
        // Half of them are in the disk when the claim comes, the others come while it waits.
        let submit = |at: u64| {
            let parts = vec![pattern(at, 1, 1)];
            let addr = BlockAddr(at);
            old.submit(DiskRequest::Write { addr, parts, durability: Durability::Cached })
        };
        let mut tickets: Vec<_> = (0..8).map(submit).collect();
        disk.wait_for(8);
        let (sender, granted) = mpsc::channel();
        thread::scope(|scope| {
            let folder = &folder;
            scope.spawn(move || sender.send(open(folder, "disk?epoch=2&holder=b").unwrap()));
            tickets.extend((8..16).map(submit));
            // On a busy machine it takes its time to yield, and the claim does not wait for long.
            thread::sleep(Duration::from_micros(100 * round));
            assert!(granted.try_recv().is_err(), "writes are in flight");
            disk.open();
        });
        let new = granted.recv().unwrap();
        // From now on the image belongs to the new holder.
        let then = disk.disk.image();
        let outcomes: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait().is_ok()).collect();
        assert_eq!(outcomes[..8], [true; 8], "what was in flight is done");
        assert!(disk.disk.image() == then, "nothing of the old epoch took effect");
        for (at, done) in (0_u64..16).zip(outcomes) {
            let block = &then[(256 + at as usize) * 4096..][..4096];
            assert_eq!(block == pattern(at, 1, 1).bytes(), done, "block {at}");
        }
        assert!(write(&old, 0, 1).is_err());
        write(&new, 0, 2).unwrap();
    }
}

#[test]
fn an_epoch_that_cannot_be_made_durable_is_not_granted() {
    let folder = Folder::new();
    let disk = Gated::new();
    let _server = serve(&folder, disk.clone());
    let old = open(&folder, "disk?epoch=1&holder=a").unwrap();
    disk.failing.store(true, Ordering::SeqCst);
    let error = open(&folder, "disk?epoch=2&holder=b").unwrap_err().to_string();
    assert!(error.contains("the epoch cannot be made durable"), "{error}");
    write(&old, 0, 1).unwrap();
    disk.failing.store(false, Ordering::SeqCst);
    open(&folder, "disk?epoch=2&holder=b").unwrap();
    assert!(write(&old, 0, 1).is_err());
}

fn holding(number: u64, holder: &str) -> ClientOptions {
    let epoch = Some(Epoch { number, holder: holder.to_owned() });
    ClientOptions { epoch, ..ClientOptions::default() }
}

#[track_caller]
fn assert_fenced(client: &Client) {
    for request in [
        DiskRequest::Read { addr: BlockAddr(0), count: 1 },
        DiskRequest::WriteZeroes { addr: BlockAddr(0), count: 1 },
        DiskRequest::Flush,
    ] {
        let error = client.submit(request).wait().unwrap_err();
        assert!(matches!(error, DiskError::Fenced { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("nbd+unix:///disk") && text.contains("epoch 8 since b"), "{text}");
    }
}

#[test]
fn a_holder_knows_its_medium() {
    let folder = Folder::new();
    let _server = serve(&folder, Arc::new(MemDisk::new(BLOCKS)));
    let uuid = Uuid([0xab; 16]);
    let medium = open(&folder, "disk").unwrap().medium().cloned();
    assert_eq!(medium, Some(client::Medium { uuid, epoch: 0, holder: String::new() }));
    let client = Client::open(&folder.uri("disk"), holding(7, "a & b")).unwrap();
    let wanted = client::Medium { uuid, epoch: 7, holder: "a & b".to_owned() };
    assert_eq!(client.medium(), Some(&wanted));
    assert_eq!(client.name(), folder.uri("disk").to_string().into());
    write(&client, 0, 1).unwrap();
    assert_eq!(open(&folder, "raw").unwrap().medium(), None);
    for options in [holding(7, "b"), holding(6, "a & b")] {
        let error = Client::open(&folder.uri("disk"), options).unwrap_err();
        assert!(matches!(error, OpenError::Fenced { .. }), "{error}");
        assert!(error.to_string().contains("epoch 7 since a & b"), "{error}");
    }
    for options in [holding(0, "a"), holding(9, ""), holding(9, &"x".repeat(1025))] {
        let error = Client::open(&folder.uri("disk"), options).unwrap_err();
        assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
    }
}

#[test]
fn a_holder_that_lost_its_epoch_fails_at_once_and_for_ever() {
    let folder = Folder::new();
    let disk = Gated::new();
    let server = serve(&folder, disk.clone());
    let old = Client::open(&folder.uri("disk"), holding(7, "a")).unwrap();
    write(&old, 0, 1).unwrap();
    let new = Client::open(&folder.uri("disk"), holding(8, "b")).unwrap();
    // The first write finds out, and takes everything with it that is under way.
    let parts = vec![pattern(1, 1, 9)];
    let lost = DiskRequest::Write { addr: BlockAddr(1), parts, durability: Durability::Fua };
    let error = old.submit(lost).wait().unwrap_err();
    assert!(matches!(error, DiskError::Fenced { .. }), "{error:?}");
    assert_fenced(&old);
    write(&new, 1, 2).unwrap();
    drop(server);
    let _server = serve(&folder, disk);
    assert_pattern(&new, 1, 1, 2);
    assert_fenced(&old);
}

#[test]
fn a_holder_is_told_when_it_connects_again() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(BLOCKS));
    let server = serve(&folder, disk.clone());
    let old = Client::open(&folder.uri("disk"), holding(7, "a")).unwrap();
    write(&old, 0, 1).unwrap();
    drop(server);
    let claim = Claim { epoch: 8, holder: "b".to_owned(), connection: 0 };
    Medium::open(disk.clone()).unwrap().unwrap().claim(&claim).unwrap();
    let ticket = old.submit(DiskRequest::Flush);
    let _server = serve(&folder, disk);
    let error = ticket.wait().unwrap_err();
    assert!(matches!(error, DiskError::Fenced { .. }), "{error:?}");
    assert_fenced(&old);
}

#[test]
fn a_holder_keeps_its_epoch_through_a_loss_of_the_server() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(BLOCKS));
    let server = serve(&folder, disk.clone());
    let client = Client::open(&folder.uri("disk"), holding(7, "a")).unwrap();
    write(&client, 0, 1).unwrap();
    drop(server);
    let parts = vec![pattern(1, 1, 1)];
    let addr = BlockAddr(1);
    let late = client.submit(DiskRequest::Write { addr, parts, durability: Durability::Cached });
    let _server = serve(&folder, disk);
    late.wait().unwrap();
    client.flush().unwrap();
    assert_pattern(&client, 0, 2, 1);
}

#[test]
fn a_server_without_epochs_is_of_no_use_to_a_holder() {
    let folder = Folder::new();
    // It takes any name for its only export.
    let _server = Foreign::nbdkit(&folder, &["memory", "1M"]);
    let error = Client::open(&folder.uri("disk"), holding(7, "a")).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("does not confirm the epoch"), "{error}");
    assert_eq!(open(&folder, "disk").unwrap().medium(), None);
}
