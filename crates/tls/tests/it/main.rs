//! Two ends of an encrypted connection, over sockets of this process.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use gabion_tls::authority::{Applicant, Authority};
use gabion_tls::mutual::{Acceptor, Dialer, Files};
use gabion_tls::secret::Digest;
use gabion_tls::{Connection, Discord, Session};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gabion-tls-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The files of a member of `own` that takes its peers for members of `peers`.
    fn member(&self, name: &str, own: &Authority, peers: &Authority) -> Member {
        let applicant = Applicant::new().unwrap();
        let (certificate, _) = own.certify(&applicant.request().unwrap(), name).unwrap();
        let at = |what: &str, text: &str| {
            let path = self.0.join(format!("{name}-{what}"));
            fs::write(&path, text).unwrap();
            path
        };
        Member {
            certificate: at("certificate", &gabion_tls::to_pem(&certificate)),
            key: at("key", &applicant.key_pem()),
            authority: at("authority", &gabion_tls::to_pem(peers.certificate())),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

struct Member {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

impl Member {
    fn files(&self) -> Files<'_> {
        Files { certificate: &self.certificate, key: &self.key, authority: &self.authority }
    }
}

fn authority() -> Authority {
    Authority::make("authority of a test").unwrap()
}

/// Both ends, as far as each has come. The server answers one byte, so that the client learns what
/// the server thinks of it.
fn meet(server: Connection, client: Connection) -> (io::Result<Session>, io::Result<Session>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    thread::scope(|scope| {
        let served = scope.spawn(move || {
            let session = Session::start(server, &theirs, Instant::now() + PATIENCE)?;
            session.write_parts(&theirs, &mut [IoSlice::new(b"!")])?;
            Ok(session)
        });
        let met = (|| {
            let session = Session::start(client, &ours, Instant::now() + PATIENCE)?;
            session.read(&ours, &mut [0])?;
            Ok(session)
        })();
        (served.join().unwrap(), met)
    })
}

fn discord(met: &io::Result<Session>) -> &Discord {
    Discord::of(met.as_ref().err().unwrap()).unwrap()
}

#[test]
fn a_stranger_knows_the_authority_by_its_fingerprint_and_a_member_is_known_by_its_certificate() {
    let (folder, authority) = (Folder::new("member"), authority());
    let acceptor = Acceptor::of(&authority).unwrap();
    let stranger = Dialer::stranger(authority.fingerprint()).unwrap();
    let (served, met) = meet(acceptor.connection().unwrap(), stranger.connection().unwrap());
    assert_eq!(served.unwrap().holder().unwrap(), None);
    assert_eq!(met.unwrap().shown_authority().as_deref(), Some(authority.certificate()));

    let member = folder.member("host1", &authority, &authority);
    let dialer = Dialer::joined(member.files()).unwrap();
    let (served, met) = meet(acceptor.connection().unwrap(), dialer.connection().unwrap());
    met.unwrap();
    assert_eq!(served.unwrap().holder().unwrap().unwrap().name, "host1");
}

#[test]
fn whoever_belongs_to_another_authority_is_told_so() {
    let (folder, authority, other) = (Folder::new("other"), authority(), authority());
    let acceptor = Acceptor::of(&authority).unwrap();
    let stranger = Dialer::stranger(Digest::of(b"something else")).unwrap();
    let (_, met) = meet(acceptor.connection().unwrap(), stranger.connection().unwrap());
    assert!(discord(&met).is_distrust());

    let fooled = folder.member("fooled", &authority, &other);
    let fooled = Dialer::joined(fooled.files()).unwrap();
    let (_, met) = meet(acceptor.connection().unwrap(), fooled.connection().unwrap());
    assert!(discord(&met).is_distrust());

    let intruder = folder.member("intruder", &other, &authority);
    let intruder = Dialer::joined(intruder.files()).unwrap();
    let (served, met) = meet(acceptor.connection().unwrap(), intruder.connection().unwrap());
    assert!(discord(&served).is_distrust());
    assert!(discord(&met).is_distrusted());
}

#[test]
fn a_member_cannot_pass_for_the_server() {
    let (folder, authority) = (Folder::new("pass"), authority());
    let member = folder.member("server.gabion", &authority, &authority);
    // With its own certificate, and the authority's behind it as a server has it.
    let both = [fs::read(&member.certificate), fs::read(&member.authority)];
    let both: Vec<u8> = both.into_iter().flat_map(Result::unwrap).collect();
    fs::write(&member.certificate, both).unwrap();
    let acceptor = Acceptor::load(member.files()).unwrap();
    let victim = folder.member("victim", &authority, &authority);
    let dialers = [
        Dialer::joined(victim.files()).unwrap(),
        Dialer::stranger(authority.fingerprint()).unwrap(),
    ];
    for dialer in dialers {
        let (_, met) = meet(acceptor.connection().unwrap(), dialer.connection().unwrap());
        assert!(discord(&met).is_distrust());
    }
}

#[test]
fn sockets_that_make_nobody_wait_carry_everything_in_order() {
    const BYTES: usize = 3 << 20;
    let authority = authority();
    let server = Acceptor::of(&authority).unwrap().connection().unwrap();
    let client = Dialer::stranger(authority.fingerprint()).unwrap().connection().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes: Vec<u8> = (0..BYTES as u32).map(|number| (number * 7 / 3) as u8).collect();
    let began = Instant::now();
    let received = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let session = Session::start(client, &ours, Instant::now() + PATIENCE).unwrap();
            let mut received = vec![0; BYTES];
            let mut filled = 0;
            while filled < BYTES {
                filled += session.read(&ours, &mut received[filled..]).unwrap();
            }
            received
        });
        let session = Session::begin(server);
        while session.is_handshaking() {
            let error = session.read(&theirs, &mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(began.elapsed() < PATIENCE);
        }
        let (mut taken, mut refused) = (0, 0);
        while taken < BYTES {
            match session.write_some(&theirs, &mut [IoSlice::new(&bytes[taken..])]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => refused += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(began.elapsed() < PATIENCE);
        }
        while session.flush(&theirs).is_err() {
            assert!(began.elapsed() < PATIENCE);
        }
        assert!(refused > 0, "the socket took everything at once");
        reader.join().unwrap()
    });
    assert!(received == bytes);
}

/// Plain bytes on a socket are no TLS.
#[test]
fn who_does_not_encrypt_is_not_understood() {
    let acceptor = Acceptor::of(&authority()).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[0; 64]).unwrap();
    let started =
        Session::start(acceptor.connection().unwrap(), &theirs, Instant::now() + PATIENCE);
    let discord = Discord::of(started.as_ref().err().unwrap()).unwrap();
    assert!(!discord.is_distrust() && !discord.is_distrusted());
    drop(theirs);
    // It is told in an alert that it does not understand either.
    ours.read_to_end(&mut Vec::new()).unwrap();
}
