//! The verdicts of the last plan as one status that logs, metrics and HTTP read.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::config::Config;
use crate::memory::Memory;
use crate::plan::EntryStatus;
use crate::pv::OwnedPv;
use crate::reclaim;
use crate::verdict::Reason;
use crate::volume::{Capacity, VolumeMode};

/// What is known of every entry.
#[derive(Debug, Default)]
pub struct Status {
    entries: Vec<EntryStatus>,
    totals: Totals,
}

/// What there is of this node's PVs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    filesystem_bytes: u64,
    block_bytes: u64,
    /// PVs that keep a volume from being claimed.
    pub quarantined: u32,
    /// PVs that are to be wiped and removed, which failed and waits to be tried again.
    pub failed: u32,
    /// Whether the start-up taint is on this Node.
    pub tainted: bool,
    /// How many volumes of claims that taint waits for.
    pub taint_waits_for: u32,
    /// Whether the ledger can't be written.
    pub ledger_trouble: bool,
}

impl Totals {
    /// Adds up.
    #[must_use]
    pub fn of<'a>(owned: impl IntoIterator<Item = &'a OwnedPv>, config: &Config, memory: &Memory) -> Self {
        let mut totals = Self::default();
        for owned in owned {
            let bytes = owned.capacity.map_or(0, Capacity::bytes);
            match mode(owned, config) {
                VolumeMode::Filesystem => totals.filesystem_bytes = totals.filesystem_bytes.saturating_add(bytes),
                VolumeMode::Block => totals.block_bytes = totals.block_bytes.saturating_add(bytes),
            }
            totals.quarantined += u32::from(owned.quarantined);
            totals.failed += u32::from(has_failed(owned, memory));
        }
        totals
    }

    /// The capacity in bytes of the volumes that are of that mode, by what they are and not
    /// by what their PVs say.
    #[must_use]
    pub fn capacity(&self, mode: VolumeMode) -> u64 {
        match mode {
            VolumeMode::Filesystem => self.filesystem_bytes,
            VolumeMode::Block => self.block_bytes,
        }
    }
}

/// By what the volume is; as long as nobody has seen it, by its class.
fn mode(owned: &OwnedPv, config: &Config) -> VolumeMode {
    match &owned.identity {
        Some(identity) => identity.mode(),
        None => config.class(&owned.class).map(|class| class.mode).unwrap_or_default(),
    }
}

/// Whether its wipe or its removal failed and is not being tried again just now. Who waits
/// until nobody uses the volume has not failed.
fn has_failed(owned: &OwnedPv, memory: &Memory) -> bool {
    let wanted = owned.fenced || (reclaim::is_wanted(owned) && !owned.terminating);
    let setback = memory.setback(&owned.name).filter(|_| wanted && !memory.in_flight.contains(&owned.name));
    setback.is_some_and(|setback| !matches!(setback.verdict.reason, Reason::Busy | Reason::Pending))
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

    /// Takes what there is of this node's PVs.
    pub fn count(&mut self, totals: Totals) {
        self.totals = totals;
    }

    /// What there is of this node's PVs.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
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

    /// Of each class with an entry: how many PVs there are at whose path there is no volume.
    #[must_use]
    pub fn missing(&self) -> BTreeMap<&str, u32> {
        let mut missing = BTreeMap::new();
        for entry in &self.entries {
            let is_missing = entry.pv.is_some() && entry.verdict.reason.is_no_volume();
            *missing.entry(entry.class.as_str()).or_default() += u32::from(is_missing);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::testing;
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

    #[test]
    fn missing_is_a_pv_without_a_volume_and_no_entry_without_a_pv() {
        let mut status = Status::default();
        let with_pv = |name, reason| EntryStatus { pv: Some(format!("pv-{name}")), ..entry(name, reason) };
        let mut entries = vec![entry("a", Reason::NotAMountPoint), with_pv("b", Reason::Published)];
        status.update(entries.clone());
        assert_eq!(status.missing(), BTreeMap::from([("c", 0)]));
        entries.extend([with_pv("d", Reason::NotAMountPoint), with_pv("e", Reason::Vanished)]);
        entries.push(with_pv("f", Reason::IdentityChanged));
        status.update(entries);
        assert_eq!(status.missing(), BTreeMap::from([("c", 2)]));
    }

    #[test]
    fn capacity_counts_by_what_a_volume_is_and_waiting_is_no_failure() {
        let (config, mut memory) = (testing::config(), Memory::default());
        let block = testing::owned_pv("a", "c");
        let mut mount = testing::owned_pv("b", "c");
        mount.identity = Some(testing::mount(2, 1).identity);
        let totals = Totals::of([&block, &mount], &config, &memory);
        assert_eq!((totals.capacity(VolumeMode::Block), totals.capacity(VolumeMode::Filesystem)), (1 << 26, 1 << 26));
        let fenced = OwnedPv { fenced: true, ..block };
        for (reason, failed) in [(Reason::Busy, 0), (Reason::Refused, 1), (Reason::Vanished, 1)] {
            memory.failed(&fenced.name, Verdict::new(reason, ""), false, Instant::now(), 0.0);
            assert_eq!(Totals::of([&fenced], &config, &memory).failed, failed, "{reason:?}");
        }
        memory.begin(&fenced.name);
        assert_eq!(Totals::of([&fenced], &config, &memory).failed, 0, "it is being tried again");
    }
}
