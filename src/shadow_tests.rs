use std::collections::BTreeSet;

use jiff::Timestamp;

use super::*;
use crate::discovery::{Candidate, Sighting};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::plan::foresee;
use crate::pv::{Claim, OwnedPv, Phase};
use crate::testing;
use crate::verdict::Verdict;
use crate::volume::{Capacity, ReclaimPolicy};

const SIZE: u64 = 1 << 26;

fn found(entry: &str, outcome: Result<Sighting, Reason>) -> Finding {
    let candidate = |sighting: Sighting| Candidate { capacity: Capacity::rounded_down(sighting.bytes), sighting };
    Finding {
        class: "c".to_owned(),
        entry: entry.to_owned(),
        host_path: format!("/h/c/{entry}"),
        selected: true,
        former: None,
        outcome: outcome.map(candidate).map_err(|reason| Verdict::new(reason, "")),
    }
}

/// A PV as the Go provisioner leaves it.
fn of_go(entry: &str, phase: Phase) -> OwnedPv {
    let claim = Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() };
    let claim = (phase != Phase::Available).then(|| Box::new(claim));
    OwnedPv { labelled: false, identity: None, entry: None, phase, claim, ..testing::owned_pv(entry, "c") }
}

/// Kinds of differences, with the field.
fn kinds(findings: &[Finding], owned: &[OwnedPv]) -> Vec<(Kind, String)> {
    let config = testing::config();
    let classes = [("c".to_owned(), testing::storage_class(ReclaimPolicy::Delete))].into();
    let fields = owned
        .iter()
        .map(|owned| {
            let entry = owned.path.rsplit('/').next().expect("a path has a name");
            (owned.name.clone(), pv::fields(&pv::encode(&testing::volume(entry, "c"))))
        })
        .collect();
    let owned = owned.iter().map(|owned| (owned.name.clone(), owned.clone())).collect();
    let world = World {
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
        durable: false,
        may_patch: true,
        memory: &Memory::default(),
        now: Instant::now(),
        clock: Timestamp::UNIX_EPOCH,
        random: 7,
    };
    let found = differences(&world, &foresee(&world, Duration::ZERO), &fields);
    found.into_iter().map(|one| (one.kind, one.field)).collect()
}

fn only(kind: Kind) -> Vec<(Kind, String)> {
    vec![(kind, String::new())]
}

#[test]
fn a_pv_like_ours_is_no_difference_in_any_phase() {
    let disk = found("a", Ok(testing::disk(1, SIZE)));
    for phase in [Phase::Pending, Phase::Available, Phase::Bound, Phase::Released] {
        assert_eq!(kinds(std::slice::from_ref(&disk), &[of_go("a", phase)]), [], "{phase:?}");
    }
}

#[test]
fn each_way_to_differ_has_its_kind() {
    let disk = |entry: &str, minor| found(entry, Ok(testing::disk(minor, SIZE)));
    let gone = || found("a", Err(Reason::NotAMountPoint));
    assert_eq!(kinds(&[disk("a", 1)], &[]), only(Kind::Unpublished));
    assert_eq!(kinds(&[gone()], &[of_go("a", Phase::Bound)]), only(Kind::Unwanted));
    // The Go provisioner empties the directory below, and removes the PV.
    assert_eq!(kinds(&[gone()], &[of_go("a", Phase::Released)]), only(Kind::RefusedWipe));
    let two = [of_go("a", Phase::Released), of_go("b", Phase::Available)];
    let expected = [only(Kind::RefusedWipe), only(Kind::Unwanted)].concat();
    assert_eq!(kinds(&[disk("a", 1), disk("b", 1)], &two), expected, "two names of one disk");
    let two = [of_go("a", Phase::Bound), of_go("b", Phase::Released)];
    assert_eq!(kinds(&[disk("a", 1), disk("b", 1)], &two), only(Kind::RefusedWipe), "the second is told once");
    let outside = OwnedPv { path: "/h/c/a/b".to_owned(), ..of_go("a", Phase::Released) };
    assert_eq!(kinds(&[], &[outside]), only(Kind::RefusedWipe));
    let grown = found("a", Ok(testing::disk(1, 2 * SIZE)));
    assert_eq!(kinds(&[grown], &[of_go("a", Phase::Bound)]), [(Kind::Field, "spec.capacity.storage".to_owned())]);
    assert_eq!(kinds(&[], &[of_go("a", Phase::Bound)]), [], "neither does anything about a volume that is not there");
}

#[test]
fn a_difference_counts_when_it_has_lasted_and_is_told_once() {
    let (mut book, start) = (Book::new(Duration::from_secs(30)), Instant::now());
    let one = |detail: &str| Difference {
        kind: Kind::Unpublished,
        pv: "local-pv-1".to_owned(),
        path: "/h/c/a".to_owned(),
        field: String::new(),
        detail: detail.to_owned(),
    };
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(book.update(vec![one("")], start), News::default());
    assert_eq!(book.next_to_count(), Some(at(30)));
    assert_eq!(book.update(vec![one("")], at(29)), News::default());
    assert_eq!(book.counts()[&Kind::Unpublished], 0);
    assert_eq!(book.update(vec![one("")], at(30)).appeared, [one("")]);
    assert_eq!((book.counts()[&Kind::Unpublished], book.next_to_count()), (1, None));
    assert_eq!(book.update(vec![one("in other words")], at(31)), News::default());
    assert_eq!(book.update(Vec::new(), at(32)).vanished, [one("in other words")]);
    assert_eq!(book.counts()[&Kind::Unpublished], 0);
    // One that ended before it counted is not told, and begins anew when it comes back.
    book.update(vec![one("")], at(40));
    assert_eq!(book.update(Vec::new(), at(41)), News::default());
    book.update(vec![one("")], at(50));
    assert_eq!(book.update(vec![one("")], at(75)), News::default());
}
