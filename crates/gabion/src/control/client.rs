//! A command's end of the control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use gabion_fuse::mountinfo::Mount;

use super::folder;
use super::wire::{Reply, Request};
use crate::mounts::{self, Life};

/// The longest line that a daemon may send, in bytes: a report with a thousand findings fits.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// How long a daemon that was mounted at once may take until it listens, and how often that is
/// looked at.
const START: Duration = Duration::from_secs(1);
const GLANCE: Duration = Duration::from_millis(5);

/// A connection to a daemon.
pub struct Connection {
    lines: BufReader<UnixStream>,
}

/// Whether the mount's daemon takes connections.
pub fn is_listening(mount: &Mount) -> bool {
    UnixStream::connect(folder::socket_of(mount)).is_ok()
}

impl Connection {
    /// Connects to the daemon of a mount. Waits for a moment for one that is about to listen: what
    /// `fusermount3` mounts can be seen before, and a mount may just be exchanged for another one.
    pub fn open(mount: &Mount) -> io::Result<Self> {
        let mut mount = mount.clone();
        let began = Instant::now();
        loop {
            let error = match Self::at(&folder::socket_of(&mount)) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let is_early =
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
            if !is_early || began.elapsed() > START || mounts::life(&mount) == Life::Dead {
                return Err(error);
            }
            thread::sleep(GLANCE);
            if let Ok(Some(now)) = mounts::at(&mount.mountpoint)
                && mounts::is_gabion(&now)
            {
                mount = now;
            }
        }
    }

    /// Connects to whoever listens at `socket`.
    pub fn at(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// The process at the other end.
    pub fn peer(&self) -> Option<i32> {
        let peer = rustix::net::sockopt::socket_peercred(self.lines.get_ref()).ok()?;
        Some(peer.pid.as_raw_nonzero().get())
    }

    /// Asks for something. No reply may take longer than `patience`.
    pub fn ask(&mut self, request: Request, patience: Duration) -> io::Result<()> {
        let stream = self.lines.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line)
    }

    /// The next reply. Fails with `UnexpectedEof` if the daemon is gone.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut line = Vec::new();
        (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
