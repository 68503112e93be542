//! Two machines that can serve one filesystem: one does, and the other one takes its place.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value;

use crate::joining::{Guest, Network};
use crate::shared::{in_background, sh, succeeds};
use crate::volumes::etcd::{Etcd, free_port};
use crate::volumes::stage::{Host, Stage, Target};
use crate::volumes::writing::Writer;
use crate::wiretap::Wiretap;
use crate::world::{Folder, Running};

/// A volume on two targets that two machines may serve, of which each has a port.
struct Pair<'a> {
    stage: &'a Stage,
    hosts: [Host<'a>; 2],
    /// Where both listen.
    address: String,
    ports: [u16; 2],
    _targets: [Target; 2],
}

impl<'a> Pair<'a> {
    /// Machines whose records are at `coordinator`.
    fn new(stage: &'a Stage, coordinator: &str) -> Self {
        let host = |name| stage.host_with(name, Some(coordinator.to_owned()));
        let hosts = [host("first"), host("second")];
        let targets = ["a", "b"].map(|name| stage.target(name));
        hosts[0].make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
        let ports = [free_port(), free_port()];
        Self { stage, hosts, address: "127.0.0.1".to_owned(), ports, _targets: targets }
    }

    /// Starts a server on one of the machines.
    fn start(&self, number: usize, arguments: &[&str]) -> Server {
        let listen = format!("{}:{}", self.address, self.ports[number]);
        let serve = ["serve", "--session-seconds", "3", "--listen", &listen, "tank"];
        let mut command = self.hosts[number].command(&[&serve, arguments].concat());
        let mut running = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let said = BufReader::new(running.0.stdout.take().unwrap());
        Server { running, said }
    }

    /// Starts the first one, which serves, and the second one, which waits.
    fn start_both(&self) -> [Server; 2] {
        let mut first = self.start(0, &["--standby"]);
        first.await_serving();
        let second = self.start(1, &["--standby"]);
        self.hosts[1].await_event("filesystem-standby");
        [first, second]
    }

    /// What clients mount.
    fn uri(&self) -> String {
        let [first, second] = self.ports;
        format!("gabion://{0}:{first},{0}:{second}/", self.address)
    }

    /// Mounts it, on a machine that serves nothing.
    fn mount(&self, name: &str) -> PathBuf {
        self.mount_of(&self.uri(), name, "60")
    }

    /// The same of what is at `uri`, which is waited for so many seconds.
    fn mount_of(&self, uri: &str, name: &str, seconds: &str) -> PathBuf {
        let mountpoint = self.stage.path(name);
        fs::create_dir(&mountpoint).unwrap();
        let client = self.stage.host_with("client", None);
        let options = format!("deadline={seconds}");
        client.gabion(&["mount", "-o", &options, uri, name]).succeeded();
        mountpoint
    }

    fn unmount(&self, names: &[&str]) {
        let client = self.stage.host_with("client", None);
        names.iter().for_each(|name| drop(client.gabion(&["umount", name]).succeeded()));
    }
}

/// A server, or one that waits for its turn.
struct Server {
    running: Running,
    said: BufReader<ChildStdout>,
}

impl Server {
    /// Waits until it serves.
    fn await_serving(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(line.starts_with("gabion://"), "{line:?}");
    }

    fn kill(&mut self) {
        self.running.signal(Signal::KILL);
        let _ = self.running.0.wait();
    }

    /// Ends it in order.
    fn end(mut self) {
        self.running.signal(Signal::INT);
        assert!(self.running.0.wait().unwrap().success());
    }
}

/// A tree to be packed, with files of many lengths.
fn pack_tree(stage: &Stage) {
    let make = "mkdir tree && for i in $(seq 300); do mkdir -p tree/$((i % 20)); \
                head -c $((i * 97)) /dev/urandom > tree/$((i % 20))/$i; done; \
                tar cf tree.tar tree";
    sh(stage.folder.path(), make);
}

