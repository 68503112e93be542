//! Figures as text.

use std::fmt::Write as _;

use crate::figures::Unit;

/// A column's text is right-aligned but for the first column.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table with aligned columns.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A figure with three digits, or a dash.
pub fn rate(rate: Option<f64>, unit: Unit) -> String {
    let Some(rate) = rate else { return "-".to_owned() };
    let unit = match unit {
        Unit::PerSecond => "/s",
        Unit::MebibytesPerSecond => " MiB/s",
        Unit::Milliseconds => " ms",
        Unit::Microseconds => " us",
        Unit::Times => "x",
        Unit::Percent => " %",
    };
    match rate {
        ..10.0 if unit == "x" => format!("{rate:.2}x"),
        10_000.0.. => format!("{:.1}k{unit}", rate / 1000.0),
        100.0.. => format!("{rate:.0}{unit}"),
        _ => format!("{rate:.1}{unit}"),
    }
}

/// A ratio beside its target, marked if it is below.
pub fn verdict(ratio: Option<f64>, target: Option<f64>) -> String {
    match (ratio, target) {
        (None, _) => "-".to_owned(),
        (Some(ratio), None) => format!("{ratio:.2}x      "),
        (Some(ratio), Some(target)) => {
            let mark = if ratio < target { "<" } else { ">" };
            format!("{ratio:.2}x {mark} {target:.1}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["a", "b"]);
        table.row(vec!["long".to_owned(), "1".to_owned()]);
        table.row(vec!["x".to_owned(), "100".to_owned()]);
        assert_eq!(table.text(), "a       b\nlong    1\nx     100\n");
    }

    #[test]
    fn what_is_below_its_target_is_marked() {
        assert_eq!(verdict(Some(0.5), Some(0.9)), "0.50x < 0.9");
        assert_eq!(verdict(Some(1.0), Some(1.0)), "1.00x > 1.0");
        assert_eq!(verdict(None, Some(1.0)), "-");
    }
}
