//! The dirty gate: a volume whose PV was deleted by hand is never offered with its
//! tenant's data, whatever the agent saw of it, and each way out works.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use serde_json::json;

use crate::common::{SOON, wait_ready, wait_saying, wait_verdict};
use crate::harness::disk::LoopDisk;
use crate::harness::volumes::phase;
use crate::harness::{ControlPlane, Options};
use crate::tenancy::{SECRET, Scene, Store};

const RECLAIM: &str = "mooring.dev/reclaim";

fn policy(pv: &PersistentVolume) -> &str {
    let spec = pv.spec.as_ref().expect("it has a spec");
    spec.persistent_volume_reclaim_policy.as_deref().unwrap_or_default()
}

/// The ways out are named where an admin looks.
async fn is_quarantined(scene: &Scene, store: &Store, before: &PersistentVolume) -> PersistentVolume {
    let pv = store.wait_anew(&scene.node, "Released", before).await;
    assert_eq!(policy(&pv), "Retain", "nothing wipes it by itself");
    let message = scene.node.wait_event(&pv.name_any(), "Quarantined", "", SOON).await;
    for words in ["empty it", "wipe (destroys", "keep (offers", "retire (withdraws"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(store.has_secret(), "nothing was touched");
    pv
}

/// Both volumes used, released and deleted by hand while the agent runs.
async fn deleted_by_hand(tag: &str) -> (Scene, Vec<PersistentVolume>) {
    let mut scene = Scene::new(tag, "Retain").await;
    scene.begin();
    let used = scene.use_all().await;
    // Later it may see all that comes at once, and not know whose the data is.
    scene.wait_ledger("used").await;
    let quarantined = scene
        .never_offered(async {
            let mut quarantined = Vec::new();
            for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
                scene.node.release(claim).await;
                store.wait(&scene.node, "Released").await;
                scene.node.delete_pv(&pv.name_any()).await;
                quarantined.push(is_quarantined(&scene, store, pv).await);
                let claim = claim.name_any();
                scene.node.wait_event(scene.node.name(), "Dirty", &claim, SOON).await;
            }
            quarantined
        })
        .await;
    (scene, quarantined)
}

/// Each volume is clean, and offered anew as any other.
async fn offered_clean(scene: &Scene, before: &[PersistentVolume]) {
    for (store, before) in scene.stores.iter().zip(before) {
        let anew = store.wait_anew(&scene.node, "Available", before).await;
        assert!(store.is_blank());
        assert_eq!(anew.spec.expect("it has a spec").claim_ref, None);
    }
}

#[tokio::test]
async fn a_used_pv_deleted_while_the_agent_runs_comes_back_and_emptying_it_by_hand_frees_it() {
    let (scene, quarantined) = deleted_by_hand("byhand").await;
    // It is looked at again and again, and told of when something is new only.
    let path = scene.stores[0].path().display().to_string();
    let lines = |words: &str, about: &str| {
        scene.agent().logs().iter().filter(|line| line.contains(words) && line.contains(about)).count()
    };
    let deadline = std::time::Instant::now() + SOON;
    while lines("Work failed", &quarantined[0].name_any()) < 4 {
        assert!(std::time::Instant::now() < deadline, "it is not looked at again");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // A busy machine may look hung in between.
    let most = 2 + lines("\"verdict\":\"Unresponsive\"", &path);
    assert!(lines("\"verdict\":\"Quarantined\"", &path) <= most, "{:?}", scene.agent().logs());
    scene.stores.iter().for_each(Store::empty_by_hand);
    offered_clean(&scene, &quarantined).await;
    scene.end().await;
}

#[tokio::test]
async fn a_quarantined_volume_is_wiped_at_an_admins_word() {
    let (scene, quarantined) = deleted_by_hand("qwipe").await;
    let words = async {
        for pv in &quarantined {
            scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some("wipe")).await;
        }
        offered_clean(&scene, &quarantined).await;
    };
    scene.never_offered(words).await;
    scene.end().await;
}

