//! The files of `tests/fixtures/golden` through the whole agent: real mounts, devices and
//! links as each says, a Node of its name, a real API server; each PV must be what the Go
//! provisioner was recorded to make, but for labels and annotations of our own prefix.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, ListParams, PostParams, ResourceExt};
use serde_json::{Value, json};

use crate::common::{SOON, wait_ready};
use crate::golden::{cases, strings};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::{Agent, AgentOptions, ControlPlane, Options, rbac, shared};

/// What an entry is made of, kept as long as it is needed.
fn make(node: &TestNode, disks: &Path, entry: &Value) -> Option<LoopDisk> {
    let path = disks.join(entry["name"].as_str().expect("a name"));
    let bytes = entry["bytes"].as_u64().expect("a size");
    match entry["kind"].as_str().expect("a kind") {
        "tmpfs" => disk::tmpfs(&path, bytes),
        "dir" => std::fs::create_dir(path).expect("a directory can be made"),
        "file" => std::fs::write(path, "").expect("a file can be written"),
        "dangling" => symlink("nowhere", path).expect("a link can be made"),
        "fifo" => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made"),
        "symlink-tmpfs" => {
            let target = node.root().join("mounted-elsewhere");
            disk::tmpfs(&target, bytes);
            symlink(target, path).expect("a link can be made");
        }
        "loop" => {
            let disk = LoopDisk::new(node.dir(), bytes);
            symlink(&disk.device, path).expect("a link can be made");
            return Some(disk);
        }
        other => panic!("an entry of the unknown kind {other}"),
    }
    None
}

