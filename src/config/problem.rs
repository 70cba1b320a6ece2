//! What is wrong with a ConfigMap, or only odd, and where.

use std::fmt;

/// A place in the text of a key: line and column, both from 1. The column counts
/// characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The ConfigMap can't be used.
    Error,
    /// It can be used, but may not do what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong or odd. Its order is that of the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The ConfigMap's key, which is the name of its file.
    pub key: String,
    /// Where in the key's text; none: all of it, or it is missing.
    pub place: Option<Place>,
    /// How bad it is.
    pub severity: Severity,
    /// What, and what to do.
    pub text: String,
}

impl Problem {
    /// Something that keeps the ConfigMap from being used.
    #[must_use]
    pub fn error(key: &str, place: Option<Place>, text: String) -> Self {
        Self { key: key.to_owned(), place, severity: Severity::Error, text }
    }

    /// Something odd.
    #[must_use]
    pub fn warning(key: &str, place: Option<Place>, text: String) -> Self {
        Self { key: key.to_owned(), place, severity: Severity::Warning, text }
    }

    /// Whether it keeps the ConfigMap from being used.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `key:line:column: error: what; what to do`, as compilers do.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}: {}", self.severity, self.text)
    }
}

/// Why a ConfigMap can't be used: all that was found, warnings too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.errors())]
pub struct ConfigError {
    /// In the order of the text; at least one is an error.
    pub problems: Vec<Problem>,
}

/// So many errors are told in one line.
const TOLD: usize = 8;

impl ConfigError {
    fn errors(&self) -> String {
        let errors: Vec<&Problem> = self.problems.iter().filter(|problem| problem.is_error()).collect();
        let mut text = errors.iter().take(TOLD).map(ToString::to_string).collect::<Vec<_>>().join("; ");
        if errors.len() > TOLD {
            text += &format!("; and {} more", errors.len() - TOLD);
        }
        text
    }
}

/// ", did you mean X?" for the word that is nearest, when one is near.
#[must_use]
pub fn suggestion<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> String {
    let lower = word.to_ascii_lowercase();
    let nearest = words.into_iter().map(|known| (distance(&lower, &known.to_ascii_lowercase()), known)).min();
    match nearest {
        Some((steps, known)) if steps <= 1 + known.chars().count() / 4 => format!(" (did you mean {known}?)"),
        _ => String::new(),
    }
}

/// How many letters have to be put in, taken out, changed, or exchanged with the next one.
/// What is longer than any key is not looked at further.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().take(64).collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_when_it_is_near() {
        let words = ["hostDir", "mountDir", "fsType", "volumeMode"];
        for (word, nearest) in [("hostdir", "hostDir"), ("hotsDir", "hostDir"), ("volumMode", "volumeMode")] {
            assert_eq!(suggestion(word, words), format!(" (did you mean {nearest}?)"));
        }
        for word in ["", "reclaimPolicy", "x", &"hostDir".repeat(100)] {
            assert_eq!(suggestion(word, words), "", "{word}");
        }
    }

    #[test]
    fn a_problem_reads_like_a_compilers() {
        let place = Some(Place { line: 3, column: 15 });
        let mut problem = Problem::error("storageClassMap", place, "it is wrong".to_owned());
        assert_eq!(problem.to_string(), "storageClassMap:3:15: error: it is wrong");
        problem.place = None;
        problem.severity = Severity::Warning;
        assert_eq!(problem.to_string(), "storageClassMap: warning: it is wrong");
    }
}
