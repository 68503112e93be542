//! An etcd for one test.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use gabion_block::coordinator::Coordinator;
use gabion_coordinator::Patience;

use super::stage::{PATIENCE, Stage};
use crate::world::Running;

/// A port of this machine that nobody listens at just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// An etcd of one member.
pub struct Etcd<'a> {
    stage: &'a Stage,
    ports: [u16; 2],
    running: Option<Running>,
}

impl<'a> Etcd<'a> {
    pub fn start(stage: &'a Stage) -> Self {
        let mut etcd = Self { stage, ports: [free_port(), free_port()], running: None };
        etcd.resume();
        etcd
    }

    pub fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.ports[0])
    }

    /// Starts it, with what it had, and waits until it answers.
    pub fn resume(&mut self) {
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
    pub fn watch_claim(&self) -> ClaimWatch {
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
    pub fn kill(&mut self) {
        self.running = None;
    }
}

/// Etcd's account of the claim on `tank`, in JSON, one line at a time.
pub struct ClaimWatch(Lines<BufReader<TcpStream>>);

impl ClaimWatch {
    /// Waits until nobody holds the claim any more.
    pub fn await_end(mut self) {
        self.await_line("\"DELETE\"");
    }

    fn await_line(&mut self, part: &str) {
        let mut lines = self.0.by_ref().map(|line| line.expect("a line from etcd"));
        assert!(lines.any(|line| line.contains(part)), "etcd ends without {part}");
    }
}
