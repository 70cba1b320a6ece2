//! An admin deletes the PV of a used volume by hand: it is never offered with the old data.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{DeleteParams, Patch, PatchParams, ResourceExt};
use serde_json::json;

use crate::harness::pods::PodSpec;
use crate::harness::rbac::NAMESPACE;
use crate::harness::site::SOON;
use crate::harness::volumes::phase;
use crate::offers::{Offers, dirt};
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[
    ("s12", r#"{"storageClass": {"reclaimPolicy": "Retain"}}"#),
    ("s12-raw", r#"{"volumeMode": "Block", "storageClass": {"reclaimPolicy": "Retain"}}"#),
    ("s12-delete", "{}"),
];

const SIZE: u64 = 16 << 20;
const SECRET: &str = "the old tenant's secret";
const WORD: &str = "mooring.dev/reclaim";

#[tokio::test]
async fn s12_a_used_pv_deleted_by_hand_comes_back_and_each_way_out_works() {
    let scene = stage::shared("s12").await;
    let (node, files, devices) =
        (scene.node(0), ["living", "emptied", "wiped", "kept", "retired", "cleaned"], ["zeroed", "commanded"]);
    files.iter().for_each(|entry| drop(node.mount_tmpfs("s12", entry, SIZE)));
    let disks = devices.map(|entry| node.link_disk("s12-raw", entry, SIZE));
    let offers = Offers::of(&scene, &["s12", "s12-raw"], SECRET);
    let mut pod = PodSpec::new("tenant");
    for entry in files {
        let pv = scene.wait_available("s12", 0, entry).await;
        offers.wait(&scene, &pv).await;
        scene.claim_with(entry, "s12", "1Mi", &json!({ "volumeName": pv.name_any() }));
        pod = pod.claim(entry, &format!("/data/{entry}"));
    }
    for entry in devices {
        let pv = scene.wait_available("s12-raw", 0, entry).await;
        offers.wait(&scene, &pv).await;
        scene.claim_with(entry, "s12-raw", "1Mi", &json!({ "volumeMode": "Block", "volumeName": pv.name_any() }));
        pod = pod.device(entry, &format!("/dev/{entry}"));
    }
    scene.run(&pod).await;
    scene.sh("tenant", &format!("for dir in /data/*; do echo \"{SECRET}\" > $dir/file; done"));
    scene.sh("tenant", &format!("for to in zeroed commanded; do echo \"{SECRET}\" | dd of=/dev/$to conv=fsync; done"));
    let mut used = Vec::new();
    for entry in files.iter().chain(&devices) {
        used.push(scene.wait_bound(entry).await);
    }
    scene.delete_pod("tenant").await;
    scene.run(&PodSpec::new("living").claim("living", "/data")).await;

    // All claims but one are gone, and the admin tidies up what is Released; and is wrong once more.
    for entry in files.iter().skip(1).chain(&devices) {
        scene.delete_claim(entry).await;
    }
    for (claim, pv) in &used {
        let wanted = if claim.name_any() == "living" { "Bound" } else { "Released" };
        scene.wait_phase(&pv.name_any(), wanted).await;
        force_delete(&scene, &pv.name_any()).await;
    }
    for (claim, before) in &used {
        let entry = claim.name_any();
        let pv = comes_back(&scene, &offers, 0, &entry, before).await;
        let spec = pv.spec.as_ref().expect("a PV has a spec");
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        assert_eq!(spec.claim_ref.as_ref().and_then(|claim| claim.uid.clone()), claim.uid(), "{entry} names its claim");
        assert!(pv.annotations().contains_key("mooring.dev/quarantined"), "{entry} says why");
        if entry == "living" {
            assert_eq!(phase(&pv), "Bound");
            scene.wait_bound("living").await;
            assert_eq!(scene.sh("living", "cat /data/file").trim(), SECRET);
            continue;
        }
        assert_eq!(phase(&pv), "Released");
        scene.wait_event(&pv.name_any(), "Quarantined", "").await;
        assert!(node.on_host(|| dirt(&path(before), SECRET)).is_some(), "{entry} has its data");
    }

    // Each way out.
    node.on_host(|| {
        fs::remove_file(path(&used[1].1).join("file")).expect("the admin can remove a file");
        disks[0].1.write_at(0, &vec![0; usize::try_from(SIZE).expect("it fits")]);
    });
    say(&scene, &used[2].1, "wipe").await;
    say(&scene, &used[4].1, "retire").await;
    let retired = used[4].1.name_any();
    let gone = async || scene.pvs().get_opt(&retired).await.expect("a PV can be read").is_none().then_some(());
    scene.until("the retired PV is gone", SOON, gone).await;
    scene.wait_verdict(0, "s12", "retired", "Dirty").await;
    for (_, pv) in [&used[4], &used[5], &used[7]] {
        let receipt = wipe(&scene, 0, pv).await;
        assert!(receipt.contains("wiped"), "{receipt}");
    }
    for entry in ["emptied", "wiped", "retired", "cleaned"] {
        offers.wait(&scene, &scene.wait_available("s12", 0, entry).await).await;
    }
    for entry in devices {
        offers.wait(&scene, &scene.wait_available("s12-raw", 0, entry).await).await;
    }
    offers.assert_clean();
    drop(offers);
    say(&scene, &used[3].1, "keep").await;
    let kept = scene.wait_available("s12", 0, "kept").await;
    scene.claim_with("kept", "s12", "1Mi", &json!({ "volumeName": kept.name_any() }));
    scene.run(&PodSpec::new("kept").claim("kept", "/data")).await;
    assert_eq!(scene.sh("kept", "cat /data/file").trim(), SECRET, "it was offered with its data, as the admin said");

    // The claim that lived goes at last: nobody else gets its volume before the admin says so.
    scene.delete_pod("living").await;
    scene.delete_claim("living").await;
    let living = scene.wait_phase(&used[0].1.name_any(), "Released").await;
    assert!(node.on_host(|| dirt(&path(&living), SECRET)).is_some(), "it has its data");
    say(&scene, &living, "wipe").await;
    scene.wait_anew("s12", 0, "living", &living).await;
    assert_eq!(node.on_host(|| dirt(&path(&living), SECRET)), None);
    scene.delete_pod("kept").await;
}

#[tokio::test]
async fn s12_a_used_pv_deleted_while_no_agent_runs_comes_back() {
    let scene = stage::alone("s12-stopped").await;
    let node = scene.node(1);
    let offers = Offers::of(&scene, &["s12-delete"], SECRET);
    let mut pod = PodSpec::new("tenant");
    for entry in ["living", "released"] {
        node.mount_tmpfs("s12-delete", entry, SIZE);
        let pv = scene.wait_available("s12-delete", 1, entry).await;
        offers.wait(&scene, &pv).await;
        scene.claim_with(entry, "s12-delete", "1Mi", &json!({ "volumeName": pv.name_any() }));
        pod = pod.claim(entry, &format!("/data/{entry}"));
    }
    scene.run(&pod).await;
    scene.sh("tenant", &format!("for dir in /data/*; do echo \"{SECRET}\" > $dir/file; done"));
    let used = [scene.wait_bound("living").await, scene.wait_bound("released").await];
    scene.delete_pod("tenant").await;
    scene.run(&PodSpec::new("living").claim("living", "/data")).await;
    // As far as the agent knows, a claim has them.
    scene.until("the ledger knows of both claims", SOON, async || {
        // A file may be replaced just now.
        let ledger = node.exec_on_host(&["sh", "-c", "grep -rs . /var/lib/mooring || :"]);
        used.iter().all(|(claim, _)| ledger.contains(&claim.uid().expect("it has one"))).then_some(())
    })
    .await;

    scene.stop_kubelet(1);
    scene.kill_agent(1).await;
    scene.delete_claim("released").await;
    scene.wait_phase(&used[1].1.name_any(), "Released").await;
    for (_, pv) in &used {
        force_delete(&scene, &pv.name_any()).await;
        assert!(scene.pvs().get_opt(&pv.name_any()).await.expect("a PV can be read").is_none(), "nobody makes it again");
    }
    scene.start_kubelet(1).await;

    let living = comes_back(&scene, &offers, 1, "living", &used[0].1).await;
    let released = comes_back(&scene, &offers, 1, "released", &used[1].1).await;
    assert_eq!((phase(&living), phase(&released)), ("Bound", "Released"));
    for pv in [&living, &released] {
        let policy = pv.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        assert_eq!(policy, Some("Retain"), "its class says Delete, and an accident is no reason to");
        assert!(node.on_host(|| dirt(&path(pv), SECRET)).is_some(), "it has its data");
    }
    scene.wait_event(&released.name_any(), "Quarantined", "").await;
    scene.wait_bound("living").await;
    assert_eq!(scene.sh("living", "cat /data/file").trim(), SECRET);
    say(&scene, &released, "wipe").await;
    offers.wait(&scene, &scene.wait_available("s12-delete", 1, "released").await).await;
    scene.delete_pod("living").await;
}

fn path(pv: &PersistentVolume) -> PathBuf {
    crate::harness::volumes::path_of(pv).into()
}

/// As an admin who means it: Kubernetes keeps the PV of a claim by a finalizer.
async fn force_delete(scene: &Scene, pv: &str) {
    let pvs = scene.pvs();
    let uid = pvs.get(pv).await.expect("the PV is there").uid();
    pvs.delete(pv, &DeleteParams::default()).await.expect("an admin can delete a PV");
    let free = Patch::Merge(json!({ "metadata": { "uid": uid, "finalizers": null } }));
    // It may be gone without.
    let _ = pvs.patch(pv, &PatchParams::default(), &free).await;
}

/// Waits for another PV of the same name that nobody can claim. None must be offered meanwhile.
async fn comes_back(
    scene: &Scene,
    offers: &Offers,
    node: usize,
    entry: &str,
    before: &PersistentVolume,
) -> PersistentVolume {
    let class = before.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).expect("it has a class");
    let settled = |pv: &PersistentVolume| {
        offers.assert_clean();
        pv.uid() != before.uid() && ["Bound", "Released"].contains(&phase(pv))
    };
    let pv = scene.wait_pv(class, node, entry, SOON, settled).await;
    assert_eq!(pv.name_any(), before.name_any());
    pv
}

async fn say(scene: &Scene, pv: &PersistentVolume, word: &str) {
    let annotation = Patch::Merge(json!({ "metadata": { "annotations": { WORD: word } } }));
    scene.pvs().patch(&pv.name_any(), &PatchParams::default(), &annotation).await.expect("a PV can be annotated");
}

/// `mooring wipe` in the agent's pod.
async fn wipe(scene: &Scene, node: usize, pv: &PersistentVolume) -> String {
    let (agent, path) = (scene.agent_pod(node).await.name_any(), path(pv).display().to_string());
    let command = ["--namespace", NAMESPACE, "exec", &agent, "--", "/mooring", "wipe", "--yes", &path];
    // The agent looks by and by whether it is empty.
    let is_at_it = |said: &str| said.contains("in use") || said.contains("another process");
    let wiped = async || {
        let output = scene.site().kubectl().run(&command, "");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success() || is_at_it(&said), "{said}");
        output.status.success().then_some(said)
    };
    scene.until(&format!("{path} is wiped by hand"), SOON, wiped).await
}
