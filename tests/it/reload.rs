//! Another config while the agent runs: what is offered, what becomes of what was, and
//! what a bad one does (nothing).

mod fifty;
mod reading;

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use mooring::config_dir;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::common::{SOON, start, start_with, verdict, wait_ready, wait_saying, wait_verdict};
use crate::harness::agent::{Agent, AgentOptions};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{eventually, shared};

const CHANGED: &str = "Config is changed";
const REJECTED: &str = "The config was changed and can't be used";
const SECRET: &[u8] = b"TENANT-SECRET";
const MIB: u64 = 1 << 20;

type Classes<'a> = [(&'a str, &'a Path, &'a str)];
type Keys<'a> = [(&'a str, &'a str)];

/// Edits the config and waits until it is in force.
async fn edit(agent: &Agent, classes: &Classes<'_>, keys: &[(&str, &str)]) {
    let map = storage_class_map(classes);
    edit_map(agent, &map, keys).await;
}

async fn edit_map(agent: &Agent, map: &str, keys: &[(&str, &str)]) {
    let files: Vec<_> = [("storageClassMap", map)].into_iter().chain(keys.iter().copied()).collect();
    let hash = config_dir::hash(&files.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect());
    agent.rewrite_config(&files);
    wait_in_force(agent, hash).await;
}

async fn wait_in_force(agent: &Agent, hash: u64) {
    agent.wait_metric("mooring_config_hash", |value| value == hash as f64, SOON).await;
}

async fn reloads(agent: &Agent) -> (f64, f64, f64) {
    let counted = |outcome: &str| format!("mooring_config_reloads_total{{outcome=\"{outcome}\"}}");
    let (good, bad) = (agent.metric(&counted("success")).await, agent.metric(&counted("failed")).await);
    let last = agent.metric("mooring_config_last_reload_successful").await;
    (good.expect("it is counted"), bad.expect("it is counted"), last.expect("it is shown"))
}

async fn wait_available(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available" && pv.metadata.deletion_timestamp.is_none(), SOON).await
}

async fn wait_anew(node: &TestNode, path: &Path, before: &PersistentVolume) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available" && pv.uid() != before.uid(), SOON).await
}

/// What the agent does of its own accord after everything before: it has seen it all.
async fn has_seen_all(node: &TestNode, dir: &Path, name: &str) {
    disk::tmpfs(&dir.join(name), MIB);
    wait_available(node, &dir.join(name)).await;
}

async fn is_offered(node: &TestNode, path: &Path) -> bool {
    node.pvs().await.iter().any(|pv| Path::new(path_of(pv)) == path)
}

/// No directory was taken for one that hangs, unless one did, on a busy machine.
async fn assert_responsive(node: &TestNode, agent: &Agent, pv: &PersistentVolume) {
    if !agent.logs().iter().any(|line| line.contains("The kernel does not answer")) {
        assert_eq!(node.events(&pv.name_any(), "Unresponsive").await, [""; 0]);
    }
}

async fn kill(mut agent: Agent) {
    agent.signal(Signal::SIGKILL);
    agent.wait_exit(SOON).await;
}

#[tokio::test]
async fn a_class_that_is_added_is_offered_and_what_has_not_changed_is_no_reload() {
    let node = TestNode::new(shared(), "added").await;
    let (first, second) = (node.class("first", "Delete").await, node.class("second", "Delete").await);
    let (one, two) = (node.discovery_dir("one"), node.discovery_dir("two"));
    disk::tmpfs(&one.join("v"), MIB);
    disk::tmpfs(&two.join("v"), MIB);
    let agent = start(&node, &[(&first, &one, "")]);
    let before = wait_available(&node, &one.join("v")).await;
    assert_eq!(reloads(&agent).await, (0.0, 0.0, 1.0));
    let both: &Classes = &[(&first, &one, ""), (&second, &two, "")];
    edit(&agent, both, &[]).await;
    wait_available(&node, &two.join("v")).await;
    assert_eq!(reloads(&agent).await, (1.0, 0.0, 1.0));
    // The kubelet may write the same anew.
    agent.rewrite_config(&[("storageClassMap", &storage_class_map(both))]);
    edit(&agent, both, &[("labelsForPV", "team: a")]).await;
    assert_eq!(reloads(&agent).await, (2.0, 0.0, 1.0));
    has_seen_all(&node, &two, "w").await;
    assert_eq!(wait_available(&node, &two.join("w")).await.labels()["team"], "a");
    assert_eq!(wait_available(&node, &one.join("v")).await.uid(), before.uid());
    assert_eq!(agent.get("/ready").await.0, 200);
    drop(agent);
    node.clean_up().await;
}

