//! The Go provisioner's own DaemonSet with only the image changed: no subcommand, its flags
//! and environment, its `ClusterRole`, no state directory. The agent may not patch PVs or
//! watch Nodes, does its work all the same, and says once what it can't promise.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ResourceExt;
use mooring::config_dir;
use serde_json::json;

use crate::adopted::{Signed, go_pv};
use crate::common::{SOON, is_labelled, wait_ready, wait_saying, wait_verdict, watch_during};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::proxy::{Faults, Proxy};
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, AuditEntry, ControlPlane, Options, eventually, rbac, shared};
use crate::wipe_scene::first_not_zero;

pub const SECRET: &[u8] = b"TENANT-SECRET";
pub const SIZE: u64 = 16 << 20;
const HOLD: &str = "mooring.dev/hold";
/// Its resync is soon, so that a right that is given is soon seen.
const RESYNC: (&str, &str) = ("minResyncPeriod", "1s");
/// A wipe takes about as many seconds as the disk has MiB.
const SLOW: &str = "volumeMode: Block\nwipe: {bandwidth: 1Mi}";
/// Without a limit.
const FAST: &str = "volumeMode: Block";
/// Of a disk whose slow wipe is in its middle for as long as any test needs.
const LARGE: u64 = 128 << 20;

/// A node with the Go provisioner's account, a class of directories and one of devices.
pub struct Old {
    pub node: TestNode,
    account: String,
    pub kubeconfig: String,
    fs: (String, std::path::PathBuf),
    pub raw: (String, std::path::PathBuf),
    raw_fields: &'static str,
    stateless: bool,
}

impl Old {
    pub async fn new(plane: &ControlPlane, tag: &str) -> Self {
        let node = TestNode::new(plane, tag).await;
        let account = format!("go-{}", node.name());
        rbac::apply_old(&node.client(), &account).await;
        let kubeconfig = node.kubeconfig_of(rbac::NAMESPACE, &account).await.display().to_string();
        let fs = (node.class("fs", "Delete").await, node.discovery_dir("fs"));
        let raw = (node.class("raw", "Delete").await, node.discovery_dir("raw"));
        Self { node, account, kubeconfig, fs, raw, raw_fields: FAST, stateless: true }
    }

    fn map(&self, raw_fields: &str) -> String {
        storage_class_map(&[(&self.fs.0, &self.fs.1, ""), (&self.raw.0, &self.raw.1, raw_fields)])
    }

    fn start(&self) -> Agent {
        let map = self.map(self.raw_fields);
        Agent::start(
            &self.node,
            AgentOptions {
                config: &[("storageClassMap", &map), RESYNC],
                args: &["-v=4", "--logtostderr", "--listen-address=127.0.0.1:0"],
                stateless: self.stateless,
                as_old: true,
                env: &[("KUBECONFIG", &self.kubeconfig), ("JOB_CONTAINER_IMAGE", "example/provisioner:1")],
                ..AgentOptions::default()
            },
        )
    }

    /// A disk of the class of devices, not published yet.
    pub fn disk(&self, name: &str, bytes: u64) -> (LoopDisk, std::path::PathBuf) {
        let disk = LoopDisk::new(self.node.dir(), bytes);
        let link = disk.link(&self.raw.1, name);
        (disk, link)
    }

    pub async fn available(&self, path: &Path) -> PersistentVolume {
        self.node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await
    }

    pub async fn anew(&self, path: &Path, before: &PersistentVolume) -> PersistentVolume {
        let anew = |pv: &PersistentVolume| phase(pv) == "Available" && pv.uid() != before.uid();
        self.node.wait_pv(path, anew, SOON * 2).await
    }

