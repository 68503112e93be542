//! Processes of this program that another one of it has started, and keeps.
//!
//! ```text
//!   started -- says its first line --> runs -- ends, asked or done --> over
//!                                       ^  \
//!                                       |   ends otherwise: that is told
//!                                       '-- after a pause, the same again
//! ```
//!
//! - They stand for machines, and can be killed like those: who was killed is started again.
//! - They are in process groups of their own: Ctrl-C is for who has started them, who ends them in
//!   order.
//! - They end with who has started them, however that ends: see [`end_with_parent`].
//! - Every wait for one has an end: who is not ready in time, or does not end in time when it was
//!   asked to, is killed.
//!
//! Absent: what they say later on standard output, which goes nowhere. Standard error is shared.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gabion_base::sync::{Condvar, Mutex};
use gabion_host::signals::Waker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::failure::{Failure, Result};

/// How long a process that has ended stays away. A mirror does without a copy after one second: so
/// it is also seen that somebody killed a target.
const PAUSE: Duration = Duration::from_secs(2);
/// How long one may take until it is ready. It may have to wait for another one's locks.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long one may take to end in order, with all that it has to write.
const END_PATIENCE: Duration = Duration::from_secs(120);

/// When a process is not started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it was asked to end.
    Asked,
    /// When it was asked to end, or has ended without a complaint.
    Done,
}

/// What has become of a process.
#[derive(Default)]
struct State {
    /// The one that runs, if one does.
    running: Option<Pid>,
    /// It is to end.
    is_asked: bool,
    /// How it ended, when it is over. Not at all if it was asked to while none ran.
    over: Option<Option<ExitStatus>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A process that is kept.
pub struct Supervised {
    what: String,
    said: String,
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

impl Supervised {
    /// Starts it, and waits until it is ready. `command` is given what it has said the last time,
    /// at first nothing. `waker` is woken when it is over.
    pub fn start(
        what: String,
        until: Until,
        command: impl Fn(&str) -> Command + Send + 'static,
        waker: Option<Waker>,
    ) -> Result<Self> {
        let cannot = |error: io::Error| Failure::of(format!("cannot start {what}"), &error);
        let (child, said) = spawn(&mut command("")).map_err(cannot)?;
        let shared = Arc::new(Shared::default());
        shared.state.lock().running = Pid::from_raw(child.id() as i32);
        let mut keeper = Keeper { what, until, said, command, shared: Arc::clone(&shared) };
        let (what, said) = (keeper.what.clone(), keeper.said.clone());
        let mut supervised = Self { what: what.clone(), said, shared, keeper: None };
        let keep = move || {
            let over = keeper.keep(child);
            keeper.shared.state.lock().over = Some(over);
            keeper.shared.changed.notify_all();
            if let Some(Err(error)) = waker.map(|waker| waker.wake()) {
                eprintln!("gabion: cannot notice the end of {}: {error}", keeper.what);
            }
        };
        let thread = thread::Builder::new().name(what).spawn(keep);
        let cannot = |error| Failure::of("cannot start a thread", &error);
        supervised.keeper = Some(thread.map_err(cannot)?);
        Ok(supervised)
    }

    /// What it said when it was ready for the first time.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// The number of its process; 0 if none runs.
    pub fn process(&self) -> i32 {
        self.shared.state.lock().running.map_or(0, Pid::as_raw_pid)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.shared.state.lock().over.is_some()
    }

    /// Asks it to end.
    pub fn ask(&self, signal: Signal) {
        let mut state = self.shared.state.lock();
        state.is_asked = true;
        if let Some(process) = state.running {
            // Gone already is as good.
            let _ = kill_process(process, signal);
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Asks it to end, waits for that, and tells if it did not end well.
    pub fn end(mut self) -> Result<()> {
        match self.finish() {
            Some(Some(status)) if !status.success() => {
                Err(Failure::new(format!("{} did not end in order: {status}", self.what)))
            }
            _ => Ok(()),
        }
    }

    fn is_over_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        while state.over.is_none() {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.over.is_some()
    }

    fn finish(&mut self) -> Option<Option<ExitStatus>> {
        let keeper = self.keeper.take()?;
        self.ask(Signal::TERM);
        if !self.is_over_within(END_PATIENCE) {
            eprintln!("gabion: {} does not end; it is killed", self.what);
            self.ask(Signal::KILL);
        }
        // It has no reason to panic, and there is nothing left to be done for it.
        let _ = keeper.join();
        self.shared.state.lock().over
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the thread of a process knows.
struct Keeper<C> {
    what: String,
    until: Until,
    said: String,
    command: C,
    shared: Arc<Shared>,
}

impl<C: Fn(&str) -> Command> Keeper<C> {
    /// Waits for the end, and starts it again unless that was the last one.
    fn keep(&mut self, mut child: Child) -> Option<ExitStatus> {
        loop {
            let status = child.wait();
            let mut state = self.shared.state.lock();
            state.running = None;
            let is_done = status.as_ref().is_ok_and(ExitStatus::success);
            if state.is_asked || self.until == Until::Done && is_done {
                return status.ok();
            }
            drop(state);
            let how = status.map_or_else(|error| error.to_string(), |status| describe(&status));
            eprintln!("gabion: {} has ended ({how}); it is started again", self.what);
            child = self.again()?;
        }
    }

    fn again(&mut self) -> Option<Child> {
        loop {
            let mut state = self.shared.state.lock();
            let deadline = Instant::now() + PAUSE;
            while !state.is_asked
                && !self.shared.changed.wait_until(&mut state, deadline).timed_out()
            {}
            if state.is_asked {
                return None;
            }
            drop(state);
            match spawn(&mut (self.command)(&self.said)) {
                Ok((mut child, said)) => {
                    self.said = said;
                    let mut state = self.shared.state.lock();
                    state.running = Pid::from_raw(child.id() as i32);
                    if state.is_asked {
                        // Who asked has not seen it.
                        let _ = child.kill();
                    }
                    return Some(child);
                }
                Err(error) => eprintln!("gabion: cannot start {}: {error}", self.what),
            }
        }
    }
}

fn describe(status: &ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => status.to_string(),
    }
}

/// Starts a process, and waits for the first line that it says.
fn spawn(command: &mut Command) -> io::Result<(Child, String)> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let said = first_line(&mut child);
    match said {
        Ok(said) if !said.is_empty() => Ok((child, said.trim_end().to_owned())),
        Ok(_) => {
            let status = child.wait()?;
            Err(io::Error::other(format!("it has ended: {}", describe(&status))))
        }
        Err(error) => {
            // Gone already is as good.
            let _ = child.kill();
            child.wait()?;
            Err(error)
        }
    }
}

fn first_line(child: &mut Child) -> io::Result<String> {
    let Some(stdout) = child.stdout.take() else { return Ok(String::new()) };
    let mut ready = [PollFd::new(&stdout, PollFlags::IN)];
    let timeout = Timespec::try_from(READY_PATIENCE).ok();
    if poll(&mut ready, timeout.as_ref())? == 0 {
        let seconds = READY_PATIENCE.as_secs();
        return Err(io::Error::other(format!("it was not ready within {seconds} s")));
    }
    let mut said = String::new();
    BufReader::new(stdout).read_line(&mut said)?;
    Ok(said)
}

/// Has the kernel send `signal` to this process when the thread ends that has started it.
pub fn end_with_parent(signal: Signal) -> Result<()> {
    set_parent_process_death_signal(Some(signal))
        .map_err(|error| Failure::of("cannot end with the parent", &error))
}
