//! What administrators are told of exports.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::disk::{Disk, DiskError, DiskRequest, Durability, MemDisk, Ticket};
use gabion_base::event::{Event, Sink, TargetEvent};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::Mutex;
use gabion_nbd::client::{Client, ClientOptions, Epoch};
use gabion_nbd::medium::Medium;
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server};

use crate::world::{Folder, GLANCE, pattern};

#[derive(Default)]
struct Events(Mutex<Vec<TargetEvent>>);

impl Sink for Events {
    fn publish(&self, event: Event) {
        let Event::Target { export, event } = event else { panic!("{event:?}") };
        assert_eq!(export, "disk");
        self.0.lock().push(event);
    }
}

impl Events {
    /// Waits until there are so many.
    #[track_caller]
    fn first(&self, count: usize) -> Vec<TargetEvent> {
        let began = Instant::now();
        while self.0.lock().len() < count {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", self.0.lock());
            std::thread::sleep(GLANCE);
        }
        self.0.lock().clone()
    }
}

/// Fails to write to its last block.
struct Worn(MemDisk);

impl Disk for Worn {
    fn name(&self) -> Arc<str> {
        "worn".into()
    }

    fn blocks(&self) -> u64 {
        self.0.blocks()
    }

    fn submit(&self, request: DiskRequest) -> Ticket {
        let (addr, count) = request.extent();
        let is_write = matches!(request, DiskRequest::Write { .. });
        if is_write && addr.0 + count == self.blocks() {
            let source = Arc::new(io::Error::other("worn out"));
            let device = self.name();
            return Ticket::ready(Err(DiskError::Io { device, operation: "write", addr, source }));
        }
        self.0.submit(request)
    }
}

fn serve(folder: &Folder, events: &Arc<Events>) -> Server {
    let disk: Arc<dyn Disk> = Arc::new(Worn(MemDisk::new(300)));
    let medium = Medium::create(disk, Uuid([7; 16])).unwrap();
    let export = Export::of_medium("disk", medium, Permission::ReadWrite);
    let exports = Exports::new(vec![export.telling(Arc::clone(events) as _)]);
    Server::start(exports, vec![Listener::bind(&folder.address()).unwrap()]).unwrap()
}

fn open(folder: &Folder, number: u64) -> Client {
    let epoch = Some(Epoch { number, holder: format!("host {number}") });
    let options = ClientOptions { epoch, ..ClientOptions::default() };
    Client::open(&folder.uri("disk"), options).unwrap()
}

fn client() -> String {
    "a client of this machine".to_owned()
}

#[test]
fn epochs_clients_and_fences_are_told() {
    let (folder, events) = (Folder::new(), Arc::<Events>::default());
    let _server = serve(&folder, &events);
    let old = open(&folder, 5);
    let taken = |epoch, before| {
        let holder = format!("host {epoch}");
        TargetEvent::EpochTaken { epoch, holder, before }
    };
    let connected = |epoch| {
        let holder = format!("host {epoch}");
        TargetEvent::ClientConnected { client: client(), epoch, holder }
    };
    assert_eq!(events.first(2), [taken(5, 0), connected(5)]);
    // Who only looks is nobody's business.
    drop(Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap());
    let new = open(&folder, 6);
    assert_eq!(events.first(4)[2..], [taken(6, 5), connected(6)]);
    old.write(BlockAddr(1), pattern(1, 1, 1), Durability::Cached).unwrap_err();
    let fenced = TargetEvent::ClientFenced { client: client(), epoch: 5, newest: 6 };
    assert_eq!(events.first(5)[4], fenced);
    drop(new);
    let left = |epoch| TargetEvent::ClientLeft { client: client(), epoch };
    let told = events.first(7);
    assert!(told[5..].contains(&left(6)), "{told:?}");
    assert!(told[5..].contains(&left(5)), "it has nothing to do any more: {told:?}");
}

#[test]
fn errors_of_the_disk_are_told_once_in_a_while() {
    let (folder, events) = (Folder::new(), Arc::<Events>::default());
    let _server = serve(&folder, &events);
    let client = open(&folder, 1);
    let last = client.blocks() - 1;
    for _ in 0..20 {
        client.write(BlockAddr(last), pattern(last, 1, 1), Durability::Cached).unwrap_err();
    }
    client.write(BlockAddr(0), pattern(0, 1, 1), Durability::Cached).unwrap();
    let failed = TargetEvent::DiskFailed {
        operation: "write".to_owned(),
        address: BlockAddr(299),
        reason: "worn out".to_owned(),
    };
    assert_eq!(events.first(3)[2..], [failed], "not twenty times");
}
