//! What becomes of PVs that may not be patched.

use super::*;

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
