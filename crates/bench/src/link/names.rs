//! Many files of one directory.

use std::fs::{self, File};
use std::time::Instant;

use anyhow::Result;

use super::{Findings, Supplies};
use crate::figures::{Metric, Unit};
use crate::systems::shared::Shared;

const CREATE: Metric = Metric::of("create in one directory, files", Unit::PerSecond);
const UNLINK: Metric = Metric::of("unlink them, files", Unit::PerSecond);
/// What the workload finds.
pub const BOTH: &[Metric] = &[CREATE, UNLINK];

/// Makes empty files, and removes them when they are on the disk.
pub fn create_and_unlink(system: &mut dyn Shared, supplies: &Supplies) -> Result<Findings> {
    let top = system.roots()[0].join("many");
    fs::create_dir(&top)?;
    let count = supplies.names;
    let paths: Vec<_> = (0..count).map(|number| top.join(format!("file-{number:06}"))).collect();
    let start = Instant::now();
    for path in &paths {
        File::create_new(path)?;
    }
    let created = start.elapsed().as_secs_f64();
    system.sync()?;
    let start = Instant::now();
    for path in &paths {
        fs::remove_file(path)?;
    }
    let unlinked = start.elapsed().as_secs_f64();
    fs::remove_dir(&top)?;
    let count = count as f64;
    Ok(Findings::of([CREATE.sample(count, created), UNLINK.sample(count, unlinked)]))
}
