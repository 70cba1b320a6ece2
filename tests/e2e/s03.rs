//! A whole block device, raw and as a filesystem that the kubelet makes: it is used, released, and
//! offered again as zeros.

use std::process::Command;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;

use crate::harness::disk::LoopDisk;
use crate::harness::pods::PodSpec;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[
    ("s03-raw", r#"{"volumeMode": "Block"}"#),
    ("s03-ext4", r#"{"fsType": "ext4"}"#),
    ("s03-xfs", r#"{"fsType": "xfs"}"#),
];

/// Less is too small for an xfs.
const XFS_SIZE: u64 = 320 << 20;
const SIZE: u64 = 64 << 20;
const SECRET: &str = "the old tenant's secret";
const NODE: usize = 1;

#[tokio::test]
async fn s03_a_raw_device_reads_zeros_after_its_claim() {
    let scene = stage::shared("s03-raw").await;
    let node = scene.node(NODE);
    let (_, disk) = node.link_disk("s03-raw", "disk", SIZE);
    let pv = scene.wait_available("s03-raw", NODE, "disk").await;
    assert_eq!(pv.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()), Some("Block"));

    scene.claim_device("raw", "s03-raw", "1Mi");
    scene.run(&PodSpec::new("old").device("raw", "/dev/raw")).await;
    // All of it, so that a wipe that leaves out any part leaves the secret there.
    scene.sh("old", &format!("yes \"{SECRET}\" | dd of=/dev/raw bs=1M count=64 iflag=fullblock conv=fsync"));
    let (first, last) = (SECRET.len(), SIZE - 4096);
    assert_eq!(scene.sh("old", &format!("head -c {first} /dev/raw")), SECRET, "the pod reads what it wrote");
    assert!(scene.sh("old", &format!("dd if=/dev/raw bs=4096 skip={}", last / 4096)).contains(SECRET));
    let on_host = node.on_host(|| disk.read_all());
    assert!(on_host.starts_with(SECRET.as_bytes()), "the host sees what the pod wrote");
    assert_eq!(on_host.len() as u64, SIZE);

    release(&scene, "s03-raw", "old", "raw", &pv, &disk).await;

    scene.claim_device("raw", "s03-raw", "1Mi");
    scene.run(&PodSpec::new("new").device("raw", "/dev/raw")).await;
    assert_eq!(scene.sh("new", "tr -d '\\0' < /dev/raw | wc -c").trim(), "0", "the new tenant reads zeros only");
    scene.delete_pod("new").await;
}

#[tokio::test]
async fn s03_a_device_that_the_kubelet_made_an_ext4_on_reads_zeros_after_its_claim() {
    formatted("s03-ext4", "ext4", SIZE).await;
}

#[tokio::test]
async fn s03_a_device_that_the_kubelet_made_an_xfs_on_reads_zeros_after_its_claim() {
    formatted("s03-xfs", "xfs", XFS_SIZE).await;
}

async fn formatted(class: &str, kind: &str, size: u64) {
    let scene = stage::shared(class).await;
    let node = scene.node(NODE);
    let (_, disk) = node.link_disk(class, "disk", size);
    let pv = scene.wait_available(class, NODE, "disk").await;
    let spec = pv.spec.as_ref().expect("a PV has a spec");
    assert_eq!(spec.volume_mode.as_deref(), Some("Filesystem"));
    assert_eq!(spec.local.as_ref().and_then(|local| local.fs_type.as_deref()), Some(kind));
    assert_eq!(probe(&scene, &disk), "", "it is blank");

    scene.claim("data", class, "1Mi");
    scene.run(&PodSpec::new("first").claim("data", "/data")).await;
    assert_eq!(mounted_as(&scene, "first"), kind);
    scene.sh("first", &format!("mkdir -p /data/a; echo \"{SECRET}\" | tee /data/file /data/a/.hidden; sync"));
    assert_eq!(probe(&scene, &disk), kind, "the kubelet has formatted it");
    assert!(node.on_host(|| disk.backing_contains(SECRET.as_bytes())), "the host finds what the pod wrote");
    scene.delete_pod("first").await;

    scene.run(&PodSpec::new("second").claim("data", "/data")).await;
    assert_eq!(scene.sh("second", "cat /data/file /data/a/.hidden"), format!("{SECRET}\n{SECRET}\n"), "not formatted again");

    release(&scene, class, "second", "data", &pv, &disk).await;
    assert_eq!(probe(&scene, &disk), "", "it is as blank as at first");

    scene.claim("data", class, "1Mi");
    scene.run(&PodSpec::new("new").claim("data", "/data")).await;
    assert_eq!(mounted_as(&scene, "new"), kind);
    assert_eq!(scene.sh("new", "find /data -type f"), "", "the new tenant sees nothing of the old one");
    scene.delete_pod("new").await;
}

/// Deletes the pod and the claim; the volume is to be offered again as zeros, under the same name.
async fn release(scene: &Scene, class: &str, pod: &str, claim: &str, pv: &PersistentVolume, disk: &LoopDisk) {
    let (_, bound) = scene.wait_bound(claim).await;
    assert_eq!(bound.uid(), pv.uid(), "it is this PV that was used");
    scene.delete_pod(pod).await;
    scene.delete_claim(claim).await;
    let again = scene.wait_anew(class, NODE, "disk", pv).await;
    assert_eq!(again.name_any(), pv.name_any(), "it has the name it had");
    let bytes = scene.node(NODE).on_host(|| disk.read_all());
    let dirty = bytes.chunks(4096).position(|block| block != &[0; 4096][..block.len()]);
    assert_eq!(dirty, None, "the block with that number is not zeros");
    assert!(!scene.node(NODE).on_host(|| disk.backing_contains(SECRET.as_bytes())), "it is gone from the medium");
}

/// What there is on the disk, by blkid, past any cache.
fn probe(scene: &Scene, disk: &LoopDisk) -> String {
    scene.node(NODE).on_host(|| {
        let mut blkid = Command::new("blkid");
        blkid.args(["--probe", "--match-tag", "TYPE", "--output", "value"]).arg(&disk.device);
        let output = blkid.output().expect("blkid can be run");
        // 2: it knows nothing there.
        assert!(matches!(output.status.code(), Some(0 | 2)), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

fn mounted_as(scene: &Scene, pod: &str) -> String {
    scene.sh(pod, "awk '$2 == \"/data\" {print $3}' /proc/mounts").trim().to_owned()
}
