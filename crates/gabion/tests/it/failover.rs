//! Two machines that can serve one filesystem: one does, and the other one takes its place.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;

use crate::shared::{in_background, sh, succeeds};
use crate::volumes::etcd::{Etcd, free_port};
use crate::volumes::stage::{Host, Stage, Target};
use crate::volumes::writing::Writer;
use crate::world::Running;

/// A volume on two targets that two machines may serve, of which each has a port.
struct Pair<'a> {
    stage: &'a Stage,
    hosts: [Host<'a>; 2],
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
        Self { stage, hosts, ports: [free_port(), free_port()], _targets: targets }
    }

    /// Starts a server on one of the machines.
    fn start(&self, number: usize, arguments: &[&str]) -> Server {
        let listen = format!("127.0.0.1:{}", self.ports[number]);
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
        format!("gabion://127.0.0.1:{first},127.0.0.1:{second}/")
    }

    /// Mounts it, on a machine that serves nothing.
    fn mount(&self, name: &str) -> PathBuf {
        let mountpoint = self.stage.path(name);
        fs::create_dir(&mountpoint).unwrap();
        let client = self.stage.host_with("client", None);
        client.gabion(&["mount", "-o", "deadline=60", &self.uri(), name]).succeeded();
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
    said: BufReader<std::process::ChildStdout>,
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
    let make = "mkdir tree && for i in $(seq 400); do mkdir -p tree/$((i % 20)); \
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
    first.kill();
    second.await_serving();
    succeeds(unpacking);
    writer.await_more(20);
    let written = writer.finish();
    written.check();
    sh(stage.folder.path(), "diff -r tree one/tree && diff -r tree two/tree");
    for event in ["filesystem-standby", "filesystem-taken-over", "filesystem-served-again"] {
        pair.hosts[1].await_event(event);
    }
    pair.hosts[1].gabion(&["scrub", "tank"]).succeeded();
    pair.unmount(&["one", "two"]);
    second.end();
}
