//! What administrators ask for: the server does it.

use std::time::Duration;

use gabion_fs::{Caller, Result};
use gabion_link::errand::{Errand, Report};
use gabion_link::message::{Answer, Call};

use super::RemoteFs;
use super::failures::nonsense;

/// How long one may take: as long as a commit with all that waits to be written.
const PATIENCE: Duration = Duration::from_secs(590);
/// How long the server may take to count all that there is, for a quota.
const COUNTING: Duration = Duration::from_secs(3590);

impl RemoteFs {
    /// Has an errand done. What this machine's programs have changed before is done before it.
    pub fn run_errand(&self, caller: &Caller, errand: Errand) -> Result<Report> {
        let patience = match errand {
            Errand::SetQuota { .. } => COUNTING,
            _ => PATIENCE,
        };
        let done = self.call_patiently(caller, Call::Run(errand), patience);
        // Nobody is told by the kernel here; without this, revocations would wait for it.
        self.answered();
        match done? {
            Answer::Report(report) => Ok(report),
            _ => Err(nonsense()),
        }
    }

    /// The time of the server, as it is reckoned here, in seconds since 1970.
    pub fn server_seconds(&self) -> i64 {
        self.server_time.at(self.clock.monotonic()).seconds
    }
}
