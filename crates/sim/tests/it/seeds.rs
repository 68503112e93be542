//! Which seeds a test runs.

use std::env;
use std::ops::RangeInclusive;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is {text:?}, and has to be a number")))
}

/// The seed of GABION_SEED, or else as many as GABION_SEEDS says, or the `usual` number, from that
/// of GABION_SEED_FROM on, or from 1.
pub fn seeds(usual: u64) -> RangeInclusive<u64> {
    let count = number("GABION_SEEDS").unwrap_or(usual);
    chosen(number("GABION_SEED"), number("GABION_SEED_FROM"), count)
}

fn chosen(only: Option<u64>, from: Option<u64>, count: u64) -> RangeInclusive<u64> {
    let from = from.unwrap_or(1);
    match only {
        Some(seed) => seed..=seed,
        None => from..=from.saturating_add(count).saturating_sub(1),
    }
}

#[test]
fn series_begin_where_they_are_told_to() {
    assert_eq!(chosen(None, None, 3), 1..=3);
    assert_eq!(chosen(None, Some(20_000), 3), 20_000..=20_002);
    assert_eq!(chosen(Some(7), Some(20_000), 3), 7..=7);
}
