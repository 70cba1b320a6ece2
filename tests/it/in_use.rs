//! A Released volume that somebody still uses: it waits, the verdict says for whom, an
//! Event does so after a while, and it is wiped when it is free.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;

use crate::busy::{Holder, nested};
use crate::common::{SOON, start, wait_saying};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};
use crate::wipe_scene::first_not_zero;

/// An Event comes after the volume has been in use for this long, in seconds.
const PATIENCE: i64 = 4;

/// Waits until the Released volume is Busy for this user and an Event says so.
async fn is_busy(node: &TestNode, agent: &Agent, class: &str, entry: &str, pv: &PersistentVolume, user: &str) {
    wait_saying(agent, class, entry, "Busy", user).await;
    node.wait_event(&pv.name_any(), "Busy", user, SOON).await;
    let event = node.wait_event_on(pv, "Busy", SOON).await;
    let now = node.pvs().await.into_iter().find(|now| now.uid() == pv.uid()).expect("the PV is there");
    assert!(phase(&now) == "Released" && now.metadata.deletion_timestamp.is_none(), "it is not even fenced");
    let released = now.status.and_then(|status| status.last_phase_transition_time).expect("it has a time").0;
    let told = event.first_timestamp.expect("it has a time").0;
    let seconds = told.as_second() - released.as_second();
    assert!(seconds >= PATIENCE, "{entry}: the Event came after {seconds} s");
}