    /// A device with secrets at its start and its end, in the middle of a wipe that takes two minutes.
    async fn in_a_wipe(&self, agent: &Agent) -> (LoopDisk, PersistentVolume, PersistentVolumeClaim) {
        let (disk, link) = self.disk("slow", LARGE);
        let pv = self.available(&link).await;
        let claim = self.node.bind(&pv.name_any()).await;
        fill(&disk, 0, 1 << 20);
        fill(&disk, LARGE - (2 << 20), 1 << 20);
        self.node.release(&claim).await;
        agent.wait_log("Wipe begins", SOON).await;
        // The mark is on it, and more.
        let early = (512 << 10) + 16;
        let deadline = Instant::now() + SOON;
        while stored(&disk, early, SECRET.len()) == SECRET {
            assert!(Instant::now() < deadline, "the wipe does not begin");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(disk.backing_contains(SECRET));
        (disk, pv, claim)
    }

    /// Lets the next wipe of a device be fast. The one under way goes on as it was begun.
    async fn hurry(&self, agent: &Agent) {
        let map = self.map(FAST);
        let files = [("storageClassMap", map.as_str()), RESYNC];
        let hash = config_dir::hash(&files.map(|(key, text)| (key.to_owned(), text.to_owned())).into());
        agent.rewrite_config(&files);
        agent.wait_metric("mooring_config_hash", |value| value == hash as f64, SOON).await;
    }

    /// Ends the slow wipe of a PV, and has it go on fast: by an admin's hold.
    async fn hurry_now(&self, agent: &Agent, pv: &PersistentVolume) {
        self.hurry(agent).await;
        self.node.annotate_pv(&pv.name_any(), HOLD, Some("true")).await;
        wait_saying(agent, &self.raw.0, "slow", "Pending", "on the PV").await;
        self.node.annotate_pv(&pv.name_any(), HOLD, None).await;
    }

    pub async fn end(self, agent: Agent) {
        drop(agent);
        self.node.clean_up().await;
    }
}

pub fn fill(disk: &LoopDisk, offset: u64, bytes: u64) {
    disk.write_at(offset, &b"TENANT-SECRET...".repeat(usize::try_from(bytes / 16).expect("it is small")));
}

/// What is stored of a disk. To open the device would be to use it.
fn stored(disk: &LoopDisk, offset: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    let file = std::fs::File::open(&disk.backing).expect("a backing file can be opened");
    file.read_exact_at(&mut content, offset).expect("a backing file can be read");
    content
}

fn stored_all(disk: &LoopDisk) -> Vec<u8> {
    std::fs::read(&disk.backing).expect("a backing file can be read")
}

fn count(agent: &Agent, words: &[&str]) -> usize {
    agent.logs().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Waits for a resync that begins after this: whatever was before is dealt with.
async fn wait_resync(agent: &Agent) {
    agent.wait_log_after(agent.mark(), "Looking at everything again", SOON).await;
}

fn limited(what: &str) -> String {
    format!("mooring_limited{{what=\"{what}\"}}")
}

#[tokio::test]
async fn the_old_manifest_with_another_image_publishes_wipes_and_says_what_it_cant_promise() {
    let old = Old::new(shared(), "old").await;
    let node = &old.node;
    // As the Go provisioner has left them: one of each kind in use, one free.
    let (tree, free) = (old.fs.1.join("tree"), old.fs.1.join("free"));
    disk::tmpfs(&tree, SIZE);
    disk::tmpfs(&free, SIZE);
    let (raw, link) = old.disk("disk", SIZE);
    let uid = Signed::NameAndUid;
    let of_tree = node.create_pv(&go_pv(node, "tree", &old.fs, SIZE, "Filesystem", uid)).await;
    let of_free = node.create_pv(&go_pv(node, "free", &old.fs, SIZE, "Filesystem", uid)).await;
    let of_disk = node.create_pv(&go_pv(node, "disk", &old.raw, SIZE, "Block", uid)).await;
    let claims = [node.bind(&of_tree.name_any()).await, node.bind(&of_disk.name_any()).await];
    std::fs::write(tree.join("secret"), SECRET).expect("a file can be written");
    fill(&raw, 0, SIZE);
    let of_free = node.wait_pv(&free, |pv| phase(pv) == "Available" && pv.uid() == of_free.uid(), SOON).await;

    let agent = old.start();
    wait_ready(&agent).await;
    // New ones are published, and bear our label from the first.
    let (new_disk, new_link) = old.disk("new", SIZE);
    assert!(is_labelled(&old.available(&new_link).await));
    // The old ones are known, and are left as they are.
    for (class, entry) in [(&old.fs.0, "tree"), (&old.fs.0, "free"), (&old.raw.0, "disk")] {
        wait_verdict(&agent, class, entry, "Published").await;
    }
    assert_eq!(node.pvs().await.len(), 4, "no volume twice");
    let now = node.wait_pv(&free, |_| true, SOON).await;
    assert_eq!(now.resource_version(), of_free.resource_version(), "it is not touched");

    // What it can't promise: in the log once, in the metrics, as an Event; it is ready.
    for what in ["patch", "node_watch", "state_dir", "kubelet_view"] {
        agent.wait_metric(&limited(what), |value| value > 0.5, SOON).await;
    }
    let event = node.wait_event(node.name(), "Limited", "patch: ", SOON).await;
    assert!(event.contains("node_watch: ") && event.contains("state_dir: "), "{event}");
    for what in ["what=\"patch\"", "what=\"node_watch\""] {
        agent.wait_log(what, SOON).await;
        assert_eq!(count(&agent, &["Something is missing", what]), 1, "{what} in {:?}", agent.logs());
    }
    assert_eq!(agent.get("/ready").await.0, 200);

    // The old claims go.
    for claim in &claims {
        node.release(claim).await;
    }
    assert!(is_labelled(&old.anew(&tree, &of_tree).await));
    assert!(is_labelled(&old.anew(&link, &of_disk).await));
    assert_eq!(std::fs::read_dir(&tree).expect("it can be read").count(), 0);
    assert_eq!(first_not_zero(&raw.backing), None);
    assert_eq!(agent.metric("mooring_wipes_total{outcome=\"success\"}").await, Some(2.0));
    // Over several resyncs all of it was said once, and nothing was asked for in vain.
    wait_resync(&agent).await;
    assert_eq!(count(&agent, &["Something is missing", "what=\"patch\""]), 1);
    assert_eq!(count(&agent, &["Resource can't be read"]), 0, "{:?}", agent.logs());
    assert_eq!(count(&agent, &["lacks a right"]), 0, "{:?}", agent.logs());
    assert_eq!(node.events(node.name(), "Limited").await.len(), 1);
    drop((raw, new_disk));
    old.end(agent).await;
}

#[tokio::test]
async fn a_pv_that_is_taken_from_an_unfenced_wipe_is_withdrawn_and_wiped_to_the_end() {
    // `claimRef` is cleared; or it reserves the PV for a claim that is still to come.
    let later = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                        "name": "to-come", "uid": null, "resourceVersion": null });
    let each = [("cleared", json!(null)), ("reserved", later)].map(|(tag, claim_ref)| async move {
        let mut old = Old::new(shared(), tag).await;
        old.raw_fields = SLOW;
        let agent = old.start();
        let (disk, pv, _) = old.in_a_wipe(&agent).await;
        let name = pv.name_any();
        let patch = json!({ "spec": { "claimRef": claim_ref } });
        let link = old.raw.1.join("slow");
        old.hurry(&agent).await;
        let take = async {
            old.node.patch_pv(&name, patch).await.expect("nothing denies it");
            // At once, and not when the wipe is through, in two minutes.
            old.node.wait_gone(&pv, SOON).await;
        };
        // In its place is one that nobody can claim, until the wipe has ended.
        let held = watch_during(&old.node, &link, |other| other.uid() != pv.uid(), take).await;
        assert!(held.annotations().contains_key("mooring.dev/quarantined"), "{held:?}");
        old.node.wait_event(&name, "HalfWiped", "is withdrawn", SOON).await;
        let offered = old.anew(&link, &pv).await;
        assert_eq!(first_not_zero(&disk.backing), None);
        assert!(!offered.annotations().contains_key("mooring.dev/quarantined"));
        drop(disk);
        old.end(agent).await;
    });
    join_all(each).await;
}

