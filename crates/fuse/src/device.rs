//! The open `/dev/fuse` of one connection: requests are read from it, replies and notifications are
//! written to it, each by one system call, from any thread.
//!
//! The connection lives as long as anybody holds the device open. A process that keeps a second
//! descriptor ([`Device::try_clone`]) keeps the mount alive over the death of the one that serves
//! it.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::abi;
use crate::buffer::MessageBuffer;

/// Slices one writev(2) takes on Linux.
const IOV_MAX: usize = 1024;

/// A connection to the kernel's FUSE.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens `/dev/fuse`; the descriptor is not inherited by other programs.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        Ok(Self { fd: file.into() })
    }

    /// A connection that somebody else opened: fusermount, or the previous process of an upgrade.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// A second descriptor of the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Reads the next message, waiting for one.
    pub(crate) fn read(&self, buffer: &mut MessageBuffer) -> io::Result<()> {
        buffer.fill(|target, room| {
            // SAFETY: `target` is valid for writes of `room` bytes.
            let length = unsafe { libc::read(self.fd.as_raw_fd(), target.cast(), room) };
            match usize::try_from(length) {
                Err(_) => Err(io::Error::last_os_error()),
                // The device has no end of file; what stands in for it has.
                Ok(0) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
                Ok(length) => Ok(length),
            }
        })
    }

    /// Writes one message: a header, whose length is computed here, and the parts of its body.
    /// `error` is a negated errno, 0, or a notification code.
    pub(crate) fn write(&self, unique: u64, error: i32, body: &[IoSlice<'_>]) -> io::Result<()> {
        let joined;
        let joined_slice;
        let mut body = body;
        if body.len() >= IOV_MAX {
            joined = body.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>();
            joined_slice = [IoSlice::new(&joined)];
            body = &joined_slice;
        }
        let length: usize = body.iter().map(|part| part.len()).sum();
        let Ok(len) = u32::try_from(abi::OUT_HEADER_SIZE + length) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let header = abi::OutHeader { len, error, unique };
        let header = IoSlice::new(header.as_bytes());
        match body {
            [] => self.writev(&[header]),
            [one] => self.writev(&[header, *one]),
            [one, two] => self.writev(&[header, *one, *two]),
            many => {
                let all: Vec<_> = std::iter::once(header).chain(many.iter().copied()).collect();
                self.writev(&all)
            }
        }
    }

    fn writev(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        // SAFETY: IoSlice has the layout of iovec, and all slices are borrowed for the call.
        let written = unsafe {
            libc::writev(self.fd.as_raw_fd(), slices.as_ptr().cast(), slices.len() as i32)
        };
        // The kernel takes a message whole or not at all.
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until there is something to read; `false` if `timeout` passes first.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        // Rounded up, so that the last millisecond is not spent polling.
        let left_ms = left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, left_ms) };
        match (ready, io::Error::last_os_error()) {
            (0, _) => return Ok(false),
            (1.., _) => return Ok(true),
            (_, error) if error.kind() == io::ErrorKind::Interrupted => {}
            (_, error) => return Err(error),
        }
    }
}
