//! What administrators are told of an export: who may write to it, who may no more, and errors of
//! its disk.
//!
//! - A client is told of when it can write: those that only look, as whoever measures the members
//!   of a volume does, come and go all the time.
//! - A client that was fenced is told of once for each connection, an operation that fails on the
//!   disk once a minute, and no more than [`A_MINUTE`] events a minute at all: whoever can connect
//!   can connect often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gabion_base::disk::DiskError;
use gabion_base::event::{Event, NoSink, Sink, TargetEvent};
use gabion_base::sync::Mutex;

/// Events of an export in a minute, at most.
const A_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// Tells of one export.
pub(super) struct Teller {
    sink: Arc<dyn Sink>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// When the present minute has begun, and how much was told in it.
    since: Option<Instant>,
    count: u32,
    /// When failures of an operation were told last.
    failures: BTreeMap<&'static str, Instant>,
}

impl Default for Teller {
    fn default() -> Self {
        Self::new(Arc::new(NoSink))
    }
}

impl Teller {
    pub(super) fn new(sink: Arc<dyn Sink>) -> Self {
        Self { sink, told: Mutex::default() }
    }

    pub(super) fn tell(&self, export: &str, event: TargetEvent) {
        if self.told.lock().has_room(Instant::now()) {
            self.sink.publish(Event::Target { export: export.to_owned(), event });
        }
    }

    /// The disk has failed a request.
    pub(super) fn tell_failure(&self, export: &str, error: &DiskError) {
        let DiskError::Io { operation, addr, source, .. } = error else { return };
        if self.told.lock().is_new(operation, Instant::now()) {
            let (operation, reason) = ((*operation).to_owned(), source.to_string());
            self.tell(export, TargetEvent::DiskFailed { operation, address: *addr, reason });
        }
    }
}

impl Told {
    fn has_room(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        self.count <= A_MINUTE
    }

    fn is_new(&mut self, operation: &'static str, now: Instant) -> bool {
        let last = self.failures.get(operation);
        let is_new = last.is_none_or(|last| now.duration_since(*last) >= MINUTE);
        if is_new {
            self.failures.insert(operation, now);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_in_a_minute_is_bounded() {
        let (mut told, now) = (Told::default(), Instant::now());
        let count = (0..1000).filter(|_| told.has_room(now)).count();
        assert_eq!(count, A_MINUTE as usize);
        assert!(!told.has_room(now + MINUTE / 2) && told.has_room(now + MINUTE));
        assert!(told.is_new("read", now) && told.is_new("write", now));
        assert!(!told.is_new("read", now + MINUTE / 2) && told.is_new("read", now + MINUTE));
    }
}
