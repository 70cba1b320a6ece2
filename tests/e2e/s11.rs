//! Reclaim policy Recycle, which local volumes don't have: a Warning, and nothing is wiped.

use std::fs;

use kube::api::ResourceExt;

use crate::harness::pods::PodSpec;
use crate::harness::site::SOON;
use crate::harness::volumes::phase;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s11", "{}")];

const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn s11_with_recycle_there_is_a_warning_and_nothing_is_wiped() {
    let scene = stage::shared("s11").await;
    let node = scene.node(1);
    let path = node.mount_tmpfs("s11", "disk", SIZE);
    let pv = scene.wait_available("s11", 1, "disk").await;
    let name = pv.name_any();
    scene.claim("data", "s11", "1Mi");
    scene.run(&PodSpec::new("old").claim("data", "/data")).await;
    scene.sh("old", "echo precious > /data/file");
    let set = |policy: &str| {
        let patch = format!(r#"{{"spec": {{"persistentVolumeReclaimPolicy": "{policy}"}}}}"#);
        scene.kubectl(&["patch", "pv", &name, "--type=merge", "--patch", &patch]);
    };
    set("Recycle");
    scene.delete_pod("old").await;
    scene.delete_claim("data").await;

    let event = scene.wait_event(&name, "VolumeUnsupportedReclaimPolicy", "Recycle").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    // The controller-manager tries to recycle it, and can't.
    let failed = scene.wait_phase(&name, "Failed").await;
    // What it advises leads to a clean volume, step by step, below.
    scene.wait_saying(1, "s11", "disk", "Refused", "change it to Delete or Retain").await;
    // The agent is at work meanwhile.
    node.mount_tmpfs("s11", "another", SIZE);
    scene.wait_available("s11", 1, "another").await;
    let now = scene.pvs().get(&name).await.expect("the PV is there");
    assert_eq!((now.uid(), now.resource_version(), phase(&now)), (pv.uid(), failed.resource_version(), "Failed"));
    assert_eq!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("it is there").trim(), "precious");
    assert!(scene.events(&name).await.iter().all(|event| event.reason.as_deref() != Some("VolumeDelete")));

    set("Delete");
    scene
        .until("the agent says what to do with a Failed PV", SOON, async || {
            let (_, detail) = scene.verdict(1, "s11", "disk").await?;
            detail.contains("Delete the PV").then_some(())
        })
        .await;
    scene.kubectl(&["delete", "pv", &name]);
    let back = scene.wait_phase(&name, "Released").await;
    assert_ne!(back.uid(), pv.uid(), "it is quarantined");
    assert_eq!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("it is there").trim(), "precious");
    scene.kubectl(&["annotate", "pv", &name, "mooring.dev/reclaim=wipe"]);
    scene.wait_available("s11", 1, "disk").await;
    assert_eq!(node.on_host(|| fs::read_dir(&path).expect("it is there").count()), 0);
}
