//! Losses in a state folder of their own.

use std::sync::atomic::{AtomicU32, Ordering};

use gabion_base::event::Collector;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::time::Timestamp;
use gabion_fs::{Caller, Privileges};
use gabion_link::message::ChangeNumber;

use super::*;

struct World {
    keeper: Keeper,
    events: Arc<Collector>,
}

impl World {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let state = std::env::temp_dir().join(format!("gabion-lost-{}-{number}", process::id()));
        fs::create_dir(&state).unwrap();
        let events = Arc::new(Collector::default());
        let keeper = Keeper {
            state,
            sink: Arc::clone(&events) as Arc<dyn Sink>,
            filesystem: "gabion://host/".to_owned(),
            client: "here:/mnt".to_owned(),
            mountpoint: "/mnt".to_owned(),
        };
        Self { keeper, events }
    }

    /// Keeps a loss; what is told of it: the folder, how many bytes of how many, and why.
    fn keep(&self, loss: &Loss) -> (PathBuf, u64, u64, String) {
        self.keeper.keep(loss);
        let mut events = self.events.take();
        assert_eq!(events.len(), 1);
        match events.remove(0) {
            Event::Client { event, .. } => match event {
                ClientEvent::ChangesLost { count, bytes, kept, folder, reason, .. } => {
                    assert_eq!(count, loss.changes.len() as u64);
                    (PathBuf::from(folder), kept, bytes, reason)
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.keeper.state);
    }
}

fn file(number: u64) -> FileId {
    FileId::new(SubvolId(1), Ino(number))
}

fn loss(calls: Vec<Call>) -> Loss {
    let change = |(order, call)| {
        let (now, caller) = (Timestamp::new(1_795_355_101, 0), Caller::superuser());
        Change { number: ChangeNumber(0), order, now, made: None, caller, call }
    };
    let changes = (1..).zip(calls).map(change).collect();
    let paths = BTreeMap::from([(file(2), b"/log".to_vec()), (file(1), b"/".to_vec())]);
    Loss { reason: "the session has ended".to_owned(), changes, paths }
}

fn write(number: u64, offset: u64, bytes: &[u8]) -> Call {
    let (at, privileges) = (WriteAt::Offset(offset), Privileges::Keep);
    Call::Write { file: file(number), at, privileges, bytes: bytes.to_vec().into() }
}

#[test]
fn what_is_lost_is_kept_as_bytes_at_their_places_and_as_text() {
    let world = World::new();
    let unlink = Call::Unlink { parent: file(1), name: b"old".to_vec() };
    let loss = loss(vec![
        write(2, 5, b"text"),
        unlink,
        write(3, 1 << 40, b"far away"),
        write(2, 7, b"XT"),
    ]);
    let (folder, kept, bytes, reason) = world.keep(&loss);
    assert_eq!((kept, bytes, reason.as_str()), (14, 14, "the session has ended"));
    assert_eq!(fs::read(folder.join("inode-2")).unwrap(), b"\0\0\0\0\0teXT");
    let far = File::open(folder.join("inode-3")).unwrap();
    assert_eq!(far.metadata().unwrap().len(), (1 << 40) + 8);
    assert!(far.metadata().unwrap().blocks() < 100);
    let text = fs::read_to_string(folder.join("changes.txt")).unwrap();
    let lines: Vec<&str> = text.lines().skip(3).collect();
    let wanted = [
        "2026-11-22T13:45:01Z user 0: wrote 4 bytes at 5 of \"/log\" (inode 2)",
        "2026-11-22T13:45:01Z user 0: removed \"/old\"",
        "2026-11-22T13:45:01Z user 0: wrote 8 bytes at 1099511627776 of inode 3",
        "2026-11-22T13:45:01Z user 0: wrote 2 bytes at 7 of \"/log\" (inode 2)",
    ];
    assert_eq!(lines, wanted, "{text}");
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(folder.join("inode-2")).unwrap().mode() & 0o777, 0o600);
    // Another one of the same second.
    assert_ne!(world.keep(&loss).0, folder);
}

#[test]
fn what_does_not_fit_is_told_and_not_kept() {
    let world = World::new();
    let most = KEPT_BYTES_MAX - (1 << 20);
    let before = world.keeper.state.join("lost+before");
    fs::create_dir(&before).unwrap();
    let space = File::create(before.join("inode-1")).unwrap();
    rustix::fs::fallocate(&space, rustix::fs::FallocateFlags::empty(), 0, most).unwrap();
    let loss = loss(vec![write(2, 0, &[1; 600_000]), write(2, 600_000, &[2; 600_000])]);
    let (folder, kept, bytes, reason) = world.keep(&loss);
    assert_eq!((kept, bytes), (600_000, 1_200_000));
    assert!(reason.contains("there are 256 MiB already"), "{reason}");
    let text = fs::read_to_string(folder.join("changes.txt")).unwrap();
    let marked: Vec<bool> = text.lines().map(|line| line.contains("are not kept")).collect();
    assert_eq!(marked[3..5], [false, true], "{text}");
    // When somebody has looked at them, there is room again.
    fs::remove_dir_all(before).unwrap();
    assert_eq!(world.keep(&loss).1, 1_200_000);
}

#[test]
fn what_cannot_be_kept_is_told_all_the_same() {
    let world = World::new();
    fs::remove_dir(&world.keeper.state).unwrap();
    let (_, kept, bytes, reason) = world.keep(&loss(vec![write(2, 0, b"gone")]));
    assert_eq!((kept, bytes), (0, 4));
    assert!(reason.contains("could be kept") && reason.contains("No such file"), "{reason}");
}
