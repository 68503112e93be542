//! `gabion verify`: reads streams and compares them with their checksums, without their source.

use gabion_backup::Secret;

use crate::args::backup::Verify;
use crate::backup::chain::Chain;
use crate::backup::piped;
use crate::backup::progress::Progress;
use crate::backup::secrets;
use crate::backup::streams::{Streams, Unknown, of_stream};
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::size::Size;

/// Runs the command.
pub fn run(args: &Verify) -> Result<()> {
    let secret = secrets::of(&args.secrets)?;
    if piped::is_meant(&args.from) {
        return verify_pipe(secret.as_ref());
    }
    let Streams { shelf, found, named, unknown } = Streams::of(&args.from)?;
    // What one stream does not need is not asked for.
    let (wanted, unknown) = match named {
        Some(named) => (vec![named], Unknown::default()),
        None => (found.clone(), unknown),
    };
    if wanted.is_empty() && unknown == Unknown::default() {
        return Err(Failure::new(format!("there is no backup in {}", shelf.name())));
    }
    let mut progress = Progress::new(wanted.iter().map(|found| found.length).sum(), None);
    let Unknown { damaged: mut bad, mut unread } = unknown;
    for found_one in &wanted {
        let path = &found_one.path;
        if !found_one.is_complete && !found_one.is_cut_off && wanted.len() > 1 {
            progress.say(&format!("{path} is not complete and is left out"));
            continue;
        }
        let verified = Chain::open(&*shelf, &found, found_one, secret.as_ref()).and_then(|chain| {
            let last = chain.last();
            let read = last.verify(|bytes| progress.pass(bytes));
            read.map_err(|error| of_stream(path, &error))?;
            chain.tree()
        });
        match verified {
            Ok((_, objects, bytes)) => {
                let bytes = Size(bytes);
                print::line(format!("{path}: whole: {objects} objects, {bytes}"))?;
            }
            Err(failure) => {
                match failure.code() {
                    Exit::Damaged => bad += 1,
                    _ => unread += 1,
                }
                progress.say(&failure.to_string());
            }
        }
    }
    progress.end();
    match (bad, unread) {
        (0, 0) => Ok(()),
        (0, 1) => Err(Failure::new("a backup could not be read")),
        (0, unread) => Err(Failure::new(format!("{unread} backups could not be read"))),
        (1, _) => Err(Failure::new("a backup cannot be restored").exit(Exit::Damaged)),
        (bad, _) => {
            Err(Failure::new(format!("{bad} backups cannot be restored")).exit(Exit::Damaged))
        }
    }
}

/// The same of what comes through standard input.
fn verify_pipe(secret: Option<&Secret>) -> Result<()> {
    let mut progress = Progress::new(0, None);
    piped::verify(secret, &mut progress, |path, objects, bytes| {
        print::line(format!("{path}: whole: {objects} objects, {}", Size(bytes)))
    })?;
    progress.end();
    Ok(())
}