#[test]
fn a_standby_takes_over_when_the_server_is_killed_and_programs_see_a_pause() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let pair = Pair::new(&stage, &etcd.url());
    pack_tree(&stage);
    let [mut first, mut second] = pair.start_both();
    let (one, two) = (pair.mount("one"), pair.mount("two"));
    let writer = Writer::start(&two);
    writer.await_more(20);
    let unpack = "tar xf ../tree.tar tree/1 tree/2; touch started; tar xf ../tree.tar; sync -f .";
    let unpacking = in_background(&one, unpack);
    while !two.join("started").exists() {
        writer.await_more(1);
    }
    let locked = File::create(two.join("lock")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    first.kill();
    second.await_serving();
    let wanted = File::open(one.join("lock")).unwrap();
    let refused = flock(&wanted, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    drop(locked);
    // The kernel does not wait until it has told that the file is closed.
    flock(&wanted, FlockOperation::LockExclusive).unwrap();
    drop(wanted);
    succeeds(unpacking);
    writer.await_more(20);
    let written = writer.finish();
    written.check();
    sh(stage.folder.path(), "diff -r tree two/tree");
    for event in ["filesystem-standby", "filesystem-taken-over", "filesystem-served-again"] {
        pair.hosts[1].await_event(event);
    }
    pair.hosts[1].gabion(&["scrub", "tank"]).succeeded();
    pair.unmount(&["one", "two"]);
    second.end();
}

#[test]
fn a_server_that_is_stopped_while_another_takes_over_answers_nothing_and_ends() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let pair = Pair::new(&stage, &etcd.url());
    let mut first = pair.start(0, &[]);
    first.await_serving();
    let mut second = pair.start(1, &["--standby"]);
    pair.hosts[1].await_event("filesystem-standby");
    let one = pair.mount("one");
    fs::write(one.join("file"), "old").unwrap();
    File::open(one.join("file")).unwrap().sync_all().unwrap();
    // This one knows no other server.
    let only = pair.mount_of(&format!("gabion://127.0.0.1:{}/", pair.ports[0]), "only", "3");
    assert_eq!(fs::read_to_string(only.join("file")).unwrap(), "old");
    let writer = Writer::start(&one);
    writer.await_more(20);
    first.running.freeze();
    second.await_serving();
    writer.await_more(20);
    fs::write(one.join("file"), "new").unwrap();
    let reading = || fs::read_to_string(only.join("file"));
    assert!(reading().is_err());
    first.running.signal(Signal::CONT);
    // It may have heard of that while it was stopped.
    while first.running.0.try_wait().unwrap().is_none() {
        assert!(reading().is_err());
    }
    assert!(reading().is_err());
    assert_eq!(first.running.0.wait().unwrap().code(), Some(1));
    pair.hosts[0].await_event("filesystem-served-elsewhere");
    writer.await_more(20);
    writer.finish().check();
    assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "new");
    pair.hosts[1].gabion(&["scrub", "tank"]).succeeded();
    pair.unmount(&["one", "only"]);
    second.end();
}

#[test]
fn a_standby_that_had_its_turn_and_lost_it_waits_again_and_takes_over_once_more() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let pair = Pair::new(&stage, &etcd.url());
    let [mut first, mut second] = pair.start_both();
    let one = pair.mount("one");
    let writer = Writer::start(&one);
    writer.await_more(20);
    first.running.freeze();
    second.await_serving();
    writer.await_more(20);
    first.running.signal(Signal::CONT);
    pair.hosts[0].await_event("filesystem-served-elsewhere");
    pair.hosts[0].await_event("filesystem-standby");
    // Asked to end, it leaves the volume to the other one at once.
    let holder = format!("process {}", second.running.0.id());
    second.end();
    let volume = pair.hosts[0].volume("tank");
    assert!(!volume["holder"].as_str().unwrap_or_default().ends_with(&holder), "{volume:#}");
    // That is no reason for concern.
    assert!(pair.hosts[1].events().iter().all(|event| event["event"] != "volume-fenced"));
    first.await_serving();
    writer.await_more(20);
    writer.finish().check();
    pair.hosts[0].gabion(&["scrub", "tank"]).succeeded();
    pair.unmount(&["one"]);
    first.end();
}

#[test]
fn a_server_goes_on_without_etcd_as_long_as_its_targets_say_that_nobody_else_has_come() {
    let Some(stage) = Stage::for_mounts() else { return };
    let mut etcd = Etcd::start(&stage);
    let pair = Pair::new(&stage, &etcd.url());
    let [mut first, second] = pair.start_both();
    let one = pair.mount("one");
    let writer = Writer::start(&one);
    etcd.kill();
    pair.hosts[0].await_event("volume-claim-lost");
    writer.await_more(50);
    // Others are let in, too.
    let two = pair.mount("two");
    fs::write(two.join("file"), "text").unwrap();
    assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "text");
    etcd.resume();
    writer.await_more(50);
    writer.finish().check();
    pair.unmount(&["one", "two"]);
    drop(second);
    first.running.signal(Signal::INT);
    assert!(first.running.0.wait().unwrap().success());
}

#[test]
fn a_server_that_is_cut_off_from_etcd_ends_when_another_has_taken_over_and_clients_go_there() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let mut pair = Pair::new(&stage, &etcd.url());
    let tap = Wiretap::new("127.0.0.1", etcd.url().trim_start_matches("etcd://"));
    pair.hosts[0] = stage.host_with("first", Some(format!("etcd://{}", tap.address)));
    let [mut first, mut second] = pair.start_both();
    let (one, two) = (pair.mount("one"), pair.mount("two"));
    fs::write(one.join("file"), "old").unwrap();
    assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "old");
    let writer = Writer::start(&one);
    writer.await_more(20);
    tap.close();
    second.await_serving();
    pair.hosts[0].await_event("filesystem-served-elsewhere");
    writer.await_more(20);
    fs::write(one.join("file"), "new").unwrap();
    assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "new");
    writer.finish().check();
    first.kill();
    pair.hosts[1].gabion(&["scrub", "tank"]).succeeded();
    pair.unmount(&["one", "two"]);
    second.end();
}