#[tokio::test]
async fn a_claim_that_gets_a_volume_in_the_middle_of_an_unfenced_wipe_is_told_and_keeps_what_it_writes() {
    let mut old = Old::new(shared(), "bound").await;
    old.raw_fields = SLOW;
    let agent = old.start();
    let (disk, pv, claim) = old.in_a_wipe(&agent).await;
    let (node, name) = (&old.node, pv.name_any());
    old.hurry(&agent).await;
    // It is too slow to prevent that.
    agent.signal(nix::sys::signal::Signal::SIGSTOP);
    let rival = node.claim_again(&claim, &format!("{}-rival", claim.name_any())).await;
    let to_rival = json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                           "name": rival.name_any(), "uid": rival.uid(), "resourceVersion": null });
    node.patch_pv(&name, json!({ "spec": { "claimRef": to_rival } })).await.expect("nothing denies it");
    let link = old.raw.1.join("slow");
    let bind = async {
        while !node.nudge(&rival).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(node.wait_pv(&link, |pv| phase(pv) == "Bound", SOON), bind);
    agent.signal(nix::sys::signal::Signal::SIGCONT);
    let message = node.wait_event(&name, "HalfWiped", "was being wiped", SOON).await;
    assert!(message.contains(&rival.name_any()), "{message}");
    node.wait_event(&rival.name_any(), "HalfWiped", "was being wiped", SOON).await;
    wait_verdict(&agent, &old.raw.0, "slow", "Published").await;
    // What it writes stays, and goes with its claim.
    disk.write_at(0, &[b'R'; 512]);
    wait_resync(&agent).await;
    assert_eq!(stored(&disk, 0, 512), [b'R'; 512]);
    assert_eq!(node.wait_pv(&link, |_| true, SOON).await.uid(), pv.uid());
    node.release(&rival).await;
    old.anew(&link, &pv).await;
    assert_eq!(first_not_zero(&disk.backing), None);
    drop(disk);
    old.end(agent).await;
}

