//! PVs as the Go provisioner leaves them, and our agent in its place: the same PVs, no
//! second one for any path, and no more writes than it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use mooring::pv::pv_name;
use mooring::volume::Capacity;
use serde_json::json;

use crate::common::{SOON, is_labelled, start_with, wait_ready, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::{path_of, phase};
use crate::harness::{Agent, AuditEntry, ControlPlane, Options, eventually};
use crate::wipe_scene::first_not_zero;

const SIZE: u64 = 16 << 20;
const SECRET: &[u8] = b"TENANT-SECRET...";

/// How the Go provisioner signs a PV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// By the Node's name and UID.
    NameAndUid,
    /// By its name only (`useNodeNameOnly`).
    Name,
    /// By the name and a UID that the Node had once, and its host name as a label: made
    /// before `useNodeNameOnly` was set.
    FormerUid,
}

/// A PV of the Go provisioner for the entry of a class (name, directory).
pub fn go_pv(
    node: &TestNode,
    entry: &str,
    class: &(String, PathBuf),
    bytes: u64,
    mode: &str,
    signed: Signed,
) -> PersistentVolume {
    let mut pv = node.local_pv(&pv_name(entry, node.name(), &class.0), &class.0, &class.1.join(entry));
    let by = format!("local-volume-provisioner-{}", node.name());
    let by = match signed {
        Signed::NameAndUid => format!("{by}-{}", node.uid()),
        Signed::Name => by,
        Signed::FormerUid => format!("{by}-11111111-2222-3333-4444-555555555555"),
    };
    pv.annotations_mut().insert("pv.kubernetes.io/provisioned-by".to_owned(), by);
    if signed == Signed::FormerUid {
        pv.labels_mut().insert("kubernetes.io/hostname".to_owned(), node.name().to_owned());
    }
    let spec = pv.spec.as_mut().expect("it has a spec");
    spec.volume_mode = Some(mode.to_owned());
    let capacity = Capacity::rounded_down(bytes).to_string();
    spec.capacity =
        Some(BTreeMap::from([("storage".to_owned(), serde_json::from_value(json!(capacity)).expect("it is one"))]));
    pv
}

/// A volume with a PV of the Go provisioner.
struct Legacy {
    class: String,
    path: PathBuf,
    disk: Option<LoopDisk>,
    pv: PersistentVolume,
}

impl Legacy {
    /// A directory, or a device, whose PV is in that phase; with a secret on it if it was
    /// used.
    async fn new(
        node: &TestNode,
        class: &(String, PathBuf),
        entry: &str,
        is_device: bool,
        signed: Signed,
        wanted: &str,
    ) -> Self {
        let path = class.1.join(entry);
        let disk = is_device.then(|| LoopDisk::new(node.dir(), SIZE));
        match &disk {
            Some(disk) => _ = disk.link(&class.1, entry),
            None => disk::tmpfs(&path, SIZE),
        }
        let mode = if is_device { "Block" } else { "Filesystem" };
        let pv = node.create_pv(&go_pv(node, entry, class, SIZE, mode, signed)).await;
        if wanted != "Available" {
            let claim = node.bind(&pv.name_any()).await;
            match &disk {
                Some(disk) => disk.write_at(0, &SECRET.repeat(1 << 20)),
                None => std::fs::write(path.join("secret"), SECRET).expect("a file can be written"),
            }
            if wanted == "Released" {
                node.release(&claim).await;
            }
        }
        let pv = node.wait_pv(&path, |pv| phase(pv) == wanted, SOON).await;
        Self { class: class.0.clone(), path, disk, pv }
    }

    fn entry(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("it has a name")
    }

    fn is_blank(&self) -> bool {
        match &self.disk {
            Some(disk) => first_not_zero(&disk.backing).is_none(),
            None => std::fs::read_dir(&self.path).expect("it can be read").count() == 0,
        }
    }
}

fn of_agent(plane: &ControlPlane) -> Vec<AuditEntry> {
    let own = |entry: &AuditEntry| entry.user.ends_with(":mooring") && entry.user_agent.starts_with("mooring/");
    plane.audit().into_iter().filter(own).collect()
}

