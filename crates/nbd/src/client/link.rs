//! The thread that keeps a client connected and reads what the server says.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::DiskRequest;
use gabion_base::sync::Mutex;

use super::handshake;
use super::replies::{Answer, Answers, Asked};
use super::{Connected, Link, Shared};
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

/// Connects and shakes hands.
pub(super) fn connect(uri: &Uri, deadline: Duration) -> io::Result<Connected> {
    let patience = PATIENCE.min(deadline);
    let stream = Stream::connect(&uri.address, Instant::now() + patience)?;
    stream.set_patience(Some(patience), Some(patience))?;
    let terms = handshake::agree(&stream, &uri.export).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the server hangs up on the handshake"),
        _ if is_timeout(&error) => io::Error::other("connected, but the server says nothing"),
        _ => error,
    })?;
    stream.set_patience(None, None)?;
    Ok(Connected { stream, terms, writer: Mutex::new(()) })
}

/// Reads replies, and connects again when that is no longer possible, until the client is closed.
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
        let mut reason = lost(&error);
        connected = loop {
            let mut state = shared.state.lock();
            if matches!(state.link, Link::Closed) {
                return;
            }
            state.link = Link::Down { since, reason };
            // Others notify, too: the wait is over when its time is.
            let again = Instant::now() + backoff;
            while !matches!(state.link, Link::Closed) && Instant::now() < again {
                shared.changed.wait_until(&mut state, again);
            }
            drop(state);
            backoff = (backoff * 2).min(BACKOFF_MAX);
            match reconnect(shared) {
                Ok(connected) => break connected,
                Err(error) => reason = lost(&error),
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
fn reconnect(shared: &Arc<Shared>) -> io::Result<Arc<Connected>> {
    let connected = connect(&shared.uri, shared.deadline)?;
    if let Some(reason) = connected.terms.is_less_than(&shared.terms) {
        return Err(io::Error::other(reason));
    }
    replay(shared, &connected)?;
    let connected = Arc::new(connected);
    let mut state = shared.state.lock();
    if matches!(state.link, Link::Closed) {
        return Err(io::Error::other("the disk was closed"));
    }
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
fn replay(shared: &Shared, connected: &Connected) -> io::Result<()> {
    let patience = PATIENCE.min(shared.deadline);
    connected.stream.set_patience(Some(patience), Some(patience))?;
    let mut answers = Answers::new(&connected.stream, connected.terms.replies);
    let mut index = 0;
    // Nothing is acknowledged meanwhile, so that the places in the order stay the same.
    while let Some(request) = { shared.state.lock().table.unflushed(index) } {
        connected.send(REPLAY_COOKIE, &request)?;
        match answers.next(|cookie| (cookie == REPLAY_COOKIE).then_some(None))? {
            (_, Answer::Done(_)) => {}
            (_, Answer::Failed(code, words)) => {
                let text = format!("writing again what it may have lost failed: {code} {words}");
                return Err(io::Error::other(text));
            }
        }
        index += 1;
    }
    connected.stream.set_patience(None, None)
}

/// Reads replies until that is no longer possible.
fn listen(shared: &Shared, connected: &Connected, answered: &mut u64) -> io::Error {
    let mut answers = Answers::new(&connected.stream, connected.terms.replies);
    loop {
        let asked = |cookie| shared.state.lock().table.request(cookie).map(asked);
        match answers.next(asked) {
            Ok((_, Answer::Failed(ErrorCode::Shutdown, _))) => {
                return io::Error::other("the server is about to end");
            }
            Ok((cookie, answer)) => {
                *answered += 1;
                land(shared, cookie, answer);
            }
            Err(error) => return error,
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
            let frees = pending.as_ref().is_some_and(|p| matches!(p.request, DiskRequest::Flush));
            drop(state);
            if frees {
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
    use super::super::handshake::Terms;
    use crate::server::Replies;
    use crate::wire::export_flag;

    #[test]
    fn a_server_that_comes_back_with_less_is_not_the_same() {
        let flags = export_flag::HAS_FLAGS | export_flag::SEND_FLUSH;
        let terms = Terms { bytes: 8192, flags, maximum: 4096, replies: Replies::Simple };
        assert_eq!(terms.is_less_than(&terms), None);
        for less in [
            Terms { bytes: 4096, ..terms },
            Terms { flags: export_flag::HAS_FLAGS, ..terms },
            Terms { flags: flags | export_flag::READ_ONLY, ..terms },
            Terms { maximum: 512, ..terms },
        ] {
            assert!(less.is_less_than(&terms).is_some(), "{less:?}");
        }
    }
}