#[test]
fn a_standby_on_the_same_machine_needs_no_etcd() {
    let Some(stage) = Stage::for_mounts() else { return };
    let records = stage.text("records");
    let pair = Pair::new(&stage, &records);
    let [mut first, mut second] = pair.start_both();
    let told = pair.hosts[1].gabion(&["status", "tank"]).succeeded();
    let process = format!("process {}", first.running.0.id());
    assert!(told.contains("tank: Gabion filesystem, standby"), "{told}");
    assert!(told.contains(&process), "{told}");
    let status = pair.hosts[1].gabion(&["status", "--json", "tank"]).succeeded();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["standby"]["pid"], second.running.0.id());
    assert_eq!(status["standby"]["address"], format!("127.0.0.1:{}", pair.ports[1]));
    assert!(status["standby"]["holder"].as_str().unwrap().ends_with(&process), "{status:#}");
    assert!(status["served"].is_null());
    pair.hosts[1].gabion(&["scrub", "tank"]).failed(1, &["tank"]);
    // There is one for each machine, and it ends when it is asked to.
    let mut third = pair.start(1, &["--standby"]);
    assert_eq!(third.running.0.wait().unwrap().code(), Some(1));
    let one = pair.mount("one");
    let writer = Writer::start(&one);
    writer.await_more(20);
    first.kill();
    second.await_serving();
    writer.await_more(20);
    writer.finish().check();
    let status = pair.hosts[1].gabion(&["status", "--json", "tank"]).succeeded();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert!(status["standby"].is_null() && status["served"].is_object(), "{status:#}");
    let again = pair.start(0, &["--standby"]);
    pair.hosts[0].await_event("filesystem-standby");
    again.end();
    pair.unmount(&["one"]);
    second.end();
}

#[test]
fn what_nobody_else_can_have_has_no_standby() {
    let folder = Folder::new();
    folder.image();
    folder.gabion(&["serve", "--standby", "disk.img"]).failed(2, &["disk.img", "is no volume"]);
    folder.gabion(&["serve", "--standby", "--read-only", "disk.img"]).failed(2, &["--read-only"]);
}

#[test]
fn who_has_joined_goes_on_at_a_standby_that_has_the_authority() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let mut pair = Pair::new(&stage, &etcd.url());
    let network = Network::new(&stage.folder);
    pair.address.clone_from(&network.here);
    let mut guest = Guest::new();
    guest.network = Some(network);
    let mut first = pair.start(0, &["--standby"]);
    first.await_serving();
    // An authority of its own would be of no use.
    let [one, two] = pair.ports.map(|port| format!("{}:{port}", pair.address));
    let refused = pair.hosts[1].gabion(&["serve", "--standby", "--listen", &two, "tank"]);
    refused.failed(1, &["cannot serve tank", "its authority is not in", "Copy that folder"]);

    sh(stage.folder.path(), "cp -a first/authority second/");
    let mut second = pair.start(1, &["--standby"]);
    pair.hosts[1].await_event("filesystem-standby");

    // Who belongs to it the other one learns from the coordinator.
    let join = |guest: &Guest, name: &str| {
        let invite = ["invite", "tank", "--address", &one, "--address", &two];
        let line = pair.hosts[0].gabion(&invite).succeeded();
        guest.gabion(&["join", "--name", name, line.trim_end(), "mnt"]).succeeded();
        guest.unmount();
    };
    let mut evicted = Guest::new();
    std::mem::swap(&mut guest.network, &mut evicted.network);
    join(&evicted, "guest2");
    std::mem::swap(&mut guest.network, &mut evicted.network);
    pair.hosts[0].gabion(&["evict", "--revoke", "tank", "guest2"]).succeeded();
    join(&guest, "guest1");
    // Any of the addresses leads to what was joined.
    let both = format!("gabion://{two},{one}/");
    guest.gabion(&["mount", "-o", "deadline=60", &both, "mnt"]).succeeded();
    let mut file = File::create(guest.mountpoint().join("file")).unwrap();
    file.write_all(b"one").unwrap();
    first.kill();
    second.await_serving();
    file.write_all(b" two").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read_to_string(guest.mountpoint().join("file")).unwrap(), "one two");
    drop(file);
    let clients = pair.hosts[1].gabion(&["clients", "--json", "tank"]).succeeded();
    let clients: Value = serde_json::from_str(&clients).unwrap();
    assert_eq!(clients["clients"][0]["machine"], "guest1", "{clients:#}");
    guest.unmount();
    std::mem::swap(&mut guest.network, &mut evicted.network);
    let refused = evicted.gabion(&["mount", &both, "mnt"]);
    refused.failed(1, &["the certificate of guest2 was taken back"]);
    second.end();
}
