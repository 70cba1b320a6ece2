//! Shows how far a wipe is: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressStyle};

use crate::deleter::Control;

/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
const OF_A_DEVICE: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left";
const OF_A_DIRECTORY: &str = "{msg} {spinner} {human_pos} entries in {elapsed}";

/// The progress of one wipe.
pub struct Progress {
    bar: Option<ProgressBar>,
    is_device: bool,
    begun: Instant,
    told: Instant,
    /// What was done when it began: a wipe may have been taken up again.
    before: Option<u64>,
}

impl Progress {
    pub fn new(is_device: bool) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let template = if is_device { OF_A_DEVICE } else { OF_A_DIRECTORY };
            ProgressBar::no_length().with_style(ProgressStyle::with_template(template).expect("the template is valid"))
        });
        let now = Instant::now();
        Self { bar, is_device, begun: now, told: now, before: None }
    }

    /// Shows how far it is now.
    pub fn show(&mut self, control: &Control) {
        let (done, total) = control.progress();
        let phase = control.phase().as_str();
        if total == 0 && self.is_device {
            return; // not known yet
        }
        let is_first = self.before.is_none();
        let before = *self.before.get_or_insert(done);
        if let Some(bar) = &self.bar {
            bar.set_message(phase);
            if self.is_device {
                bar.set_length(total);
            }
            bar.set_position(done);
            if is_first {
                bar.reset_eta();
            }
            bar.tick();
        } else if self.told.elapsed() >= LINE {
            self.told = Instant::now();
            eprintln!("{phase}: {}", self.line(done, before, total));
        }
    }

    fn line(&self, done: u64, before: u64, total: u64) -> String {
        if !self.is_device {
            return format!("{done} entries so far");
        }
        let elapsed = self.begun.elapsed();
        let rate = done.saturating_sub(before) as f64 / elapsed.as_secs_f64();
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let left = total.saturating_sub(done) as f64 / rate;
        let left = Duration::try_from_secs_f64(left)
            .map_or_else(|_| "an unknown time".to_owned(), |left| HumanDuration(left).to_string());
        format!("{percent} % of {}, {} MB/s, {left} left", BinaryBytes(total), (rate / 1e6).round())
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
