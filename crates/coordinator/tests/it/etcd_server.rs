//! A real etcd of one member, in a folder and at ports of its own, that ends with its test.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gabion_block::coordinator::Coordinator;
use gabion_coordinator::{Etcd, Patience};

use crate::folder::Folder;

/// Enough for a start on a machine with much to do.
const CALL: Duration = Duration::from_secs(20);

pub struct EtcdServer {
    folder: Folder,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

/// A port that nobody uses.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl EtcdServer {
    /// Starts one, and waits until it answers.
    pub fn start() -> Self {
        let (client_port, peer_port) = (free_port(), free_port());
        let mut server = Self { folder: Folder::new(), client_port, peer_port, child: None };
        server.resume();
        server
    }

    /// Starts it again after [`EtcdServer::kill`], with what it had.
    pub fn resume(&mut self) {
        self.resume_unseen();
        self.coordinator().volumes().expect("etcd answers");
    }

    /// The same without waiting for it.
    pub fn resume_unseen(&mut self) {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        // Dies with this thread, too, should the test itself be killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "etcd", "--name", "test"]);
        command.arg("--data-dir").arg(self.folder.path().join("kept"));
        for (option, url) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
        ] {
            command.args([option, url]);
        }
        command.args(["--initial-cluster", &format!("test={peer}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let started = command.spawn().expect("setpriv and etcd are installed (etcd-server)");
        self.child = Some(started);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn port(&self) -> u16 {
        self.client_port
    }

    pub fn coordinator(&self) -> Etcd {
        coordinator_at(&[self.client_port])
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One that has these ports for its endpoints, and leases that end as soon as etcd allows.
pub fn coordinator_at(ports: &[u16]) -> Etcd {
    let endpoints: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let patience = Patience { call: CALL, lease_seconds: 3 };
    Etcd::new(&endpoints.join(","), patience).unwrap()
}