#[tokio::test]
async fn without_a_fence_whoever_takes_a_pv_back_before_the_first_byte_keeps_its_data() {
    let mut old = Old::new(shared(), "takenold").await;
    old.raw_fields = "volumeMode: Block\nwipeAfter: 1h";
    let (raw, link) = old.disk("disk", SIZE);
    let agent = old.start();
    let pv = old.available(&link).await;
    let claim = old.node.bind(&pv.name_any()).await;
    fill(&raw, 0, SIZE);
    old.node.release(&claim).await;
    wait_saying(&agent, &old.raw.0, "disk", "Pending", "wipeAfter").await;
    old.node.clear_claim(&pv.name_any()).await;
    assert_eq!(old.available(&link).await.uid(), pv.uid());
    wait_verdict(&agent, &old.raw.0, "disk", "Published").await;
    wait_resync(&agent).await;
    assert_eq!(stored_all(&raw), b"TENANT-SECRET...".repeat(1 << 20));
    drop(raw);
    old.end(agent).await;
}

#[tokio::test]
async fn without_the_right_to_patch_words_are_refused_with_a_remedy_and_a_hold_holds() {
    let mut old = Old::new(shared(), "words").await;
    old.raw_fields = SLOW;
    // It is there when the Node is read for the first time.
    old.node.annotate_node(HOLD, Some("true")).await;
    let tree = old.fs.1.join("tree");
    disk::tmpfs(&tree, SIZE);
    let agent = old.start();
    let pv = old.available(&tree).await;
    let claim = old.node.bind(&pv.name_any()).await;
    std::fs::write(tree.join("data"), SECRET).expect("a file can be written");
    old.node.release(&claim).await;
    wait_saying(&agent, &old.fs.0, "tree", "Pending", "on the Node").await;
    for word in ["wipe", "keep", "retire"] {
        old.node.annotate_pv(&pv.name_any(), "mooring.dev/reclaim", Some(word)).await;
        let words = "mooring.dev/reclaim has no effect";
        let detail = wait_saying(&agent, &old.fs.0, "tree", "Refused", words).await;
        assert!(detail.contains("patch"), "{detail}");
        old.node.annotate_pv(&pv.name_any(), "mooring.dev/reclaim", None).await;
        wait_saying(&agent, &old.fs.0, "tree", "Pending", "on the Node").await;
    }
    assert_eq!(std::fs::read(tree.join("data")).expect("it is there"), SECRET);
    drop(agent);

    old.node.annotate_node(HOLD, None).await;
    let agent = old.start();
    let pv = old.anew(&tree, &pv).await;
    // What is retained is wiped by its policy.
    let policy = |policy: &str| json!({ "spec": { "persistentVolumeReclaimPolicy": policy } });
    old.node.patch_pv(&pv.name_any(), policy("Retain")).await.expect("a policy can be changed");
    let claim = old.node.bind(&pv.name_any()).await;
    std::fs::write(tree.join("data"), SECRET).expect("a file can be written");
    old.node.release(&claim).await;
    old.node.annotate_pv(&pv.name_any(), "mooring.dev/reclaim", Some("wipe")).await;
    wait_saying(&agent, &old.fs.0, "tree", "Refused", "set its reclaim policy to Delete").await;
    old.node.annotate_pv(&pv.name_any(), "mooring.dev/reclaim", None).await;
    wait_verdict(&agent, &old.fs.0, "tree", "Published").await;
    assert!(tree.join("data").exists());
    old.node.patch_pv(&pv.name_any(), policy("Delete")).await.expect("a policy can be changed");
    old.anew(&tree, &pv).await;
    assert!(!tree.join("data").exists());
    // One on the PV stops a wipe in its middle, which goes on without it where it was.
    let (disk, pv, _) = old.in_a_wipe(&agent).await;
    old.hurry(&agent).await;
    old.node.annotate_pv(&pv.name_any(), HOLD, Some("true")).await;
    wait_saying(&agent, &old.raw.0, "slow", "Pending", "on the PV").await;
    let left = stored_all(&disk);
    wait_resync(&agent).await;
    assert!(stored_all(&disk) == left && disk.backing_contains(SECRET), "nothing goes on");
    let mark = agent.mark();
    old.node.annotate_pv(&pv.name_any(), HOLD, None).await;
    let line = agent.wait_log_after(mark, "Wipe begins", SOON).await;
    assert!(line.contains("resumed=true"), "{line}");
    old.anew(&old.raw.1.join("slow"), &pv).await;
    assert_eq!(first_not_zero(&disk.backing), None);
    drop(disk);
    old.end(agent).await;
}

