//! `gabion join`: uses an invitation to what another machine serves, and mounts it.
//!
//! 1. What can be wrong on this machine is found before the invitation is used.
//! 2. At the first address that answers, the server's authority is compared with the fingerprint of
//!    the invitation. Only then the secret is told.
//! 3. The certificate that comes back is kept, with its key, which was made here.
//! 4. The filesystem is mounted as by `gabion mount`.

use std::io::Read;
use std::path::PathBuf;

use gabion_host::clock;
use gabion_link::join::Application;
use gabion_link::message::RefusalReason;
use gabion_tls::authority::Applicant;
use gabion_tls::mutual::Dialer;

use crate::args::sharing;
use crate::cmd::mount::{self, users};
use crate::date;
use crate::failure::{Exit, Failure, Result};
use crate::frugality::{self, Keep};
use crate::link::{ConnectError, apply};
use crate::options::Settings;
use crate::print;
use crate::trust::identity::Joined;
use crate::trust::invitation::Invitation;

/// The longest line on standard input, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Runs the command.
pub fn run(args: &sharing::Join) -> Result<()> {
    // Before the line is read: this starts the program once more.
    frugality::restart(Keep::Messages);
    let mut settings = Settings::new(users());
    args.options.iter().try_for_each(|options| settings.apply(options))?;
    let invitation = invitation(&args.invitation)?;
    let cannot = |error: &dyn std::error::Error| Failure::of("cannot join", error);
    let joined = Joined::here().map_err(|error| cannot(&error))?;
    let target = |address: &str| PathBuf::from(format!("gabion://{address}/"));
    let first = invitation.addresses.first().map(String::as_str).unwrap_or_default();
    mount::plan(&target(first), &args.mountpoint, settings.clone())?;

    let host = rustix::system::uname();
    let host = || host.nodename().to_string_lossy().into_owned();
    let applicant = Applicant::new().map_err(|error| cannot(&error))?;
    let application = Application {
        secret: invitation.secret.0,
        name: args.name.clone().unwrap_or_else(host),
        request: applicant.request().map_err(|error| cannot(&error))?,
    };
    let dialer = Dialer::stranger(invitation.authority).map_err(|error| cannot(&error))?;
    let (address, answer) = knock(&invitation, &dialer, &application)?;
    let (admission, authority) = answer;
    // Where it was found comes first.
    let mut addresses = vec![address.clone()];
    addresses.extend(invitation.addresses.iter().filter(|other| **other != address).cloned());
    let key = applicant.key_pem();
    joined
        .keep(&authority, &admission.certificate, &key, &addresses)
        .map_err(|error| Failure::of("joined, but cannot keep the certificate", &error))?;
    let target = target(&address);
    print::line(format_args!(
        "joined; from now on: gabion mount {} {}",
        target.display(),
        args.mountpoint.display()
    ))?;
    mount::mount_in_background(&target, &args.mountpoint, settings)
}

fn invitation(argument: &str) -> Result<Invitation> {
    let line = match argument {
        "-" => {
            let mut line = String::new();
            let read = std::io::stdin().take(LINE_BYTES_MAX).read_to_string(&mut line);
            read.map_err(|error| Failure::of("cannot read the invitation", &error))?;
            line
        }
        line => line.to_owned(),
    };
    let invitation: Invitation = line.parse().map_err(|_| {
        Failure::new("this is no invitation, or only a part of one")
            .next("Give the whole line that gabion invite has printed, as one argument.")
            .exit(Exit::Usage)
    })?;
    if invitation.expires <= clock::now().seconds {
        let text = format!("the invitation has ended at {}", date::seconds(invitation.expires));
        return Err(Failure::new(text).next(ANOTHER));
    }
    Ok(invitation)
}

/// What helps when an invitation does not.
const ANOTHER: &str = "For another one, on the serving machine: gabion invite TARGET";

/// What a server answers, and the address where it was found.
type Found = (String, (gabion_link::join::Admission, Vec<u8>));

/// Tries one address after the other until somebody answers.
fn knock(invitation: &Invitation, dialer: &Dialer, application: &Application) -> Result<Found> {
    let mut failures = Vec::new();
    for address in &invitation.addresses {
        match apply(address, dialer, application) {
            Ok(answer) => return Ok((address.clone(), answer)),
            Err(error @ ConnectError::Refused { .. }) => {
                let failure = Failure::of("cannot join", &error);
                let is_ours = matches!(&error, ConnectError::Refused { refusal, .. }
                    if refusal.reason == RefusalReason::Unauthorized);
                return Err(if is_ours { failure.next(ANOTHER) } else { failure });
            }
            // It may be another machine with this address, in another network.
            Err(error) => failures.push(error.to_string()),
        }
    }
    Err(Failure::new(format!("cannot join: {}", failures.join("; "))).next(
        "Look whether `gabion serve` runs there and can be reached; gabion invite --address says \
         where.",
    ))
}
