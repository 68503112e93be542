//! What is on a device, before somebody makes a filesystem over it.
//!
//! 1. [`identify`] looks for the marks of every known format (a table: name, and which bytes are
//!    where) and tells the first, with its label and identity if they are easy to find.
//! 2. [`wipe`] clears every block of 4 KiB that has a mark in it, copies and backups included, the
//!    first and the last 64 KiB, and makes that durable. Afterwards `identify` finds nothing, and
//!    neither does anything else that probes devices.
//!
//! Nothing is decoded beyond that: a mark is a reason to ask before overwriting, not a proof of a
//! healthy filesystem.

mod probe;
mod table;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::probe::{Found, Probe};
use self::table::{FORMATS, Format, Special};

/// What a wipe clears at both ends whatever is there.
const WIPED_ENDS: u64 = 64 * 1024;
/// What a wipe clears around each mark.
const WIPED_UNIT: u64 = 4096;

/// A format that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The format's usual name: "ext4", "xfs", "GPT partition table".
    pub name: &'static str,
    /// The name that its owner gave it.
    pub label: Option<String>,
    /// Its identity.
    pub uuid: Option<String>,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(label) = &self.label {
            write!(f, " {label:?}")?;
        }
        match &self.uuid {
            Some(uuid) => write!(f, " ({uuid})"),
            None => Ok(()),
        }
    }
}

/// The known format on `file`, which must be open for reading, without direct I/O.
pub fn identify(file: &File) -> io::Result<Option<Signature>> {
    let probe = Probe::new(file)?;
    for format in FORMATS {
        if !marks(&probe, format)?.is_empty() {
            return signature(&probe, format).map(Some);
        }
    }
    for format in FORMATS {
        if !copies(&probe, format)?.is_empty() {
            return Ok(Some(Signature { name: format.name, label: None, uuid: None }));
        }
    }
    Ok(None)
}

/// Clears every known format from `file`, which must be open for reading and writing, without
/// direct I/O. Gives those that had more than copies left. The zeros are durable on return.
pub fn wipe(file: &File) -> io::Result<Vec<Signature>> {
    let probe = Probe::new(file)?;
    let mut found = Vec::new();
    let mut cleared = Vec::new();
    for format in FORMATS {
        let marks = marks(&probe, format)?;
        if !marks.is_empty() {
            found.push(signature(&probe, format)?);
        }
        cleared.extend(marks);
        cleared.extend(copies(&probe, format)?);
    }
    for Found { offset, length } in cleared {
        let start = offset - offset % WIPED_UNIT;
        let end = (offset + length).next_multiple_of(WIPED_UNIT);
        clear(file, start, end.min(probe.bytes))?;
    }
    clear(file, 0, WIPED_ENDS.min(probe.bytes))?;
    clear(file, probe.bytes.saturating_sub(WIPED_ENDS), probe.bytes)?;
    file.sync_all()?;
    Ok(found)
}

/// The marks of a format that are there; none if they prove nothing.
fn marks(probe: &Probe<'_>, format: &Format) -> io::Result<Vec<Found>> {
    let marks = probe.matching(format.marks)?;
    match format.special {
        Special::Search(search) => search(probe),
        Special::OnlyIf(is_there) if !marks.is_empty() && !is_there(probe)? => Ok(Vec::new()),
        _ => Ok(marks),
    }
}

fn copies(probe: &Probe<'_>, format: &Format) -> io::Result<Vec<Found>> {
    probe.matching(format.copies)
}

fn signature(probe: &Probe<'_>, format: &Format) -> io::Result<Signature> {
    let name = match format.special {
        Special::Name(name) => name(probe)?,
        _ => format.name,
    };
    Ok(Signature { name, label: probe.field(format.label)?, uuid: probe.field(format.uuid)? })
}

fn clear(file: &File, start: u64, end: u64) -> io::Result<()> {
    const ZEROS: [u8; WIPED_UNIT as usize] = [0; WIPED_UNIT as usize];
    let mut at = start;
    while at < end {
        let step = (end - at).min(WIPED_UNIT);
        file.write_all_at(&ZEROS[..step as usize], at)?;
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