#[tokio::test]
async fn an_unfenced_wipe_that_is_killed_goes_on_and_a_pv_that_was_taken_from_it_is_withdrawn() {
    let cases = [("killed", true, false), ("killed-state", false, false), ("taken-away", false, true)];
    let each = cases.map(|(tag, stateless, taken)| async move {
        let mut old = Old::new(shared(), tag).await;
        (old.raw_fields, old.stateless) = (SLOW, stateless);
        let mut agent = old.start();
        let (disk, pv, _) = old.in_a_wipe(&agent).await;
        agent.signal(nix::sys::signal::Signal::SIGKILL);
        agent.wait_exit(SOON).await;
        drop(agent);
        let link = old.raw.1.join("slow");
        if taken {
            old.node.clear_claim(&pv.name_any()).await;
            assert_eq!(old.available(&link).await.uid(), pv.uid());
        }
        assert!(disk.backing_contains(SECRET));
        old.raw_fields = FAST;
        let agent = old.start();
        if taken {
            agent.wait_log("PV is withdrawn", SOON).await;
        }
        let line = agent.wait_log("Wipe begins", SOON).await;
        // Without a state directory, nobody knows how far it was.
        assert_eq!(line.contains("resumed=true"), !stateless, "{line}");
        old.anew(&link, &pv).await;
        assert_eq!(first_not_zero(&disk.backing), None);
        drop(disk);
        old.end(agent).await;
    });
    join_all(each).await;
}

