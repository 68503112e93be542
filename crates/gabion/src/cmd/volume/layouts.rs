//! Layouts and members as the command line has them.
//!
//! A record is read in other folders than the one in which it was made, so that the paths of
//! members are made absolute before they get there. URLs are left as they are.

use gabion_block::record::Layout;
use gabion_volume::layout;

use crate::failure::{Exit, Failure, Result};

/// A layout whose paths hold wherever the volume is opened from.
pub(super) fn parsed(text: &str) -> Result<Layout> {
    let mut layout =
        layout::parse(text).map_err(|error| Failure::new(error.to_string()).exit(Exit::Usage))?;
    make_absolute(&mut layout)?;
    Ok(layout)
}

fn make_absolute(layout: &mut Layout) -> Result<()> {
    match layout {
        Layout::Member(member) => member.url = absolute(&member.url)?,
        Layout::Linear(parts) | Layout::Stripe { parts, .. } => {
            parts.iter_mut().try_for_each(make_absolute)?;
        }
        Layout::Mirror { copies, .. } => {
            copies.iter_mut().try_for_each(|copy| make_absolute(&mut copy.on))?;
        }
    }
    Ok(())
}

pub(super) fn absolute(url: &str) -> Result<String> {
    if url.contains("://") {
        return Ok(url.to_owned());
    }
    let path = std::fs::canonicalize(url)
        .map_err(|error| Failure::of(format!("cannot use {url}"), &error))?;
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => Err(Failure::new(format!("the name of {url} is not UTF-8"))),
    }
}
