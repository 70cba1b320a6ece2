//! The plan for people.

use std::fmt::Write as _;

use super::document::{Document, Doing};

/// All of it, a few parts with a blank line between them.
pub fn render(document: &Document) -> String {
    let parts = [entries(document), actions(document), assumed(document)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A line for each entry, and what to do about those that need it.
fn entries(document: &Document) -> String {
    let heading = ["CLASS", "ENTRY", "VERDICT", "PV"].map(str::to_owned);
    let row = |entry: &super::document::Entry| {
        let name = if entry.entry.is_empty() { &entry.path } else { &entry.entry };
        let pv = entry.pv.as_deref().unwrap_or("-");
        [&*entry.class, name, entry.verdict, pv].map(plain)
    };
    if document.entries.is_empty() {
        return "The discovery directories are empty.\n".to_owned();
    }
    let rows: Vec<_> = document.entries.iter().map(row).collect();
    let all = || std::iter::once(&heading).chain(&rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let line = |text: &mut String, row: &[String; 4]| {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}   ");
        }
        let _ = writeln!(text, "{}", row[3]);
    };
    let mut text = String::new();
    line(&mut text, &heading);
    for (entry, row) in document.entries.iter().zip(&rows) {
        line(&mut text, row);
        if !entry.detail.is_empty() {
            let _ = writeln!(text, "    why: {}", plain(&entry.detail));
        }
        if !entry.remedy.is_empty() {
            let _ = writeln!(text, "    do:  {}", entry.remedy);
        }
    }
    text
}

/// What would be done, by the time.
fn actions(document: &Document) -> String {
    if document.actions.is_empty() {
        return "The agent would do nothing.\n".to_owned();
    }
    let width = |of: fn(&Doing) -> &str| document.actions.iter().map(|doing| of(doing).chars().count()).max();
    let name = width(|doing| doing.action).unwrap_or(0);
    let pv = width(|doing| &doing.pv).unwrap_or(0);
    let mut text = String::new();
    let mut time = None;
    for doing in &document.actions {
        if time != Some(doing.after_seconds) {
            time = Some(doing.after_seconds);
            let _ = match doing.after_seconds {
                0 => writeln!(text, "The agent would now"),
                seconds => writeln!(text, "and in {seconds} s, if nothing else happens"),
            };
        }
        let Doing { action, pv: of, path, detail, .. } = doing;
        let _ = writeln!(text, "  {action:name$}  {of:pv$}  {}: {}", plain(path), plain(detail));
    }
    text
}

fn assumed(document: &Document) -> String {
    if document.assumed.is_empty() {
        return String::new();
    }
    document.assumed.iter().fold("Assumed\n".to_owned(), |text, one| format!("{text}  {}\n", plain(one)))
}

/// The text without what would move a terminal's cursor: whoever makes a directory's
/// entries names them.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
