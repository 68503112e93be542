//! `gabion target` as other people's NBD clients meet it, and ours when it dies.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::buffer::{BlockSlice, Blocks};
use gabion_base::disk::{Disk, DiskRequest, Durability};
use gabion_base::ids::BlockAddr;
use gabion_nbd::client::{Client, ClientOptions};
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Folder, GABION, Running};

const SIZE: u64 = 16 << 20;
/// Where writes can wait for a flush.
const CACHES: [&str; 2] = ["none", "writeback"];

/// A target, and the URIs that it has printed.
struct Target {
    running: Running,
    uris: Vec<String>,
}

impl Target {
    /// Starts one and reads a line for each of `uris`.
    #[track_caller]
    fn start(folder: &Folder, uris: usize, arguments: &[&str]) -> Self {
        let child = Command::new(GABION)
            .arg("target")
            .args(arguments)
            .current_dir(folder.path())
            .env("GABION_STATE", folder.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut running = Running(child.unwrap());
        let lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let uris: Vec<_> = lines.take(uris).map(Result::unwrap).collect();
        Self { running, uris }
    }

    /// One export, `disk`, of an image at a free port.
    fn of_image(folder: &Folder) -> Self {
        Self::with_cache(folder, "none")
    }

    /// The same, with writes waiting for a flush there.
    fn with_cache(folder: &Folder, cache: &str) -> Self {
        image(folder);
        let listen = ["--raw", "--listen", "127.0.0.1:0", "disk=image"];
        Self::start(folder, 1, &[&["--cache", cache], &listen[..]].concat())
    }

    fn uri(&self) -> &str {
        &self.uris[0]
    }

    /// Asks it to stop, and asserts that it does so in order.
    fn stop(mut self) {
        self.running.signal(Signal::TERM);
        assert!(self.running.0.wait().unwrap().success());
    }
}

fn image(folder: &Folder) -> PathBuf {
    let path = folder.join("image");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    file.unwrap().set_len(SIZE).unwrap();
    path
}

/// Random bytes with a hole, in `source`.
fn source(folder: &Folder) -> PathBuf {
    let mut bytes = vec![0; SIZE as usize];
    let random = File::open("/dev/urandom").unwrap();
    (&random).read_exact(&mut bytes[..5 << 20]).unwrap();
    (&random).read_exact(&mut bytes[(9 << 20) + 123..11 << 20]).unwrap();
    fs::write(folder.join("source"), bytes).unwrap();
    folder.join("source")
}

fn run(folder: &Folder, program: &str, arguments: &[&str]) -> String {
    folder.run(Command::new(program).args(arguments)).succeeded()
}

#[test]
fn a_target_says_where_its_exports_are_and_what_they_can_do() {
    let folder = Folder::new();
    image(&folder);
    File::create(folder.join("b c")).unwrap().set_len(1 << 20).unwrap();
    let socket = format!("unix:{}", folder.join("socket").display());
    let listen = ["--raw", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", &socket];
    let arguments = [&listen[..], &["a=image", "b c=b c"]].concat();
    let target = Target::start(&folder, 6, &arguments);
    assert_eq!(target.uris.len(), 6);
    for uri in &target.uris {
        let told = run(&folder, "nbdinfo", &["--json", uri]);
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["protocol"], &told["structured"]),
            (&"newstyle-fixed".into(), &true.into())
        );
        let export = &told["exports"][0];
        let size = if uri.contains("b%20c") { 1 << 20 } else { SIZE };
        assert_eq!(export["export-size"], size, "{uri}");
        assert_eq!(export["contexts"][0], "base:allocation");
        for ability in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{ability}")], true, "{ability} at {uri}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_maximum"], 32 << 20);
    }
    let list = run(&folder, "nbdinfo", &["--list", &target.uris[0]]);
    assert!(list.contains("export=\"a\"") && list.contains("export=\"b c\""), "{list}");
    target.stop();
    assert!(!folder.join("socket").exists());
}

