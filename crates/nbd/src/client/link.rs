//! The thread that keeps a client connected and reads what the server says.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::batch::{self, Batch};
use gabion_base::disk::DiskRequest;
use gabion_base::sync::Mutex;
use rustix::time::{ClockId, clock_gettime};

use super::handshake::{self, NoConnection, Terms};
use super::replies::{Answer, Answers, Asked};
use super::table::Pending;
use super::{ClientOptions, Connected, Link, Shared};
use crate::address::Uri;
use crate::stream::{Stream, is_timeout};
use crate::wire::error::ErrorCode;

/// How long one step of connecting may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first wait before connecting again; each is twice as long as the one before.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// The longest wait before connecting again.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The cookie of repeated writes, which no other request has.
const REPLAY_COOKIE: u64 = 0;

/// The number of the next connection: later ones have higher ones, also in programs of this machine
/// that are started later.
fn connection_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = clock_gettime(ClockId::Boottime);
    let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    LAST.fetch_max(now, Ordering::Relaxed);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// Connects and shakes hands.
pub(super) fn connect(uri: &Uri, options: &ClientOptions) -> Result<Connected, NoConnection> {
    let patience = PATIENCE.min(options.deadline);
    let deadline = Instant::now() + patience;
    let stream = Stream::connect(&uri.address, deadline, options.lost_patience)?;
    stream.set_patience(Some(patience), Some(patience))?;
    let claim = options.epoch.as_ref().map(|epoch| epoch.claim(connection_number()));
    let terms =
        handshake::agree(&stream, uri, claim, deadline + patience).map_err(
            |error| match error {
                NoConnection::Failed(error) => NoConnection::Failed(unanswered(error)),
                fenced => fenced,
            },
        )?;
    stream.set_patience(None, None)?;
    Ok(Connected { stream, terms, writer: Mutex::new(()), outbox: Mutex::default() })
}

/// Says what it means for a handshake that the connection ended or was silent.
fn unanswered(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the server hangs up on the handshake"),
        _ if is_timeout(&error) => io::Error::other("connected, but the server says nothing"),
        _ => error,
    }
}

/// Reads replies, and connects again when that is no longer possible, until the client is closed
/// or fenced.
pub(super) fn run(shared: &Arc<Shared>, mut connected: Arc<Connected>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let mut answered = 0_u64;
        let error = listen(shared, &connected, &mut answered);
        connected.stream.shutdown(Shutdown::Both);
        if answered > 0 {
            backoff = BACKOFF_FIRST;
        }
        let since = Instant::now();
        let mut error = error;
        connected = loop {
            let mut state = shared.state.lock();
            if matches!(state.link, Link::Closed) {
                return;
            }
            state.link = match &error {
                NoConnection::Failed(error) => Link::Down { since, reason: lost(error) },
                NoConnection::Fenced(reason) => Link::Fenced { reason: reason.as_str().into() },
            };
            shared.changed.notify_all();
            // Others notify, too: the wait is over when its time is.
            let again = Instant::now() + backoff;
            while matches!(state.link, Link::Down { .. }) && Instant::now() < again {
                shared.changed.wait_until(&mut state, again);
            }
            if !matches!(state.link, Link::Down { .. }) {
                return;
            }
            drop(state);
            backoff = (backoff * 2).min(BACKOFF_MAX);
            match reconnect(shared) {
                Ok(connected) => break connected,
                Err(reason) => error = reason,
            }
        };
    }
}

