//! Targets, files and a coordinator of a test, which go with it however it ends.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, Durability};
use gabion_base::event::{Event, Sink, VolumeEvent};
use gabion_base::ids::{BlockAddr, Uuid};
use gabion_base::sync::Mutex;
use gabion_block::mirror::{Options, Trust};
use gabion_coordinator::MemCoordinator;
use gabion_host::file_disk::{FileDisk, OpenError, OpenMode};
use gabion_nbd::address::Address;
use gabion_nbd::medium::Medium;
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server};
use gabion_volume::create::{Content, Occupied, create};
use gabion_volume::layout;
use gabion_volume::member::Outside;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::Volume;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test that waits rests between two looks: others need the processors.
const GLANCE: Duration = Duration::from_millis(1);
/// Bytes of a member.
const MEMBER_BYTES: u64 = 32 << 20;

/// Keeps the events of a test.
#[derive(Default)]
pub struct Events(Mutex<Vec<Event>>);

impl Sink for Events {
    fn publish(&self, event: Event) {
        self.0.lock().push(event);
    }
}

/// All that a test needs.
pub struct World {
    folder: PathBuf,
    pub coordinator: Arc<MemCoordinator>,
    events: Arc<Events>,
}

/// A target that serves one file until it is dropped.
pub struct Target {
    _server: Server,
}

fn random() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl World {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-volume-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self { folder, coordinator: Arc::default(), events: Arc::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of zeros that can be a member.
    pub fn file(&self, name: &str) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(MEMBER_BYTES).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Serves the file `name`, which is made if it is not there.
    pub fn target(&self, name: &str) -> Target {
        if !self.path(name).exists() {
            self.file(name);
        }
        let mut opened = None;
        // A client's thread of the last target may let go of the file a moment after its server.
        until("the file's last holder ends", || {
            opened = match FileDisk::open(&self.path(name), OpenMode::ReadWrite) {
                Err(OpenError::InUse { .. }) => None,
                opened => Some(opened.unwrap()),
            };
            opened.is_some()
        });
        let disk: Arc<dyn Disk> = Arc::new(opened.unwrap());
        let medium = match Medium::open(Arc::clone(&disk)).unwrap() {
            Some(medium) => medium,
            None => Medium::create(disk, Uuid([7; 16])).unwrap(),
        };
        let exports = Exports::new(vec![Export::of_medium("a", medium, Permission::ReadWrite)]);
        let socket = Address::Unix(self.path(&format!("{name}.socket")));
        let server = Server::start(exports, vec![Listener::bind(&socket).unwrap()]).unwrap();
        Target { _server: server }
    }

    /// Where the target of the file `name` is.
    pub fn url(&self, name: &str) -> String {
        format!("nbd+unix:///a?socket={}", self.path(&format!("{name}.socket")).display())
    }

    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            connector: Arc::new(Outside),
            coordinator: Arc::clone(&self.coordinator) as _,
            sink: Arc::clone(&self.events) as _,
            holder: "a test".to_owned(),
            random,
            options: Options { settle: Duration::from_millis(300), ..Options::default() },
        }
    }

    /// Makes the volume "tank" of fresh files.
    pub fn create(&self, text: &str) {
        let layout = layout::parse(text).unwrap();
        let surroundings = self.surroundings();
        create("tank", layout, Content::Equal, Occupied::Refuse, &surroundings).unwrap();
    }

    pub fn open(&self) -> Volume {
        Volume::open("tank", self.surroundings()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What has happened to the volume itself, the newest last.
    pub fn volume_events(&self) -> Vec<VolumeEvent> {
        let events = self.events.0.lock();
        let volume = events.iter().filter_map(|event| match event {
            Event::Volume { event, .. } => Some(event.clone()),
            _ => None,
        });
        volume.collect()
    }

    /// Waits until an event is there for which `is_it` is true.
    #[track_caller]
    pub fn await_event(&self, is_it: impl Fn(&Event) -> bool) {
        until("the event", || self.events.0.lock().iter().any(&is_it));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until `is_so`.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(GLANCE);
    }
}

/// The states of the only mirror's copies.
pub fn trust(volume: &Volume) -> Vec<Trust> {
    let status = volume.status();
    status.values().next().unwrap().iter().map(|copy| copy.trust).collect()
}

/// Waits until all copies of the only mirror are in sync.
#[track_caller]
pub fn await_sync(volume: &Volume) {
    until("sync", || trust(volume).iter().all(|copy| *copy == Trust::InSync));
}

/// Lets go of a volume in order.
#[track_caller]
pub fn end(volume: Volume) {
    volume.close().unwrap();
}

pub fn block(mark: u8) -> BlockSlice {
    BlockSlice::new(Blocks::from_bytes(&[mark; BLOCK_SIZE]))
}

pub fn write(volume: &Volume, addr: u64, mark: u8) {
    volume.write(BlockAddr(addr), block(mark), Durability::Cached).unwrap();
}

#[track_caller]
pub fn assert_block(disk: &dyn Disk, addr: u64, mark: u8) {
    let mut found = vec![0; BLOCK_SIZE];
    disk.read(BlockAddr(addr), &mut found).unwrap();
    assert_eq!(found, [mark; BLOCK_SIZE], "block {addr}");
}
