//! What can be seen and done at a served filesystem: its clients, their leases, evicting one.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{Folder, GABION, Running, rest};

/// How long a client may take to begin or end a session, or to tell what is open.
const PATIENCE: Duration = Duration::from_secs(60);

/// A served filesystem with one mount.
struct Served {
    server: Running,
    folder: Folder,
    mountpoint: PathBuf,
    uri: String,
}

impl Served {
    fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// Served with these options.
    fn with(options: &[&str]) -> Option<Self> {
        let folder = Folder::for_mounts()?;
        folder.image();
        let (server, uri) = serve(&folder, "127.0.0.1:0", options);
        let mountpoint = folder.join("mnt");
        fs::create_dir(&mountpoint).unwrap();
        folder.gabion(&["mount", "-o", "deadline=60", &uri, "mnt"]).succeeded();
        Some(Self { server, folder, mountpoint, uri })
    }

    #[track_caller]
    fn asked(&self, command: &str) -> Value {
        let text = self.folder.gabion(&[command, "--json", "disk.img"]).succeeded();
        serde_json::from_str(&text).unwrap()
    }

    /// The session of the mount, if it has one.
    #[track_caller]
    fn session(&self) -> Option<String> {
        let clients = self.asked("clients");
        let clients = clients["clients"].as_array().unwrap();
        assert!(clients.len() <= 1, "{clients:?}");
        Some(clients.first()?["session"].as_str().unwrap().to_owned())
    }

    /// Waits until what `gabion clients` tells is as it shall be.
    #[track_caller]
    fn await_clients(&self, wanted: impl Fn(&[Value]) -> bool) {
        let began = Instant::now();
        loop {
            let clients = self.asked("clients");
            if wanted(clients["clients"].as_array().unwrap()) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{clients}");
            rest();
        }
    }

    /// The leases on the file or folder at `path`: what, from, to, mode.
    #[track_caller]
    fn leases_on(&self, path: &Path) -> Vec<(String, Value, Value, String)> {
        let inode = path.metadata().unwrap().ino();
        let leases = self.asked("leases");
        assert_eq!(
            (&leases["more_leases"], &leases["waiting"]),
            (&0.into(), &Value::Array(vec![]))
        );
        let session = self.session().unwrap();
        let rows = leases["leases"].as_array().unwrap().iter();
        let of_it = rows.filter(|row| row["inode"] == inode);
        let told = of_it.map(|row| {
            assert_eq!(row["client"], session.as_str());
            let text = |field: &str| row[field].as_str().unwrap().to_owned();
            (text("what"), row["from"].clone(), row["to"].clone(), text("mode"))
        });
        told.collect()
    }

    fn stop(&mut self, signal: Signal) -> Option<i32> {
        self.server.signal(signal);
        self.server.0.wait().unwrap().code()
    }
}

fn serve(folder: &Folder, address: &str, options: &[&str]) -> (Running, String) {
    let mut command = Command::new(GABION);
    command.args(["serve", "disk.img", "--listen", address]).args(options);
    command.current_dir(folder.path()).env("GABION_STATE", folder.join("state"));
    let mut server = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("gabion://"), "{line:?}");
    (server, line.trim_end().to_owned())
}

