//! Clients that mean no good.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::{Disk, MemDisk};
use gabion_base::ids::BlockAddr;
use gabion_nbd::client::{Client, ClientOptions};
use gabion_nbd::server::handshake::{Encryption, Handshake, Step, Welcome};
use gabion_nbd::server::{Export, Exports, Permission, Replies, Stopped};
use gabion_nbd::wire::option::{OPTION_REPLY_BYTES, OptionReplyHead, go_data, kind, option, reply};
use gabion_nbd::wire::reply::REPLY_BYTES;
use gabion_nbd::wire::request::{Command, Request};
use gabion_nbd::wire::{OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX};
use proptest::prelude::*;

use crate::world::{Folder, pattern};

fn exports() -> Exports {
    let export = |name: &str| Export::new(name, Arc::new(MemDisk::new(16)), Permission::ReadWrite);
    Exports::new(vec![export("one"), export("two")])
}

/// Feeds bytes to the machine as a connection would; gives its replies, and whether it goes on to
/// the transmission (or nothing if it ended).
fn feed(bytes: &[u8]) -> (Vec<OptionReplyHead>, Option<Option<Replies>>) {
    feed_as(Encryption::Unavailable, bytes)
}

fn feed_as(
    encryption: Encryption,
    bytes: &[u8],
) -> (Vec<OptionReplyHead>, Option<Option<Replies>>) {
    let exports = exports();
    let mut out = Vec::new();
    let mut machine = Handshake::new(&exports, "it".into(), encryption, &mut out);
    assert_eq!(out.len(), 18);
    out.clear();
    let mut rest = bytes;
    let mut end = Some(None);
    while let Some((head, tail)) = rest.split_at_checked(machine.needs()) {
        rest = tail;
        match machine.take(head, Welcome::Open, &mut out) {
            Step::More | Step::StartTls => {}
            Step::Go(session) => {
                end = Some(Some(session.replies));
                break;
            }
            Step::End(_) => {
                end = None;
                break;
            }
        }
        assert!(machine.needs() <= OPTION_BYTES_MAX as usize);
    }
    let mut replies = Vec::new();
    let mut rest = &out[..];
    while let Some((head, tail)) = rest.split_first_chunk::<OPTION_REPLY_BYTES>() {
        let Ok(head) = OptionReplyHead::decode(head) else { break };
        rest = &tail[head.length as usize..];
        replies.push(head);
    }
    (replies, end)
}

fn handshake(options: &[Vec<u8>]) -> Vec<u8> {
    [vec![0, 0, 0, 3], options.concat()].concat()
}

#[test]
fn every_option_gets_the_reply_of_the_standard() {
    let meta = |export: &str, query: &str| {
        let counted =
            |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
        [counted(export), vec![0, 0, 0, 1], counted(query)].concat()
    };
    let cases = [
        (kind::LIST, vec![], vec![reply::SERVER, reply::SERVER, reply::ACK]),
        (kind::LIST, vec![0], vec![reply::ERR_INVALID]),
        (kind::STARTTLS, vec![], vec![reply::ERR_POLICY]),
        (kind::STARTTLS, vec![0], vec![reply::ERR_INVALID]),
        (kind::INFO, go_data("one", &[]), vec![reply::INFO, reply::INFO, reply::ACK]),
        (kind::INFO, go_data("three", &[]), vec![reply::ERR_UNKNOWN]),
        (kind::INFO, vec![1], vec![reply::ERR_INVALID]),
        (kind::INFO, vec![0; OPTION_BYTES_MAX as usize + 1], vec![reply::ERR_TOO_BIG]),
        (kind::STRUCTURED_REPLY, vec![], vec![reply::ACK]),
        (kind::STRUCTURED_REPLY, vec![1], vec![reply::ERR_INVALID]),
        (
            kind::SET_META_CONTEXT,
            meta("one", "base:allocation"),
            vec![reply::META_CONTEXT, reply::ACK],
        ),
        (kind::SET_META_CONTEXT, meta("one", "base:"), vec![reply::ACK]),
        (kind::SET_META_CONTEXT, meta("one", "x-other:y"), vec![reply::ACK]),
        (kind::SET_META_CONTEXT, meta("three", "base:allocation"), vec![reply::ERR_UNKNOWN]),
        (kind::LIST_META_CONTEXT, meta("one", "base:"), vec![reply::META_CONTEXT, reply::ACK]),
        (kind::LIST_META_CONTEXT, meta("one", "colonless"), vec![reply::ERR_INVALID]),
        (77, vec![1, 2, 3], vec![reply::ERR_UNSUPPORTED]),
    ];
    for (number, data, wanted) in cases {
        let structured = option(kind::STRUCTURED_REPLY, &[]);
        let (replies, end) = feed(&handshake(&[structured, option(number, &data)]));
        let replies: Vec<_> =
            replies.iter().skip(1).map(|head| (head.option, head.reply)).collect();
        let wanted: Vec<_> = wanted.into_iter().map(|reply| (number, reply)).collect();
        assert_eq!(replies, wanted, "option {number} with {} bytes", data.len());
        assert_eq!(end, Some(None), "the haggling goes on after option {number}");
    }
    // Metadata needs structured replies.
    let query = option(kind::SET_META_CONTEXT, &meta("one", "base:allocation"));
    assert_eq!(feed(&handshake(&[query])).0[0].reply, reply::ERR_INVALID);
    // These end the haggling.
    assert_eq!(feed(&handshake(&[option(kind::ABORT, &[])])).1, None);
    assert_eq!(feed(&handshake(&[option(kind::EXPORT_NAME, b"three")])).1, None);
    let go = feed(&handshake(&[option(kind::EXPORT_NAME, b"two")]));
    assert_eq!(go.1, Some(Some(Replies::Simple)));
    assert_eq!(feed(&[0xff; 4]).1, None, "unknown flags");
    assert_eq!(feed(&handshake(&[vec![0; 16]])).1, None, "an unknown magic number");
}

