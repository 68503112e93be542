//! Machines that join: invitations, certificates, encryption, and who is kept out.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::wiretap::Wiretap;
use crate::world::{Folder, GABION, GLANCE, Outcome, Running};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// What nobody else shall read.
const TEXT: &str = "a text that would be seen on any cable";

/// A machine that serves `disk.img`.
struct Host {
    folder: Folder,
    server: Running,
    /// HOST:PORT
    address: String,
}

impl Host {
    fn serve(arguments: &[&str]) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let (server, address) = start(&folder, arguments);
        Some(Self { folder, server, address })
    }

    fn invite(&self, arguments: &[&str]) -> String {
        let line = self.folder.gabion(&[&["invite", "disk.img"], arguments].concat()).succeeded();
        assert_eq!(line.lines().count(), 1, "{line}");
        line.trim_end().to_owned()
    }

    fn clients(&self) -> Vec<Value> {
        let text = self.folder.gabion(&["clients", "--json", "disk.img"]).succeeded();
        let told: Value = serde_json::from_str(&text).unwrap();
        told["clients"].as_array().unwrap().clone()
    }

    /// What serves it is started again, at the same address.
    fn restart(&mut self, arguments: &[&str]) {
        self.stop();
        let listen = self.address.clone();
        let arguments = [&["--listen", &listen], arguments].concat();
        (self.server, self.address) = start(&self.folder, &arguments);
    }

    fn stop(&mut self) {
        self.server.signal(Signal::TERM);
        assert!(self.server.0.wait().unwrap().success());
    }
}

fn start(folder: &Folder, arguments: &[&str]) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--session-seconds", "3"]).args(arguments);
    if !arguments.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("gabion://").unwrap_or_else(|| panic!("{line:?}"));
    (server, address.trim_end_matches('/').to_owned())
}

/// Another machine, with a state of its own, and perhaps a network.
pub struct Guest {
    folder: Folder,
    pub network: Option<Network>,
}

impl Guest {
    pub fn new() -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.join("mnt")).unwrap();
        Self { folder, network: None }
    }

    pub fn gabion(&self, arguments: &[&str]) -> Outcome {
        match &self.network {
            None => self.folder.gabion(arguments),
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", network.name));
                self.folder.run(command.arg(GABION).args(arguments))
            }
        }
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    pub fn unmount(&self) {
        self.gabion(&["umount", "mnt"]).succeeded();
    }

    /// The only thing that was joined.
    fn identity(&self) -> PathBuf {
        let joined = self.folder.join("state/joined");
        let found: Vec<_> = fs::read_dir(joined).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(found.len(), 1);
        found[0].path()
    }
}

/// A network of its own, with a cable to this one.
pub struct Network {
    name: String,
    cable: String,
    /// This end of the cable.
    pub here: String,
}

