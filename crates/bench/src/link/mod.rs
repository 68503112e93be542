//! One filesystem mounted twice, ours and those of others that several machines can share.
//!
//! Each round does all workloads in their order, and each workload on all systems in turn before
//! the next one begins; the order of the systems rotates. Systems whose caches are off take part
//! only where it counts what one mount sees of the other.
//!
//! A peer at which something fails, or that does not do what a figure would be about, has no figure
//! there and a note instead. Gabion and ext4 may not fail.
//!
//! This program runs twice: outside as what the user has started, which waits and cleans up, and
//! inside namespaces as what measures. There it starts itself once more for each workload that
//! needs a second process; see [`agent`].

pub mod agent;
mod bytes;
mod names;
mod report;
mod tree;
mod turns;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gabion_base::sync::Mutex;

use self::tree::Tree;
use crate::args::{self, Size};
use crate::figures::{Figures, Metric, Sample};
use crate::namespace;
use crate::systems::Scratch;
use crate::systems::shared::{Shared, choose, prepare, start};

/// Who may not fail.
const RELIABLE: [&str; 2] = ["gabion", "ext4"];
/// How long a workload may take on one system.
const WORKLOAD_MAX: Duration = Duration::from_secs(900);

/// What workloads need besides a filesystem.
pub struct Supplies {
    /// A tree of files.
    tree: Tree,
    /// Files of the directory of many.
    names: usize,
    /// Length of the large file, in MiB.
    stream: u64,
    /// Length of the file that is written by two, in MiB; even.
    halves: u64,
    /// Appends, each with its fsync.
    appends: usize,
    /// How long turns are taken.
    duration: Duration,
}

impl Supplies {
    fn make(size: Size, scratch: &Path) -> Result<Self> {
        let tree = |files| Tree::make(scratch, files);
        Ok(match size {
            Size::Small => Self {
                tree: tree(120)?,
                names: 300,
                stream: 8,
                halves: 4,
                appends: 25,
                duration: Duration::from_millis(200),
            },
            Size::Full => Self {
                tree: tree(1200)?,
                names: 10_000,
                stream: 256,
                halves: 128,
                appends: 500,
                duration: Duration::from_secs(2),
            },
        })
    }

    fn text(&self) -> String {
        format!(
            "a tree of {} files with {:.1} MiB; {} names; files of {} and {} MiB; {} appends",
            self.tree.files,
            self.tree.bytes as f64 / f64::from(1 << 20),
            self.names,
            self.stream,
            self.halves,
            self.appends,
        )
    }
}

/// Length of each image, in MiB.
const fn image(size: Size) -> u64 {
    match size {
        Size::Small => 512,
        Size::Full => 2048,
    }
}

/// What a workload has to say.
#[derive(Default)]
pub struct Findings {
    samples: Vec<Sample>,
    /// Why there are none.
    note: Option<String>,
}

impl Findings {
    fn of<const COUNT: usize>(samples: [Sample; COUNT]) -> Self {
        Self { samples: samples.into(), note: None }
    }

    fn note(note: impl Into<String>) -> Self {
        Self { samples: Vec::new(), note: Some(note.into()) }
    }
}

/// Something that is done to a filesystem and measured.
struct Workload {
    name: &'static str,
    run: Measure,
    /// What it finds if all goes well.
    metrics: &'static [Metric],
    /// Whether it is about what one mount sees of the other.
    is_about_both: bool,
}

/// In an order in which each finds what it needs made by an earlier one; alone it makes it itself.
const WORKLOADS: &[Workload] = &[
    about_one("untar", tree::unpack, tree::UNPACKED),
    about_one("warm", tree::warm, tree::WARM),
    about_one("programs", tree::programs, tree::PROGRAMS),
    about_one("cold", tree::cold, tree::COLD),
    about_one("names", names::create_and_unlink, names::BOTH),
    about_one("stream", bytes::stream, bytes::STREAM),
    about_one("fsync", bytes::appends, bytes::APPENDS),
    about_both("locks", turns::locks, turns::LOCK),
    about_both("byte", turns::byte, turns::BYTE),
    about_both("halves", bytes::halves, bytes::HALVES),
];

type Measure = fn(&mut dyn Shared, &Supplies) -> Result<Findings>;

const fn about_one(name: &'static str, run: Measure, metrics: &'static [Metric]) -> Workload {
    Workload { name, run, metrics, is_about_both: false }
}

const fn about_both(name: &'static str, run: Measure, metrics: &'static [Metric]) -> Workload {
    Workload { name, run, metrics, is_about_both: true }
}

