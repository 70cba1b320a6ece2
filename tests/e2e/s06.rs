//! A claim selects by labels, which PVs have by `labelsForPV` and `nodeLabelsForPV`.

use std::fs;
use std::path::Path;

use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::helm::{LABEL, LABEL_VALUE};
use crate::harness::kubelet::RACK;
use crate::harness::pods::PodSpec;
use crate::harness::volumes::{is_on, path_of, phase};
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s06", "{}")];

const SIZE: u64 = 64 << 20;
const ENTRIES: [&str; 2] = ["disk-0", "disk-1"];

#[tokio::test]
async fn s06_a_claim_that_selects_by_labels_binds_a_pv_that_bears_them_on_the_right_node() {
    let scene = stage::shared("s06").await;
    for node in 0..2 {
        for entry in ENTRIES {
            scene.node(node).mount_tmpfs("s06", entry, SIZE);
            let pv = scene.wait_available("s06", node, entry).await;
            assert_eq!(pv.labels().get(LABEL).map(String::as_str), Some(LABEL_VALUE), "by labelsForPV");
            assert_eq!(pv.labels().get(RACK), Some(&rack(node)), "by nodeLabelsForPV");
        }
    }
    // An admin's own label on one of them; the agent leaves it there.
    let chosen = scene.wait_available("s06", 1, ENTRIES[1]).await;
    scene.kubectl(&["label", "pv", &chosen.name_any(), "s06=chosen"]);

    let claims = [
        ("first", 0, json!({ "matchLabels": { LABEL: LABEL_VALUE, RACK: rack(0) } })),
        ("second", 0, json!({ "matchLabels": { RACK: rack(0) } })),
        ("chosen", 1, json!({ "matchLabels": { LABEL: LABEL_VALUE, RACK: rack(1), "s06": "chosen" } })),
    ];
    for (name, node, selector) in claims {
        scene.claim_with(name, "s06", "1Mi", &json!({ "selector": selector }));
        // Nothing but the claim says where it may run.
        let pod = scene.run(&PodSpec::new(name).claim(name, "/data")).await;
        let (_, bound) = scene.wait_bound(name).await;
        assert!(is_on(&bound, scene.node(node).name()), "{name} has {} of another rack", bound.name_any());
        assert_eq!(bound.labels().get(RACK), Some(&rack(node)));
        assert_eq!(pod.spec.and_then(|spec| spec.node_name).as_deref(), Some(scene.node(node).name()));
        if name == "chosen" {
            assert_eq!(bound.uid(), chosen.uid(), "it is the one with the admin's label");
        }
        scene.sh(name, &format!("echo {name} > /data/file; sync"));
        assert_eq!(scene.sh(name, "cat /data/file").trim(), name);
        let file = Path::new(path_of(&bound)).join("file");
        assert_eq!(scene.node(node).on_host(|| fs::read_to_string(&file)).expect("the host sees it").trim(), name);
    }

    // One PV is free, but in no rack that is asked for: both others are taken.
    scene.claim_with("third", "s06", "1Mi", &json!({ "selector": { "matchLabels": { RACK: rack(0) } } }));
    scene.start(&PodSpec::new("third").claim("third", "/data"));
    scene.wait_unschedulable("third", "persistent volumes").await;
    let free: Vec<_> = scene.pvs_of("s06").await.into_iter().filter(|pv| phase(pv) == "Available").collect();
    assert_eq!(free.len(), 1);
    assert!(is_on(&free[0], scene.node(1).name()));
    for pod in ["first", "second", "chosen", "third"] {
        scene.delete_pod(pod).await;
    }
}

fn rack(node: usize) -> String {
    crate::harness::kubelet::rack(&format!("node-{node}"))
}