impl Network {
    pub fn new(folder: &Folder) -> Self {
        let number = std::process::id();
        let (name, cable) = (format!("gabion-join-{number}"), format!("gbj{number}"));
        let part = format!("10.{}.{}", 200 + number / 250 % 50, number % 250);
        let network = Self { name, cable, here: format!("{part}.1") };
        let (name, cable, here) = (&network.name, &network.cable, &network.here);
        for command in [
            format!("netns add {name}"),
            format!("link add {cable} type veth peer name inside netns {name}"),
            format!("addr add {here}/24 dev {cable}"),
            format!("link set {cable} up"),
            format!("-n {name} addr add {part}.2/24 dev inside"),
            format!("-n {name} link set inside up"),
        ] {
            folder.run(Command::new("ip").args(command.split(' '))).succeeded();
        }
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for arguments in [["link", "del", &self.cable], ["netns", "del", &self.name]] {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_machine_that_was_invited_joins_and_nobody_on_the_cable_reads_along() {
    let Some(folder) = Folder::for_mounts() else { return };
    let mut guest = Guest::new();
    let network = Network::new(&guest.folder);
    let host = network.here.clone();
    guest.network = Some(network);
    folder.image();
    // Other machines can reach it: so it encrypts, without being told to.
    let (server, address) = start(&folder, &["--listen", &format!("{host}:0")]);
    let mut host = Host { folder, server, address };
    let tap = Wiretap::new(host.address.rsplit_once(':').unwrap().0, &host.address);
    let uri = format!("gabion://{}/", tap.address);

    let refused = guest.gabion(&["mount", &uri, "mnt"]);
    refused.failed(1, &["only machines that have joined get in", "gabion join LINE MOUNTPOINT"]);
    tap.forget();
    let line = host.invite(&["--address", &tap.address.to_string()]);
    let told = guest.gabion(&["join", "--name", "guest1", &line, "mnt"]).succeeded();
    assert!(told.contains(&uri), "{told}");
    fs::write(guest.mountpoint().join("a name to be kept"), TEXT).unwrap();
    guest.unmount();
    // From now on it knows what to show.
    guest.gabion(&["mount", &uri, "mnt"]).succeeded();
    let read = fs::read_to_string(guest.mountpoint().join("a name to be kept")).unwrap();
    assert_eq!(read, TEXT);
    let clients = host.clients();
    assert_eq!(clients[0]["machine"], "guest1", "{clients:?}");
    let text = host.folder.gabion(&["clients", "disk.img"]).succeeded();
    assert!(text.contains("  guest1  "), "{text}");
    guest.unmount();

    let secret = line.split(':').nth(3).unwrap();
    let secret: Vec<u8> = (0..secret.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&secret[at..at + 2], 16).unwrap())
        .collect();
    assert!(tap.amount() > 4096);
    for bytes in [TEXT.as_bytes(), b"a name to be kept", b"GABIONLK", b"guest1", &secret] {
        assert!(!tap.has_seen(bytes), "{bytes:?}");
    }

    // The same without encryption, where all that can be read.
    host.restart(&["--insecure"]);
    guest.gabion(&["mount", "--insecure", &uri, "mnt"]).succeeded();
    fs::write(guest.mountpoint().join("another name"), TEXT).unwrap();
    guest.unmount();
    for bytes in [TEXT.as_bytes(), b"another name", b"GABIONLK"] {
        assert!(tap.has_seen(bytes), "{bytes:?}");
    }
    host.stop();
}

#[test]
fn an_invitation_works_once_and_not_after_its_end() {
    let Some(mut host) = Host::serve(&[]) else { return };
    let guest = Guest::new();
    let line = host.invite(&[]);
    guest.gabion(&["join", &line[..line.len() / 2], "mnt"]).failed(2, &["is no invitation"]);
    // The machine is what is wrong: the invitation is not used up by that.
    guest.gabion(&["join", &line, "nowhere"]).failed(1, &["nowhere"]);
    guest.gabion(&["join", "-o", "sped", &line, "mnt"]).failed(2, &["sped"]);
    guest.gabion(&["join", &line, "mnt"]).succeeded();
    guest.unmount();
    let other = Guest::new();
    let used = ["this invitation was used already", "gabion invite TARGET"];
    other.gabion(&["join", &line, "mnt"]).failed(1, &used);

    let short = host.invite(&["--expires", "1s"]);
    let (front, expires) = short.rsplit_once(':').unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(expires.parse().unwrap());
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        thread::sleep(left);
    }
    other.gabion(&["join", &short, "mnt"]).failed(1, &["has ended", "gabion invite TARGET"]);
    // The end is not believed in from the line.
    let lied = format!("{front}:99999999999");
    other.gabion(&["join", &lied, "mnt"]).failed(1, &["refuses: this invitation has ended"]);

    let open = host.invite(&[]);
    host.restart(&[]);
    other.gabion(&["join", &line, "mnt"]).failed(1, &used);
    other.gabion(&["join", &open, "mnt"]).succeeded();
    other.unmount();
    host.stop();
}

#[test]
fn secrets_cannot_be_guessed_in_a_hurry() {
    let Some(mut host) = Host::serve(&[]) else { return };
    let guest = Guest::new();
    let line = host.invite(&[]);
    let secret = line.split(':').nth(3).unwrap();
    let wrong = |number: usize| line.replace(secret, &format!("{number:032x}"));
    for number in 0..5 {
        let outcome = guest.gabion(&["join", &wrong(number), "mnt"]);
        outcome.failed(1, &["this invitation is not known here"]);
    }
    let hurried = "too many invitations from there were not good";
    guest.gabion(&["join", &wrong(5), "mnt"]).failed(1, &[hurried]);
    // Also who has the right one cannot be told apart until then.
    guest.gabion(&["join", &line, "mnt"]).failed(1, &[hurried]);
    host.stop();
}

#[test]
fn whoever_belongs_to_another_filesystem_is_kept_out() {
    let (Some(mut host), Some(mut other)) = (Host::serve(&[]), Host::serve(&[])) else { return };
    let (guest, stranger) = (Guest::new(), Guest::new());
    guest.gabion(&["join", &host.invite(&[]), "mnt"]).succeeded();
    guest.unmount();
    stranger.gabion(&["join", &other.invite(&[]), "mnt"]).succeeded();
    stranger.unmount();

    // An invitation with somebody else's fingerprint: the secret is not told.
    let line = host.invite(&[]);
    let fields: Vec<_> = line.split(':').collect();
    let foreign = line.replace(fields[2], other.invite(&[]).split(':').nth(2).unwrap());
    let impostor = "is not the server that it should be";
    Guest::new().gabion(&["join", &foreign, "mnt"]).failed(1, &[impostor]);
    let third = Guest::new();
    third.gabion(&["join", &line, "mnt"]).succeeded();
    third.unmount();

    // A certificate by the other authority.
    for name in ["certificate.pem", "key.pem"] {
        fs::copy(stranger.identity().join(name), third.identity().join(name)).unwrap();
    }
    let uri = format!("gabion://{}/", host.address);
    let mounted = third.gabion(&["mount", &uri, "mnt"]);
    mounted.failed(1, &["does not accept the certificate of this machine", "gabion invite"]);

    // Another server where the one was.
    host.stop();
    other.address = host.address.clone();
    other.restart(&[]);
    guest.gabion(&["mount", &uri, "mnt"]).failed(1, &[impostor, "gabion invite"]);
    other.stop();
}

#[test]
fn a_machine_whose_certificate_was_taken_back_has_to_be_invited_again() {
    let Some(mut host) = Host::serve(&[]) else { return };
    let guest = Guest::new();
    let line = host.invite(&[]);
    let join = ["join", "--name", "guest1", "-o", "deadline=3", &line, "mnt"];
    guest.gabion(&join).succeeded();
    fs::write(guest.mountpoint().join("file"), TEXT).unwrap();
    let evict =
        |arguments: &[&str]| host.folder.gabion(&[&["evict", "disk.img"], arguments].concat());
    // Only evicted, it comes back by itself.
    evict(&["guest1"]).succeeded();
    assert_eq!(fs::read_to_string(guest.mountpoint().join("file")).unwrap(), TEXT);
    evict(&["--revoke", "nobody"]).failed(1, &["has no client nobody"]);
    let told = evict(&["--revoke", "guest1"]).succeeded();
    assert!(told.contains("guest1 has to be invited again"), "{told}");
    assert!(host.clients().is_empty());
    // Nothing is answered to it any more, and leaving works.
    guest.gabion(&["umount", "mnt"]).succeeded();
    let uri = format!("gabion://{}/", host.address);
    let refused = "the certificate of guest1 was taken back";
    guest.gabion(&["mount", &uri, "mnt"]).failed(1, &[refused, "gabion invite TARGET"]);
    host.restart(&[]);
    guest.gabion(&["mount", &uri, "mnt"]).failed(1, &[refused]);
    assert!(host.clients().is_empty());
    guest.gabion(&["join", &host.invite(&[]), "mnt"]).succeeded();
    assert_eq!(fs::read_to_string(guest.mountpoint().join("file")).unwrap(), TEXT);
    guest.unmount();
    host.stop();
}

#[test]
fn an_export_for_a_machine_is_for_who_shows_its_certificate() {
    let Some(mut host) = Host::serve(&["--export", "/:clients=guest1"]) else { return };
    let (first, second) = (Guest::new(), Guest::new());
    first.gabion(&["join", "--name", "guest1", &host.invite(&[]), "mnt"]).succeeded();
    fs::write(first.mountpoint().join("file"), TEXT).unwrap();
    first.unmount();
    // The name is taken: so the second one gets another.
    let joined = second.gabion(&["join", "--name", "guest1", &host.invite(&[]), "mnt"]);
    joined.failed(1, &["is not exported to", "--export"]);
    let plain = format!("gabion://{}/", host.address);
    Guest::new().gabion(&["mount", &plain, "mnt"]).failed(1, &["is not exported to"]);
    host.stop();
}

#[test]
fn an_encrypted_connection_that_breaks_is_made_again_and_costs_a_pause() {
    let Some(mut host) = Host::serve(&[]) else { return };
    let tap = Wiretap::new("127.0.0.1", &host.address);
    let guest = Guest::new();
    let line = host.invite(&["--address", &tap.address.to_string()]);
    guest.gabion(&["join", "-o", "deadline=60", &line, "mnt"]).succeeded();
    let session = host.clients()[0]["session"].clone();
    let is_ending = AtomicBool::new(false);
    let file = |number: usize| guest.mountpoint().join(format!("file{number}"));
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !is_ending.load(Ordering::Acquire) {
                // Longer than the sockets between take at once.
                let content = format!("{number} ").repeat(100_000);
                fs::write(file(number), &content).unwrap();
                assert_eq!(fs::read_to_string(file(number)).unwrap(), content);
                number += 1;
            }
            number
        });
        let mut cut = 0;
        let began = Instant::now();
        while cut < 12 {
            let before = tap.amount();
            while tap.amount() < before + 200_000 {
                assert!(began.elapsed() < PATIENCE && !writer.is_finished());
                thread::sleep(GLANCE);
            }
            cut += tap.cut();
        }
        is_ending.store(true, Ordering::Release);
        writer.join().unwrap()
    });
    assert!(written > 0);
    for number in 0..written {
        let content = fs::read_to_string(file(number)).unwrap();
        assert!(content == format!("{number} ").repeat(100_000), "file {number}");
    }
    assert_eq!(host.clients()[0]["session"], session);
    guest.unmount();
    host.stop();
    host.folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn a_server_for_its_own_machine_takes_both_and_who_has_joined_stays_encrypted() {
    let Some(mut host) = Host::serve(&[]) else { return };
    let uri = format!("gabion://{}/", host.address);
    let (joined, plain) = (Guest::new(), Guest::new());
    plain.gabion(&["mount", &uri, "mnt"]).succeeded();
    joined.gabion(&["join", "--name", "joined", &host.invite(&[]), "mnt"]).succeeded();
    fs::write(plain.mountpoint().join("file"), TEXT).unwrap();
    assert_eq!(fs::read_to_string(joined.mountpoint().join("file")).unwrap(), TEXT);
    let mut machines: Vec<_> =
        host.clients().iter().map(|client| client["machine"].to_string()).collect();
    machines.sort();
    assert_eq!(machines, ["\"joined\"", "null"]);
    plain.unmount();
    joined.unmount();
    // Who has joined something is not to be talked out of encryption by a name that is another's.
    let elsewhere = joined.gabion(&["mount", "gabion://192.0.2.1/", "mnt"]);
    elsewhere.failed(1, &["but not 192.0.2.1:7777", "-o insecure"]);
    host.stop();
}

