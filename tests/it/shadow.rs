//! `mooring agent --shadow` beside another provisioner: it finds what differs, and changes
//! nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Event, PersistentVolume};
use kube::api::{Api, ListParams, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::{SOON, start, wait_ready, wait_saying, wait_verdict};
use crate::go_provisioner::GoProvisioner;
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, eventually, rbac, shared};

const MIB: u64 = 1 << 20;

/// A ServiceAccount that may only read, as the manifest of the shadow gives it.
pub async fn reader(node: &TestNode) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests/shadow.yaml");
    let manifest = fs::read_to_string(path).expect("the manifest is there");
    let rights: Vec<_> = manifest.split("\n---\n").filter(|part| !part.contains("\nkind: DaemonSet\n")).collect();
    rbac::apply_manifest(&node.client(), &rights.join("\n---\n")).await;
    node.kubeconfig_of("default", "mooring-shadow").await
}

/// Starts a shadow whose differences count after a second.
fn shadow(node: &TestNode, kubeconfig: &Path, classes: &[(&str, &Path, &str)], more: &[&str]) -> Agent {
    let map = storage_class_map(classes);
    let mut args = vec!["--shadow", "--shadow-grace=1s", "--v=4"];
    args.extend(more);
    let kubeconfig = kubeconfig.to_str().expect("a path is text");
    Agent::start(
        node,
        AgentOptions {
            config: &[("storageClassMap", &map), ("withdrawAfter", "1h")],
            args: &args,
            stateless: true,
            env: &[("KUBECONFIG", kubeconfig)],
            ..AgentOptions::default()
        },
    )
}

fn series(kind: &str) -> String {
    format!("mooring_shadow_differences{{kind=\"{kind}\"}}")
}

async fn wait_count(shadow: &Agent, kind: &str, expected: f64) {
    shadow.wait_metric(&series(kind), |count| (count - expected).abs() < 0.5, SOON).await;
}

/// What the API server has of this node: its PVs at their versions.
async fn versions(node: &TestNode) -> BTreeMap<String, Option<String>> {
    node.pvs().await.iter().map(|pv| (pv.name_any(), pv.resource_version())).collect()
}

/// Every path below, with its content and the time of its last change.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let look = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("it can be listed").path();
        let time = path.metadata().and_then(|facts| facts.modified()).expect("it has a time");
        (path.clone(), (fs::read(&path).unwrap_or_default(), time))
    };
    fs::read_dir(folder).expect("it can be listed").map(look).collect()
}

/// No write was sent, or even tried.
async fn wrote_nothing(shadow: &Agent) {
    let (_, page) = shadow.get("/metrics").await;
    let writes = ["create", "patch", "delete"].map(|verb| format!("mooring_api_requests_total{{verb=\"{verb}\""));
    let found: Vec<_> = page.lines().filter(|line| writes.iter().any(|write| line.starts_with(write))).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(page.contains("mooring_shadow_differences"), "it is the page of a shadow");
    let tried: Vec<_> = shadow.logs().into_iter().filter(|line| line.contains("this process only reads")).collect();
    assert!(tried.is_empty(), "{tried:?}");
}

