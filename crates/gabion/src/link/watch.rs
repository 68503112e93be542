//! Sockets that a thread watches, many at once, by epoll.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Something can be read, or the other side has ended.
pub(super) const READABLE: EventFlags = EventFlags::IN;
/// Something can be written.
pub(super) const WRITABLE: EventFlags = EventFlags::OUT;
/// The number of the listener; connections have others.
pub(super) const LISTENER: u64 = 0;
/// Events that are taken at once.
const EVENTS_MAX: usize = 128;

/// What one thread watches.
#[derive(Clone)]
pub(super) struct Watcher(Arc<OwnedFd>);

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// Watches a socket under a number.
    pub(super) fn watch(&self, socket: &TcpStream, number: u64) -> io::Result<Watch> {
        epoll::add(&*self.0, socket, EventData::new_u64(number), READABLE)?;
        Ok(Watch { watcher: self.clone(), number, wanted: Mutex::new(READABLE) })
    }

    /// Watches a listener. Of several threads that do only some are woken.
    pub(super) fn listen(&self, listener: &TcpListener) -> io::Result<()> {
        let flags = READABLE | EventFlags::EXCLUSIVE;
        Ok(epoll::add(&*self.0, listener, EventData::new_u64(LISTENER), flags)?)
    }

    /// Does not watch it any more.
    pub(super) fn leave(&self, socket: impl AsFd) {
        // It may not be watched.
        let _ = epoll::delete(&*self.0, socket);
    }

    /// What has happened, at the latest after `patience`.
    pub(super) fn wait(&self, events: &mut Vec<Event>, patience: Duration) -> io::Result<()> {
        events.clear();
        events.reserve(EVENTS_MAX);
        let timeout =
            Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match epoll::wait(&*self.0, spare_capacity(events), Some(&timeout)) {
            Err(error) if error != rustix::io::Errno::INTR => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Whether an event says that nothing more goes in either direction.
pub(super) fn has_hung_up(event: &Event) -> bool {
    let flags = event.flags;
    flags.intersects(EventFlags::HUP | EventFlags::ERR)
}

/// That a socket is watched.
pub(super) struct Watch {
    watcher: Watcher,
    number: u64,
    wanted: Mutex<EventFlags>,
}

impl Watch {
    /// Wants to hear of these, too.
    pub(super) fn want(&self, socket: &TcpStream, flags: EventFlags) {
        self.change(socket, |wanted| wanted | flags);
    }

    /// Does not want to hear of these.
    pub(super) fn unwant(&self, socket: &TcpStream, flags: EventFlags) {
        self.change(socket, |wanted| wanted - flags);
    }

    fn change(&self, socket: &TcpStream, change: impl FnOnce(EventFlags) -> EventFlags) {
        let mut wanted = self.wanted.lock();
        let changed = change(*wanted);
        if changed != *wanted {
            *wanted = changed;
            // It is not watched any more when its connection has ended.
            let _ =
                epoll::modify(&*self.watcher.0, socket, EventData::new_u64(self.number), changed);
        }
    }

    /// Is not watched any more.
    pub(super) fn end(&self, socket: &TcpStream) {
        self.watcher.leave(socket);
    }
}
