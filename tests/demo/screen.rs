//! What the demo writes: colours for a terminal, plain text for anything else.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Standard output.
pub struct Screen {
    colours: bool,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Screen {
    pub fn new() -> Self {
        let plain =
            std::env::var_os("NO_COLOR").is_some() || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colours: std::io::stdout().is_terminal() && !plain }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A reader that has gone away (`| head`) is no reason to stop.
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    pub fn title(&self, text: &str) {
        self.line(&self.paint(BOLD, text));
    }

    /// The heading of an act.
    pub fn act(&self, text: &str) {
        self.line("");
        self.line(&self.paint(&format!("{BOLD};{CYAN}"), text));
    }

    /// A sentence under a heading.
    pub fn note(&self, text: &str) {
        self.line(&format!("  {}", self.paint(DIM, text)));
    }

    /// Something that was seen, and how long it took.
    pub fn done(&self, text: &str, took: Duration) {
        self.line(&format!("  {text:<68} {}", self.paint(GREEN, &format!("{:>9}", ms(took)))));
    }

    /// Something that was checked.
    pub fn checked(&self, text: &str, answer: &str) {
        self.line(&format!("  {text:<68} {}", self.paint(GREEN, &format!("{answer:>9}"))));
    }

    /// One line of a table; the first one is its head.
    pub fn row(&self, widths: &[usize], cells: &[&str], head: bool) {
        let mut text = String::from("  ");
        for (width, cell) in widths.iter().zip(cells) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        let text = text.trim_end();
        self.line(&if head { self.paint(DIM, text) } else { text.to_owned() });
    }

    pub fn lines(&self, heading: &str, lines: impl IntoIterator<Item = String>) {
        self.act(heading);
        for line in lines {
            self.line(&format!("  {line}"));
        }
    }

    pub fn summary(&self, lines: &[String], took: Duration) {
        self.act("Seen");
        for line in lines {
            self.line(&format!("  {} {line}", self.paint(GREEN, "+")));
        }
        self.line("");
        self.line(
            &self.paint(BOLD, &format!("All as promised, in {:.1} s. Nothing is left behind.", took.as_secs_f64())),
        );
    }

    pub fn failure(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "\n{}", self.paint(&format!("{BOLD};{RED}"), &format!("demo: {text}")));
    }
}

/// A duration the way a person reads it.
pub fn ms(duration: Duration) -> String {
    match duration.as_millis() {
        0..10 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        10..1_000 => format!("{} ms", duration.as_millis()),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}
