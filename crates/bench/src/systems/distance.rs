//! A distance between clients and a server of the same machine.
//!
//! Every byte arrives a fixed time after it was sent, in both directions, however many others are
//! on their way: what a network adds, and a server that sleeps in each of its threads does not
//! show. Nothing is lost or reordered, and there is no limit to the rate but that of copying twice.
//!
//! ```text
//!   client -> reader -> (due, bytes) ... -> writer -> server, and the same back
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What is read at once.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are on their way at most, in each direction.
const PIECES_MAX: usize = 1024;

/// A socket that leads to another one. Dropping it lets nobody new in.
pub struct Distance {
    near: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Distance {
    /// Listens at `near` for clients of the server at `far`; each way takes `one_way`.
    pub fn start(near: &Path, far: &Path, one_way: Duration) -> Result<Self> {
        let listener = UnixListener::bind(near)
            .with_context(|| format!("cannot listen at {}", near.display()))?;
        let (near, far, ended) =
            (near.to_owned(), far.to_owned(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&ended);
        thread::spawn(move || {
            for client in listener.incoming() {
                if seen.load(Ordering::Acquire) {
                    return;
                }
                // Whoever cannot be connected sees that the connection ends.
                let _ = client.and_then(|client| join(client, &far, one_way));
            }
        });
        Ok(Self { near, ended })
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // So that it looks.
        let _ = UnixStream::connect(&self.near);
        let _ = std::fs::remove_file(&self.near);
    }
}

/// Carries both directions until either side ends.
fn join(client: UnixStream, far: &Path, one_way: Duration) -> io::Result<()> {
    let server = UnixStream::connect(far)?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (sender, receiver) = sync_channel(PIECES_MAX);
        thread::spawn(move || send_off(from, &sender, one_way));
        thread::spawn(move || deliver(to, &receiver));
    }
    Ok(())
}

fn send_off(mut from: UnixStream, pieces: &SyncSender<(Instant, Vec<u8>)>, one_way: Duration) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if pieces.send((Instant::now() + one_way, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn deliver(mut to: UnixStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_not_before_their_time() {
        let folder = std::env::temp_dir();
        let [near, far] =
            ["near", "far"].map(|end| folder.join(format!("gabion-{end}-{}", std::process::id())));
        let server = UnixListener::bind(&far).unwrap();
        let one_way = Duration::from_millis(5);
        let distance = Distance::start(&near, &far, one_way).unwrap();
        let start = Instant::now();
        let mut client = UnixStream::connect(&near).unwrap();
        client.write_all(b"there ").unwrap();
        client.write_all(b"and back").unwrap();
        let mut served = server.accept().unwrap().0;
        let mut bytes = [0; 14];
        served.read_exact(&mut bytes).unwrap();
        assert!(start.elapsed() >= one_way);
        served.write_all(&bytes).unwrap();
        drop(served);
        let mut told = String::new();
        client.read_to_string(&mut told).unwrap();
        assert_eq!(told, "there and back");
        assert!(start.elapsed() >= 2 * one_way);
        drop(distance);
        assert!(!near.exists());
        std::fs::remove_file(far).unwrap();
    }
}
