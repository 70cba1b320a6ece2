//! The figures and how they are shown.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

/// Measured values of one figure.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// Adds a time, in milliseconds.
    pub fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64() * 1000.0);
    }

    /// The middle value.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value that the given part of all values is below, interpolated.
    fn quantile(&self, part: f64) -> f64 {
        let last = self.0.len().checked_sub(1).expect("a figure has at least one value");
        let mut at = 0;
        let mut rest = part * last as f64;
        while rest >= 1.0 {
            at += 1;
            rest -= 1.0;
        }
        let (low, high) = (self.0[at], self.0[(at + 1).min(last)]);
        low + (high - low) * rest
    }
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// The table: one line for each figure, notes below.
#[derive(Default)]
pub struct Table {
    rows: Vec<[String; 5]>,
    notes: Vec<String>,
}

impl Table {
    /// A figure that was measured several times; its median counts.
    pub fn samples(&mut self, figure: &str, unit: &str, samples: &Samples, limit: Option<f64>) {
        let spread = format!("[{} – {}]", short(samples.quantile(0.1)), short(samples.quantile(0.9)));
        self.add(figure, unit, samples.median(), &spread, samples.0.len(), limit.map(Limit::AtMost));
    }

    /// A figure that was measured once, or made of other figures.
    pub fn value(&mut self, figure: &str, unit: &str, value: f64, limit: Option<f64>) {
        self.add(figure, unit, value, "", 1, limit.map(Limit::AtMost));
    }

    /// As [`Table::value`], for a figure that must not be below its limit.
    pub fn at_least(&mut self, figure: &str, unit: &str, value: f64, limit: Option<f64>) {
        self.add(figure, unit, value, "", 1, limit.map(Limit::AtLeast));
    }

    fn add(&mut self, figure: &str, unit: &str, value: f64, spread: &str, count: usize, limit: Option<Limit>) {
        let (target, is_met) = match limit {
            Some(Limit::AtMost(limit)) => (format!("≤ {} {unit}", short(limit)), Some(value <= limit)),
            Some(Limit::AtLeast(limit)) => (format!("≥ {} {unit}", short(limit)), Some(value >= limit)),
            None => (String::new(), None),
        };
        let verdict = is_met.map_or("", |is_met| if is_met { "met" } else { "MISSED" });
        let count = if count > 1 { format!("n={count}") } else { String::new() };
        let shown = format!("{} {unit}", short(value));
        progress(&format!("{figure}: {shown} {spread} {count}"));
        self.rows.push([figure.to_owned(), shown, format!("{spread} {count}"), target, verdict.to_owned()]);
    }

    /// Something to read the figures by.
    pub fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Writes the table to standard output.
    pub fn print(&self) {
        let header = ["figure", "median", "[p10 – p90] n", "target", ""].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(&header).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 5] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &rows {
            let [figure, value, spread, target, verdict] = row;
            let [a, b, c, d, _] = widths;
            let line = format!("{figure:a$}  {value:>b$}  {spread:c$}  {target:d$}  {verdict}");
            writeln!(text, "{}", line.trim_end()).expect("a string takes text");
        }
        for note in &self.notes {
            writeln!(text, "{note}").expect("a string takes text");
        }
        // A closed pipe is the reader's decision.
        let _ = write!(std::io::stdout(), "{text}");
    }
}

/// Says on standard error what goes on: all in all it takes minutes.
pub fn progress(text: &str) {
    // Nothing depends on it.
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}

fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        2.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
