//! Multicasts between programs of one machine, over NETLINK_USERSOCK.
//!
//! ```text
//! "gabion-event-1" 0 FOLDER 0 LINE
//! ```
//!
//! Anybody may send to the group, so a receiver asks the kernel who has sent (SCM_CREDENTIALS).
//! Joining takes CAP_NET_ADMIN. A receiver that is too slow loses messages and is told so
//! (ENOBUFS); a sender is never held up. Each network namespace has groups of its own.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use gabion_base::event::{LINE_BYTES_MAX, Record};

use crate::sys::retried;

/// The multicast group, of 1 to 32.
pub const GROUP: u32 = 17;
const MAGIC: &[u8] = b"gabion-event-1";
/// The longest message: a magic, a path and a line.
const MESSAGE_BYTES_MAX: usize = 64 + libc::PATH_MAX as usize + LINE_BYTES_MAX;
/// Messages that are taken at once, so that a flood ends.
const MESSAGES_MAX: usize = 1024;

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let socket = retried(|| unsafe { libc::socket(libc::AF_NETLINK, kind, 2) })?;
    const { assert!(libc::NETLINK_USERSOCK == 2) };
    // SAFETY: the descriptor was just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn address(groups: u32) -> libc::sockaddr_nl {
    // SAFETY: the address is plain bytes, and zeros are valid for all of it.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    address
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_nl>() as libc::socklen_t;

/// The sending end.
#[derive(Debug)]
pub(super) struct Sender {
    socket: OwnedFd,
}

impl Sender {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: socket()? })
    }

    /// Sends a record of the log in `folder` to whoever listens.
    pub(super) fn send(&self, folder: &Path, record: &Record) -> io::Result<()> {
        let line = record.to_line();
        let message = [MAGIC, folder.as_os_str().as_bytes(), line.as_bytes()].join(&0);
        let address = address(1 << (GROUP - 1));
        let (data, length) = (message.as_ptr().cast(), message.len());
        // SAFETY: both pointers are to values that live through the call, with their lengths.
        let sent = retried(|| unsafe {
            let address = ptr::from_ref(&address).cast();
            let flags = libc::MSG_DONTWAIT;
            libc::sendto(self.socket.as_raw_fd(), data, length, flags, address, ADDRESS_BYTES)
        });
        match sent {
            // Said of the kernel's own end, which nobody listens at; it went to the group.
            Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(()),
            sent => sent.map(drop),
        }
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: OwnedFd,
}

impl Receiver {
    /// Joins the group; fails where that is not allowed.
    pub(super) fn join() -> io::Result<Self> {
        let socket = socket()?;
        let fd = socket.as_raw_fd();
        let on: libc::c_int = 1;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the pointer and the length describe `on`.
        retried(|| unsafe {
            let on = ptr::from_ref(&on).cast();
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_PASSCRED, on, length)
        })?;
        let address = address(1 << (GROUP - 1));
        // SAFETY: the pointer and the length describe `address`.
        retried(|| unsafe { libc::bind(fd, ptr::from_ref(&address).cast(), ADDRESS_BYTES) })?;
        Ok(Self { socket })
    }

    /// Waits for a message, or until `patience` is over.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<()> {
        let events = libc::POLLIN;
        let mut ready = [libc::pollfd { fd: self.socket.as_raw_fd(), events, revents: 0 }];
        let timeout = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the length describe `ready`.
        match unsafe { libc::poll(ready.as_mut_ptr(), 1, timeout) } {
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
            _ => Ok(()),
        }
    }

    /// Takes all messages that are there; the records of those about `folder` by who may send them.
    pub(super) fn take(&self, folder: &Path) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        for _ in 0..MESSAGES_MAX {
            match self.receive(&mut bytes) {
                Ok(Some((length, uid))) if is_trusted(uid) => {
                    records.extend(decode(&bytes[..length], folder));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some were lost. They are in the log.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// One message's length, and its sender if the kernel tells; nothing of what was cut off.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<Option<(usize, libc::uid_t)>> {
        // Aligned as the kernel's headers, with room for credentials and more.
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: the header is plain bytes, and zeros are valid for all of it.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        let fd = self.socket.as_raw_fd();
        // SAFETY: the header describes `bytes` and `control`, which live through the call.
        let length = retried(|| unsafe { libc::recvmsg(fd, &mut header, libc::MSG_DONTWAIT) })?;
        if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Ok(None);
        }
        // SAFETY: the kernel has filled in the header and as much of `control` as it says.
        let credentials = unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            let is_one = !first.is_null()
                && (*first).cmsg_level == libc::SOL_SOCKET
                && (*first).cmsg_type == libc::SCM_CREDENTIALS;
            is_one.then(|| libc::CMSG_DATA(first).cast::<libc::ucred>().read_unaligned())
        };
        Ok(credentials.map(|credentials| (length as usize, credentials.uid)))
    }
}

/// Whether events of this user are believed: of root, and of who asks.
fn is_trusted(uid: libc::uid_t) -> bool {
    // SAFETY: takes no pointers and cannot fail.
    uid == 0 || uid == unsafe { libc::geteuid() }
}

fn decode(message: &[u8], folder: &Path) -> Option<Record> {
    let rest = message.strip_prefix(MAGIC)?.strip_prefix(b"\0")?;
    let rest = rest.strip_prefix(folder.as_os_str().as_bytes())?.strip_prefix(b"\0")?;
    Record::from_line(rest).ok()
}
