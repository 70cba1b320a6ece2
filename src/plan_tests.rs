//! The decisions about single volumes, one scene each.

use super::*;
use crate::discovery::{Candidate, Sighting};
use crate::ledger::{EntryId, Receipt, State};
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

#[test]
fn a_volume_never_seen_follows_the_policy_of_its_class() {
    let (volume, entry) = created(scene().decides().0);
    assert_eq!((volume.claim, volume.reclaim_policy), (None, ReclaimPolicy::Delete));
    assert!(matches!(entry.state, State::Offered { uid: None, .. }), "{:?}", entry.state);
    assert_eq!(volume.annotations[pv::LEDGER_ENTRY], entry.id.to_string());
    for (policy, reclaim_policy, wiping) in [
        (crate::config::DirtyPolicy::Quarantine, ReclaimPolicy::Retain, false),
        (crate::config::DirtyPolicy::Wipe, ReclaimPolicy::Delete, true),
    ] {
        let mut scene = scene();
        scene.config.classes[0].dirty = policy;
        let (volume, entry) = created(scene.decides().0);
        assert!(volume.claim.is_some(), "nobody can claim it");
        assert_eq!(volume.reclaim_policy, reclaim_policy);
        assert_eq!(matches!(entry.state, State::Wiping { .. }), wiping, "{:?}", entry.state);
    }
}

#[test]
fn a_used_volume_without_a_pv_is_quarantined_for_its_claim() {
    let (volume, entry) = created(scene().with_state(used()).decides().0);
    assert_eq!((volume.claim.as_ref(), volume.reclaim_policy), (Some(&claim()), ReclaimPolicy::Retain));
    assert!(volume.annotations.contains_key(pv::QUARANTINED));
    assert!(matches!(entry.state, State::Quarantined { claim: Some(_), .. }));
}

#[test]
fn an_offered_volume_whose_pv_is_gone_is_quarantined() {
    for uid in [None, Some("uid".into())] {
        let offered = State::Offered { pv: "local-pv-1".into(), uid, since: None };
        let (volume, _) = created(scene().with_state(offered).decides().0);
        assert_eq!(volume.reclaim_policy, ReclaimPolicy::Retain);
        assert!(volume.claim.is_some());
    }
}

#[test]
fn a_pv_that_was_asked_for_and_not_seen_is_asked_for_again_by_the_same_process() {
    let name = testing::owned_pv("a", "c").name;
    let offered = State::Offered { pv: name.as_str().into(), uid: None, since: None };
    let mut scene = scene().with_state(offered);
    scene.memory.begin_offering(&name, scene.now);
    assert_eq!(created(scene.decides().0).0.claim, None);
    scene.memory.saw(&name);
    assert!(created(scene.decides().0).0.claim.is_some(), "it was there, and is gone");
}

#[test]
fn a_half_wiped_volume_without_a_pv_is_wiped_and_a_retired_one_stays_out() {
    let wiping = State::Wiping { pv: "p".into(), uid: "u".into(), claim: None, method: "zero".into(), cursor: None };
    let (volume, entry) = created(scene().with_state(wiping.clone()).decides().0);
    assert!(volume.claim.is_some() && volume.reclaim_policy == ReclaimPolicy::Delete);
    assert_eq!(entry.state, wiping);
    let (action, verdict) = scene().with_state(State::Retired { reason: "".into() }).decides();
    assert_eq!((action, verdict.reason), (None, Reason::Dirty));
}

#[test]
fn a_wipe_by_hand_that_was_stopped_is_never_ended_by_the_agent_unasked() {
    let by_hand = State::Wiping {
        pv: "".into(),
        uid: "".into(),
        claim: Some(claim()),
        method: "auto".into(),
        cursor: Some(crate::ledger::Cursor { pass: 0, offset: 4096 }),
    };
    let (volume, entry) = created(scene().with_state(by_hand.clone()).decides().0);
    assert!(volume.claim.is_some() && volume.reclaim_policy == ReclaimPolicy::Retain);
    assert_eq!(entry.state, by_hand, "how far it has come is still known");
    // Offered as it is at an admin's word, it is not clean.
    let plan = scene().with_state(by_hand).with_pv(|_| {}).plan();
    let states: Vec<_> = plan.records.iter().map(|entry| &entry.state).collect();
    assert!(matches!(states[..], [State::Used { claim: Some(_), .. }]), "{states:?}");
}

#[test]
fn a_clean_volume_is_offered_whatever_the_policy_for_unknown_ones() {
    let mut scene = scene().with_state(State::Clean);
    scene.config.classes[0].dirty = crate::config::DirtyPolicy::Quarantine;
    assert_eq!(created(scene.decides().0).0.claim, None);
}

#[test]
fn nothing_is_offered_or_wiped_while_the_ledger_cannot_be_written() {
    let mut unpublished = scene();
    unpublished.ledger_trouble = Some("no space left");
    assert_eq!(unpublished.decides().0, None);
    let mut to_wipe = scene().with_pv(released);
    to_wipe.ledger_trouble = Some("no space left");
    let (action, verdict) = to_wipe.decides();
    assert_eq!((action, verdict.reason), (None, Reason::Pending));
}