/// Runs the command.
pub fn run(args: &args::Link) -> Result<()> {
    if args.only.iter().any(|name| name == "list") {
        WORKLOADS.iter().for_each(|workload| println!("{}", workload.name));
        return Ok(());
    }
    // What can be wrong without anything being started, outside.
    let workloads = chosen(&args.only)?;
    let mut peers = choose(&args.peers)?;
    let gabion = binary(args)?;
    let Some(folder) = namespace::folder() else {
        let scratch = Scratch::new(&args.data)?;
        let code = namespace::supervise(scratch.path())?;
        scratch.remove_patiently();
        std::process::exit(code);
    };
    namespace::end_with_input();
    namespace::leave_others(&[&folder, &gabion])?;
    // Where it will be, and not what is mounted over that.
    let json = match &args.json {
        Some(path) => {
            let file = File::create(path);
            Some(file.with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    prepare(&folder)?;
    let supplies = Supplies::make(args.size, &folder)?;
    println!("{}", supplies.text());
    let are_named = !args.peers.is_empty();
    let mut systems = start(&mut peers, are_named, &folder, image(args.size), gabion)?;
    let mut run =
        Run { watchdog: Watchdog::start(), figures: Figures::default(), notes: Vec::new() };
    for workload in &workloads {
        workload.metrics.iter().for_each(|metric| run.figures.expect(*metric));
    }
    let begin = Instant::now();
    for round in 0..args.rounds {
        run.round(round, &workloads, &mut systems, &supplies)?;
    }
    println!("{} rounds in {:.0} s", args.rounds, begin.elapsed().as_secs_f64());
    let names: Vec<_> = systems.iter().map(|system| system.name()).collect();
    let report = report::Report {
        figures: &run.figures,
        systems: &names,
        notes: &run.notes,
        left_out: &peers.left_out,
    };
    print!("{}", report.text());
    if let Some(mut file) = json {
        file.write_all(report.json(args.size, args.rounds)?.as_bytes())?;
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    let is_known = |name: &&String| WORKLOADS.iter().any(|workload| workload.name == **name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        let known: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        bail!("there is no workload {unknown:?}; there are: {}", known.join(" "));
    }
    let is_chosen =
        |workload: &&Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(WORKLOADS.iter().filter(is_chosen).collect())
}

fn binary(args: &args::Link) -> Result<PathBuf> {
    let path = match &args.gabion {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gabion"),
    };
    path.canonicalize().with_context(|| {
        format!("no binary at {}: build it, or name one by --gabion", path.display())
    })
}

/// Ends everything if a workload takes too long: a call on a mount that hangs has no end of its
/// own, and outside is somebody who cleans up.
struct Watchdog(Arc<Mutex<Option<(Instant, String)>>>);

impl Watchdog {
    fn start() -> Self {
        let begun = Arc::new(Mutex::new(None));
        let watched = Arc::clone(&begun);
        thread::spawn(move || {
            loop {
                thread::sleep(Duration::from_secs(1));
                let begun: Option<(Instant, String)> = watched.lock().clone();
                if let Some((_, what)) = begun.filter(|(at, _)| at.elapsed() > WORKLOAD_MAX) {
                    eprintln!("{what} does not end");
                    std::process::exit(1);
                }
            }
        });
        Self(begun)
    }

    fn watch(&self, what: String) {
        *self.0.lock() = Some((Instant::now(), what));
    }
}

/// A run, as far as it has come.
struct Run {
    watchdog: Watchdog,
    figures: Figures,
    /// Sentences about peers.
    notes: Vec<String>,
}

impl Run {
    fn round(
        &mut self,
        round: u32,
        workloads: &[&Workload],
        systems: &mut [Box<dyn Shared>],
        supplies: &Supplies,
    ) -> Result<()> {
        for (place, workload) in workloads.iter().enumerate() {
            println!("round {}: {}", round + 1, workload.name);
            let count = systems.len();
            for turn in 0..count {
                let system = &mut *systems[(round as usize + place + turn) % count];
                if workload.is_about_both || !system.name().ends_with("-uncached") {
                    self.measure(round, workload, system, supplies)?;
                }
            }
        }
        Ok(())
    }

    fn measure(
        &mut self,
        round: u32,
        workload: &Workload,
        system: &mut dyn Shared,
        supplies: &Supplies,
    ) -> Result<()> {
        let name = system.name();
        self.watchdog.watch(format!("{} on {name}", workload.name));
        let measured = system.sync().and_then(|()| (workload.run)(system, supplies));
        let findings = match measured {
            Err(error) if RELIABLE.contains(&name) => {
                eprintln!("{}", system.last_words());
                return Err(error.context(format!("{} on {name}", workload.name)));
            }
            Err(error) => Findings::note(format!("{error:#}")),
            Ok(findings) => findings,
        };
        for sample in findings.samples {
            self.figures.add(name, round, sample);
        }
        if let Some(note) = findings.note {
            let note = format!("{name}, {}: {note}", workload.name);
            eprintln!("{note}");
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        Ok(())
    }
}