#[tokio::test]
async fn a_shadow_finds_what_differs_from_the_go_provisioner_and_changes_nothing() {
    let node = TestNode::new(shared(), "shadow").await;
    let (fast, raw) = (node.class("fast", "Delete").await, node.class("raw", "Delete").await);
    let (disks, links) = (node.discovery_dir("disks"), node.discovery_dir("links"));
    let go = GoProvisioner { node: &node };
    for name in ["like-ours", "other-size", "late"] {
        disk::tmpfs(&disks.join(name), 16 * MIB);
    }
    fs::create_dir(disks.join("not-mounted")).expect("a directory can be made");
    let disk = LoopDisk::new(node.dir(), 32 * MIB);
    let (one, two) = (disk.link(&links, "one"), disk.link(&links, "two"));
    let like_ours = go.publish(&fast, &disks.join("like-ours"), "Filesystem", 16 * MIB).await;
    let other_size = go.publish(&fast, &disks.join("other-size"), "Filesystem", 12 * MIB).await;
    let not_mounted = go.publish(&fast, &disks.join("not-mounted"), "Filesystem", 16 * MIB).await;
    let first = go.publish(&raw, &one, "Block", 32 * MIB).await;
    let second = go.publish(&raw, &two, "Block", 32 * MIB).await;
    for pv in [&like_ours, &other_size, &not_mounted, &first, &second] {
        let path = pv.spec.as_ref().and_then(|spec| spec.local.as_ref()).expect("it is local").path.clone();
        node.wait_pv(Path::new(&path), |pv| phase(pv) == "Available", SOON).await;
    }
    let before = versions(&node).await;

    let reader = reader(&node).await;
    let shadow = shadow(&node, &reader, &[(&fast, &disks, ""), (&raw, &links, "volumeMode: Block")], &[]);
    wait_count(&shadow, "unpublished", 1.0).await;
    wait_count(&shadow, "field", 1.0).await;
    wait_count(&shadow, "unwanted", 2.0).await;
    let summary = shadow.wait_log("Shadow has compared everything once", SOON).await;
    assert!(!summary.contains("\"differences\":0"), "{summary}");
    let told = |kind: &str, pv: &PersistentVolume, what: &str| {
        let count = || {
            let lines = shadow.logs();
            let told = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            told.filter(|line| line["message"] == "Difference" && line["kind"] == kind && line["pv"] == pv.name_any())
                .filter(|line| line["detail"].as_str().is_some_and(|detail| detail.contains(what)))
                .count()
        };
        // The page may be faster than the log.
        eventually(&format!("{kind} {} is told", pv.name_any()), SOON, || count() > 0);
        assert_eq!(count(), 1, "{kind} {}: {:?}", pv.name_any(), shadow.logs());
    };
    told("field", &other_size, "it is \"12Mi\", and would be \"16Mi\"");
    told("unwanted", &second, "one of class");
    told("unwanted", &not_mounted, "NotAMountPoint");
    assert!(!shadow.logs().iter().any(|line| line.contains("\"Difference\"") && line.contains(&like_ours.name_any())));
    assert_eq!(wait_verdict(&shadow, &fast, "like-ours", "Published").await, "");

    // What the other one does by and by ends its difference.
    let late = go.publish(&fast, &disks.join("late"), "Filesystem", 16 * MIB).await;
    wait_count(&shadow, "unpublished", 0.0).await;
    told("unpublished", &late, "make a PV");
    let is_gone = |line: &String| line.contains("Difference is gone") && line.contains(&late.name_any());
    eventually("it is told that it is gone", SOON, || shadow.logs().iter().any(is_gone));

    // A wipe that the Go provisioner would do below the missing mount.
    let claim = node.bind(&not_mounted.name_any()).await;
    node.release(&claim).await;
    wait_count(&shadow, "refused_wipe", 1.0).await;
    told("refused_wipe", &not_mounted, "NotAMountPoint");

    wrote_nothing(&shadow).await;
    let mut after = versions(&node).await;
    after.remove(&late.name_any());
    after.insert(not_mounted.name_any(), before[&not_mounted.name_any()].clone());
    assert_eq!(after, before);
    let events: Api<Event> = Api::namespaced(node.client(), "default");
    let events = events.list(&ListParams::default()).await.expect("Events can be listed");
    let signature = format!("local-volume-provisioner-{}-{}", node.name(), node.uid());
    let from = |event: &Event| event.source.as_ref().and_then(|source| source.component.clone()).unwrap_or_default();
    let ours: Vec<_> = events.items.iter().filter(|event| from(event) == signature).collect();
    assert!(ours.is_empty(), "{ours:?}");
    drop(shadow);
    node.clean_up().await;
}

