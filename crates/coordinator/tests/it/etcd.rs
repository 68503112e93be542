//! etcd with bad networks, lost answers and crashes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use gabion_block::coordinator::{Coordinator, CoordinatorError, Revision};
use gabion_coordinator::{Etcd, Patience};

use crate::etcd_server::{EtcdServer, coordinator_at, free_port};
use crate::relay::{Relay, Way};

#[test]
fn the_next_endpoint_is_asked_when_one_fails() {
    let server = EtcdServer::start();
    let silent = Relay::to(server.port());
    silent.set(Way::Silent);
    let coordinator = Etcd::new(
        &format!(
            "127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}",
            free_port(),
            silent.port(),
            server.port()
        ),
        Patience { call: Duration::from_secs(3), lease_seconds: 3 },
    );
    let coordinator = coordinator.unwrap();
    let revision = coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    assert_eq!(server.coordinator().read("tank").unwrap().unwrap().revision, revision);
    // From then on the one that has answered comes first.
    let started = Instant::now();
    coordinator.read("tank").unwrap();
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[test]
fn a_call_to_nobody_ends_with_its_deadline() {
    let patience = Patience { call: Duration::from_millis(300), lease_seconds: 3 };
    let silent = Relay::to(EtcdServer::start().port());
    silent.set(Way::Silent);
    for port in [free_port(), silent.port()] {
        let coordinator = Etcd::new(&format!("127.0.0.1:{port}"), patience).unwrap();
        let started = Instant::now();
        let Err(CoordinatorError::Unavailable { coordinator, reason }) = coordinator.read("tank")
        else {
            panic!("nobody is there")
        };
        assert_eq!(coordinator, format!("etcd://127.0.0.1:{port}"));
        assert!(reason.starts_with(&format!("127.0.0.1:{port}: ")), "{reason}");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[test]
fn a_replacement_whose_answer_was_lost_is_a_success_if_it_is_there() {
    let server = EtcdServer::start();
    let relay = Relay::to(server.port());
    let coordinator = coordinator_at(&[relay.port()]);
    relay.set(Way::LosesAnAnswer);
    let revision = coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    assert_eq!(relay.way(), Way::Good, "an answer was lost");
    let stored = server.coordinator().read("tank").unwrap().unwrap();
    assert_eq!((stored.revision, &*stored.text), (revision, "a"));
    relay.set(Way::LosesAnAnswer);
    let second = coordinator.replace("tank", revision, "b").unwrap();
    assert_ne!(revision, second);
    // Nobody's replacement is taken for one's own.
    relay.set(Way::LosesAnAnswer);
    let done = coordinator.replace("tank", revision, "c");
    assert!(matches!(done, Err(CoordinatorError::Conflict { .. })), "{done:?}");
    relay.set(Way::LosesAnAnswer);
    coordinator.remove("tank", second).unwrap();
    assert_eq!(coordinator.read("tank"), Ok(None));
    for lost in 0..2 {
        // The answer about the lease, and in the second round that about the key.
        relay.set(Way::LosesAnAnswer);
        let claim = coordinator.claim("tank", "me").unwrap();
        assert!(claim.is_held(), "{lost}");
    }
}

#[test]
fn all_goes_on_after_a_crash_of_etcd() {
    let mut server = EtcdServer::start();
    let coordinator = server.coordinator();
    let first = coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    let claim = coordinator.claim("tank", "me").unwrap();
    thread::scope(|scope| {
        let changed =
            scope.spawn(|| coordinator.changed("tank", first, Duration::from_secs(20)).unwrap());
        server.kill();
        server.resume_unseen();
        // Asked while nobody is there yet.
        let second = coordinator.replace("tank", first, "b").unwrap();
        let seen = changed.join().unwrap().unwrap();
        assert_eq!((seen.revision, &*seen.text), (second, "b"));
    });
    assert!(claim.is_held());
    assert_eq!(coordinator.holder("tank").unwrap().as_deref(), Some("me"));
    assert!(coordinator.claim("tank", "you").is_err());
}

#[test]
fn a_silent_holder_knows_that_it_has_lost_before_another_has_the_claim() {
    let server = EtcdServer::start();
    let relay = Relay::to(server.port());
    let holder = coordinator_at(&[relay.port()]);
    let claim = holder.claim("tank", "the silent one").unwrap();
    let other = server.coordinator();
    // Longer than a lease: it is confirmed as long as the way is good.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert!(claim.is_held());
        assert!(other.claim("tank", "the other").is_err());
    }
    relay.set(Way::Silent);
    let taken = loop {
        match other.claim("tank", "the other") {
            Ok(taken) => break taken,
            Err(CoordinatorError::Claimed { holder, .. }) => assert_eq!(holder, "the silent one"),
            Err(other) => panic!("{other}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the claim ends");
    };
    assert!(!claim.is_held());
    relay.set(Way::Good);
    assert!(!claim.is_held(), "what was lost does not come back");
    assert!(taken.is_held());
    drop(claim);
    assert!(taken.is_held());
    assert_eq!(other.holder("tank").unwrap().as_deref(), Some("the other"));
}

#[test]
fn what_others_wrote_there_is_strange_and_not_a_record() {
    let server = EtcdServer::start();
    let coordinator = server.coordinator();
    // The key and the bytes ff fe.
    let body = r#"{"key":"L2dhYmlvbi92b2x1bWVzL3Rhbms=","value":"//4="}"#;
    let length = body.len();
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    write!(stream, "POST /v3/kv/put HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 OK"), "{answer}");
    let Err(CoordinatorError::Strange { volume, .. }) = coordinator.read("tank") else {
        panic!("it is no text")
    };
    assert_eq!(volume, "tank");
}
