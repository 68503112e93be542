//! The process on the second mount.
//!
//! It reads one command a line from its standard input and answers each with one line: `ok` and
//! maybe something more, or `failed` and why. It ends when its input does.
//!
//! | command               | what it does                                                 |
//! |-----------------------|--------------------------------------------------------------|
//! | `open PATH`           | opens a file for reading and writing, for all that follows   |
//! | `lock`                | locks and unlocks the file by fcntl(2)                       |
//! | `try`                 | the same without waiting: `ok free` or `ok held`             |
//! | `write OFFSET LENGTH` | writes its part of the pattern, and syncs it                 |
//! | `pong`                | answers bytes by bytes until it is stopped, see `turns`      |

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use super::{bytes, turns};

/// How long an answer may take; a slow one ends a workload, not a run.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the command.
pub fn run() -> Result<()> {
    let mut state = State { file: None };
    for line in std::io::stdin().lines() {
        let line = line?;
        let answer = match state.answer(&line) {
            Ok(more) => format!("ok {more}"),
            Err(error) => format!("failed {error:#}").replace('\n', " "),
        };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

struct State {
    file: Option<File>,
}

impl State {
    fn file(&self) -> Result<&File> {
        self.file.as_ref().context("no file is open")
    }

    fn answer(&mut self, line: &str) -> Result<String> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "open" => self.file = Some(open(Path::new(rest))?),
            "lock" => lock_and_unlock(self.file()?)?,
            "try" => return Ok(try_lock(self.file()?)?.to_owned()),
            "write" => {
                let (offset, length) = rest.split_once(' ').context("write OFFSET LENGTH")?;
                bytes::write_part(self.file()?, offset.parse()?, length.parse()?)?;
            }
            "pong" => return turns::pong(self.file()?),
            _ => bail!("there is no command {command:?}"),
        }
        Ok(String::new())
    }
}

/// Opens a file that is there.
pub fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// One turn with a lock.
pub fn lock_and_unlock(file: &File) -> Result<()> {
    fcntl_lock(file, FlockOperation::LockExclusive).context("cannot lock")?;
    fcntl_lock(file, FlockOperation::Unlock).context("cannot unlock")
}

fn try_lock(file: &File) -> Result<&'static str> {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            fcntl_lock(file, FlockOperation::Unlock)?;
            Ok("free")
        }
        Err(Errno::AGAIN | Errno::ACCESS) => Ok("held"),
        Err(error) => Err(error).context("cannot try to lock"),
    }
}

/// An agent that runs. Dropping it ends it.
pub struct Agent {
    child: Child,
    answers: Receiver<String>,
}

impl Agent {
    /// Starts one that has the file open.
    pub fn start(path: &Path) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program)
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start this program again")?;
        let output = child.stdout.take().context("the agent has no output")?;
        let (sender, answers) = sync_channel(1);
        // So that waiting for an answer has an end.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut agent = Self { child, answers };
        agent.ask(&format!("open {}", path.display()))?;
        Ok(agent)
    }

    /// Gives a command, whose answer is waited for by [`Agent::answer`].
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the agent has no input")?;
        input.write_all(format!("{command}\n").as_bytes()).context("the agent has ended")
    }

    /// What more than `ok` was answered.
    pub fn answer(&mut self) -> Result<String> {
        let answer = self.answers.recv_timeout(PATIENCE);
        let answer = answer.context("the process on the second mount does not answer")?;
        match answer.split_once(' ') {
            Some(("ok", more)) => Ok(more.to_owned()),
            Some((_, why)) => bail!("on the second mount: {why}"),
            None => bail!("on the second mount: {answer}"),
        }
    }

    /// Gives a command and waits for its answer.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The end of its input, which it sees unless it is stuck.
        drop(self.child.stdin.take());
        if self.answers.recv_timeout(Duration::from_secs(1)).is_ok() {
            // An answer that nobody waited for.
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
