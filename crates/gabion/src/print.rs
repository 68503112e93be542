//! Standard output, which may be closed at any time by whoever has seen enough.

use std::fmt::Display;
use std::io::{self, Write};

use crate::failure::{Failure, Result};

/// Prints a line. A reader that is gone is no failure; a full disk is.
pub fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::of("cannot print", &error))
        }
        _ => Ok(()),
    }
}

/// What others have put into a text, without what would do something to a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}