/// Waits until nothing is about to be made any more.
async fn settle(agent: &Agent) {
    wait_ready(agent).await;
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let (_, body) = agent.get("/volumes").await;
        let lines: Vec<Value> = serde_json::from_str(&body).expect("/volumes is a JSON list");
        // A busy machine may look hung at first.
        let is_open = |line: &Value| line["verdict"] == "Pending" || line["verdict"] == "Unresponsive";
        if !lines.iter().any(is_open) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{lines:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The config with its volumes where they are; the PVs show the path on the host.
fn config(case: &Value, disks: &Path) -> Vec<(String, String)> {
    let keys = case["config"].as_object().expect("a config").iter().map(|(key, value)| {
        let mut value = value.clone();
        if key == "storageClassMap" {
            for class in value.as_object_mut().expect("classes").values_mut() {
                class["mountDir"] = json!(disks);
            }
        }
        (key.clone(), value.to_string())
    });
    keys.collect()
}

/// A PV in the form of the fixtures.
fn recorded_form(pv: &PersistentVolume, uid: &str) -> Value {
    assert_eq!(pv.finalizers(), ["kubernetes.io/pv-protection"], "the API server's own");
    let mut value = serde_json::to_value(pv).expect("a PV is JSON");
    let fields = value.as_object_mut().expect("a PV is an object");
    fields.retain(|key, _| key == "metadata" || key == "spec");
    let metadata = fields["metadata"].as_object_mut().expect("metadata is an object");
    // What the API server adds to every PV.
    for key in ["uid", "creationTimestamp", "resourceVersion", "managedFields", "finalizers"] {
        metadata.remove(key);
    }
    for key in ["labels", "annotations"] {
        let Some(map) = metadata.get_mut(key).and_then(Value::as_object_mut) else { continue };
        map.retain(|key, _| !key.starts_with("mooring.dev/"));
        if map.is_empty() {
            metadata.remove(key);
        }
    }
    let annotations = metadata["annotations"].as_object_mut().expect("each PV is signed");
    let by = annotations["pv.kubernetes.io/provisioned-by"].as_str().expect("text").replace(uid, "NODE-UID");
    annotations.insert("pv.kubernetes.io/provisioned-by".to_owned(), json!(by));
    value
}

/// What the agent makes of a case, by path.
async fn ours(plane: &ControlPlane, name: &str, case: &Value) -> Vec<Value> {
    let labels: BTreeMap<String, String> = strings(&case["node"]["metadata"]["labels"]);
    let node_name = case["node"]["metadata"]["name"].as_str().expect("a name").to_owned();
    let node = TestNode::named(plane, node_name.clone(), labels).await;
    let classes: Api<StorageClass> = Api::all(node.client());
    let wanted: Vec<StorageClass> = serde_json::from_value(case["storageClasses"].clone()).expect("classes");
    for class in &wanted {
        classes.create(&PostParams::default(), class).await.expect("a StorageClass can be made");
    }
    let disks = node.discovery_dir("disks");
    let made: Vec<Option<LoopDisk>> =
        case["entries"].as_array().expect("entries").iter().map(|entry| make(&node, &disks, entry)).collect();
    let keys = config(case, &disks);
    let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let agent = Agent::start(&node, AgentOptions { config: &keys, args: &["-v=4"], ..AgentOptions::default() });
    settle(&agent).await;

    let pvs: Api<PersistentVolume> = Api::all(node.client());
    let signature = format!("local-volume-provisioner-{node_name}");
    let all = pvs.list(&ListParams::default()).await.expect("PVs can be listed").items;
    let signed = |pv: &PersistentVolume| {
        let by = pv.annotations().get("pv.kubernetes.io/provisioned-by");
        by.is_some_and(|by| *by == signature || *by == format!("{signature}-{}", node.uid()))
    };
    let own: Vec<PersistentVolume> = all.into_iter().filter(signed).collect();
    let mut found: Vec<Value> = own.iter().map(|pv| recorded_form(pv, node.uid())).collect();
    found.sort_by_key(|pv| pv["spec"]["local"]["path"].to_string());
    assert!(own.iter().all(|pv| pv.labels().contains_key("mooring.dev/node")), "{name}: each bears our label");

    // The next case has a Node of the same name.
    drop(agent);
    for pv in &own {
        node.force_delete_pv(pv).await;
        gone(&pvs, &pv.name_any()).await;
    }
    for class in &wanted {
        classes.delete(&class.name_any(), &DeleteParams::default()).await.expect("a StorageClass can be deleted");
    }
    let nodes: Api<Node> = Api::all(node.client());
    nodes.delete(&node_name, &DeleteParams::default()).await.expect("a Node can be deleted");
    gone(&nodes, &node_name).await;
    drop(made);
    found
}

async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let deadline = std::time::Instant::now() + SOON;
    while api.get_opt(name).await.expect("it can be asked for").is_some() {
        assert!(std::time::Instant::now() < deadline, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn every_recorded_case_gives_the_same_pvs_on_a_real_api_server() {
    let cases = cases();
    assert!(cases.len() >= 12, "the fixtures are there");
    // Some have a selector, or a host name that is not the node's name.
    let plane = ControlPlane::start(Options::default());
    rbac::apply_any_affinity(&plane.client().await).await;
    for (name, case) in cases {
        let mut expected = case["persistentVolumes"].as_array().expect("a list").clone();
        expected.sort_by_key(|pv| pv["spec"]["local"]["path"].to_string());
        assert_eq!(json!(ours(&plane, &name, &case).await), json!(expected), "{name}");
    }
}

#[tokio::test]
async fn names_that_the_go_provisioner_leaves_out_are_published_and_a_fifo_holds_up_nothing() {
    let (_, mut case) = cases().into_iter().find(|(name, _)| name == "not-volumes").expect("the fixture is there");
    // A Node of its own, as the other test runs at the same time.
    let node_name = format!("odd-names-{}", std::process::id());
    case["node"]["metadata"] = json!({ "name": node_name, "labels": { "kubernetes.io/hostname": node_name } });
    case["storageClasses"][0]["metadata"]["name"] = json!("odd-names");
    let class = case["config"]["storageClassMap"]["fs"].clone();
    case["config"]["storageClassMap"] = json!({ "odd-names": class });
    let entries = case["entries"].as_array_mut().expect("entries");
    for (name, kind) in [("a fifo", "fifo"), ("with blank", "tmpfs"), ("with\\backslash", "tmpfs")] {
        entries.push(json!({ "name": name, "kind": kind, "bytes": 64 << 20 }));
    }
    let paths: Vec<PathBuf> = ours(shared(), "odd names", &case)
        .await
        .iter()
        .map(|pv| PathBuf::from(pv["spec"]["local"]["path"].as_str().expect("a path")))
        .collect();
    let expected = ["/mnt/disks/ok", "/mnt/disks/with blank", "/mnt/disks/with\\backslash"].map(PathBuf::from);
    assert_eq!(paths, expected);
}
