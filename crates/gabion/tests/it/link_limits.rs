//! Clients of the link that mean no good, and very many that do.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::ids::SubvolId;
use gabion_fs::Error;
use gabion_link::join::{Admission, Application};
use gabion_link::message::{Answer, Call, CallId, Refusal, RefusalReason};
use gabion_link::wire::{FrameKind, Header};
use gabion_tls::authority::Applicant;
use gabion_tls::mutual::{Dialer, Files};
use gabion_tls::secret::Secret;
use gabion_tls::to_pem;
use rustix::process::Signal;

use crate::raw::{PATIENCE, Raw, call_of};
use crate::world::{Folder, GABION, GLANCE, Running, rest};

const SPACE: Call = Call::Space { of: SubvolId(1) };

/// A server, and where it is.
fn serve(folder: &Folder, listen: &str) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--session-seconds", "10", "--listen", listen]);
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    let stdout = server.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let address = line.trim_end().trim_end_matches('/').strip_prefix("gabion://").unwrap();
    (server, address.to_owned())
}

fn mkdir(raw: &Raw, name: &[u8]) -> Call {
    Call::Mkdir { parent: raw.root, name: name.to_vec(), permissions: 0o755 }
}

fn stop(mut server: Running) {
    server.signal(Signal::TERM);
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_first_frame_that_is_too_long_ends_the_connection() {
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let mut header = Header::greeting(FrameKind::Hello, b"");
    header.length = 1 << 20;
    for bytes in [
        &header.encode()[..],
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        &[22, 3, 1, 0, 5],
        &[0; 100],
    ] {
        let raw = Raw::connect(&address, None);
        raw.write(bytes).unwrap();
        let answer = raw.frame();
        let is_end = |error: &std::io::Error| {
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
        };
        match answer {
            Err(error) => assert!(is_end(&error), "{error}"),
            Ok((header, _)) => assert_eq!(header.kind, FrameKind::Refusal),
        }
    }
    // Others are served meanwhile.
    let mut raw = Raw::greeted(&address, None, "good");
    assert!(matches!(raw.ask(SPACE), Ok(Answer::Space { .. })));
    stop(server);
}

/// Nothing is changed for a while after a start in which there may be older sessions: all that
/// comes meanwhile waits.
#[test]
fn a_client_that_asks_without_end_is_not_read_any_more_and_others_are() {
    const CALLS: usize = 400_000;
    let folder = Folder::new();
    folder.image();
    let (mut server, address) = serve(&folder, "127.0.0.1:0");
    drop(Raw::greeted(&address, None, "before"));
    server.signal(Signal::KILL);
    let _ = server.0.wait();
    let (server, address) = serve(&folder, &address);

    let mut flood = Raw::greeted(&address, None, "flood");
    flood.socket.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut said = 0;
    let refused = loop {
        assert!(said < CALLS, "everything was read");
        let mut calls = Vec::new();
        for _ in 0..100 {
            said += 1;
            let (id, call) = (CallId(said as u64), mkdir(&flood, &[b'a'; 255]));
            calls.extend(flood.message(&call_of(id, call)));
        }
        if let Err(error) = flood.write(&calls) {
            break error;
        }
    };
    assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{refused}");
    let mut other = Raw::greeted(&address, None, "other");
    assert!(matches!(other.ask(SPACE), Ok(Answer::Space { .. })));
    // What was read is done when that is possible, and so more is read.
    let began = Instant::now();
    while let Err(error) = other.ask(mkdir(&other, b"one")) {
        assert!(matches!(error, Error::Exists), "{error}");
        assert!(began.elapsed() < PATIENCE);
        rest();
    }
    drop((flood, other));
    stop(server);
}

/// It goes on to do things, and hears that they are durable.
#[test]
fn who_does_not_say_what_it_has_heard_of_loses_its_session() {
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let mut raw = Raw::greeted(&address, None, "forgetful");
    let began = Instant::now();
    for number in 0.. {
        assert!(began.elapsed() < 2 * PATIENCE, "it is served for ever");
        let call = mkdir(&raw, format!("{number}").as_bytes());
        let (id, message) = (CallId(1_000_000 + number), call);
        let asked = raw.say(&call_of(id, message));
        if asked.and_then(|()| raw.frame()).is_err() {
            break;
        }
        rest();
    }
    assert!(began.elapsed() > Duration::from_secs(25), "it was not given time");
    let log = || fs::read_to_string(folder.join("state/events/log.jsonl")).unwrap();
    let is_told = || {
        let log = log();
        let mut evicted = log.lines().filter(|line| line.contains("client-evicted"));
        evicted.any(|line| line.contains("what is durable"))
    };
    while !is_told() {
        assert!(began.elapsed() < 2 * PATIENCE, "{}", log());
        rest();
    }
    // Others are served.
    let mut other = Raw::greeted(&address, None, "other");
    assert!(matches!(other.ask(SPACE), Ok(Answer::Space { .. })));
    stop(server);
}

#[test]
fn strangers_that_say_nothing_leave_room_for_others() {
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let silent: Vec<_> = (0..200).map(|_| Raw::connect(&address, None)).collect();
    // Some were turned away at once.
    let is_closed = |raw: &&Raw| {
        raw.socket.set_nonblocking(true).unwrap();
        let peeked = raw.socket.peek(&mut [0]);
        raw.socket.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    let began = Instant::now();
    while silent.iter().filter(is_closed).count() < 72 {
        assert!(began.elapsed() < PATIENCE);
        rest();
    }
    assert!(silent.iter().filter(|raw| !is_closed(raw)).count() > 0);
    drop(silent);

    let mut raw = loop {
        assert!(began.elapsed() < PATIENCE);
        let raw = Raw::connect(&address, None);
        if let Ok(raw) = raw.greet("good") {
            break raw;
        }
        rest();
    };
    assert!(matches!(raw.ask(SPACE), Ok(Answer::Space { .. })));
    stop(server);
}

/// Joins with an invitation to what `folder` has served; gives what to connect with.
fn join(folder: &Folder, address: &str, name: &str) -> Dialer {
    let (stranger, application, key) = invited(folder, name);
    let raw = Raw::connect(address, Some(&stranger));
    raw.first(FrameKind::Application, &application).unwrap();
    let (header, payload) = raw.frame().unwrap();
    assert_eq!(header.kind, FrameKind::Admission);
    let admission = Admission::decode(&payload).unwrap();
    let keep = |what: &str, content: &str| {
        let path = folder.join(&format!("{name}-{what}"));
        fs::write(&path, content).unwrap();
        path
    };
    let certificate = keep("certificate", &to_pem(&admission.certificate));
    let (key, authority) = (keep("key", &key), keep("authority", &to_pem(&raw.authority())));
    Dialer::joined(Files { certificate: &certificate, key: &key, authority: &authority }).unwrap()
}

/// What to connect with in order to join, what to say, and a key.
fn invited(folder: &Folder, name: &str) -> (Dialer, Vec<u8>, String) {
    let line = folder.gabion(&["invite", "disk.img"]).succeeded();
    let fields: Vec<_> = line.trim_end().split(':').collect();
    let secret: Secret = fields[3].parse().ok().unwrap();
    let stranger = Dialer::stranger(fields[2].parse().unwrap()).unwrap();
    let applicant = Applicant::new().unwrap();
    let request = applicant.request().unwrap();
    let application = Application { secret: secret.0, name: name.to_owned(), request }.encode();
    (stranger, application, applicant.key_pem())
}

#[test]
fn who_shows_no_certificate_may_only_apply() {
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let (stranger, application, _) = invited(&folder, "stranger");
    let refused = Raw::connect(&address, Some(&stranger)).hello(None, "stranger").unwrap();
    let refusal = refused.unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::Unauthorized);
    assert!(refusal.text.contains("has no certificate"), "{}", refusal.text);
    // The secret is nothing to be told to everybody.
    let raw = Raw::connect(&address, None);
    raw.first(FrameKind::Application, &application).unwrap();
    let (header, payload) = raw.frame().unwrap();
    assert_eq!(header.kind, FrameKind::Refusal);
    let refusal = Refusal::decode(&payload).unwrap();
    assert!(refusal.text.contains("without encryption"), "{}", refusal.text);
    stop(server);
}

#[test]
fn a_session_goes_on_only_with_the_certificate_that_began_it() {
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let (one, other) = (join(&folder, &address, "one"), join(&folder, &address, "other"));
    let session = Raw::greeted(&address, Some(&one), "one").known_as;
    for thief in [Some(&other), None] {
        let refused = Raw::connect(&address, thief).hello(Some(session), "one").unwrap();
        assert_eq!(refused.unwrap_err().reason, RefusalReason::Gone);
    }
    let goes_on = Raw::connect(&address, Some(&one)).hello(Some(session), "one").unwrap();
    assert_eq!(goes_on.unwrap().session, session.0);
    stop(server);
}

#[test]
fn a_hundred_clients_cost_the_server_no_thread_each() {
    const CLIENTS: usize = 100;
    const ROUNDS: usize = 4;
    let folder = Folder::new();
    folder.image();
    let (server, address) = serve(&folder, "127.0.0.1:0");
    let dialer = join(&folder, &address, "many");
    let work = |raw: &mut Raw, client: usize, round: usize| {
        let name = format!("{client}-{round}").into_bytes();
        raw.ask(mkdir(raw, &name)).unwrap();
        assert!(matches!(raw.ask(mkdir(raw, &name)), Err(Error::Exists)));
        raw.ask(Call::Rmdir { parent: raw.root, name }).unwrap();
    };
    let new = |client: usize| {
        let name = format!("client{client}");
        Raw::greeted(&address, client.is_multiple_of(2).then_some(&dialer), &name)
    };
    // Those of the engine and the kernel, for commits and the disk, come and go.
    let passing = ["gabion-commit", "disk", "iou-"];
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.0.id())).unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        let mut names: Vec<_> =
            names.filter(|name| !passing.iter().any(|other| name.starts_with(other))).collect();
        names.sort();
        names
    };
    let mut clients: Vec<Raw> = (0..2).map(new).collect();
    clients.iter_mut().enumerate().for_each(|(client, raw)| work(raw, client, ROUNDS));
    let few = threads();
    clients.extend((2..CLIENTS).map(new));
    let most = thread::scope(|scope| {
        let workers: Vec<_> = clients
            .chunks_mut(CLIENTS / 10)
            .enumerate()
            .map(|(part, clients)| {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        for (client, raw) in clients.iter_mut().enumerate() {
                            work(raw, part * CLIENTS + client, round);
                        }
                    }
                })
            })
            .collect();
        let mut most = Vec::new();
        while !workers.iter().all(|worker| worker.is_finished()) {
            most = std::cmp::max_by_key(most, threads(), Vec::len);
            thread::sleep(GLANCE);
        }
        most
    });
    // One that has just begun has the name of who began it.
    let begun = CLIENTS / 10;
    assert!(most.len() <= few.len() + begun, "{most:?}, and {few:?} for two clients");
    let told = folder.gabion(&["clients", "--json", "disk.img"]).succeeded();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let told = told["clients"].as_array().unwrap();
    assert_eq!(told.len(), CLIENTS);
    assert_eq!(told.iter().filter(|client| client["machine"] == "many").count(), CLIENTS / 2);
    drop(clients);
    stop(server);
}
