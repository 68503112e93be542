//! Quotas of a filesystem that is served, and of one in which files are removed while they are in
//! use.

use gabion_fs::{Access, Error, IfExists, OpenRequest, Privileges, WriteAt};
use gabion_link::errand::{Errand, Report};
use gabion_map::format::subvolume::Most;
use gabion_map::{FileId, MapError, OpenMode, Payload, Stop};
use gabion_node::Filesystem;
use gabion_node::remote::RemoteFs;

use crate::shared::{Client, GLANCE, Server, await_that, caller};
use crate::world::{MIB, World};

const CHUNK: usize = 64 << 10;

fn limit(world: &World, bytes: u64) {
    let most = Most { blocks: Some(bytes / 4096), objects: None };
    world.fs.map().set_quota(world.root().subvol, most).unwrap();
}

fn used(world: &World) -> u64 {
    let quota = world.fs.map().quota(world.root().subvol).unwrap();
    quota.count.unwrap().charged() * 4096
}

fn is_over_quota<T: std::fmt::Debug>(outcome: &Result<T, Error>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Error::Stop(Stop::Map(MapError::OverQuota))) => true,
        Err(other) => panic!("it failed otherwise: {other}"),
    }
}

/// Writes chunks behind `from` until one is refused; where the file ends.
fn fill(client: &Client, file: FileId, from: u64) -> u64 {
    let bytes = [7; CHUNK];
    let mut end = from;
    loop {
        let payload = Payload::Copied(&bytes);
        let at = WriteAt::Offset(end);
        let written = client.run(|fs| fs.write(&caller(), file, at, &payload, Privileges::Keep));
        if is_over_quota(&written) {
            return end;
        }
        end += CHUNK as u64;
    }
}

#[test]
fn clients_fill_a_quota_and_lose_nothing_of_what_they_were_answered() {
    let server = Server::new();
    limit(&server.world, 40 * MIB);
    let (a, b) = (server.client(), server.client());
    let files = [a.create("a"), b.create("b")];
    let ends: Vec<u64> = std::thread::scope(|scope| {
        let fills = [(&a, files[0]), (&b, files[1])];
        let fills = fills.map(|(client, file)| scope.spawn(move || fill(client, file, 0)));
        fills.into_iter().map(|fill| fill.join().unwrap()).collect()
    });
    a.run(|fs| fs.fsync(files[0])).unwrap();
    b.run(|fs| fs.fsync(files[1])).unwrap();
    for (file, end) in files.iter().zip(&ends) {
        assert_eq!(server.world.fs.stat(*file).unwrap().size, *end);
    }
    let all: u64 = ends.iter().sum();
    assert!(all > 39 * MIB, "{ends:?}");
    server.world.fs.map().sync().unwrap();
    assert!(used(&server.world) <= 40 * MIB, "{}", used(&server.world));
    // What one removes the other can have.
    a.run(|fs| fs.unlink(&caller(), a.root, b"a")).unwrap();
    a.run(|fs| fs.release(files[0]));
    a.run(|fs| fs.forget(files[0], 1));
    a.run(RemoteSync::synced);
    let before = ends[1];
    let bytes = [8; CHUNK];
    let payload = Payload::Copied(&bytes);
    let at = WriteAt::Offset(before);
    b.run(|fs| fs.write(&caller(), files[1], at, &payload, Privileges::Keep)).unwrap();
    let space = b.run(|fs| fs.space(b.root.subvol)).unwrap();
    assert_eq!(space.total, 40 * MIB / 4096);
}

/// All that a client has changed is at the server.
trait RemoteSync {
    fn synced(&self);
}

impl RemoteSync for RemoteFs {
    fn synced(&self) {
        self.syncfs().unwrap();
    }
}

#[test]
fn a_quota_is_exact_though_an_idle_client_was_promised_room_in_it() {
    let server = Server::new();
    limit(&server.world, 40 * MIB);
    let (idle, busy) = (server.client(), server.client());
    let files = [idle.create("idle"), busy.create("busy")];
    idle.write(files[0], WriteAt::Offset(0), &[1; CHUNK]);
    idle.run(RemoteSync::synced);
    assert!(server.world.fs.map().pledged() > 0, "nothing is promised");
    // It is not refused anything, so nobody says that there is no room any more.
    for offset in (0..39 * MIB).step_by(CHUNK) {
        busy.write(files[1], WriteAt::Offset(offset), &[2; CHUNK]);
    }
    // What is answered here finds room, and what finds none is not answered.
    let end = fill(&idle, files[0], CHUNK as u64);
    idle.run(|fs| fs.fsync(files[0])).unwrap();
    busy.run(|fs| fs.fsync(files[1])).unwrap();
    assert_eq!(server.world.fs.stat(files[0]).unwrap().size, end);
    let used = used(&server.world);
    assert!(used <= 40 * MIB && used > 40 * MIB - CHUNK as u64, "{used}");
}

#[test]
fn a_quota_of_objects_is_exact_though_an_idle_client_was_promised_some() {
    let server = Server::new();
    let most = Most { blocks: None, objects: Some(3000) };
    server.world.fs.map().set_quota(server.world.root().subvol, most).unwrap();
    let (idle, busy) = (server.client(), server.client());
    idle.create("idle");
    assert!(server.world.fs.map().pledged() > 0, "nothing is promised");
    let make = |client: &Client, name: String| {
        let (how, request) =
            (IfExists::Fail, OpenRequest { access: Access::WRITE, truncate: None });
        let name = name.as_bytes();
        let made = client.run(|fs| fs.create(&caller(), client.root, name, 0o644, how, &request));
        !is_over_quota(&made)
    };
    assert!((0..2990).all(|number| make(&busy, format!("busy {number}"))));
    let made = (0..).take_while(|number| make(&idle, format!("idle {number}"))).count();
    // Besides the root and the first file.
    assert_eq!(made, 8);
    idle.run(RemoteSync::synced);
    busy.run(RemoteSync::synced);
    let quota = server.world.fs.map().quota(server.world.root().subvol).unwrap();
    assert_eq!(quota.count.unwrap().objects, 3000);
}