#[tokio::test]
async fn a_patch_that_is_refused_for_a_moment_costs_no_fence() {
    let node = TestNode::new(shared(), "moment").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let proxy = Proxy::start(&node);
    let map = storage_class_map(&[(&class, &disks, FAST)]);
    let kubeconfig = proxy.kubeconfig().display().to_string();
    let agent = Agent::start(
        &node,
        AgentOptions {
            config: &[("storageClassMap", &map)],
            args: &["-v=4"],
            env: &[("KUBECONFIG", &kubeconfig)],
            ..AgentOptions::default()
        },
    );
    let disk = LoopDisk::new(node.dir(), 2 << 20);
    let link = disk.link(&disks, "disk");
    let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    fill(&disk, 0, 2 << 20);
    proxy.set(Faults { refused_patches: 2, ..Faults::default() });
    let seen = |now: &PersistentVolume| is_fenced(now) || now.uid() != pv.uid();
    let now = watch_during(&node, &link, seen, node.release(&claim)).await;
    assert_eq!(now.uid(), pv.uid(), "it is fenced before it is wiped");
    assert_eq!(proxy.faults().refused_patches, 0);
    node.wait_pv(&link, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
    assert_eq!(first_not_zero(&disk.backing), None);
    assert_eq!(agent.metric(&limited("patch")).await, Some(0.0));
    drop(disk);
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn rights_that_are_given_or_taken_away_are_heeded_without_a_restart() {
    let mut old = Old::new(shared(), "given").await;
    old.raw_fields = SLOW;
    let tree = old.fs.1.join("tree");
    disk::tmpfs(&tree, SIZE);
    let of_go = old.node.create_pv(&go_pv(&old.node, "tree", &old.fs, SIZE, "Filesystem", Signed::NameAndUid)).await;
    let agent = old.start();
    wait_ready(&agent).await;
    wait_verdict(&agent, &old.fs.0, "tree", "Published").await;
    assert_eq!(agent.metric(&limited("patch")).await, Some(1.0));

    rbac::give_ours(&old.node.client(), &old.account, true).await;
    let adopted = old.node.wait_pv(&tree, is_labelled, SOON).await;
    assert_eq!(adopted.uid(), of_go.uid());
    assert!(adopted.annotations().contains_key("mooring.dev/identity"));
    agent.wait_metric(&limited("patch"), |value| value < 0.5, SOON).await;
    // Now there is a fence.
    let (disk, pv, _) = old.in_a_wipe(&agent).await;
    let link = old.raw.1.join("slow");
    old.node.wait_pv(&link, |now| is_fenced(now) && now.uid() == pv.uid(), SOON).await;
    old.hurry_now(&agent, &pv).await;
    let again = old.anew(&link, &pv).await;

    // And now there is none again, which the first patch tells.
    rbac::give_ours(&old.node.client(), &old.account, false).await;
    let claim = old.node.bind(&again.name_any()).await;
    fill(&disk, 0, 4 << 20);
    old.node.release(&claim).await;
    agent.wait_metric(&limited("patch"), |value| value > 0.5, SOON).await;
    old.anew(&link, &again).await;
    assert_eq!(first_not_zero(&disk.backing), None);
    drop(disk);
    old.end(agent).await;
}

fn is_fenced(pv: &PersistentVolume) -> bool {
    pv.finalizers().iter().any(|finalizer| finalizer == "mooring.dev/wipe")
}

fn writes(plane: &ControlPlane, account: &str) -> Vec<AuditEntry> {
    let reads = ["get", "list", "watch"];
    let own = |entry: &AuditEntry| entry.user.ends_with(&format!(":{account}"));
    let is_write = |entry: &AuditEntry| !reads.contains(&entry.verb.as_str());
    plane.audit().into_iter().filter(|entry| own(entry) && is_write(entry)).collect()
}

#[tokio::test]
async fn a_restart_of_the_old_manifest_writes_no_pv_and_a_wipe_stops_when_it_is_blind() {
    let plane = ControlPlane::start(Options { audit: true });
    let mut old = Old::new(&plane, "blind").await;
    old.raw_fields = SLOW;
    for name in ["a", "b", "c"] {
        disk::tmpfs(&old.fs.1.join(name), SIZE);
    }
    old.node.create_pv(&go_pv(&old.node, "a", &old.fs, SIZE, "Filesystem", Signed::NameAndUid)).await;
    let agent = old.start();
    wait_ready(&agent).await;
    for name in ["a", "b", "c"] {
        old.available(&old.fs.1.join(name)).await;
        wait_verdict(&agent, &old.fs.0, name, "Published").await;
    }
    old.node.wait_event(old.node.name(), "Limited", "", SOON).await;
    // The log is written a little later.
    let of = |all: &[AuditEntry], resource: &str| all.iter().filter(|entry| entry.resource == resource).count();
    eventually("the writes of the first agent", SOON, || {
        let all = writes(&plane, &old.account);
        of(&all, "persistentvolumes") >= 2 && of(&all, "events") >= 1
    });
    drop(agent);
    let before = writes(&plane, &old.account);
    let to_pvs = before.iter().filter(|entry| entry.resource == "persistentvolumes");
    let verbs: Vec<_> = to_pvs.map(|entry| entry.verb.as_str()).collect();
    assert_eq!(verbs, ["create", "create"], "{before:?}");
    let agent = old.start();
    wait_ready(&agent).await;
    for _ in 0..2 {
        wait_resync(&agent).await;
    }
    let after = writes(&plane, &old.account).split_off(before.len());
    let resources: Vec<&str> = after.iter().map(|entry| entry.resource.as_str()).collect();
    assert!(resources.iter().all(|resource| ["events", "selfsubjectaccessreviews"].contains(resource)), "{after:?}");
    assert!(resources.iter().filter(|resource| **resource == "events").count() <= 1, "{after:?}");

    // When the API server does not answer, nobody knows whose the volume is by now.
    let (disk, pv, _) = old.in_a_wipe(&agent).await;
    plane.kill("kube-apiserver");
    agent.wait_log("It can't be seen whose the volume is; its wipe stops", SOON * 2).await;
    agent.wait_metric("mooring_wipes_total{outcome=\"cancelled\"}", |value| value > 0.5, SOON).await;
    let left = stored_all(&disk);
    let mark = agent.mark();
    plane.start_component("kube-apiserver");
    let line = agent.wait_log_after(mark, "Wipe begins", SOON * 2).await;
    assert!(line.contains("resumed=true"), "{line}");
    let rest = &left[left.len() / 2..];
    assert!(memchr::memmem::find(rest, SECRET).is_some(), "it had stopped before its end");
    let now = old.node.wait_pv(&old.raw.1.join("slow"), |_| true, SOON).await;
    assert_eq!((now.uid(), phase(&now)), (pv.uid(), "Released"));
    drop(disk);
    old.end(agent).await;
}
