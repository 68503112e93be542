//! What is measured, what it should be, and what it was.
//!
//! All figures are rates, so more is better and every ratio reads alike. A ratio is taken within a
//! round, where both systems met the same noise, and the median of the rounds is what counts.

use std::collections::BTreeMap;

/// What a rate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations (or files, or entries) in a second.
    PerSecond,
    /// 2^20 bytes in a second.
    MebibytesPerSecond,
}

/// A thing to be measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// For people, unique.
    pub name: &'static str,
    /// Of its figures.
    pub unit: Unit,
    /// The least ratio to ext4 that is aimed at.
    pub to_ext4: Option<f64>,
    /// The least ratio to the passthrough that is aimed at.
    pub to_passthrough: Option<f64>,
}

impl Metric {
    /// Operations in a second, at least those of the passthrough.
    pub const fn operations(name: &'static str) -> Self {
        Self { name, unit: Unit::PerSecond, to_ext4: None, to_passthrough: Some(1.0) }
    }

    /// Bytes in a second, at least those of the passthrough.
    pub const fn bytes(name: &'static str) -> Self {
        Self { unit: Unit::MebibytesPerSecond, ..Self::operations(name) }
    }

    /// The same with a target ratio to ext4.
    pub const fn of_ext4(self, ratio: f64) -> Self {
        Self { to_ext4: Some(ratio), ..self }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Of what.
    pub metric: Metric,
    /// The rate.
    pub rate: f64,
}

impl Metric {
    /// A measurement of this.
    pub fn sample(self, count: f64, seconds: f64) -> Sample {
        Sample { metric: self, rate: count / seconds }
    }
}

/// All measurements of a run.
#[derive(Default)]
pub struct Figures {
    metrics: Vec<Metric>,
    /// Rates by metric, system and round.
    rates: BTreeMap<(&'static str, &'static str), BTreeMap<u32, f64>>,
}

impl Figures {
    /// Adds one. Metrics are shown in the order in which they came first.
    pub fn add(&mut self, system: &'static str, round: u32, sample: Sample) {
        if !self.metrics.iter().any(|metric| metric.name == sample.metric.name) {
            self.metrics.push(sample.metric);
        }
        self.rates.entry((sample.metric.name, system)).or_default().insert(round, sample.rate);
    }

    /// What was measured.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The median rate of a system.
    pub fn rate(&self, metric: &Metric, system: &'static str) -> Option<f64> {
        let rates = self.rates.get(&(metric.name, system))?;
        median(rates.values().copied().collect())
    }

    /// The median over the rounds of the ratio of two systems.
    pub fn ratio(&self, metric: &Metric, of: &'static str, to: &'static str) -> Option<f64> {
        let of = self.rates.get(&(metric.name, of))?;
        let to = self.rates.get(&(metric.name, to))?;
        median(of.iter().filter_map(|(round, rate)| Some(rate / to.get(round)?)).collect())
    }
}

/// The middle of some numbers, or between the two in the middle.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let upper = *numbers.get(numbers.len() / 2)?;
    let lower = numbers[(numbers.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric::operations("m");

    #[test]
    fn ratios_are_taken_within_rounds() {
        let mut figures = Figures::default();
        // A machine that is ten times faster in the second round.
        for (round, ours, theirs) in [(0, 1.0, 2.0), (1, 10.0, 20.0), (2, 1.0, 2.0)] {
            figures.add("ours", round, METRIC.sample(ours, 1.0));
            figures.add("theirs", round, METRIC.sample(theirs, 1.0));
        }
        assert_eq!(figures.ratio(&METRIC, "ours", "theirs"), Some(0.5));
        assert_eq!(figures.rate(&METRIC, "ours"), Some(1.0));
        assert_eq!(figures.ratio(&METRIC, "ours", "nobody"), None);
    }

    #[test]
    fn a_median_of_two_is_between_them() {
        assert_eq!(median(vec![1.0, 3.0]), Some(2.0));
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }
}
