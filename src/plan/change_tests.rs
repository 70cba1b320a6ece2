//! Volumes with a PV that go, change or move.

use super::*;

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
