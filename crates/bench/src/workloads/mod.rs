//! What is done to mounted filesystems.
//!
//! A [`Workload`] makes what it needs, which is not measured, and measures one thing or a few in a
//! row. Each round does all workloads in their order, and each workload on all systems in turn
//! before the next one begins; the order of the systems rotates. Everything is on disk before
//! each begins.

mod bytes;
mod durable;
mod names;
pub mod tree;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::tree::Tree;
use crate::args;
use crate::figures::{Figures, Sample, Unit};
use crate::systems::{Ext4, Gabion, Mirror, Passthrough, Scratch, System, compile};
use crate::table::{Table, rate, verdict};

/// Mount options of Gabion with little memory.
const SMALL_CACHE: &str = "cache=16M";
/// What the daemon may have at its peak, in MiB, by default and with [`SMALL_CACHE`].
const MEMORY_TARGETS: [u64; 2] = [256, 64];

/// What workloads need besides a filesystem.
pub struct Supplies {
    /// A tree of real files.
    pub tree: Tree,
    /// Length of the file that is streamed, in MiB.
    pub stream: u64,
}

/// Something that is done to a filesystem and measured.
struct Workload {
    name: &'static str,
    run: fn(&mut dyn System, &Supplies) -> Result<Vec<Sample>>,
}

/// In an order in which each finds what it needs made by an earlier one; alone it makes it itself.
const WORKLOADS: &[Workload] = &[
    Workload { name: "untar", run: tree::unpack },
    Workload { name: "walk", run: tree::walk_warm },
    Workload { name: "reread", run: tree::read_warm },
    Workload { name: "coldtree", run: tree::cold },
    Workload { name: "rmtree", run: tree::remove },
    Workload { name: "fsync1", run: durable::one_writer },
    Workload { name: "fsync4", run: durable::four_writers },
    Workload { name: "stream", run: bytes::stream },
    Workload { name: "randwrite", run: bytes::random_writes },
    Workload { name: "randread", run: bytes::random_reads },
    Workload { name: "cached", run: bytes::cached },
    Workload { name: "names", run: names::change },
    Workload { name: "coldstat", run: names::cold },
    Workload { name: "readdir", run: names::list },
];

/// Runs the command.
pub fn run(args: &args::Mount) -> Result<()> {
    if args.only.iter().any(|name| name == "list") {
        WORKLOADS.iter().for_each(|workload| println!("{}", workload.name));
        return Ok(());
    }
    let workloads = chosen(&args.only)?;
    let scratch = Scratch::new(&args.dir)?;
    let tree = Tree::pack(args.tree.as_deref(), scratch.path())?;
    println!("tree: {} files, {} MiB", tree.files, tree.bytes >> 20);
    let supplies = Supplies { tree, stream: args.stream };
    let mut systems = systems(args, scratch.path())?;
    let mut figures = Figures::default();
    let start = Instant::now();
    for round in 0..args.rounds {
        for (place, workload) in workloads.iter().enumerate() {
            for turn in 0..systems.len() {
                let first = round as usize + place;
                let count = systems.len();
                let system = &mut *systems[(first + turn) % count];
                measure(system, workload, &supplies, |name, sample| {
                    figures.add(name, round, sample);
                })?;
            }
        }
    }
    println!("{} rounds in {:.0} s", args.rounds, start.elapsed().as_secs_f64());
    print!("{}", report(&figures));
    for system in &systems {
        report_memory(&**system, "", MEMORY_TARGETS[0]);
    }
    drop(systems);
    if wants(args, "gabion") && !args.no_small_cache {
        small_cache(args, &workloads, &supplies, scratch.path())?;
    }
    Ok(())
}

