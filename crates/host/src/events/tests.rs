use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::event::{
    Event, LogEvent, MemberEvent, Record, Sequence, Sink, Source, VolumeEvent,
};
use gabion_base::time::Timestamp;

use super::log::Log;
use super::{Follower, Publisher, Start, netlink};

/// A folder that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gabion-events-{}-{number}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn opened(epoch: u64) -> Event {
    let event = VolumeEvent::Opened { epoch, holder: "test".to_owned() };
    Event::Volume { volume: "tank".to_owned(), event }
}

fn source() -> Source {
    Source { program: "test".to_owned(), pid: 1 }
}

fn append(log: &Log, epoch: u64) -> Sequence {
    let time = Timestamp::new(1, 2);
    log.append(&source(), &[(time, opened(epoch))]).unwrap()[0].sequence
}

/// Reads `count` records, those that are there and those that come.
fn read(follower: &mut Follower, count: usize) -> Vec<Record> {
    let end = Instant::now() + Duration::from_secs(30);
    let mut records = Vec::new();
    while records.len() < count {
        assert!(Instant::now() < end, "{} of {count} records", records.len());
        match follower.read().unwrap() {
            more if more.is_empty() => follower.wait(Duration::from_secs(1)).unwrap(),
            more => records.extend(more),
        }
    }
    records
}

fn sequences(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.sequence.0).collect()
}

#[test]
fn what_is_published_is_followed_in_order_and_without_gaps() {
    let folder = Folder::new();
    let mut follower = Follower::open(folder.path(), Start::Now).unwrap();
    let publishers: Vec<_> =
        (0..3).map(|_| Publisher::start(folder.path(), "gabion test").unwrap()).collect();
    thread::scope(|scope| {
        for publisher in &publishers {
            scope.spawn(move || (0..100).for_each(|epoch| publisher.publish(opened(epoch))));
        }
        let records = read(&mut follower, 300);
        assert_eq!(sequences(&records), (1..=300).collect::<Vec<_>>());
        let program = ("gabion test", std::process::id());
        assert_eq!((&*records[7].source.program, records[7].source.pid), program);
    });
    // Who comes later reads from the number that it wants, or only what is still to come.
    let mut later = Follower::open(folder.path(), Start::At(Sequence(298))).unwrap();
    assert_eq!(sequences(&later.read().unwrap()), [298, 299, 300]);
    let mut latest = Follower::open(folder.path(), Start::Now).unwrap();
    assert_eq!(latest.read().unwrap(), []);
    publishers[0].publish(opened(7));
    assert_eq!(sequences(&read(&mut latest, 1)), [301]);
}

#[test]
fn a_publisher_that_ends_has_written_everything() {
    let folder = Folder::new();
    let publisher = Publisher::start(folder.path(), "test").unwrap();
    (0..500).for_each(|epoch| publisher.publish(opened(epoch)));
    drop(publisher);
    assert_eq!(Log::open(folder.path()).unwrap().last().unwrap(), Sequence(500));
}

#[test]
fn what_was_published_is_written_when_that_was_waited_for() {
    let folder = Folder::new();
    let publisher = Publisher::start(folder.path(), "test").unwrap();
    for epoch in 1..200 {
        publisher.publish(opened(epoch));
    }
    publisher.finish();
    let log = fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 199);
    publisher.finish();
}

#[test]
fn a_long_log_becomes_the_old_one_under_the_eyes_of_followers() {
    let folder = Folder::new();
    let log = Log::open(folder.path()).unwrap().with_length_max(2000);
    let mut follower = Follower::open(folder.path(), Start::Now).unwrap();
    let mut seen = Vec::new();
    for epoch in 1..=100 {
        assert_eq!(append(&log, epoch), Sequence(epoch));
        if epoch % 3 == 0 {
            seen.extend(sequences(&follower.read().unwrap()));
        }
    }
    seen.extend(sequences(&read(&mut follower, 1)));
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    for path in [log.newest(), log.old()] {
        assert!(fs::metadata(path).unwrap().len() <= 2000);
    }
    // Both files are read by who wants all that is left.
    let mut all = Follower::open(folder.path(), Start::At(Sequence(0))).unwrap();
    let first = sequences(&all.read().unwrap());
    let second = sequences(&all.read().unwrap());
    assert_eq!(second.last(), Some(&100));
    assert_eq!(first.last().unwrap() + 1, second[0]);
    // A new log alone still knows the last number.
    fs::rename(log.newest(), log.old()).unwrap();
    assert_eq!(append(&log, 0), Sequence(101));
}