#[test]
fn what_a_client_was_answered_is_counted_when_the_quota_becomes_less() {
    let server = Server::new();
    limit(&server.world, 40 * MIB);
    let (client, other) = (server.client(), server.client());
    let file = client.create("file");
    client.run(RemoteSync::synced);
    let write = |chunk: u64| client.write(file, WriteAt::Offset(chunk * CHUNK as u64), &[5; CHUNK]);
    (0..48).for_each(write);
    let most = Most { blocks: Some(MIB / 4096), objects: None };
    let told = other.errand(Errand::SetQuota { path: Vec::new(), most });
    let Report::Quotas { rows, .. } = told else { panic!("{told:?}") };
    let counted = rows[0].quota.count.unwrap().charged() * 4096;
    let end = 48 * CHUNK as u64;
    assert!(counted >= end, "{counted}");
    assert_eq!(fill(&client, file, end), end);
    client.run(|fs| fs.fsync(file)).unwrap();
    assert_eq!(server.world.fs.stat(file).unwrap().size, end);
    assert_eq!(used(&server.world), counted);
    let request = OpenRequest { access: Access::WRITE, truncate: None };
    let how = IfExists::Open;
    let made = client.run(|fs| fs.create(&caller(), client.root, b"more", 0o644, how, &request));
    assert!(is_over_quota(&made));
}

/// Makes a subvolume at the root with a quota of so many bytes; the root of it.
fn limited_subvolume(client: &Client, name: &str, bytes: u64) -> FileId {
    let path = name.as_bytes().to_vec();
    client.errand(Errand::Subvolume { path: path.clone(), of: None, created: 1 });
    let most = Most { blocks: Some(bytes / 4096), objects: None };
    client.errand(Errand::SetQuota { path, most });
    client.lookup(name).unwrap()
}

#[test]
fn a_quota_that_is_nearly_used_up_has_nobody_wait_for_the_server_elsewhere() {
    let server = Server::new();
    let (client, _other) = (server.client(), server.client());
    let home = limited_subvolume(&client, "home", MIB);
    let make = |dir: FileId| {
        let (how, request) =
            (IfExists::Open, OpenRequest { access: Access::WRITE, truncate: None });
        let make = |fs: &RemoteFs| fs.create(&caller(), dir, b"file", 0o644, how, &request);
        client.run(make).unwrap().0.file
    };
    let (here, there) = (make(client.root), make(home));
    let writes_alone = |file: FileId| {
        let write = |client: &Client| client.write(file, WriteAt::Offset(0), &[1; CHUNK]);
        client.calls(write).1 == 0
    };
    let await_room = |file: FileId| {
        await_that(|| {
            server.served.settle_round().unwrap();
            writes_alone(file)
        });
    };
    // Where there is room clients change things by themselves, though the quota leaves little.
    await_room(here);
    assert!(server.world.fs.map().pledged() > 0);
    // In there the server does all, to the last block.
    assert!(!writes_alone(there) && !writes_alone(there));
    assert_eq!(fill(&client, there, 0), MIB - CHUNK as u64);
    assert!(writes_alone(here));
    // With more room it is as everywhere.
    let most = Most { blocks: Some(1024 * MIB / 4096), objects: None };
    client.errand(Errand::SetQuota { path: b"home".to_vec(), most });
    await_room(there);
}

#[test]
fn a_file_that_is_removed_gives_its_quota_to_the_next_write() {
    let world = World::new(64 * MIB);
    limit(&world, 10 * MIB);
    for round in 0..5_u8 {
        let file = world.file("file", &vec![round; 9 << 20]);
        // Nobody reaps in the background here.
        world.fs.unlink(&world.caller, world.root(), b"file").unwrap();
        world.fs.forget(file, 1);
    }
    assert!(used(&world) <= 10 * MIB);
    // What is in use still counts.
    let file = world.file("file", &vec![9; 9 << 20]);
    world.fs.unlink(&world.caller, world.root(), b"file").unwrap();
    let other = world.file("other", b"");
    let bytes = vec![1; 2 << 20];
    let payload = Payload::Copied(&bytes);
    let write = || {
        let at = WriteAt::Offset(0);
        world.fs.write(&world.caller, other, at, &payload, Privileges::Keep)
    };
    assert!(is_over_quota(&write()));
    world.fs.forget(file, 1);
    write().unwrap();
}

#[test]
fn what_a_crash_has_kept_from_being_counted_is_counted_in_the_background() {
    let world = World::new(64 * MIB);
    world.file("file", &[1; 1 << 20]);
    let of = world.root().subvol;
    let early = world.fs.map().create_snapshot(of, b"early", 7).unwrap();
    limit(&world, 2 * MIB);
    world.fs.map().rollback(of, early, b"before", 8).unwrap();
    let world = world.after_crash(OpenMode::ReadWrite);
    assert_eq!(world.fs.map().quota(of).unwrap().count, None);
    std::thread::scope(|scope| {
        scope.spawn(|| world.fs.keep_reaped(&|error| panic!("{error}")));
        while world.fs.map().quota(of).unwrap().count.is_none() {
            std::thread::sleep(GLANCE);
        }
        world.fs.end_background();
    });
    assert_eq!(used(&world), MIB + 2 * 4096);
    assert_eq!(world.fs.map().space_of(of).total, 2 * MIB / 4096);
}