/// A class of raw disks, which goes, and one of filesystems, which stays.
struct Scene {
    node: TestNode,
    gone: String,
    stays: String,
    raw: PathBuf,
    fs: PathBuf,
    disks: Vec<LoopDisk>,
}

const OVERWRITE: &str = "volumeMode: Block\nwipe: {method: overwrite, passes: 1}";

impl Scene {
    async fn new(tag: &str) -> Self {
        let node = TestNode::new(shared(), tag).await;
        let (gone, stays) = (node.class("gone", "Delete").await, node.class("stays", "Delete").await);
        let (raw, fs) = (node.discovery_dir("raw"), node.discovery_dir("fs"));
        let disks = (0..3).map(|_| LoopDisk::new(node.dir(), 4 * MIB)).collect();
        Self { node, gone, stays, raw, fs, disks }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.raw.join(["a", "b", "c"][index])
    }

    fn attach(&self, index: usize) {
        self.disks[index].link(&self.raw, ["a", "b", "c"][index]);
    }

    fn has_secret(&self, index: usize) -> bool {
        self.disks[index].backing_contains(SECRET)
    }

    fn both<'a>(&'a self, fields: &'a str) -> [(&'a str, &'a Path, &'a str); 2] {
        [(&self.gone, &self.raw, fields), self.rest()[0]]
    }

    fn rest(&self) -> [(&str, &Path, &str); 1] {
        [(&self.stays, &self.fs, "")]
    }

    fn remembers(&self) -> bool {
        let text = fs::read_to_string(self.node.state_dir().join("classes")).expect("it is written");
        text.contains(&self.gone)
    }
}

