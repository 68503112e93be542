//! The figures as tables, and as JSON.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::args::Size;
use crate::figures::{Figures, Metric, Unit};
use crate::table::{Table, rate, verdict};

/// What ratios are of.
const OURS: &str = "gabion";

/// A run that is over.
pub struct Report<'a> {
    pub figures: &'a Figures,
    /// Their columns, with [`OURS`] as the first one.
    pub systems: &'a [&'static str],
    pub notes: &'a [String],
    pub left_out: &'a [String],
}

impl Report<'_> {
    /// Tables: figures, and ratios, of those with caches and of those without.
    pub fn text(&self) -> String {
        let (uncached, cached): (Vec<_>, Vec<_>) =
            self.systems.iter().copied().partition(|name| name.ends_with("-uncached"));
        let all: Vec<_> = self.figures.metrics().iter().collect();
        let mut text = self.tables("link", &all, &cached[1..]);
        // Of these not everything is measured.
        let about_both: Vec<_> = all
            .into_iter()
            .filter(|metric| {
                uncached.iter().any(|name| self.figures.rounds(metric, name).is_some())
            })
            .collect();
        if !about_both.is_empty() {
            text += &self.tables("caches off", &about_both, &uncached);
        }
        for note in self.notes {
            text += &format!("{note}\n");
        }
        for why in self.left_out {
            text += &format!("left out: {why}\n");
        }
        text
    }

    /// Our figures beside those of some peers, and how many times as good ours are.
    fn tables(&self, title: &str, rows: &[&Metric], peers: &[&'static str]) -> String {
        let mut figures = Table::new(&[&[title, "better", OURS][..], peers].concat());
        let mut ratios = Table::new(&[&["gabion to"][..], peers].concat());
        for metric in rows {
            let figure = |name: &&'static str| rate(self.figures.rate(metric, name), metric.unit);
            let ratio = |peer: &&'static str| self.figures.ratio(metric, OURS, peer);
            let mut row = vec![metric.name.to_owned(), direction(metric.unit).to_owned()];
            row.extend([&OURS].into_iter().chain(peers).map(figure));
            figures.row(row);
            let mut row = vec![metric.name.to_owned()];
            row.extend(peers.iter().map(|peer| verdict(ratio(peer), None).trim_end().to_owned()));
            ratios.row(row);
        }
        match peers {
            [] => format!("{}\n", figures.text()),
            _ => format!("{}\n{}\n", figures.text(), ratios.text()),
        }
    }

    /// All that was measured, in all rounds.
    pub fn json(&self, size: Size, rounds: u32) -> Result<String> {
        let rows: Vec<_> = self.figures.metrics().iter().map(|metric| self.row(metric)).collect();
        let all = json!({
            "size": match size { Size::Small => "small", Size::Full => "full" },
            "rounds": rounds,
            "systems": self.systems,
            "rows": rows,
            "notes": self.notes,
            "left_out": self.left_out,
        });
        Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
    }

    fn row(&self, metric: &Metric) -> Value {
        let mut figures = Map::new();
        let mut ratios = Map::new();
        for name in self.systems {
            let Some(rounds) = self.figures.rounds(metric, name) else { continue };
            let rounds: Vec<_> = rounds.values().copied().collect();
            let median = self.figures.rate(metric, name);
            figures.insert((*name).to_owned(), json!({ "median": median, "rounds": rounds }));
            if let Some(ratio) = self.figures.ratio(metric, OURS, name).filter(|_| *name != OURS) {
                ratios.insert((*name).to_owned(), ratio.into());
            }
        }
        json!({
            "name": metric.name,
            "unit": unit(metric.unit),
            "better": direction(metric.unit),
            "figures": figures,
            "gabion_to": ratios,
        })
    }
}

const fn direction(unit: Unit) -> &'static str {
    if unit.is_less_better() { "less" } else { "more" }
}

const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::PerSecond => "1/s",
        Unit::MebibytesPerSecond => "MiB/s",
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Times => "x",
        Unit::Percent => "%",
    }
}
