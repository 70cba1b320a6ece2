//! What the ledger is to remember of volumes with a PV, and what follows from what it knows.

use super::*;
use crate::ledger::Receipt;

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
fn a_claim_that_a_pv_names_by_uid_counts_as_use_before_the_phase_says_so() {
    let record = |scene: &Scene| scene.plan().records.into_iter().next().map(|entry| entry.state);
    let pv = testing::owned_pv("a", "c");
    let offered = State::Offered { pv: pv.name.into(), uid: Some(pv.uid.into()), since: Some(10_000) };
    for (phase, terminating) in [(Phase::Available, false), (Phase::Available, true), (Phase::Pending, false)] {
        let named = |uid: &str| {
            let claim = Claim { uid: uid.into(), ..claim() };
            scene().with_state(offered.clone()).with_pv(|owned| {
                (owned.phase, owned.terminating) = (phase, terminating);
                owned.claim = Some(Box::new(claim));
            })
        };
        let state = record(&named("claim-uid"));
        assert!(matches!(state, Some(State::Used { claim: Some(_), .. })), "{phase:?} {terminating}: {state:?}");
        // One that is still to come has written nothing.
        assert!(!matches!(record(&named("")), Some(State::Used { .. })), "{phase:?} {terminating}");
    }
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
