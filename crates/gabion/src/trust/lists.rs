//! Where it is kept who was invited to a filesystem and who belongs to it.
//!
//! In two files, `invitations` and `members`, in the folder of the authority; or of a filesystem on
//! a volume in a note with the coordinator, so that whichever server has the volume finds it:
//!
//! ```text
//!   {"gabion-members": 1, "invitations": [LINE...], "members": [LINE...]}
//! ```
//!
//! In a note, all is replaced at once, by whoever knows what it was before: a server that does not
//! have the volume any more changes nothing. It has nothing that is secret: of invitations digests,
//! of members the numbers and names of their certificates.
//!
//! What was in files before is taken over into the note, and the files go.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_block::coordinator::{Coordinator, CoordinatorError, RECORD_BYTES_MAX, Revision};
use serde_json::{Value, json};

use super::files;
use super::membership::MembershipError;

/// The version of notes.
const VERSION: u64 = 1;

/// One of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Invitations,
    Members,
}

impl List {
    fn name(self) -> &'static str {
        match self {
            Self::Invitations => "invitations",
            Self::Members => "members",
        }
    }
}

/// Both lists, a line for each of their elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    pub(super) invitations: Vec<String>,
    pub(super) members: Vec<String>,
}

impl Lines {
    fn of(&self, list: List) -> &[String] {
        match list {
            List::Invitations => &self.invitations,
            List::Members => &self.members,
        }
    }

    fn encode(&self) -> String {
        let lines = json!({
            "gabion-members": VERSION,
            "invitations": self.invitations,
            "members": self.members,
        });
        lines.to_string()
    }

    fn decode(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        if value["gabion-members"].as_u64() != Some(VERSION) {
            return None;
        }
        let list = |list: List| -> Option<Vec<String>> {
            let lines = value[list.name()].as_array()?.iter();
            lines.map(|line| line.as_str().map(str::to_owned)).collect()
        };
        Some(Self { invitations: list(List::Invitations)?, members: list(List::Members)? })
    }
}

/// A note with a coordinator.
struct Note {
    coordinator: Arc<dyn Coordinator>,
    name: String,
    /// What it has as far as is known here.
    revision: Mutex<Revision>,
}

/// Where both lists are.
pub(super) struct Lists {
    folder: PathBuf,
    note: Option<Note>,
}

impl Lists {
    /// In files in `folder`.
    pub(super) fn in_files(folder: PathBuf) -> Self {
        Self { folder, note: None }
    }

    /// In a note of the name `name`; before there was one they were in files in `folder`.
    pub(super) fn in_note(
        folder: PathBuf,
        coordinator: Arc<dyn Coordinator>,
        name: String,
    ) -> Self {
        let revision = Mutex::new(Revision::ABSENT);
        Self { folder, note: Some(Note { coordinator, name, revision }) }
    }

    /// What there is now.
    pub(super) fn read(&self) -> Result<Lines, MembershipError> {
        let Some(note) = &self.note else { return Ok(self.read_files()?) };
        match note.coordinator.note(&note.name)? {
            Some(stored) => {
                *note.revision.lock() = stored.revision;
                let strange = || io::Error::other("what the coordinator keeps makes no sense");
                Ok(Lines::decode(&stored.text).ok_or_else(strange)?)
            }
            None => {
                let lines = self.read_files()?;
                if lines != Lines::default() {
                    self.write(List::Members, &lines)?;
                }
                Ok(lines)
            }
        }
    }

    /// Replaces both, of which one has changed. It is durable.
    pub(super) fn write(&self, changed: List, lines: &Lines) -> Result<(), MembershipError> {
        let Some(note) = &self.note else {
            let list = lines.of(changed).iter().cloned();
            return Ok(files::write_lines(&self.folder.join(changed.name()), list)?);
        };
        let text = lines.encode();
        if text.len() > RECORD_BYTES_MAX {
            return Err(MembershipError::NoRoom);
        }
        let mut revision = note.revision.lock();
        match note.coordinator.replace_note(&note.name, *revision, &text) {
            Ok(now) => *revision = now,
            Err(CoordinatorError::Conflict { .. }) => return Err(MembershipError::Changed),
            Err(error) => return Err(error.into()),
        }
        for list in [List::Invitations, List::Members] {
            match fs::remove_file(self.folder.join(list.name())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_files(&self) -> io::Result<Lines> {
        let read = |list: List| files::read_lines(&self.folder.join(list.name()));
        Ok(Lines { invitations: read(List::Invitations)?, members: read(List::Members)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_others_are_refused() {
        let lines = Lines {
            invitations: vec!["a 1 open".to_owned()],
            members: vec!["07 1 host \"1\"".to_owned(), "08 2 ä".to_owned()],
        };
        assert_eq!(Lines::decode(&lines.encode()), Some(lines.clone()));
        let text = lines.encode();
        for wrong in [
            String::new(),
            text.replace(":1,", ":2,"),
            text.replace("members\":[", "others\":["),
            text.replace("\"08 2 ä\"", "8"),
            text[1..].to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(Lines::decode(&wrong), None, "{wrong}");
        }
    }
}
