//! From a Released PV to an empty volume that is offered anew. What was wiped is read
//! where it was stored.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::common::{SOON, start, wait_saying, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};

fn name(pv: &PersistentVolume) -> &str {
    pv.metadata.name.as_deref().expect("a PV has a name")
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("the directory can be read");
    names.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect()
}

async fn available(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await
}

/// An empty tmpfs that an agent has published.
struct Offered {
    node: TestNode,
    class: String,
    disks: PathBuf,
    volume: PathBuf,
    agent: Agent,
    pv: PersistentVolume,
}

async fn offered(tag: &str) -> Offered {
    let node = TestNode::new(shared(), tag).await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    disk::tmpfs(&volume, 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &volume).await;
    Offered { node, class, disks, volume, agent, pv }
}

/// Something else happens, and is dealt with: the agent has seen what was before.
async fn has_seen_all(node: &TestNode, disks: &Path) {
    disk::tmpfs(&disks.join("later"), 1 << 20);
    available(node, &disks.join("later")).await;
}

/// Waits until the path is offered by another PV than before.
async fn offered_anew(node: &TestNode, path: &Path, before: &PersistentVolume) -> PersistentVolume {
    let uid = before.metadata.uid.clone();
    let again = node.wait_pv(path, |pv| phase(pv) == "Available" && pv.metadata.uid != uid, SOON).await;
    assert_eq!(name(&again), name(before), "under the same name");
    assert_eq!(again.metadata.finalizers, before.metadata.finalizers, "with no finalizer of ours");
    again
}

#[tokio::test]
async fn a_released_filesystem_is_emptied_and_offered_anew() {
    let node = TestNode::new(shared(), "fs").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    let _disk = disk::ext4(&volume, 64 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &volume).await;
    let claim = node.bind(name(&pv)).await;

    // What a tenant leaves: files, links, a tree deeper than any limit on open files,
    // something in lost+found, and a name that looks like ours.
    fs::write(volume.join("secret"), "secret").expect("a file can be written");
    fs::create_dir_all(volume.join(".mooring-wipe-1/kept")).expect("a directory can be made");
    fs::write(volume.join("lost+found/rescued"), "secret").expect("a file can be written");
    symlink("/etc", volume.join("link")).expect("a link can be made");
    let mut deep = volume.clone();
    for level in 0..300 {
        deep = deep.join(format!("d{level}"));
        fs::create_dir(&deep).expect("a directory can be made");
    }
    fs::write(deep.join("bottom"), "secret").expect("a file can be written");

    node.release(&claim).await;
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(entries(&volume), ["lost+found"]);
    assert_eq!(entries(&volume.join("lost+found")), [""; 0]);
    assert!(Path::new("/etc/passwd").exists(), "what a link leads to is not the volume's");
    assert_eq!(agent.metric("mooring_wipes_total{outcome=\"success\"}").await, Some(1.0));
    node.clean_up().await;
}

#[tokio::test]
async fn a_released_device_reads_zeros_and_is_offered_anew() {
    let node = TestNode::new(shared(), "dev").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    // Not a multiple of any chunk.
    let disk = LoopDisk::new(node.dir(), (100 << 20) + 12 * 512);
    let link = disk.link(&disks, "disk");
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    let pv = available(&node, &link).await;
    let claim = node.bind(name(&pv)).await;
    let size = (100 << 20) + 12 * 512;
    for offset in [0, 4096 * 777, 50 << 20, size - 512] {
        disk.write_at(offset, &[b"TENANT-SECRET".as_slice(), &[b'.'; 499]].concat());
    }
    assert!(disk.backing_contains(b"TENANT-SECRET"));
    node.release(&claim).await;
    offered_anew(&node, &link, &pv).await;
    assert!(!disk.backing_contains(b"TENANT-SECRET"));
    assert!(disk.read_all().iter().all(|byte| *byte == 0));
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_retained_volume_is_left_alone() {
    let node = TestNode::new(shared(), "retain").await;
    let class = node.class("kept", "Retain").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &disks.join("v")).await;
    let claim = node.bind(name(&pv)).await;
    fs::write(disks.join("v/data"), "data").expect("a file can be written");
    node.release(&claim).await;
    let released = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Released", SOON).await;
    has_seen_all(&node, &disks).await;
    wait_verdict(&agent, &class, "v", "Published").await;
    assert_eq!(entries(&disks.join("v")), ["data"]);
    let pvs = node.pvs().await;
    let now = pvs.iter().find(|pv| name(pv) == name(&released)).expect("it is still there");
    assert_eq!(now.metadata.resource_version, released.metadata.resource_version, "it was not touched");
    node.clean_up().await;
}

