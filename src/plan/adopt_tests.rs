use std::sync::Arc;

use crate::discovery::Sighting;
use crate::identity::{DeviceIdentity, Identity, Uuid};
use crate::ledger::{Entry, EntryId, Found, State};
use crate::memory::Memory;
use crate::plan::tests::{SIZE, Scene, claim, created, finding, released, scene};
use crate::plan::{Action, Adoption};
use crate::pv::{self, OwnedPv, Phase};
use crate::testing;
use crate::verdict::Reason;

fn adopted(scene: &Scene) -> Adoption {
    match scene.decides().0 {
        Some(Action::Adopt(adoption)) => *adoption,
        other => panic!("a PV is to be adopted, not {other:?}"),
    }
}

/// A PV of a former Node, with a claim on it.
fn former(owned: &mut OwnedPv) {
    owned.former = true;
    owned.phase = Phase::Bound;
    owned.claim = Some(Box::new(claim()));
}

#[test]
fn a_pv_of_a_former_node_is_signed_anew_if_its_volume_is_surely_there() {
    let of_former = |change: fn(&mut OwnedPv)| {
        scene().with_pv(|owned| {
            former(owned);
            change(owned);
        })
    };
    let scene = of_former(|_| {});
    let adoption = adopted(&scene);
    assert_eq!(adoption.signature.as_deref(), Some("local-volume-provisioner-n1-node-uid"));
    assert_eq!(adoption.identity.as_deref(), Some(&*testing::disk(1, SIZE).identity));
    assert_eq!((adoption.former_owner, adoption.owner), (None, None));
    // Also one that was being wiped, but none that somebody else removes.
    let fenced = of_former(|owned| (owned.fenced, owned.terminating) = (true, true));
    assert!(adopted(&fenced).signature.is_some());
    let (action, verdict) = of_former(|owned| owned.terminating = true).decides();
    assert_eq!((action, verdict.reason), (None, Reason::Pending));

    let strange: [fn(&mut OwnedPv); 3] = [
        |owned| owned.identity = Some(testing::disk(2, SIZE).identity),
        |owned| owned.identity = None,
        |owned| (owned.identity, owned.garbled) = (None, true),
    ];
    for change in strange {
        for phase in [Phase::Available, Phase::Bound, Phase::Released] {
            let mut scene = of_former(change);
            let owned = scene.owned.values_mut().next().expect("there is one");
            (owned.phase, owned.terminating) = (phase, false);
            if phase == Phase::Available {
                owned.claim = None;
            }
            let (action, verdict) = scene.decides();
            assert_eq!((action, verdict.reason), (None, Reason::IdentityChanged), "{phase:?}");
            // Unless an admin says that it is the right one.
            let owned = scene.owned.values_mut().next().expect("there is one");
            let digest = testing::disk(1, SIZE).identity.digest();
            assert!(verdict.detail.contains(&digest), "{}", verdict.detail);
            owned.accepted = Some(digest.into());
            assert!(adopted(&scene).signature.is_some());
        }
    }
    // Gone or not there yet, it is left alone, too.
    let mut away = of_former(|owned| owned.labelled = false);
    away.findings.clear();
    let plan = away.plan();
    assert_eq!((plan.actions, plan.entries[0].verdict.reason), (vec![], Reason::Vanished));
}

#[test]
fn what_a_former_nodes_pv_may_have_been_about_is_quarantined_once_the_pv_is_removed() {
    let mut scene = scene().with_pv(|owned| {
        former(owned);
        owned.identity = None;
    });
    for entry in scene.plan().records {
        scene.ledger.insert(entry);
    }
    let identity = testing::disk(1, SIZE).identity;
    let Found::One(entry) = scene.ledger.find(&identity, "/h/c/a") else { panic!("the ledger knows it") };
    assert!(matches!(&entry.state, State::Quarantined { claim: Some(of), .. } if *of == claim()), "{:?}", entry.state);
    // It is no proof that the PV is about it.
    assert_eq!(scene.decides().1.reason, Reason::IdentityChanged);
    assert_eq!(scene.plan().records, []);
    scene.owned.clear();
    let (volume, _) = created(scene.decides().0);
    assert!(volume.annotations[pv::QUARANTINED].contains("former Node"));
}

#[test]
fn a_former_node_that_owns_a_pv_gives_way_to_this_one() {
    let mut scene = scene().with_pv(|owned| owned.owner = Some("former-uid".into()));
    let adoption = adopted(&scene);
    assert_eq!((adoption.former_owner.as_deref(), &adoption.owner), (Some("former-uid"), &None));
    assert_eq!((adoption.signature, adoption.identity), (None, None));
    scene.config.set_pv_owner_ref = true;
    assert_eq!(adopted(&scene).owner, Some(("n1".to_owned(), "node-uid".to_owned())));
    scene.owned.values_mut().next().expect("there is one").owner = Some("node-uid".into());
    assert_eq!(scene.decides().0, None);
}

