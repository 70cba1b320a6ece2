//! `mooring check-config`: says all that is wrong or odd with a ConfigMap, before an agent
//! reads it. The ConfigMap is a directory with a file for each key, or a manifest.

mod directories;
mod input;
mod manifest;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use crate::config::{Config, Place, Problem, Severity};
use input::Input;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory, a manifest, a file named like a key, or `-` for a manifest on the
    /// standard input.
    pub path: PathBuf,
    /// Whether warnings count as errors.
    pub strict: bool,
    /// Whether it is looked at the directories of the classes, on this machine.
    pub directories: bool,
}

/// What the process exits with: 0 good, 1 not good, 2 not to be read.
pub const GOOD: u8 = 0;
/// There are errors, or, where that is asked for, warnings.
pub const NOT_GOOD: u8 = 1;
/// There is no ConfigMap to be checked.
pub const UNREADABLE: u8 = 2;

/// A problem with the file that it is in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    place: Option<Place>,
    severity: Severity,
    text: String,
}

impl Finding {
    fn error(file: &str, place: Option<Place>, text: String) -> Self {
        Self { file: file.to_owned(), place, severity: Severity::Error, text }
    }
}

/// Checks the ConfigMap and prints what is found. Returns what the process is to exit with.
#[must_use]
pub fn run(options: &Options) -> u8 {
    let (code, text) = check(options);
    if code == UNREADABLE {
        eprintln!("mooring check-config: {text}");
    } else {
        // Whoever closes the pipe has read enough: what was found counts all the same.
        let _ = io::stdout().lock().write_all(text.as_bytes());
    }
    code
}

fn check(options: &Options) -> (u8, String) {
    let inputs = match input::read(&options.path) {
        Ok(inputs) => inputs,
        Err(problem) => return (UNREADABLE, problem),
    };
    let (mut text, mut code) = (String::new(), GOOD);
    for input in inputs {
        let (good, said) = check_one(input, options);
        if !good {
            code = NOT_GOOD;
        }
        text += &said;
    }
    (code, text)
}

/// Checks one ConfigMap: whether it is good, and what is to be said of it.
fn check_one(mut input: Input, options: &Options) -> (bool, String) {
    let read = if input.is_complete() { Some(Config::read(&input.files())) } else { None };
    let mut findings = std::mem::take(&mut input.findings);
    let mut config = None;
    let problems = match read {
        Some(Ok(parsed)) => {
            if options.directories {
                findings.extend(directories::look(&parsed.config).into_iter().map(|(directory, text)| Finding {
                    file: directory,
                    place: None,
                    severity: Severity::Warning,
                    text,
                }));
            }
            config = Some(parsed.config);
            parsed.warnings
        }
        Some(Err(error)) => error.problems,
        None => Vec::new(),
    };
    findings.extend(problems.into_iter().map(|Problem { key, place, severity, text }| {
        let (file, place) = input.locate(&key, place);
        Finding { file, place, severity, text }
    }));
    findings.sort();
    let mut out = String::new();
    for Finding { file, place, severity, text } in &findings {
        let place = place.map(|Place { line, column }| format!(":{line}:{column}")).unwrap_or_default();
        writeln!(out, "{file}{place}: {severity}: {text}").expect("text can be written to text");
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let warnings = findings.len() - errors;
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let good = errors == 0 && (warnings == 0 || !options.strict);
    let said = match config {
        Some(config) if errors == 0 => {
            let quality = match warnings {
                0 => "good".to_owned(),
                _ => format!("usable, with {}", counted(warnings, "warning")),
            };
            format!("{quality}: {}", summary(&config))
        }
        _ => format!("not usable: {}, {}", counted(errors, "error"), counted(warnings, "warning")),
    };
    writeln!(out, "{}: {said}", input.name).expect("text can be written to text");
    (good, out)
}

/// What the config does: its classes and their directories.
fn summary(config: &Config) -> String {
    let classes: Vec<String> = config
        .classes
        .iter()
        .map(|class| {
            let pattern = match class.pattern.to_string().as_str() {
                "*" => String::new(),
                pattern => format!("/{pattern}"),
            };
            format!(
                "{} ({} from {}{pattern}, devices wiped by {})",
                class.name, class.mode, class.host_dir, class.wipe.method
            )
        })
        .collect();
    let many = if classes.len() == 1 { "class" } else { "classes" };
    format!("{} {many}: {}", classes.len(), classes.join(", "))
}
