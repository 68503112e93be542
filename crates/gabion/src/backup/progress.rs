//! How far a long job is, on a terminal; and how fast it may go.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;

/// A bar on standard error, which is hidden where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    rate: Option<u64>,
    began: Instant,
    /// When all that has passed may have passed.
    due: Instant,
}

/// What was slower than it may be is made good for so long.
const CATCH_UP: Duration = Duration::from_millis(100);

impl Progress {
    /// A bar for so many bytes, of which at most `rate` are to pass in a second.
    pub fn new(total: u64, rate: Option<u64>) -> Self {
        let bar = ProgressBar::new(total);
        let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, \
                        {binary_bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
        let began = Instant::now();
        Self { bar, rate, began, due: began }
    }

    /// So many more bytes have passed. Waits if that was too fast.
    pub fn pass(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.position() > self.bar.length().unwrap_or(0) {
            self.bar.set_length(self.bar.position());
        }
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let late = now.checked_sub(CATCH_UP).unwrap_or(self.due);
        self.due = self.due.max(late) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        std::thread::sleep(self.due.saturating_duration_since(now));
    }

    /// So many bytes are done, or need not be done any more.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// There are so many bytes in all.
    pub fn expect(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Says something beside the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| print::notice(text));
    }

    /// How long it has taken.
    pub fn end(&self) -> Duration {
        self.bar.finish_and_clear();
        self.began.elapsed()
    }
}
