//! The record of a volume, as its owner changes it.

use std::sync::Arc;

use gabion_base::event::{CoordinatorEvent, Event, Sink};
use gabion_base::ids::Uuid;
use gabion_base::sync::Mutex;
use gabion_base::time::Timestamp;
use gabion_block::coordinator::{Coordinator, CoordinatorError, Revision};
use gabion_block::epoch::{Epoch, Opening};
use gabion_block::record::{Record, RecordError};
use thiserror::Error;

use crate::surroundings::now_seconds;

/// Attempts to change a record that others change, too.
const ATTEMPTS_MAX: usize = 16;

/// Why a record could not be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegisterError {
    /// There is none.
    #[error("there is no volume {0}")]
    Absent(String),
    /// The coordinator did not do it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// What it keeps is no record.
    #[error("volume {volume}: {source}")]
    Record {
        /// The volume.
        volume: String,
        /// What is wrong.
        source: RecordError,
    },
    /// Somebody else has opened the volume since.
    #[error("{}", fenced_text(.0.as_ref()))]
    Fenced(Option<Opening>),
}

fn fenced_text(by: Option<&Opening>) -> String {
    match by {
        Some(opening) => format!("the volume was opened by {}, {}", opening.holder, opening.epoch),
        None => "the volume was removed".to_owned(),
    }
}

/// Reads a volume's record.
pub fn read(
    coordinator: &dyn Coordinator,
    volume: &str,
) -> Result<(Record, Revision), RegisterError> {
    let stored = coordinator.read(volume)?.ok_or_else(|| RegisterError::Absent(volume.into()))?;
    Ok((decode(volume, &stored.text)?, stored.revision))
}

fn decode(volume: &str, text: &str) -> Result<Record, RegisterError> {
    Record::decode(text)
        .map_err(|source| RegisterError::Record { volume: volume.to_owned(), source })
}

/// Changes a record, whoever has the volume open; again if somebody else changes it meanwhile.
pub fn change<T, E: From<RegisterError>>(
    coordinator: &dyn Coordinator,
    volume: &str,
    mut change: impl FnMut(&mut Record) -> Result<T, E>,
) -> Result<T, E> {
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let (mut record, revision) = read(coordinator, volume)?;
        let outcome = change(&mut record)?;
        match coordinator.replace(volume, revision, &record.encode()) {
            Ok(_) => return Ok(outcome),
            Err(error @ CoordinatorError::Conflict { .. }) => last = Some(error),
            Err(error) => return Err(RegisterError::from(error).into()),
        }
    }
    Err(RegisterError::from(last.expect("it was tried")).into())
}

/// The record of a volume that is open.
pub(crate) struct Register {
    coordinator: Arc<dyn Coordinator>,
    sink: Arc<dyn Sink>,
    volume: String,
    epoch: Epoch,
    nonce: u64,
    /// Held by whoever talks with the coordinator. What is known can be asked for meanwhile.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    record: Record,
    revision: Revision,
    /// Since when the coordinator has not answered.
    away: Option<i64>,
}

impl Register {
    /// Of a volume whose record has just been given its last opening by this opener.
    pub(crate) fn new(
        coordinator: Arc<dyn Coordinator>,
        sink: Arc<dyn Sink>,
        record: Record,
        revision: Revision,
    ) -> Self {
        let opening = record.openings.last().expect("it has just been opened");
        Self {
            coordinator,
            sink,
            volume: record.name.clone(),
            epoch: opening.epoch,
            nonce: opening.nonce,
            turn: Mutex::default(),
            state: Mutex::new(State { record, revision, away: None }),
        }
    }

    /// The volume's name.
    pub(crate) fn volume(&self) -> &str {
        &self.volume
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The record as it was known last.
    pub(crate) fn record(&self) -> Record {
        self.state.lock().record.clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.state.lock().revision
    }

    /// Whether the volume is still its opener's.
    fn is_ours(&self, record: &Record) -> Result<(), RegisterError> {
        match record.openings.last() {
            Some(last) if last.epoch == self.epoch && last.nonce == self.nonce => Ok(()),
            other => Err(RegisterError::Fenced(other.cloned())),
        }
    }

    /// Changes the record. Nobody else of this process changes it meanwhile.
    pub(crate) fn change(&self, mut change: impl FnMut(&mut Record)) -> Result<(), RegisterError> {
        let _turn = self.turn.lock();
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.state.lock().clone();
            let mut record = known.record.clone();
            change(&mut record);
            if record == known.record && last.is_none() && known.away.is_none() {
                return Ok(());
            }
            let text = record.encode();
            match self.coordinator.replace(&self.volume, known.revision, &text) {
                Ok(revision) => {
                    self.know(record, revision);
                    return Ok(());
                }
                Err(error @ CoordinatorError::Conflict { .. }) => {
                    last = Some(error);
                    self.read_again()?;
                }
                Err(error) => {
                    self.silent(&error);
                    return Err(error.into());
                }
            }
        }
        Err(last.expect("it was tried").into())
    }

    /// Takes note of what somebody else has made of the record.
    pub(crate) fn refresh(&self) -> Result<Record, RegisterError> {
        let _turn = self.turn.lock();
        self.read_again()
    }

    fn read_again(&self) -> Result<Record, RegisterError> {
        let read = self.coordinator.read(&self.volume);
        let stored = read.inspect_err(|error| self.silent(error))?;
        let stored = stored.ok_or(RegisterError::Fenced(None))?;
        let record = decode(&self.volume, &stored.text)?;
        self.is_ours(&record)?;
        self.know(record.clone(), stored.revision);
        Ok(record)
    }

    /// The coordinator has said this.
    fn know(&self, record: Record, revision: Revision) {
        let known = State { record, revision, away: None };
        let before = std::mem::replace(&mut *self.state.lock(), known);
        if let Some(since) = before.away {
            self.publish(CoordinatorEvent::Back { since: Timestamp::new(since, 0) });
        }
    }

    /// The coordinator has said nothing.
    fn silent(&self, error: &CoordinatorError) {
        if !matches!(error, CoordinatorError::Unavailable { .. }) {
            return;
        }
        let since = now_seconds();
        // It stays away since the first time.
        let mut state = self.state.lock();
        let is_new = state.away.is_none();
        state.away.get_or_insert(since);
        drop(state);
        if is_new {
            let (since, reason) = (Timestamp::new(since, 0), error.to_string());
            self.publish(CoordinatorEvent::Unreachable { since, reason });
        }
    }

    fn publish(&self, event: CoordinatorEvent) {
        self.sink.publish(Event::Coordinator { coordinator: self.coordinator.name(), event });
    }

    /// The copy at `index` of a mirror, as the record has it.
    pub(crate) fn copy(
        &self,
        mirror: Uuid,
        index: usize,
    ) -> Option<gabion_block::record::MirrorCopy> {
        self.state.lock().record.layout.mirror_mut(mirror)?.get(index).cloned()
    }
}
