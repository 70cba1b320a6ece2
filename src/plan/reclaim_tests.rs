//! Released PVs: when their volumes are wiped, and what holds a wipe.

use super::*;

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
