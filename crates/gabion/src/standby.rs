//! A server that waits for its turn: another one has the volume, and when that one's claim ends,
//! this one opens it.
//!
//! ```text
//!   opens it --another one has it-->  waits until the coordinator says that the claim has ended
//!    ^  ^  \                                     |
//!    |  |   '--it cannot be opened--> rests      |
//!    |  '-------------------------------'        |
//!    '-------------------------------------------'
//! ```
//!
//! Opening takes an epoch even where it fails, so it is not tried all the time.
//!
//! Nobody is listened to meanwhile, so that clients try the other server. Other commands of this
//! machine are told by a control socket (see `clients`).
//!
//! A server from which a volume was taken, and that was told to be a standby, begins anew as a
//! whole ([`begin_again`]): nothing that it knew counts any more.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gabion_base::event::{Event, FilesystemEvent};
use gabion_base::sync::Mutex;
use gabion_block::coordinator::CoordinatorError;
use gabion_host::signals::{Signals, Wake, Waker};
use gabion_volume::register::RegisterError;
use gabion_volume::surroundings::Surroundings;
use gabion_volume::volume::{Volume, VolumeError};

use crate::clients;
use crate::control::server::Subject;
use crate::control::wire::{Grown, Progress, Report, StandbyStatus, Status};
use crate::failure::{Failure, Result, chain};
use crate::volumes::{self, Place};

/// How long the coordinator is asked at once for the end of a claim.
const WATCH: Duration = Duration::from_secs(5);
/// How long to rest after the coordinator has not answered, or a volume could not be opened; the
/// latter twice as long each time.
const REST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(60);

/// A volume that is this machine's turn to serve.
pub struct Turn {
    /// The volume.
    pub volume: Volume,
    /// Whether another server had it when this one came.
    pub has_waited: bool,
}

/// Opens a volume, when nobody else has it. Nothing if this process was asked to end before.
/// `address` is where it will be served.
pub fn await_turn(
    place: &Place,
    name: &str,
    surroundings: &Surroundings,
    address: SocketAddr,
    signals: &Signals,
) -> Result<Option<Turn>> {
    let standing = Arc::new(Standing { address, name: name.to_owned(), state: Mutex::default() });
    let subject = Arc::clone(&standing) as Arc<dyn Subject>;
    let control = clients::stand_by(place, subject)
        .map_err(|error| Failure::of("cannot listen for other commands", &error))?;
    let waiting = Waiting {
        standing: Arc::clone(&standing),
        surroundings: surroundings.clone(),
        waker: signals.waker(),
    };
    thread::Builder::new()
        .name("standby".to_owned())
        .spawn(move || waiting.run())
        .map_err(|error| Failure::of("cannot start a thread", &error))?;
    loop {
        let wake = signals.wait();
        match wake.map_err(|error| Failure::of("cannot wait for signals", &error))? {
            Wake::HangUp => {}
            Wake::Interrupt | Wake::Terminate => return Ok(None),
            Wake::Woken => break,
        }
    }
    drop(control);
    let mut state = standing.state.lock();
    let has_waited = state.has_waited;
    let opened = state.opened.take().expect("it was woken for that");
    opened.map(|volume| Some(Turn { volume, has_waited }))
}

/// This program begins from its start, with the same arguments. Returns only if it cannot.
pub fn begin_again() -> io::Error {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).exec()
}

/// What is told about one that waits.
struct Standing {
    address: SocketAddr,
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who has the volume, in its own words.
    holder: Option<String>,
    has_waited: bool,
    /// Why it cannot be opened.
    problem: Option<String>,
    /// What has come of it.
    opened: Option<Result<Volume>>,
}

/// Who waits.
struct Waiting {
    standing: Arc<Standing>,
    surroundings: Surroundings,
    waker: Waker,
}

impl Waiting {
    fn run(self) {
        let opened = self.open();
        self.standing.state.lock().opened = Some(opened);
        if let Err(error) = self.waker.wake() {
            // Without this it would have the volume and serve nobody.
            eprintln!("gabion: cannot go on: {error}");
            process::exit(1);
        }
    }

    fn open(&self) -> Result<Volume> {
        let name = &self.standing.name;
        let mut rest = REST;
        loop {
            let error = match Volume::open(name, self.surroundings.clone()) {
                Ok(volume) => {
                    self.takes_over();
                    return Ok(volume);
                }
                Err(error) => error,
            };
            let coordinator = match &error {
                VolumeError::Register(RegisterError::Coordinator(error)) => Some(error),
                VolumeError::Register(RegisterError::Absent(_)) => {
                    return Err(volumes::not_opened(name, &error));
                }
                _ => None,
            };
            match coordinator {
                Some(CoordinatorError::Claimed { holder, .. }) => {
                    self.stands_by(holder);
                    self.await_release();
                    rest = REST;
                }
                Some(_) => {
                    self.has_problem(chain(&error));
                    thread::sleep(REST);
                }
                None => {
                    self.has_problem(chain(&error));
                    thread::sleep(rest);
                    rest = (rest * 2).min(REST_MAX);
                }
            }
        }
    }

    /// Waits until nobody has the claim.
    fn await_release(&self) {
        loop {
            match self.surroundings.coordinator.released(&self.standing.name, WATCH) {
                Ok(None) => return,
                Ok(Some(holder)) => self.stands_by(&holder),
                Err(error) => {
                    self.has_problem(chain(&error));
                    thread::sleep(REST);
                }
            }
        }
    }

    fn stands_by(&self, holder: &str) {
        let mut state = self.standing.state.lock();
        (state.problem, state.has_waited) = (None, true);
        if state.holder.replace(holder.to_owned()).as_deref() == Some(holder) {
            return;
        }
        drop(state);
        let Standing { name, address, .. } = &*self.standing;
        eprintln!("gabion: standby for {name}, which {holder} has; here it will be at {address}");
        let holder = holder.to_owned();
        self.publish(FilesystemEvent::StandsBy { holder });
    }

    fn takes_over(&self) {
        let Some(before) = self.standing.state.lock().holder.take() else { return };
        let name = &self.standing.name;
        eprintln!("gabion: takes over {name}, which {before} had");
        self.publish(FilesystemEvent::TakesOver { before });
    }

    fn has_problem(&self, problem: String) {
        let name = &self.standing.name;
        let before = self.standing.state.lock().problem.replace(problem.clone());
        if before.as_ref() != Some(&problem) {
            eprintln!("gabion: standby for {name}: {problem}; it is tried again");
        }
    }

    fn publish(&self, event: FilesystemEvent) {
        let filesystem = self.standing.name.clone();
        self.surroundings.sink.publish(Event::Filesystem { filesystem, event });
    }
}

/// What is said to who wants something done about it.
const NOT_HERE: &str = "this is a standby: ask where the filesystem is served";

impl Subject for Standing {
    fn status(&self) -> Status {
        let state = self.state.lock();
        let standby = StandbyStatus {
            address: self.address.to_string(),
            pid: process::id(),
            holder: state.holder.clone(),
        };
        Status {
            target: self.name.clone(),
            problem: state.problem.clone(),
            standby: Some(standby),
            ..Status::default()
        }
    }

    fn scrub(
        &self,
        _: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> std::result::Result<Report, String> {
        Err(NOT_HERE.to_owned())
    }

    fn grow(&self, _: Option<u64>) -> std::result::Result<Grown, String> {
        Err(NOT_HERE.to_owned())
    }
}
