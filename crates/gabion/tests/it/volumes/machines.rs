//! Several machines: etcd, two hosts that share it, and a network that goes away.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::etcd::Etcd;
use super::stage::{HEADERS, Stage, Target, run};
use super::writing::Writer;

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
