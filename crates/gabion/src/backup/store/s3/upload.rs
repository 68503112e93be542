//! A stream on its way to an object store.
//!
//! What is written gathers until there is enough for a part and the stream is good up to there;
//! then it is sent, while the next one gathers.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use gabion_backup::StreamId;
use gabion_backup::format::parts::{PARTS_MAX, Parts, WHOLE, part_name, part_of_name};

use super::objects::{Objects, Pending};
use crate::backup::store::Upload;
use crate::failure::{Failure, Result};

/// A part has so many bytes at least, but for the last one. A writer says that its stream is good
/// after each 16 MiB of files at the latest, so it has hardly more than twice as many.
const PART_MIN: usize = 16 << 20;
/// So many parts are sent at once.
const PENDING_MAX: usize = 2;

/// What there is of a stream when its sending begins.
#[derive(Default)]
pub struct Sent {
    /// The lengths of the parts that are there.
    pub lengths: Vec<u64>,
    /// What follows them.
    pub head: Vec<u8>,
}

/// A stream on its way.
pub struct Sending {
    objects: Arc<Objects>,
    name: String,
    stream: StreamId,
    /// Of the parts that were sent or are on their way.
    lengths: Vec<u64>,
    buffer: Vec<u8>,
    pending: VecDeque<(String, Pending)>,
}

impl Sending {
    /// Goes on with the stream `stream`, which is called `name`.
    pub fn new(objects: Arc<Objects>, name: &str, stream: StreamId, sent: Sent) -> Self {
        let Sent { lengths, head } = sent;
        let (name, pending) = (name.to_owned(), VecDeque::new());
        Self { objects, name, stream, lengths, buffer: head, pending }
    }

    /// Begins to send what has gathered as a part.
    fn send(&mut self) -> Result<()> {
        let number = self.lengths.len() as u32;
        if number >= PARTS_MAX {
            return Err(Failure::new(format!("the backup has more than {PARTS_MAX} parts")));
        }
        self.await_pending(PENDING_MAX - 1)?;
        let key = format!("{}/{}", self.name, part_name(number));
        let bytes = std::mem::take(&mut self.buffer);
        self.lengths.push(bytes.len() as u64);
        let pending = self.objects.send(&key, bytes)?;
        self.pending.push_back((key, pending));
        Ok(())
    }

    /// Waits until at most `count` parts are on their way.
    fn await_pending(&mut self, count: usize) -> Result<()> {
        while self.pending.len() > count {
            let Some((key, pending)) = self.pending.pop_front() else { break };
            self.objects.sent(&key, &pending)?;
        }
        Ok(())
    }

    /// Compares what is there with what was sent.
    fn compare(&self) -> Result<()> {
        let found = self.objects.list(&self.name)?;
        let path = || self.objects.path(&self.name);
        for (number, length) in self.lengths.iter().enumerate() {
            let name = part_name(number as u32);
            if found.get(&name) != Some(length) {
                return Err(Failure::new(format!("{}/{name} is not what was stored", path()))
                    .next("Has another backup gone on with the stream? Run this again."));
            }
        }
        let parts = found.keys().filter(|key| part_of_name(key).is_some()).count();
        match parts == self.lengths.len() {
            true => Ok(()),
            false => Err(Failure::new(format!("{} has more parts than were stored", path()))
                .next("Has another backup gone on with the stream? Run this again.")),
        }
    }
}

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.len() < PART_MIN {
            return Ok(());
        }
        self.send().map_err(io::Error::other)
    }
}

impl Upload for Sending {
    fn finish(mut self: Box<Self>) -> Result<String> {
        if !self.buffer.is_empty() {
            self.send()?;
        }
        self.await_pending(0)?;
        self.compare()?;
        let whole = format!("{}/{WHOLE}", self.name);
        let stream = self.stream;
        let lengths = self.lengths.iter().map(|length| *length as u32).collect();
        let sealed = self.objects.send(&whole, Parts { stream, lengths }.encode())?;
        self.objects.sent(&whole, &sealed)?;
        Ok(self.objects.path(&self.name))
    }
}
