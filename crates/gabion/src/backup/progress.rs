//! How far a long job is, on a terminal; and how fast it may go.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error, which is hidden where that is no terminal.
pub struct Progress {
    bar: ProgressBar,
    rate: Option<u64>,
    began: Instant,
    paced: u64,
}

impl Progress {
    /// A bar for so many bytes, of which at most `rate` are to pass in a second.
    pub fn new(total: u64, rate: Option<u64>) -> Self {
        let bar = ProgressBar::new(total);
        let template = "{bar:30} {binary_bytes} of {binary_total_bytes}, \
                        {binary_bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant"));
        Self { bar, rate: rate.filter(|rate| *rate > 0), began: Instant::now(), paced: 0 }
    }

    /// So many more bytes have passed. Waits if that was too fast.
    pub fn pass(&mut self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.position() > self.bar.length().unwrap_or(0) {
            self.bar.set_length(self.bar.position());
        }
        self.paced += bytes;
        let Some(rate) = self.rate else { return };
        let due = Duration::from_secs_f64(self.paced as f64 / rate as f64);
        if let Some(early) = due.checked_sub(self.began.elapsed()) {
            std::thread::sleep(early);
        }
    }

    /// So many bytes need not pass any more.
    pub fn skip(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Says something beside the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("gabion: {text}"));
    }

    /// How long it has taken.
    pub fn end(&self) -> Duration {
        self.bar.finish_and_clear();
        self.began.elapsed()
    }
}
