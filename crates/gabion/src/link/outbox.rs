//! What a server says to a client, and what it had better not say yet.
//!
//! A failure may be due to another server, which has taken the volume. Who knows that says nothing
//! any more. Who cannot know it yet keeps failures back, and all that comes after them: they are
//! told once it is certain that they are its own.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use gabion_base::sync::Mutex;
use gabion_link::message::ToClient;
use gabion_link::wire::is_failure;
use gabion_node::served;
use gabion_volume::tenure::Tenure;

use super::load::Load;
use super::pipe::Pipe;

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    All,
    /// No failures: somebody else may have the filesystem.
    NoFailures,
    /// Somebody else has it.
    Nothing,
}

/// Messages that wait for it to be certain that they can be told.
#[derive(Default)]
struct Held(VecDeque<ToClient>);

impl Held {
    /// What can be told by now, in order.
    fn release(&mut self, telling: Telling) -> Vec<ToClient> {
        match telling {
            Telling::All => mem::take(&mut self.0).into(),
            Telling::NoFailures => {
                let failure = self.0.iter().position(tells_failure).unwrap_or(self.0.len());
                self.0.drain(..failure).collect()
            }
            Telling::Nothing => {
                self.0.clear();
                Vec::new()
            }
        }
    }
}

fn tells_failure(message: &ToClient) -> bool {
    match message {
        ToClient::Answer { result: Err(error), .. } | ToClient::Failed { error, .. } => {
            is_failure(error)
        }
        _ => false,
    }
}

/// Where a session's messages go.
pub(super) struct Outbox {
    pipe: Arc<Pipe>,
    load: Arc<Load>,
    /// Whether nobody else has taken the filesystem; nothing if nobody can.
    tenure: Option<Arc<Tenure>>,
    held: Mutex<Held>,
}

impl Outbox {
    pub(super) fn new(pipe: Arc<Pipe>, load: Arc<Load>, tenure: Option<Arc<Tenure>>) -> Self {
        Self { pipe, load, tenure, held: Mutex::default() }
    }

    /// Sends what was kept back, if it can be told by now.
    pub(super) fn go_on(&self) {
        if let Some(tenure) = &self.tenure {
            self.pass(&mut self.held.lock(), tenure);
        }
    }

    fn pass(&self, held: &mut Held, tenure: &Tenure) {
        let telling = match (tenure.is_over(), tenure.explains_failures()) {
            (true, _) => Telling::Nothing,
            (false, true) => Telling::All,
            (false, false) => Telling::NoFailures,
        };
        held.release(telling).into_iter().for_each(|message| self.tell(&message));
    }

    fn tell(&self, message: &ToClient) {
        match message {
            ToClient::Answer { id, .. } => self.load.answered(*id),
            ToClient::Applied { number, .. } => self.load.applied(*number),
            _ => {}
        }
        self.pipe.send(message.encode());
    }
}

impl served::Peer for Outbox {
    fn send(&self, message: ToClient) {
        let Some(tenure) = &self.tenure else { return self.tell(&message) };
        let mut held = self.held.lock();
        if held.0.is_empty() && !tells_failure(&message) && !tenure.is_over() {
            return self.tell(&message);
        }
        held.0.push_back(message);
        self.pass(&mut held, tenure);
    }

    fn sent(&self) -> u64 {
        let held = self.held.lock().0.len();
        self.pipe.sent() + held as u64
    }

    fn arrived(&self) -> u64 {
        self.pipe.arrived()
    }

    fn cut(&self) {
        self.pipe.close();
    }
}

#[cfg(test)]
mod tests {
    use gabion_fs::Error;
    use gabion_link::message::ChangeNumber;
    use gabion_link::wire::failure;

    use super::*;

    fn failed(number: u64, error: Error) -> ToClient {
        ToClient::Failed { number: ChangeNumber(number), error }
    }

    /// The numbers of what is told.
    fn told(held: &mut Held, telling: Telling) -> Vec<u64> {
        let number = |message: ToClient| match message {
            ToClient::Failed { number, .. } => number.0,
            other => panic!("{other:?}"),
        };
        held.release(telling).into_iter().map(number).collect()
    }

    #[test]
    fn failures_and_what_follows_wait_until_they_are_certainly_the_servers_own() {
        let mut held = Held::default();
        let messages = || {
            [
                failed(1, Error::NotFound),
                failed(2, failure("the disk".to_owned())),
                failed(3, Error::Exists),
            ]
        };
        held.0.extend(messages());
        assert_eq!(told(&mut held, Telling::NoFailures), [1]);
        assert!(told(&mut held, Telling::NoFailures).is_empty());
        held.0.push_back(failed(4, Error::NotFound));
        assert_eq!(told(&mut held, Telling::All), [2, 3, 4]);
        held.0.extend(messages());
        assert!(told(&mut held, Telling::Nothing).is_empty());
        assert!(told(&mut held, Telling::All).is_empty());
    }
}