#[test]
fn the_ledger_follows_the_pv() {
    let record = |scene: &Scene| scene.plan().records.into_iter().next().map(|entry| entry.state);
    let offered = scene().with_pv(|_| {});
    let Some(State::Offered { uid: Some(uid), since: Some(10_000), .. }) = record(&offered) else {
        panic!("it is offered: {:?}", record(&offered))
    };
    let bound = scene().with_pv(|owned| {
        owned.phase = Phase::Bound;
        owned.claim = Some(Box::new(claim()));
    });
    assert!(matches!(record(&bound), Some(State::Used { claim: Some(_), .. })));
    // Available again at a later time than when it was offered: somebody had it.
    let name = testing::owned_pv("a", "c").name;
    let earlier = State::Offered { pv: name.into(), uid: Some(uid.clone()), since: Some(9_000) };
    assert!(matches!(record(&scene().with_state(earlier).with_pv(|_| {})), Some(State::Used { claim: None, .. })));
    // What an admin gave back with its data stays used.
    assert_eq!(record(&scene().with_state(used()).with_pv(|_| {})), None);
}

#[test]
fn an_available_pv_from_before_its_claim_is_withdrawn() {
    let pv = testing::owned_pv("a", "c");
    let used =
        |since| State::Used { pv: pv.name.as_str().into(), uid: pv.uid.as_str().into(), claim: Some(claim()), since };
    for (since, rolled_back) in [(Some(10_001), true), (Some(9_999), false), (None, false)] {
        let scene = scene().with_state(used(since)).with_pv(|_| {});
        let (action, verdict) = scene.decides();
        match action {
            Some(Action::Withdraw { entry, .. }) if rolled_back => {
                assert_eq!(entry, None, "the ledger goes on as it is");
            }
            None if !rolled_back => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(verdict.reason, if rolled_back { Reason::Dirty } else { Reason::Published });
        assert_eq!(scene.plan().records, []);
    }
}

#[test]
fn what_the_api_server_shows_of_before_the_last_claim_is_not_believed() {
    let uid: Box<str> = "another".into();
    let used = State::Used { pv: "a".into(), uid: uid.clone(), claim: Some(claim()), since: Some(10_001) };
    let wiping = State::Wiping { pv: "a".into(), uid, claim: Some(claim()), method: "zero".into(), cursor: None };
    let kept = State::Quarantined { reason: "why".into(), pv: "a".into(), claim: None };
    let retired = State::Retired { reason: "why".into() };
    for state in [used.clone(), wiping, kept, retired] {
        for (clock, outdated) in [(20_000, true), (0, matches!(state, State::Used { .. }))] {
            let mut scene = scene().with_state(state.clone()).with_pv(|_| {});
            let entry = Entry {
                as_of: Timestamp::from_second(clock).expect("a time"),
                ..scene.ledger.entries().next().expect("one").clone()
            };
            scene.ledger.insert(entry);
            let plan = scene.plan();
            let withdrawn = matches!(plan.actions[..], [Action::Withdraw { entry: None, .. }]);
            assert_eq!(withdrawn, outdated, "{state:?} at {clock}: {:?}", plan.actions);
            assert_eq!(plan.records.is_empty(), outdated, "{state:?} at {clock}");
        }
    }
    // Nor is it wiped for the claim that it had before.
    let scene = scene().with_state(used).with_pv(|owned| {
        released(owned);
        owned.claim.as_mut().expect("it has one").uid = "before".into();
    });
    let plan = scene.plan();
    assert_eq!((plan.actions, plan.records), (vec![], vec![]));
    assert_eq!(plan.entries[0].verdict.reason, Reason::Refused);
}

#[test]
fn a_half_wiped_pv_on_its_way_out_stays_half_wiped_whomever_it_names() {
    let pv = testing::owned_pv("a", "c");
    let (name, uid) = (pv.name.as_str().into(), pv.uid.as_str().into());
    let wiping = State::Wiping { pv: name, uid, claim: Some(claim()), method: "zero".into(), cursor: None };
    let scene = scene().with_state(wiping).with_pv(|owned| {
        released(owned);
        owned.claim = Some(Box::new(Claim { uid: "".into(), name: "to-come".into(), ..claim() }));
        owned.terminating = true;
    });
    assert_eq!(scene.plan().records, []);
}

#[test]
fn a_half_wiped_pv_is_withdrawn_also_while_its_volume_does_not_answer() {
    let pv = testing::owned_pv("a", "c");
    let (name, uid) = (pv.name.as_str().into(), pv.uid.as_str().into());
    let wiping = State::Wiping { pv: name, uid, claim: Some(claim()), method: "zero".into(), cursor: None };
    let mut scene = scene().with_state(wiping).with_pv(|_| {});
    scene.findings = vec![finding("a", Err(Reason::Unresponsive))];
    assert!(matches!(scene.plan().actions[..], [Action::Withdraw { entry: None, .. }]));
}

#[test]
fn what_is_at_a_former_place_of_a_pv_without_identity_is_not_taken_for_its_volume() {
    let scene = without_its_class(scene().with_pv(|owned| {
        released(owned);
        owned.identity = None;
    }));
    let plan = scene.plan();
    assert_eq!((plan.actions, plan.records), (vec![], vec![]));
    assert_eq!(plan.entries[0].verdict.reason, Reason::IdentityChanged);
}

#[test]
fn a_pv_that_is_not_wiped_though_its_claim_is_gone_says_why() {
    for (phase, policy, reason) in [
        (Phase::Released, ReclaimPolicy::Retain, Reason::Published),
        (Phase::Failed, ReclaimPolicy::Retain, Reason::Published),
        (Phase::Released, ReclaimPolicy::Recycle, Reason::Refused),
        (Phase::Failed, ReclaimPolicy::Recycle, Reason::Refused),
        (Phase::Failed, ReclaimPolicy::Delete, Reason::Refused),
    ] {
        let scene = scene().with_pv(|owned| {
            released(owned);
            (owned.phase, owned.reclaim_policy) = (phase, policy.clone());
        });
        let (action, verdict) = scene.decides();
        assert_eq!((action, verdict.reason), (None, reason), "{phase:?} {policy:?}: {verdict}");
    }
}

#[test]
fn a_released_volume_is_wiped_unless_it_is_held() {
    let (action, verdict) = scene().with_pv(released).decides();
    assert!(matches!(action, Some(Action::Reclaim(_))), "{action:?}");
    assert_eq!(verdict.reason, Reason::Wiping);
    let held = |scene: Scene| {
        let (action, verdict) = scene.decides();
        assert_eq!((action, verdict.reason), (None, Reason::Pending), "{verdict}");
        verdict.detail
    };
    let on_pv = scene().with_pv(|owned| {
        released(owned);
        owned.hold = true;
    });
    assert!(held(on_pv).contains("on the PV"));
    let mut on_node = scene().with_pv(released);
    on_node.node.hold = true;
    assert!(held(on_node).contains("on the Node"));
    let mut undo = scene().with_pv(released);
    undo.config.classes[0].wipe_after = Duration::from_secs(60);
    let wake_at = undo.plan().wake_at.expect("it is wiped later");
    assert_eq!(wake_at - undo.now, Duration::from_secs(60));
    // Both by the clock, which may be wrong, and as long as this process has seen it.
    undo.clock += 60;
    assert_eq!(undo.decides().0, None);
    undo.memory.note_wanted(undo.plan().wanted, undo.now);
    undo.now += Duration::from_secs(60);
    assert!(matches!(undo.decides().0, Some(Action::Reclaim(_))));
    undo.clock -= 60;
    assert_eq!(undo.decides().0, None);
}

#[test]
fn a_volume_that_is_in_use_stays_busy_while_its_pv_is_tried_again() {
    let mut scene = scene();
    let name = testing::owned_pv("a", "c").name;
    scene.memory.failed(&name, Verdict::new(Reason::Busy, "mounted"), true, scene.now, 0.0);
    assert_eq!(scene.decides(), (None, Verdict::new(Reason::Busy, "mounted")));
    scene.now += Duration::from_secs(60);
    let (action, verdict) = scene.decides();
    assert!(matches!(action, Some(Action::Create(_))));
    assert_eq!(verdict.reason, Reason::Busy);
    scene.memory.begin(&name);
    assert_eq!(scene.decides().1.reason, Reason::Busy);
}

#[test]
fn a_busy_volume_stays_busy_while_it_is_looked_at_again() {
    let mut scene = scene().with_pv(released);
    let name = testing::owned_pv("a", "c").name;
    scene.memory.failed(&name, Verdict::new(Reason::Busy, "a pod"), true, scene.now, 0.0);
    scene.now += Duration::from_secs(60);
    let (action, verdict) = scene.decides();
    assert!(matches!(action, Some(Action::Reclaim(_))));
    assert_eq!(verdict.reason, Reason::Busy);
    scene.memory.begin(&name);
    assert_eq!(scene.decides().1.reason, Reason::Busy);
    scene.owned.get_mut(&name).expect("it is there").fenced = true;
    assert_eq!(scene.decides().1.reason, Reason::Wiping);
}

#[test]
fn a_released_pv_whose_claim_ref_was_changed_is_not_wiped_without_a_word() {
    let uid = testing::owned_pv("a", "c").uid;
    let used_by = |uid_of_claim: &str, since| State::Used {
        pv: "pv".into(),
        uid: uid.as_str().into(),
        claim: Some(Claim { uid: uid_of_claim.into(), ..claim() }),
        since,
    };
    for (last, since, word, wiped) in [
        ("claim-uid", None, None, true),
        ("another", None, None, false),
        ("another", Some(10_000), None, false),
        ("another", Some(10_000), Some(Word::Wipe), true),
        // Bound and released again, unseen.
        ("another", Some(9_999), None, true),
    ] {
        let mut scene = scene().with_state(used_by(last, since)).with_pv(|owned| {
            released(owned);
            owned.word = word;
        });
        // It stays so, whatever was noted of it.
        for entry in scene.plan().records {
            scene.ledger.insert(entry);
        }
        let (action, verdict) = scene.decides();
        assert_eq!(matches!(action, Some(Action::Reclaim(_))), wiped, "{last}: {verdict}");
        assert_eq!(verdict.detail.contains("claimRef"), !wiped, "{verdict}");
    }
}

#[test]
fn a_mass_release_is_held_for_five_minutes() {
    let mut scene = scene();
    for number in 0..12 {
        let entry = if number == 0 { "a".to_owned() } else { format!("v{number}") };
        let sighting = testing::disk(number + 1, SIZE);
        let mut owned = testing::owned_pv(&entry, "c");
        owned.identity = Some(sighting.identity.clone());
        owned.since = Some(9_990);
        released(&mut owned);
        scene.owned.insert(owned.name.clone(), owned);
        scene.findings.push(finding(&entry, Ok(sighting)));
    }
    scene.findings.remove(0);
    let plan = scene.plan();
    assert_eq!(plan.actions, []);
    assert_eq!(plan.brake.map(|brake| (brake.released, brake.of)), Some((12, 12)));
    assert_eq!(plan.wake_at.expect("it goes on later") - scene.now, Duration::from_secs(300));
    scene.memory.note_mass_release(plan.mass_release, scene.now);
    scene.memory.note_wanted(plan.wanted, scene.now);
    scene.clock = 9_990 + 300;
    assert_eq!(scene.plan().actions, [], "the clock may be wrong");
    scene.now += Duration::from_secs(300);
    assert_eq!(scene.plan().actions.len(), 12);
    assert_eq!(scene.plan().brake, None);
}

#[test]
fn the_first_of_what_may_be_a_mass_release_wait_a_moment_for_the_others() {
    let scene_of = |few: u32, bound: u32| {
        let mut scene = scene();
        scene.findings.clear();
        for number in 0..few + bound {
            let sighting = testing::disk(number, SIZE);
            let mut owned = testing::owned_pv(&format!("v{number}"), "c");
            owned.identity = Some(sighting.identity.clone());
            owned.since = Some(9_999);
            released(&mut owned);
            if number >= few {
                owned.phase = Phase::Bound;
            }
            scene.owned.insert(owned.name.clone(), owned);
            scene.findings.push(finding(&format!("v{number}"), Ok(sighting)));
        }
        scene
    };
    let wipes = |plan: &Plan| plan.actions.iter().filter(|action| matches!(action, Action::Reclaim(_))).count();
    let mut scene = scene_of(3, 7);
    let plan = scene.plan();
    assert_eq!(wipes(&plan), 0);
    assert_eq!(plan.wake_at.expect("it goes on later") - scene.now, brake::PAUSE);
    scene.memory.note_wanted(plan.wanted, scene.now);
    scene.now += brake::PAUSE;
    assert_eq!(wipes(&scene.plan()), 3, "no others have followed");
    for (few, bound) in [(2, 100), (3, 6)] {
        assert_eq!(wipes(&scene_of(few, bound).plan()), few as usize, "{few} and {bound}");
    }
}

#[test]
fn a_few_volumes_with_many_short_claims_are_no_mass_release() {
    let mut scene = scene().with_pv(released);
    for round in 0..30 {
        for pv in ["a", "b", "c"] {
            scene.memory.note_reclaimed(pv, scene.clock - round);
        }
    }
    let plan = scene.plan();
    assert_eq!(plan.brake, None);
    assert!(matches!(plan.actions.first(), Some(Action::Reclaim(_))));
}

#[test]
fn an_admins_word_counts_on_a_released_pv_only() {
    let retained = |word: Word| {
        scene().with_pv(|owned| {
            released(owned);
            owned.reclaim_policy = ReclaimPolicy::Retain;
            owned.word = Some(word);
        })
    };
    assert!(matches!(retained(Word::Wipe).decides().0, Some(Action::Reclaim(_))));
    assert!(matches!(retained(Word::Keep).decides().0, Some(Action::Keep(_))));
    let Some(Action::Retire { entry, .. }) = retained(Word::Retire).decides().0 else { panic!("it is retired") };
    assert!(matches!(entry.state, State::Retired { .. }));
    let (action, verdict) = retained(Word::Unknown("whipe".into())).decides();
    assert_eq!((action, verdict.reason), (None, Reason::Refused));
    let mut forgetful = retained(Word::Retire);
    forgetful.durable = false;
    assert_eq!(forgetful.decides().0, None);
    for word in [Word::Wipe, Word::Keep, Word::Retire] {
        let bound = scene().with_pv(|owned| {
            owned.phase = Phase::Bound;
            owned.claim = Some(Box::new(claim()));
            owned.word = Some(word.clone());
        });
        // One that keeps the data may be said before the claim is gone.
        let action = bound.decides().0;
        assert_eq!(matches!(action, Some(Action::DropWord(_))), word != Word::Keep, "{action:?}");
        let available = scene().with_pv(|owned| owned.word = Some(word));
        assert!(matches!(available.decides().0, Some(Action::DropWord(_))), "the next claim must not inherit it");
    }
    // A word to keep wins over the policy to delete.
    let kept = scene().with_pv(|owned| {
        released(owned);
        owned.word = Some(Word::Keep);
    });
    assert!(matches!(kept.decides().0, Some(Action::Keep(_))));
}

#[test]
fn a_volume_that_is_gone_is_withdrawn_after_a_while_if_nobody_has_claimed_it() {
    let gone = |change: fn(&mut OwnedPv)| {
        let mut scene = scene().with_pv(change);
        scene.findings = vec![finding("b", Ok(testing::disk(2, SIZE)))];
        // Another volume of the directory is there, with a PV of its own.
        let mut other = testing::owned_pv("b", "c");
        other.identity = Some(testing::disk(2, SIZE).identity);
        scene.owned.insert(other.name.clone(), other);
        scene
    };
    let mut scene = gone(|_| {});
    let first = scene.plan();
    assert_eq!((first.actions.len(), first.missing.len()), (0, 1));
    let since = scene.now;
    scene.memory.note_missing(first.missing, since);
    scene.now = since + scene.config.withdraw_after;
    assert!(matches!(scene.plan().actions[..], [Action::Withdraw { .. }]));
    // Not all of them at once.
    scene.findings.clear();
    assert!(scene.plan().actions.is_empty());
    let mut bound = gone(|owned| {
        owned.phase = Phase::Bound;
        owned.claim = Some(Box::new(claim()));
    });
    bound.memory.note_missing(bound.plan().missing, bound.now);
    bound.now += bound.config.withdraw_after * 2;
    let (action, verdict) = bound.decides();
    assert_eq!((action, verdict.reason), (None, Reason::Vanished));
}

#[test]
fn another_disk_withdraws_an_unclaimed_pv_at_once_and_is_never_wiped() {
    let exchanged = |change: fn(&mut OwnedPv)| {
        let mut scene = scene().with_pv(change);
        scene.findings = vec![finding("a", Ok(testing::disk(2, SIZE)))];
        scene.decides()
    };
    let (action, verdict) = exchanged(|_| {});
    assert!(matches!(action, Some(Action::Withdraw { .. })), "{action:?}");
    assert_eq!(verdict.reason, Reason::IdentityChanged);
    assert_eq!(exchanged(released).0, None);
    let accepted = exchanged(|owned| {
        released(owned);
        owned.accepted = Some(testing::disk(2, SIZE).identity.digest().into());
    });
    assert!(matches!(accepted.0, Some(Action::Adopt(_))), "{:?}", accepted.0);
}

#[test]
fn a_pv_follows_the_size_of_its_volume_upwards_only() {
    let sized = |bytes: u64, phase: Phase| {
        let mut scene = scene().with_pv(|owned| {
            owned.phase = phase;
            owned.claim = (phase == Phase::Bound).then(|| Box::new(claim()));
        });
        scene.findings = vec![finding("a", Ok(testing::disk(1, bytes)))];
        scene.decides()
    };
    assert!(matches!(sized(SIZE * 2, Phase::Bound).0, Some(Action::Grow { to, .. }) if to.bytes() == SIZE * 2));
    assert!(matches!(sized(SIZE * 2, Phase::Available).0, Some(Action::Grow { .. })));
    let (action, verdict) = sized(SIZE / 2, Phase::Bound);
    assert_eq!((action, verdict.reason), (None, Reason::Shrunk));
    assert!(matches!(sized(SIZE / 2, Phase::Available).0, Some(Action::Withdraw { .. })));
}

#[test]
fn a_quarantined_volume_is_looked_into_and_never_wiped_unasked() {
    let quarantined = |word: Option<Word>, was_looked_into: bool| {
        let mut scene = scene().with_pv(|owned| {
            released(owned);
            owned.quarantined = true;
            owned.reclaim_policy = ReclaimPolicy::Retain;
            owned.word = word;
        });
        if was_looked_into {
            let pv = testing::owned_pv("a", "c").name;
            scene.memory.failed(&pv, Verdict::new(Reason::Quarantined, "not empty"), false, scene.now, 0.0);
        }
        scene.decides()
    };
    let (action, verdict) = quarantined(None, false);
    assert!(matches!(action, Some(Action::FreeIfBlank { .. })), "{action:?}");
    assert_eq!(verdict.reason, Reason::Quarantined);
    let (action, verdict) = quarantined(None, true);
    assert_eq!(action, None);
    assert!(verdict.detail.ends_with("not empty"), "{verdict}");
    // An admin's word does not wait for the next look into it.
    for was_looked_into in [false, true] {
        assert!(matches!(quarantined(Some(Word::Wipe), was_looked_into).0, Some(Action::Reclaim(_))));
        assert!(matches!(quarantined(Some(Word::Keep), was_looked_into).0, Some(Action::Keep(_))));
    }
}

#[test]
fn two_names_for_one_volume_get_one_pv_and_are_not_wiped_with_two() {
    let mut scene = scene();
    scene.findings.push(finding("b", Ok(testing::disk(1, SIZE))));
    let plan = scene.plan();
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(plan.entries[1].verdict.reason, Reason::DuplicateOf);
    for entry in ["a", "b"] {
        let mut owned = testing::owned_pv(entry, "c");
        released(&mut owned);
        scene.owned.insert(owned.name.clone(), owned);
    }
    let plan = scene.plan();
    assert_eq!(plan.actions, []);
    assert!(plan.entries.iter().all(|entry| entry.verdict.reason == Reason::DuplicateOf));
}

#[test]
fn what_is_quarantined_is_not_made_clean_by_a_create_that_fails() {
    let before = |scene: Scene| match scene.decides().0 {
        Some(Action::Create(creation)) => creation.before,
        other => panic!("a PV is to be made, not {other:?}"),
    };
    assert_eq!(before(scene()), Some(State::AsFound));
    assert_eq!(before(scene().with_state(State::Clean)), Some(State::AsFound), "no receipt says that it was wiped");
    let offered = State::Offered { pv: "p".into(), uid: Some("u".into()), since: None };
    for dirty in [used(), offered] {
        assert_eq!(before(scene().with_state(dirty)), None);
    }
    let mut quarantine = scene();
    quarantine.config.classes[0].dirty = crate::config::DirtyPolicy::Quarantine;
    assert_eq!(before(quarantine), None);
}

#[test]
fn a_new_disk_in_the_place_of_another_gets_an_entry_of_its_own() {
    let first = created(scene().decides().0).1;
    let mut scene = scene();
    scene.ledger.insert(Entry { state: used(), ..first.clone() });
    scene.findings = vec![finding("a", Ok(testing::disk(2, SIZE)))];
    let second = created(scene.decides().0).1;
    assert_ne!(first.id, second.id);
    // Even under the same random bits and the same digest.
    let mut third = Scene { ..scene };
    third.ledger.insert(Entry { identity: testing::disk(3, SIZE).identity, ..second.clone() });
    assert_ne!(created(third.decides().0).1.id, second.id);
}

#[test]
fn a_volume_that_has_a_pv_under_another_name_gets_no_second_one() {
    let mut scene = scene().with_pv(|_| {});
    scene.findings = vec![finding("b", Ok(testing::disk(1, SIZE)))];
    let plan = scene.plan();
    assert_eq!(plan.actions, []);
    let renamed = plan.entries.iter().find(|entry| entry.entry == "b").expect("it has a verdict");
    assert_eq!(renamed.verdict.reason, Reason::DuplicateOf);
    assert!(renamed.verdict.detail.contains("/h/c/a"), "{}", renamed.verdict);
}

#[test]
fn a_claim_that_was_bound_to_another_pv_does_not_get_the_quarantined_one() {
    let of = |pv: &str| State::Used { pv: pv.into(), uid: "u".into(), claim: Some(claim()), since: None };
    let name = testing::owned_pv("a", "c").name;
    let (own, _) = created(scene().with_state(of(&name)).decides().0);
    assert_eq!(own.claim, Some(claim()));
    let (others, entry) = created(scene().with_state(of("local-pv-other")).decides().0);
    assert!(others.claim.expect("nobody can claim it").is_nobody());
    assert!(matches!(entry.state, State::Quarantined { claim: Some(_), .. }), "but it is remembered");
}

#[test]
fn a_ledger_that_knows_nothing_learns_from_every_pv() {
    let learned = |change: fn(&mut OwnedPv)| {
        let mut records = scene().with_pv(change).plan().records;
        assert!(records.len() <= 1, "{records:?}");
        records.pop().map(|entry| entry.state)
    };
    let terminating = learned(|owned| {
        owned.phase = Phase::Bound;
        owned.claim = Some(Box::new(claim()));
        owned.terminating = true;
    });
    assert!(matches!(terminating, Some(State::Used { claim: Some(_), .. })), "{terminating:?}");
    let held = learned(|owned| {
        released(owned);
        owned.hold = true;
    });
    assert!(matches!(held, Some(State::Used { .. })), "{held:?}");
    let fenced = learned(|owned| {
        released(owned);
        (owned.fenced, owned.terminating) = (true, true);
    });
    assert!(matches!(fenced, Some(State::Wiping { cursor: None, .. })), "{fenced:?}");
    let quarantined = learned(|owned| {
        released(owned);
        owned.quarantined = true;
        owned.reclaim_policy = ReclaimPolicy::Retain;
    });
    assert!(matches!(quarantined, Some(State::Quarantined { .. })), "{quarantined:?}");
    assert_eq!(learned(|owned| owned.terminating = true), None, "nobody has it");
}

#[test]
fn what_the_ledger_says_settles() {
    for change in [(|_| {}) as fn(&mut OwnedPv), released, |owned| owned.phase = Phase::Bound] {
        let mut scene = scene().with_pv(change);
        for entry in scene.plan().records {
            scene.ledger.insert(entry);
        }
        assert_eq!(scene.plan().records, [], "what was noted is not noted again");
    }
}

#[test]
fn a_disk_that_was_accepted_leaves_the_entry_of_the_former_one() {
    let mut scene = scene().with_state(used()).with_pv(|owned| {
        owned.phase = Phase::Bound;
        owned.claim = Some(Box::new(claim()));
        owned.identity = Some(testing::disk(2, SIZE).identity);
    });
    scene.findings = vec![finding("a", Ok(testing::disk(2, SIZE)))];
    let records = scene.plan().records;
    let [entry] = &records[..] else { panic!("one entry: {records:?}") };
    assert_ne!(entry.id, EntryId(9), "that of the former disk stays");
    assert_eq!(entry.identity, testing::disk(2, SIZE).identity);
}

#[test]
fn an_identity_that_cannot_be_read_is_none_that_was_never_recorded() {
    let garbled = |accepted: Option<Box<str>>| {
        scene()
            .with_pv(|owned| {
                released(owned);
                (owned.identity, owned.garbled, owned.accepted) = (None, true, accepted);
            })
            .decides()
    };
    let (action, verdict) = garbled(None);
    assert_eq!((action, verdict.reason), (None, Reason::IdentityChanged));
    assert!(matches!(garbled(Some(testing::disk(1, SIZE).identity.digest().into())).0, Some(Action::Adopt(_))));
}

#[test]
fn copies_of_one_filesystem_that_can_not_be_told_apart_are_not_wiped() {
    let copy = |minor| {
        let Identity::Mount(mount) = (*testing::mount(minor, SIZE).identity).clone() else { unreachable!("a mount") };
        Sighting::new(Identity::Mount(crate::identity::MountIdentity { uuid: Some("u".into()), ..mount }), SIZE)
    };
    let mut scene = scene().with_pv(|owned| {
        released(owned);
        owned.identity = Some(copy(1).identity);
    });
    scene.findings = vec![finding("a", Ok(copy(1))), finding("b", Ok(copy(2)))];
    let (action, verdict) = scene.decides();
    assert_eq!((action, verdict.reason), (None, Reason::DuplicateOf));
}

#[test]
fn a_volume_whose_pv_is_being_retired_stays_retired() {
    let records = |change: fn(&mut OwnedPv)| {
        let retired = scene().with_state(State::Retired { reason: "".into() });
        let scene = retired.with_pv(|owned| {
            released(owned);
            owned.reclaim_policy = ReclaimPolicy::Retain;
            change(owned);
        });
        scene.plan().records.into_iter().map(|entry| entry.state).collect::<Vec<_>>()
    };
    assert_eq!(records(|owned| owned.terminating = true), []);
    assert_eq!(records(|owned| owned.word = Some(Word::Retire)), [], "its removal may have had no answer");
    // The word was taken back before the PV went.
    assert!(matches!(records(|_| {})[..], [State::Used { claim: Some(_), .. }]));
}

#[test]
fn a_volume_that_was_wiped_stays_clean_while_another_finalizer_keeps_its_pv() {
    let records = |change: fn(&mut OwnedPv)| {
        let mut scene = scene().with_state(State::Clean).with_pv(|owned| {
            released(owned);
            owned.terminating = true;
        });
        let (pv, at) = (testing::owned_pv("a", "c"), Timestamp::UNIX_EPOCH);
        let mut entry = scene.ledger.get(EntryId(9)).expect("it is there").clone();
        entry.sign(Receipt {
            at,
            method: "zero".into(),
            amount: 1,
            seconds: 1.0,
            verification: "full".into(),
            identity: "".into(),
            claim: Some(claim()),
            pv: pv.name.as_str().into(),
            uid: pv.uid.as_str().into(),
        });
        scene.ledger.insert(entry);
        scene.owned.values_mut().for_each(change);
        scene.plan().records.into_iter().map(|entry| entry.state).collect::<Vec<_>>()
    };
    assert_eq!(records(|_| {}), []);
    // Another PV was wiped, or this one may be bound again.
    assert!(matches!(records(|owned| owned.uid = "another".into())[..], [State::Used { claim: Some(_), .. }]));
    assert!(matches!(records(|owned| owned.terminating = false)[..], [State::Used { claim: Some(_), .. }]));
}

/// A scene in which PVs may not be patched, with a PV of the Go provisioner.
fn unpatchable(change: impl FnOnce(&mut OwnedPv)) -> Scene {
    let legacy = |owned: &mut OwnedPv| {
        (owned.labelled, owned.identity, owned.entry) = (false, None, None);
        change(owned);
    };
    Scene { may_patch: false, ..scene().with_pv(legacy) }
}

#[test]
fn without_the_right_to_patch_a_pv_of_the_go_provisioner_is_tended_as_it_is() {
    let (action, verdict) = unpatchable(|_| {}).decides();
    assert_eq!((action, verdict.reason), (None, Reason::Published));
    let bound = unpatchable(|owned| owned.phase = Phase::Bound);
    assert_eq!(bound.decides().0, None);
    // The ledger has its volume from the first decision on.
    let scene = unpatchable(released);
    let plan = scene.plan();
    let [record] = plan.records.as_slice() else { panic!("one record: {:?}", plan.records) };
    assert!(matches!(&record.state, State::Used { claim: Some(used), .. } if *used == claim()));
    let Some(Action::Reclaim(target)) = scene.decides().0 else { panic!("it is wiped") };
    assert_eq!((target.record.id, &target.identity), (record.id, &testing::disk(1, SIZE).identity));
    // Another disk than at the first decision is not wiped.
    let mut exchanged = unpatchable(released);
    exchanged.ledger.insert(record.clone());
    exchanged.findings = vec![finding("a", Ok(testing::disk(2, SIZE)))];
    assert_eq!(exchanged.decides().1.reason, Reason::IdentityChanged);
    // Nor is it offered under another name.
    let mut moved = unpatchable(|owned| owned.phase = Phase::Bound);
    moved.ledger.insert(record.clone());
    moved.findings = vec![finding("b", Ok(testing::disk(1, SIZE)))];
    assert!(!moved.plan().actions.iter().any(|action| matches!(action, Action::Create(_))));
}

#[test]
fn without_the_right_to_patch_nothing_is_asked_for_that_takes_it() {
    for word in [Word::Wipe, Word::Keep, Word::Retire] {
        for phase in [Phase::Available, Phase::Bound, Phase::Released] {
            let scene = unpatchable(|owned| {
                released(owned);
                (owned.phase, owned.word) = (phase, Some(word.clone()));
            });
            let (action, verdict) = scene.decides();
            assert_eq!((action, verdict.reason), (None, Reason::Refused), "{word:?} on {phase:?}");
            assert!(verdict.detail.contains("reclaim policy to Delete"), "{verdict}");
        }
    }
    let digest = testing::disk(1, SIZE).identity.digest();
    let accepting = unpatchable(|owned| owned.accepted = Some(digest.as_str().into()));
    assert_eq!((accepting.decides().0, accepting.decides().1.reason), (None, Reason::Refused));
    for terminating in [false, true] {
        let fenced = unpatchable(|owned| {
            released(owned);
            (owned.fenced, owned.terminating) = (true, terminating);
        });
        assert_eq!((fenced.decides().0, fenced.decides().1.reason), (None, Reason::Refused));
    }
    let grown = unpatchable(|owned| owned.capacity = Some(Capacity::rounded_down(SIZE / 2)));
    let (action, verdict) = grown.decides();
    assert_eq!((action, verdict.reason), (None, Reason::Published));
    assert!(verdict.detail.contains("has grown"), "{verdict}");
    let mut gone = unpatchable(|owned| owned.phase = Phase::Bound);
    gone.findings.clear();
    assert_eq!(gone.decides().0, None);
}

#[test]
fn a_pv_that_was_taken_from_its_wipe_is_withdrawn_and_its_volume_wiped_to_the_end() {
    let wiping = |method: &str| {
        let owned = testing::owned_pv("a", "c");
        let (pv, uid) = (owned.name.into(), owned.uid.into());
        State::Wiping { pv, uid, claim: Some(claim()), method: method.into(), cursor: None }
    };
    for may_patch in [false, true] {
        for taken in [Phase::Released, Phase::Available] {
            let scene = scene().with_pv(|owned| owned.phase = taken).with_state(wiping("zero"));
            let scene = Scene { may_patch, ..scene };
            let plan = scene.plan();
            assert_eq!(plan.records, [], "the ledger goes on saying that it is half wiped");
            assert!(matches!(&plan.actions[..], [Action::Withdraw { entry: None, .. }]), "{:?}", plan.actions);
            // Also when its disk is not there.
            let gone = Scene { findings: Vec::new(), ..scene };
            assert!(matches!(&gone.plan().actions[..], [Action::Withdraw { entry: None, .. }]));
        }
        // Its claim is what was wiped for: it goes on, unless it is held.
        let goes_on = scene().with_pv(released).with_state(wiping("zero"));
        let goes_on = Scene { may_patch, ..goes_on };
        assert!(matches!(goes_on.plan().actions[..], [Action::Reclaim(_)]));
        assert_eq!(goes_on.plan().records, []);
        let held = scene().with_pv(|owned| (released(owned), owned.hold = true).0).with_state(wiping("zero"));
        assert_eq!((held.plan().actions, held.plan().records), (vec![], vec![]));
        // A claim that has it is its user from then on.
        let mut bound = scene().with_state(wiping("zero"));
        bound = bound.with_pv(|owned| {
            owned.phase = Phase::Bound;
            owned.claim = Some(Box::new(Claim { uid: "another".into(), ..claim() }));
        });
        let plan = bound.plan();
        assert_eq!(plan.actions, []);
        assert!(matches!(&plan.records[..], [entry] if matches!(entry.state, State::Used { .. })));
        // One that was fenced only, and not begun, is as an admin left it.
        let unfenced = scene().with_pv(|_| {}).with_state(wiping(""));
        assert_eq!(unfenced.plan().actions, []);
    }
    // With its PV gone, it is wiped at once.
    let (volume, entry) = created(scene().with_state(wiping("zero")).decides().0);
    assert_eq!((volume.reclaim_policy, entry.state), (ReclaimPolicy::Delete, wiping("zero")));
    // What is left of its data is not offered at an admin's word.
    let keep = scene().with_pv(|owned| (released(owned), owned.word = Some(Word::Keep)).0).with_state(wiping("zero"));
    assert_eq!((keep.decides().0, keep.decides().1.reason), (None, Reason::Refused));
}

/// The volume is where class c was: it is configured no more.
fn without_its_class(mut scene: Scene) -> Scene {
    let rest = BTreeMap::from([("storageClassMap".to_owned(), "d: {hostDir: /h/d, mountDir: /m/d}".to_owned())]);
    let before = std::mem::replace(&mut scene.config, Config::parse(&rest).expect("it is valid"));
    scene.config.succeed(&before);
    for finding in &mut scene.findings {
        (finding.selected, finding.former) = (false, Some("/m/c".into()));
    }
    scene
}

#[test]
fn from_where_a_class_was_nothing_new_is_offered_or_shown() {
    let plan = without_its_class(scene()).plan();
    assert!(plan.actions.is_empty() && plan.entries.is_empty(), "{plan:?}");
}

#[test]
fn a_pv_of_a_class_that_is_configured_no_more_stays_and_is_reclaimed_by_its_last_rules() {
    let (action, verdict) = without_its_class(scene().with_pv(|_| ())).decides();
    assert!(matches!(action, None | Some(Action::Adopt(_))), "{action:?}");
    assert_eq!(verdict.reason, Reason::Published);
    let mut scene = scene();
    scene.config.classes[0].wipe.method = crate::method::Method::Overwrite { passes: 7 };
    let mut scene = without_its_class(scene.with_pv(released));
    match scene.decides().0 {
        Some(Action::Reclaim(target)) => {
            assert_eq!((target.mount_dir.as_str(), target.entry.as_str()), ("/m/c", "a"));
            assert_eq!(target.rules.method, crate::method::Method::Overwrite { passes: 7 });
        }
        other => panic!("its volume is to be wiped, not {other:?}"),
    }
    // Nothing says any more what the class was.
    scene.config.former.clear();
    let (action, verdict) = scene.decides();
    assert!(action.is_none() && verdict.reason == Reason::Refused, "{action:?} {verdict}");
    assert!(verdict.detail.contains("add the class again"), "{verdict}");
}

#[test]
fn what_vanishes_from_where_a_class_was_is_judged_apart_from_where_it_is() {
    let mut scene = scene().with_pv(|_| ());
    let beside = OwnedPv { since: Some(scene.clock), ..testing::owned_pv("b", "c") };
    scene.owned.insert(beside.name.clone(), beside);
    scene.config.withdraw_after = Duration::ZERO;
    let moved = BTreeMap::from([("storageClassMap".to_owned(), "c: {hostDir: /h/n, mountDir: /m/n}".to_owned())]);
    let before = std::mem::replace(&mut scene.config, Config::parse(&moved).expect("it is valid"));
    scene.config.succeed(&before);
    scene.config.withdraw_after = Duration::ZERO;
    // Only where the class is now there is a volume: all that was in the former directory is gone.
    scene.findings = vec![Finding { host_path: "/h/n/x".to_owned(), ..finding("x", Ok(testing::disk(2, SIZE))) }];
    let withdrawn =
        |scene: &Scene| scene.plan().actions.iter().filter(|action| matches!(action, Action::Withdraw { .. })).count();
    assert_eq!(withdrawn(&scene), 0);
    scene.owned.retain(|_, owned| owned.path == "/h/c/a");
    assert_eq!(withdrawn(&scene), 1, "the only one is no mass");
}
