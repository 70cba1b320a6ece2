//! The verdicts of the last plan as one status that logs, metrics and HTTP read.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::plan::EntryStatus;
use crate::verdict::Reason;

/// What is known of every entry.
#[derive(Debug, Default)]
pub struct Status {
    entries: Vec<EntryStatus>,
}

/// An entry as `/volumes` shows it.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    class: &'a str,
    entry: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pv: Option<&'a str>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

impl Status {
    /// Takes the entries of a new plan and returns those whose verdict changed.
    pub fn update(&mut self, entries: Vec<EntryStatus>) -> Vec<EntryStatus> {
        let before: HashMap<(&str, &str), &EntryStatus> =
            self.entries.iter().map(|entry| ((entry.class.as_str(), entry.path.as_str()), entry)).collect();
        let changed = entries
            .iter()
            .filter(|now| {
                before.get(&(now.class.as_str(), now.path.as_str())).is_none_or(|then| then.verdict != now.verdict)
            })
            .cloned()
            .collect();
        self.entries = entries;
        changed
    }

    /// Every entry, for people and programs to read.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.entries.iter().map(|entry| Line {
            class: &entry.class,
            entry: &entry.entry,
            path: &entry.path,
            pv: entry.pv.as_deref(),
            verdict: entry.verdict.reason.as_str(),
            detail: &entry.verdict.detail,
            remedy: entry.verdict.reason.remedy(),
        })
    }

    /// How many entries of each class have each verdict.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(&str, Reason), u32> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries {
            *counts.entry((entry.class.as_str(), entry.verdict.reason)).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;

    fn entry(name: &str, reason: Reason) -> EntryStatus {
        EntryStatus {
            class: "c".to_owned(),
            entry: name.to_owned(),
            path: format!("/h/{name}"),
            pv: None,
            verdict: Verdict::new(reason, ""),
        }
    }

    #[test]
    fn only_changes_are_told() {
        let mut status = Status::default();
        let first = vec![entry("a", Reason::Pending), entry("b", Reason::Published)];
        assert_eq!(status.update(first.clone()), first);
        let second = vec![entry("a", Reason::Published), entry("b", Reason::Published)];
        assert_eq!(status.update(second.clone()), second[..1]);
        assert_eq!(status.update(second), []);
        assert_eq!(status.counts()[&("c", Reason::Published)], 2);
    }
}
