//! etcd with bad networks, lost answers and crashes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use gabion_block::coordinator::{Coordinator, CoordinatorError, Revision};
use gabion_coordinator::{Etcd, Patience};

use crate::etcd_server::{EtcdServer, PATIENCE, coordinator_at, free_port};
use crate::relay::{Relay, Way};

/// How long a test rests between two questions.
const GLANCE: Duration = Duration::from_millis(10);

#[test]
fn the_next_endpoint_is_asked_when_one_fails() {
    let server = EtcdServer::start();
    let silent = Relay::to(server.port());
    silent.set(Way::Silent);
    let coordinator = Etcd::new(
        &format!(
            "etcd://127.0.0.1:{},127.0.0.1:{},127.0.0.1:{}",
            free_port(),
            silent.port(),
            server.port()
        ),
        Patience { call: Duration::from_secs(3), lease_seconds: 3 },
    );
    let coordinator = coordinator.unwrap();
    let revision = coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    assert_eq!(server.coordinator().read("tank").unwrap().unwrap().revision, revision);
    // From then on the one that has answered comes first. A busy machine may take its time; the
    // silent one would each time.
    let read = || {
        let started = Instant::now();
        coordinator.read("tank").unwrap();
        started.elapsed()
    };
    let times: Vec<_> = (0..5).map(|_| read()).collect();
    assert!(times.iter().any(|time| *time < Duration::from_millis(900)), "{times:?}");
}

