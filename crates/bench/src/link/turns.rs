//! Two processes that take turns, one on each mount: with a lock, and with a byte.
//!
//! What a reader must see at least is known without the filesystem: each writer notes in memory
//! that both processes share what it has completely written ([`Notes`]). A reader looks there
//! before each read; if the read does not show what was noted, it was stale.
//!
//! ```text
//!   here:    write 1, note 1                     read..., read 2: write 3, note 3
//!   agent:                   read..., read 1: write 2, note 2
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::agent::{Agent, lock_and_unlock, open};
use super::{Findings, Supplies};
use crate::figures::{Metric, Unit};
use crate::systems::shared::Shared;

/// In memory of our namespaces.
const NOTES: &str = "/run/gabion-bench.notes";
/// What is not seen for so long after it was noted is not seen at all.
const PATIENCE: Duration = Duration::from_secs(3);

const LOCKS: Metric = Metric::of("lock hand-over between mounts", Unit::PerSecond);
const TURNS: Metric = Metric::of("one byte there and back, turns", Unit::PerSecond);
const STALE: Metric = Metric::of("turns with stale reads", Unit::Percent);
/// What each workload finds.
pub const LOCK: &[Metric] = &[LOCKS];
pub const BYTE: &[Metric] = &[TURNS, STALE];

/// A lock that goes from one mount to the other and back.
pub fn locks(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [a, b] = system.roots().map(|root| root.join("lock"));
    fs::write(&a, "x")?;
    let file = open(&a)?;
    let mut agent = Agent::start(&b)?;
    fcntl_lock(&file, FlockOperation::LockExclusive).context("cannot lock")?;
    let seen = agent.ask("try")?;
    fcntl_lock(&file, FlockOperation::Unlock)?;
    if seen != "held" {
        return Ok(Findings::note("a lock of one mount does not keep the other one out"));
    }
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < supplies.duration {
        lock_and_unlock(&file)?;
        agent.ask("lock")?;
        count += 2;
    }
    let seconds = start.elapsed().as_secs_f64();
    drop(agent);
    drop(file);
    fs::remove_file(&a)?;
    Ok(Findings::of([LOCKS.sample(f64::from(count), seconds)]))
}

/// A byte that is written on one mount until it is seen on the other, and so on.
pub fn byte(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let [a, b] = system.roots().map(|root| root.join("byte"));
    fs::write(&a, [0])?;
    let file = open(&a)?;
    let notes = Notes::begin(Path::new(NOTES))?;
    let mut agent = Agent::start(&b)?;
    agent.tell("pong")?;
    let mut tally = Tally::default();
    let start = Instant::now();
    let mut turn = 1;
    while start.elapsed() < supplies.duration {
        notes.write(&file, turn)?;
        if !tally.wait_for(&file, &notes, turn + 1)? {
            break;
        }
        turn += 2;
    }
    let seconds = start.elapsed().as_secs_f64();
    notes.stop()?;
    let theirs = Tally::parse(&agent.answer()?)?;
    drop((agent, file));
    fs::remove_file(&a)?;
    let (turns, stale) = (tally.turns + theirs.turns, tally.stale + theirs.stale);
    if tally.is_stuck || theirs.is_stuck {
        let patience = PATIENCE.as_secs();
        let note = format!("after {turns} turns a byte was not seen for {patience} s");
        let percent = 100.0 * (stale + 1) as f64 / (turns + 1) as f64;
        return Ok(Findings { samples: vec![STALE.value(percent)], note: Some(note) });
    }
    ensure!(turns > 0, "there was no turn");
    let percent = 100.0 * stale as f64 / turns as f64;
    Ok(Findings::of([TURNS.sample(turns as f64, seconds), STALE.value(percent)]))
}

/// What the agent does for [`byte`]; gives its tally.
pub fn pong(file: &File) -> Result<String> {
    let notes = Notes::existing(Path::new(NOTES))?;
    let mut tally = Tally::default();
    let mut turn = 1;
    while tally.wait_for(file, &notes, turn)? {
        notes.write(file, turn + 1)?;
        turn += 2;
    }
    Ok(tally.text())
}

/// What was completely written, and whether there are more turns, for both processes: two integers.
struct Notes(File);

