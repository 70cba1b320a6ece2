//! What is missing at the start: one clear line each, and it keeps trying.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::common::{SOON, start, wait_ready, wait_saying};
use crate::harness::config_dir::storage_class_map;
use crate::harness::node::TestNode;
use crate::harness::{Agent, AgentOptions, ControlPlane, Options, disk, eventually, rbac, shared};

fn count(agent: &Agent, text: &str) -> usize {
    agent.logs().iter().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn a_config_that_cant_be_used_is_waited_for() {
    let node = TestNode::new(shared(), "config").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let bad = storage_class_map(&[(&class, &disks, "volumeMode: Blocks")]);
    let agent = Agent::start(&node, AgentOptions { config: &[("storageClassMap", &bad)], ..AgentOptions::default() });
    let line = agent.wait_log("The config can't be used", SOON).await;
    assert!(
        line.contains(&format!("storageClassMap.{class}.volumeMode")) && line.contains("Filesystem or Block"),
        "{line}"
    );
    let (status, text) = agent.get("/ready").await;
    assert!(status == 503 && text.contains("config"), "{status} {text}");
    assert_eq!(agent.get("/healthz").await.0, 200);
    // It ends when it is told to, also while it waits.
    let mut waiting =
        Agent::start(&node, AgentOptions { config: &[("storageClassMap", &bad)], ..AgentOptions::default() });
    waiting.wait_log("The config can't be used", SOON).await;
    waiting.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(waiting.wait_exit(SOON).await.success());
    agent.rewrite_config(&[("storageClassMap", &storage_class_map(&[(&class, &disks, "")]))]);
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    assert_eq!(count(&agent, "The config can't be used"), 1);
    node.clean_up().await;
}

#[tokio::test]
async fn a_node_that_is_missing_or_has_no_host_name_is_waited_for() {
    let node = TestNode::new(shared(), "no-node").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let map = storage_class_map(&[(&class, &disks, "")]);
    let other = format!("{}-late", node.name());
    // No token can name a Node that is not there.
    rbac::apply_unpinned(&node.client(), node.name()).await;
    let kubeconfig = node.kubeconfig_of(rbac::NAMESPACE, node.name()).await.display().to_string();
    let agent = Agent::start(
        &node,
        AgentOptions {
            config: &[("storageClassMap", &map)],
            env: &[("MY_NODE_NAME", &other), ("KUBECONFIG", &kubeconfig)],
            ..AgentOptions::default()
        },
    );
    let line = agent.wait_log("there is no Node", SOON).await;
    assert!(line.contains(&other) && line.contains("MY_NODE_NAME"), "{line}");
    let deadline = std::time::Instant::now() + SOON;
    while !agent.get("/ready").await.1.contains("the Node") {
        assert!(std::time::Instant::now() < deadline, "{:?}", agent.get("/ready").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let nodes: Api<Node> = Api::all(node.client());
    let made = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": other } });
    let made: Node = serde_json::from_value(made).expect("it is a Node");
    nodes.create(&kube::api::PostParams::default(), &made).await.expect("a Node can be made");
    let line = agent.wait_log("has no label kubernetes.io/hostname", SOON).await;
    assert!(line.contains("label it"), "{line}");

    let label = json!({ "metadata": { "labels": { "kubernetes.io/hostname": node.name() } } });
    nodes.patch(&other, &PatchParams::default(), &Patch::Merge(&label)).await.expect("a Node can be labelled");
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    nodes.delete(&other, &DeleteParams::default()).await.expect("a Node can be deleted");
    node.clean_up().await;
}

#[tokio::test]
async fn a_storage_class_that_is_missing_is_waited_for() {
    let node = TestNode::new(shared(), "no-class").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let name = node.class("late", "Delete").await;
    let classes: Api<k8s_openapi::api::storage::v1::StorageClass> = Api::all(node.client());
    classes.delete(&name, &DeleteParams::default()).await.expect("a class can be deleted");
    let agent = start(&node, &[(&name, &disks, "")]);
    wait_saying(&agent, &name, "v", "NoStorageClass", &name).await;
    wait_ready(&agent).await;
    assert_eq!(node.class("late", "Delete").await, name);
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    node.clean_up().await;
}

#[tokio::test]
async fn rights_that_are_missing_are_named_and_waited_for() {
    // Of its own: it takes rights away from every agent.
    let plane = ControlPlane::start(Options { audit: false });
    let node = TestNode::new(&plane, "rights").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let roles: Api<ClusterRole> = Api::all(node.client());
    let mut role = roles.get("mooring").await.expect("the role is there");
    let rules = role.rules.replace(Vec::new());
    roles.replace("mooring", &kube::api::PostParams::default(), &role).await.expect("a role can be replaced");
    rbac::wait_right(&node.client(), rbac::SERVICE_ACCOUNT, "list", "persistentvolumes", false).await;
    let agent = start(&node, &[(&class, &disks, "")]);
    let line = agent.wait_log("lacks a right", SOON).await;
    assert!(line.contains("storageclasses") || line.contains("nodes"), "{line}");
    // It is tried again and again.
    for resource in ["nodes", "storageclasses"] {
        let again = |line: &String| line.contains("Still not readable") && line.contains(resource);
        eventually("further tries", SOON, || agent.logs().into_iter().filter(again).count() >= 2);
    }
    assert!(count(&agent, "Resource can't be read") <= 4, "each is told once: {:?}", agent.logs());

    let mut role = roles.get("mooring").await.expect("the role is there");
    role.rules = rules;
    roles.replace("mooring", &kube::api::PostParams::default(), &role).await.expect("a role can be replaced");
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    agent.wait_log("Resource is readable again", SOON).await;
}

#[tokio::test]
async fn an_agent_without_a_node_name_or_with_a_taken_port_says_what_to_do() {
    let node = TestNode::new(shared(), "refused").await;
    let mut agent = Agent::start(&node, AgentOptions { env: &[("MY_NODE_NAME", "")], ..AgentOptions::default() });
    agent.wait_log("MY_NODE_NAME is not set: set it to spec.nodeName", SOON).await;
    assert_eq!(agent.wait_exit(SOON).await.code(), Some(1));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let args = ["--listen-address", address.as_str()];
    let mut agent = Agent::start(&node, AgentOptions { args: &args, ..AgentOptions::default() });
    agent.wait_log("choose another address by --listen-address", SOON).await;
    assert_eq!(agent.wait_exit(SOON).await.code(), Some(1));
    node.clean_up().await;
}
