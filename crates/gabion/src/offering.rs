//! Offers disks to NBD clients until a signal asks for the end: what `gabion target` and `gabion
//! volume export` have in common.
//!
//! The URIs of all exports at all addresses are printed when clients can connect. At the end
//! clients get a moment for what they have under way.

use std::time::Duration;

use gabion_host::signals::{Signals, Wake};
use gabion_nbd::address::{Address, Uri, UriTls};
use gabion_nbd::server::{Exports, Listener, Server, Stopped};
use gabion_tls::{ServerFiles, ServerTls};

use crate::args::volumes::Offering;
use crate::failure::{Failure, Result};
use crate::print;

/// How long requests in flight may take at the end.
pub const GRACE: Duration = Duration::from_secs(10);

/// What is needed to encrypt, if that was asked for.
pub fn tls(args: &Offering) -> Result<Option<ServerTls>> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(None) };
    let files = ServerFiles { certificate, key, authority: args.tls_ca.as_deref() };
    let tls = ServerTls::load(files);
    tls.map(Some).map_err(|error| Failure::of("cannot encrypt", &error))
}

/// Offers `exports`, which have these names. Signals must be blocked before, as threads inherit
/// that.
pub fn offer(
    exports: Exports,
    names: &[&str],
    args: &Offering,
    tls: Option<ServerTls>,
    signals: &Signals,
) -> Result<Stopped> {
    let bound = args.listen.iter().map(listen).collect::<Result<Vec<_>>>()?;
    let (listeners, addresses): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
    let encrypted = tls.is_some();
    let server = match tls {
        Some(tls) => Server::start_encrypted(exports, listeners, tls),
        None => Server::start(exports, listeners),
    };
    let server = server.map_err(|error| Failure::of("cannot start the server", &error))?;
    for name in names {
        for address in &addresses {
            let tls = encrypted.then(UriTls::default);
            print::line(Uri { address: address.clone(), export: (*name).to_owned(), tls })?;
        }
    }
    // A terminal that goes away is no reason to leave the clients alone.
    while signals.wait().map_err(|error| Failure::of("cannot wait for signals", &error))?
        == Wake::HangUp
    {}
    Ok(server.stop(GRACE))
}

fn listen(address: &Address) -> Result<(Listener, Address)> {
    let cannot = || format!("cannot listen at {address}");
    let listener = Listener::bind(address).map_err(|error| Failure::of(cannot(), &error))?;
    let bound = listener.address().map_err(|error| Failure::of(cannot(), &error))?;
    Ok((listener, bound))
}