/// Waits until the volume is offered by another PV.
async fn is_offered_anew(node: &TestNode, path: &Path, pv: &PersistentVolume) {
    node.wait_pv(path, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
}

#[tokio::test]
async fn a_device_waits_for_whoever_uses_it_and_is_then_wiped() {
    let node = TestNode::new(shared(), "used").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    let point = node.dir().join("mounted");
    fs::create_dir(&point).expect("a directory can be made");
    let point = point.display();
    let mut volumes = Vec::new();
    for entry in ["mounted", "in-a-namespace", "under-a-loop", "swap", "open"] {
        let disk = LoopDisk::new(node.dir(), 48 << 20);
        let link = disk.link(&disks, entry);
        let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
        let claim = node.bind(&pv.name_any()).await;
        let device = disk.device.display().to_string();
        // What a tenant leaves, and who is still at it.
        if entry.contains("mount") || entry.contains("namespace") {
            disk.format_ext4();
        }
        disk.write_at(32 << 20, &b"TENANT-SECRET...".repeat(256));
        let (holder, user) = match entry {
            "mounted" => {
                let begin = format!("mkdir {point}/1 && mount -t ext4 {device} {point}/1");
                (Holder::elsewhere(&begin, ":"), format!("mounted at {point}/1"))
            }
            "in-a-namespace" => {
                let begin = format!("mount -t ext4 {device} {point}");
                (Holder::elsewhere(&begin, ":"), format!("mounted at {point} as process "))
            }
            "under-a-loop" => {
                let begin = format!("over=$(losetup --find --show {device})");
                (Holder::new(&["sh"], &begin, "losetup --detach $over"), "backing of /dev/loop".to_owned())
            }
            "swap" => {
                let begin = format!("mkswap {device} >/dev/null && swapon {device}");
                (Holder::new(&["sh"], &begin, &format!("swapoff {device}")), format!("swap ({device})"))
            }
            _ => {
                let program = ["sh", "-c", &format!("({}); :", nested(&disk.device, "<")), "sh"];
                (Holder::new(&program, ":", ":"), "open in process ".to_owned())
            }
        };
        volumes.push((entry, disk, link, pv, claim, holder, user));
    }
    for (.., claim, _, _) in &volumes {
        node.release(claim).await;
    }
    for (entry, disk, _, pv, _, _, user) in &volumes {
        is_busy(&node, &agent, &class, entry, pv, user).await;
        assert!(disk.backing_contains(b"TENANT-SECRET"), "{entry}: nothing was touched");
    }
    for (entry, disk, link, pv, _, holder, _) in volumes {
        drop(holder);
        is_offered_anew(&node, &link, &pv).await;
        assert_eq!(first_not_zero(&disk.backing), None, "{entry}");
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_directory_waits_for_the_pod_that_has_it_or_a_part_of_it_mounted() {
    let node = TestNode::new(shared(), "podded").await;
    let class = node.class("fast", "Delete").await;
    let (disks, kubelet) = (node.discovery_dir("disks"), node.discovery_dir("kubelet"));
    let agent = start(&node, &[(&class, &disks, "")]);
    let mut volumes = Vec::new();
    for (entry, part) in [("whole", ""), ("part", "sub/path")] {
        let volume = disks.join(entry);
        disk::tmpfs(&volume, 1 << 20);
        let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
        let claim = node.bind(&pv.name_any()).await;
        fs::create_dir_all(volume.join("sub/path")).expect("a directory can be made");
        fs::write(volume.join("sub/path/data"), "TENANT-SECRET").expect("a file can be written");
        let pod = kubelet.join(format!("pods/{entry}/volumes/kubernetes.io~local-volume/{entry}"));
        disk::bind_mount(&volume.join(part), &pod);
        node.release(&claim).await;
        volumes.push((entry, volume, pv, pod));
    }
    for (entry, volume, pv, pod) in &volumes {
        is_busy(&node, &agent, &class, entry, pv, &format!("also mounted at {}", pod.display())).await;
        assert!(volume.join("sub/path/data").exists(), "{entry}: nothing was touched");
    }
    for (entry, volume, pv, pod) in &volumes {
        disk::umount(pod);
        is_offered_anew(&node, volume, pv).await;
        assert_eq!(fs::read_dir(volume).expect("it can be read").count(), 0, "{entry}");
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_sibling_in_the_same_filesystem_is_neither_waited_for_nor_touched() {
    let node = TestNode::new(shared(), "sibling").await;
    let class = node.class("fast", "Delete").await;
    let (disks, pods) = (node.discovery_dir("disks"), node.discovery_dir("pods"));
    let filesystem = node.root().join("shared");
    let _disk = disk::ext4(&filesystem, 16 << 20);
    let mut volumes: Vec<(PathBuf, PersistentVolume)> = Vec::new();
    let agent = start(&node, &[(&class, &disks, "")]);
    let mut claims = Vec::new();
    for name in ["a", "b"] {
        fs::create_dir(filesystem.join(name)).expect("a directory can be made");
        let volume = disks.join(name);
        disk::bind_mount(&filesystem.join(name), &volume);
        let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
        claims.push(node.bind(&pv.name_any()).await);
        fs::write(volume.join("data"), format!("of {name}")).expect("a file can be written");
        volumes.push((volume, pv));
    }
    // A pod is at b.
    disk::bind_mount(&volumes[1].0, &pods.join("b"));
    let open = fs::File::open(pods.join("b/data")).expect("it can be opened");
    node.release(&claims[0]).await;
    is_offered_anew(&node, &volumes[0].0, &volumes[0].1).await;
    assert_eq!(fs::read_dir(&volumes[0].0).expect("it can be read").count(), 0);
    assert_eq!(fs::read_to_string(volumes[1].0.join("data")).expect("it is there"), "of b");
    let now = node.wait_pv(&volumes[1].0, |_| true, SOON).await;
    assert_eq!((phase(&now), now.uid()), ("Bound", volumes[1].1.uid()));
    drop((open, agent));
    node.clean_up().await;
}

#[tokio::test]
async fn a_disk_that_is_in_use_is_told_of_once_and_offered_when_it_is_free() {
    let node = TestNode::new(shared(), "early").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), 16 << 20);
    disk.format_ext4();
    let point = node.dir().join("mounted").display().to_string();
    let begin = format!("mkdir {point} && mount -t ext4 {} {point}", disk.device.display());
    let holder = Holder::elsewhere(&begin, ":");
    let link = disk.link(&disks, "disk");
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    let detail = wait_saying(&agent, &class, "disk", "Busy", &format!("mounted at {point} as process")).await;
    assert!(detail.starts_with("it is not offered: "), "{detail}");
    // It comes after several tries.
    node.wait_event(node.name(), "Busy", &detail, SOON).await;
    let is_it = |line: &String| line.contains("Volume needs attention") && line.contains(&point);
    let warnings = agent.logs().into_iter().filter(is_it).count();
    // A busy machine may look hung in between.
    let hung = agent.logs().into_iter().filter(|line| line.contains("\"Unresponsive\"")).count();
    assert!((1..=1 + hung).contains(&warnings), "the verdict has not changed since: {warnings}");
    drop(holder);
    node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    drop(agent);
    node.clean_up().await;
}