/// What the agent has written of PVs since then, as (verb, name).
fn writes(plane: &ControlPlane, since: Timestamp) -> Vec<(String, String)> {
    let is_write =
        |entry: &AuditEntry| entry.received >= since && !["get", "list", "watch"].contains(&entry.verb.as_str());
    let of_pvs = of_agent(plane).into_iter().filter(|entry| entry.resource == "persistentvolumes" && is_write(entry));
    of_pvs.map(|entry| (entry.verb, entry.name)).collect()
}

/// The page's gauges, but for what the process takes.
async fn gauges(agent: &Agent) -> BTreeSet<String> {
    let page = agent.get("/metrics").await.1;
    let names: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge")).collect();
    let of = |line: &str, name: &str| {
        !name.starts_with("process_") && line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
    };
    page.lines().filter(|line| names.iter().any(|name| of(line, name))).map(str::to_owned).collect()
}

async fn resync(agent: &Agent) {
    agent.wait_log_after(agent.mark(), "Looking at everything again", SOON).await;
}

/// Brings a node of the Go provisioner to our agent, which signs its PVs like `own`; `also`
/// are signed otherwise, and ours all the same.
async fn taken_over(plane: &ControlPlane, tag: &str, name_only: bool, own: Signed, also: Signed) {
    let node = TestNode::new(plane, tag).await;
    let fs = (node.class("fs", "Delete").await, node.discovery_dir("fs"));
    let raw = (node.class("raw", "Delete").await, node.discovery_dir("raw"));
    let mut kept = Vec::new();
    let mut released = Vec::new();
    for (class, is_device) in [(&fs, false), (&raw, true)] {
        for (entry, signed, phase) in [
            ("available", own, "Available"),
            ("bound", own, "Bound"),
            ("released", own, "Released"),
            ("also", also, "Bound"),
            ("also-released", also, "Released"),
        ] {
            let volume = Legacy::new(&node, class, entry, is_device, signed, phase).await;
            if phase == "Released" { released.push(volume) } else { kept.push(volume) }
        }
    }
    let before = node.pvs().await.len();
    let begun = Timestamp::now();
    let keys = [("useNodeNameOnly", if name_only { "true" } else { "false" }), ("minResyncPeriod", "300ms")];
    let classes: [(&str, &Path, &str); 2] = [(&fs.0, &fs.1, ""), (&raw.0, &raw.1, "volumeMode: Block")];
    let agent = start_with(&node, &classes, &keys);
    for volume in &released {
        let anew = |pv: &PersistentVolume| phase(pv) == "Available" && pv.uid() != volume.pv.uid();
        let now = node.wait_pv(&volume.path, anew, SOON).await;
        assert_eq!(now.name_any(), volume.pv.name_any());
        assert!(volume.is_blank(), "{}", volume.path.display());
        wait_verdict(&agent, &volume.class, volume.entry(), "Published").await;
    }
    for volume in &kept {
        let now = node.wait_pv(&volume.path, is_labelled, SOON).await;
        assert_eq!((now.uid(), phase(&now)), (volume.pv.uid(), phase(&volume.pv)), "{}", volume.path.display());
        assert_eq!(now.spec, volume.pv.spec, "{}", volume.path.display());
        let foreign = |pv: &PersistentVolume| {
            let mut annotations = pv.annotations().clone();
            annotations.retain(|key, _| !key.starts_with("mooring.dev/"));
            annotations
        };
        assert_eq!(foreign(&now), foreign(&volume.pv));
        assert!(now.annotations().contains_key("mooring.dev/identity"));
        assert_eq!(volume.is_blank(), phase(&volume.pv) == "Available", "{}: its data stays", volume.path.display());
        wait_verdict(&agent, &volume.class, volume.entry(), "Published").await;
    }
    // No second PV for any path.
    let now = node.pvs().await;
    let paths: BTreeSet<String> = now.iter().map(|pv| path_of(pv).to_owned()).collect();
    assert_eq!((now.len(), paths.len()), (before, before), "{paths:?}");

    // A second pass leaves everything as it was.
    resync(&agent).await;
    let settled = Timestamp::now();
    let deadline = std::time::Instant::now() + SOON;
    let shown = loop {
        let now = gauges(&agent).await;
        // A busy machine may look hung for a moment.
        let mut volumes = now.iter().filter(|line| line.starts_with("mooring_volumes{"));
        if volumes.clone().count() == 2 && volumes.all(|line| line.contains("verdict=\"Published\"")) {
            break now;
        }
        assert!(std::time::Instant::now() < deadline, "{now:?}");
        resync(&agent).await;
    };
    resync(&agent).await;
    resync(&agent).await;
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let now = gauges(&agent).await;
        if now == shown {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{now:?} instead of {shown:?}");
        resync(&agent).await;
    }
    drop(agent);
    // As does a restart.
    let agent = start_with(&node, &classes, &keys);
    wait_ready(&agent).await;
    resync(&agent).await;
    resync(&agent).await;
    assert_eq!(writes(plane, settled), []);
    assert_eq!(node.pvs().await.len(), before);
    // One patch for each that was adopted, and nothing else.
    for volume in &kept {
        let of_it = || writes(plane, begun).into_iter().filter(|(_, of)| *of == volume.pv.name_any());
        eventually("its patch in the audit log", SOON, || of_it().count() > 0);
        let verbs: Vec<String> = of_it().map(|(verb, _)| verb).collect();
        assert_eq!(verbs, ["patch"], "{}", volume.path.display());
    }
}

