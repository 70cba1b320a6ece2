//! PVs of others are not touched, whatever happens to them: those of NFS, hostPath and CSI, of
//! another node, and of somebody's hand with our class and our path.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, Patch, PatchParams, ResourceExt};
use serde_json::{Value, json};

use crate::harness::pods::PodSpec;
use crate::harness::site::SOON;
use crate::harness::volumes::phase;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s13", "{}")];

const SIZE: u64 = 64 << 20;
/// The entry that PVs of others name.
const ENTRY: &str = "disk";
const HAND_MADE: &str = "s13-hand-made";
/// How the API server names who wrote what, for the agents: by their program.
const AGENT: &str = "mooring";

#[tokio::test]
async fn s13_pvs_of_others_are_not_touched() {
    // Agents are restarted, so that they list all PVs.
    let scene = stage::alone("s13").await;
    let others = make(&scene).await;
    for name in others.keys() {
        scene.wait_phase(name, "Available").await;
    }
    let before = objects(&scene, &others).await;
    tokio::join!(scene.delete_agent(0), scene.delete_agent(1));
    // The path is taken on the one node, as the agent knows since its start, and free on the other one.
    let path = scene.node(0).mount_tmpfs("s13", ENTRY, SIZE);
    scene.node(1).mount_tmpfs("s13", ENTRY, SIZE);
    let neighbour = scene.wait_available("s13", 1, ENTRY).await;
    scene.wait_saying(0, "s13", ENTRY, "PathInUse", HAND_MADE).await;
    assert!(managers(&neighbour).contains(&AGENT.to_owned()), "an agent's write shows: {:?}", managers(&neighbour));
    assert_eq!(objects(&scene, &others).await, before, "after a start of the agents, and a mount");

    // Each is used and released; the one by hand by a pod.
    for (name, pv) in &others {
        let mode = pv.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
        scene.claim_with(name, "s13", "1Mi", &json!({ "volumeName": name, "volumeMode": mode }));
        scene.wait_bound(name).await;
    }
    scene.run(&PodSpec::new("pod").claim(HAND_MADE, "/data")).await;
    scene.sh("pod", "echo by hand > /data/file; sync");
    assert_eq!(scene.sh("pod", "cat /data/file").trim(), "by hand");
    scene.delete_pod("pod").await;
    for name in others.keys() {
        scene.delete::<PersistentVolumeClaim>(name).await;
        released(&scene, name).await;
    }
    let before = objects(&scene, &others).await;
    tokio::join!(scene.delete_agent(0), scene.delete_agent(1));
    for node in 0..2 {
        scene.node(node).mount_tmpfs("s13", "further", SIZE);
        scene.wait_available("s13", node, "further").await;
    }
    scene.wait_verdict(0, "s13", ENTRY, "PathInUse").await;
    assert_eq!(objects(&scene, &others).await, before, "after they were released, and another start of the agents");
    let file = path.join("file");
    assert_eq!(scene.node(0).on_host(|| fs::read_to_string(&file)).expect("nothing is wiped").trim(), "by hand");
    for pv in scene.pvs_of("s13").await.iter().filter(|pv| others.contains_key(&pv.name_any())) {
        assert!(!managers(pv).contains(&AGENT.to_owned()), "an agent wrote to {}: {:?}", pv.name_any(), managers(pv));
    }
    let now = scene.pvs().get(&neighbour.name_any()).await.expect("the other node's PV is there");
    assert_eq!(now.metadata.resource_version, neighbour.metadata.resource_version, "nobody touched it either");

    // Whose it is can have it again with its data.
    let free = Patch::Merge(json!({ "spec": { "claimRef": null } }));
    scene.pvs().patch(HAND_MADE, &PatchParams::default(), &free).await.expect("an admin may do that");
    scene.wait_phase(HAND_MADE, "Available").await;
    scene.claim_with("again", "s13", "1Mi", &json!({ "volumeName": HAND_MADE }));
    scene.run(&PodSpec::new("again").claim("again", "/data")).await;
    assert_eq!(scene.sh("again", "cat /data/file").trim(), "by hand");
    scene.delete_pod("again").await;
    for name in others.keys() {
        scene.kubectl(&["delete", "pv", name, "--wait=false"]);
    }
}

/// Makes PVs of others, all of our class and to be deleted with their claims.
async fn make(scene: &Scene) -> BTreeMap<String, PersistentVolume> {
    let path = scene.node(0).discovery("s13").join(ENTRY);
    let nodes: Api<Node> = Api::all(scene.client());
    let neighbour = nodes.get(scene.node(1).name()).await.expect("it is there");
    let signature = format!("local-volume-provisioner-node-9-{}", neighbour.uid().expect("a Node has a uid"));
    let here = scene.node(0).name();
    let sources = [
        ("s13-nfs", json!({ "nfs": { "server": "192.0.2.1", "path": path } }), None, None),
        ("s13-host-path", json!({ "hostPath": { "path": path } }), Some(here), None),
        ("s13-csi", json!({ "csi": { "driver": "csi.example.com", "volumeHandle": "1" } }), Some(here), None),
        ("s13-elsewhere", local(&path), Some("node-9"), Some(signature)),
        (HAND_MADE, local(&path), Some(here), None),
    ];
    let mut made = BTreeMap::new();
    for (name, source, node, signature) in sources {
        let mut pv = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name, "annotations": {} },
            "spec": {
                "capacity": { "storage": "64Mi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "s13",
                "persistentVolumeReclaimPolicy": "Delete",
            },
        });
        if let Some(signature) = signature {
            pv["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] = json!(signature);
        }
        let spec = pv["spec"].as_object_mut().expect("it is an object");
        spec.extend(source.as_object().cloned().expect("it is an object"));
        if let Some(node) = node {
            let expression = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] });
            let terms = json!([{ "matchExpressions": [expression] }]);
            spec.insert("nodeAffinity".into(), json!({ "required": { "nodeSelectorTerms": terms } }));
        }
        scene.apply(&pv.to_string());
        made.insert(name.to_owned(), scene.pvs().get(name).await.expect("it was just made"));
    }
    made
}

fn local(path: &Path) -> Value {
    json!({ "local": { "path": path } })
}

/// The objects as they are, all of them.
async fn objects(scene: &Scene, of: &BTreeMap<String, PersistentVolume>) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    for name in of.keys() {
        let pv = scene.pvs().get(name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        objects.insert(name.clone(), serde_json::to_value(pv).expect("a PV can be shown"));
    }
    objects
}

/// Waits until the PV controller has done with a PV whose claim is gone: it wipes none of these itself.
async fn released(scene: &Scene, name: &str) {
    let pvs = scene.pvs();
    let settled = async || {
        let pv = pvs.get(name).await.expect("nobody deletes it");
        // What it can't delete it calls Failed, unless it expects somebody else to.
        let is_external = name == "s13-csi" || pv.annotations().contains_key("pv.kubernetes.io/provisioned-by");
        (phase(&pv) == if is_external { "Released" } else { "Failed" }).then_some(())
    };
    scene.until(&format!("{name} is as the PV controller leaves it"), SOON, settled).await;
}

/// Who wrote to it, as the API server has recorded.
fn managers(pv: &PersistentVolume) -> Vec<String> {
    let fields = pv.metadata.managed_fields.iter().flatten();
    fields.filter_map(|field| field.manager.clone()).collect()
}
