//! The end at which events come out.
//!
//! A follower reads one file to its end. If the log's name then belongs to another file, it reads
//! what was added meanwhile, and goes on with that one from its head.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use gabion_base::event::{LINE_BYTES_MAX, Record, Sequence};

use super::log::{self, Log};
use super::netlink;

/// What is read at once: room for the longest line.
const CHUNK_BYTES: usize = 2 * LINE_BYTES_MAX;
/// How often the log is looked at by who may not listen.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// How often it is looked at besides: publishers in other network namespaces are not heard.
const LOOK_ANYWAY_INTERVAL: Duration = Duration::from_secs(2);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    Now,
    /// With the first record of this number or a later one that the log still has.
    At(Sequence),
}

/// Reads the records of a log, also those that are still to come.
#[derive(Debug)]
pub struct Follower {
    log: Log,
    receiver: Option<netlink::Receiver>,
    file: Option<File>,
    offset: u64,
    /// Records before this one are passed over.
    first: Sequence,
    /// Records that are in no log.
    unwritten: Vec<Record>,
}

impl Follower {
    /// Follows the log in `folder`, which is made if it is missing.
    pub fn open(folder: &Path, start: Start) -> io::Result<Self> {
        let log = Log::open(folder)?;
        // Before the first look, so that nothing falls in between.
        let receiver = netlink::Receiver::join().ok();
        let first = match start {
            Start::Now => Sequence(log.last()?.0.saturating_add(1)),
            Start::At(sequence) => sequence,
        };
        let file = log::open(&log.old())?;
        Ok(Self { log, receiver, file, offset: 0, first, unwritten: Vec::new() })
    }

    /// Whether it is woken by publishers. Otherwise it looks at the log several times a second.
    pub fn is_woken(&self) -> bool {
        self.receiver.is_some()
    }

    /// The next records, some at a time; none if there are none yet.
    pub fn read(&mut self) -> io::Result<Vec<Record>> {
        // By themselves, as reading the log may fail and must not take them along.
        if !self.unwritten.is_empty() {
            return Ok(std::mem::take(&mut self.unwritten));
        }
        let read = self.read_log();
        if read.is_err() {
            // It is opened anew. Numbers keep records from being read twice.
            self.file = log::open(&self.log.old()).unwrap_or_default();
            self.offset = 0;
        }
        read
    }

    fn read_log(&mut self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        loop {
            let is_last = self.is_newest()?;
            let is_more = self.read_lines(&mut records)?;
            if !records.is_empty() {
                return Ok(records);
            }
            if is_more {
                continue;
            }
            if is_last {
                return Ok(records);
            }
            // It was not the newest already before it was read to its end.
            self.file = log::open(&self.log.newest())?;
            self.offset = 0;
            if self.file.is_none() {
                return Ok(records);
            }
        }
    }

    /// Waits until there may be more, or until `patience` is over.
    pub fn wait(&mut self, patience: Duration) -> io::Result<()> {
        let Some(receiver) = &self.receiver else {
            thread::sleep(patience.min(LOOK_INTERVAL));
            return Ok(());
        };
        receiver.wait(patience.min(LOOK_ANYWAY_INTERVAL))?;
        let heard = receiver.take(self.log.folder())?;
        // The others are in the log, with those that were not heard.
        self.unwritten.extend(heard.into_iter().filter(|record| record.sequence == Sequence(0)));
        Ok(())
    }

    /// Whether the file being read is the one that is written to.
    fn is_newest(&self) -> io::Result<bool> {
        let newest = match fs::metadata(self.log.newest()) {
            Ok(newest) => newest,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        let Some(file) = &self.file else { return Ok(false) };
        let own = file.metadata()?;
        Ok((own.dev(), own.ino()) == (newest.dev(), newest.ino()))
    }

    /// Reads some lines; whether there were any.
    fn read_lines(&mut self, records: &mut Vec<Record>) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read_at(&mut chunk, self.offset)?;
        let complete = match chunk[..read].iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            // No line is that long.
            None if read == CHUNK_BYTES => read,
            None => return Ok(false),
        };
        self.offset += complete as u64;
        let lines = chunk[..complete].split(|byte| *byte == b'\n');
        // Lines that make no sense were cut off by a crash or a full disk.
        let found = lines.filter_map(|line| Record::from_line(line).ok());
        let first = self.first;
        records.extend(found.filter(|record| record.sequence >= first));
        if let Some(last) = records.last() {
            self.first = Sequence(last.sequence.0.saturating_add(1));
        }
        Ok(true)
    }
}
