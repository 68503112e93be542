//! `gabion target`: offers files and devices to NBD clients, until it is asked to stop.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gabion_base::disk::Disk;
use gabion_base::event::{NoSink, Sink};
use gabion_base::ids::Uuid;
use gabion_host::file_disk::{Caching, FileDisk, OpenError, OpenMode, OpenOptions};
use gabion_host::random;
use gabion_host::signals::Signals;
use gabion_nbd::medium::{Medium, MediumError};
use gabion_nbd::server::{Export, Exports, Permission, Stopped};

use crate::args::volumes::Target;
use crate::failure::{Exit, Failure, Result};
use crate::offering::{self, GRACE};
use crate::supervisor;
use crate::target::not_opened;
use crate::volumes;

/// How long a disk may be in use by somebody else at the start, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(20);

/// A file or device with the name that clients know it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    name: String,
    path: PathBuf,
}

impl FromStr for Offer {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, path)) if name.contains('?') || name.is_empty() || path.is_empty() => {
                Err("it must be NAME=PATH, without a question mark in NAME")
            }
            Some((name, path)) => Ok(Self { name: name.to_owned(), path: path.into() }),
            None => Err("it must be NAME=PATH"),
        }
    }
}

/// Runs the command.
pub fn run(args: &Target) -> Result<()> {
    if args.with_parent {
        supervisor::end_with_parent(rustix::process::Signal::TERM)?;
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = args.exports.iter().find(|offer| !names.insert(&offer.name)) {
        let text = format!("the name {} is given twice", twice.name);
        return Err(Failure::new(text).exit(Exit::Usage));
    }
    let tls = offering::tls(&args.offering)?;
    // Before any thread is started, as threads inherit what is blocked.
    let signals =
        Signals::block().map_err(|error| Failure::of("cannot prepare for signals", &error))?;
    let permission = match args.read_only {
        true => Permission::ReadOnly,
        false => Permission::ReadWrite,
    };
    let (sink, caching) = (sink(), args.cache.into());
    let exports = args.exports.iter().map(|offer| {
        let export = match args.raw {
            true => Export::new(&*offer.name, open(offer, permission, caching)?, permission),
            false => {
                Export::of_medium(&*offer.name, medium(offer, permission, caching)?, permission)
            }
        };
        Ok(export.telling(Arc::clone(&sink)))
    });
    let exports = Exports::new(exports.collect::<Result<_>>()?);
    let names: Vec<_> = args.exports.iter().map(|offer| &*offer.name).collect();
    match offering::offer(exports, &names, &args.offering, tls, &signals)? {
        Stopped::Clean => Ok(()),
        Stopped::CutOff(clients) => {
            let seconds = GRACE.as_secs();
            let text = format!("requests of {clients} clients did not end within {seconds} s");
            Err(Failure::new(text).next("They were cut off. Look whether the disk still answers."))
        }
    }
}

/// Where events go. Disks are offered though nobody can be told of them.
fn sink() -> Arc<dyn Sink> {
    volumes::sink("gabion target").unwrap_or_else(|failure| {
        eprintln!("gabion: events are not kept: {failure}");
        Arc::new(NoSink)
    })
}

fn open(offer: &Offer, permission: Permission, caching: Caching) -> Result<Arc<dyn Disk>> {
    let mode = match permission {
        Permission::ReadOnly => OpenMode::ReadOnly,
        Permission::ReadWrite => OpenMode::ReadWrite,
    };
    let options = OpenOptions { caching, ..OpenOptions::new(mode) };
    let began = Instant::now();
    loop {
        match FileDisk::open_with(&offer.path, options) {
            Ok(disk) => return Ok(Arc::new(disk)),
            // The target before this one may be just about to end.
            Err(OpenError::InUse { .. }) if began.elapsed() < PATIENCE => thread::sleep(GLANCE),
            Err(error) => {
                let what = format!("cannot offer {}", offer.name);
                return Err(not_opened(&what, &offer.path, &error));
            }
        }
    }
}

/// The medium of an offer; makes its header if there is nothing yet.
fn medium(offer: &Offer, permission: Permission, caching: Caching) -> Result<Medium> {
    let Offer { name, path } = offer;
    let cannot = |error: MediumError| {
        let failure = Failure::of(format!("cannot offer {} as {name}", path.display()), &error);
        match error {
            MediumError::TooShort { .. } | MediumError::Foreign => failure.next(
                "--raw offers it as it is, without epochs. Or clear its first MiB, if you need \
                 nothing of it any more.",
            ),
            MediumError::Damaged(_) => {
                failure.next("Restore its first MiB. Or --raw --read-only, to save its data.")
            }
            MediumError::Version(_) => failure.next("Use a newer gabion."),
            MediumError::Disk(_) => failure,
        }
    };
    let disk = open(offer, permission, caching)?;
    if let Some(medium) = Medium::open(Arc::clone(&disk)).map_err(cannot)? {
        return Ok(medium);
    }
    if permission == Permission::ReadOnly {
        let text = format!("cannot offer {} as {name}: it is empty", path.display());
        return Err(Failure::new(text).next("Without --read-only it gets a header."));
    }
    Medium::create(disk, Uuid::from_random(random::bytes())).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_a_name_and_a_path() {
        let offer = Offer { name: "a".to_owned(), path: "b=c".into() };
        assert_eq!("a=b=c".parse(), Ok(offer));
        for wrong in ["", "a", "=b", "a=", "a?b=c"] {
            assert!(wrong.parse::<Offer>().is_err(), "{wrong}");
        }
    }
}