fn measure(
    system: &mut dyn System,
    workload: &Workload,
    supplies: &Supplies,
    mut add: impl FnMut(&'static str, Sample),
) -> Result<()> {
    let name = system.name();
    system.sync()?;
    let run = (workload.run)(system, supplies);
    for sample in run.with_context(|| format!("{} on {name}", workload.name))? {
        add(name, sample);
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    let known = || WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(" ");
    if let Some(unknown) =
        names.iter().find(|name| WORKLOADS.iter().all(|workload| workload.name != **name))
    {
        bail!("there is no workload {unknown:?}; there are: {}", known());
    }
    let is_chosen =
        |workload: &&Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(WORKLOADS.iter().filter(is_chosen).collect())
}

fn wants(args: &args::Mount, system: &str) -> bool {
    args.systems.is_empty() || args.systems.iter().any(|name| name == system)
}

fn binary(args: &args::Mount) -> Result<PathBuf> {
    let path = match &args.gabion {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("gabion"),
    };
    path.canonicalize().with_context(|| {
        format!("no binary at {}: build it, or name one by --gabion", path.display())
    })
}

fn systems(args: &args::Mount, scratch: &Path) -> Result<Vec<Box<dyn System>>> {
    let mut systems: Vec<Box<dyn System>> = Vec::new();
    if wants(args, "ext4") {
        systems.push(Box::new(Ext4::new(scratch, args.image)?));
    }
    if wants(args, "passthrough") {
        let binary = match &args.passthrough {
            Some(path) => path.canonicalize()?,
            None => compile(scratch)?,
        };
        systems.push(Box::new(Passthrough::new(scratch, args.image, binary)?));
    }
    if wants(args, "gabion") {
        let options = args.options.clone();
        systems.push(Box::new(Gabion::new(scratch, args.image, binary(args)?, options)?));
    }
    if args.systems.iter().any(|name| name == "mirror") {
        systems.push(Box::new(Mirror::new(scratch, args.image, binary(args)?)?));
    }
    if systems.is_empty() {
        bail!("there is no such system; there are: ext4 passthrough gabion mirror");
    }
    Ok(systems)
}

/// Everything once more, once, with little memory: for the memory, not for the figures.
fn small_cache(
    args: &args::Mount,
    workloads: &[&Workload],
    supplies: &Supplies,
    scratch: &Path,
) -> Result<()> {
    let options = Some(SMALL_CACHE.to_owned());
    let mut system = Gabion::new(scratch, args.image, binary(args)?, options)?;
    for workload in workloads {
        measure(&mut system, workload, supplies, |_, _| {})?;
    }
    report_memory(&system, SMALL_CACHE, MEMORY_TARGETS[1]);
    Ok(())
}

fn report(figures: &Figures) -> String {
    let [ext4, passthrough, gabion, mirror] = ["ext4", "passthrough", "gabion", "mirror"];
    if figures.metrics().iter().any(|metric| figures.rate(metric, mirror).is_some()) {
        return report_mirror(figures, gabion, mirror);
    }
    let mut table = Table::new(&["mount", ext4, passthrough, gabion, "to ext4", "to passthrough"]);
    for metric in figures.metrics() {
        table.row(vec![
            metric.name.to_owned(),
            rate(figures.rate(metric, ext4), metric.unit),
            rate(figures.rate(metric, passthrough), metric.unit),
            rate(figures.rate(metric, gabion), metric.unit),
            verdict(figures.ratio(metric, gabion, ext4), metric.to_ext4),
            verdict(figures.ratio(metric, gabion, passthrough), metric.to_passthrough),
        ]);
    }
    table.text()
}

/// What a mirror of two targets costs beside a bare image.
fn report_mirror(figures: &Figures, gabion: &'static str, mirror: &'static str) -> String {
    let mut table = Table::new(&["mount", gabion, mirror, "to gabion"]);
    for metric in figures.metrics() {
        let target = match metric.name {
            _ if metric.unit == Unit::MebibytesPerSecond => Some(0.6),
            name if name.contains("fsync") => Some(0.5),
            _ => None,
        };
        table.row(vec![
            metric.name.to_owned(),
            rate(figures.rate(metric, gabion), metric.unit),
            rate(figures.rate(metric, mirror), metric.unit),
            verdict(figures.ratio(metric, mirror, gabion), target),
        ]);
    }
    table.text()
}

fn report_memory(system: &dyn System, options: &str, target: u64) {
    let Some(bytes) = system.peak_memory() else { return };
    let mark = if bytes >> 20 > target { ">" } else { "<" };
    let name = system.name();
    println!("peak memory of {name} {options}: {} MiB {mark} {target}", bytes >> 20);
}
