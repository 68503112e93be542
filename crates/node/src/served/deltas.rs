//! What a backup has to read to follow from one snapshot to another, told to a client in parts.
//!
//! A part goes on where the one before it ended, in the order of objects' numbers: the trees are
//! not walked again up to there. Only an object that does not fit a part, such as a directory in
//! which very many names have changed, is looked at once more for each of its parts.

use std::collections::BTreeMap;

use gabion_base::ids::{Ino, SubvolId};
use gabion_fs::Result;
use gabion_link::errand::{DeltaPlace, DeltaRow, Report};
use gabion_link::wire::{PATH_BYTES_MAX, failure};

use super::Served;
use super::errands::{ROWS_MAX, part};
use crate::delta::{Delta, delta_from};

impl Served {
    /// What is different behind `after`, as much as one report tells.
    pub(super) fn delta(&self, old: SubvolId, new: SubvolId, after: DeltaPlace) -> Result<Report> {
        let (found, next) = delta_from(self.fs.map(), old, new, after.ino, ROWS_MAX)?;
        if found.touched.iter().any(|touched| touched.path.len() > PATH_BYTES_MAX) {
            return Err(failure("a path is too long to be told".to_owned()));
        }
        let all = rows(found);
        let known = all.iter().take_while(|(ino, _)| *ino == after.ino).count();
        let skip = known.min(usize::try_from(after.rows).unwrap_or(usize::MAX));
        let left = all[skip..].to_vec();
        let (told, is_cut) = part(left, |(_, row)| length(row));
        let mut next = next.map(|ino| DeltaPlace { ino, rows: 0 });
        if is_cut {
            let told = skip + told.len();
            let ino = all[told].0;
            let rows = all[..told].iter().rev().take_while(|row| row.0 == ino).count();
            next = Some(DeltaPlace { ino, rows: rows as u64 });
        }
        let rows = told.into_iter().map(|(_, row)| row).collect();
        Ok(Report::Delta { rows, next })
    }
}

/// Bytes of a row that are not the same for all.
fn length(row: &DeltaRow) -> usize {
    match row {
        DeltaRow::NameGone { name, .. } | DeltaRow::Name { name, .. } => name.len(),
        DeltaRow::Touched { path, .. } => path.len(),
        DeltaRow::Gone(_) | DeltaRow::Stretch { .. } => 0,
    }
}

/// A difference in the order of objects' numbers.
fn rows(delta: Delta) -> Vec<(Ino, DeltaRow)> {
    let mut of: BTreeMap<Ino, Vec<DeltaRow>> = BTreeMap::new();
    for ino in delta.gone {
        of.entry(ino).or_default().push(DeltaRow::Gone(ino));
    }
    for (dir, name) in delta.names_gone {
        of.entry(dir).or_default().push(DeltaRow::NameGone { dir, name });
    }
    for (dir, name, ino) in delta.names {
        of.entry(dir).or_default().push(DeltaRow::Name { dir, name, ino });
    }
    for touched in delta.touched {
        let ino = touched.ino;
        let rows = of.entry(ino).or_default();
        rows.push(DeltaRow::Touched { ino, path: touched.path, is_new: touched.is_new });
        rows.extend(touched.stretches.into_iter().map(|stretch| DeltaRow::Stretch {
            ino,
            from: stretch.from,
            to: stretch.to,
            is_hole: stretch.is_hole,
        }));
    }
    let rows = of.into_iter().flat_map(|(ino, rows)| rows.into_iter().map(move |row| (ino, row)));
    rows.collect()
}
