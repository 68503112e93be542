//! What is measured, what it should be, and what it was.
//!
//! A ratio is above 1 if the first of two systems is the better one, whether its figure is a rate,
//! of which more is better, or a time. It is taken within a round, where both systems met the same
//! noise, and the median of the rounds is what counts.

use std::collections::BTreeMap;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations (or files, or entries) in a second.
    PerSecond,
    /// 2^20 bytes in a second.
    MebibytesPerSecond,
    /// 10^-3 seconds.
    Milliseconds,
    /// 10^-6 seconds.
    Microseconds,
    /// How many times as much.
    Times,
    /// Cases in a hundred that should not be.
    Percent,
}

impl Unit {
    /// Whether less of it is better.
    pub const fn is_less_better(self) -> bool {
        matches!(self, Self::Milliseconds | Self::Microseconds | Self::Percent)
    }
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

    /// Something else, without targets.
    pub const fn of(name: &'static str, unit: Unit) -> Self {
        Self { name, unit, to_ext4: None, to_passthrough: None }
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
    /// The rate, or whatever else its unit says.
    pub rate: f64,
}

impl Metric {
    /// A measurement of this.
    pub fn sample(self, count: f64, seconds: f64) -> Sample {
        Sample { metric: self, rate: count / seconds }
    }

    /// A measurement of this that is no rate.
    pub const fn value(self, value: f64) -> Sample {
        Sample { metric: self, rate: value }
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
    /// What will be measured. Metrics are shown in the order in which they came first.
    pub fn expect(&mut self, metric: Metric) {
        if !self.metrics.iter().any(|known| known.name == metric.name) {
            self.metrics.push(metric);
        }
    }

    /// Adds one.
    pub fn add(&mut self, system: &'static str, round: u32, sample: Sample) {
        self.expect(sample.metric);
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

    /// The figures of a system, by round.
    pub fn rounds(&self, metric: &Metric, system: &'static str) -> Option<&BTreeMap<u32, f64>> {
        self.rates.get(&(metric.name, system))
    }

    /// The median over the rounds of how many times as good the first of two systems is. There is
    /// none to a figure that is 0.
    pub fn ratio(&self, metric: &Metric, of: &'static str, to: &'static str) -> Option<f64> {
        let of = self.rounds(metric, of)?;
        let to = self.rounds(metric, to)?;
        let ratio = |of: f64, to: f64| if metric.unit.is_less_better() { to / of } else { of / to };
        let ratios = of.iter().filter_map(|(round, of)| Some(ratio(*of, *to.get(round)?)));
        median(ratios.filter(|ratio| ratio.is_finite()).collect())
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
    fn a_ratio_is_above_one_if_the_first_is_better() {
        let (rate, time) = (METRIC, Metric::of("t", Unit::Microseconds));
        let mut figures = Figures::default();
        for metric in [rate, time] {
            figures.add("a", 0, metric.value(10.0));
            figures.add("b", 0, metric.value(40.0));
            figures.add("none", 0, metric.value(0.0));
        }
        assert_eq!(figures.ratio(&rate, "b", "a"), Some(4.0));
        assert_eq!(figures.ratio(&time, "a", "b"), Some(4.0));
        assert_eq!(figures.ratio(&rate, "a", "none"), None);
        assert_eq!(figures.ratio(&time, "none", "a"), None);
    }

    #[test]
    fn a_median_of_two_is_between_them() {
        assert_eq!(median(vec![1.0, 3.0]), Some(2.0));
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }
}
