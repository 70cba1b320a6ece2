use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::*;
use crate::discovery::{Candidate, Finding, Sighting};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::pv::{Claim, Phase};
use crate::testing;
use crate::verdict::{Reason, Verdict};
use crate::volume::{Capacity, ReclaimPolicy};

const SIZE: u64 = 1 << 26;
const HOUR: Duration = Duration::from_secs(3600);

fn found(entry: &str, outcome: Result<Sighting, Verdict>) -> Finding {
    Finding {
        class: "c".to_owned(),
        entry: entry.to_owned(),
        host_path: format!("/h/c/{entry}"),
        selected: true,
        former: None,
        outcome: outcome.map(|sighting| Candidate { capacity: Capacity::rounded_down(sighting.bytes), sighting }),
    }
}

/// A PV as the Go provisioner leaves it.
fn of_go(entry: &str, change: impl FnOnce(&mut OwnedPv)) -> OwnedPv {
    let mut owned = OwnedPv { labelled: false, identity: None, entry: None, ..testing::owned_pv(entry, "c") };
    change(&mut owned);
    owned
}

/// What would be done: the name of each action, its PV's path or entry, and when.
fn foreseen(findings: &[Finding], owned: &[OwnedPv], wipe_after: u64) -> (Foresight, Vec<(&'static str, u64)>) {
    let mut config = testing::config();
    config.classes[0].wipe_after = Duration::from_secs(wipe_after);
    let classes = [("c".to_owned(), testing::storage_class(ReclaimPolicy::Delete))].into();
    let owned = owned.iter().map(|owned| (owned.name.clone(), owned.clone())).collect();
    let foresight = foresee(
        &World {
            config: &config,
            node: &testing::node(),
            classes: &classes,
            findings,
            unseen: &BTreeMap::new(),
            owned: &owned,
            suspects: &BTreeSet::new(),
            foreign: &BTreeMap::new(),
            ledger: &Ledger::default(),
            ledger_trouble: None,
            durable: true,
            may_patch: true,
            memory: &Memory::default(),
            now: Instant::now(),
            clock: Timestamp::from_second(1_000).expect("a time"),
            random: 7,
        },
        HOUR,
    );
    let steps = foresight.steps.iter().map(|step| (step.action.name(), step.after.as_secs())).collect();
    (foresight, steps)
}

fn released(owned: &mut OwnedPv) {
    owned.phase = Phase::Released;
    owned.since = Some(1_000);
    let claim = Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() };
    owned.claim = Some(Box::new(claim));
}

#[test]
fn what_follows_an_adoption_is_foreseen() {
    let disk = || found("a", Ok(testing::disk(1, SIZE)));
    let (foresight, steps) = foreseen(&[disk()], &[of_go("a", |_| {})], 0);
    assert_eq!(steps, [("adopt", 0)]);
    assert_eq!(foresight.plan.entries[0].verdict.reason, Reason::Published);
    let (foresight, steps) = foreseen(&[disk()], &[of_go("a", released)], 0);
    assert_eq!(steps, [("adopt", 0), ("wipe", 0)]);
    assert_eq!(foresight.plan.entries[0].verdict.reason, Reason::Wiping);
    let (_, steps) = foreseen(&[found("a", Ok(testing::disk(1, 2 * SIZE)))], &[of_go("a", |_| {})], 0);
    assert_eq!(steps, [("adopt", 0), ("grow", 0)]);
}

#[test]
fn what_has_to_wait_is_foreseen_with_its_time_and_no_farther_than_the_horizon() {
    let disk = || found("a", Ok(testing::disk(1, SIZE)));
    assert_eq!(foreseen(&[disk()], &[of_go("a", released)], 600).1, [("adopt", 0), ("wipe", 600)]);
    assert_eq!(foreseen(&[disk()], &[of_go("a", released)], 7_200).1, [("adopt", 0)]);
    // The volume of an unclaimed PV is gone, and another one is there.
    let (foresight, steps) = foreseen(&[found("b", Ok(testing::disk(2, SIZE)))], &[of_go("a", |_| {})], 0);
    assert_eq!(steps, [("create", 0), ("withdraw", 30)]);
    assert_eq!(foresight.plan.missing.len(), 1);
    assert!(foresight.plan.entries.iter().any(|entry| entry.verdict.reason == Reason::Vanished));
}

#[test]
fn nothing_is_foreseen_where_all_is_well() {
    let adopted = testing::owned_pv("a", "c");
    assert_eq!(foreseen(&[found("a", Ok(testing::disk(1, SIZE)))], &[adopted], 0).1, []);
}
