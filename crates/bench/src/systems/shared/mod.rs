//! Filesystems that several machines can share, each mounted twice on this one.
//!
//! A `Pair` is two clients of the same `Servers`. Some servers have two pairs: one with the
//! settings that users get, and one with all caches of the clients off, which is as coherent as
//! the system can be.
//!
//! ```text
//!   program here -> mount a -> client --+
//!                                       +-> servers -> a filesystem of their own, or an image
//!   agent process -> mount b -> client -+
//! ```
//!
//! All run with the same priority, without copies of data on a second disk, and so that fsync(2)
//! reaches the disk where they can be told to. Everything that they write is in one folder, and
//! they listen where only this program's children are; see [`crate::namespace`].

mod ceph;
mod gabion;
mod gluster;
mod juicefs;
mod local;
mod moosefs;
mod pair;
mod peers;
mod program;
mod sshfs;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use self::local::LocalTwice;
pub use self::peers::{choose, prepare, start};

/// The address of all servers: GlusterFS refuses those of the loopback network.
const ADDRESS: &str = "10.77.0.1";

/// A filesystem that is mounted at two places. Dropping it unmounts it at both.
pub trait Shared {
    /// Its column.
    fn name(&self) -> &'static str;

    /// The same directory, on the first and on the second mount.
    fn roots(&self) -> [&Path; 2];

    /// Mounts both anew: neither clients nor servers nor the kernel have anything cached then, as
    /// far as they can be told to forget it.
    fn forget(&mut self) -> Result<()>;

    /// Returns when all that was done on both mounts is on the disk.
    fn sync(&mut self) -> Result<()>;

    /// What its programs said last: where they wrote that goes with the run.
    fn last_words(&self) -> String {
        String::new()
    }

    /// Seconds that [`Shared::sync`] takes, without what it does besides.
    fn timed_sync(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.sync()?;
        Ok(start.elapsed().as_secs_f64())
    }
}