#[tokio::test]
async fn a_shadow_sees_a_disk_that_was_exchanged_and_pvs_that_come_and_go() {
    let node = TestNode::new(shared(), "exchanged").await;
    let class = node.class("raw", "Delete").await;
    let links = node.discovery_dir("links");
    let go = GoProvisioner { node: &node };
    let (disk, other) = (LoopDisk::new(node.dir(), 32 * MIB), LoopDisk::new(node.dir(), 32 * MIB));
    let link = disk.link(&links, "disk");
    let pv = go.publish(&class, &link, "Block", 32 * MIB).await;
    let reader = reader(&node).await;
    let shadow = shadow(&node, &reader, &[(&class, &links, "volumeMode: Block")], &[]);
    wait_verdict(&shadow, &class, "disk", "Published").await;
    let claim = node.bind(&pv.name_any()).await;
    fs::remove_file(&link).expect("a link can be removed");
    other.link(&links, "disk");
    wait_saying(&shadow, &class, "disk", "IdentityChanged", "was").await;
    wait_count(&shadow, "unwanted", 1.0).await;
    node.release(&claim).await;
    wait_count(&shadow, "refused_wipe", 1.0).await;
    wait_count(&shadow, "unwanted", 0.0).await;
    // Its PV goes, and so does what was said of it; another disk is there to be offered.
    node.force_delete_pv(&pv).await;
    wait_count(&shadow, "refused_wipe", 0.0).await;
    wait_count(&shadow, "unpublished", 1.0).await;
    go.publish(&class, &link, "Block", 32 * MIB).await;
    wait_count(&shadow, "unpublished", 0.0).await;
    wait_verdict(&shadow, &class, "disk", "Published").await;
    wrote_nothing(&shadow).await;
    drop(shadow);
    node.clean_up().await;
}

#[tokio::test]
async fn a_shadow_has_nothing_against_an_agent_and_leaves_its_ledger_to_it() {
    let node = TestNode::new(shared(), "beside").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("a"), 16 * MIB);
    disk::tmpfs(&disks.join("b"), 16 * MIB);
    let mut agent = start(&node, &[(&class, &disks, "")]);
    let pv = node.wait_pv(&disks.join("a"), |pv| phase(pv) == "Available", SOON).await;
    node.bind(&pv.name_any()).await;
    node.wait_pv(&disks.join("b"), |pv| phase(pv) == "Available", SOON).await;
    wait_verdict(&agent, &class, "b", "Published").await;
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait_exit(SOON).await.success());

    let before = files(&node.state_dir());
    let reader = reader(&node).await;
    let state_dir = node.state_dir();
    let state_dir = ["--state-dir", state_dir.to_str().expect("a path is text")];
    let mut shadow = shadow(&node, &reader, &[(&class, &disks, "")], &state_dir);
    shadow.wait_log("State directory opened", SOON).await;
    let summary = shadow.wait_log("Shadow has compared everything once", SOON).await;
    assert!(summary.contains("\"differences\":0"), "{summary}");
    assert_eq!(files(&node.state_dir()), before);
    // It keeps nobody out, and stays when another one comes.
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    disk::tmpfs(&disks.join("c"), 16 * MIB);
    node.wait_pv(&disks.join("c"), |pv| phase(pv) == "Available", SOON).await;
    wait_verdict(&shadow, &class, "c", "Published").await;
    for kind in mooring::shadow::Kind::ALL {
        // An agent that is slow is behind for a moment.
        wait_count(&shadow, kind.as_str(), 0.0).await;
    }
    wrote_nothing(&shadow).await;
    shadow.signal(Signal::SIGTERM);
    assert!(shadow.wait_exit(SOON).await.success());
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_shadow_makes_no_state_directory() {
    let node = TestNode::new(shared(), "stateless").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let reader = reader(&node).await;
    let state_dir = node.state_dir();
    let args = ["--state-dir", state_dir.to_str().expect("a path is text")];
    let shadow = shadow(&node, &reader, &[(&class, &disks, "")], &args);
    wait_ready(&shadow).await;
    assert!(!state_dir.exists());
    wrote_nothing(&shadow).await;
    drop(shadow);
    node.clean_up().await;
}
