//! A session against a kernel played by the test, message by message: what a real kernel does
//! rarely, or never.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use gabion_fuse::abi::{self, opcode};
use gabion_fuse::{Config, Device, End, Session, SessionError};
use zerocopy::{FromBytes, IntoBytes};

use crate::memfs::{MemFs, Served};

/// The kernel's side: one end of a socket that keeps messages apart, as the device does.
struct Kernel(OwnedFd);

impl Kernel {
    fn new() -> (Self, Device) {
        let mut pair = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the array has room for the two descriptors, which are ours from then on.
        let [kernel, device] = unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()), 0);
            pair.map(|fd| OwnedFd::from_raw_fd(fd))
        };
        (Self(kernel), Device::from_fd(device))
    }

    fn send(&self, opcode: u32, unique: u64, body: &[u8]) {
        let len = (abi::IN_HEADER_SIZE + body.len()) as u32;
        let header = abi::InHeader { len, opcode, unique, nodeid: 1, ..Default::default() };
        let message = [header.as_bytes(), body].concat();
        // SAFETY: the bytes live during the call.
        let sent =
            unsafe { libc::write(self.0.as_raw_fd(), message.as_ptr().cast(), message.len()) };
        assert_eq!(sent, message.len() as isize);
    }

    /// The next reply and its body.
    fn receive(&self) -> (abi::OutHeader, Vec<u8>) {
        let mut message = vec![0; 4096];
        // SAFETY: the buffer has the size given.
        let length =
            unsafe { libc::read(self.0.as_raw_fd(), message.as_mut_ptr().cast(), message.len()) };
        assert!(length > 0, "{}", io::Error::last_os_error());
        message.truncate(length as usize);
        let (header, body) = abi::OutHeader::read_from_prefix(&message).unwrap();
        assert_eq!(header.len as usize, message.len());
        (header, body.to_vec())
    }

    fn send_init(&self, major: u32, minor: u32) {
        let all = u32::MAX;
        let init = abi::InitIn {
            major,
            minor,
            max_readahead: 1 << 17,
            flags: all,
            flags2: all,
            unused: [0; 11],
        };
        self.send(opcode::INIT, 2, init.as_bytes());
    }

    fn receive_init(&self) -> abi::InitOut {
        let (header, body) = self.receive();
        assert_eq!((header.unique, header.error), (2, 0));
        abi::InitOut::read_from_bytes(&body).unwrap()
    }

    /// Asks, and expects this errno.
    fn expect(&self, opcode: u32, body: &[u8], errno: i32) {
        self.send(opcode, 100, body);
        let (header, body) = self.receive();
        assert_eq!((header.unique, header.error, body.len()), (100, -errno, 0));
    }
}

fn start(device: Device) -> Result<Session, SessionError> {
    Session::start(device, Served(Arc::new(MemFs::default())), Config::default())
}

fn started() -> (Kernel, Session) {
    let (kernel, device) = Kernel::new();
    kernel.send_init(7, 45);
    let session = start(device).unwrap();
    kernel.receive_init();
    (kernel, session)
}

#[test]
fn interrupt_that_overtakes_its_request_is_sent_back() {
    let (kernel, _session) = started();
    kernel.send(opcode::INTERRUPT, 7, abi::InterruptIn { unique: 6 }.as_bytes());
    let (header, _) = kernel.receive();
    assert_eq!((header.unique, header.error), (7, -libc::EAGAIN));
}

#[test]
fn unknown_and_malformed_requests_are_answered_and_survived() {
    let (kernel, _session) = started();
    kernel.expect(4711, &[0; 100], libc::ENOSYS);
    kernel.expect(opcode::SETUPMAPPING, &[0; 100], libc::ENOSYS);
    kernel.expect(opcode::LOOKUP, b"no end", libc::EIO);
    kernel.expect(opcode::WRITE, &[1; 44], libc::EIO);
    kernel.expect(opcode::SETLK, &[9; 48], libc::EINVAL);
    kernel.expect(opcode::INIT, &[0; 64], libc::EIO);
    kernel.send(opcode::BATCH_FORGET, 100, &[255; 8]);
    kernel.send(opcode::FORGET, 100, &[]);
    kernel.send(opcode::INTERRUPT, 101, &[1]);
    kernel.send(opcode::NOTIFY_REPLY, 100, &[]);
    kernel.expect(opcode::LOOKUP, b"dropped\0", libc::EIO);
}

#[test]
fn copied_length_has_the_form_of_its_request() {
    let (kernel, _session) = started();
    let request = abi::CopyFileRangeIn { len: 1 << 33, ..Default::default() };
    kernel.send(opcode::COPY_FILE_RANGE_64, 2, request.as_bytes());
    assert_eq!(kernel.receive().1, (1u64 << 33).to_ne_bytes());
    kernel.send(opcode::COPY_FILE_RANGE, 2, request.as_bytes());
    assert_eq!(kernel.receive().1, u64::from(u32::MAX).to_ne_bytes());
}

#[test]
fn older_protocol_is_spoken_and_too_old_a_one_refused() {
    let (kernel, device) = Kernel::new();
    kernel.send_init(7, 38);
    let _session = start(device).unwrap();
    assert_eq!(kernel.receive_init().minor, 38);

    let (kernel, device) = Kernel::new();
    kernel.send_init(7, 31);
    let refused = start(device);
    assert!(matches!(refused, Err(SessionError::Version { major: 7, minor: 31, .. })));
    assert_eq!(kernel.receive().0.error, -libc::EPROTO);
}

#[test]
fn newer_major_version_is_told_ours_and_asks_again() {
    let (kernel, device) = Kernel::new();
    kernel.send_init(8, 1);
    kernel.send_init(7, 50);
    let _session = start(device).unwrap();
    assert_eq!(kernel.receive_init().major, 7);
    let agreed = kernel.receive_init();
    assert_eq!((agreed.major, agreed.minor, agreed.max_write), (7, 45, 1 << 20));
}

#[test]
fn connection_that_breaks_before_or_after_init_is_noticed() {
    let (kernel, device) = Kernel::new();
    drop(kernel);
    assert!(matches!(start(device), Err(SessionError::Device(_))));

    let (kernel, session) = started();
    drop(kernel);
    assert!(matches!(session.wait(), End::Unmounted | End::Failed(_)));
}

#[test]
fn destroy_is_answered_after_the_filesystem_finished_and_runs_once() {
    let (kernel, device) = Kernel::new();
    kernel.send_init(7, 45);
    let fs = Arc::new(MemFs::default());
    let session = Session::start(device, Served(Arc::clone(&fs)), Config::default()).unwrap();
    kernel.receive_init();
    kernel.expect(opcode::DESTROY, &[], 0);
    assert_eq!(fs.record(|record| record.destroyed), 1);
    session.shutdown();
    assert_eq!(session.wait(), End::Shutdown);
    assert_eq!(fs.record(|record| record.destroyed), 1);
}