/// Certificates by an authority that somebody else runs, with the tools that he has.
fn certify(folder: &Path) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                  -subj /CN=authority -keyout ca-key.pem -out ca.pem -days 30\n\
                  for who in server client; do\n\
                  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                  -subj /CN=$who -keyout $who-key.pem -out $who.csr\n\
                  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
                  -days 30 -out $who.pem -extfile names\n\
                  done\n";
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let mut command = Command::new("sh");
    let output = command.args(["-ec", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn certificates_of_another_authority_can_be_used_at_both_ends() {
    let Some(folder) = Folder::for_mounts() else { return };
    certify(folder.path());
    folder.image();
    let files = ["--tls-cert", "server.pem", "--tls-key", "server-key.pem", "--tls-ca", "ca.pem"];
    let (server, address) = start(&folder, &files);
    let mut host = Host { folder, server, address };
    let uri = format!("gabion://{}/", host.address);
    let guest = Guest::new();
    for name in ["client.pem", "client-key.pem", "ca.pem"] {
        fs::copy(host.folder.join(name), guest.folder.join(name)).unwrap();
    }
    guest.gabion(&["mount", &uri, "mnt"]).failed(1, &["only machines that have joined get in"]);
    let flags = ["--tls-cert", "client.pem", "--tls-key", "client-key.pem", "--tls-ca", "ca.pem"];
    guest.gabion(&[&["mount"], &flags[..], &[&uri, "mnt"]].concat()).succeeded();
    fs::write(guest.mountpoint().join("file"), TEXT).unwrap();
    assert_eq!(host.clients()[0]["machine"], "client");
    guest.unmount();
    let options = "tls-cert=client.pem,tls-key=client-key.pem,tls-ca=ca.pem";
    guest.gabion(&["mount", "-o", options, &uri, "mnt"]).succeeded();
    assert_eq!(fs::read_to_string(guest.mountpoint().join("file")).unwrap(), TEXT);
    guest.unmount();
    guest.gabion(&["mount", "-o", "tls-ca=ca.pem", &uri, "mnt"]).failed(2, &["belong together"]);
    let invited = host.folder.gabion(&["invite", "disk.img"]);
    invited.failed(1, &["certificates of another authority"]);
    // One by somebody else.
    certify(guest.folder.path());
    fs::copy(host.folder.join("ca.pem"), guest.folder.join("ca.pem")).unwrap();
    let outcome = guest.gabion(&["mount", "-o", options, &uri, "mnt"]);
    outcome.failed(1, &["does not accept the certificate of this machine"]);
    host.stop();
}
