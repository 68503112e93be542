//! Several machines: etcd, two hosts that share it, and a network that goes away.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use gabion_block::coordinator::Coordinator;
use gabion_coordinator::Patience;

use super::stage::{HEADERS, PATIENCE, Stage, Target, run};
use super::writing::Writer;
use crate::world::Running;

/// An etcd of one member.
struct Etcd<'a> {
    stage: &'a Stage,
    ports: [u16; 2],
    running: Option<Running>,
}

impl<'a> Etcd<'a> {
    fn start(stage: &'a Stage) -> Self {
        let port = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let mut etcd = Self { stage, ports: [port(), port()], running: None };
        etcd.resume();
        etcd
    }

    fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.ports[0])
    }

    /// Starts it, with what it had, and waits until it answers.
    fn resume(&mut self) {
        let [client, peer] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let log = File::create(self.stage.path("etcd.log")).unwrap();
        let mut command = Command::new("etcd");
        command.args(["--name", "test", "--data-dir", "etcd"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running = Some(self.stage.start(&mut command));
        let patience = Patience { call: PATIENCE, ..Patience::default() };
        let asking = gabion_coordinator::Etcd::new(&self.url(), patience).unwrap();
        asking.volumes().expect("etcd answers");
    }

    /// What happens to the claim on `tank` from now on.
    fn watch_claim(&self) -> ClaimWatch {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[0])).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The key is "/gabion/claims/tank".
        let body = r#"{"create_request":{"key":"L2dhYmlvbi9jbGFpbXMvdGFuaw=="}}"#;
        let head = format!("Host: etcd\r\nContent-Length: {}", body.len());
        write!(stream, "POST /v3/watch HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
        let mut watch = ClaimWatch(BufReader::new(stream).lines());
        watch.await_line("\"created\":true");
        watch
    }

    /// Ends it as a crash would.
    fn kill(&mut self) {
        self.running = None;
    }
}

/// Etcd's account of the claim on `tank`, in JSON, one line at a time.
struct ClaimWatch(Lines<BufReader<TcpStream>>);

impl ClaimWatch {
    /// Waits until nobody holds the claim any more.
    fn await_end(mut self) {
        self.await_line("\"DELETE\"");
    }

    fn await_line(&mut self, part: &str) {
        let mut lines = self.0.by_ref().map(|line| line.expect("a line from etcd"));
        assert!(lines.any(|line| line.contains(part)), "etcd ends without {part}");
    }
}

#[test]
fn writing_goes_on_without_etcd_and_waits_when_a_copy_fails() {
    let Some(stage) = Stage::for_mounts() else { return };
    let mut etcd = Etcd::start(&stage);
    let host = stage.host_with("state", Some(etcd.url()));
    let (_a, b) = (stage.target("a"), stage.target("b"));
    host.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let writer = Writer::start(&host.mount());
    writer.await_more(5);
    etcd.kill();
    writer.await_more(50);
    b.kill();
    // Nothing is acknowledged before the record says who lacks it.
    host.await_event("coordinator-unreachable");
    etcd.resume();
    writer.await_more(20);
    host.await_copies(&["in-sync", "stale"]);
    let _b = stage.target("b");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(Duration::from_secs(30));
    written.check();
    host.unmount_equal();
}

#[test]
fn another_host_takes_over_when_the_first_one_dies() {
    let Some(stage) = Stage::for_mounts() else { return };
    let etcd = Etcd::start(&stage);
    let first = stage.host_with("first", Some(etcd.url()));
    let second = stage.host_with("second", Some(etcd.url()));
    let _targets = (stage.target("a"), stage.target("b"));
    first.make_mirror("tank", [&stage.uri("a"), &stage.uri("b")]);
    let mountpoint = first.mount();
    let writer = Writer::start(&mountpoint);
    writer.await_more(20);
    let holder = format!("process {}", first.daemon("mnt").as_raw_nonzero());
    let refused = second.gabion(&["volume", "export", "tank", "--listen", "unix:x.sock"]);
    refused.failed(1, &["tank", "in use by", &holder]);
    let claim = etcd.watch_claim();
    first.kill_daemon();
    let written = writer.finish_in_failure();
    // With its lease.
    claim.await_end();
    assert!(second.volume("tank")["holder"].is_null());
    second.mount();
    written.check();
    second.await_copies(&["in-sync", "in-sync"]);
    second.unmount();
    stage.assert_equal("a.img", "b.img", HEADERS);
}

/// A machine of its own for a target: a network namespace with a cable to this one.
struct Machine {
    name: String,
    cable: String,
    address: String,
}

impl Machine {
    fn new(stage: &Stage) -> Self {
        let number = std::process::id();
        let (name, cable) = (format!("gabion-{number}"), format!("gbn{number}"));
        let net = [number / 250 % 250, number % 250];
        let [ours, theirs] = [1, 2].map(|host| format!("10.{}.{}.{host}", net[0] + 1, net[1] + 1));
        let machine = Self { name, cable, address: theirs };
        let (name, cable, there) = (&machine.name, &machine.cable, &machine.address);
        for command in [
            format!("netns add {name}"),
            format!("link add {cable} type veth peer name inside netns {name}"),
            format!("addr add {ours}/24 dev {cable}"),
            format!("link set {cable} up"),
            format!("-n {name} addr add {there}/24 dev inside"),
            format!("-n {name} link set inside up"),
            format!("-n {name} link set lo up"),
        ] {
            run(stage.folder.path(), "ip", &command.split(' ').collect::<Vec<_>>());
        }
        machine
    }

    fn target(&self, stage: &Stage, name: &str) -> Target {
        stage.disk(&format!("{name}.img"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, crate::world::GABION, "target", "--listen"]);
        command.args([&format!("{}:10809", self.address), &format!("{name}={name}.img")]);
        stage.start_target(command)
    }

    fn set_link(&self, stage: &Stage, state: &str) {
        run(stage.folder.path(), "ip", &["link", "set", &self.cable, state]);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for arguments in [["link", "del", &self.cable], ["netns", "del", &self.name]] {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_network_that_goes_away_costs_a_pause_and_comes_back_in_sync() {
    let Some(stage) = Stage::for_mounts() else { return };
    let machine = Machine::new(&stage);
    let (_a, b) = (stage.target("a"), machine.target(&stage, "b"));
    let host = stage.host();
    host.make_mirror("tank", [&stage.uri("a"), &b.uri]);
    let writer = Writer::start(&host.mount());
    writer.await_more(20);
    machine.set_link(&stage, "down");
    writer.await_more(20);
    host.await_copies(&["in-sync", "stale"]);
    machine.set_link(&stage, "up");
    host.await_copies(&["in-sync", "in-sync"]);
    let written = writer.finish_within(Duration::from_secs(15));
    written.check();
    host.unmount_equal();
}