#[tokio::test]
async fn a_filesystem_that_is_not_mounted_is_never_cleaned() {
    let node = TestNode::new(shared(), "unmounted").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    let disk = LoopDisk::new(node.dir(), 16 << 20);
    disk.format_ext4();
    fs::create_dir(&volume).expect("a directory can be made");
    disk.mount_ext4(&volume);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &volume).await;
    let claim = node.bind(name(&pv)).await;
    fs::write(volume.join("inside"), "x").expect("a file can be written");
    disk::umount(&volume);
    fs::write(volume.join("beneath"), "x").expect("a file can be written");
    wait_verdict(&agent, &class, "v", "NotAMountPoint").await;
    node.release(&claim).await;
    node.wait_pv(&volume, |pv| phase(pv) == "Released", SOON).await;
    has_seen_all(&node, &disks).await;
    wait_verdict(&agent, &class, "v", "NotAMountPoint").await;
    assert_eq!(entries(&volume), ["beneath"]);
    // Mounted again, it is cleaned, and what lies beneath still is not.
    disk.mount_ext4(&volume);
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(entries(&volume), ["lost+found"]);
    disk::umount(&volume);
    assert_eq!(entries(&volume), ["beneath"]);
    node.clean_up().await;
}

#[tokio::test]
async fn what_is_mounted_inside_a_volume_is_not_the_volumes() {
    let node = TestNode::new(shared(), "nested").await;
    let class = node.class("fast", "Delete").await;
    let (disks, elsewhere) = (node.discovery_dir("disks"), node.discovery_dir("elsewhere"));
    let volume = disks.join("v");
    disk::tmpfs(&volume, 16 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &volume).await;
    let claim = node.bind(name(&pv)).await;
    // Another filesystem, and a subtree of the very same one.
    disk::tmpfs(&volume.join("a/other"), 1 << 20);
    fs::write(volume.join("a/other/precious"), "x").expect("a file can be written");
    fs::create_dir_all(volume.join("self/here")).expect("a directory can be made");
    fs::write(volume.join("own"), "x").expect("a file can be written");
    fs::write(elsewhere.join("precious"), "x").expect("a file can be written");
    disk::bind_mount(&elsewhere, &volume.join("self/here"));
    symlink(&elsewhere, volume.join("link")).expect("a link can be made");

    node.release(&claim).await;
    wait_saying(&agent, &class, "v", "Refused", "mounted there").await;
    assert_eq!(entries(&volume.join("a/other")), ["precious"]);
    assert_eq!(entries(&elsewhere), ["precious"]);
    assert!(!volume.join("own").exists() && !volume.join("link").is_symlink(), "the rest is removed");
    let fenced = node.wait_pv(&volume, |pv| pv.metadata.deletion_timestamp.is_some(), SOON).await;
    assert_eq!(fenced.metadata.uid, pv.metadata.uid, "no claim can get at it meanwhile");

    disk::umount(&volume.join("a/other"));
    disk::umount(&volume.join("self/here"));
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(entries(&volume), [""; 0]);
    assert_eq!(entries(&elsewhere), ["precious"]);
    node.clean_up().await;
}

#[tokio::test]
async fn a_device_in_use_is_wiped_when_it_is_free() {
    let node = TestNode::new(shared(), "busy").await;
    let class = node.class("raw", "Delete").await;
    let (disks, elsewhere) = (node.discovery_dir("disks"), node.discovery_dir("elsewhere"));
    let disk = LoopDisk::new(node.dir(), 16 << 20);
    let link = disk.link(&disks, "disk");
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = available(&node, &link).await;
    let claim = node.bind(name(&pv)).await;
    // Until then the agent may have it open for itself.
    wait_verdict(&agent, &class, "disk", "Published").await;
    disk.format_ext4();
    disk.mount_ext4(&elsewhere);
    fs::write(elsewhere.join("data"), "TENANT-SECRET").expect("a file can be written");
    node.release(&claim).await;
    wait_saying(&agent, &class, "disk", "Busy", "in use").await;
    let waiting = node.wait_pv(&link, |pv| phase(pv) == "Released", SOON).await;
    assert!(waiting.metadata.deletion_timestamp.is_none(), "a busy volume is not even fenced");
    assert_eq!(entries(&elsewhere).len(), 2, "nothing was touched");
    disk::umount(&elsewhere);
    offered_anew(&node, &link, &pv).await;
    assert!(disk.read_all().iter().all(|byte| *byte == 0));
    node.clean_up().await;
}

