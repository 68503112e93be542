//! Our client with other people's servers.

use std::fs;
use std::sync::Arc;

use gabion_base::disk::{Disk, Durability};
use gabion_base::ids::BlockAddr;
use gabion_nbd::client::{Client, ClientOptions};

use crate::world::{Folder, Foreign, exercise, pattern};

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
