//! Volumes without a PV: what is offered, quarantined, or left alone.

use super::*;

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
