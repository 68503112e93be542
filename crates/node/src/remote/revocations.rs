//! Leases that the server wants back.
//!
//! ```text
//!   names, attributes   forget here | barrier | kernel forgets | Released
//!   bytes               READs wait | forget here | barrier | kernel drops pages | Released | READs
//!                                                                                        go on
//! ```
//!
//! One thread does this, [`RemoteFs::attend`], in batches; it never waits for the server.

use std::collections::VecDeque;
use std::sync::Arc;

use gabion_base::sync::{Condvar, Mutex};
use gabion_link::message::ToServer;
use gabion_link::range::KeyRange;
use gabion_link::table::RevokeId;
use gabion_map::{FileId, Kind};

use super::RemoteFs;

type Later = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    revoked: VecDeque<(RevokeId, KeyRange)>,
    later: VecDeque<Later>,
    is_closed: bool,
}

/// What waits to be attended to.
#[derive(Default)]
pub(super) struct Revocations {
    queue: Mutex<Queue>,
    later: Condvar,
    arrived: Condvar,
}

impl Revocations {
    pub(super) fn push(&self, id: RevokeId, range: KeyRange) {
        self.queue.lock().revoked.push_back((id, range));
        self.arrived.notify_one();
    }

    /// Has something run on a thread that may wait for the server.
    pub(super) fn later(&self, run: Later) {
        self.queue.lock().later.push_back(run);
        self.later.notify_one();
    }

    /// The session has ended: nobody wants an answer.
    pub(super) fn clear(&self) {
        self.queue.lock().revoked.clear();
    }

    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.arrived.notify_all();
        self.later.notify_all();
    }

    /// All revocations that wait; nothing at the end.
    fn next(&self) -> Option<Vec<(RevokeId, KeyRange)>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.is_closed {
                return None;
            }
            if !queue.revoked.is_empty() {
                return Some(queue.revoked.drain(..).collect());
            }
            self.arrived.wait(&mut queue);
        }
    }

    fn next_later(&self) -> Option<Later> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(run) = queue.later.pop_front() {
                return Some(run);
            }
            if queue.is_closed {
                return None;
            }
            self.later.wait(&mut queue);
        }
    }
}

impl RemoteFs {
    /// Gives back what the server wants back, until the end. For a thread of its own.
    pub fn attend(&self) {
        while let Some(revoked) = self.revocations.next() {
            let is_bytes = |(_, range): &(RevokeId, KeyRange)| range.kind() == Some(Kind::DATA);
            let (bytes, others): (Vec<_>, Vec<_>) = revoked.into_iter().partition(is_bytes);
            if !others.is_empty() {
                self.give_back_items(&others);
            }
            for (id, range) in bytes {
                self.give_back_bytes(id, &range);
            }
        }
    }

    /// Runs what may wait for the server, until the end. For a thread of its own.
    pub fn attend_later(&self) {
        while let Some(run) = self.revocations.next_later() {
            run();
            self.answered();
        }
    }

    fn give_back_items(&self, revoked: &[(RevokeId, KeyRange)]) {
        {
            let mut cache = self.cache.write();
            revoked.iter().for_each(|(_, range)| cache.revoke(range));
        }
        self.gate.barrier();
        if let Some(kernel) = self.kernel.lock().clone() {
            if revoked.iter().any(|(_, range)| range.kind() == Some(Kind::DIRENT)) {
                kernel.forget_names();
            }
            for (_, range) in revoked {
                if range.first().kind == Kind::INODE {
                    kernel.forget_attributes(range.file());
                }
            }
        }
        let ids = revoked.iter().map(|(id, _)| *id).collect();
        self.calls.tell(ToServer::Released(ids));
    }

    fn give_back_bytes(&self, id: RevokeId, range: &KeyRange) {
        let file = range.file();
        let pages = pages_of(range);
        let dropping = self.pages.begin_dropping(file, pages);
        self.cache.write().revoke(range);
        self.gate.barrier();
        self.drop_pages(file, pages);
        self.calls.tell(ToServer::Released(vec![id]));
        self.pages.dropped(file, dropping);
    }

    /// Has the kernel drop pages.
    pub(super) fn drop_pages(&self, file: FileId, range: (u64, u64)) {
        let Some(kernel) = self.kernel.lock().clone() else { return };
        let drop_pages: Arc<dyn Fn(FileId, (u64, u64)) + Send + Sync> =
            Arc::new(move |file, (from, to)| kernel.forget_bytes(file, from, to));
        self.pages.drop_pages(file, range, &drop_pages);
    }
}

/// The whole pages that a range of bytes touches.
fn pages_of(range: &KeyRange) -> (u64, u64) {
    let (from, last) = (range.first().at, range.last().at);
    super::pages::pages(from, (last - from).saturating_add(1))
}
