//! The API server goes away, forgets, or answers into the void.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, DeleteParams};

use crate::common::{SOON, is_labelled, start, strip_label, wait_ready, wait_verdict};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk;
use crate::harness::node::TestNode;
use crate::harness::proxy::{Faults, Proxy};
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, ControlPlane, LoopDisk, Options, eventually, shared};

/// Several times the longest of its waits.
const OUTAGE: Duration = Duration::from_secs(60);

/// An agent that reaches the API server by the proxy.
pub fn start_behind(proxy: &Proxy, node: &TestNode, class: &str, disks: &std::path::Path, fields: &str) -> Agent {
    let map = storage_class_map(&[(class, disks, fields)]);
    let kubeconfig = proxy.kubeconfig().display().to_string();
    Agent::start(
        node,
        AgentOptions {
            config: &[("storageClassMap", &map)],
            args: &["--v=4"],
            env: &[("KUBECONFIG", &kubeconfig)],
            ..AgentOptions::default()
        },
    )
}

#[tokio::test]
async fn an_api_server_that_is_killed_for_a_minute_in_a_burst_is_survived() {
    let plane = ControlPlane::start(Options { audit: true });
    let node = TestNode::new(&plane, "outage").await;
    let class = node.class("many", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    // Nothing that waits for this control plane is left to its mercy meanwhile.
    let first = disk::mount_many(&disks, 300);
    node.watch_pvs("some of the volumes", SOON, |pvs| (pvs.len() >= 50).then_some(())).await;
    plane.kill("kube-apiserver");
    let before = agent.mark();
    disk::tmpfs(&disks.join("during"), 1 << 20);
    agent.wait_log("The API server does not answer", SOON).await;
    tokio::time::sleep(OUTAGE).await;
    assert_eq!(agent.get("/healthz").await.0, 200, "an outage is no reason to restart the agent");
    // It waits longer and longer, and does not fill the log meanwhile.
    // What was made before the kill, and is told of after it, is no complaint.
    let lines = agent.logs_after(before);
    let (decisions, told): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains(r#""level":"DEBUG""#));
    let told = told.iter().filter(|line| !line.contains("Volume is published")).count();
    assert!(told < 50, "{told} lines in {OUTAGE:?} of outage");
    // With -v=4, one or two of each volume at most.
    assert!(decisions.len() < 2 * first.len(), "{} decisions in {OUTAGE:?} of outage", decisions.len());
    plane.start_component("kube-apiserver");
    node.watch_pvs("all volumes", SOON * 2, |pvs| (pvs.len() > first.len()).then_some(())).await;
    assert_eq!(node.pvs().await.len(), first.len() + 1, "each volume once");
    agent.wait_log_after(before, "The API server answers again", SOON).await;
    // Watches work again, too: a change is seen that only a watch can show.
    let series = format!("mooring_volumes{{class=\"{class}\",verdict=\"Published\"}}");
    let all = u16::try_from(first.len() + 1).expect("a few hundred");
    agent.wait_metric(&series, |count| (count - f64::from(all)).abs() < 0.5, SOON).await;
    let pv = node.wait_pv(&disks.join("during"), |_| true, SOON).await;
    strip_label(&node, &pv).await;
    node.wait_pv(&disks.join("during"), is_labelled, SOON).await;
}

#[tokio::test]
async fn watches_that_break_or_expire_are_taken_up_again() {
    let node = TestNode::new(shared(), "watch").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let proxy = Proxy::start(&node);
    let agent = start_behind(&proxy, &node, &class, &disks, "");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let mut pv = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available", SOON).await;
    // Of the Node, of StorageClasses, and of PVs.
    eventually("all watches are begun", SOON, || proxy.watches() >= 3);
    for faults in [Faults::default(), Faults { expired_watches: 3, ..Faults::default() }] {
        let before = proxy.watches();
        proxy.set(faults);
        proxy.cut_watches();
        // That the PV is gone can be seen by a watch only.
        let name = pv.metadata.name.clone().expect("it has a name");
        let api: Api<PersistentVolume> = Api::all(node.client());
        api.delete(&name, &DeleteParams::default()).await.expect("an admin may delete it");
        let uid = pv.metadata.uid.clone();
        pv = node.wait_pv(&disks.join("v"), |pv| pv.metadata.uid != uid && phase(pv) == "Available", SOON).await;
        let asked = proxy.watches() - before;
        assert!((1..40).contains(&asked), "{asked} watches asked for: neither none nor a stampede");
        // Others than that of PVs may be taken up later.
        eventually("all of these were answered", SOON, || proxy.faults().expired_watches == 0);
        wait_verdict(&agent, &class, "v", "Published").await;
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn answers_that_are_lost_leave_neither_a_second_pv_nor_a_lost_one() {
    let node = TestNode::new(shared(), "lost").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let proxy = Proxy::start(&node);
    let agent = start_behind(&proxy, &node, &class, &disks, "");
    wait_ready(&agent).await;
    proxy.set(Faults { lost_creates: 2, lost_patches: 2, lost_deletes: 1, ..Faults::default() });
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let pv = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(pv.metadata.name.as_deref().expect("it has a name")).await;
    std::fs::write(disks.join("v/secret"), "x").expect("a file can be written");
    node.release(&claim).await;
    let uid = pv.metadata.uid.clone();
    node.wait_pv(&disks.join("v"), |pv| pv.metadata.uid != uid && phase(pv) == "Available", SOON).await;
    assert!(!disks.join("v/secret").exists());
    assert_eq!(node.pvs().await.len(), 1);
    let left = proxy.faults();
    assert_eq!((left.lost_creates, left.lost_patches, left.lost_deletes), (0, 0, 0), "each fault was met");
    let wipes = agent.metric("mooring_wipes_total{outcome=\"success\"}").await;
    assert_eq!(wipes, Some(1.0), "a lost answer is no reason to wipe again");
    node.clean_up().await;
}

#[tokio::test]
async fn a_wiped_volume_whose_pv_must_not_be_removed_is_not_wiped_again() {
    let node = TestNode::new(shared(), "refused").await;
    let class = node.class("raw", "Delete").await;
    let links = node.discovery_dir("links");
    let disk = LoopDisk::new(node.dir(), 4 << 20);
    let link = disk.link(&links, "disk");
    let proxy = Proxy::start(&node);
    // It ends when it is told to.
    let go = node.dir().join("go");
    let script = format!("while ! test -e {}; do sleep 0.02; done", go.display());
    let fields = format!("volumeMode: Block\nblockCleanerCommand: [sh, -c, '{script}']");
    let agent = start_behind(&proxy, &node, &class, &links, &fields);
    let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(pv.metadata.name.as_deref().expect("it has a name")).await;
    node.release(&claim).await;
    agent.wait_log("Wipe begins", SOON).await;
    proxy.set(Faults { refused_patches: 3, ..Faults::default() });
    std::fs::write(&go, "").expect("a file can be written");
    agent.wait_log("can't be removed", SOON).await;
    let uid = pv.metadata.uid.clone();
    node.wait_pv(&link, |pv| pv.metadata.uid != uid && phase(pv) == "Available", SOON).await;
    assert_eq!(proxy.faults().refused_patches, 0, "each refusal was met");
    let begun = agent.logs().iter().filter(|line| line.contains("Wipe begins")).count();
    assert_eq!(begun, 1);
    node.clean_up().await;
}

#[tokio::test]
async fn a_call_that_is_never_answered_ends_at_its_deadline() {
    let node = TestNode::new(shared(), "deadline").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let proxy = Proxy::start(&node);
    let agent = start_behind(&proxy, &node, &class, &disks, "");
    wait_ready(&agent).await;
    proxy.set(Faults { hung_creates: 1, ..Faults::default() });
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let pv = node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    // Others do not wait for it.
    disk::tmpfs(&disks.join("w"), 1 << 20);
    node.wait_pv(&disks.join("w"), |_| true, SOON).await;
    agent.wait_log("The API server does not answer", SOON).await;
    disk::tmpfs(&disks.join("x"), 1 << 20);
    agent.wait_log("The API server answers again", SOON).await;
    let series = format!("mooring_volumes{{class=\"{class}\",verdict=\"Published\"}}");
    agent.wait_metric(&series, |count| (count - 3.0).abs() < 0.5, SOON).await;
    let now = node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    assert_eq!(now.metadata.uid, pv.metadata.uid, "it was not made twice");
    assert_eq!(node.pvs().await.len(), 3);
    node.clean_up().await;
}
