//! Some streams, each upon the one before it: the files of one moment.

use std::collections::BTreeSet;

use gabion_backup::{Secret, Stream, Tree};

use super::store::{Bytes, Shelf};
use super::streams::{DIGITS_MIN, Found, is_named, of_stream};
use crate::date;
use crate::failure::{Exit, Failure, Result};

/// More streams than this are no chain that anybody restores.
const STREAMS_MAX: usize = 60_000;

/// A chain of streams that are open, a full one first.
pub struct Chain {
    /// They, and where they are.
    pub streams: Vec<(String, Stream<Bytes>)>,
}

/// Which of the streams is meant: the one with this number, or the only one that was named, or the
/// newest.
pub fn choose(found: &[Found], named: Option<Found>, at: Option<&str>) -> Result<Found> {
    if let Some(at) = at {
        let mut fits = found.iter().filter(|found| is_named(found.header.stream, at));
        return match (fits.next(), fits.next()) {
            (Some(found), None) => Ok(found.clone()),
            (None, _) if at.len() < DIGITS_MIN => {
                Err(Failure::new(format!("{at:?} is too short to name a backup"))
                    .next(format!("Give at least {DIGITS_MIN} digits of its number.")))
            }
            (None, _) => Err(Failure::new(format!("there is no backup {at}"))
                .next("To see which there are: gabion backups FROM")),
            (Some(_), Some(_)) => Err(Failure::new(format!("{at} begins several numbers"))
                .next("Give more of its digits.")),
        };
    }
    if let Some(named) = named {
        return Ok(named);
    }
    let complete = || found.iter().filter(|found| found.is_complete);
    let newest = found.iter().rfind(|found| found.is_complete || found.is_cut_off);
    // The one before is no answer to who wants the newest.
    if let Some(Found { path, .. }) = newest.filter(|newest| newest.is_cut_off) {
        return Err(Failure::new(format!("{path} is not complete, and is the newest backup"))
            .next(
                "Copy it there again, or choose one with --at; to see them: gabion backups FROM",
            ));
    }
    let newest = newest.ok_or_else(|| Failure::new("there is no complete backup"))?;
    let several = match () {
        () if complete().any(|found| found.header.filesystem != newest.header.filesystem) => {
            "filesystems"
        }
        () if !is_of_one(found, newest) => "subvolumes",
        () => return Ok(newest.clone()),
    };
    Err(Failure::new(format!("there are backups of several {several}"))
        .next("Choose one with --at; to see them: gabion backups FROM"))
}

/// Whether all complete streams are of one subvolume. One may be called by several names, as it was
/// mounted here and there: a stream that builds upon another one says that both are the same.
fn is_of_one(found: &[Found], newest: &Found) -> bool {
    let mut names = BTreeSet::from([&newest.header.origin]);
    loop {
        let before = names.len();
        for upper in found {
            let lower = found.iter().find(|lower| Some(lower.header.stream) == upper.header.base);
            let Some(lower) = lower else { continue };
            let both = [&lower.header.origin, &upper.header.origin];
            if both.iter().any(|name| names.contains(name)) {
                names.extend(both);
            }
        }
        if names.len() == before {
            break;
        }
    }
    let mut complete = found.iter().filter(|found| found.is_complete);
    complete.all(|found| names.contains(&found.header.origin))
}

/// `last` and all that it builds upon, the full one at the end.
pub fn members<'f>(found: &'f [Found], last: &'f Found) -> Result<Vec<&'f Found>> {
    let mut files = vec![last];
    while let Some(base) = files.last().and_then(|found| found.header.base) {
        let of = files.last().expect("it was just looked at");
        let below = found.iter().find(|found| found.header.stream == base);
        let below = below.filter(|below| {
            below.is_complete && files.iter().all(|file| file.header.stream != base)
        });
        let below = below.ok_or_else(|| {
            Failure::new(format!(
                "{} builds upon backup {base}, which is not there or not complete",
                of.path
            ))
            .exit(Exit::Damaged)
            .next("Put it into the same place; its name does not matter.")
        })?;
        files.push(below);
        if files.len() > STREAMS_MAX {
            return Err(Failure::new("the chain of backups is too long"));
        }
    }
    Ok(files)
}

impl Chain {
    /// Opens `last` and all that it builds upon.
    pub fn open(
        shelf: &dyn Shelf,
        found: &[Found],
        last: &Found,
        secret: Option<&Secret>,
    ) -> Result<Self> {
        let files = members(found, last)?;
        let mut streams = Vec::new();
        for found in files.into_iter().rev() {
            let stream = Stream::open(shelf.open(&found.name)?.bytes, secret);
            let stream = stream.map_err(|error| of_stream(&found.path, &error))?;
            streams.push((found.path.clone(), stream));
        }
        Ok(Self { streams })
    }

    /// The newest of them.
    pub fn last(&self) -> &Stream<Bytes> {
        &self.streams.last().expect("a chain has a stream").1
    }

    /// The number of the root directory.
    pub fn root(&self) -> u64 {
        self.last().header().root
    }

    /// The names and objects of the newest, whose sense was checked; how many there are, and how
    /// many bytes.
    pub fn tree(&self) -> Result<(Tree, u64, u64)> {
        let mut tree = Tree::default();
        for (number, (path, stream)) in self.streams.iter().enumerate() {
            let applied = stream.records(|record| tree.apply(number as u16, record));
            applied.map_err(|error| of_stream(path, &error))?;
        }
        let checked = tree.check(self.root());
        let path = &self.streams.last().expect("a chain has a stream").0;
        let (objects, bytes) = checked.map_err(|error| of_stream(path, &error))?;
        Ok((tree, objects, bytes))
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        let header = self.last().header();
        format!("backup {} of {}", header.stream, date::seconds(header.created.seconds))
    }
}
