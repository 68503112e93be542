//! A disk that can be closed to whoever still holds it.
//!
//! A copy that is given up may still be asked by a thread that has not heard of it, and may still
//! be working on what it was asked before. Until all of that has ended it must not be brought up to
//! date: an old write could come after a newer one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gabion_base::disk::{Disk, DiskError, DiskRequest, DiskResult, Ticket};
use gabion_base::ids::BlockAddr;

/// The bit of `state` that says that the gate is closed; below it are the requests in flight.
const CLOSED: u64 = 1 << 63;

/// A disk behind a gate.
pub struct Gate {
    disk: Arc<dyn Disk>,
    state: Arc<AtomicU64>,
}

impl Gate {
    /// An open gate before `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, state: Arc::default() }
    }

    /// Length of the disk in blocks.
    pub fn blocks(&self) -> u64 {
        self.disk.blocks()
    }

    /// How many copies of each block the disk keeps in different places.
    pub fn copies(&self) -> usize {
        self.disk.copies()
    }

    /// Has `ask` ask the disk for something and wait; nothing if the gate is closed.
    pub fn pass<T>(&self, ask: impl FnOnce(&dyn Disk) -> T) -> Option<T> {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        let answer = (before & CLOSED == 0).then(|| ask(&*self.disk));
        self.state.fetch_sub(1, Ordering::AcqRel);
        answer
    }

    /// Starts a request and has `next` called with its outcome.
    pub fn send(&self, request: DiskRequest, next: impl FnOnce(DiskResult) + Send + 'static) {
        let what = (request.operation(), request.extent().0);
        self.start(what, |disk| disk.submit(request), next);
    }

    /// Starts to read from a copy that the disk keeps, and has `next` called with the outcome.
    pub fn read_copy(
        &self,
        (copy, addr, count): (usize, BlockAddr, usize),
        next: impl FnOnce(DiskResult) + Send + 'static,
    ) {
        self.start(("read", addr), |disk| disk.submit_copy(copy, addr, count), next);
    }

    fn start(
        &self,
        (operation, addr): (&'static str, BlockAddr),
        submit: impl FnOnce(&dyn Disk) -> Ticket,
        next: impl FnOnce(DiskResult) + Send + 'static,
    ) {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        if before & CLOSED != 0 {
            self.state.fetch_sub(1, Ordering::AcqRel);
            return next(Err(not_connected(self.disk.name(), operation, addr)));
        }
        let state = Arc::clone(&self.state);
        submit(&*self.disk).then(move |outcome| {
            state.fetch_sub(1, Ordering::AcqRel);
            next(outcome);
        });
    }

    /// Lets nothing more through.
    pub fn close(&self) -> Closed {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        Closed(Arc::clone(&self.state))
    }
}

/// What has been closed, and may yet be working.
#[derive(Debug)]
pub struct Closed(Arc<AtomicU64>);

impl Closed {
    /// Whether all that it was asked has ended.
    pub fn is_quiet(&self) -> bool {
        self.0.load(Ordering::Acquire) == CLOSED
    }
}

/// That a disk is not there.
pub fn not_connected(device: Arc<str>, operation: &'static str, addr: BlockAddr) -> DiskError {
    let source = io::Error::new(io::ErrorKind::NotConnected, "it is not connected");
    DiskError::Io { device, operation, addr, source: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use gabion_base::sync::Mutex;

    use super::*;

    /// Never answers by itself.
    struct Silent(Mutex<Vec<gabion_base::disk::Completion>>);

    impl Disk for Silent {
        fn name(&self) -> Arc<str> {
            "silent".into()
        }

        fn blocks(&self) -> u64 {
            1
        }

        fn submit(&self, _request: DiskRequest) -> Ticket {
            let (ticket, completion) = Ticket::pair();
            self.0.lock().push(completion);
            ticket
        }
    }

    #[test]
    fn a_closed_gate_is_quiet_only_when_the_last_request_has_ended() {
        let disk = Arc::new(Silent(Mutex::default()));
        let gate = Gate::new(Arc::clone(&disk) as Arc<dyn Disk>);
        let (outcomes, ended) = mpsc::channel();
        let send = |gate: &Gate| {
            let outcomes = outcomes.clone();
            gate.send(DiskRequest::Flush, move |outcome| outcomes.send(outcome.is_ok()).unwrap());
        };
        send(&gate);
        let closed = gate.close();
        assert!(!closed.is_quiet());
        send(&gate);
        assert_eq!(ended.try_recv(), Ok(false), "it is refused at once");
        disk.0.lock().pop().unwrap().complete(Ok(None));
        assert_eq!(ended.try_recv(), Ok(true));
        assert!(closed.is_quiet());
    }
}
