//! Reclaim policy Retain, and what an admin decides about a Released volume: wiped, or kept.

use std::fs;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::pods::PodSpec;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[
    ("s10", r#"{"storageClass": {"reclaimPolicy": "Retain"}}"#),
    ("s10-raw", r#"{"storageClass": {"reclaimPolicy": "Retain"}, "volumeMode": "Block"}"#),
];

const SIZE: u64 = 32 << 20;
const SECRET: &str = "a-retained-secret";
const WORD: &str = "mooring.dev/reclaim";

#[tokio::test]
async fn s10_a_retained_volume_is_wiped_or_kept_at_an_admins_word() {
    let scene = stage::shared("s10").await;
    let node = scene.node(0);
    let wiped_path = node.mount_tmpfs("s10", "wiped", SIZE);
    let kept_path = node.mount_tmpfs("s10", "kept", SIZE);
    let (_, disk) = node.link_disk("s10-raw", "raw", SIZE);
    let wiped = scene.wait_available("s10", 0, "wiped").await;
    let kept = scene.wait_available("s10", 0, "kept").await;
    let raw = scene.wait_available("s10-raw", 0, "raw").await;

    let claim = |name: &str, pv: &PersistentVolume| {
        let mode = pv.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
        let further = json!({ "volumeName": pv.name_any(), "volumeMode": mode });
        let class = if name.starts_with("raw") { "s10-raw" } else { "s10" };
        scene.claim_with(name, class, "1Mi", &further);
    };
    let pod = |name: &str, suffix: &str| {
        let of = |claim: &str| format!("{claim}{suffix}");
        PodSpec::new(name).claim(&of("wiped"), "/wiped").claim(&of("kept"), "/kept").device(&of("raw"), "/dev/raw")
    };
    let all = [("wiped", &wiped), ("kept", &kept), ("raw", &raw)];
    all.iter().for_each(|(name, pv)| claim(name, pv));
    scene.run(&pod("old", "")).await;
    let fill = format!("echo {SECRET} | tee /wiped/file > /kept/file; yes {SECRET} | head -c {SIZE} > /dev/raw; sync");
    scene.sh("old", &fill);
    scene.delete_pod("old").await;
    for (name, pv) in all {
        scene.delete_claim(name).await;
        scene.wait_phase(&pv.name_any(), "Released").await;
    }
    let in_file = |path: &std::path::Path| fs::read_to_string(path.join("file")).unwrap_or_default();
    let found = node.on_host(|| (in_file(&wiped_path), in_file(&kept_path), disk.backing_contains(SECRET.as_bytes())));
    assert_eq!((found.0.trim(), found.1.trim(), found.2), (SECRET, SECRET, true), "nothing is wiped without a word");

    for (name, pv) in all {
        let word = if name == "kept" { "keep" } else { "wipe" };
        scene.kubectl(&["annotate", "pv", &pv.name_any(), &format!("{WORD}={word}")]);
    }
    for (class, entry, pv) in [("s10", "wiped", &wiped), ("s10-raw", "raw", &raw)] {
        let anew = scene.wait_anew(class, 0, entry, pv).await;
        assert_eq!(anew.name_any(), pv.name_any(), "it has the name it had");
        scene.wait_event(&pv.name_any(), "VolumeWiped", "").await;
    }
    let again = scene.wait_phase(&kept.name_any(), "Available").await;
    assert_eq!(again.uid(), kept.uid(), "it is the same PV");
    assert!(!again.annotations().contains_key(WORD), "the word was for this once");
    let found = node.on_host(|| (in_file(&wiped_path), in_file(&kept_path), disk.backing_contains(SECRET.as_bytes())));
    assert_eq!((found.0.trim(), found.1.trim(), found.2), ("", SECRET, false));

    for (name, pv) in all {
        claim(&format!("{name}-new"), pv);
    }
    scene.run(&pod("new", "-new")).await;
    assert_eq!(scene.sh("new", "cat /kept/file").trim(), SECRET);
    assert_eq!(scene.sh("new", "ls -A /wiped"), "");
    scene.sh("new", &format!("cmp -n {SIZE} /dev/raw /dev/zero"));
    scene.delete_pod("new").await;
    // What is over is wiped as well, so that the disk is free when it goes.
    scene.delete_claim("raw-new").await;
}
