//! Clients that all write at the same moment where a quota leaves little, while somebody sets it
//! anew all the time. What they were answered is there, and nothing is over the quota.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gabion_base::rng::Rng;
use gabion_fs::{Changes, Error, Privileges, WriteAt};
use gabion_link::errand::Errand;
use gabion_map::format::subvolume::Most;
use gabion_map::{FileId, MapError, Payload, Stop};

use crate::shared::{Client, Server, caller};
use crate::world::MIB;

/// So large that clients change things by themselves in spite of a quota.
const DISK: u64 = 512 * MIB;
const CLIENTS: usize = 3;
const FILES: usize = 2;
const STEPS: usize = 250;
const CHUNK: usize = 128 << 10;
const CHUNKS: u64 = 64;

fn had_room<T>(outcome: Result<T, Error>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(Error::Stop(Stop::Map(MapError::OverQuota | MapError::NoSpace))) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Writes here and there, and cuts. What is in the files then.
fn write(client: &Client, files: &[FileId], rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut contents = vec![Vec::new(); files.len()];
    for _ in 0..STEPS {
        let index = rng.below(files.len() as u64) as usize;
        let (file, content) = (files[index], &mut contents[index]);
        match rng.below(20) {
            0 => {
                let size = Some((0, Privileges::Keep));
                let changes = Changes { size, ..Changes::default() };
                client.run(|fs| fs.setattr(&caller(), file, &changes)).unwrap();
                content.clear();
            }
            1 => client.run(|fs| fs.fsync(file)).unwrap(),
            _ => {
                let bytes = vec![rng.below(255) as u8 + 1; CHUNK];
                let offset = rng.below(CHUNKS) as usize * CHUNK;
                let (at, payload) = (WriteAt::Offset(offset as u64), Payload::Copied(&bytes));
                let keep = Privileges::Keep;
                if had_room(client.run(|fs| fs.write(&caller(), file, at, &payload, keep))) {
                    content.resize(content.len().max(offset + CHUNK), 0);
                    content[offset..offset + CHUNK].copy_from_slice(&bytes);
                }
            }
        }
    }
    files.iter().for_each(|file| client.run(|fs| fs.fsync(*file)).unwrap());
    contents
}

#[test]
fn clients_at_a_quota_that_is_set_anew_all_the_time_lose_nothing_and_stay_within() {
    for seed in 1..5 {
        let mut rng = Rng::new(seed);
        let server = Server::with_disk(DISK);
        let clients: Vec<Client> = (0..CLIENTS).map(|_| server.client()).collect();
        let admin = server.client();
        let of = server.world.root().subvol;
        let files: Vec<FileId> = (clients.iter().enumerate())
            .flat_map(|(number, client)| {
                (0..FILES).map(move |file| client.create(&format!("{number} {file}")))
            })
            .collect();
        let is_over = AtomicBool::new(false);
        let contents: Vec<Vec<u8>> = thread::scope(|scope| {
            let threads = clients.iter().zip(files.chunks(FILES)).map(|(client, files)| {
                let mut rng = Rng::new(rng.next_u64());
                scope.spawn(move || write(client, files, &mut rng))
            });
            let threads: Vec<_> = threads.collect();
            let mut rng = Rng::new(rng.next_u64());
            let (is_over, admin, server) = (&is_over, &admin, &server);
            let setter = scope.spawn(move || {
                while !is_over.load(Ordering::Acquire) {
                    let mib = [4, 40, 100, 150, 300][rng.below(5) as usize];
                    let most = Most { blocks: Some(mib * MIB / 4096), objects: None };
                    admin.errand(Errand::SetQuota { path: Vec::new(), most });
                    // What was over it then may stay, and become less.
                    let map = server.world.fs.map();
                    map.sync().unwrap();
                    let charged = || map.quota(of).unwrap().count.unwrap().charged();
                    let then = charged();
                    for _ in 0..20 {
                        server.served.settle_round().unwrap();
                        let now = charged();
                        assert!(now <= then.max(mib * MIB / 4096), "{now}, {mib} MiB");
                    }
                }
            });
            let ends: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            is_over.store(true, Ordering::Release);
            setter.join().unwrap();
            ends.into_iter().flat_map(Result::unwrap).collect()
        });
        for (file, content) in files.iter().zip(&contents) {
            assert!(server.world.read(*file) == *content, "seed {seed}");
        }
    }
}
