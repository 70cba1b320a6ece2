//! While a volume is wiped, an admin gives it away: nobody gets it before it is wiped and verified.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams, ResourceExt};
use serde_json::{Value, json};

use crate::harness::pods::PodSpec;
use crate::harness::site::SOON;
use crate::stage::{self, Scene};

/// A wipe takes ten seconds.
pub const CLASSES: &[(&str, &str)] =
    &[("s21", r#"{"volumeMode": "Block", "wipe": {"method": "zero", "bandwidth": "3Mi", "verify": "full"}}"#)];

const SIZE: u64 = 32 << 20;
const SECRET: &str = "the-old-tenants-secret";

#[tokio::test]
async fn s21_in_the_middle_of_its_wipe_nobody_gets_a_volume() {
    let scene = stage::shared("s21").await;
    let node = scene.node(0);
    // An admin takes the claim off the one, and names a new claim in the other.
    let disks = ["cleared", "given"].map(|entry| (entry, node.link_disk("s21", entry, SIZE).1));
    let mut old = PodSpec::new("old");
    let mut pvs = Vec::new();
    for (entry, _) in &disks {
        let pv = scene.wait_available("s21", 0, entry).await;
        scene.claim_with(entry, "s21", "1Mi", &of(&pv));
        old = old.device(entry, &format!("/dev/{entry}"));
        pvs.push(pv);
    }
    scene.run(&old).await;
    for (entry, _) in &disks {
        scene.sh("old", &format!("yes {SECRET} | head -c {SIZE} > /dev/{entry}; sync"));
    }
    scene.delete_pod("old").await;

    // Whoever wants them next waits for them already.
    let mut new = PodSpec::new("new");
    for ((entry, _), pv) in disks.iter().zip(&pvs) {
        scene.claim_with(&rival(entry), "s21", "1Mi", &of(pv));
        new = new.device(&rival(entry), &format!("/dev/{entry}"));
    }
    scene.start(&new);
    let claims: Api<PersistentVolumeClaim> = scene.api();
    let given = claims.get(&rival("given")).await.expect("it was just made");
    let reference = json!({ "namespace": given.namespace(), "name": given.name_any(), "uid": given.uid() });
    for (entry, _) in &disks {
        claims.delete(entry, &DeleteParams::default()).await.expect("a claim can be deleted");
    }
    for pv in &pvs {
        scene.wait_event(&pv.name_any(), "VolumeDelete", "wiping").await;
    }
    for (pv, claim_ref) in pvs.iter().zip([Value::Null, reference]) {
        let patch = Patch::Merge(json!({ "spec": { "claimRef": claim_ref } }));
        let answer = scene.pvs().patch(&pv.name_any(), &PatchParams::default(), &patch).await;
        let why = answer.expect_err("the API server keeps an admin from it").to_string();
        assert!(why.contains("the volume is being wiped"), "{why}");
    }
    let rivals = disks.iter().zip(&pvs).map(|((entry, _), pv)| until_wiped(&scene, pv, rival(entry)));
    futures::future::join_all(rivals).await;
    for ((entry, disk), pv) in disks.iter().zip(&pvs) {
        assert!(!node.on_host(|| disk.backing_contains(SECRET.as_bytes())), "{entry} is wiped");
        let receipt = scene.wait_event(&pv.name_any(), "VolumeWiped", "").await;
        eprintln!("{}", receipt.message.unwrap_or_default());
    }

    scene.wait_running("new").await;
    for ((entry, _), pv) in disks.iter().zip(&pvs) {
        let (_, bound) = scene.wait_bound(&rival(entry)).await;
        assert_eq!(bound.name_any(), pv.name_any());
        assert_ne!(bound.uid(), pv.uid(), "it is another PV");
        scene.sh("new", &format!("cmp -n {SIZE} /dev/{entry} /dev/zero"));
    }
    scene.delete_pod("new").await;
    for (entry, _) in &disks {
        scene.delete_claim(&rival(entry)).await;
    }
}

fn rival(entry: &str) -> String {
    format!("{entry}-rival")
}

/// Of a claim that wants this PV and no other.
fn of(pv: &PersistentVolume) -> Value {
    json!({ "volumeMode": "Block", "volumeName": pv.name_any() })
}

/// Looks on until the PV is gone, that it stays the former claim's, and that the new one gets nothing.
async fn until_wiped(scene: &Scene, before: &PersistentVolume, rival: String) {
    let claims: Api<PersistentVolumeClaim> = scene.api();
    let owner = |pv: &PersistentVolume| pv.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.name.clone());
    let former = rival.strip_suffix("-rival").map(str::to_owned);
    scene
        .until("its wipe ends", SOON, async || {
            let claim = claims.get(&rival).await.expect("it is there");
            // Read after the claim: what is still there now was there when the claim was read.
            let pv = scene.pvs().get_opt(&before.name_any()).await.expect("PVs can be read");
            let Some(pv) = pv.filter(|pv| pv.uid() == before.uid()) else { return Some(()) };
            assert_eq!(owner(&pv), former);
            assert!(pv.metadata.deletion_timestamp.is_some(), "{rival}: it is fenced");
            assert_eq!(claim.status.and_then(|status| status.phase).as_deref(), Some("Pending"));
            None
        })
        .await;
}