#[test]
fn labels_and_mount_options_follow_their_sources_the_latter_while_nobody_has_claimed_the_pv() {
    let mut scene = scene().with_pv(|_| {});
    assert_eq!(scene.decides().0, None);
    scene.node.labels.insert("zone".to_owned(), "b".to_owned());
    scene.config.node_labels.push("zone".to_owned());
    scene.classes.get_mut("c").expect("it is there").mount_options.push("noatime".to_owned());
    let adoption = adopted(&scene);
    let labels = adoption.labels.expect("they differ");
    assert_eq!(labels.set.into_iter().collect::<Vec<_>>(), [("zone".to_owned(), Some("b".to_owned()))]);
    assert_eq!(adoption.mount_options, Some(vec!["noatime".to_owned()]));
    let owned = scene.owned.values_mut().next().expect("there is one");
    owned.claim = Some(Box::new(claim()));
    assert_eq!(adopted(&scene).mount_options, None, "a claim has it reserved");
    // What is about to be wiped or removed stays as it is.
    released(scene.owned.values_mut().next().expect("there is one"));
    assert!(matches!(scene.decides().0, Some(Action::Reclaim(_))));
    scene.owned.values_mut().next().expect("there is one").terminating = true;
    assert_eq!(scene.decides().0, None);
}

#[test]
fn of_two_volumes_whose_pvs_would_have_one_name_the_second_gets_a_longer_one() {
    let usual = pv::pv_name("a", "n1", "c");
    let long = pv::long_pv_name("a", "n1", "c");
    let other = |scene: &mut Scene| {
        let other = testing::owned_pv("b", "c");
        let identity = Some(testing::disk(2, SIZE).identity);
        scene.owned.insert(usual.clone(), OwnedPv { name: usual.clone(), identity, ..other });
        scene.findings.push(finding("b", Ok(testing::disk(2, SIZE))));
    };
    assert_eq!(created(scene().decides().0).0.name, usual);
    let mut seen = scene();
    other(&mut seen);
    assert_eq!(created(seen.decides().0).0.name, long);
    // Whatever is being done with the other one, a wipe of hours perhaps.
    seen.memory.begin(&usual);
    assert_eq!(created(seen.decides().0).0.name, long);
    // Found out by a call: another node's PV.
    let mut told = scene();
    told.memory.name_is_taken(&usual);
    assert_eq!(created(told.decides().0).0.name, long);
    // Restarted, with the answer to its creation lost and the other one gone meanwhile.
    let mut lost = scene();
    let state = State::Offered { pv: long.as_str().into(), uid: None, since: None };
    let entry = Entry::new(EntryId(9), "c", "/h/c/a", testing::disk(1, SIZE).identity, jiff::Timestamp::UNIX_EPOCH);
    lost.ledger.insert(Entry { state, ..entry });
    assert_eq!(created(lost.decides().0).0.name, long);
    // Both taken.
    let mut both = scene();
    other(&mut both);
    both.owned.insert(long.clone(), OwnedPv { name: long.clone(), ..both.owned[&usual].clone() });
    let (action, verdict) = both.decides();
    assert_eq!(action, None);
    assert!(verdict.reason == Reason::Refused && verdict.detail.contains(&long), "{verdict}");
    // While the other one is being made, this one waits.
    let mut busy = scene();
    busy.memory.begin(&usual);
    assert_eq!((busy.decides().0, busy.decides().1.reason), (None, Reason::Pending));
    busy.memory = Memory::default();
    assert!(busy.decides().0.is_some());
}

#[test]
fn a_like_disk_in_a_like_place_may_be_another_machines() {
    let in_boot = |boot, serial: Option<&str>| {
        Arc::new(Identity::Device(DeviceIdentity {
            boot: Some(Uuid(boot)),
            serial: serial.map(Into::into),
            bus_path: Some("pci-0000:00:1f.2-ata-1".into()),
            model: Some("Virtual disk".into()),
            bytes: SIZE,
            ..DeviceIdentity::default()
        }))
    };
    for (serial, is_taken_over) in [(None, false), (Some("S3Z8NB0K"), true)] {
        let mut scene = scene().with_pv(|owned| {
            former(owned);
            owned.identity = Some(in_boot(1, serial));
        });
        let identity = in_boot(2, serial);
        scene.findings[0] = finding("a", Ok(Sighting { identity, ..testing::disk(1, SIZE) }));
        let (action, verdict) = scene.decides();
        assert_eq!(matches!(action, Some(Action::Adopt(_))), is_taken_over, "{verdict}");
        // For the Node that it was, it is the same.
        scene.owned.values_mut().for_each(|owned| owned.former = false);
        assert_eq!(scene.decides().1.reason, Reason::Published);
    }
}
