//! What a client has sent, read in large pieces and given out in small ones.
//!
//! A client that has many requests in flight sends them side by side: they come in one read. What
//! is longer than the buffer does not pass through it.
//!
//! Between requests a client may be silent for as long as it likes. Within one it may stop for as
//! long as the stream is patient, and an end there is an error.

use std::io::{self, Read};

use crate::stream::{Stream, is_timeout};
use crate::wire::request::{Command, REQUEST_BYTES, Request};

/// What is read at once, for many small requests.
const INPUT_BYTES: usize = 64 << 10;

/// What was read and not yet used.
pub(super) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; INPUT_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Whether a request can be read without waiting for the client; not so its data.
    pub(super) fn has_request(&self) -> bool {
        self.end - self.start >= REQUEST_BYTES
    }

    /// Whether a request can be read without waiting for the client, with its data.
    pub(super) fn has_whole_request(&self) -> bool {
        let come = &self.buffer[self.start..self.end];
        let head = come.first_chunk().and_then(|head| Request::decode(head).ok());
        head.is_some_and(|request| {
            let data = match Command::of(request.command) {
                Some(Command::Write) => request.length as usize,
                _ => 0,
            };
            come.len() >= REQUEST_BYTES + data
        })
    }

    /// Fills `into`; false if the client has ended before its first byte.
    pub(super) fn fill_or_end(&mut self, stream: &Stream, into: &mut [u8]) -> io::Result<bool> {
        while self.start == self.end {
            match self.refill(stream) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                // Nothing to say for a while.
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.fill(stream, into)?;
        Ok(true)
    }

    /// Fills `into`, of which the client may not stop in the middle for long.
    pub(super) fn fill(&mut self, stream: &Stream, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            if self.start == self.end && into.len() >= INPUT_BYTES {
                let read = retried(|| {
                    let mut stream = stream;
                    stream.read(into)
                })?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                into = &mut into[read..];
                continue;
            }
            if self.start == self.end && self.refill(stream)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let length = into.len().min(self.end - self.start);
            let (head, rest) = into.split_at_mut(length);
            head.copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            into = rest;
        }
        Ok(())
    }

    /// Reads what nobody wants.
    pub(super) fn skip(&mut self, stream: &Stream, mut length: usize) -> io::Result<()> {
        while length > 0 {
            if self.start == self.end && self.refill(stream)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = length.min(self.end - self.start);
            self.start += step;
            length -= step;
        }
        Ok(())
    }

    fn refill(&mut self, mut stream: &Stream) -> io::Result<usize> {
        let read = retried(|| stream.read(&mut self.buffer))?;
        (self.start, self.end) = (0, read);
        Ok(read)
    }
}

fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
