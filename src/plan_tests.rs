//! The decisions about single volumes, one scene each, by subject.

#[path = "plan/change_tests.rs"]
mod change;
#[path = "plan/publish_tests.rs"]
mod publish;
#[path = "plan/reclaim_tests.rs"]
mod reclaim;
#[path = "plan/record_tests.rs"]
mod record;
#[path = "plan/unpatchable_tests.rs"]
mod unpatchable;

use super::*;
use crate::discovery::{Candidate, Sighting};
use crate::ledger::{EntryId, State};
use crate::pv::{self, Claim, Word};
use crate::testing;
use crate::volume::ReclaimPolicy;

/// One volume `/h/c/a` of class `c` on a node with nothing else.
pub(super) struct Scene {
    pub(super) config: Config,
    pub(super) node: NodeFacts,
    pub(super) classes: BTreeMap<String, StorageClassFacts>,
    pub(super) findings: Vec<Finding>,
    pub(super) owned: BTreeMap<String, OwnedPv>,
    pub(super) ledger: Ledger,
    ledger_trouble: Option<&'static str>,
    durable: bool,
    may_patch: bool,
    pub(super) memory: Memory,
    now: Instant,
    clock: i64,
}

pub(super) fn finding(entry: &str, outcome: Result<Sighting, Reason>) -> Finding {
    Finding {
        class: "c".to_owned(),
        entry: entry.to_owned(),
        host_path: format!("/h/c/{entry}"),
        selected: true,
        outcome: match outcome {
            Ok(sighting) => {
                let capacity = Capacity::rounded_down(sighting.bytes);
                Ok(Candidate { sighting, capacity })
            }
            Err(reason) => Err(Verdict::new(reason, "")),
        },
        former: None,
    }
}

pub(super) const SIZE: u64 = 1 << 26;

pub(super) fn scene() -> Scene {
    Scene {
        config: testing::config(),
        node: testing::node(),
        classes: BTreeMap::from([("c".to_owned(), testing::storage_class(ReclaimPolicy::Delete))]),
        findings: vec![finding("a", Ok(testing::disk(1, SIZE)))],
        owned: BTreeMap::new(),
        ledger: Ledger::default(),
        ledger_trouble: None,
        durable: true,
        may_patch: true,
        memory: Memory::default(),
        now: Instant::now(),
        clock: 10_000,
    }
}

impl Scene {
    pub(super) fn plan(&self) -> Plan {
        plan(&World {
            config: &self.config,
            node: &self.node,
            classes: &self.classes,
            findings: &self.findings,
            unseen: &BTreeMap::new(),
            owned: &self.owned,
            suspects: &BTreeSet::new(),
            foreign: &BTreeMap::new(),
            ledger: &self.ledger,
            ledger_trouble: self.ledger_trouble,
            durable: self.durable,
            may_patch: self.may_patch,
            memory: &self.memory,
            now: self.now,
            clock: Timestamp::from_second(self.clock).expect("a time"),
            random: 7,
        })
    }

    /// The only action, and the verdict of the volume.
    pub(super) fn decides(&self) -> (Option<Action>, Verdict) {
        let mut plan = self.plan();
        assert!(plan.actions.len() <= 1, "{:?}", plan.actions);
        let verdict = plan.entries.iter().find(|entry| entry.entry == "a").map(|entry| entry.verdict.clone());
        (plan.actions.pop(), verdict.expect("the volume has a verdict"))
    }

    pub(super) fn with_pv(mut self, change: impl FnOnce(&mut OwnedPv)) -> Self {
        let mut owned = OwnedPv { since: Some(self.clock), ..testing::owned_pv("a", "c") };
        change(&mut owned);
        self.owned.insert(owned.name.clone(), owned);
        self
    }

    fn with_state(mut self, state: State) -> Self {
        let identity = testing::disk(1, SIZE).identity;
        self.ledger.insert(Entry { state, ..Entry::new(EntryId(9), "c", "/h/c/a", identity, Timestamp::UNIX_EPOCH) });
        self
    }
}

pub(super) fn claim() -> Claim {
    Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() }
}

pub(super) fn released(owned: &mut OwnedPv) {
    owned.phase = Phase::Released;
    owned.claim = Some(Box::new(claim()));
}

fn used() -> State {
    let owned = testing::owned_pv("a", "c");
    State::Used { pv: owned.name.into(), uid: owned.uid.into(), claim: Some(claim()), since: None }
}

pub(super) fn created(action: Option<Action>) -> (Volume, Entry) {
    match action {
        Some(Action::Create(creation)) => (creation.volume, *creation.target.record),
        other => panic!("a PV is to be made, not {other:?}"),
    }
}
