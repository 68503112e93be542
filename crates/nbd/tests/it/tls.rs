//! Encrypted connections, with our own programs and with those of others.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::disk::{Disk, DiskRequest, Durability, MemDisk};
use gabion_base::ids::BlockAddr;
use gabion_nbd::address::{Address, Uri, UriTls};
use gabion_nbd::client::{Client, ClientOptions};
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server};
use gabion_tls::{ServerFiles, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustix::process::Signal;

use crate::world::{Folder, Foreign, NEEDED, assert_pattern, exercise, pattern};

/// Makes an authority in `folder`, and certificates by it for a server called localhost and a
/// client, under the names that everybody looks for.
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

/// Whether clients need a certificate.
#[derive(Clone, Copy, PartialEq)]
enum Clients {
    Anybody,
    Certified,
}

/// A server with the certificates in `pki`, and where it is.
fn serve(folder: &Folder, clients: Clients, disk: Arc<dyn Disk>) -> (Server, Uri) {
    let pki = folder.join("pki");
    certify(&pki);
    let authority = pki.join("ca-cert.pem");
    let (certificate, key) = (&*pki.join("server-cert.pem"), &*pki.join("server-key.pem"));
    let authority = (clients == Clients::Certified).then_some(&*authority);
    let tls = ServerTls::load(ServerFiles { certificate, key, authority }).unwrap();
    let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    let listener = Listener::bind(&address).unwrap();
    let address = listener.address().unwrap();
    let exports = Exports::new(vec![Export::new("disk", disk, Permission::ReadWrite)]);
    let server = Server::start_encrypted(exports, vec![listener], tls).unwrap();
    let tls = Some(UriTls { certificates: Some(pki), hostname: None });
    (server, Uri { address, export: "disk".to_owned(), tls })
}

fn open(uri: &Uri) -> Result<Client, String> {
    Client::open(uri, ClientOptions::default()).map_err(|error| error.to_string())
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}{NEEDED}"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_encrypted_export_is_a_disk() {
    let folder = Folder::new();
    for clients in [Clients::Anybody, Clients::Certified] {
        let (_server, uri) = serve(&folder, clients, Arc::new(MemDisk::new(4096)));
        let client = Arc::new(open(&uri).unwrap());
        exercise(&client);
        // Large ones in both directions at the same time.
        let write = |at: u64| DiskRequest::Write {
            addr: BlockAddr(2048 + at * 512),
            parts: vec![pattern(2048 + at * 512, 512, 3)],
            durability: Durability::Cached,
        };
        let read = |at: u64| DiskRequest::Read { addr: BlockAddr(at * 512), count: 512 };
        let both = (0..4).flat_map(|at| [client.submit(write(at)), client.submit(read(at))]);
        for ticket in both.collect::<Vec<_>>() {
            ticket.wait().unwrap();
        }
        assert_pattern(&*client, 2048, 2048, 3);
    }
}

#[test]
fn whoever_cannot_prove_what_is_asked_for_is_refused() {
    let folder = Folder::new();
    let (_server, uri) = serve(&folder, Clients::Certified, Arc::new(MemDisk::new(16)));
    let with = |tls: Option<UriTls>| open(&Uri { tls, ..uri.clone() }).unwrap_err();
    let pki = folder.join("pki");
    let tls = |folder: &Path, hostname: Option<&str>| {
        let hostname = hostname.map(str::to_owned);
        Some(UriTls { certificates: Some(folder.to_owned()), hostname })
    };
    let plain = with(None);
    assert!(plain.contains("wants encryption"), "{plain}");
    let nowhere = with(Some(UriTls::default()));
    assert!(nowhere.contains("tls-certificates=DIR"), "{nowhere}");
    let missing = with(tls(&folder.join("none"), None));
    assert!(missing.contains("ca-cert.pem"), "{missing}");
    let name = with(tls(&pki, Some("elsewhere.example")));
    assert!(name.contains("certificate not valid for name"), "{name}");
    let strangers = folder.join("strangers");
    certify(&strangers);
    let stranger = with(tls(&strangers, None));
    assert!(stranger.contains("invalid peer certificate"), "{stranger}");
    // Right authority, but no certificate, or somebody else's.
    let uncertified = folder.join("uncertified");
    fs::create_dir(&uncertified).unwrap();
    fs::copy(pki.join("ca-cert.pem"), uncertified.join("ca-cert.pem")).unwrap();
    with(tls(&uncertified, None));
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::copy(strangers.join(file), uncertified.join(file)).unwrap();
    }
    with(tls(&uncertified, None));
    // The certificates are those of the moment.
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::copy(pki.join(file), uncertified.join(file)).unwrap();
    }
    open(&Uri { tls: tls(&uncertified, Some("localhost")), ..uri.clone() }).unwrap();
}

