//! A real etcd of one member, in a folder and at ports of its own, that ends with its test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gabion_block::coordinator::Coordinator;
use gabion_coordinator::{Etcd, Patience};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::folder::Folder;

/// Enough for a start on a machine with much to do.
const CALL: Duration = Duration::from_secs(20);

/// With leases that end as soon as etcd allows.
pub const PATIENCE: Patience = Patience { call: CALL, lease_seconds: 3 };

pub struct EtcdServer {
    folder: Folder,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
    /// Whether clients have to encrypt, and to have a certificate.
    is_encrypted: bool,
}

/// Makes an authority in `folder`, and certificates by it for a server on this machine and a
/// client.
fn certify(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    fs::write(folder.join("ca-cert.pem"), authority.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for role in ["server", "client"] {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// A port that nobody uses.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl EtcdServer {
    /// Starts one, and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// The same of one that only encrypted clients with certificates reach.
    pub fn start_encrypted() -> Self {
        Self::start_with(true)
    }

    fn start_with(is_encrypted: bool) -> Self {
        let (folder, client_port, peer_port) = (Folder::new(), free_port(), free_port());
        let mut server = Self { folder, client_port, peer_port, child: None, is_encrypted };
        if is_encrypted {
            certify(&server.certificates());
        }
        server.resume();
        server
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the certificates.
    pub fn certificates(&self) -> PathBuf {
        self.folder.path().join("certificates")
    }

    /// Where it is, for clients that encrypt.
    pub fn encrypted_url(&self) -> String {
        let folder = self.certificates();
        format!("etcds://localhost:{}?tls-certificates={}", self.client_port, folder.display())
    }

    /// Asks something that no coordinator asks, and gives the status and what is said.
    pub fn post(&self, path: &str, body: &str, token: &str) -> (String, String) {
        let length = body.len();
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_port)).unwrap();
        let token = match token {
            "" => String::new(),
            token => format!("Authorization: {token}\r\n"),
        };
        let head = format!("POST /v3/{path} HTTP/1.0\r\n{token}Content-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, said) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), said.to_owned())
    }

    /// Starts it again after [`EtcdServer::kill`], with what it had.
    pub fn resume(&mut self) {
        self.resume_unseen();
        let asked = match self.is_encrypted {
            true => Etcd::new(&self.encrypted_url(), PATIENCE).unwrap(),
            false => self.coordinator(),
        };
        asked.volumes().expect("etcd answers");
    }

    /// The same without waiting for it.
    pub fn resume_unseen(&mut self) {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let scheme = if self.is_encrypted { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", self.client_port);
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
        if self.is_encrypted {
            let file = |name: &str| self.certificates().join(name);
            command.arg("--cert-file").arg(file("server-cert.pem"));
            command.arg("--key-file").arg(file("server-key.pem"));
            command.arg("--trusted-ca-file").arg(file("ca-cert.pem")).arg("--client-cert-auth");
        }
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
    let patience = PATIENCE;
    Etcd::new(&format!("etcd://{}", endpoints.join(",")), patience).unwrap()
}