#[test]
fn a_call_to_nobody_ends_with_its_deadline() {
    let patience = Patience { call: Duration::from_millis(300), lease_seconds: 3 };
    let silent = Relay::to(EtcdServer::start().port());
    silent.set(Way::Silent);
    for port in [free_port(), silent.port()] {
        let coordinator = Etcd::new(&format!("etcd://127.0.0.1:{port}"), patience).unwrap();
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
fn a_claim_whose_answers_were_all_lost_is_let_go_of() {
    let server = EtcdServer::start();
    let relay = Relay::to(server.port());
    let url = format!("etcd://127.0.0.1:{}", relay.port());
    // The lease would last for longer than the test.
    let patience = Patience { call: Duration::from_secs(3), lease_seconds: 600 };
    let coordinator = Etcd::new(&url, patience).unwrap();
    let other = server.coordinator();
    relay.set(Way::LosesTransactions);
    thread::scope(|scope| {
        let claiming = scope.spawn(|| coordinator.claim("tank", "me").err());
        while other.holder("tank").unwrap().is_none() {
            assert!(!claiming.is_finished(), "nothing was claimed");
        }
        let error = claiming.join().unwrap();
        assert!(matches!(error, Some(CoordinatorError::Unavailable { .. })), "{error:?}");
    });
    assert_eq!(other.released("tank", Duration::from_secs(20)), Ok(None));
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
        thread::sleep(GLANCE);
    }
    relay.set(Way::Silent);
    let taken = loop {
        match other.claim("tank", "the other") {
            Ok(taken) => break taken,
            Err(CoordinatorError::Claimed { holder, .. }) => assert_eq!(holder, "the silent one"),
            Err(other) => panic!("{other}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30), "the claim ends");
        thread::sleep(GLANCE);
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
    let (status, said) = server.post("kv/put", body, "");
    assert!(status.contains(" 200 OK"), "{said}");
    let Err(CoordinatorError::Strange { volume, .. }) = coordinator.read("tank") else {
        panic!("it is no text")
    };
    assert_eq!(volume, "tank");
}

/// How a coordinator fails that is asked for a record.
fn refusal(url: &str) -> String {
    let patience = Patience { call: Duration::from_millis(700), lease_seconds: 3 };
    Etcd::new(url, patience).unwrap().read("tank").unwrap_err().to_string()
}

/// What is to be done with a coordinator, all of it.
fn exercise(coordinator: &Etcd) {
    let first = coordinator.replace("tank", Revision::ABSENT, "a").unwrap();
    let claim = coordinator.claim("tank", "me").unwrap();
    thread::scope(|scope| {
        let patience = Duration::from_secs(20);
        let changed = scope.spawn(move || coordinator.changed("tank", first, patience).unwrap());
        let second = coordinator.replace("tank", first, "b").unwrap();
        let seen = changed.join().unwrap().unwrap();
        assert_eq!((seen.revision, &*seen.text), (second, "b"));
    });
    assert!(claim.is_held());
    assert_eq!(coordinator.holder("tank").unwrap().as_deref(), Some("me"));
    drop(claim);
    assert_eq!(coordinator.volumes().unwrap(), ["tank"]);
}

#[test]
fn an_encrypted_etcd_is_asked_by_who_has_a_certificate() {
    let server = EtcdServer::start_encrypted();
    let url = server.encrypted_url();
    exercise(&Etcd::new(&url, PATIENCE).unwrap());
    refusal(&format!("etcd://localhost:{}", server.port()));
    // Another name than the certificate's.
    let folder = server.certificates();
    let folder = folder.display();
    let other = format!("etcds://[::ffff:127.0.0.1]:{}?tls-certificates={folder}", server.port());
    let error = refusal(&other);
    assert!(error.contains("certificate"), "{error}");
    fs::remove_file(server.certificates().join("client-cert.pem")).unwrap();
    refusal(&url);
    fs::remove_file(server.certificates().join("ca-cert.pem")).unwrap();
    let error = Etcd::new(&url, PATIENCE).unwrap_err();
    assert!(error.contains("ca-cert.pem"), "{error}");
}

#[test]
fn an_etcd_with_passwords_is_asked_by_its_users() {
    let mut server = EtcdServer::start();
    let ask = |server: &EtcdServer, path: &str, body: &str, token: &str| {
        let (status, said) = server.post(path, body, token);
        assert!(status.contains(" 200 OK"), "{path}: {status}, {said}");
        said
    };
    // All keys that begin with "/gabion/".
    let right = r#"{"name":"gabion","perm":{"permType":2,"key":"L2dhYmlvbi8=",
        "range_end":"L2dhYmlvbjA="}}"#;
    for (path, body) in [
        ("auth/user/add", r#"{"name":"root","password":"secret"}"#),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("auth/role/add", r#"{"name":"gabion"}"#),
        ("auth/role/grant", right),
        ("auth/user/add", r#"{"name":"gabion","password":"p@ss"}"#),
        ("auth/user/grant", r#"{"user":"gabion","role":"gabion"}"#),
        ("auth/user/add", r#"{"name":"other","password":"x"}"#),
        ("auth/enable", "{}"),
    ] {
        ask(&server, path, body, "");
    }
    let place = format!("127.0.0.1:{}", server.port());
    let file = server.folder().join("password");
    fs::write(&file, "p@ss\n").unwrap();
    let url = format!("etcd://gabion@{place}?password-file={}", file.display());
    let coordinator = Etcd::new(&url, PATIENCE).unwrap();
    exercise(&coordinator);
    for (who, reason) in [("", "user name"), ("gabion:no@", "invalid"), ("other:x@", "denied")] {
        // To look at a password takes it a while, on a busy machine a long one.
        let asked = Etcd::new(&format!("etcd://{who}{place}"), PATIENCE).unwrap().read("tank");
        let error = asked.unwrap_err().to_string();
        assert!(error.contains(reason), "{who} {error}");
        assert!(!error.contains("no@"), "{error}");
    }
    // What is changed about users makes all tokens old.
    let root = ask(&server, "auth/authenticate", r#"{"name":"root","password":"secret"}"#, "");
    let token = root.split("\"token\":\"").nth(1).unwrap().split('"').next().unwrap();
    ask(&server, "auth/user/add", r#"{"name":"third","password":"x"}"#, token);
    assert_eq!(coordinator.read("tank").unwrap().unwrap().text, "b");
    // A start makes etcd forget them.
    server.kill();
    server.resume_unseen();
    assert_eq!(coordinator.read("tank").unwrap().unwrap().text, "b");
    let claim = coordinator.claim("tank", "me").unwrap();
    assert!(claim.is_held());
}
