//! What is asked before something is destroyed that nothing brings back.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::failure::{Exit, Failure, Result};

/// Goes on if `yes` was said, or if whoever sits at the terminal agrees to what `would` happen.
/// Without a terminal nobody can be asked, and it has to be said before: exit code 2.
pub(super) fn require(yes: bool, would: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return match asked(would) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new("nothing was done")),
            Err(error) => Err(Failure::of("cannot ask at this terminal", &error)),
        };
    }
    Err(Failure::new(would).next("To do that, say --yes.").exit(Exit::Usage))
}

fn asked(would: &str) -> io::Result<bool> {
    let mut terminal = io::stderr().lock();
    write!(terminal, "{would}; nothing brings that back.\nDo it? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
