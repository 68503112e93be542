//! Our client with other people's servers.

use std::fs;
use std::sync::Arc;

use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Durability};
use gabion_base::ids::BlockAddr;
use gabion_nbd::client::{Client, ClientOptions};

use crate::world::{Folder, Foreign, assert_pattern, exercise, pattern};

fn open(folder: &Folder) -> Client {
    Client::open(&folder.uri(""), ClientOptions::default()).unwrap()
}

#[test]
fn nbdkit_in_memory_with_and_without_structured_replies() {
    for extra in [&[][..], &["--no-sr"][..]] {
        let folder = Folder::new();
        let _server = Foreign::nbdkit(&folder, &[extra, &["memory", "16M"]].concat());
        exercise(&Arc::new(open(&folder)));
    }
}

#[test]
fn nbdkit_on_a_file_with_delays() {
    let folder = Folder::new();
    fs::File::create(folder.join("image")).unwrap().set_len(16 << 20).unwrap();
    let filter = ["--filter=delay", "file", "image", "rdelay=2ms", "wdelay=2ms"];
    let _server = Foreign::nbdkit(&folder, &filter);
    exercise(&Arc::new(open(&folder)));
}

#[test]
fn qemu_nbd_on_a_file() {
    let folder = Folder::new();
    fs::File::create(folder.join("image")).unwrap().set_len(16 << 20).unwrap();
    let socket = folder.join("socket");
    let socket = socket.to_str().unwrap();
    let arguments =
        ["--fork", "--pid-file=pid", "-k", socket, "-t", "-f", "raw", "--discard=unmap", "image"];
    let _server = Foreign::start(&folder, "qemu-nbd", &arguments);
    exercise(&Arc::new(open(&folder)));
}

#[test]
fn errors_of_the_server_are_those_of_the_request() {
    let folder = Folder::new();
    let filter = ["--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=100%"];
    let _server = Foreign::nbdkit(&folder, &filter);
    let client = open(&folder);
    client.write(BlockAddr(2), pattern(2, 1, 1), Durability::Cached).unwrap();
    let error = client.read(BlockAddr(2), &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("read of nbd+unix:///") && error.contains("block 2"), "{error}");
    assert!(error.contains("Input/output error"), "{error}");
    client.flush().unwrap();
}

#[test]
fn a_server_that_cannot_make_writes_durable_is_refused() {
    let folder = Folder::new();
    // Without a script for flushing there is no flushing.
    let plugin = ["eval", "get_size=echo 1048576", "pread=exit 1", "pwrite=exit 1"];
    let _server = Foreign::nbdkit(&folder, &plugin);
    let error = Client::open(&folder.uri(""), ClientOptions::default()).unwrap_err();
    assert!(error.to_string().contains("durable"), "{error}");
}

#[test]
fn a_server_that_fails_now_and_then_fails_those_requests_and_no_others() {
    let folder = Folder::new();
    let filters = [
        "--filter=error",
        "--filter=delay",
        "memory",
        "16M",
        "delay-read=1ms",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=30%",
        "error-pread=EIO",
        "error-pread-rate=30%",
    ];
    let _server = Foreign::nbdkit(&folder, &filters);
    let client = open(&folder);
    let write = |at: u64| DiskRequest::Write {
        addr: BlockAddr(at),
        parts: vec![pattern(at, 1, 1)],
        durability: Durability::Cached,
    };
    let writes: Vec<_> = (0..256).map(|at| client.submit(write(at))).collect();
    let written: Vec<_> = writes.into_iter().map(|ticket| ticket.wait()).collect();
    let read = |at| DiskRequest::Read { addr: BlockAddr(at), count: 1 };
    let reads: Vec<_> = (0..256).map(|at| client.submit(read(at))).collect();
    let (mut failed_writes, mut failed_reads) = (0, 0);
    for ((at, written), read) in (0..).zip(written).zip(reads) {
        let expected = match written {
            Ok(_) => pattern(at, 1, 1),
            Err(error) => {
                failed_writes += 1;
                assert!(error.to_string().contains("No space left"), "{error}");
                BlockSlice::new(Blocks::zeroed(1))
            }
        };
        match read.wait() {
            Ok(blocks) => assert!(blocks.unwrap().bytes() == expected.bytes(), "block {at}"),
            Err(error) => {
                failed_reads += 1;
                assert!(error.to_string().contains("Input/output error"), "{error}");
            }
        }
    }
    assert!((1..256).contains(&failed_writes) && (1..256).contains(&failed_reads));
    client.flush().unwrap();
}

#[test]
fn requests_have_the_sizes_that_the_server_wants() {
    let folder = Folder::new();
    let filters = [
        "--filter=blocksize-policy",
        "memory",
        "16M",
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=16384",
        "blocksize-maximum=64k",
    ];
    let _server = Foreign::nbdkit(&folder, &filters);
    let client = Arc::new(open(&folder));
    exercise(&client);
    client.write(BlockAddr(7), pattern(7, 1000, 4), Durability::Fua).unwrap();
    assert_pattern(&*client, 7, 1000, 4);
}
