//! `gabion events`: shows the log of events, and follows it.
//!
//! While it follows, one thread reads and prints, and the first one waits for signals: either ends
//! the program.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gabion_base::event::{Record, Sequence, Severity};
use gabion_base::time::Timestamp;
use gabion_host::events::{Follower, Start};
use gabion_host::signals::{Signals, Wake};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, civil};
use serde_json::{Value, json};

use crate::args;
use crate::failure::{Failure, Result};
use crate::places;

/// How long the follower waits at once. It is woken earlier by whatever happens.
const WAIT: Duration = Duration::from_secs(60);
/// What stands before all lines of a record but the first.
const INDENT: &str = "                     ";

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With the record of this number.
    Number(Sequence),
    /// With what was published then.
    Time(Timestamp),
}

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(Sequence(number)));
        }
        let of = |time: jiff::Timestamp| {
            // Rounded down to a whole second, which is all that people give.
            Self::Time(Timestamp::new(time.as_second(), 0))
        };
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(of(time));
        }
        if let Ok(time) = text.parse::<civil::DateTime>() {
            let time = time.to_zoned(TimeZone::system()).map_err(|_| "there is no such time")?;
            return Ok(of(time.timestamp()));
        }
        let wrong = "it must be a number, a time like 2026-11-22T13:45 or a span like 2h";
        let span = text.parse::<SignedDuration>().map_err(|_| wrong)?;
        let now = jiff::Timestamp::now();
        now.checked_sub(span.abs()).map(of).map_err(|_| "there is no such time")
    }
}

/// Runs the command.
pub fn run(args: &args::Events) -> Result<()> {
    let failed = |error: &io::Error| Failure::of("cannot read the log of events", error);
    let folder = places::state().map_err(|error| failed(&error))?.join("events");
    let start = match args.since {
        Some(Since::Number(number)) => Start::At(number),
        None if args.follow => Start::Now,
        Some(Since::Time(_)) | None => Start::At(Sequence(0)),
    };
    // Before any thread is started, as threads inherit what is blocked.
    let signals = args.follow.then(Signals::block).transpose();
    let signals = signals.map_err(|error| Failure::of("cannot prepare for signals", &error))?;
    let mut follower = Follower::open(&folder, start).map_err(|error| failed(&error))?;
    let mut printer = Printer { as_json: args.json, since: args.since };
    match signals {
        None => printer.rest(&mut follower).map(drop).map_err(|error| failed(&error)),
        Some(signals) => follow(&signals, follower, printer)?.map_err(|error| failed(&error)),
    }
}

/// Prints until a signal arrives, nobody reads any more, or reading fails.
fn follow(
    signals: &Signals,
    mut follower: Follower,
    mut printer: Printer,
) -> Result<io::Result<()>> {
    let waker = signals.waker();
    let (ending, ended) = mpsc::channel();
    let print = move || {
        let end = loop {
            match printer.rest(&mut follower).and_then(|reader| {
                follower.wait(WAIT)?;
                Ok(reader)
            }) {
                Ok(Reader::Listening) => {}
                Ok(Reader::Gone) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // If nobody waits, the program ends already.
        let _ = ending.send(end);
        let _ = waker.wake();
    };
    let cannot = |error: io::Error| Failure::of("cannot follow events", &error);
    thread::Builder::new().name("follow".to_owned()).spawn(print).map_err(cannot)?;
    match signals.wait().map_err(cannot)? {
        Wake::Woken => Ok(ended.recv().unwrap_or(Ok(()))),
        Wake::Interrupt | Wake::Terminate | Wake::HangUp => Ok(Ok(())),
    }
}

/// Whether somebody still reads what is printed.
enum Reader {
    Listening,
    Gone,
}

struct Printer {
    as_json: bool,
    since: Option<Since>,
}

impl Printer {
    /// Prints all that is there.
    fn rest(&mut self, follower: &mut Follower) -> io::Result<Reader> {
        loop {
            let records = follower.read()?;
            if records.is_empty() {
                return Ok(Reader::Listening);
            }
            let mut out = io::stdout().lock();
            for record in records.iter().filter(|record| self.is_wanted(record)) {
                let text = if self.as_json { json_line(record) } else { text(record) };
                match writeln!(out, "{text}").and_then(|()| out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        return Ok(Reader::Gone);
                    }
                    printed => printed?,
                }
            }
        }
    }

    fn is_wanted(&self, record: &Record) -> bool {
        match self.since {
            Some(Since::Time(time)) => record.time >= time,
            Some(Since::Number(_)) | None => true,
        }
    }
}

/// A record with its answers, as an object on one line.
fn json_line(record: &Record) -> String {
    let line = serde_json::from_str(&record.to_line());
    let mut value: Value = line.expect("a record writes itself as JSON");
    let time = jiff::Timestamp::new(record.time.seconds, record.time.nanos as i32);
    value["time"] = time.map_or(Value::Null, |time| json!(time.to_string()));
    value["severity"] = json!(record.event.severity().to_string());
    value["object"] = json!(record.event.object());
    value["what"] = json!(record.event.what());
    value["meaning"] = json!(record.event.meaning());
    value["next_step"] = json!(record.event.next_step());
    value.to_string()
}

/// A record for people.
fn text(record: &Record) -> String {
    let event = &record.event;
    let mut text = format!("{}  {:8}  {event}", local(record.time), event.severity());
    if let Some(since) = event.since() {
        text += &format!("\n{INDENT}since {}", local(since));
    }
    if event.severity() > Severity::Note {
        text += &format!("\n{INDENT}{}\n{INDENT}{}", event.meaning(), event.next_step());
    }
    // Others may have put what they like into names and reasons.
    let shown = |letter: char| letter == '\n' || !letter.is_control();
    text.chars().map(|letter| if shown(letter) { letter } else { '\u{fffd}' }).collect()
}

/// A point in time where the user is.
fn local(time: Timestamp) -> String {
    match jiff::Timestamp::from_second(time.seconds) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("{} s after 1970", time.seconds),
    }
}

#[cfg(test)]
mod tests {
    use gabion_base::event::{Event, Source, VolumeEvent};

    use super::*;

    #[test]
    fn since_is_a_number_a_time_or_a_span() {
        assert_eq!("12".parse(), Ok(Since::Number(Sequence(12))));
        let time = Since::Time(Timestamp::new(1_795_355_101, 0));
        assert_eq!("2026-11-22T13:45:01Z".parse(), Ok(time));
        for text in ["2026-11-22T13:45", "2026-11-22", "2h", "1h 30m", "90s"] {
            assert!(matches!(text.parse(), Ok(Since::Time(_))), "{text}");
        }
        for text in ["", "yesterday", "-", "12x"] {
            assert!(text.parse::<Since>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_others_put_into_a_name_does_not_reach_the_terminal() {
        let event = VolumeEvent::Unavailable { reason: "\u{1b}[2J\r".to_owned() };
        let event = Event::Volume { volume: "tank\nx".to_owned(), event };
        let source = Source { program: "gabion".to_owned(), pid: 1 };
        let time = Timestamp::new(i64::MAX, 0);
        let record = Record { sequence: Sequence(1), time, source, event };
        let text = text(&record);
        assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
        assert_eq!(json_line(&record).lines().count(), 1);
    }
}
