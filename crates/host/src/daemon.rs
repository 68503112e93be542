//! Leaving the terminal, and telling it how the start went.
//!
//! ```text
//!   parent                              child
//!   detach() ---- fork ---------------> detach() returns Launch::Child(readiness)
//!      |                                opens disks, starts threads, mounts, ...
//!      | reads a pipe                   readiness.ready()  or  readiness.failed(text, code)
//!      v                                  |                      |
//!   Launch::Parent(Outcome::Ready)  <-----'                      |
//!   Launch::Parent(Outcome::Failed) <----------------------------'
//!   Launch::Parent(Outcome::Died)   <---- the pipe closed without a word
//! ```
//!
//! - A fork copies only the thread that calls it, so [`detach`] refuses if there are others.
//! - The child has a session of its own: the terminal's signals do not reach it.
//! - Until it is ready the child keeps the terminal as its standard error, so that even a panic is
//!   seen; [`Readiness::ready`] then closes the terminal and goes to `/`, in order to pin neither.
//!
//! On the pipe goes one byte of exit code, 0 for ready, and then the text.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use crate::sys::retried;

/// The longest text that a child sends and a parent reads.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Which of the two processes this is.
#[derive(Debug)]
#[must_use]
pub enum Launch {
    /// The process that was started by the user, after the child has reported.
    Parent(Outcome),
    /// The process in the background, which is to report.
    Child(Readiness),
}

/// How the child's start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs in the background.
    Ready,
    /// It has said why it cannot.
    Failed {
        /// What to tell the user.
        message: String,
        /// What to exit with; never 0.
        exit_code: u8,
    },
    /// It ended without saying anything.
    Died(ExitStatus),
}

/// The child's duty to report. Dropping it without a report tells the parent that the child died.
#[derive(Debug)]
pub struct Readiness {
    pipe: File,
    stdin: File,
    output: File,
}

/// Forks. In the parent, returns when the child has reported or ended. From
/// [`Readiness::ready`] on, the child's standard output and error go to the end of the file `log`.
///
/// Fails if this process has more than one thread.
pub fn detach(log: Option<&Path>) -> io::Result<Launch> {
    let stdin = File::open("/dev/null")?;
    let mut options = File::options();
    let output = match log {
        Some(log) => options.append(true).create(true).mode(0o640).open(log)?,
        None => options.write(true).open("/dev/null")?,
    };
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let message = format!("cannot go to the background with {threads} threads");
        return Err(io::Error::other(message));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: there is no other thread, so the child's copy of all memory is consistent.
    match retried(|| unsafe { libc::fork() })? {
        0 => {
            drop(reader);
            // SAFETY: takes no pointers. A new child leads no process group, so this succeeds.
            retried(|| unsafe { libc::setsid() })?;
            let pipe = File::from(OwnedFd::from(writer));
            Ok(Launch::Child(Readiness { pipe, stdin, output }))
        }
        child => {
            drop(writer);
            let report = read_report(File::from(OwnedFd::from(reader)))?;
            let outcome = match report.split_first() {
                Some((0, _)) => Outcome::Ready,
                Some((exit_code, text)) => Outcome::Failed {
                    message: String::from_utf8_lossy(text).into_owned(),
                    exit_code: *exit_code,
                },
                None => Outcome::Died(wait(child)?),
            };
            Ok(Launch::Parent(outcome))
        }
    }
}

impl Readiness {
    /// Tells the parent that all is well, after leaving the terminal and the working directory.
    pub fn ready(mut self) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        for (from, to) in [(&self.stdin, 0), (&self.output, 1), (&self.output, 2)] {
            // SAFETY: takes no pointers; the standard descriptors have no owner to be surprised.
            retried(|| unsafe { libc::dup2(from.as_raw_fd(), to) })?;
        }
        self.pipe.write_all(&[0])
    }

    /// Tells the parent what went wrong and what to exit with. An `exit_code` of 0 becomes 1.
    pub fn failed(mut self, message: &str, exit_code: u8) -> io::Result<()> {
        let text = &message.as_bytes()[..message.len().min(TEXT_BYTES_MAX)];
        let mut report = vec![exit_code.max(1)];
        report.extend_from_slice(text);
        self.pipe.write_all(&report)
    }
}

/// Reads to the end of a failure's text; the child of a good start does not have to end for it.
fn read_report(mut pipe: File) -> io::Result<Vec<u8>> {
    let mut report = Vec::new();
    (&mut pipe).take(1).read_to_end(&mut report)?;
    if report.first().is_some_and(|code| *code != 0) {
        pipe.take(TEXT_BYTES_MAX as u64).read_to_end(&mut report)?;
    }
    Ok(report)
}

fn wait(child: libc::pid_t) -> io::Result<ExitStatus> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    retried(|| unsafe { libc::waitpid(child, &mut status, 0) })?;
    Ok(ExitStatus::from_raw(status))
}