#[test]
fn a_line_that_was_cut_off_is_passed_over() {
    let folder = Folder::new();
    let log = Log::open(folder.path()).unwrap();
    append(&log, 1);
    let line = fs::read(log.newest()).unwrap();
    fs::write(log.newest(), [&line[..], &line[..20]].concat()).unwrap();
    let mut follower = Follower::open(folder.path(), Start::At(Sequence(0))).unwrap();
    assert_eq!(sequences(&follower.read().unwrap()), [1]);
    assert_eq!(append(&log, 2), Sequence(2));
    assert_eq!(sequences(&follower.read().unwrap()), [2]);
    // Garbage without a line's end is passed over, too, however long it is.
    let garbage = vec![b'x'; 300_000];
    fs::write(log.newest(), [&garbage[..], b"\n", &line[..]].concat()).unwrap();
    let mut follower = Follower::open(folder.path(), Start::At(Sequence(0))).unwrap();
    assert_eq!(sequences(&follower.read().unwrap()), [1]);
}

#[test]
fn a_full_queue_drops_events_counts_them_and_holds_up_nobody() {
    let folder = Folder::new();
    let lock = File::create(folder.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let publisher = Publisher::start(folder.path(), "test").unwrap();
    (0..3000).for_each(|epoch| publisher.publish(opened(epoch)));
    lock.unlock().unwrap();
    drop(publisher);
    let mut follower = Follower::open(folder.path(), Start::At(Sequence(0))).unwrap();
    let mut records = Vec::new();
    loop {
        match follower.read().unwrap() {
            more if more.is_empty() => break,
            more => records.extend(more),
        }
    }
    let dropped: u64 = records
        .iter()
        .map(|record| match record.event {
            Event::Log { event: LogEvent::Dropped { count }, .. } => count,
            _ => 0,
        })
        .sum();
    let tellers = records.iter().filter(|record| record.event.name() == "events-dropped").count();
    assert!(dropped > 1000, "{dropped}");
    assert_eq!(records.len() - tellers + dropped as usize, 3000);
}

#[test]
fn an_event_that_cannot_be_written_is_sent_all_the_same() {
    let folder = Folder::new();
    let mut follower = Follower::open(folder.path(), Start::Now).unwrap();
    if !follower.is_woken() {
        eprintln!("left out: needs CAP_NET_ADMIN");
        return;
    }
    fs::create_dir(folder.path().join("log.jsonl")).unwrap();
    let publisher = Publisher::start(folder.path(), "test").unwrap();
    let mut records = Vec::new();
    // Again and again, as other tests may flood the group meanwhile.
    while records.is_empty() {
        publisher.publish(opened(7));
        follower.wait(Duration::from_secs(1)).unwrap();
        // The log is none that could be read.
        records = follower.read().unwrap_or_default();
    }
    assert_eq!((records[0].sequence, &records[0].event), (Sequence(0), &opened(7)));
    assert!(publisher.problem().unwrap().contains("cannot write events to"));
    fs::remove_dir(folder.path().join("log.jsonl")).unwrap();
    publisher.publish(opened(8));
    let is_new = |record: &Record| record.event == opened(8);
    while !read(&mut follower, 1).iter().any(is_new) {}
}

#[test]
fn a_slow_follower_finds_in_the_log_what_it_did_not_hear() {
    const COUNT: u64 = 600;
    let folder = Folder::new();
    let mut follower = Follower::open(folder.path(), Start::Now).unwrap();
    let log = Log::open(folder.path()).unwrap();
    let sender = netlink::Sender::new().unwrap();
    let event = MemberEvent::Stale { reason: "r".repeat(400) };
    let event = Event::Member { volume: "v".repeat(400), member: "m".to_owned(), event };
    // More than a socket holds, and it is not read meanwhile.
    for number in 0..COUNT {
        let time = Timestamp::new(number as i64, 0);
        for record in log.append(&source(), &[(time, event.clone())]).unwrap() {
            sender.send(log.folder(), &record).unwrap();
        }
    }
    follower.wait(Duration::from_secs(1)).unwrap();
    let records = read(&mut follower, COUNT as usize);
    assert_eq!(sequences(&records), (1..=COUNT).collect::<Vec<_>>());
}

#[test]
fn events_of_other_logs_are_not_heard() {
    let (own, other) = (Folder::new(), Folder::new());
    let Ok(receiver) = netlink::Receiver::join() else {
        eprintln!("left out: needs CAP_NET_ADMIN");
        return;
    };
    let sender = netlink::Sender::new().unwrap();
    let record = |epoch| {
        let time = Timestamp::new(1, 0);
        Record { sequence: Sequence(epoch), time, source: source(), event: opened(epoch) }
    };
    // Delivered before sending returns, unless other tests flood the group meanwhile.
    let heard = loop {
        sender.send(other.path(), &record(1)).unwrap();
        sender.send(own.path(), &record(2)).unwrap();
        match receiver.take(own.path()).unwrap() {
            heard if heard.is_empty() => {}
            heard => break heard,
        }
    };
    assert_eq!(heard, [record(2)]);
}
