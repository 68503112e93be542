//! What stands in for a mount while its filesystem is mounted anew.
//!
//! ```text
//!   seen      old          curtain            curtain        new
//!   beneath   curtain      (waited for)       new            -
//!             1. placed    2. old unmounted   3. attached    4. raised
//! ```
//!
//! Who comes meanwhile waits. Each of them is told ESTALE in the end, for which the kernel walks
//! the path once more from its beginning, and there is the new mount by then. So nobody sees the
//! folder below, and nobody is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gabion_base::sync::Mutex;
use gabion_fuse::mount::{MountOptions, Source, Unmount, prepare, unmount};
use gabion_fuse::mountinfo;
use gabion_fuse::{
    Config, Handler, InitReply, KernelOffer, NodeId, Op, Reply, Request, Session, Statfs,
};

use super::Error;
use super::mounted::SUBTYPE;

/// How long anybody waits.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long those who have come are answered after it was raised.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// A curtain, until it is raised or dropped.
pub struct Curtain {
    mountpoint: PathBuf,
    device: (u32, u32),
    session: Session,
    waiting: Arc<Waiting>,
}

impl Curtain {
    /// Puts one beneath what is mounted at `mountpoint`, which people know by `name`. Fails where
    /// the kernel cannot do that, or somebody else than root asks.
    pub fn beneath(mountpoint: &Path, name: &str) -> Result<Self, Error> {
        let options = MountOptions::new(Source::Name(name.to_owned()), SUBTYPE);
        let (device, mut attachment) = prepare(mountpoint, &options)?;
        let waiting = Arc::new(Waiting::default());
        let config = Config { name: "curtain".to_owned(), deadline: DEADLINE, ..Config::default() };
        let session = Session::start(device, Arc::clone(&waiting), config)?;
        let device = attachment.device_number().map_err(Error::Number)?;
        attachment.make_beneath()?;
        Ok(Self { mountpoint: mountpoint.to_owned(), device, session, waiting })
    }

    /// Whether it covers its place; else somebody has unmounted it.
    pub fn is_there(&self) -> bool {
        let uppermost = mountinfo::find(&self.mountpoint);
        uppermost.is_ok_and(|mount| mount.is_some_and(|mount| mount.device == self.device))
    }
}

impl Drop for Curtain {
    /// Raises it: shows what is beneath.
    fn drop(&mut self) {
        if self.is_there() {
            let _ = unmount(&self.mountpoint, Unmount::Lazy);
        }
        self.waiting.end();
        // It is out of the tree, so nobody comes any more.
        self.session.wait_for(LAST_ANSWERS);
    }
}

/// Those who wait for what comes next; nobody any more.
struct Waiting(Mutex<Option<Vec<Reply>>>);

impl Default for Waiting {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Waiting {
    fn end(&self) {
        for reply in self.0.lock().take().into_iter().flatten() {
            reply.error(libc::ESTALE);
        }
    }
}

impl Handler for Waiting {
    fn init(&self, offer: &KernelOffer) -> InitReply {
        InitReply::network(offer)
    }

    fn handle(&self, request: Request<'_>, reply: Reply) {
        if matches!(request.op, Op::Statfs) {
            // Whoever looks whether this is served shall not wait.
            reply.statfs(&Statfs::default());
            return;
        }
        match self.0.lock().as_mut() {
            Some(waiting) => waiting.push(reply),
            None => drop(reply.error(libc::ESTALE)),
        }
    }

    fn forget(&self, _node: NodeId, _lookups: u64) {}

    fn destroy(&self) {}
}
