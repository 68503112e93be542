//! A scrub of an open map, in the words of the control protocol.

use std::ops::ControlFlow;
use std::time::Instant;

use gabion_base::BLOCK_SIZE;
use gabion_map::{LocalMap, audit, scrub};
use gabion_node::LocalFs;

use crate::control::wire::{Allocation, Finding, Progress, Report};
use crate::failure::chain;

/// Verifies everything in a filesystem that is in use.
pub fn scrub_in_use(
    fs: &LocalFs,
    target: &str,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, String> {
    // What was written up to now is to be covered; a map that stopped is checked as it is.
    if !fs.is_read_only() && fs.map().stopped().is_none() {
        fs.map().sync().map_err(|error| chain(&error))?;
    }
    scrub(fs.map(), target, watch)
}

/// Compares the map of blocks in use with what is reachable, in a filesystem that is in use.
pub fn audit_in_use(fs: &LocalFs, target: &str) -> Result<Allocation, String> {
    if !fs.is_read_only() && fs.map().stopped().is_none() {
        fs.map().sync().map_err(|error| chain(&error))?;
    }
    audit(fs.map(), target)
}

/// Compares the map of blocks in use with what is reachable.
pub fn audit(map: &LocalMap, target: &str) -> Result<Allocation, String> {
    let audit = audit::audit(map).map_err(|error| chain(&error))?;
    let bytes =
        |runs: &[(u64, u64)]| runs.iter().map(|(_, count)| count).sum::<u64>() * BLOCK_SIZE as u64;
    Ok(Allocation {
        target: target.to_owned(),
        used_bytes: audit.used * BLOCK_SIZE as u64,
        leaked_bytes: bytes(&audit.leaked),
        missing_bytes: bytes(&audit.missing),
        doubled_bytes: bytes(&audit.doubled),
    })
}

/// Verifies everything in `map`. `watch` is called often and may stop it.
pub fn scrub(
    map: &LocalMap,
    target: &str,
    watch: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, String> {
    let started = Instant::now();
    let report = scrub::scrub(map, &mut |progress| {
        let (checked_bytes, total_bytes) = (progress.bytes(), progress.total_bytes);
        watch(&Progress { checked_bytes, total_bytes })
    });
    let report = report.map_err(|error| error.to_string())?;
    let findings = report.findings.iter().map(|finding| Finding {
        subvolume: finding.subvol.0,
        inode: finding.key.map(|key| key.ino.0),
        what: finding.error.to_string(),
    });
    Ok(Report {
        target: target.to_owned(),
        checked_bytes: report.progress.bytes(),
        nodes: report.progress.nodes,
        items: report.progress.items,
        findings: findings.collect(),
        more_findings: report.more,
        mended_blocks: report.mended,
        stopped: report.stopped,
        seconds: started.elapsed().as_secs_f64(),
    })
}
