//! A server without threads, for tests of its parts.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::MemDisk;
use gabion_base::ids::Uuid;
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_fs::Caller;
use gabion_link::message::{Call, CallId, ChangeNumber, SessionId, ToClient, ToServer};
use gabion_map::open::FormatOptions;
use gabion_map::{Limits, OpenMode};

use super::{Job, Peer, Rights, Served, Session};
use crate::clock::Clock;
use crate::local::{LocalFs, Settings};

/// A clock that stands still.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::new(1_700_000_000, 0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// A client that keeps what it is told.
#[derive(Default)]
pub(super) struct Told(pub(super) Mutex<Vec<ToClient>>);

impl Peer for Told {
    fn send(&self, message: ToClient) {
        self.0.lock().push(message);
    }

    fn sent(&self) -> u64 {
        0
    }

    fn arrived(&self) -> u64 {
        0
    }
}

/// A server of a new filesystem, and what it has to do.
pub(super) struct Stage {
    pub(super) served: Served,
    jobs: Arc<Mutex<Vec<Job>>>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let disk = Arc::new(MemDisk::new(16 << 8));
        let options = FormatOptions {
            uuid: Uuid::from_random([5; 16]),
            label: "test".to_owned(),
            name_seed: 42,
            created: 1_600_000_000,
            blocks: None,
        };
        crate::format_filesystem(disk.clone(), &options).unwrap();
        let (limits, settings) = (Limits::within(32 << 20), Settings::default());
        let fs = LocalFs::open(disk, OpenMode::ReadWrite, limits, settings, Arc::new(Still));
        let jobs = Arc::new(Mutex::new(Vec::new()));
        let queue = Arc::clone(&jobs);
        let queue = Box::new(move |job| queue.lock().push(job));
        Self { served: Served::new(Arc::new(fs.unwrap()), 1, queue).unwrap(), jobs }
    }

    pub(super) fn client(&self, id: u64) -> (Arc<Session>, Arc<Told>) {
        let told = Arc::<Told>::default();
        let peer = Arc::clone(&told);
        let session = self.served.begin(SessionId(id), String::new(), Rights::TRUSTED, peer);
        (session, told)
    }

    pub(super) fn ask(&self, session: &Arc<Session>, id: u64, call: Call) {
        let (id, caller, after) = (CallId(id), Caller::superuser(), ChangeNumber(0));
        self.served.receive(session, ToServer::Call { id, caller, call, after });
    }

    /// What it has to do now.
    pub(super) fn take_jobs(&self) -> Vec<Job> {
        std::mem::take(&mut *self.jobs.lock())
    }

    /// Does all that it has to do.
    pub(super) fn run(&self) {
        loop {
            let jobs = self.take_jobs();
            if jobs.is_empty() {
                return;
            }
            jobs.into_iter().for_each(|job| self.served.run(job));
        }
    }
}
