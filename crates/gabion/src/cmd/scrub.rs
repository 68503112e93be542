//! `gabion scrub`: shows how far a scrub is and what it finds. The daemon does it for what is
//! mounted, the server for what is served; what nobody has in use is read here.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::status::{self, Subject, User};
use crate::args;
use crate::check;
use crate::control::wire::{Allocation, Progress, Reply, Report, Request};
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::size::Size;
use crate::volumes::Place;

/// What others are told who want a volume meanwhile.
const PROGRAM: &str = "gabion scrub";
/// How long a daemon may be silent during a scrub.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a comparison of the map of blocks may take: it reads all nodes.
const PATIENCE_FOR_AUDIT: Duration = Duration::from_secs(3600);
/// Least time between two messages of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: &args::Scrub) -> Result<()> {
    let mut display = if args.json { Display::Json } else { Display::Bar(bar()) };
    let report = match status::subject(&args.subject)? {
        Subject::InUse(user) => of_user(&user, &mut display)?,
        Subject::Target(place) => of_target(&place, &mut display)?,
    };
    display.report(&report)?;
    let allocation = match args.allocation {
        true => Some(audit(&args.subject)?),
        false => None,
    };
    if let Some(allocation) = &allocation {
        display.allocation(allocation)?;
    }
    let target = &report.target;
    if report.damage() > 0 {
        let count = report.damage();
        return Err(Failure::new(format!("{target}: {count} places are damaged"))
            .next("Copy what is still readable to another disk, and replace this one.")
            .exit(Exit::Damaged));
    }
    if let Some(Allocation { leaked_bytes, missing_bytes, doubled_bytes, .. }) =
        allocation.filter(|allocation| !allocation.is_exact())
    {
        return Err(Failure::new(format!(
            "{target}: the map of blocks in use is wrong: {leaked_bytes} bytes are marked and not \
             needed, {missing_bytes} needed and not marked, {doubled_bytes} used twice"
        ))
        .exit(Exit::Damaged));
    }
    if report.stopped {
        return Err(Failure::new(format!("{target}: the scrub was stopped before its end")));
    }
    Ok(())
}

fn audit(subject: &Path) -> Result<Allocation> {
    let user = match status::subject(subject)? {
        Subject::InUse(user) => user,
        Subject::Target(place) => {
            let audit = |map: &_| check::audit(map, &place.name()).map_err(Failure::new);
            return status::with_map(&place, PROGRAM, audit);
        }
    };
    let ask = || -> io::Result<Reply> {
        let mut connection = user.connect()?;
        connection.ask(Request::Audit, PATIENCE_FOR_AUDIT)?;
        connection.reply()
    };
    match ask() {
        Ok(Reply::Allocation(allocation)) => Ok(allocation),
        Ok(Reply::Error { message }) => Err(Failure::new(format!("{}: {message}", user.name()))),
        Ok(other) => Err(Failure::new(format!("the daemon answered {other:?}"))),
        Err(error) => Err(user.unreachable(&error)),
    }
}

fn of_user(user: &User, display: &mut Display) -> Result<Report> {
    let mut ask = || -> io::Result<Result<Report>> {
        let mut connection = user.connect()?;
        connection.ask(Request::Scrub, PATIENCE)?;
        loop {
            match connection.reply()? {
                Reply::Progress(progress) => {
                    if let Err(failure) = display.progress(&progress) {
                        return Ok(Err(failure));
                    }
                }
                Reply::Report(report) => return Ok(Ok(report)),
                Reply::Error { message } => {
                    let name = user.name();
                    return Ok(Err(Failure::new(format!("cannot scrub {name}: {message}"))));
                }
                other => {
                    return Ok(Err(Failure::new(format!("the daemon answered {other:?}"))));
                }
            }
        }
    };
    ask().unwrap_or_else(|error| Err(user.unreachable(&error)))
}

fn of_target(place: &Place, display: &mut Display) -> Result<Report> {
    let mut shown: Option<Instant> = None;
    let mut printed = Ok(());
    let watch = &mut |progress: &Progress| {
        if shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
            shown = Some(Instant::now());
            printed = display.progress(progress);
        }
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let scrub = |map: &_| check::scrub(map, &place.name(), watch).map_err(Failure::new);
    let report = status::with_map(place, PROGRAM, scrub)?;
    printed.map(|()| report)
}

/// Where progress and results go.
enum Display {
    Json,
    Bar(ProgressBar),
}

fn bar() -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = ProgressBar::new(0);
    let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, \
                    {binary_bytes_per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
    bar
}

impl Display {
    fn progress(&mut self, progress: &Progress) -> Result<()> {
        match self {
            Self::Json => print_json(&Reply::Progress(*progress)),
            Self::Bar(bar) => {
                // New data may be checked that was not there when the total was taken.
                bar.set_length(progress.total_bytes.max(progress.checked_bytes));
                bar.set_position(progress.checked_bytes);
                Ok(())
            }
        }
    }

    fn allocation(&mut self, allocation: &Allocation) -> Result<()> {
        match self {
            Self::Json => print_json(&Reply::Allocation(allocation.clone())),
            Self::Bar(_) if !allocation.is_exact() => Ok(()),
            Self::Bar(_) => print::line(format_args!(
                "{}: {} in use, which is what is needed, to the block",
                allocation.target,
                Size(allocation.used_bytes)
            )),
        }
    }

    fn report(&mut self, report: &Report) -> Result<()> {
        match self {
            Self::Json => print_json(&Reply::Report(report.clone())),
            Self::Bar(bar) => {
                bar.finish_and_clear();
                print_text(report)
            }
        }
    }
}

fn print_json(reply: &Reply) -> Result<()> {
    print::line(serde_json::to_string(reply).expect("numbers and text can always be written"))
}

fn print_text(report: &Report) -> Result<()> {
    for finding in &report.findings {
        print::line(format_args!("damaged: {}", finding.what))?;
    }
    if report.more_findings > 0 {
        print::line(format_args!("damaged: {} more places", report.more_findings))?;
    }
    if report.mended_blocks > 0 {
        let blocks = report.mended_blocks;
        print::line(format_args!("put right: {blocks} blocks of copies, from other copies"))?;
    }
    let rate = Size((report.checked_bytes as f64 / report.seconds.max(0.001)) as u64);
    let damage = match report.damage() {
        0 => "nothing".to_owned(),
        count => format!("{count} places"),
    };
    print::line(format_args!(
        "{}: {} compared with their checksums in {:.1} s ({rate}/s), {damage} damaged",
        report.target,
        Size(report.checked_bytes),
        report.seconds,
    ))
}
