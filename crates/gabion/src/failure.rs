//! What a command tells its user when it cannot do its work: the thing, the cause, the next step.
//!
//! ```text
//! gabion: cannot mount disk.img at mnt: disk.img is in use by process 71 (gabion)
//!         To see it: gabion status disk.img
//! ```
//!
//! Exit codes are promised to scripts and never change their meaning.

use std::error::Error;
use std::fmt::{self, Display};
use std::process::ExitCode;

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was not possible.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// A scrub found damage.
    Damaged,
    /// A mount failed, in mount(8)'s words.
    MountFailed,
}

impl Exit {
    /// The promised number.
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Damaged => 4,
            Self::MountFailed => 32,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command ends without having done its work.
#[derive(Debug)]
pub struct Failure {
    what: String,
    next: Option<String>,
    exit: Exit,
}

/// What a command has to say.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure whose cause lies in `what` already.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: None, exit: Exit::Failed }
    }

    /// `what` did not work because of `cause`, and of what caused that.
    pub fn of(what: impl Display, cause: &dyn Error) -> Self {
        Self::new(format!("{what}: {}", chain(cause)))
    }

    /// What the user can do about it.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next = Some(step.into());
        self
    }

    /// The same with `name` in place of `other`, by which users do not know it.
    #[must_use]
    pub fn called(mut self, other: &str, name: &str) -> Self {
        self.what = self.what.replace(other, name);
        self.next = self.next.map(|next| next.replace(other, name));
        self
    }

    /// What to end with instead of [`Exit::Failed`].
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The same for a command that was not asked whether there is damage.
    #[must_use]
    pub fn without_damage(self) -> Self {
        match self.exit {
            Exit::Damaged => self.exit(Exit::Failed),
            _ => self,
        }
    }

    /// What to end with.
    pub fn code(&self) -> Exit {
        self.exit
    }
}

impl Error for Failure {}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.next {
            Some(next) => write!(f, "\n        {next}"),
            None => Ok(()),
        }
    }
}

/// An error with all that caused it, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use gabion_host::file_disk::OpenError;

    use super::*;

    #[test]
    fn a_failure_names_thing_cause_and_next_step() {
        let cause = OpenError::NotADisk { path: "/tmp".into() };
        let failure = Failure::of("cannot look", &cause).next("Name an image.");
        let wanted = "cannot look: /tmp is neither a regular file nor a block device\n        \
                      Name an image.";
        assert_eq!(failure.to_string(), wanted);
        assert_eq!(failure.code().code(), 1);
    }

    #[test]
    fn a_cause_that_repeats_its_own_cause_is_said_once() {
        let cause = OpenError::Io {
            operation: "open",
            path: "x".into(),
            source: std::io::Error::from_raw_os_error(2),
        };
        assert_eq!(chain(&cause), "cannot open x: No such file or directory (os error 2)");
    }
}