impl Notes {
    fn begin(path: &Path) -> Result<Self> {
        fs::write(path, [0; 16])?;
        Self::existing(path)
    }

    fn existing(path: &Path) -> Result<Self> {
        Ok(Self(File::options().read(true).write(true).open(path)?))
    }

    fn read(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn noted(&self) -> Result<u64> {
        self.read(0)
    }

    fn is_stopped(&self) -> Result<bool> {
        Ok(self.read(8)? != 0)
    }

    /// Not where turns are noted: the other one may be about to note one.
    fn stop(&self) -> Result<()> {
        Ok(self.0.write_all_at(&1_u64.to_le_bytes(), 8)?)
    }

    fn write(&self, file: &File, turn: u64) -> Result<()> {
        file.write_all_at(&[turn as u8], 0)?;
        Ok(self.0.write_all_at(&turn.to_le_bytes(), 0)?)
    }
}

/// What a read shows.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// The turn's byte.
    Seen,
    /// Another one, and nobody has promised the turn's before the read began.
    NotYet,
    /// Another one, although the turn's was written before.
    Stale,
}

fn look(file: &File, notes: &Notes, turn: u64) -> Result<Look> {
    let noted = notes.noted()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    Ok(match byte[0] == turn as u8 {
        true => Look::Seen,
        false if noted < turn => Look::NotYet,
        false => Look::Stale,
    })
}

/// What a reader has met.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Bytes that it has seen.
    turns: u64,
    /// Of those, which some read before did not show although they were written.
    stale: u64,
    /// Whether it gave up.
    is_stuck: bool,
}

impl Tally {
    /// Reads until the turn's byte is seen; `false` if it never is, or there are no more turns.
    fn wait_for(&mut self, file: &File, notes: &Notes, turn: u64) -> Result<bool> {
        let mut stale_since = None;
        while !notes.is_stopped()? {
            match look(file, notes, turn)? {
                Look::Seen => {
                    self.turns += 1;
                    self.stale += u64::from(stale_since.is_some());
                    return Ok(true);
                }
                Look::NotYet => {}
                Look::Stale => {
                    let since = *stale_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > PATIENCE {
                        self.is_stuck = true;
                        notes.stop()?;
                    }
                }
            }
            // Daemons need a processor, too.
            std::thread::yield_now();
        }
        Ok(false)
    }

    fn text(&self) -> String {
        format!("{} {} {}", self.turns, self.stale, u8::from(self.is_stuck))
    }

    fn parse(text: &str) -> Result<Self> {
        let numbers: Vec<u64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [turns, stale, is_stuck] = numbers[..] else { bail!("{text:?} is no tally") };
        Ok(Self { turns, stale, is_stuck: is_stuck != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_stale_if_what_was_noted_before_it_is_not_seen() {
        let names = ["notes", "file"];
        let paths = names.map(|name| {
            std::env::temp_dir().join(format!("gabion-bench-{name}-{}", std::process::id()))
        });
        let notes = Notes::begin(&paths[0]).unwrap();
        fs::write(&paths[1], [0]).unwrap();
        let file = open(&paths[1]).unwrap();
        let look = |turn| look(&file, &notes, turn).unwrap();
        assert_eq!(look(1), Look::NotYet);
        // Written, and noted after that.
        notes.write(&file, 1).unwrap();
        assert_eq!(look(1), Look::Seen);
        // Written, as far as can be seen, before it is noted.
        file.write_all_at(&[2], 0).unwrap();
        assert_eq!(look(2), Look::Seen);
        notes.0.write_all_at(&3_u64.to_le_bytes(), 0).unwrap();
        assert_eq!(look(3), Look::Stale);
        let mut tally = Tally::default();
        assert!(tally.wait_for(&file, &notes, 2).unwrap());
        assert_eq!(tally, Tally { turns: 1, stale: 0, is_stuck: false });
        notes.stop().unwrap();
        assert!(!tally.wait_for(&file, &notes, 3).unwrap());
        paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    #[test]
    fn a_tally_survives_being_told() {
        let tally = Tally { turns: 12, stale: 3, is_stuck: true };
        assert_eq!(Tally::parse(&tally.text()).unwrap(), tally);
        assert!(Tally::parse("1 2").is_err());
    }
}
