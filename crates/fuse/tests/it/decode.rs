//! Decoding of messages as the kernel sends them, and of everything it never sends.

use gabion_fuse::abi::{self, Wire, opcode};
use gabion_fuse::decode::{DecodeError, Message, decode};
use gabion_fuse::*;
use proptest::prelude::*;

/// A message with a correct header.
fn message(opcode: u32, parts: &[&[u8]]) -> Vec<u8> {
    extended(opcode, parts, 0)
}

/// A message whose last `extension_words` times 8 bytes are extensions.
fn extended(opcode: u32, parts: &[&[u8]], extension_words: u16) -> Vec<u8> {
    let body = parts.concat();
    let header = abi::InHeader {
        len: (abi::IN_HEADER_SIZE + body.len()) as u32,
        opcode,
        unique: 42,
        nodeid: 7,
        uid: 1,
        gid: 2,
        pid: 3,
        total_extlen: extension_words,
        padding: 0,
    };
    [bytes(&header), &body].concat()
}

fn bytes(wire: &impl Wire) -> &[u8] {
    wire.as_bytes()
}

fn op(message: &[u8]) -> Op<'_> {
    match decode(message) {
        Ok(Message::Request(request)) => request.op,
        other => panic!("{other:?}"),
    }
}

#[test]
fn caller_and_node_come_from_the_header() {
    let message = message(opcode::LOOKUP, &[b"name\0"]);
    let Ok(Message::Request(request)) = decode(&message) else { panic!() };
    assert_eq!((request.unique, request.node), (42, NodeId(7)));
    assert_eq!((request.uid, request.gid, request.pid), (1, 2, 3));
    assert!(matches!(request.op, Op::Lookup { name: b"name" }));
    assert!(!request.is_resent());
}

#[test]
fn only_valid_fields_of_setattr_are_there() {
    let valid = abi::FATTR_SIZE | abi::FATTR_ATIME | abi::FATTR_ATIME_NOW | abi::FATTR_MTIME;
    let wire = abi::SetattrIn { valid, size: 9, mtime: -5, mtimensec: 6, ..Default::default() };
    let message = message(opcode::SETATTR, &[bytes(&wire)]);
    let Op::Setattr(setattr) = op(&message) else { panic!() };
    let mtime = SetTime::At(Timestamp { seconds: -5, nanoseconds: 6 });
    let expected = Setattr {
        size: Some(9),
        atime: Some(SetTime::Now),
        mtime: Some(mtime),
        ..Setattr::default()
    };
    assert_eq!(setattr, expected);
}

#[test]
fn both_renames_name_source_and_target() {
    let old = abi::RenameIn { newdir: 8 };
    let new = abi::Rename2In { newdir: 8, flags: 2, padding: 0 };
    for (message, expected) in [
        (message(opcode::RENAME, &[bytes(&old), b"a\0b\0"]), 0),
        (message(opcode::RENAME2, &[bytes(&new), b"a\0b\0"]), 2),
    ] {
        let Op::Rename { name, new_parent, new_name, flags } = op(&message) else { panic!() };
        assert_eq!((name, new_parent, new_name), (&b"a"[..], NodeId(8), &b"b"[..]));
        assert_eq!(flags, expected);
    }
}

#[test]
fn extensions_are_cut_off_and_the_group_is_found_in_them() {
    let head = abi::MkdirIn { mode: 0o755, umask: 0o22 };
    let other = abi::ExtHeader { size: 16, kind: 0 };
    let groups = abi::ExtHeader { size: 16, kind: abi::EXT_GROUPS };
    let group = [1u32, 4711].map(u32::to_ne_bytes).concat();
    let parts = [bytes(&head), b"d\0", bytes(&other), &[0; 8], bytes(&groups), &group];
    let message = extended(opcode::MKDIR, &parts, 4);
    let Ok(Message::Request(request)) = decode(&message) else { panic!() };
    assert_eq!(request.supplementary_group, Some(4711));
    assert!(matches!(request.op, Op::Mkdir { name: b"d", mode: 0o755, umask: 0o22 }));
}

