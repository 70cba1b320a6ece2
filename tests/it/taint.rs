//! The start-up taint: when it is taken off the Node, and what else is on the Node then.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Taint};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use mooring::config::Config;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::common::{SOON, start_with, wait_ready};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::proxy::{Faults, Proxy};
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, cluster, eventually, rbac, shared};

const KEY: &str = "sig-storage-local-static-provisioner/agent-not-ready";
const KEYS: [(&str, &str); 2] = [("removeNodeNotReadyTaint", "true"), ("provisionerNotReadyNodeTaintKey", KEY)];
const HOLD: (&str, &str) = ("holdTaintForBoundVolumes", "true");

fn nodes(node: &TestNode) -> Api<Node> {
    Api::all(node.client())
}

fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
}

async fn taints(node: &TestNode) -> Vec<Taint> {
    let now = nodes(node).get(node.name()).await.expect("the Node can be read");
    now.spec.and_then(|spec| spec.taints).unwrap_or_default()
}

/// Changes the taints as a controller does: by what they are, and again when somebody else
/// was faster.
async fn change_taints(nodes: &Api<Node>, name: &str, change: impl Fn(&mut Vec<Taint>)) {
    loop {
        let mut node = nodes.get(name).await.expect("the Node can be read");
        change(node.spec.get_or_insert_default().taints.get_or_insert_default());
        match nodes.replace(name, &PostParams::default(), &node).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("a Node can be changed: {error}"),
        }
    }
}

async fn add_taints(node: &TestNode, more: &[Taint]) {
    change_taints(&nodes(node), node.name(), |taints| taints.extend_from_slice(more)).await;
}

