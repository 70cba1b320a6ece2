//! Reclaim policy Retain: after its claim a volume keeps its data until an admin gives it to the next.

use std::fs;

use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::pods::PodSpec;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s09", r#"{"storageClass": {"reclaimPolicy": "Retain"}}"#)];

const SIZE: u64 = 64 << 20;

#[tokio::test]
async fn s09_a_retained_volume_keeps_its_data_until_its_claim_ref_is_removed() {
    let scene = stage::shared("s09").await;
    let node = scene.node(1);
    let (path, disk) = node.mount_ext4("s09", "disk", SIZE);
    let pv = scene.wait_available("s09", 1, "disk").await;
    let name = pv.name_any();
    scene.claim("old", "s09", "1Mi");
    scene.run(&PodSpec::new("old").claim("old", "/data")).await;
    scene.sh("old", "mkdir /data/dir; echo retained > /data/dir/file; chmod 751 /data; chown 12:34 /data; sync");
    scene.delete_pod("old").await;
    scene.delete_claim("old").await;
    let released = scene.wait_phase(&name, "Released").await;

    // The agent is at work meanwhile.
    node.mount_tmpfs("s09", "another", SIZE);
    scene.wait_available("s09", 1, "another").await;
    // It says why it is not wiped.
    scene.wait_saying(1, "s09", "disk", "Published", "Retain").await;
    let now = scene.wait_phase(&name, "Released").await;
    assert_eq!(now.resource_version(), released.resource_version(), "nobody has touched the PV");
    let read = || fs::read_to_string(path.join("dir/file")).expect("the host sees it");
    assert_eq!(node.on_host(read).trim(), "retained");

    scene.kubectl(&["patch", "pv", &name, "--type=merge", "--patch", r#"{"spec": {"claimRef": null}}"#]);
    let again = scene.wait_phase(&name, "Available").await;
    assert_eq!(again.uid(), pv.uid(), "it is the same PV");
    scene.claim_with("new", "s09", "1Mi", &json!({ "volumeName": name }));
    scene.run(&PodSpec::new("new").claim("new", "/data")).await;
    assert_eq!(scene.sh("new", "cat /data/dir/file").trim(), "retained");
    assert_eq!(scene.sh("new", "stat -c %u:%g:%a /data").trim(), "12:34:751");
    let (_, bound) = scene.wait_bound("new").await;
    assert_eq!(bound.uid(), pv.uid());
    for event in scene.events(&name).await {
        assert!(!event.reason.as_deref().unwrap_or_default().starts_with("Volume"), "nothing was wiped: {event:?}");
    }
    scene.delete_pod("new").await;
    drop(disk);
}
