//! An admin's words: what is wiped, kept, held or accepted by an annotation, and what
//! is not; and the brake on mass release.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ResourceExt;

use crate::common::{SOON, start, wait_ready, wait_saying, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{Volumes, phase};
use crate::harness::{Agent, shared};
use crate::tenancy::{SECRET, Scene};

const RECLAIM: &str = "mooring.dev/reclaim";
const HOLD: &str = "mooring.dev/hold";

type Used = Vec<(PersistentVolume, PersistentVolumeClaim)>;

/// Both volumes have been used, and no claim has them any more.
async fn released(tag: &str, policy: &str) -> (Scene, Used) {
    let mut scene = Scene::new(tag, policy).await;
    scene.begin();
    let used = scene.use_all().await;
    for (store, (_, claim)) in scene.stores.iter().zip(&used) {
        scene.node.release(claim).await;
        store.wait(&scene.node, "Released").await;
    }
    (scene, used)
}

async fn wiped_and_offered(scene: &Scene, used: &Used) {
    for (store, (before, _)) in scene.stores.iter().zip(used) {
        store.wait_anew(&scene.node, "Available", before).await;
        assert!(store.is_blank());
    }
}

#[tokio::test]
async fn a_retained_volume_is_wiped_at_an_admins_word() {
    let (scene, used) = released("wword", "Retain").await;
    let steps = async {
        for (store, (pv, _)) in scene.stores.iter().zip(&used) {
            wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
            assert!(store.has_secret(), "its policy keeps it");
            scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some("wipe")).await;
        }
        wiped_and_offered(&scene, &used).await;
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_retained_volume_is_offered_with_its_data_by_word_or_by_hand() {
    let (scene, used) = released("keep", "Retain").await;
    // One by our word, the other as every admin knows.
    scene.node.annotate_pv(&used[0].0.name_any(), RECLAIM, Some("keep")).await;
    scene.node.clear_claim(&used[1].0.name_any()).await;
    for (store, (before, _)) in scene.stores.iter().zip(&used) {
        let kept = store.wait(&scene.node, "Available").await;
        assert_eq!(kept.uid(), before.uid(), "it is the same PV");
        assert!(!kept.annotations().contains_key(RECLAIM), "the word was for this claim only");
        // The next claim reads the old data, and may leave it as well.
        let claim = scene.node.bind(&kept.name_any()).await;
        assert!(store.has_secret());
        scene.node.release(&claim).await;
        store.wait(&scene.node, "Released").await;
        wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
        assert!(store.has_secret());
    }
    scene.end().await;
}

#[tokio::test]
async fn a_reclaim_policy_that_is_not_supported_is_told_and_nothing_is_done() {
    let (mut scene, mut used) = (Scene::new("recycle", "Delete").await, Used::new());
    scene.begin();
    used.extend(scene.use_all().await);
    for (pv, claim) in &used {
        let recycle = serde_json::json!({ "spec": { "persistentVolumeReclaimPolicy": "Recycle" } });
        scene.node.patch_pv(&pv.name_any(), recycle).await.expect("a policy can be changed");
        scene.node.release(claim).await;
    }
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let name = pv.name_any();
        scene.node.wait_event(&name, "VolumeUnsupportedReclaimPolicy", "Delete or Retain", SOON).await;
        wait_verdict(scene.agent(), &store.class, "vol", "Refused").await;
        assert!(store.has_secret(), "nothing was touched");
    }
    scene.end().await;
}

#[tokio::test]
async fn an_unknown_word_wipes_nothing_and_is_told() {
    let (mut scene, mut used) = (Scene::new("typo", "Delete").await, Used::new());
    scene.begin();
    used.extend(scene.use_all().await);
    let steps = async {
        for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
            // Even with the policy Delete: somebody wanted something else.
            scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some("whipe")).await;
            scene.node.release(claim).await;
            let detail = wait_saying(scene.agent(), &store.class, "vol", "Refused", "whipe").await;
            assert!(detail.contains("use wipe, keep or retire"), "{detail}");
            scene.node.wait_event(&pv.name_any(), "Refused", "whipe", SOON).await;
            assert!(store.has_secret());
            let now = store.wait(&scene.node, "Released").await;
            assert_eq!(now.annotations()[RECLAIM], "whipe");
            scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some("wipe")).await;
        }
        wiped_and_offered(&scene, &used).await;
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_word_on_a_bound_pv_does_nothing_to_its_volume() {
    let mut scene = Scene::new("early", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    for word in ["wipe", "keep", "retire"] {
        for (store, (pv, _)) in scene.stores.iter().zip(&used) {
            let told = scene.node.annotate_pv(&pv.name_any(), RECLAIM, Some(word)).await;
            // Something else happens after it, and is dealt with.
            let other = store.dir.join(format!("later-{word}"));
            disk::tmpfs(&other, 1 << 20);
            if store.class == scene.stores[0].class {
                scene.node.wait_pv(&other, |pv| phase(pv) == "Available", SOON).await;
            } else {
                wait_verdict(scene.agent(), &store.class, &format!("later-{word}"), "ModeMismatch").await;
            }
            wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
            let now = store.wait(&scene.node, "Bound").await;
            if word == "keep" {
                // It may be said before the claim is gone.
                assert_eq!(now.resource_version(), told.resource_version(), "it was not touched");
            } else {
                // Else it would be about the next claim, too.
                scene.node.wait_event(&pv.name_any(), "WordIgnored", "counts only once the claim is gone", SOON).await;
                let is_without = |pv: &PersistentVolume| !pv.annotations().contains_key(RECLAIM);
                let now = scene.node.wait_pv(&store.path(), is_without, SOON).await;
                assert_eq!((now.uid(), phase(&now)), (pv.uid(), "Bound"));
            }
            assert!(store.has_secret());
        }
    }
    scene.end().await;
}

#[tokio::test]
async fn a_hold_on_the_pv_or_the_node_keeps_a_volume_from_being_wiped() {
    let mut scene = Scene::new("hold", "Delete").await;
    scene.keys = &[("nodeLabelsForPV", "[example.com/held]")];
    scene.begin();
    let used = scene.use_all().await;
    let steps = async {
        scene.node.annotate_pv(&used[0].0.name_any(), HOLD, Some("true")).await;
        scene.node.annotate_node(HOLD, Some("")).await;
        // Who has seen this of the Node has seen the other.
        scene.node.label_node("example.com/held", Some("so")).await;
        let has_label = |pv: &PersistentVolume| pv.labels().contains_key("example.com/held");
        scene.node.wait_pv(&scene.stores[1].path(), has_label, SOON).await;
        for (store, (_, claim)) in scene.stores.iter().zip(&used) {
            scene.node.release(claim).await;
            store.wait(&scene.node, "Released").await;
        }
        for (index, whose) in [(0, "PV"), (1, "Node")] {
            let words = format!("hold on the {whose}");
            wait_saying(scene.agent(), &scene.stores[index].class, "vol", "Pending", &words).await;
        }
        // Without the Node's, the PV's own still holds, and only that.
        scene.node.annotate_node(HOLD, None).await;
        scene.stores[1].wait_anew(&scene.node, "Available", &used[1].0).await;
        assert!(scene.stores[0].has_secret() && scene.stores[1].is_blank());
        let held = scene.stores[0].wait(&scene.node, "Released").await;
        assert!(!held.finalizers().contains(&"mooring.dev/wipe".to_owned()), "not even fenced");
        scene.node.annotate_pv(&held.name_any(), HOLD, None).await;
        wiped_and_offered(&scene, &used).await;
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

/// A device in the middle of a wipe that takes a minute.
async fn in_a_slow_wipe(tag: &str) -> (Scene, PersistentVolume) {
    let mut scene = Scene::new(tag, "Delete").await;
    scene.stores.remove(0);
    scene.stores[0].detach();
    let large = LoopDisk::new(scene.node.dir(), 64 << 20);
    scene.stores[0].exchange(large);
    scene.stores[0].attach();
    scene.fields = "wipe: { method: zero, bandwidth: 1Mi, verify: none }";
    scene.begin();
    let store = &scene.stores[0];
    let pv = store.wait(&scene.node, "Available").await;
    let claim = scene.node.bind(&pv.name_any()).await;
    store.disk.write_at((64 << 20) - (2 << 20), &[SECRET, &[b'.'; 499]].concat());
    scene.node.release(&claim).await;
    // A checkpoint: some of it is durable.
    scene.wait_ledger_text("\"cursor\":").await;
    (scene, pv)
}

async fn is_held(scene: &Scene, pv: &PersistentVolume) {
    wait_saying(scene.agent(), &scene.stores[0].class, "vol", "Pending", "hold").await;
    let now = scene.node.wait_pv(&scene.stores[0].path(), |_| true, SOON).await;
    assert_eq!(now.uid(), pv.uid());
    assert!(now.metadata.deletion_timestamp.is_some(), "no claim can get at it");
    assert!(scene.stores[0].disk.backing_contains(SECRET), "the wipe had not come that far");
}

#[tokio::test]
async fn a_hold_stops_a_wipe_in_its_middle_and_it_goes_on_without_it() {
    let each = [("holdpv", false), ("holdnode", true)].map(|(tag, on_node)| async move {
        let (mut scene, pv) = in_a_slow_wipe(tag).await;
        if on_node {
            scene.node.annotate_node(HOLD, Some("true")).await;
        } else {
            scene.node.annotate_pv(&pv.name_any(), HOLD, Some("true")).await;
        }
        is_held(&scene, &pv).await;
        scene.agent().wait_metric("mooring_wipes_total{outcome=\"cancelled\"}", |count| count > 0.5, SOON).await;
        // It is held over a restart, too; the next agent has no need to be slow.
        scene.kill().await;
        scene.fields = "wipe: { method: zero }";
        scene.begin();
        is_held(&scene, &pv).await;
        if on_node {
            scene.node.annotate_node(HOLD, None).await;
        } else {
            scene.node.annotate_pv(&pv.name_any(), HOLD, None).await;
        }
        let line = scene.agent().wait_log("Wipe begins", SOON).await;
        assert!(line.contains("\"resumed\":true"), "{line}");
        scene.stores[0].wait_anew(&scene.node, "Available", &pv).await;
        assert!(scene.stores[0].is_blank());
        scene.end().await;
    });
    futures::future::join_all(each).await;
}

#[tokio::test]
async fn a_release_can_be_undone_within_wipe_after() {
    let mut scene = Scene::new("undo", "Delete").await;
    scene.fields = "wipeAfter: 1h";
    scene.begin();
    let used = scene.use_all().await;
    for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
        scene.node.release(claim).await;
        store.wait(&scene.node, "Released").await;
        wait_saying(scene.agent(), &store.class, "vol", "Pending", "wipeAfter").await;
        scene.node.clear_claim(&pv.name_any()).await;
        let again = store.wait(&scene.node, "Available").await;
        assert_eq!(again.uid(), pv.uid());
        wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
        assert!(store.has_secret());
    }
    // Over the end of the time it is wiped; no word need be said.
    scene.kill().await;
    scene.fields = "wipeAfter: 2s";
    scene.begin();
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let claim = scene.node.bind(&pv.name_any()).await;
        assert!(store.has_secret());
        scene.node.release(&claim).await;
    }
    wiped_and_offered(&scene, &used).await;
    scene.end().await;
}

/// Volumes that are Bound, each with a file in it.
async fn bound(
    tag: &str,
    count: usize,
) -> (TestNode, String, PathBuf, Vec<PathBuf>, Vec<PersistentVolumeClaim>, Agent) {
    let node = TestNode::new(shared(), tag).await;
    let class = node.class("many", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volumes = disk::mount_many(&disks, count);
    let agent = start(&node, &[(&class, &disks, "")]);
    let mut claims = Vec::new();
    for volume in &volumes {
        let pv = node.wait_pv(volume, |pv| phase(pv) == "Available", SOON).await;
        claims.push(node.bind(&pv.name_any()).await);
        fs::write(volume.join("data"), SECRET).expect("a file can be written");
    }
    (node, class, disks, volumes, claims, agent)
}

fn with_data(volumes: &[PathBuf]) -> usize {
    volumes.iter().filter(|volume| volume.join("data").exists()).count()
}

async fn all_released(node: &TestNode, count: usize) {
    let released = |pvs: &Volumes| pvs.values().filter(|pv| phase(pv) == "Released").count() == count;
    node.watch_pvs("all of them Released", SOON, |pvs| released(pvs).then_some(())).await;
}

#[tokio::test]
async fn most_volumes_released_at_once_are_not_wiped_and_a_hold_keeps_them() {
    let (node, class, disks, volumes, claims, mut agent) = bound("mass", 12).await;
    // As after a restore of etcd: the agent comes back to a cluster that has forgotten.
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.wait_exit(SOON).await;
    futures::future::join_all(claims.iter().map(|claim| node.release(claim))).await;
    all_released(&node, 12).await;
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    let message = node.wait_event(node.name(), "MassRelease", "12 of 12", SOON).await;
    assert!(message.contains(HOLD), "{message}");
    agent.wait_metric("mooring_mass_release", |value| value > 0.5, SOON).await;
    for index in 0..12 {
        wait_saying(&agent, &class, &format!("{index:05}"), "Pending", "12 of 12 volumes were released").await;
    }
    node.annotate_node(HOLD, Some("true")).await;
    for index in 0..12 {
        wait_saying(&agent, &class, &format!("{index:05}"), "Pending", "on the Node").await;
    }
    assert_eq!(with_data(&volumes), 12, "none was wiped");
    // A word is no accident: it is wiped, and the others are not.
    node.annotate_node(HOLD, None).await;
    let chosen = node.wait_pv(&volumes[3], |_| true, SOON).await;
    node.annotate_pv(&chosen.name_any(), RECLAIM, Some("wipe")).await;
    let anew = |pv: &PersistentVolume| phase(pv) == "Available" && pv.uid() != chosen.uid();
    node.wait_pv(&volumes[3], anew, SOON).await;
    assert_eq!(with_data(&volumes), 11);
    assert!(!volumes[3].join("data").exists());
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn of_a_mass_release_under_the_agents_eyes_only_the_first_few_are_wiped() {
    let (node, _, _, volumes, claims, agent) = bound("massrun", 24).await;
    futures::future::join_all(claims.iter().map(|claim| node.release(claim))).await;
    node.wait_event(node.name(), "MassRelease", "", SOON).await;
    agent.wait_metric("mooring_mass_release", |value| value > 0.5, SOON).await;
    // Those that had been begun have come to their end.
    let settled = |pvs: &Volumes| pvs.values().all(|pv| pv.metadata.deletion_timestamp.is_none()) && pvs.len() == 24;
    node.watch_pvs("no PV Terminating", SOON, |pvs| settled(pvs).then_some(())).await;
    // On a busy machine it may have been told of the others too late for some of them; but it has
    // waited for that, with all but the first few.
    let lines: Vec<serde_json::Value> =
        agent.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let has_waited = |entry: &str| {
        lines.iter().any(|line| {
            let says = |key: &str, words: &str| line[key].as_str().is_some_and(|text| text.contains(words));
            says("path", entry) && says("detail", "others were released with it")
        })
    };
    let wiped: Vec<&str> = lines
        .iter()
        .filter(|line| line["message"] == "Wipe begins")
        .filter_map(|line| line["entry"].as_str())
        .collect();
    let at_once: Vec<_> = wiped.iter().filter(|entry| !has_waited(entry)).collect();
    assert!(at_once.len() <= 4, "{at_once:?} were wiped at once, of {wiped:?}");
    assert!(with_data(&volumes) >= 12, "{} have their data", with_data(&volumes));
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn an_exchanged_volume_is_wiped_if_an_admin_accepts_it_by_the_digest() {
    let mut scene = Scene::new("accept", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    for store in &mut scene.stores {
        store.detach();
        store.exchange(LoopDisk::new(scene.node.dir(), 16 << 20));
        store.attach();
        store.write_secret();
    }
    let steps = async {
        for (store, (pv, claim)) in scene.stores.iter().zip(&used) {
            scene.node.release(claim).await;
            let message = scene.node.wait_event(&pv.name_any(), "IdentityChanged", "digest", SOON).await;
            assert!(store.has_secret());
            let digest = message.split("digest ").nth(1).and_then(|rest| {
                let hex = |word: &&str| word.len() >= 16 && word[..16].bytes().all(|byte| byte.is_ascii_hexdigit());
                rest.split_whitespace().find(hex)
            });
            let digest = &digest.unwrap_or_else(|| panic!("no digest in {message}"))[..16];
            // Another's digest accepts nothing.
            scene.node.annotate_pv(&pv.name_any(), "mooring.dev/accept-identity", Some("0123456789abcdef")).await;
            wait_verdict(scene.agent(), &store.class, "vol", "IdentityChanged").await;
            assert!(store.has_secret());
            scene.node.annotate_pv(&pv.name_any(), "mooring.dev/accept-identity", Some(digest)).await;
            store.wait_anew(&scene.node, "Available", pv).await;
            assert!(store.is_blank());
        }
    };
    scene.never_offered(steps).await;
    scene.end().await;
}