#[tokio::test]
async fn a_quarantined_volume_is_offered_with_its_data_at_an_admins_word_only() {
    let (mut scene, quarantined) = deleted_by_hand("qkeep").await;
    for (store, before) in scene.stores.iter().zip(&quarantined) {
        scene.node.annotate_pv(&before.name_any(), RECLAIM, Some("keep")).await;
        let kept = store.wait(&scene.node, "Available").await;
        assert_eq!(kept.uid(), before.uid(), "it is the same PV");
        assert!(!kept.annotations().contains_key(RECLAIM), "the word was for this once");
        assert!(store.has_secret());
    }
    // Kept is not clean: deleted by hand, it comes back again.
    wait_verdict(scene.agent(), &scene.stores[0].class, "vol", "Published").await;
    scene.kill().await;
    for pv in &quarantined {
        scene.node.delete_pv(&pv.name_any()).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    scene.begin();
    let again = async {
        for (store, before) in scene.stores.iter().zip(&quarantined) {
            is_quarantined(&scene, store, before).await;
        }
    };
    scene.never_offered(again).await;
    scene.end().await;
}

#[tokio::test]
async fn a_retired_volume_stays_out_also_after_a_restart() {
    let (mut scene, quarantined) = deleted_by_hand("retire").await;
    for pv in &quarantined {
        scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some("retire")).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    for restart in [false, true] {
        if restart {
            scene.kill().await;
            scene.begin();
        }
        for store in &scene.stores {
            wait_saying(scene.agent(), &store.class, "vol", "Dirty", "retired").await;
            assert!(store.has_secret());
        }
        wait_ready(scene.agent()).await;
        assert_eq!(scene.node.pvs().await.len(), 0);
    }
    scene.end().await;
}

#[tokio::test]
async fn a_used_pv_deleted_while_no_agent_runs_comes_back() {
    let mut scene = Scene::new("down", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    for (pv, claim) in &used {
        scene.node.release(claim).await;
        scene.node.force_delete_pv(pv).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    scene.begin();
    let steps = async {
        for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
            let back = is_quarantined(&scene, store, pv).await;
            let named = back.spec.and_then(|spec| spec.claim_ref).and_then(|claim| claim.name);
            assert_eq!(named, Some(claim.name_any()), "it says whose data it is");
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_pv_bound_and_deleted_while_no_agent_runs_comes_back_though_only_its_offer_was_seen() {
    let mut scene = Scene::new("unseen", "Delete").await;
    scene.begin();
    for store in &scene.stores {
        store.wait(&scene.node, "Available").await;
    }
    scene.wait_ledger("offered").await;
    scene.kill().await;
    let used = scene.use_all().await;
    for (pv, claim) in &used {
        scene.node.release(claim).await;
        scene.node.force_delete_pv(pv).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    scene.begin();
    let steps = async {
        for (store, (pv, _)) in scene.stores.iter().zip(&used) {
            let back = is_quarantined(&scene, store, pv).await;
            scene.node.wait_event(scene.node.name(), "Dirty", &back.name_any(), SOON).await;
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_pv_that_a_restore_of_etcd_makes_available_again_is_withdrawn() {
    let mut scene = Scene::new("rollback", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
        scene.node.release(claim).await;
        store.wait(&scene.node, "Released").await;
        scene.node.clear_claim(&pv.name_any()).await;
        store.wait(&scene.node, "Available").await;
        // As it was before the claim.
        scene.node.backdate_phase(pv).await;
    }
    scene.begin();
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        is_quarantined(&scene, store, pv).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_pv_bound_released_and_taken_back_unseen_counts_as_used() {
    let mut scene = Scene::new("takenback", "Retain").await;
    scene.begin();
    for store in &scene.stores {
        store.wait(&scene.node, "Available").await;
    }
    // With the time of the offer: a later one says that it was claimed in between.
    scene.wait_ledger_text("\"since\":").await;
    scene.kill().await;
    // The API server's clock has seconds.
    let offered = jiff::Timestamp::now().as_second();
    while jiff::Timestamp::now().as_second() == offered {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let used = scene.use_all().await;
    for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
        scene.node.release(claim).await;
        store.wait(&scene.node, "Released").await;
        scene.node.clear_claim(&pv.name_any()).await;
        store.wait(&scene.node, "Available").await;
    }
    scene.begin();
    wait_ready(scene.agent()).await;
    for (pv, _) in &used {
        scene.node.delete_pv(&pv.name_any()).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    let steps = async {
        for (store, (pv, _)) in scene.stores.iter().zip(&used) {
            is_quarantined(&scene, store, pv).await;
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_claim_put_on_a_pv_while_agent_and_controller_manager_are_away_counts_as_use() {
    let plane = ControlPlane::start(Options::default());
    let mut scene = Scene::on(&plane, "bothaway", "Delete").await;
    scene.begin();
    let mut offered = Vec::new();
    for store in &scene.stores {
        offered.push(store.wait(&scene.node, "Available").await);
    }
    scene.wait_ledger_text("\"since\":").await;
    scene.kill().await;
    plane.stop("kube-controller-manager");
    // The claim is gone again when the agent comes back, and the phase is as it was.
    let claim_ref = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                            "name": "of-a-while", "uid": "0a1b2c3d-1111-4222-8333-444455556666" });
    for (store, pv) in scene.stores.iter().zip(&offered) {
        scene
            .node
            .patch_pv(&pv.name_any(), json!({ "spec": { "claimRef": claim_ref } }))
            .await
            .expect("nothing denies it");
        store.write_secret();
    }
    scene.begin();
    scene.wait_ledger("used").await;
    scene.wait_ledger_text("of-a-while").await;
    // Taken off as if nothing had been, and the PV removed with nobody's claim on it.
    for (store, pv) in scene.stores.iter().zip(&offered) {
        scene.node.clear_claim(&pv.name_any()).await;
        store.wait(&scene.node, "Available").await;
        scene.node.force_delete_pv(pv).await;
        scene.node.wait_gone(pv, SOON).await;
    }
    plane.start_component("kube-controller-manager");
    for (store, pv) in scene.stores.iter().zip(&offered) {
        is_quarantined(&scene, store, pv).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_pv_deleted_under_a_living_claim_comes_back_bound_to_it() {
    let mut scene = Scene::new("living", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    for running in [true, false] {
        let now: Vec<_> = {
            let mut now = Vec::new();
            for store in &scene.stores {
                now.push(store.wait(&scene.node, "Bound").await);
            }
            now
        };
        scene.wait_ledger("used").await;
        if !running {
            scene.kill().await;
        }
        for pv in &now {
            scene.node.force_delete_pv(pv).await;
            scene.node.wait_gone(pv, SOON).await;
        }
        if !running {
            scene.begin();
        }
        let steps = async {
            for ((store, before), (_, claim)) in scene.stores.iter().zip(&now).zip(&used) {
                let back = store.wait_anew(&scene.node, "Bound", before).await;
                let of = back.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).expect("it has a claim");
                assert_eq!((of.uid.clone(), of.name.clone()), (claim.uid(), claim.metadata.name.clone()));
                assert_eq!(policy(&back), "Retain", "its class's policy was Delete, and an accident is no reason to");
            }
        };
        scene.never_offered(steps).await;
        assert!(scene.stores.iter().all(Store::has_secret));
    }
    // Released after that, it is quarantined like any other whose PV was lost.
    let steps = async {
        for (store, (_, claim)) in scene.stores.iter().zip(&used) {
            scene.node.release(claim).await;
            store.wait(&scene.node, "Released").await;
            wait_verdict(scene.agent(), &store.class, "vol", "Quarantined").await;
            assert!(store.has_secret());
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn an_unused_pv_deleted_while_the_agent_runs_is_offered_again_whatever_is_on_it() {
    let mut scene = Scene::new("unused", "Delete").await;
    // As the admin left it: nobody's but theirs.
    scene.stores.iter().for_each(Store::write_secret);
    scene.begin();
    scene.wait_ledger_text("\"since\":").await;
    for store in &scene.stores {
        let pv = store.wait(&scene.node, "Available").await;
        scene.node.delete_pv(&pv.name_any()).await;
        store.wait_anew(&scene.node, "Available", &pv).await;
        assert!(store.has_secret());
    }
    scene.end().await;
}

#[tokio::test]
async fn a_wiped_volume_is_clean_though_somebody_elses_finalizer_keeps_its_pv() {
    let mut scene = Scene::new("kept", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    let finalizers = |of: &[&str]| json!({ "metadata": { "finalizers": of } });
    for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
        let theirs = finalizers(&["example.com/keeps"]);
        scene.node.patch_pv(&pv.name_any(), theirs).await.expect("a finalizer can be added");
        scene.node.release(claim).await;
        let only_theirs = |pv: &PersistentVolume| {
            pv.metadata.deletion_timestamp.is_some() && pv.finalizers() == ["example.com/keeps"]
        };
        let wiped = |pv: &PersistentVolume| only_theirs(pv) && store.is_blank();
        scene.node.wait_pv(&store.path(), wiped, SOON).await;
        wait_saying(scene.agent(), &store.class, "vol", "Pending", "its PV is being removed").await;
    }
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        scene.node.patch_pv(&pv.name_any(), finalizers(&[])).await.expect("a finalizer can be taken off");
        store.wait_anew(&scene.node, "Available", pv).await;
        wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
    }
    let logs = scene.agent().logs();
    assert!(!logs.iter().any(|line| line.contains("\"Dirty\"") || line.contains("\"Quarantined\"")), "{logs:?}");
    scene.end().await;
}

#[tokio::test]
async fn a_pv_that_lost_our_annotations_is_wiped_if_the_ledger_knows_its_volume() {
    let mut scene = Scene::new("stripped", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    for (pv, claim) in &used {
        scene.node.strip_annotations(&pv.name_any()).await;
        scene.node.release(claim).await;
    }
    scene.begin();
    let before: Vec<_> = used.into_iter().map(|(pv, _)| pv).collect();
    scene.never_offered(offered_clean(&scene, &before)).await;
    scene.end().await;
}

#[tokio::test]
async fn a_pv_that_lost_our_annotations_is_not_wiped_if_its_volume_was_exchanged() {
    let mut scene = Scene::new("exchanged", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    // Another disk with another's data takes the place of each.
    let others: Vec<LoopDisk> = scene.stores.iter().map(|_| LoopDisk::new(scene.node.dir(), 16 << 20)).collect();
    for (store, other) in scene.stores.iter_mut().zip(others) {
        store.detach();
        store.exchange(other);
        store.attach();
        store.write_secret();
    }
    for (pv, claim) in &used {
        scene.node.strip_annotations(&pv.name_any()).await;
        scene.node.release(claim).await;
    }
    scene.begin();
    let steps = async {
        for (store, (pv, _)) in scene.stores.iter().zip(&used) {
            scene.node.wait_event(&pv.name_any(), "IdentityChanged", "digest", SOON).await;
            wait_verdict(scene.agent(), &store.class, "vol", "IdentityChanged").await;
            assert!(store.has_secret());
            let now = store.wait(&scene.node, "Released").await;
            assert_eq!((now.uid(), now.finalizers().contains(&"mooring.dev/wipe".to_owned())), (pv.uid(), false));
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn what_was_never_seen_is_kept_out_if_the_class_says_so_unless_it_is_empty() {
    let mut scene = Scene::new("newq", "Delete").await;
    scene.fields = "dirty: quarantine";
    scene.stores[1].write_secret();
    scene.begin();
    let steps = async {
        scene.stores[0].wait(&scene.node, "Available").await;
        let pv = scene.stores[1].wait(&scene.node, "Released").await;
        scene.node.wait_event(&pv.name_any(), "Quarantined", "reclaim: wipe", SOON).await;
        assert!(scene.stores[1].has_secret());
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn what_was_never_seen_is_wiped_first_if_the_class_says_so() {
    let mut scene = Scene::new("neww", "Retain").await;
    scene.fields = "dirty: wipe";
    scene.stores.iter().for_each(Store::write_secret);
    scene.begin();
    let steps = async {
        for store in &scene.stores {
            let pv = store.wait(&scene.node, "Available").await;
            assert!(store.is_blank());
            assert_eq!(policy(&pv), "Retain", "as its class says");
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_device_with_the_mark_of_a_wipe_that_nothing_else_knows_of_is_not_offered() {
    let mut scene = Scene::new("marked", "Delete").await;
    scene.stores.remove(0);
    // Its wipe takes two minutes, and comes to the last secret late.
    let large = LoopDisk::new(scene.node.dir(), 128 << 20);
    scene.stores[0].detach();
    scene.stores[0].exchange_as_it_is(large);
    scene.stores[0].attach();
    scene.fields = "wipe: { bandwidth: 1Mi }";
    scene.begin();
    let (pv, claim) = scene.use_all().await.remove(0);
    scene.stores[0].disk.write_at(120 << 20, SECRET);
    scene.node.release(&claim).await;
    scene.wait_ledger("wiping").await;
    let store = &scene.stores[0];
    // Not by opening the device: the agent would find it busy.
    let is_marked = || std::fs::read(&store.disk.backing).is_ok_and(|bytes| bytes.starts_with(b"mooring: wiping"));
    let deadline = std::time::Instant::now() + SOON;
    while !is_marked() {
        assert!(std::time::Instant::now() < deadline, "the device is not marked");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    scene.kill().await;
    // Nothing knows of it any more: no PV, no ledger.
    let store = &scene.stores[0];
    assert!(store.disk.backing_contains(SECRET), "the wipe was in its middle");
    scene.node.force_delete_pv(&pv).await;
    scene.node.wait_gone(&pv, SOON).await;
    fs::remove_dir_all(scene.node.state_dir()).expect("the state directory can be removed");
    scene.fields = "";
    scene.begin();
    let store = &scene.stores[0];
    let half_wiped = |pv: &PersistentVolume| phase(pv) == "Available" && store.disk.backing_contains(SECRET);
    let back = scene.node.wait_pv(&store.path(), |pv| ["Available", "Released"].contains(&phase(pv)), SOON).await;
    assert!(!half_wiped(&back), "half wiped is not blank");
    assert_eq!((phase(&back), policy(&back)), ("Released", "Retain"));
    assert!(back.annotations()["mooring.dev/quarantined"].contains("mark"));
    scene.node.annotate_pv(&back.name_any(), RECLAIM, Some("wipe")).await;
    offered_clean(&scene, &[back]).await;
    assert!(Path::new(&store.path()).exists());
    scene.end().await;
}
