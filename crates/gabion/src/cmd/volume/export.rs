//! `gabion volume export`: offers a volume to any NBD client until a signal ends it.
//!
//! The URIs of all listeners are printed when clients can connect. At the end clients get a moment
//! for what they have under way; then the volume is closed.

use std::sync::Arc;
use std::time::Duration;

use gabion_base::disk::Disk;
use gabion_host::signals::{Signals, Wake};
use gabion_nbd::address::{Address, Uri};
use gabion_nbd::server::{Export, Exports, Listener, Permission, Server, Stopped};

use crate::failure::{Failure, Result};
use crate::print;
use crate::volumes;

/// How long requests of an export's clients may take at its end.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn export(name: &str, listen: &[Address], given: Option<&str>) -> Result<()> {
    let signals =
        Signals::block().map_err(|error| Failure::of("cannot prepare for signals", &error))?;
    let surroundings = volumes::surroundings(given, "gabion volume export")?;
    let volume = Arc::new(volumes::open(name, &surroundings)?);
    let disk = Arc::clone(&volume) as Arc<dyn Disk>;
    let exports = Exports::new(vec![Export::new(name, disk, Permission::ReadWrite)]);
    let mut listeners = Vec::new();
    for address in listen {
        let cannot = || format!("cannot listen at {address}");
        let listener = Listener::bind(address).map_err(|error| Failure::of(cannot(), &error))?;
        let address = listener.address().map_err(|error| Failure::of(cannot(), &error))?;
        let uri = Uri { address, export: name.to_owned(), tls: None };
        print::line(uri)?;
        listeners.push(listener);
    }
    let server = Server::start(exports, listeners)
        .map_err(|error| Failure::of("cannot start the server", &error))?;
    while signals.wait().map_err(|error| Failure::of("cannot wait for signals", &error))?
        == Wake::HangUp
    {}
    if let Stopped::CutOff(clients) = server.stop(GRACE) {
        eprintln!("gabion: requests of {clients} clients did not end in time");
    }
    volume.close().map_err(|error| Failure::of(format!("cannot close volume {name}"), &error))
}