#[test]
fn nbdcopy_and_qemu_copy_there_and_back() {
    for cache in CACHES {
        let folder = Folder::new();
        let source = fs::read(source(&folder)).unwrap();
        let target = Target::with_cache(&folder, cache);
        run(&folder, "nbdcopy", &["source", target.uri()]);
        run(&folder, "nbdcopy", &[target.uri(), "back"]);
        assert!(fs::read(folder.join("back")).unwrap() == source);
        let told = run(&folder, "qemu-img", &["info", target.uri()]);
        assert!(told.contains("virtual size: 16 MiB"), "{told}");
        run(&folder, "qemu-img", &["compare", "-f", "raw", "-F", "raw", "source", target.uri()]);
        run(&folder, "qemu-io", &["-f", "raw", target.uri(), "-c", "write -P 7 0 16M"]);
        run(
            &folder,
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", "source", target.uri()],
        );
        run(&folder, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", target.uri(), "q"]);
        run(&folder, "qemu-img", &["check", "q"]);
        run(&folder, "qemu-img", &["compare", "q", target.uri()]);
        target.stop();
        assert!(fs::read(folder.join("image")).unwrap() == source);
    }
}

#[test]
fn holes_are_told_to_other_clients_and_stay_holes_in_copies() {
    for cache in CACHES {
        let folder = Folder::new();
        let image = File::options().write(true).open(image(&folder)).unwrap();
        image.write_all_at(&[7; 1 << 20], 4 << 20).unwrap();
        image.write_all_at(&[7; 4096], 9 << 20).unwrap();
        let target = Target::with_cache(&folder, cache);
        let map = run(&folder, "nbdinfo", &["--map", "--json", target.uri()]);
        let map: Vec<Value> = serde_json::from_str(&map).unwrap();
        let number = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
        let told: Vec<_> =
            map.iter().map(|extent| (number(extent, "offset"), number(extent, "type"))).collect();
        // 3 is a hole of zeros, 0 is data.
        let after = (9 << 20) + 4096;
        assert_eq!(told, [(0, 3), (4 << 20, 0), (5 << 20, 3), (9 << 20, 0), (after, 3)]);
        let map = run(&folder, "qemu-img", &["map", "--output=json", "-f", "raw", target.uri()]);
        let map: Vec<Value> = serde_json::from_str(&map).unwrap();
        let data = map.iter().filter(|extent| extent["data"] == true);
        let data: Vec<_> =
            data.map(|extent| (number(extent, "start"), number(extent, "length"))).collect();
        assert_eq!(data, [(4 << 20, 1 << 20), (9 << 20, 4096)]);
        // What is written from now on is data at once, zeros in a hole as well.
        let write = ["-f", "raw", target.uri(), "-c", "write -P 0 1M 64k"];
        run(&folder, "qemu-io", &write);
        let map = run(&folder, "nbdinfo", &["--map", "--totals", target.uri()]);
        assert!(map.contains("1118208 "), "{map}");
        run(&folder, "nbdcopy", &[target.uri(), "back"]);
        let copy = fs::metadata(folder.join("back")).unwrap();
        assert!(copy.len() == SIZE && copy.blocks() * 512 < 3 << 20, "{} sectors", copy.blocks());
        target.stop();
        assert!(fs::read(folder.join("back")).unwrap() == fs::read(folder.join("image")).unwrap());
    }
}

#[test]
fn zeros_that_must_be_fast_are_zeros_or_are_refused() {
    let folder = Folder::new();
    fs::write(folder.join("image"), [7; 1 << 20]).unwrap();
    let listen = ["--raw", "--listen", "127.0.0.1:0", "disk=image"];
    let target = Target::start(&folder, 1, &listen);
    let zeroes = ["-f", "raw", target.uri(), "-c", "write -z -n 64k 128k"];
    let output = folder.run(Command::new("qemu-io").args(zeroes)).succeeded();
    let content = if output.contains("wrote 131072/131072") { 0 } else { 7 };
    target.stop();
    let image = fs::read(folder.join("image")).unwrap();
    for (at, byte) in image.iter().enumerate() {
        let inside = (64 << 10..192 << 10).contains(&at);
        assert_eq!(*byte, if inside { content } else { 7 }, "byte {at}");
    }
}

#[test]
fn qemu_io_writes_parts_of_blocks_and_fio_verifies() {
    for cache in CACHES {
        let folder = Folder::new();
        let target = Target::with_cache(&folder, cache);
        let commands = [
            "write -f -P 5 1000 9000",
            "read -P 5 1000 9000",
            "read -P 0 0 1000",
            "read -P 0 10000 96",
            "write -z 2000 5000",
            "read -P 0 2000 5000",
            "read -P 5 7000 3000",
            "write -z -u 1M 1M",
            "discard 2M 1M",
            "aio_write -P 9 3M 64k",
            "aio_write -P 9 4M 64k",
            "aio_flush",
            "read -P 9 3M 64k",
            "flush",
        ];
        let mut arguments = vec!["-f", "raw", target.uri()];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        let said = run(&folder, "qemu-io", &arguments);
        assert!(!said.contains("failed"), "{said}");
        let engines = run(&folder, "fio", &["--enghelp"]);
        if engines.contains("nbd") {
            let uri = format!("--uri={}", target.uri());
            let fio = [
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                "--bssplit=512/20:4k/60:64k",
                "--iodepth=16",
                "--size=8M",
                "--verify=crc32c",
                "--fsync=32",
                "--randseed=1",
                "--verify_state_save=0",
            ];
            run(&folder, "fio", &fio);
        }
        target.stop();
    }
}

#[test]
fn a_read_only_target_leaves_its_image_alone() {
    let folder = Folder::new();
    image(&folder);
    let arguments = ["--raw", "--read-only", "--listen", "127.0.0.1:0", "disk=image"];
    let target = Target::start(&folder, 1, &arguments);
    let told = run(&folder, "nbdinfo", &[target.uri()]);
    assert!(told.contains("is_read_only: true"), "{told}");
    let write = ["-f", "raw", target.uri(), "-c", "write 0 4k"];
    folder.run(Command::new("qemu-io").args(write)).failed(1, &["Permission denied"]);
    target.stop();
}

#[test]
fn a_medium_is_made_once_and_found_again() {
    let folder = Folder::new();
    let path = image(&folder);
    let start = || Target::start(&folder, 1, &["--listen", "127.0.0.1:0", "disk=image"]);
    let described = |target: &Target| {
        let told = run(&folder, "nbdinfo", &["--json", target.uri()]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let export = &told["exports"][0];
        assert_eq!(export["export-size"], SIZE - (1 << 20));
        export["description"].as_str().unwrap().to_owned()
    };
    let target = start();
    let first = described(&target);
    assert!(first.starts_with("gabion medium ") && first.ends_with(" epoch 0"), "{first}");
    run(&folder, "qemu-io", &["-f", "raw", target.uri(), "-c", "write -P 7 0 4k"]);
    let taken = format!("{}%3Fepoch=3&holder=nobody", target.uri());
    run(&folder, "qemu-io", &["-f", "raw", &taken, "-c", "write -P 8 4k 4k"]);
    let write = ["-f", "raw", target.uri(), "-c", "write 0 4k"];
    folder.run(Command::new("qemu-io").args(write)).failed(1, &["Permission denied"]);
    // Another client, which has taken it for itself by the parameters of the name.
    let uri = format!("--uri={taken}");
    let fio = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--offset=64k",
        "--size=4M",
        "--bssplit=512/20:4k/60:64k",
        "--iodepth=8",
        "--verify=crc32c",
        "--randseed=2",
        "--verify_state_save=0",
    ];
    if run(&folder, "fio", &["--enghelp"]).contains("nbd") {
        run(&folder, "fio", &fio);
    }
    target.stop();
    let target = start();
    assert_eq!(described(&target), first.replace("epoch 0", "epoch 3 held by nobody"));
    target.stop();
    let image = fs::read(path).unwrap();
    assert_eq!((image[1 << 20], image[(1 << 20) + 4096]), (7, 8));
}

#[test]
fn what_is_not_empty_is_never_made_a_medium() {
    let folder = Folder::new();
    let path = source(&folder);
    let before = fs::read(&path).unwrap();
    let offer = |arguments: &[&str]| folder.gabion(&[&["target"], arguments].concat());
    offer(&["disk=source"]).failed(1, &["source as disk", "not empty", "--raw"]);
    File::create(folder.join("short")).unwrap().set_len(1 << 20).unwrap();
    offer(&["disk=short"]).failed(1, &["256 blocks", "too few", "--raw"]);
    let empty = image(&folder);
    offer(&["--read-only", "disk=image"]).failed(1, &["it is empty", "Without --read-only"]);
    assert!(fs::read(empty).unwrap().iter().all(|byte| *byte == 0));
    assert!(fs::read(path).unwrap() == before);
}

#[test]
fn an_encrypted_target_serves_who_has_a_certificate() {
    let folder = Folder::new();
    folder.certify();
    image(&folder);
    let listen = ["--raw", "--listen", "127.0.0.1:0", "disk=image"];
    let own = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "pki/server-key.pem"];
    let encrypted = [&own[..], &["--tls-ca", "pki/ca-cert.pem"], &listen].concat();
    let target = Target::start(&folder, 1, &encrypted);
    assert!(target.uri().starts_with("nbds://127.0.0.1:"), "{}", target.uri());
    let uri = format!("{}?tls-certificates={}", target.uri(), folder.join("pki").display());
    assert!(run(&folder, "nbdinfo", &[&uri]).contains("with TLS"));
    let client = Client::open(&uri.parse().unwrap(), ClientOptions::default()).unwrap();
    client.write(BlockAddr(4), pattern(4), Durability::Fua).unwrap();
    drop(client);
    let plain = target.uri().replace("nbds:", "nbd:");
    folder.run(Command::new("nbdinfo").arg(plain)).failed(1, &["not supported"]);
    target.stop();
    assert!(fs::read(folder.join("image")).unwrap()[4 * 4096..8 * 4096] == *pattern(4).bytes());
    let gabion = |arguments: &[&str]| folder.gabion(&[&["target"], arguments].concat());
    gabion(&[&own[..2], &listen].concat()).failed(2, &["--tls-key"]);
    let wrong = ["--tls-cert", "pki/server-key.pem", "--tls-key", "pki/server-key.pem"];
    gabion(&[&wrong[..], &listen].concat()).failed(1, &["server-key.pem has no certificate"]);
    let strange = ["--tls-cert", "pki/server-cert.pem", "--tls-key", "pki/ca-key.pem"];
    gabion(&[&strange[..], &listen].concat()).failed(1, &["cannot encrypt"]);
}

