//! Clients that have less room than they could use.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use gabion_base::ids::{Ino, SubvolId};
use gabion_base::sync::Mutex;
use gabion_link::message::ToClient;
use gabion_link::range::KeyRange;
use gabion_map::{FileId, Kind};
use gabion_node::remote::{Kernel, RemoteFs};
use gabion_node::served::{Rights, Served, Session};

use crate::shared::{Client, GLANCE, PATIENCE, Server};

const LIMIT: usize = 50;
const FILES: usize = 20 * LIMIT;

fn make_files(client: &Client, count: usize) {
    for number in 0..count {
        let file = client.create(&format!("file {number}"));
        client.fs.release(file);
    }
    client.run(|fs| fs.syncfs()).unwrap();
}

#[test]
fn what_a_client_reads_or_makes_does_not_make_it_grow_without_end() {
    let server = Server::new();
    let a = server.client_limited(Rights::TRUSTED, LIMIT);
    make_files(&a, FILES);
    let leases = || server.served.clients()[0].leases;
    let await_few = || {
        let began = Instant::now();
        // What is given back is on its way, and told with the next thing that is.
        while leases() > 4 * LIMIT {
            assert!(began.elapsed() < PATIENCE, "{} leases", leases());
            a.fs.ping();
            thread::sleep(GLANCE);
        }
    };
    await_few();
    assert_eq!(a.names(a.root).len(), FILES);
    await_few();
}

/// A client to which each answer comes as late as it can: what it gives back for want of room when
/// it hears of new leases is gone before whoever has asked goes on.
struct Late {
    fs: Arc<RemoteFs>,
    served: Arc<Served>,
    session: Arc<Session>,
    messages: Receiver<ToClient>,
    /// What has come meanwhile.
    later: Mutex<VecDeque<ToClient>>,
}

/// An object that nobody has. That its attributes are to be forgotten a kernel is told between the
/// leases that come with an answer and the answer.
const NOBODYS: FileId = FileId { subvol: SubvolId(1), ino: Ino(1 << 50) };

impl Late {
    fn run(&self) {
        loop {
            let next = self.later.lock().pop_front();
            let Some(mut message) = next.or_else(|| self.messages.recv().ok()) else { return };
            if let ToClient::Answer { updates, .. } = &mut message {
                updates.push((NOBODYS.key(Kind::INODE, 0), None));
            }
            self.fs.receive(message);
        }
    }

    fn await_given_back(&self) {
        self.fs.ping();
        let began = Instant::now();
        loop {
            let is_through =
                !self.session.is_behind() && !self.served.owed_by(&self.session).is_any();
            match self.messages.recv_timeout(Duration::from_millis(1)) {
                Ok(message @ ToClient::Revoke { .. }) => self.fs.receive(message),
                Ok(message) => self.later.lock().push_back(message),
                Err(_) if is_through => return,
                Err(_) => {}
            }
            assert!(began.elapsed() < PATIENCE, "it is not given back");
        }
    }
}

impl Kernel for Late {
    fn forget_attributes(&self, file: FileId) {
        if file == NOBODYS {
            self.await_given_back();
        }
    }

    fn forget_names(&self, _: &[KeyRange]) -> bool {
        true
    }

    fn forget_all_names(&self) {}

    fn forget_name(&self, _: FileId, _: &[u8]) {}

    fn can_forget_names(&self) -> bool {
        true
    }

    fn forget_bytes(&self, _: FileId, _: u64, _: u64) {}

    fn forget_listing(&self, _: FileId) -> bool {
        true
    }

    fn await_listings(&self, _: FileId, _: Option<&[u8]>) -> bool {
        true
    }
}

#[test]
fn an_operation_that_needs_more_than_there_is_room_for_comes_to_its_end() {
    let server = Server::new();
    let maker = server.client();
    make_files(&maker, FILES);
    let (client, messages) = server.unheard_client(Rights::TRUSTED, LIMIT);
    let (fs, served, session) =
        (Arc::clone(&client.fs), Arc::clone(&server.served), client.session());
    let late = Arc::new(Late { fs, served, session, messages, later: Mutex::default() });
    client.fs.set_kernel(Arc::clone(&late) as Arc<dyn Kernel>);
    thread::spawn(move || late.run());
    let (names, calls) = client.calls(|client| client.names(client.root));
    assert_eq!(names.len(), FILES);
    // The names; what they stand for, some of which comes with them and is given back at once.
    assert!(calls <= 10, "{calls} calls");
    // When it has ended there is no more than usual.
    client.fs.ping();
    let began = Instant::now();
    while client.fs.cached().0 > 2 * LIMIT {
        assert!(began.elapsed() < PATIENCE, "{} ranges", client.fs.cached().0);
        thread::sleep(GLANCE);
    }
}
