//! What config, Node and StorageClass say of PVs that exist: labels follow them, mount
//! options until somebody claims the PV, and the rest stays as it was made.

use std::path::Path;

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, ResourceExt};
use serde_json::json;

use crate::common::{SOON, calls, is_labelled, start, start_with, strip_label, wait_calls, wait_ready, wait_saying};
use crate::harness::disk;
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{ControlPlane, Options, rbac, shared};

fn label<'p>(pv: &'p PersistentVolume, key: &str) -> Option<&'p str> {
    pv.labels().get(key).map(String::as_str)
}

fn options(pv: &PersistentVolume) -> Vec<&str> {
    let options = pv.spec.as_ref().and_then(|spec| spec.mount_options.as_deref());
    options.unwrap_or_default().iter().map(String::as_str).collect()
}

/// What the agent does of its own accord after everything before: it has seen it all.
async fn agent_has_seen(node: &TestNode, disks: &Path, name: &str) -> PersistentVolume {
    disk::tmpfs(&disks.join(name), 1 << 20);
    node.wait_pv(&disks.join(name), |pv| phase(pv) == "Available", SOON).await
}

#[tokio::test]
async fn labels_follow_the_config_and_the_node_onto_pvs_that_exist() {
    let node = TestNode::new(shared(), "labels").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let classes: &[(&str, &Path, &str)] = &[(&class, &disks, "")];
    let paths = [disks.join("free"), disks.join("bound")];
    paths.iter().for_each(|path| disk::tmpfs(path, 1 << 20));
    node.label_node("example.com/zone", Some("a")).await;
    node.label_node("example.com/rack", Some("7")).await;
    let of_node = ("nodeLabelsForPV", "[example.com/zone, example.com/rack, example.com/absent]");
    let agent = start_with(&node, classes, &[of_node, ("labelsForPV", "env: prod\nexample.com/rack: none\ntier: x")]);
    let mut uids = Vec::new();
    for path in &paths {
        let pv = node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await;
        let labels = ["env", "tier", "example.com/zone", "example.com/rack", "example.com/absent"];
        let expected = [Some("prod"), Some("x"), Some("a"), Some("none"), None];
        assert_eq!(labels.map(|key| label(&pv, key)), expected);
        uids.push((pv.uid(), pv.name_any()));
    }
    node.bind(&uids[1].1).await;
    for (_, name) in &uids {
        let by_hand = json!({ "metadata": { "labels": { "by-hand": "1", "env": "mine" } } });
        node.patch_pv(name, by_hand).await.expect("a PV can be labelled");
    }
    let follows = async |what: &str, expected: &[(&str, Option<&str>)]| {
        for (path, (uid, _)) in paths.iter().zip(&uids) {
            let is_so = |pv: &PersistentVolume| expected.iter().all(|(key, value)| label(pv, key) == *value);
            let pv = node.wait_pv(path, is_so, SOON).await;
            assert_eq!((pv.uid(), label(&pv, "by-hand")), (uid.clone(), Some("1")), "{what}");
            assert_eq!(phase(&pv), if path == &paths[0] { "Available" } else { "Bound" }, "{what}");
        }
    };
    follows("what the config names is the config's", &[("env", Some("prod"))]).await;
    node.label_node("example.com/zone", Some("b")).await;
    follows("the Node has another label", &[("example.com/zone", Some("b"))]).await;
    node.label_node("example.com/zone", None).await;
    follows("the Node has lost one", &[("example.com/zone", None), ("env", Some("prod"))]).await;
    node.label_node("example.com/zone", Some("c")).await;
    follows("the Node has it again", &[("example.com/zone", Some("c"))]).await;
    drop(agent);

    let keys = [of_node, ("labelsForPV", "env: test")];
    let agent = start_with(&node, classes, &keys);
    let rest =
        [("env", Some("test")), ("tier", None), ("example.com/rack", Some("7")), ("example.com/zone", Some("c"))];
    follows("the config is another", &rest).await;
    wait_ready(&agent).await;
    wait_calls(&agent, "patch", 2.0).await;
    agent_has_seen(&node, &disks, "then").await;
    assert!((calls(&agent, "patch").await - 2.0).abs() < 0.5, "one patch for each");
    drop(agent);
    let agent = start_with(&node, classes, &keys);
    wait_ready(&agent).await;
    let other = agent_has_seen(&node, &disks, "after").await;
    assert_eq!(other.annotations()["mooring.dev/labels"], "env,example.com/rack,example.com/zone");
    assert!(calls(&agent, "patch").await < 0.5, "nothing has changed");
    drop(agent);

    let agent = start(&node, classes);
    follows("the config gives none", &[("env", None), ("example.com/rack", None), ("example.com/zone", None)]).await;
    for pv in node.pvs().await {
        assert_eq!(label(&pv, "mooring.dev/node"), Some(node.name()));
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn mount_options_follow_their_class_until_somebody_claims_the_pv_and_nothing_else_does() {
    let plane = ControlPlane::start(Options::default());
    // Its class gets a selector.
    rbac::apply_any_affinity(&plane.client().await).await;
    let node = TestNode::new(&plane, "options").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let paths = ["free", "bound", "reserved"].map(|name| disks.join(name));
    paths.iter().for_each(|path| disk::tmpfs(path, 1 << 20));
    let agent = start(&node, &[(&class, &disks, "")]);
    let mut before = Vec::new();
    for path in &paths {
        before.push(node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await);
    }
    node.bind(&before[1].name_any()).await;
    let reserved = json!({ "spec": { "claimRef": { "namespace": "default", "name": "of-somebody" } } });
    node.patch_pv(&before[2].name_any(), reserved).await.expect("a PV can be reserved");
    agent_has_seen(&node, &disks, "then").await;
    // It puts its label back on a PV that it has seen as it is now.
    for path in &paths[1..] {
        let pv = node.wait_pv(path, |_| true, SOON).await;
        strip_label(&node, &pv).await;
        node.wait_pv(path, is_labelled, SOON).await;
    }
    let classes: Api<StorageClass> = Api::all(node.client());
    let patch = Patch::Merge(json!({ "mountOptions": ["noatime", "nodev"] }));
    classes.patch(&class, &PatchParams::default(), &patch).await.expect("a StorageClass can be changed");
    for path in [&paths[0], &disks.join("then")] {
        node.wait_pv(path, |pv| options(pv) == ["noatime", "nodev"], SOON).await;
    }
    drop(agent);

    // As far as a PV's policy and affinity go, the class and the config are for new ones.
    classes.delete(&class, &DeleteParams::default()).await.expect("a StorageClass can be deleted");
    assert_eq!(node.class("fast", "Retain").await, class);
    let shelf = "selector: [{matchExpressions: [{key: shelf, operator: In, values: [\"7\"]}]}]";
    let agent = start(&node, &[(&class, &disks, shelf)]);
    let last = agent_has_seen(&node, &disks, "after").await.spec.expect("it has a spec");
    let terms = |pv: &PersistentVolume| {
        let affinity = pv.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.clone());
        affinity.expect("it has one").node_selector_terms.len()
    };
    assert_eq!(last.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
    // The new class has no mount options.
    for (path, before) in paths.iter().zip(&before) {
        let now = node.wait_pv(path, |pv| options(pv).is_empty(), SOON).await;
        assert_eq!(now.uid(), before.uid());
        let policy = now.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        assert_eq!((policy, terms(&now)), (Some("Delete"), 1));
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_label_that_the_api_server_refuses_is_told_and_keeps_no_volume_from_its_wipe() {
    let node = TestNode::new(shared(), "refused").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let path = disks.join("v");
    disk::tmpfs(&path, 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    std::fs::write(path.join("data"), "a tenant's").expect("a file can be written");
    drop(agent);
    refuse_label(&node, &pv).await;
    let agent = start_with(&node, &[(&class, &disks, "")], &[("labelsForPV", &format!("env: {}", node.name()))]);
    wait_saying(&agent, &class, "v", "Refused", "no such env").await;
    node.release(&claim).await;
    node.wait_gone(&pv, SOON).await;
    assert!(!path.join("data").exists());
    drop(agent);
    node.clean_up().await;
}

/// Has the API server refuse the label `env` with the node's name.
async fn refuse_label(node: &TestNode, pv: &PersistentVolume) {
    let name = node.name();
    let policy = format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  matchConstraints:
    resourceRules:
      - {{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [persistentvolumes]}}
  validations:
    - expression: "object.metadata.?labels['env'].orValue('') != '{name}'"
      message: no such env
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}, validationActions: [Deny]}}
"#
    );
    rbac::apply_manifest(&node.client(), &policy).await;
    let deadline = std::time::Instant::now() + SOON;
    let patch = serde_json::json!({ "metadata": { "labels": { "env": name } } });
    while node.try_patch_pv(&pv.name_any(), patch.clone()).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the policy does not come into force");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