#[test]
fn a_target_that_cannot_start_says_why() {
    let folder = Folder::new();
    let gabion = |arguments: &[&str]| folder.gabion(&[&["target"], arguments].concat());
    gabion(&["disk"]).failed(2, &["NAME=PATH"]);
    gabion(&["--cache", "writethrough", "disk=image"]).failed(2, &["none, writeback"]);
    gabion(&["--listen", "unix:", "disk=image"]).failed(2, &["a path must follow"]);
    gabion(&["disk=image"]).failed(1, &["cannot offer disk", "image"]);
    gabion(&["disk=.", "disk=.."]).failed(2, &["the name disk is given twice"]);
    let target = Target::of_image(&folder);
    let port = target.uri().trim_start_matches("nbd://").trim_end_matches("/disk").to_owned();
    gabion(&["--listen", "127.0.0.1:0", "disk=image"]).failed(1, &["in use by process"]);
    File::create(folder.join("other")).unwrap().set_len(SIZE).unwrap();
    gabion(&["--listen", &port, "disk=other"]).failed(1, &["cannot listen at", &port]);
    target.stop();
}

/// Blocks that say where they belong.
fn pattern(at: u64) -> BlockSlice {
    let bytes: Vec<u8> = (0..4 * BLOCK_SIZE as u64).map(|i| (at * 31 + i / 512) as u8).collect();
    BlockSlice::new(Blocks::from_bytes(&bytes))
}

