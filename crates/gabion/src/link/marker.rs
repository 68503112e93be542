//! A file that says that there are sessions, for the next start of the server.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest time after which silence ends a session.
const SESSION_MAX: Duration = Duration::from_secs(600);

/// What the file says, and why it may have to go on saying so.
pub(super) struct Marker {
    path: PathBuf,
    is_there: bool,
    /// The longest time that a session may live without being heard of, as the file has it.
    patience: Duration,
    /// When a session was ended last whose client may not have known: it may live by its own clock.
    cut: Option<Instant>,
}

/// How long sessions of an earlier start may live without being heard of, if there may be any. What
/// cannot be read may say anything.
fn told_by(path: &Path) -> Option<Duration> {
    match fs::read_to_string(path) {
        Ok(text) => Some(text.trim().parse().map_or(SESSION_MAX, Duration::from_millis)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(_) => Some(SESSION_MAX),
    }
}

impl Marker {
    /// The file at `path`, and how long sessions of an earlier start may live, if there may be any.
    pub(super) fn read(path: PathBuf) -> (Self, Option<Duration>) {
        let before = told_by(&path);
        let marker = Self {
            path,
            is_there: before.is_some(),
            patience: before.unwrap_or_default(),
            cut: before.is_some().then(Instant::now),
        };
        (marker, before)
    }

    /// Makes sure that the next start knows of sessions, before the first one begins.
    pub(super) fn set(&mut self, patience: Duration) -> io::Result<()> {
        if self.is_there && self.patience >= patience {
            return Ok(());
        }
        // Sessions of an earlier start may have been promised more.
        self.patience = self.patience.max(patience);
        let mut file = File::create(&self.path)?;
        writeln!(file, "{}", self.patience.as_millis())?;
        file.sync_all()?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.is_there = true;
        Ok(())
    }

    /// A session was ended whose client may not know.
    pub(super) fn was_cut(&mut self) {
        self.cut = Some(Instant::now());
    }

    /// Takes the file away, there being no sessions, when nobody is left who could believe in one.
    pub(super) fn clear_if_quiet(&mut self, margin: Duration) {
        let patience = self.patience + margin;
        let is_quiet = self.cut.is_none_or(|cut| cut.elapsed() > patience);
        if self.is_there && is_quiet {
            self.is_there = fs::remove_file(&self.path).is_err();
            self.patience = Duration::ZERO;
        }
    }
}