#[test]
fn a_server_that_encrypts_has_no_other_answer_before() {
    let all = |encryption| {
        let options = (0..12).filter(|number| !matches!(*number, 1 | 2 | 5));
        let options: Vec<_> = options.map(|number| option(number, &[])).collect();
        feed_as(encryption, &handshake(&options)).0
    };
    let replies = all(Encryption::Required);
    assert_eq!(replies.len(), 9);
    assert!(replies.iter().all(|head| head.reply == reply::ERR_TLS_REQUIRED), "{replies:?}");
    assert!(all(Encryption::Active).iter().all(|head| head.reply != reply::ERR_TLS_REQUIRED));
    let name = handshake(&[option(kind::EXPORT_NAME, b"one")]);
    assert_eq!(feed_as(Encryption::Required, &name).1, None);
    // Behind STARTTLS everything is possible, except for another one.
    let (tls, list) = (option(kind::STARTTLS, &[]), option(kind::LIST, &[]));
    let (replies, _) = feed_as(Encryption::Required, &handshake(&[tls.clone(), list, tls]));
    let replies: Vec<_> = replies.iter().map(|head| head.reply).collect();
    let server = reply::SERVER;
    assert_eq!(replies, [reply::ACK, server, server, reply::ACK, reply::ERR_INVALID]);
}

proptest! {
    #[test]
    fn any_bytes_leave_the_handshake_in_order(
        bytes in proptest::collection::vec(any::<u8>(), 0..512)
    ) {
        feed(&bytes);
    }

    #[test]
    fn any_options_leave_the_handshake_in_order(
        options in proptest::collection::vec(
            (0_u32..13, proptest::collection::vec(0_u8..4, 0..40)), 0..20)
    ) {
        let options: Vec<_> =
            options.into_iter().map(|(kind, data)| option(kind, &data)).collect();
        feed(&handshake(&options));
    }
}

/// A client that has just entered the transmission with simple replies.
fn transmission(folder: &Folder) -> UnixStream {
    let mut stream = UnixStream::connect(folder.join("socket")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&handshake(&[option(kind::EXPORT_NAME, b"disk")])).unwrap();
    stream.read_exact(&mut [0; 18 + 10]).unwrap();
    stream
}

fn error_of(stream: &mut UnixStream) -> u32 {
    let mut bytes = [0; REPLY_BYTES];
    stream.read_exact(&mut bytes).unwrap();
    u32::from_be_bytes(bytes[4..8].try_into().unwrap())
}

fn request(command: Command, offset: u64, length: u32) -> Request {
    Request { flags: 0, command: command.number(), cookie: 1, offset, length }
}

#[test]
fn a_refused_write_does_not_disturb_the_next_request() {
    let folder = Folder::new();
    let _server = folder.serve(Arc::new(MemDisk::new(16)), Permission::ReadWrite);
    let mut stream = transmission(&folder);
    let behind = request(Command::Write, 16 * 4096, 8192);
    stream.write_all(&[&behind.encode()[..], &[9; 8192]].concat()).unwrap();
    assert_eq!(error_of(&mut stream), 28);
    let unknown = Request { command: 99, ..behind };
    stream.write_all(&unknown.encode()).unwrap();
    assert_eq!(error_of(&mut stream), 22);
    stream.write_all(&request(Command::Flush, 0, 0).encode()).unwrap();
    assert_eq!(error_of(&mut stream), 0);
    // More than is ever read just to be dropped.
    stream.write_all(&request(Command::Write, 0, u32::MAX).encode()).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the connection ends");
}

#[test]
fn any_bytes_in_the_transmission_leave_the_server_alive() {
    let folder = Folder::new();
    let server = folder.serve(Arc::new(MemDisk::new(16)), Permission::ReadWrite);
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 33
    };
    for _ in 0..200 {
        let mut stream = transmission(&folder);
        for _ in 0..8 {
            let wild = Request {
                flags: (random() & 0x1f) as u16,
                command: (random() % 10) as u16,
                cookie: random(),
                offset: random() % (20 * 4096),
                length: (random() % 9000) as u32,
            };
            let mut bytes = wild.encode().to_vec();
            if random() % 8 == 0 {
                bytes[(random() % 28) as usize] ^= random() as u8;
            }
            if wild.command == 1 {
                bytes.resize(28 + wild.length as usize, 7);
            }
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let client = Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap();
    client.write(BlockAddr(0), pattern(0, 1, 1), gabion_base::disk::Durability::Fua).unwrap();
    drop(client);
    assert_eq!(server.stop(Duration::from_secs(10)), Stopped::Clean);
}

#[test]
fn a_client_that_takes_no_replies_does_not_stop_others_or_the_end() {
    let folder = Folder::new();
    let blocks = u64::from(PAYLOAD_BYTES_MAX) / 4096;
    let image = vec![5; PAYLOAD_BYTES_MAX as usize];
    let server = folder.serve(Arc::new(MemDisk::from_image(image)), Permission::ReadWrite);
    let mut greedy = transmission(&folder);
    for _ in 0..8 {
        greedy.write_all(&request(Command::Read, 0, PAYLOAD_BYTES_MAX).encode()).unwrap();
    }
    // The first reply is on its way.
    greedy.read_exact(&mut [0]).unwrap();
    let client = Client::open(&folder.uri("disk"), ClientOptions::default()).unwrap();
    client.read(BlockAddr(blocks - 1), &mut [0; 4096]).unwrap();
    drop(client);
    assert_eq!(server.stop(Duration::from_millis(200)), Stopped::CutOff(1));
}