#[test]
fn who_mounts_what_is_served_here_is_told_where_at_once() {
    let Some(served) = Served::new() else { return };
    fs::create_dir(served.folder.join("other")).unwrap();
    let outcome = served.folder.gabion(&["mount", "disk.img", "other"]);
    assert!(!outcome.stderr.contains("waiting for"), "{}", outcome.stderr);
    outcome.failed(1, &["in use", "It is served here", &served.uri]);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn clients_and_their_leases_can_be_seen() {
    let Some(mut served) = Served::new() else { return };
    let file = served.mountpoint.join("file");
    fs::write(&file, "content").unwrap();
    let clients = served.asked("clients");
    let client = &clients["clients"][0];
    assert!(client["name"].as_str().unwrap().ends_with("/mnt"), "{clients}");
    assert_eq!(client["owed"], 0, "{clients}");
    let text = served.folder.gabion(&["clients", "disk.img"]).succeeded();
    assert!(text.contains(client["session"].as_str().unwrap()), "{text}");

    fs::read(&file).unwrap();
    let leases = served.leases_on(&file);
    // What is new is its maker's; bytes that the kernel keeps are shared.
    let row = |what: &str, from, to, mode: &str| (what.to_owned(), from, to, mode.to_owned());
    let attributes = row("attributes", Value::Null, Value::Null, "exclusive");
    let pages = row("bytes", 0.into(), 4096.into(), "shared");
    assert!(leases.contains(&attributes) && leases.contains(&pages), "{leases:?}");
    fs::read_dir(&served.mountpoint).unwrap().for_each(drop);
    let names = row("names", 0.into(), Value::Null, "exclusive");
    let leases = served.leases_on(&served.mountpoint);
    assert!(leases.contains(&names), "{leases:?}");
    let text = served.folder.gabion(&["leases", "disk.img"]).succeeded();
    let line = text.lines().find(|line| line.contains("names")).unwrap();
    assert!(line.ends_with("all"), "{text}");

    // The kernel tells of the last close when it is done with it.
    served.await_clients(|clients| clients[0]["opens"] == 0);
    let open = File::open(&file).unwrap();
    served.await_clients(|clients| clients[0]["opens"] == 1);
    drop(open);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    served.await_clients(|clients| clients.is_empty());
    let nobody = served.folder.gabion(&["clients", "disk.img"]).succeeded();
    assert!(nobody.contains("has no clients"), "{nobody}");
    let nothing = served.folder.gabion(&["leases", "disk.img"]).succeeded();
    assert!(nothing.starts_with("nobody has leases on /"), "{nothing}");
    assert_eq!(served.stop(Signal::TERM), Some(0));
}

#[test]
fn locks_can_be_seen_also_those_that_are_waited_for() {
    let Some(mut served) = Served::new() else { return };
    let paths = ["one", "two"].map(|name| served.mountpoint.join(name));
    let [one, two] = paths.each_ref().map(|path| {
        fs::write(path, "content").unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    });
    let nothing = served.folder.gabion(&["locks", "disk.img"]).succeeded();
    assert!(nothing.starts_with("nobody has locks on /"), "{nothing}");
    fcntl_lock(&one, FlockOperation::LockShared).unwrap();
    flock(&two, FlockOperation::LockExclusive).unwrap();
    let other = Command::new("flock").arg(&paths[1]).args(["true"]).spawn().unwrap();
    let mut other = Running(other);
    let began = Instant::now();
    let locks = loop {
        let locks = served.asked("locks");
        if locks["waiting"] != Value::Array(vec![]) {
            break locks;
        }
        assert!(began.elapsed() < PATIENCE, "{locks}");
        rest();
    };
    let client: Value = served.session().unwrap().into();
    let inode = |path: &PathBuf| Value::from(path.metadata().unwrap().ino());
    let rows = locks["locks"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{locks}");
    let of = |inode: &Value| rows.iter().find(|row| row["inode"] == *inode).unwrap();
    let row = |row: &Value| ["client", "kind", "mode", "from", "to"].map(|key| row[key].clone());
    let told =
        |kind: &str, mode: &str| [client.clone(), kind.into(), mode.into(), 0.into(), Value::Null];
    assert_eq!(row(of(&inode(&paths[0]))), told("fcntl", "shared"));
    assert_eq!(of(&inode(&paths[0]))["pid"], std::process::id());
    assert_eq!(row(of(&inode(&paths[1]))), told("flock", "exclusive"));
    let waiting = &locks["waiting"][0];
    assert_eq!((row(waiting), &waiting["pid"]), (told("flock", "exclusive"), &other.0.id().into()));

    let text = served.folder.gabion(&["locks", "disk.img", "/two"]).succeeded();
    assert!(text.lines().count() == 3 && text.ends_with("all  waits\n"), "{text}");
    let text = served.folder.gabion(&["locks", "disk.img", "one"]).succeeded();
    assert!(text.lines().count() == 2 && text.contains("fcntl  shared"), "{text}");
    served.folder.gabion(&["locks", "disk.img", "/none"]).failed(1, &["cannot find /none in"]);
    // Leases are told of one object in the same way.
    let text = served.folder.gabion(&["leases", "--json", "disk.img", "/one"]).succeeded();
    let leases: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(leases["path"], "/one");
    let leases = leases["leases"].as_array().unwrap();
    assert!(!leases.is_empty() && leases.iter().all(|row| row["inode"] == inode(&paths[0])));

    drop((one, two));
    assert!(other.0.wait().unwrap().success());
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
}

#[test]
fn a_client_that_is_evicted_begins_a_new_session_and_goes_on() {
    let Some(mut served) = Served::new() else { return };
    let file = served.mountpoint.join("file");
    fs::write(&file, "before").unwrap();
    let session = served.session().unwrap();
    let evict = |client: &str| served.folder.gabion(&["evict", "disk.img", client]);
    evict("nobody").failed(1, &["disk.img has no client nobody"]);
    let told = evict(&session).succeeded();
    assert!(told.contains(&session) && told.contains("/mnt"), "{told}");
    evict(&session).failed(1, &["has no client"]);
    served.await_clients(|clients| clients.len() == 1);
    assert_ne!(served.session().unwrap(), session);
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    fs::write(&file, "behind").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "behind");
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
    served.folder.gabion(&["scrub", "disk.img"]).succeeded();
}

/// Without that the others would wait for as long as its session lasts.
#[test]
fn who_is_waited_for_after_a_restart_can_be_evicted() {
    const SESSION: Duration = Duration::from_secs(300);
    let seconds = SESSION.as_secs().to_string();
    let options = ["--session-seconds", &seconds];
    let Some(mut served) = Served::with(&options) else { return };
    fs::write(served.mountpoint.join("file"), "before").unwrap();
    fs::create_dir(served.folder.join("other")).unwrap();
    served.folder.gabion(&["mount", &served.uri, "other"]).succeeded();
    let clients = served.asked("clients");
    let clients = clients["clients"].as_array().unwrap();
    let is_other = |client: &&Value| client["name"].as_str().unwrap().ends_with("/other");
    let session = clients.iter().find(is_other).unwrap()["session"].as_str().unwrap().to_owned();

    let status = served.folder.gabion(&["status", "--json", "other"]).succeeded();
    let status: Value = serde_json::from_str(&status).unwrap();
    let daemon = Pid::from_raw(status["mount"]["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
    served.stop(Signal::KILL);
    let began = Instant::now();
    let address = served.uri.trim_start_matches("gabion://").trim_end_matches('/').to_owned();
    served.server = serve(&served.folder, &address, &options).0;
    let awaited = |clients: &[Value]| {
        let awaited = clients.iter().filter(|client| client["awaited"] == true);
        awaited.map(|client| client["session"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    served.await_clients(|clients| clients.len() == 2 && awaited(clients) == [session.clone()]);
    let shown = served.folder.gabion(&["clients", "disk.img"]).succeeded();
    assert!(shown.contains("(waited for)"), "{shown}");
    let told = served.folder.gabion(&["evict", "disk.img", &session]).succeeded();
    assert!(told.contains(&session) && told.contains("not waited for"), "{told}");
    let file = served.mountpoint.join("file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "before");
    fs::write(&file, "behind").unwrap();
    assert!(began.elapsed() < SESSION / 2, "it was waited for");
    served.folder.gabion(&["evict", "disk.img", &session]).failed(1, &["has no client"]);
    served.folder.gabion(&["umount", "other"]).succeeded();
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
}

#[test]
fn what_happens_to_clients_is_told() {
    let Some(mut served) = Served::with(&["--session-seconds", "1"]) else { return };
    let began = Instant::now();
    // What was told so far, as soon as `wanted` was told so often.
    let told = |served: &Served, wanted: &str, count: usize| loop {
        let text = served.folder.gabion(&["events", "--json"]).succeeded();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let events: Vec<Value> = events.filter(|event| event["event"] == wanted).collect();
        if events.len() >= count {
            assert_eq!(events.len(), count, "{text}");
            return events;
        }
        assert!(began.elapsed() < PATIENCE, "{wanted} is not among {text}");
        rest();
    };
    let connected = &told(&served, "client-connected", 1)[0];
    let session = served.session().unwrap();
    assert_eq!(connected["session"], session);
    assert!(connected["client"].as_str().unwrap().ends_with("/mnt"), "{connected}");
    assert!(connected["filesystem"].as_str().unwrap().ends_with("disk.img"), "{connected}");
    assert!(connected["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{connected}");
    served.folder.gabion(&["evict", "disk.img", &session]).succeeded();
    let evicted = &told(&served, "client-evicted", 1)[0];
    assert_eq!(
        (&evicted["session"], &evicted["severity"]),
        (&connected["session"], &"warning".into())
    );
    assert_eq!(evicted["reason"], "evicted by a command");
    // It begins another session by itself.
    told(&served, "client-connected", 2);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    told(&served, "client-left", 1);

    served.folder.gabion(&["mount", &served.uri, "mnt"]).succeeded();
    let status = served.folder.gabion(&["status", "--json", "mnt"]).succeeded();
    let status: Value = serde_json::from_str(&status).unwrap();
    let daemon = Pid::from_raw(status["mount"]["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
    let silent = &told(&served, "client-silent", 1)[0];
    assert_eq!((&silent["patience_ms"], &silent["severity"]), (&1000.into(), &"warning".into()));
    served.folder.gabion(&["umount", "mnt"]).succeeded();

    served.folder.gabion(&["mount", &served.uri, "mnt"]).succeeded();
    served.stop(Signal::KILL);
    let address = served.uri.trim_start_matches("gabion://").trim_end_matches('/');
    served.server = serve(&served.folder, address, &["--session-seconds", "1"]).0;
    let again = &told(&served, "filesystem-served-again", 1)[0];
    assert!(again["patience_ms"].as_u64().unwrap() > 1000, "{again}");
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
}

#[test]
fn what_is_served_is_scrubbed_by_its_server_while_it_is_changed() {
    let Some(mut served) = Served::new() else { return };
    let file = served.mountpoint.join("file");
    fs::write(&file, vec![1; 5 << 20]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    let scrub = |subject: &str| {
        let text = served.folder.gabion(&["scrub", "--json", subject]).succeeded();
        let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        report["report"].clone()
    };
    let done = AtomicBool::new(false);
    let reports: Vec<_> = thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Acquire) {
                    return;
                }
                let other = served.mountpoint.join(format!("{}", round % 7));
                fs::write(&other, vec![round as u8; 100_000]).unwrap();
                let _ = fs::remove_file(served.mountpoint.join(format!("{}", (round + 3) % 7)));
            }
        });
        let reports = (0..5).map(|_| scrub("disk.img")).collect();
        done.store(true, Ordering::Release);
        reports
    });
    for report in reports {
        assert!(report["checked_bytes"].as_u64().unwrap() >= 5 << 20, "{report:#}");
        assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
        assert_eq!(report["stopped"], false, "{report:#}");
    }
    // Asked at a mount of it, it is said where.
    let there = &["cannot scrub", "it is at gabion://127.0.0.1:", "gabion scrub TARGET"];
    served.folder.gabion(&["scrub", "mnt"]).failed(1, there);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
    served.folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn what_is_served_grows_in_use_and_its_clients_see_it() {
    let Some(mut served) = Served::new() else { return };
    let blocks = || rustix::fs::statvfs(&served.mountpoint).unwrap().f_blocks;
    let before = blocks();
    let text = served.folder.gabion(&["grow", "--to", "192M", "disk.img"]).succeeded();
    assert!(text.contains("grew from 64 MiB to 192 MiB"), "{text}");
    assert!(blocks() > 2 * before, "{before} {}", blocks());
    let file = served.mountpoint.join("file");
    fs::write(&file, vec![7; 100 << 20]).unwrap();
    File::open(&file).unwrap().sync_all().unwrap();
    served.folder.gabion(&["grow", "mnt"]).failed(1, &["cannot grow", "gabion grow TARGET"]);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
    served.folder.gabion(&["scrub", "disk.img"]).succeeded();
}

#[test]
fn what_is_served_shows_its_state() {
    let Some(mut served) = Served::new() else { return };
    let status = served.folder.status("disk.img");
    assert_eq!(status["served"]["clients"], 1, "{status:#}");
    assert_eq!(status["served"]["pid"], served.server.0.id(), "{status:#}");
    assert_eq!(status["mount"], Value::Null, "{status:#}");
    let text = served.folder.gabion(&["status", "disk.img"]).succeeded();
    let address = status["served"]["address"].as_str().unwrap();
    assert!(text.contains("disk.img: Gabion filesystem, served"), "{text}");
    assert!(text.contains(&format!("gabion://{address}/")) && text.contains("1 client"), "{text}");
    assert_eq!(served.folder.status("mnt")["served"], Value::Null);
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    assert_eq!(served.stop(Signal::TERM), Some(0));
    assert_eq!(served.folder.status("disk.img")["served"], Value::Null);
}

#[test]
fn what_is_not_served_has_no_clients_to_be_seen() {
    let Some(mut served) = Served::new() else { return };
    served.folder.gabion(&["umount", "mnt"]).succeeded();
    let is_not_served = |served: &Served| {
        let outcome = served.folder.gabion(&["clients", "disk.img"]);
        outcome.failed(1, &["is not served on this machine", "gabion serve disk.img"]);
    };
    served.stop(Signal::KILL);
    is_not_served(&served);
    // What the killed one has left is replaced.
    served.server = serve(&served.folder, "127.0.0.1:0", &[]).0;
    assert_eq!(served.session(), None);
    assert_eq!(served.stop(Signal::TERM), Some(0));
    is_not_served(&served);
    let image = served.folder.join("disk.img").metadata().unwrap();
    let socket = format!("/run/gabion/served-{:x}-{:x}.sock", image.dev(), image.ino());
    assert!(!Path::new(&socket).exists());
    served.folder.gabion(&["clients", "none.img"]).failed(1, &["cannot look at none.img"]);
}

#[test]
fn a_quota_is_set_at_the_server_and_holds_at_its_clients() {
    let Some(served) = Served::new() else { return };
    let folder = &served.folder;
    folder.gabion(&["quota", "set", "disk.img", "12M", "--objects", "9"]).succeeded();
    let file = File::create(served.mountpoint.join("file")).unwrap();
    let chunk = vec![7; 1 << 20];
    let refused = (0..20).find_map(|index| file.write_all_at(&chunk, index << 20).err());
    let refused = refused.and_then(|error| rustix::io::Errno::from_io_error(&error));
    assert_eq!(refused, Some(rustix::io::Errno::DQUOT));
    file.sync_all().unwrap();
    let told = rustix::fs::statvfs(&served.mountpoint).unwrap();
    assert_eq!(told.f_blocks * told.f_frsize, 12 << 20);
    let text = folder.gabion(&["quota", "list", "--json", "disk.img"]).succeeded();
    let list: Value = serde_json::from_str(&text).unwrap();
    let used = list["quotas"][0]["used_bytes"].as_u64().unwrap();
    assert!((10 << 20..=12 << 20).contains(&used), "{used}");
    let made = (0..20).find_map(|n| fs::create_dir(served.mountpoint.join(format!("{n}"))).err());
    let made = made.and_then(|error| rustix::io::Errno::from_io_error(&error));
    assert_eq!(made, Some(rustix::io::Errno::DQUOT));
    folder.gabion(&["quota", "set", "disk.img", "none"]).succeeded();
    file.write_all_at(&chunk, 20 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn a_server_makes_the_snapshots_of_its_schedule() {
    let Some(served) = Served::new() else { return };
    let folder = &served.folder;
    // Nobody but the client knows it yet.
    fs::write(served.mountpoint.join("file"), "as it was").unwrap();
    folder.gabion(&["snapshot", "schedule", "disk.img", "monthly=3"]).succeeded();
    let count = || {
        let status = folder.status("disk.img");
        status["subvolumes"].as_u64().unwrap()
    };
    let began = Instant::now();
    while count() < 2 {
        assert!(began.elapsed() < PATIENCE, "there is no snapshot");
        rest();
    }
    let list = fs::read_dir(served.mountpoint.join(".snapshots")).unwrap();
    let snapshots: Vec<_> = list.map(|snapshot| snapshot.unwrap().path()).collect();
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    assert_eq!(fs::read_to_string(snapshots[0].join("file")).unwrap(), "as it was");
    folder.gabion(&["umount", "mnt"]).succeeded();
}

#[test]
fn who_serves_one_filesystem_need_not_say_which() {
    let Some(Served { server, folder, mountpoint, .. }) = Served::new() else { return };
    fs::write(mountpoint.join("file"), "bytes").unwrap();
    // By a path that a mount of it shows. Other tests serve, too.
    let inode = fs::metadata(mountpoint.join("file")).unwrap().ino();
    let leased = |words: &[&str]| {
        let text = folder.gabion(&[&["leases", "--json"], words].concat()).succeeded();
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told["path"], "/file", "{told}");
        let leases = told["leases"].as_array().unwrap();
        assert!(leases.iter().all(|lease| lease["inode"] == inode), "{leases:?}");
        leases.len()
    };
    assert!(leased(&["mnt/file"]) > 0 && leased(&["disk.img", "/file"]) > 0);
    let file = File::open(mountpoint.join("file")).unwrap();
    flock(&file, FlockOperation::LockShared).unwrap();
    let text = folder.gabion(&["locks", "mnt/file"]).succeeded();
    assert!(text.contains("flock"), "{text}");
    // Where nobody else serves: in a folder of this test's own.
    let mut own = Command::new("mount");
    folder.run(own.args(["-t", "tmpfs", "-o", "mode=700", "own", "/run/gabion"])).succeeded();
    let nothing = ["nothing is served on this machine", "gabion serve TARGET"];
    folder.gabion(&["clients"]).failed(1, &nothing);
    folder.gabion(&["evict", "somebody"]).failed(1, &nothing);
    let others = Folder::new();
    others.image();
    let (_one, uri) = serve(&others, "127.0.0.1:0", &[]);
    let text = folder.gabion(&["clients"]).succeeded();
    assert!(text.contains("disk.img, served at") && text.contains(&uri), "{text}");
    folder.gabion(&["evict", "somebody"]).failed(1, &["has no client"]);
    assert!(folder.gabion(&["invite"]).succeeded().lines().count() == 1);
    folder.gabion(&["leases"]).succeeded();
    let more = Folder::new();
    more.image();
    let _two = serve(&more, "127.0.0.1:0", &[]);
    folder.gabion(&["clients"]).failed(2, &["several filesystems are served", "Say which"]);
    folder.run(Command::new("umount").args(["-l", "/run/gabion"])).succeeded();
    drop(file);
    folder.gabion(&["umount", "mnt"]).succeeded();
    drop(server);
}
