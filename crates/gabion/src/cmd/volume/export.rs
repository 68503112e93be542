//! `gabion volume export`: offers a volume to any NBD client until a signal ends it, and closes it
//! then.

use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_host::signals::Signals;
use gabion_nbd::server::{Export, Exports, Permission, Stopped};

use crate::args::volumes::Offering;
use crate::failure::{Failure, Result};
use crate::offering;
use crate::volumes;

pub(super) fn export(name: &str, args: &Offering, given: Option<&str>) -> Result<()> {
    // Before the volume is taken from anybody.
    let tls = offering::tls(args)?;
    let signals =
        Signals::block().map_err(|error| Failure::of("cannot prepare for signals", &error))?;
    let surroundings = volumes::surroundings(given, "gabion volume export")?;
    let volume = Arc::new(volumes::open(name, &surroundings)?);
    let disk = Arc::clone(&volume) as Arc<dyn Disk>;
    let exports = Exports::new(vec![Export::new(name, disk, Permission::ReadWrite).pipelined()]);
    let stopped = offering::offer(exports, &[name], args, tls, &signals)?;
    if let Stopped::CutOff(clients) = stopped {
        eprintln!("gabion: requests of {clients} clients did not end in time");
    }
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))
}