fn lost(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server has closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

/// Connects, repeats what may have been lost, and lets everybody use the new connection.
fn reconnect(shared: &Arc<Shared>) -> Result<Arc<Connected>, NoConnection> {
    let connected = connect(&shared.uri, &shared.options)?;
    let terms = &connected.terms;
    let unusable = terms.unusable(shared.options.epoch.as_ref());
    let before = Terms { bytes: shared.bytes.load(Ordering::Acquire), ..shared.terms.clone() };
    if let Some(reason) = terms.is_less_than(&before).or(unusable) {
        return Err(io::Error::other(reason).into());
    }
    replay(shared, &connected)?;
    let connected = Arc::new(connected);
    let mut state = shared.state.lock();
    if matches!(state.link, Link::Closed) {
        return Err(io::Error::other("the disk was closed").into());
    }
    shared.bytes.fetch_max(connected.terms.bytes, Ordering::AcqRel);
    state.link = Link::Up(Arc::clone(&connected));
    let unanswered = state.table.unanswered();
    drop(state);
    shared.changed.notify_all();
    if !unanswered.is_empty() {
        // Not on this thread, which must read the replies meanwhile.
        let connected = Arc::clone(&connected);
        let thread = thread::Builder::new().name("nbd resend".into());
        thread.spawn(move || {
            for (cookie, request) in unanswered {
                if connected.send(cookie, &request).is_err() {
                    return;
                }
            }
        })?;
    }
    Ok(connected)
}

/// Repeats what was acknowledged and not flushed, one after the other, as the order counts.
fn replay(shared: &Shared, connected: &Connected) -> Result<(), NoConnection> {
    let patience = PATIENCE.min(shared.options.deadline);
    connected.stream.set_patience(Some(patience), Some(patience))?;
    let mut answers = Answers::new(&connected.stream, connected.terms.replies);
    let mut index = 0;
    // Nothing is acknowledged meanwhile, so that the places in the order stay the same.
    while let Some(request) = { shared.state.lock().table.unflushed(index) } {
        connected.send(REPLAY_COOKIE, &request)?;
        match answers.next(|cookie| (cookie == REPLAY_COOKIE).then_some(None))? {
            (_, Answer::Done(_)) => {}
            (_, Answer::Failed(ErrorCode::Permission, words)) if shared.options.epoch.is_some() => {
                return Err(NoConnection::Fenced(words));
            }
            (_, Answer::Failed(code, words)) => {
                let text = format!("writing again what it may have lost failed: {code} {words}");
                return Err(io::Error::other(text).into());
            }
        }
        index += 1;
    }
    Ok(connected.stream.set_patience(None, None)?)
}

/// Reads replies until that is no longer possible, or makes no sense any more.
fn listen(shared: &Shared, connected: &Connected, answered: &mut u64) -> NoConnection {
    let mut answers = Answers::new(&connected.stream, connected.terms.replies);
    let _batch = Batch::begin();
    loop {
        if !answers.has_answer() {
            // The server may be silent for long.
            batch::settle();
        }
        let asked = |cookie| shared.state.lock().table.request(cookie).map(asked);
        match answers.next(asked) {
            Ok((_, Answer::Failed(ErrorCode::Shutdown, _))) => {
                return io::Error::other("the server is about to end").into();
            }
            // The request stays in the table, and fails with all the others.
            Ok((_, Answer::Failed(ErrorCode::Permission, words)))
                if shared.options.epoch.is_some() =>
            {
                return NoConnection::Fenced(words);
            }
            Ok((cookie, answer)) => {
                *answered += 1;
                land(shared, cookie, answer);
            }
            Err(error) => return error.into(),
        }
    }
}

fn asked(request: &DiskRequest) -> Asked {
    match request {
        DiskRequest::Read { addr, count } => Some((addr.byte_offset(), count * BLOCK_SIZE)),
        _ => None,
    }
}

/// A request has been answered.
fn land(shared: &Shared, cookie: u64, answer: Answer) {
    let mut state = shared.state.lock();
    let (pending, outcome) = match answer {
        Answer::Done(blocks) => {
            let pending = state.table.succeed(cookie);
            let is_flush = |it: &Pending| matches!(it.request, DiskRequest::Flush);
            let frees = pending.as_ref().is_some_and(is_flush);
            // Hardly ever: other threads wait there, too, and are not concerned.
            let is_awaited = frees && state.waiting > 0;
            drop(state);
            if is_awaited {
                shared.changed.notify_all();
            }
            (pending, Ok(blocks))
        }
        Answer::Failed(code, words) => {
            let pending = state.table.fail(cookie);
            drop(state);
            let kind = io::Error::from_raw_os_error(code.number() as i32).kind();
            let text = match &*words {
                "" => format!("the server says: {code}"),
                words => format!("the server says: {code}: {words}"),
            };
            let request = pending.as_ref().map(|pending| &pending.request);
            let request = request.unwrap_or(&DiskRequest::Flush);
            let error = shared.failure(request, io::Error::new(kind, text));
            (pending, Err(error))
        }
    };
    // Otherwise its deadline came first.
    if let Some(pending) = pending {
        pending.gather.complete(pending.index, outcome);
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::ids::Uuid;

    use super::*;
    use crate::server::Replies;
    use crate::wire::export_flag;
    use crate::wire::name::Medium;

    #[test]
    fn a_server_that_comes_back_with_less_is_not_the_same() {
        let flags = export_flag::HAS_FLAGS | export_flag::SEND_FLUSH;
        let medium = |byte| Some(Medium { uuid: Uuid([byte; 16]), epoch: 1, holder: "a".into() });
        let (replies, first) = (Replies::Simple, medium(1));
        let terms = Terms { bytes: 8192, flags, maximum: 4096, replies, medium: first };
        assert_eq!(terms.is_less_than(&terms), None);
        assert_eq!(Terms { bytes: 8193, ..terms.clone() }.is_less_than(&terms), None);
        for less in [
            Terms { bytes: 4096, ..terms.clone() },
            Terms { flags: export_flag::HAS_FLAGS, ..terms.clone() },
            Terms { flags: flags | export_flag::READ_ONLY, ..terms.clone() },
            Terms { maximum: 512, ..terms.clone() },
            Terms { medium: medium(2), ..terms.clone() },
            Terms { medium: None, ..terms.clone() },
        ] {
            assert!(less.is_less_than(&terms).is_some(), "{less:?}");
        }
    }

    #[test]
    fn later_connections_have_higher_numbers() {
        let numbers: Vec<_> = (0..1000).map(|_| connection_number()).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
    }
}