#[tokio::test]
async fn a_pv_whose_path_is_no_first_level_entry_is_refused() {
    let node = TestNode::new(shared(), "crafted").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let (good, deep) = (LoopDisk::new(node.dir(), 1 << 20), LoopDisk::new(node.dir(), 1 << 20));
    deep.write_at(0, &[b'x'; 512]);
    fs::create_dir(disks.join("deeper")).expect("a directory can be made");
    deep.link(&disks.join("deeper"), "disk");
    // Signed and labelled as ours are.
    let signature = format!("local-volume-provisioner-{}-{}", node.name(), node.uid());
    let mut crafted = node.local_pv(&format!("crafted-{}", node.name()), &class, &disks.join("deeper/disk"));
    crafted.metadata.annotations = Some([("pv.kubernetes.io/provisioned-by".to_owned(), signature)].into());
    crafted.metadata.labels = Some([("mooring.dev/node".to_owned(), node.name().to_owned())].into());
    let crafted = node.create_pv(&crafted).await;
    let claim = node.bind(name(&crafted)).await;
    node.release(&claim).await;
    let released = node.wait_pv(&disks.join("deeper/disk"), |pv| phase(pv) == "Released", SOON).await;

    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    agent.wait_log("is no entry of a configured directory", SOON).await;
    // Whatever else it does, it does beside it.
    available(&node, &good.link(&disks, "good")).await;
    let now = node.wait_pv(&disks.join("deeper/disk"), |_| true, SOON).await;
    assert_eq!(now.metadata.resource_version, released.metadata.resource_version, "it was not touched");
    assert!(deep.read_all()[..512].iter().all(|byte| *byte == b'x'), "it was not wiped");
    node.clean_up().await;
}

#[tokio::test]
async fn a_path_that_two_pvs_name_is_not_wiped_for_either() {
    let Offered { node, class, disks, volume, agent, pv } = offered("both").await;
    let first = node.bind(name(&pv)).await;
    // As restored from a backup under another name: signed, labelled, and claimed.
    let mut restored = node.local_pv(&format!("restored-{}", node.name()), &class, &volume);
    restored.metadata.annotations.clone_from(&pv.metadata.annotations);
    restored.metadata.labels.clone_from(&pv.metadata.labels);
    let restored = node.create_pv(&restored).await;
    node.bind(name(&restored)).await;
    fs::write(volume.join("data"), "x").expect("a file can be written");
    node.release(&first).await;
    let released = node.wait_pv(&volume, |pv| phase(pv) == "Released", SOON).await;
    has_seen_all(&node, &disks).await;
    wait_saying(&agent, &class, "v", "PathInUse", "restored-").await;
    assert!(released.metadata.deletion_timestamp.is_none());
    assert_eq!(entries(&volume), ["data"]);
    node.clean_up().await;
}

#[tokio::test]
async fn a_pv_that_is_bound_again_behind_the_fence_is_not_wiped() {
    let Offered { node, class, disks, volume, agent, pv } = offered("rebound").await;
    node.bind(name(&pv)).await;
    fs::write(volume.join("data"), "x").expect("a file can be written");
    drop(agent);
    // Fenced by an agent that died before it could delete it; then bound to a new claim
    // and deleted by an admin: Bound, Terminating, and with our finalizer.
    let api: Api<PersistentVolume> = Api::all(node.client());
    let patch = Patch::Strategic(json!({ "metadata": { "finalizers": ["mooring.dev/wipe"] } }));
    api.patch(name(&pv), &PatchParams::default(), &patch).await.expect("a finalizer can be added");
    api.delete(name(&pv), &DeleteParams::default()).await.expect("a PV can be deleted");
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_verdict(&agent, &class, "v", "Pending").await;
    has_seen_all(&node, &disks).await;
    assert_eq!(entries(&volume), ["data"]);
    let now = api.get(name(&pv)).await.expect("it is still there");
    assert_eq!(phase(&now), "Bound");
    // Once that claim is gone, it is wiped like any other.
    let claim = now.spec.and_then(|spec| spec.claim_ref).and_then(|claim| claim.name).expect("it has a claim");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(node.client(), "default");
    let claim = claims.get(&claim).await.expect("the claim is there");
    node.release(&claim).await;
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(entries(&volume), [""; 0]);
    node.clean_up().await;
}

#[tokio::test]
async fn a_directory_that_another_agent_is_emptying_is_left_to_it() {
    let Offered { node, class, volume, agent, pv, .. } = offered("locked").await;
    let claim = node.bind(name(&pv)).await;
    fs::write(volume.join("data"), "x").expect("a file can be written");
    let other = fs::File::open(&volume).expect("the directory can be opened");
    other.lock().expect("it can be locked");
    node.release(&claim).await;
    wait_saying(&agent, &class, "v", "Busy", "locked").await;
    assert_eq!(entries(&volume), ["data"]);
    drop(other);
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(entries(&volume), [""; 0]);
    node.clean_up().await;
}