async fn a_class_goes(tag: &str, with_restart: bool) {
    let scene = Scene::new(tag).await;
    let node = &scene.node;
    scene.attach(0);
    scene.attach(1);
    let mut agent = start(node, &scene.both("volumeMode: Block\nwipe: {method: zero, passes: 1}"));
    let used = wait_available(node, &scene.path(0)).await;
    let unused = wait_available(node, &scene.path(1)).await;
    let claim = node.bind(&used.name_any()).await;
    scene.disks[0].write_at(MIB, &SECRET.repeat(512)[..512]);
    edit(&agent, &scene.both(OVERWRITE), &[]).await;
    edit(&agent, &scene.rest(), &[]).await;
    if with_restart {
        kill(agent).await;
        agent = start(node, &scene.rest());
    }
    scene.attach(2);
    has_seen_all(node, &scene.fs, "v").await;
    assert!(!is_offered(node, &scene.path(2)).await, "nothing new is offered");
    for (entry, pv) in [("a", &used), ("b", &unused)] {
        wait_saying(&agent, &scene.gone, entry, "Published", "is not configured").await;
        let now = node.wait_pv(Path::new(path_of(pv)), |_| true, SOON).await;
        assert_eq!(now.uid(), pv.uid());
    }
    assert!(scene.remembers() && scene.has_secret(0));
    node.release(&claim).await;
    node.wait_gone(&used, SOON).await;
    assert!(!scene.has_secret(0));
    node.wait_event(&used.name_any(), "VolumeWiped", "method overwrite", SOON).await;
    has_seen_all(node, &scene.fs, "w").await;
    assert!(!is_offered(node, &scene.path(0)).await, "it is not offered anew");
    assert_eq!(wait_available(node, &scene.path(1)).await.uid(), unused.uid());
    // With its last PV the class is forgotten.
    node.delete_pv(&unused.name_any()).await;
    eventually("the class is forgotten", SOON, || !scene.remembers());
    let deadline = std::time::Instant::now() + SOON;
    while let Some(now) = verdict(&agent, &scene.gone, "b").await {
        assert!(std::time::Instant::now() < deadline, "it still has a verdict: {now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // And back.
    edit(&agent, &scene.both(OVERWRITE), &[]).await;
    for index in 0..3 {
        wait_available(node, &scene.path(index)).await;
    }
    drop(agent);
    scene.node.clean_up().await;
}

#[tokio::test]
async fn a_class_that_is_removed_keeps_its_pvs_which_are_reclaimed_by_its_last_rules() {
    a_class_goes("removed", false).await;
}

#[tokio::test]
async fn the_last_rules_of_a_class_that_was_removed_outlive_the_agent() {
    a_class_goes("outlive", true).await;
}

#[tokio::test]
async fn a_class_that_is_removed_while_no_agent_runs_is_not_forgotten() {
    let scene = Scene::new("between").await;
    let node = &scene.node;
    scene.attach(0);
    let agent = start(node, &scene.both(OVERWRITE));
    let pv = wait_available(node, &scene.path(0)).await;
    let claim = node.bind(&pv.name_any()).await;
    scene.disks[0].write_at(MIB, &SECRET.repeat(512)[..512]);
    kill(agent).await;
    let agent = start(node, &scene.rest());
    wait_verdict(&agent, &scene.gone, "a", "Published").await;
    node.release(&claim).await;
    node.wait_gone(&pv, SOON).await;
    assert!(!scene.has_secret(0));
    node.wait_event(&pv.name_any(), "VolumeWiped", "method overwrite", SOON).await;
    drop(agent);
    scene.node.clean_up().await;
}

#[tokio::test]
async fn classes_of_before_that_cant_be_read_are_told_and_set_aside() {
    let node = TestNode::new(shared(), "aside").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    fs::create_dir_all(node.state_dir()).expect("a directory can be made");
    let newer = r#"{"version":9,"maps":[]}"#;
    fs::write(node.state_dir().join("classes"), newer).expect("a file can be written");
    let agent = start(&node, &[(&class, &disks, "")]);
    agent.wait_log("a newer mooring wrote it (version 9)", SOON).await;
    has_seen_all(&node, &disks, "v").await;
    let kept = fs::read_to_string(node.state_dir().join("classes.unusable")).expect("it is kept");
    assert_eq!(kept, newer);
    let own = || fs::read_to_string(node.state_dir().join("classes")).is_ok_and(|text| text.contains(&class));
    eventually("the classes of now are kept", SOON, own);
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn without_a_state_directory_a_class_that_was_removed_is_to_be_added_again_after_a_restart() {
    let scene = Scene::new("stateless").await;
    let node = &scene.node;
    scene.attach(0);
    let stateless = |classes: &Classes| {
        let map = storage_class_map(classes);
        let config = [("storageClassMap", map.as_str())];
        Agent::start(node, AgentOptions { config: &config, stateless: true, ..AgentOptions::default() })
    };
    let agent = stateless(&scene.both(OVERWRITE));
    let pv = wait_available(node, &scene.path(0)).await;
    let claim = node.bind(&pv.name_any()).await;
    scene.disks[0].write_at(MIB, &SECRET.repeat(512)[..512]);
    kill(agent).await;
    let agent = stateless(&scene.rest());
    node.release(&claim).await;
    wait_saying(&agent, &scene.gone, "", "Refused", "add the class again").await;
    has_seen_all(node, &scene.fs, "v").await;
    assert!(scene.has_secret(0));
    edit(&agent, &scene.both(OVERWRITE), &[]).await;
    wait_anew(node, &scene.path(0), &pv).await;
    assert!(!scene.has_secret(0));
    // It was not in force before its directory had been looked at.
    assert_responsive(node, &agent, &pv).await;
    drop(agent);
    scene.node.clean_up().await;
}

#[tokio::test]
async fn a_class_that_moves_offers_what_is_in_its_new_directory_and_reclaims_what_was_in_the_old() {
    let scene = Scene::new("moved").await;
    let node = &scene.node;
    let new = node.discovery_dir("new");
    scene.attach(0);
    scene.disks[1].link(&new, "b");
    let agent = start(node, &scene.both(OVERWRITE));
    let pv = wait_available(node, &scene.path(0)).await;
    let claim = node.bind(&pv.name_any()).await;
    scene.disks[0].write_at(MIB, &SECRET.repeat(512)[..512]);
    // The other class looks there now: it must not offer a disk that a tenant has.
    let swapped = [(scene.gone.as_str(), new.as_path(), OVERWRITE), (&scene.stays, &scene.raw, "volumeMode: Block")];
    edit(&agent, &swapped, &[]).await;
    wait_available(node, &new.join("b")).await;
    wait_verdict(&agent, &scene.stays, "a", "DuplicateOf").await;
    wait_verdict(&agent, &scene.gone, "a", "Published").await;
    assert!(scene.has_secret(0));
    node.release(&claim).await;
    let other = wait_anew(node, &scene.path(0), &pv).await;
    assert_eq!(other.spec.and_then(|spec| spec.storage_class_name), Some(scene.stays.clone()));
    assert!(!scene.has_secret(0));
    node.wait_event(&pv.name_any(), "VolumeWiped", "method overwrite", SOON).await;
    drop(agent);
    scene.node.clean_up().await;
}

#[tokio::test]
async fn a_directory_may_be_looked_at_by_another_path() {
    let node = TestNode::new(shared(), "path").await;
    let class = node.class("fs", "Delete").await;
    let (host, other) = (node.discovery_dir("host"), node.discovery_dir("other"));
    disk::bind_mount(&host, &other);
    let map =
        |mount_dir: &Path| format!("{class}:\n  hostDir: {}\n  mountDir: {}\n", host.display(), mount_dir.display());
    let volume = host.join("v");
    disk::tmpfs(&volume, MIB);
    let config = map(&host);
    let config = [("storageClassMap", config.as_str())];
    let agent = Agent::start(&node, AgentOptions { config: &config, ..AgentOptions::default() });
    let mut pv = wait_available(&node, &volume).await;
    // In this one nothing can be seen yet, as before the rollout of a pod that mounts it.
    for (mount_dir, is_seen) in [(other.as_path(), true), (Path::new("/no/such/directory"), false)] {
        let claim = node.bind(&pv.name_any()).await;
        fs::write(volume.join("secret"), SECRET).expect("a file can be written");
        edit_map(&agent, &map(mount_dir), &[]).await;
        wait_verdict(&agent, &class, "v", "Published").await;
        assert_eq!(node.wait_pv(&volume, |_| true, SOON).await.uid(), pv.uid());
        node.release(&claim).await;
        if is_seen {
            // What is mounted where the class was looked for before is nobody's use of it.
            pv = wait_anew(&node, &volume, &pv).await;
        } else {
            node.wait_gone(&pv, SOON).await;
        }
        assert!(!volume.join("secret").exists());
        assert_responsive(&node, &agent, &pv).await;
    }
    assert!(!is_offered(&node, &volume).await, "nothing new is offered from where the class was");
    edit_map(&agent, &map(&host), &[]).await;
    wait_available(&node, &volume).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_pattern_that_changes_counts_for_what_has_no_pv_yet() {
    let node = TestNode::new(shared(), "pattern").await;
    let class = node.class("fs", "Delete").await;
    let disks = node.discovery_dir("disks");
    for name in ["a1", "a2", "b1"] {
        disk::tmpfs(&disks.join(name), MIB);
    }
    let agent = start(&node, &[(&class, &disks, "namePattern: a*")]);
    let (used, unused) =
        (wait_available(&node, &disks.join("a1")).await, wait_available(&node, &disks.join("a2")).await);
    assert!(!is_offered(&node, &disks.join("b1")).await);
    let claim = node.bind(&used.name_any()).await;
    fs::write(disks.join("a1/secret"), SECRET).expect("a file can be written");
    edit(&agent, &[(&class, &disks, "namePattern: b*")], &[]).await;
    wait_available(&node, &disks.join("b1")).await;
    assert_eq!(wait_available(&node, &disks.join("a2")).await.uid(), unused.uid());
    node.release(&claim).await;
    node.wait_gone(&used, SOON).await;
    assert!(!disks.join("a1/secret").exists());
    wait_verdict(&agent, &class, "a1", "ExcludedByPattern").await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn other_wipe_settings_count_for_the_next_wipe_and_not_for_the_one_under_way() {
    let scene = Scene::new("rules").await;
    let node = &scene.node;
    scene.attach(0);
    // Slow enough to be there when the config changes.
    let slow = "volumeMode: Block\nwipe: {method: zero, passes: 1, bandwidth: 2Mi}";
    let agent = start(node, &scene.both(slow));
    let mut pv = wait_available(node, &scene.path(0)).await;
    for (fields, method) in [(OVERWRITE, "method zero"), ("volumeMode: Block", "method overwrite")] {
        let claim = node.bind(&pv.name_any()).await;
        let mark = agent.mark();
        node.release(&claim).await;
        agent.wait_log_after(mark, "Wipe begins", SOON).await;
        edit(&agent, &scene.both(fields), &[]).await;
        let next = wait_anew(node, &scene.path(0), &pv).await;
        node.wait_event(&pv.name_any(), "VolumeWiped", method, SOON).await;
        pv = next;
    }
    drop(agent);
    scene.node.clean_up().await;
}

#[tokio::test]
async fn a_bad_config_changes_nothing_is_told_and_makes_way_for_a_good_one() {
    let node = TestNode::new(shared(), "bad").await;
    let class = node.class("fs", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    let good = storage_class_map(&[(&class, &disks, "")]);
    let broken = format!("{good}  namePattern: [\n");
    let wrong = storage_class_map(&[(&class, &disks, "volumeMode: Blocks")]);
    let bad: [(&Keys, &[&str]); 4] = [
        (&[("storageClassMap", &broken)], &["storageClassMap:4:16", "unclosed bracket"]),
        (&[("labelsForPV", "a: b")], &["storageClassMap is missing"]),
        (&[("storageClassMap", &wrong)], &[&class, "volumeMode", "Filesystem or Block"]),
        (&[("storageClassMap", &good), ("minResyncPeriod", "soon")], &["minResyncPeriod"]),
    ];
    for (count, (files, words)) in bad.iter().enumerate() {
        let mark = agent.mark();
        agent.rewrite_config(files);
        let line = agent.wait_log_after(mark, REJECTED, SOON).await;
        let event = node.wait_event(node.name(), "ConfigRejected", words[0], SOON).await;
        for word in *words {
            assert!(line.contains(word) && event.contains(word), "{line} {event}");
        }
        agent.wait_metric("mooring_config_last_reload_successful", |value| value == 0.0, SOON).await;
        assert_eq!(reloads(&agent).await, (0.0, count as f64 + 1.0, 0.0));
        has_seen_all(&node, &disks, &format!("v{count}")).await;
        assert_eq!(agent.get("/ready").await.0, 200);
    }
    // All of it is away, and back.
    let mark = agent.mark();
    let away = agent.config_dir().with_extension("away");
    fs::rename(agent.config_dir(), &away).expect("a directory can be moved");
    agent.wait_log_after(mark, REJECTED, SOON).await;
    node.wait_event(node.name(), "ConfigRejected", "mount the ConfigMap there", SOON).await;
    fs::rename(&away, agent.config_dir()).expect("a directory can be moved");
    // The former one is as good as any other.
    agent.rewrite_config(&[("storageClassMap", &good)]);
    agent.wait_log_after(mark, "The config is again the one in force", SOON).await;
    assert_eq!(reloads(&agent).await.2, 1.0);
    agent.rewrite_config(bad[0].0);
    agent.wait_metric("mooring_config_last_reload_successful", |value| value == 0.0, SOON).await;
    edit(&agent, &[(&class, &disks, "namePattern: w*")], &[]).await;
    assert_eq!(reloads(&agent).await.2, 1.0);
    agent.wait_log_after(mark, CHANGED, SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn plain_files_are_a_config_too() {
    let node = TestNode::new(shared(), "plain").await;
    let (first, second) = (node.class("first", "Delete").await, node.class("second", "Delete").await);
    let (one, two) = (node.discovery_dir("one"), node.discovery_dir("two"));
    disk::tmpfs(&one.join("v"), MIB);
    disk::tmpfs(&two.join("v"), MIB);
    let plain = node.dir().join("plain");
    fs::create_dir(&plain).expect("a directory can be made");
    let file = plain.join("storageClassMap");
    fs::write(&file, storage_class_map(&[(&first, &one, "")])).expect("a file can be written");
    let args = ["--config-dir", plain.to_str().expect("it is text")];
    let agent = Agent::start(&node, AgentOptions { args: &args, ..AgentOptions::default() });
    wait_available(&node, &one.join("v")).await;
    fs::write(&file, storage_class_map(&[(&first, &one, ""), (&second, &two, "")])).expect("a file can be written");
    wait_available(&node, &two.join("v")).await;
    // As editors do.
    let draft = node.dir().join("draft");
    let last = storage_class_map(&[(&second, &two, "")]);
    fs::write(&draft, &last).expect("a file can be written");
    fs::rename(&draft, &file).expect("a file can be replaced");
    wait_in_force(&agent, config_dir::hash(&[("storageClassMap".to_owned(), last)].into())).await;
    wait_saying(&agent, &first, "v", "Published", "is not configured").await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn settings_of_the_whole_node_count_at_once() {
    let node = TestNode::new(shared(), "node-wide").await;
    let class = node.class("fs", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), MIB);
    let classes: &Classes = &[(&class, &disks, "")];
    let labels = ("nodeLabelsForPV", "[kubernetes.io/hostname]");
    let agent = start_with(&node, classes, &[labels, ("withdrawAfter", "1h")]);
    let signature = |pv: &PersistentVolume| pv.annotations()["pv.kubernetes.io/provisioned-by"].clone();
    let by_name = format!("local-volume-provisioner-{}", node.name());
    let first = wait_available(&node, &disks.join("v")).await;
    assert_eq!(signature(&first), format!("{by_name}-{}", node.uid()));
    edit(&agent, classes, &[labels, ("withdrawAfter", "1h"), ("useNodeNameOnly", "true")]).await;
    has_seen_all(&node, &disks, "w").await;
    assert_eq!(signature(&wait_available(&node, &disks.join("w")).await), by_name);
    wait_verdict(&agent, &class, "v", "Published").await;
    // What no event tells is seen at the next resync.
    remount(&disks.join("w"), 2 * MIB);
    let resync = ("minResyncPeriod", "200ms");
    edit(&agent, classes, &[labels, resync, ("withdrawAfter", "1h"), ("useNodeNameOnly", "true")]).await;
    let capacity = |pv: &PersistentVolume| {
        let capacity = pv.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
        capacity.map(|capacity| capacity["storage"].0.clone()).unwrap_or_default()
    };
    node.wait_pv(&disks.join("w"), |pv| capacity(pv) == "2Mi", SOON).await;
    // Ours still: it is withdrawn, as soon as that may be.
    disk::umount(&disks.join("v"));
    wait_verdict(&agent, &class, "v", "NotAMountPoint").await;
    assert_eq!(node.wait_pv(&disks.join("v"), |_| true, SOON).await.uid(), first.uid());
    edit(&agent, classes, &[labels, ("withdrawAfter", "0s"), ("useNodeNameOnly", "true")]).await;
    node.wait_gone(&first, SOON).await;
    drop(agent);
    node.clean_up().await;
}

fn remount(path: &Path, bytes: u64) {
    let options = format!("size={bytes}");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_REMOUNT, Some(options.as_str()))
        .expect("it can be remounted");
}