#[test]
fn forgets_of_both_kinds_are_listed() {
    let one = message(opcode::FORGET, &[bytes(&abi::ForgetIn { nlookup: 5 })]);
    let Ok(Message::Forget(forgets)) = decode(&one) else { panic!() };
    assert_eq!(forgets.collect::<Vec<_>>(), [(NodeId(7), 5)]);

    let items =
        [abi::ForgetOne { nodeid: 1, nlookup: 2 }, abi::ForgetOne { nodeid: 3, nlookup: 4 }];
    let head = abi::BatchForgetIn { count: 2, dummy: 0 };
    let parts = [bytes(&head), bytes(&items[0]), bytes(&items[1])];
    let batch = message(opcode::BATCH_FORGET, &parts);
    let Ok(Message::Forget(forgets)) = decode(&batch) else { panic!() };
    assert_eq!(forgets.collect::<Vec<_>>(), [(NodeId(1), 2), (NodeId(3), 4)]);
}

#[test]
fn sizes_that_exceed_the_message_are_refused() {
    let count = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
    let size = abi::SetxattrIn { size: 6, ..Default::default() };
    let write = abi::WriteIn { size: 4, ..Default::default() };
    let ioctl = abi::IoctlIn { in_size: 1, ..Default::default() };
    for message in [
        message(opcode::BATCH_FORGET, &[bytes(&count), &[0; 32]]),
        message(opcode::SETXATTR, &[bytes(&size), b"name\0value"]),
        message(opcode::WRITE, &[bytes(&write), b"abc"]),
        message(opcode::IOCTL, &[bytes(&ioctl)]),
        extended(opcode::STATFS, &[&[0; 8]], 2),
    ] {
        assert!(matches!(decode(&message), Err(DecodeError::Overrun { .. })), "{message:?}");
    }
}

#[test]
fn names_without_end_and_undefined_values_are_refused() {
    assert_eq!(decode(&message(opcode::LOOKUP, &[b"name"])).err(), Some(DecodeError::Unterminated));
    assert_eq!(
        decode(&message(opcode::SYMLINK, &[b"name\0target"])).err(),
        Some(DecodeError::Unterminated)
    );
    let mut lock = abi::LkIn::default();
    lock.lk.kind = 9;
    let refused = decode(&message(opcode::SETLK, &[bytes(&lock)])).err();
    assert_eq!(refused, Some(DecodeError::Value { field: "lock kind", value: 9 }));
    assert_eq!(decode(&message(4096, &[])).err(), Some(DecodeError::Opcode(4096)));
}

#[test]
fn header_must_tell_the_length() {
    let mut message = message(opcode::STATFS, &[]);
    message.push(0);
    assert_eq!(decode(&message).err(), Some(DecodeError::Length { length: 41, claimed: 40 }));
    assert_eq!(decode(&[1; 39]).err(), Some(DecodeError::Short { length: 39, needed: 40 }));
}

#[test]
fn init_of_older_kernels_is_completed_with_zeros() {
    let short = [7u32, 33, 4096, 1].map(u32::to_ne_bytes).concat();
    let message = message(opcode::INIT, &[&short]);
    let Ok(Message::Init(init)) = decode(&message) else { panic!() };
    assert_eq!((init.major, init.minor, init.flags, init.flags2), (7, 33, 1, 0));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn arbitrary_bodies_are_decoded_or_refused(
        opcode in 0u32..60,
        extension_words in prop_oneof![Just(0), 0u16..20, any::<u16>()],
        body in prop::collection::vec(prop_oneof![Just(0u8), Just(8), any::<u8>()], 0..160),
    ) {
        let message = extended(opcode, &[&body], extension_words);
        if let Ok(Message::Forget(forgets)) = decode(&message) {
            prop_assert!(forgets.count() <= body.len() / 8);
        }
    }
}