#[test]
fn a_server_that_does_not_encrypt_is_no_server_for_who_wants_that() {
    let folder = Folder::new();
    certify(&folder.join("pki"));
    let _server = folder.serve(Arc::new(MemDisk::new(8)), Permission::ReadWrite);
    let tls = Some(UriTls { certificates: Some(folder.join("pki")), hostname: None });
    let error = open(&Uri { tls, ..folder.uri("disk") }).unwrap_err();
    assert!(error.contains("does not encrypt"), "{error}");
}

#[test]
fn encrypted_requests_to_a_silent_server_fail_within_their_deadline() {
    let folder = Folder::new();
    certify(&folder.join("pki"));
    let pki = folder.join("pki");
    let pki = pki.to_str().unwrap();
    let arguments = ["--tls=require", &format!("--tls-certificates={pki}"), "memory", "64M"];
    let server = Foreign::nbdkit(&folder, &arguments);
    let tls = Some(UriTls { certificates: Some(pki.into()), hostname: None });
    let options = ClientOptions { deadline: Duration::from_millis(700), ..Default::default() };
    let client = Client::open(&Uri { tls, ..folder.uri("") }, options).unwrap();
    client.write(BlockAddr(0), pattern(0, 1, 1), Durability::Cached).unwrap();
    server.signal(Signal::STOP);
    let start = Instant::now();
    // More than the socket takes.
    let write = |at: u64| DiskRequest::Write {
        addr: BlockAddr(at * 1024),
        parts: vec![pattern(at * 1024, 1024, 1)],
        durability: Durability::Cached,
    };
    let writes: Vec<_> = (0..4).map(|at| client.submit(write(at))).collect();
    let read = client.submit(DiskRequest::Read { addr: BlockAddr(0), count: 1 });
    for ticket in writes.into_iter().chain([read]) {
        assert!(ticket.wait().is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn other_servers_encrypt_for_our_client() {
    let folder = Folder::new();
    let pki = folder.join("pki");
    certify(&pki);
    let text = pki.to_str().unwrap();
    let tls = Some(UriTls { certificates: Some(pki.clone()), hostname: None });
    let uri = Uri { tls, ..folder.uri("") };
    let arguments = ["--tls=require", &format!("--tls-certificates={text}"), "--tls-verify-peer"];
    let nbdkit = Foreign::nbdkit(&folder, &[&arguments[..], &["memory", "16M"]].concat());
    exercise(&Arc::new(open(&uri).unwrap()));
    drop(nbdkit);
    let _ = fs::remove_file(folder.join("socket"));
    fs::File::create(folder.join("image")).unwrap().set_len(16 << 20).unwrap();
    let socket = folder.join("socket");
    let object = format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={text}");
    let arguments =
        ["--object", &object, "--tls-creds", "tls", "--fork", "--pid-file=pid", "-t", "-f", "raw"];
    let place = ["-k", socket.to_str().unwrap(), "image"];
    let _qemu = Foreign::start(&folder, "qemu-nbd", &[&arguments[..], &place].concat());
    exercise(&Arc::new(open(&uri).unwrap()));
}

#[test]
fn our_server_encrypts_for_other_clients() {
    let folder = Folder::new();
    let disk = Arc::new(MemDisk::new(4096));
    let (_server, uri) = serve(&folder, Clients::Certified, disk.clone());
    let text = uri.to_string();
    let info = run("nbdinfo", &[&text]);
    assert!(info.contains("with TLS"), "{info}");
    let source = pattern(0, 4096, 8);
    fs::write(folder.join("source"), source.bytes()).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    run("nbdcopy", &[&file("source"), &text]);
    run("nbdcopy", &[&text, &file("back")]);
    assert!(fs::read(folder.join("back")).unwrap() == source.bytes());
    assert!(disk.image() == source.bytes());
    let Address::Tcp { host, port } = &uri.address else { unreachable!("it listens on TCP") };
    let pki = file("pki");
    let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={pki}");
    let image = format!("driver=nbd,host={host},port={port},export=disk,tls-creds=tls");
    let source = format!("driver=raw,file.driver=file,file.filename={}", file("source"));
    let compare = ["compare", "--object", &object, "--image-opts", &source, &image];
    assert!(run("qemu-img", &compare).contains("identical"));
}