#[test]
fn writes_complete_though_the_target_is_killed_and_started_again() {
    let folder = Folder::new();
    image(&folder);
    let socket = format!("unix:{}", folder.join("socket").display());
    let start = || Target::start(&folder, 1, &["--raw", "--listen", &socket, "disk=image"]);
    let mut target = start();
    let client = Client::open(&target.uri().parse().unwrap(), ClientOptions::default()).unwrap();
    let mut tickets = Vec::new();
    for at in 0..1024 {
        if at % 256 == 100 {
            target.running.0.kill().unwrap();
            target.running.0.wait().unwrap();
        }
        let (addr, durability) = (BlockAddr(at * 4), Durability::Cached);
        tickets.push(client.submit(DiskRequest::Write {
            addr,
            parts: vec![pattern(at)],
            durability,
        }));
        if at % 256 == 200 {
            target = start();
        }
    }
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    client.flush().unwrap();
    drop(client);
    target.stop();
    let image = fs::read(folder.join("image")).unwrap();
    for at in 0..1024 {
        let bytes = &image[at * 4 * BLOCK_SIZE..][..4 * BLOCK_SIZE];
        assert!(bytes == pattern(at as u64).bytes(), "blocks at {at}");
    }
}

#[test]
fn requests_to_a_stopped_target_fail_within_their_deadline() {
    let folder = Folder::new();
    let target = Target::of_image(&folder);
    let options =
        ClientOptions { deadline: Duration::from_millis(600), ..ClientOptions::default() };
    let client = Client::open(&target.uri().parse().unwrap(), options).unwrap();
    target.running.signal(Signal::STOP);
    let start = Instant::now();
    let error = client.flush().unwrap_err().to_string();
    assert!(error.contains("flush of nbd://127.0.0.1:") && error.contains("answer"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    target.running.signal(Signal::CONT);
    target.stop();
}