#[tokio::test]
async fn the_go_provisioners_pvs_are_taken_over_by_one_patch_each_and_wiped_when_released() {
    let plane = ControlPlane::start(Options { audit: true });
    taken_over(&plane, "by-uid", false, Signed::NameAndUid, Signed::NameAndUid).await;
    taken_over(&plane, "by-name", true, Signed::Name, Signed::FormerUid).await;

    // What a former Node of this name has signed is not ours before it is known which volume it was.
    let node = TestNode::new(&plane, "foreign").await;
    let fs = (node.class("fs", "Delete").await, node.discovery_dir("fs"));
    disk::tmpfs(&fs.1.join("v"), SIZE);
    let theirs = node.create_pv(&go_pv(&node, "v", &fs, SIZE, "Filesystem", Signed::FormerUid)).await;
    let claim = node.bind(&theirs.name_any()).await;
    std::fs::write(fs.1.join("v/secret"), SECRET).expect("a file can be written");
    node.release(&claim).await;
    let theirs = node.wait_pv(&fs.1.join("v"), |pv| phase(pv) == "Released", SOON).await;
    let agent = start_with(&node, &[(&fs.0, &fs.1, "")], &[("minResyncPeriod", "300ms")]);
    wait_verdict(&agent, &fs.0, "v", "IdentityChanged").await;
    resync(&agent).await;
    let now = node.wait_pv(&fs.1.join("v"), |_| true, SOON).await;
    assert_eq!(now.resource_version(), theirs.resource_version(), "it is not touched");
    assert!(fs.1.join("v/secret").exists());
}

#[tokio::test]
async fn a_pv_under_an_odd_name_is_adopted_by_its_path() {
    // As an older release named them, or an admin who made them again from a backup.
    let node = TestNode::new(crate::harness::shared(), "odd").await;
    let fs = (node.class("fs", "Delete").await, node.discovery_dir("fs"));
    let names =
        ["local-pv-1", "local-pv-0000abcd", "restored-from-a-backup"].map(|name| format!("{name}-{}", node.name()));
    for (entry, name) in ["a", "b", "c"].into_iter().zip(&names) {
        disk::tmpfs(&fs.1.join(entry), SIZE);
        let mut pv = go_pv(&node, entry, &fs, SIZE, "Filesystem", Signed::NameAndUid);
        pv.metadata.name = Some(name.clone());
        node.create_pv(&pv).await;
    }
    let agent = start_with(&node, &[(&fs.0, &fs.1, "")], &[]);
    for (entry, name) in ["a", "b", "c"].into_iter().zip(&names) {
        let adopted = node.wait_pv(&fs.1.join(entry), is_labelled, SOON).await;
        assert_eq!(adopted.name_any(), *name);
        wait_verdict(&agent, &fs.0, entry, "Published").await;
    }
    assert_eq!(node.pvs().await.len(), 3);
    drop(agent);
    node.clean_up().await;
}