async fn wait_taints(node: &TestNode, what: &str, wanted: impl Fn(&[Taint]) -> bool) -> Vec<Taint> {
    let deadline = Instant::now() + SOON;
    loop {
        let now = taints(node).await;
        if wanted(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{what}: the taints are {now:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn has(taints: &[Taint], key: &str) -> bool {
    taints.iter().any(|taint| taint.key == key)
}

/// A node with the taint, whose agent may take it off.
async fn tainted(tag: &str) -> TestNode {
    let node = TestNode::new(shared(), tag).await;
    rbac::apply_taint_right(&node.client()).await;
    add_taints(&node, &[taint(KEY, "NoSchedule")]).await;
    node
}

fn name(pv: &PersistentVolume) -> &str {
    pv.metadata.name.as_deref().expect("a PV has a name")
}

async fn available(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await
}

#[tokio::test]
async fn the_start_up_taint_goes_when_all_is_offered_that_can_be_and_others_stay() {
    let node = tainted("taint").await;
    let others = [taint("maintenance", "PreferNoSchedule"), taint("dedicated", "NoSchedule")];
    add_taints(&node, &[others[0].clone(), taint(KEY, "NoExecute"), others[1].clone()]).await;
    let (class, absent) = (node.class("fast", "Delete").await, "no-such-class");
    let disks = node.discovery_dir("disks");
    let volumes = disk::mount_many(&disks, 50);
    // None of these can ever be offered.
    nix::unistd::mkfifo(&disks.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    fs::create_dir(disks.join("plain")).expect("a directory can be made");
    let foreign = mooring::pv::pv_name("taken", node.name(), &class);
    node.create_pv(&node.local_pv(&foreign, &class, Path::new("/elsewhere"))).await;
    disk::tmpfs(&disks.join("taken"), 1 << 20);
    let missing = node.root().join("missing");
    let agent = start_with(&node, &[(&class, &disks, ""), (absent, &missing, "")], &KEYS);
    let left = wait_taints(&node, "ours is gone", |taints| !has(taints, KEY)).await;
    // Both of its effects are gone.
    assert_eq!(left, others);
    // One of them by a longer name than usual, because a PV that is not ours has that.
    assert_eq!(node.pvs().await.len(), volumes.len() + 2, "all was offered before");
    agent.wait_metric("mooring_start_up_taint", |value| value < 0.5, SOON).await;
    node.clean_up().await;
}

#[tokio::test]
async fn a_start_up_taint_that_comes_back_is_taken_off_again() {
    let node = tainted("back").await;
    let class = node.class("fast", "Delete").await;
    let agent = start_with(&node, &[(&class, &node.discovery_dir("disks"), "")], &KEYS);
    for _ in 0..2 {
        wait_taints(&node, "it is gone", |taints| !has(taints, KEY)).await;
        add_taints(&node, &[taint(KEY, "NoExecute")]).await;
        wait_taints(&node, "it is gone again", |taints| !has(taints, KEY)).await;
        add_taints(&node, &[taint(KEY, "NoSchedule")]).await;
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_change_of_the_taints_just_before_ours_is_not_undone() {
    let node = tainted("conflict").await;
    let class = node.class("fast", "Delete").await;
    let proxy = Proxy::start(&node);
    proxy.set(Faults { hold_patches: true, ..Faults::default() });
    let map = storage_class_map(&[(&class, &node.discovery_dir("disks"), "")]);
    let config = [("storageClassMap", map.as_str()), KEYS[0], KEYS[1]];
    let env = [("KUBECONFIG", proxy.kubeconfig().to_str().expect("the path is text"))];
    let options = AgentOptions { config: &config, args: &["--v=4"], env: &env, ..AgentOptions::default() };
    let agent = Agent::start(&node, options);
    eventually("the agent's patch", SOON, || proxy.faults().waiting_patches > 0);
    // What was the first of the taints is the third now, and another is in its place.
    let (first, second) = (taint("first", "NoSchedule"), taint("second", "NoExecute"));
    change_taints(&nodes(&node), node.name(), |taints| {
        taints.splice(0..0, [first.clone(), second.clone()]);
    })
    .await;
    proxy.set(Faults::default());
    agent.wait_log("its taints are others than were seen", SOON).await;
    let left = wait_taints(&node, "it is gone", |taints| !has(taints, KEY)).await;
    assert_eq!(left, [first, second]);
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn others_that_change_taints_at_the_same_time_lose_none() {
    let node = tainted("busy").await;
    let class = node.class("fast", "Delete").await;
    let map = storage_class_map(&[(&class, &node.discovery_dir("disks"), "")]);
    let config = [("storageClassMap", map.as_str()), KEYS[0], KEYS[1]];
    let options = AgentOptions { config: &config, args: &["--v=4"], stateless: true, ..AgentOptions::default() };
    // Two agents at once, as while a DaemonSet is replaced, and somebody who puts taints
    // before theirs, takes them away, and now and then puts theirs back.
    let agents = [Agent::start(&node, options), Agent::start(&node, options)];
    let (api, rounds) = (nodes(&node), 60);
    for round in 1..=rounds {
        let first = |round: u32| format!("first-{round}");
        change_taints(&api, node.name(), |taints| taints.insert(0, taint(&first(round), "NoSchedule"))).await;
        change_taints(&api, node.name(), |taints| {
            taints.retain(|taint| taint.key != first(round - 1));
            taints.push(taint(&format!("last-{round}"), "NoSchedule"));
            if round % 10 == 0 && !has(taints, KEY) {
                taints.insert(1, taint(KEY, "NoSchedule"));
            }
        })
        .await;
    }
    let left = wait_taints(&node, "it is gone", |taints| !has(taints, KEY)).await;
    let left: Vec<_> = left.into_iter().map(|taint| taint.key).collect();
    let mut expected = vec![format!("first-{rounds}")];
    expected.extend((1..=rounds).map(|number| format!("last-{number}")));
    assert_eq!(left, expected);
    drop(agents);
    node.clean_up().await;
}

#[tokio::test]
async fn without_its_key_the_start_up_taint_is_nobody_s_business() {
    let node = tainted("untouched").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let keys = [("removeNodeNotReadyTaint", "false"), KEYS[1]];
    let agent = start_with(&node, &[(&class, &disks, "")], &keys);
    wait_ready(&agent).await;
    for entry in ["v", "w"] {
        disk::tmpfs(&disks.join(entry), 1 << 20);
        available(&node, &disks.join(entry)).await;
    }
    assert_eq!(taints(&node).await, [taint(KEY, "NoSchedule")]);
    assert_eq!(agent.metric("mooring_start_up_taint").await, Some(0.0));
    node.clean_up().await;
}

#[tokio::test]
async fn the_start_up_taint_waits_for_the_volumes_of_claims_if_told_to() {
    let node = tainted("held").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let (volume, disk) = (disks.join("v"), LoopDisk::new(node.dir(), 16 << 20));
    disk.format_ext4();
    fs::create_dir(&volume).expect("a directory can be made");
    disk.mount_ext4(&volume);
    let keys = [KEYS[0], KEYS[1], HOLD];
    let agent = start_with(&node, &[(&class, &disks, "")], &keys);
    wait_taints(&node, "it is gone", |taints| !has(taints, KEY)).await;
    let pv = available(&node, &volume).await;
    node.bind(name(&pv)).await;
    drop(agent);
    // A boot: the Node is registered with the taint, and the disk comes late.
    disk::umount(&volume);
    add_taints(&node, &[taint(KEY, "NoSchedule")]).await;
    let agent = start_with(&node, &[(&class, &disks, "")], &keys);
    let note = node.wait_event(node.name(), "StartUpTaintHeld", &volume.display().to_string(), SOON).await;
    assert!(note.contains("To do: mount"), "{note}");
    agent.wait_metric("mooring_start_up_taint_missing_volumes", |count| count > 0.5, SOON).await;
    agent.wait_log("The start-up taint stays", SOON).await;
    // It stays whatever else is offered.
    disk::tmpfs(&disks.join("w"), 1 << 20);
    available(&node, &disks.join("w")).await;
    assert_eq!(agent.get("/ready").await.0, 200);
    assert!(has(&taints(&node).await, KEY));
    disk.mount_ext4(&volume);
    wait_taints(&node, "it is gone", |taints| !has(taints, KEY)).await;
    agent.wait_metric("mooring_start_up_taint_missing_volumes", |count| count < 0.5, SOON).await;
    drop(agent);
    node.clean_up().await;
}

/// A kubeconfig for a `ServiceAccount` that has the agent's role and nothing else.
async fn without_the_right(node: &TestNode) -> std::path::PathBuf {
    let account = format!("without-taints-{}", node.name());
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": account },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mooring" },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": rbac::NAMESPACE }],
    });
    rbac::apply_manifest(&node.client(), &binding.to_string()).await;
    let config = Kubeconfig::read_from(shared().kubeconfig()).expect("the kubeconfig can be read");
    let mut config: Value = serde_json::to_value(config).expect("a kubeconfig can be written as JSON");
    for user in config["users"].as_array_mut().expect("it has users") {
        user["user"]["as"] = json!(format!("system:serviceaccount:{}:{account}", rbac::NAMESPACE));
    }
    let path = node.dir().join("without-taints.kubeconfig");
    fs::write(&path, config.to_string()).expect("a kubeconfig can be written");
    path
}

#[tokio::test]
async fn without_the_right_it_is_said_once_and_all_else_goes_on() {
    let node = TestNode::new(shared(), "forbidden").await;
    add_taints(&node, &[taint(KEY, "NoSchedule")]).await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let kubeconfig = without_the_right(&node).await;
    let map = storage_class_map(&[(&class, &disks, "")]);
    let config = [("storageClassMap", map.as_str()), KEYS[0], KEYS[1]];
    let env = [("KUBECONFIG", kubeconfig.to_str().expect("the path is text"))];
    let agent =
        Agent::start(&node, AgentOptions { config: &config, args: &["--v=4"], env: &env, ..AgentOptions::default() });
    let note = node.wait_event(node.name(), "StartUpTaintNotRemoved", "start-up-taint.yaml", SOON).await;
    assert!(note.contains(KEY) && note.contains("lacks a right"), "{note}");
    // It is tried again, and not told again.
    agent.wait_log("The start-up taint is not taken off; looking again", SOON).await;
    disk::tmpfs(&disks.join("v"), 1 << 20);
    available(&node, &disks.join("v")).await;
    assert_eq!(agent.get("/ready").await.0, 200);
    agent.wait_log("The start-up taint can't be taken off", SOON).await;
    let told = agent.logs().iter().filter(|line| line.contains("The start-up taint can't be taken off")).count();
    assert_eq!(told, 1);
    assert!(has(&taints(&node).await, KEY));
    agent.wait_metric("mooring_start_up_taint", |value| value > 0.5, SOON).await;
    let forbidden = "mooring_api_requests_total{verb=\"patch\",outcome=\"forbidden\"}";
    agent.wait_metric(forbidden, |count| count >= 2.0, SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn with_the_right_nothing_but_the_taints_of_its_own_node_can_be_changed() {
    let (node, other) = (tainted("policy").await, tainted("neighbour").await);
    let agents: Api<Node> = Api::all(cluster::client_from(node.kubeconfig()).await);
    let untaint = json!({ "spec": { "taints": null } });
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    let annotation = json!({ "metadata": { "annotations": { "x": "y" } } });
    let cordon = json!({ "spec": { "unschedulable": true } });
    let more = json!({ "spec": { "taints": [{ "key": "mine", "effect": "NoExecute" }] } });
    let patch = |name: String, patch: Value| {
        let agents = &agents;
        async move { agents.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop) }
    };
    // The policy takes a moment to be in force.
    let deadline = Instant::now() + SOON;
    while patch(other.name().to_owned(), label.clone()).await.is_ok() {
        assert!(Instant::now() < deadline, "the policy is not in force");
        sleep(Duration::from_millis(20)).await;
    }
    for (name, change) in [
        (other.name(), &untaint),
        (node.name(), &label),
        (node.name(), &annotation),
        (node.name(), &cordon),
        (node.name(), &more),
    ] {
        match patch(name.to_owned(), change.clone()).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {}
            answer => panic!("{change} of {name}: {answer:?}"),
        }
    }
    patch(node.name().to_owned(), untaint).await.expect("its own taints can be taken off");
    other.clean_up().await;
    node.clean_up().await;
}

#[test]
fn the_keys_are_read_as_documented_and_the_agent_comes_to_the_node() {
    let text = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path);
    let page = text("docs/configuration.md");
    let part = page.split("\n## The start-up taint\n").nth(1).expect("it has that part");
    let example = part.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("it has an example");
    let mut files: BTreeMap<String, String> = serde_saphyr::from_str(example).expect("it is the data of a ConfigMap");
    files.insert("storageClassMap".to_owned(), "c: {hostDir: /h, mountDir: /m}".to_owned());
    let config = Config::parse(&files).expect("the example is valid");
    assert_eq!((config.start_up_taint.as_deref(), config.hold_taint_for_bound_volumes), (Some(KEY), true));
    let daemonset: DaemonSet = serde_saphyr::from_str(&text("deploy/manifests/daemonset.yaml")).expect("it is one");
    let pod = daemonset.spec.and_then(|spec| spec.template.spec).expect("it has pods");
    assert!(pod.tolerations.iter().flatten().any(|toleration| toleration.key.as_deref() == Some(KEY)));
}
