//! From a mount or device in a discovery directory to its PV.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use serde_json::json;

use crate::common::{SOON, is_labelled, start, start_with, strip_label, verdict};
use crate::common::{wait_calls, wait_ready, wait_saying, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::shared;
use crate::harness::volumes::{path_of, phase};

#[tokio::test]
async fn a_mount_becomes_a_pv_of_this_node() {
    let node = TestNode::new(shared(), "mount").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&class, &disks, "fsType: xfs")]);
    wait_ready(&agent).await;
    disk::tmpfs(&disks.join("a b\\c"), 64 << 20);
    let path = disks.join("a b\\c");
    let pv = node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let spec = serde_json::to_value(pv.spec.as_ref().expect("it has a spec")).expect("it is JSON");
    assert_eq!(spec["capacity"], json!({ "storage": "64Mi" }));
    assert_eq!(spec["local"], json!({ "path": path, "fsType": "xfs" }));
    assert_eq!(spec["storageClassName"], json!(class));
    assert_eq!(spec["volumeMode"], "Filesystem");
    assert_eq!(spec["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
    let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
    let expression = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node.name()] });
    assert_eq!(*terms, json!([{ "matchExpressions": [expression] }]));
    let metadata = &pv.metadata;
    let signature = format!("local-volume-provisioner-{}-{}", node.name(), node.uid());
    let annotations = metadata.annotations.as_ref().expect("it is signed");
    assert_eq!(annotations["pv.kubernetes.io/provisioned-by"], signature);
    assert_eq!(metadata.labels.as_ref().expect("it is labelled")["mooring.dev/node"], node.name());
    wait_verdict(&agent, &class, "a b\\c", "Published").await;
    node.clean_up().await;
}

#[tokio::test]
async fn a_block_device_becomes_a_pv() {
    let node = TestNode::new(shared(), "device").await;
    let class = node.class("raw", "Delete").await;
    let (disks, disk) = (node.discovery_dir("disks"), LoopDisk::new(node.dir(), 64 << 20));
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    wait_ready(&agent).await;
    let path = disk.link(&disks, "disk");
    let pv = node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
    let spec = pv.spec.expect("it has a spec");
    assert_eq!(spec.volume_mode.as_deref(), Some("Block"));
    assert_eq!(spec.capacity.expect("it has a size")["storage"].0, "64Mi");
    node.clean_up().await;
}

#[tokio::test]
async fn five_hundred_mounts_at_once_become_as_many_pvs() {
    let node = TestNode::new(shared(), "burst").await;
    let class = node.class("many", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_ready(&agent).await;
    let paths: BTreeSet<_> = disk::mount_many(&disks, 500).into_iter().collect();
    node.watch_pvs("500 volumes", SOON * 2, |pvs| (pvs.len() >= 500).then_some(())).await;
    let published = node.pvs().await;
    assert_eq!(published.len(), 500);
    let found: BTreeSet<_> = published.iter().map(|pv| path_of(pv).into()).collect();
    assert_eq!(found, paths);
    let series = format!("mooring_volumes{{class=\"{class}\",verdict=\"Published\"}}");
    agent.wait_metric(&series, |count| (count - 500.0).abs() < 0.5, SOON).await;
    node.clean_up().await;
}

#[tokio::test]
async fn of_two_classes_over_one_directory_the_first_by_name_publishes() {
    let node = TestNode::new(shared(), "two").await;
    let (a, b) = (node.class("a", "Delete").await, node.class("b", "Delete").await);
    let disks = node.discovery_dir("disks");
    let agent = start(&node, &[(&b, &disks, ""), (&a, &disks, "namePattern: 'x*'")]);
    disk::tmpfs(&disks.join("x1"), 1 << 20);
    disk::tmpfs(&disks.join("y1"), 1 << 20);
    let of_class = |pv: &PersistentVolume| pv.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
    let first = node.wait_pv(&disks.join("x1"), |_| true, SOON).await;
    let second = node.wait_pv(&disks.join("y1"), |_| true, SOON).await;
    assert_eq!((of_class(&first), of_class(&second)), (Some(a.clone()), Some(b.clone())));
    wait_saying(&agent, &b, "x1", "DuplicateOf", &a).await;
    wait_verdict(&agent, &a, "y1", "ExcludedByPattern").await;
    assert_eq!(node.pvs().await.len(), 2, "one PV for each volume");
    node.clean_up().await;
}

#[tokio::test]
async fn whatever_else_is_in_the_directory_has_a_verdict_and_is_no_obstacle() {
    let node = TestNode::new(shared(), "verdicts").await;
    let (class, absent) = (node.class("fast", "Delete").await, "no-such-class");
    let (disks, others) = (node.discovery_dir("disks"), node.discovery_dir("others"));
    let at = |name: &str| disks.join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    let _socket = UnixListener::bind(at("socket")).expect("a socket can be made");
    fs::write(at("file"), "x").expect("a file can be made");
    symlink("/nowhere/at/all", at("dangling")).expect("a link can be made");
    symlink("/dev/null", at("character")).expect("a link can be made");
    fs::create_dir(at("plain")).expect("a directory can be made");
    fs::create_dir(at("lost+found")).expect("a directory can be made");
    disk::tmpfs(&at("new\nline"), 1 << 20);
    disk::tmpfs(&disks.join(OsStr::from_bytes(b"not-\xff-text")), 1 << 20);
    disk::tmpfs(&node.root().join("target"), 1 << 20);
    symlink(node.root().join("target"), at("link")).expect("a link can be made");
    disk::tmpfs(&others.join("waiting"), 1 << 20);
    disk::tmpfs(&at("zz good"), 1 << 20);

    let agent = start(&node, &[(&class, &disks, ""), (absent, &others, "")]);
    node.wait_pv(&at("zz good"), |_| true, SOON).await;
    wait_ready(&agent).await;
    for (entry, expected, words) in [
        ("fifo", "Unsupported", "a FIFO"),
        ("socket", "Unsupported", "a socket"),
        ("file", "Unsupported", "a regular file"),
        ("dangling", "Unsupported", "link to nothing"),
        ("character", "Unsupported", "a character device"),
        ("plain", "NotAMountPoint", "nothing is mounted"),
        ("lost+found", "NotAMountPoint", "nothing is mounted"),
        ("link", "NotAMountPoint", "symbolic link to a directory"),
        ("new\nline", "Unsupported", "control character"),
        ("not-\u{fffd}-text", "Unsupported", "not valid UTF-8"),
        ("zz good", "Published", ""),
    ] {
        wait_saying(&agent, &class, entry, expected, words).await;
    }
    wait_saying(&agent, absent, "waiting", "NoStorageClass", absent).await;
    assert_eq!(node.pvs().await.len(), 1);
    node.clean_up().await;
}

#[tokio::test]
async fn a_discovery_directory_may_come_late_be_replaced_and_be_mounted_over() {
    let node = TestNode::new(shared(), "late").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.root().join("above/disks");
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block")]);
    agent.wait_log("Discovery directory can't be read", SOON).await;
    let disk: Vec<_> = (0..5).map(|_| LoopDisk::new(node.dir(), 1 << 20)).collect();

    wait_ready(&agent).await;
    for directory in [node.root().join("above"), disks.clone()] {
        fs::create_dir(directory).expect("a directory can be made");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    agent.wait_log("Discovery directory can be read again", SOON).await;
    node.wait_pv(&disk[0].link(&disks, "late"), |_| true, SOON).await;

    fs::rename(&disks, disks.with_file_name("old")).expect("a directory can be moved");
    fs::create_dir(&disks).expect("a directory can be made");
    node.wait_pv(&disk[1].link(&disks, "replaced"), |_| true, SOON).await;

    // The kernel gives the inode of what was removed to what is made next.
    fs::remove_dir_all(&disks).expect("a directory can be removed");
    fs::create_dir(&disks).expect("a directory can be made");
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.wait_pv(&disk[4].link(&disks, "made again"), |_| true, SOON).await;

    disk::tmpfs(&disks, 1 << 20);
    node.wait_pv(&disk[2].link(&disks, "over"), |_| true, SOON).await;

    disk::umount(&disks);
    node.wait_pv(&disk[3].link(&disks, "under again"), |_| true, SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_path_that_somebody_elses_pv_names_is_left_alone() {
    let node = TestNode::new(shared(), "foreign").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("theirs"), 1 << 20);
    let by_hand = node.local_pv(&format!("by-hand-{}", node.name()), &class, &disks.join("theirs"));
    node.create_pv(&by_hand).await;
    let by_hand = node.wait_pv(&disks.join("theirs"), |pv| phase(pv) == "Available", SOON).await;
    let agent = start(&node, &[(&class, &disks, "")]);
    wait_saying(&agent, &class, "theirs", "PathInUse", "by-hand-").await;
    let now = node.pvs().await;
    assert_eq!(now.len(), 1);
    assert_eq!(now[0].metadata.resource_version, by_hand.metadata.resource_version, "it was not touched");
    node.clean_up().await;
}

#[tokio::test]
async fn a_pv_that_loses_its_label_gets_it_back() {
    let node = TestNode::new(shared(), "label").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = start_with(&node, &[(&class, &disks, "")], &[("labelsForPV", "env: prod")]);
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let pv = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available", SOON).await;
    // Before, the agent may not have had the answer to its own call.
    wait_calls(&agent, "create", 1.0).await;
    strip_label(&node, &pv).await;
    let again = node.wait_pv(&disks.join("v"), is_labelled, SOON).await;
    assert_eq!(again.metadata.uid, pv.metadata.uid, "it is the same PV");
    assert_eq!(again.metadata.labels.expect("it has labels")["env"], "prod");
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn of_a_directory_that_cant_be_read_nothing_is_concluded() {
    let node = TestNode::new(shared(), "unread").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let agent = start_with(&node, &[(&class, &disks, "")], &[("withdrawAfter", "1h")]);
    node.wait_pv(&disks.join("v"), |_| true, SOON).await;
    wait_verdict(&agent, &class, "v", "Published").await;
    fs::rename(&disks, disks.with_file_name("away")).expect("a directory can be moved");
    wait_saying(&agent, &class, "v", "DirectoryUnreadable", "can't be read").await;
    fs::rename(disks.with_file_name("away"), &disks).expect("a directory can be moved");
    wait_verdict(&agent, &class, "v", "Published").await;
    disk::umount(&disks.join("v"));
    fs::remove_dir(disks.join("v")).expect("a directory can be removed");
    wait_verdict(&agent, &class, "v", "Vanished").await;
    assert_eq!(node.pvs().await.len(), 1);
    node.clean_up().await;
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named_with_what_to_do_and_costs_no_pv() {
    let node = TestNode::new(shared(), "missing").await;
    let (class, other) = (node.class("fast", "Delete").await, node.class("other", "Delete").await);
    let (disks, nowhere) = (node.discovery_dir("disks"), node.root().join("nowhere"));
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let classes: [(&str, &Path, &str); 2] = [(&class, &disks, ""), (&other, &nowhere, "")];
    let at_once = [("withdrawAfter", "0s"), ("minResyncPeriod", "1s")];
    let agent = start_with(&node, &classes, &at_once);
    let offered = node.wait_pv(&disks.join("v"), |pv| phase(pv) == "Available", SOON).await;
    // A class without a single PV says so as well.
    let sentence = wait_verdict(&agent, &other, "", "DirectoryUnreadable").await;
    assert!(sentence.contains(&format!("{} can't be read: No such file", nowhere.display())), "{sentence}");
    let event = node.wait_event(node.name(), "DirectoryUnreadable", &nowhere.display().to_string(), SOON).await;
    assert!(event.contains("additionalVolumes"), "{event}");
    drop(agent);
    // As in a pod to which the directory is not mounted.
    fs::rename(&disks, disks.with_file_name("away")).expect("a directory can be moved");
    let agent = start_with(&node, &classes, &at_once);
    wait_verdict(&agent, &class, "v", "DirectoryUnreadable").await;
    wait_verdict(&agent, &class, "", "DirectoryUnreadable").await;
    let event = node.wait_event(&offered.name_any(), "DirectoryUnreadable", "can't be read", SOON).await;
    assert!(event.contains("additionalVolumes"), "{event}");
    let told = |verdict: &str| format!("mooring_volumes{{class=\"{class}\",verdict=\"{verdict}\"}}");
    assert_eq!(agent.metric(&told("DirectoryUnreadable")).await, Some(2.0));
    assert_eq!(agent.metric(&told("Unresponsive")).await, None, "no disk is suspected");
    agent.wait_log_after(agent.mark(), "Looking at everything again", SOON).await;
    let now = node.pvs().await;
    assert_eq!(now.iter().map(ResourceExt::uid).collect::<Vec<_>>(), [offered.uid()]);
    fs::rename(disks.with_file_name("away"), &disks).expect("a directory can be moved");
    wait_verdict(&agent, &class, "v", "Published").await;
    assert_eq!(verdict(&agent, &class, "").await, None);
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn what_changes_without_an_event_is_seen_at_the_next_resync() {
    let node = TestNode::new(shared(), "resync").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let file = node.dir().join("growing");
    fs::write(&file, "").expect("a file can be made");
    let disk = LoopDisk::attach(file.clone());
    let agent = start_with(&node, &[(&class, &disks, "volumeMode: Block")], &[("minResyncPeriod", "500ms")]);
    let link = disk.link(&disks, "growing");
    wait_verdict(&agent, &class, "growing", "ZeroCapacity").await;
    // A device that grows changes neither its directory nor the mount table.
    let grown = fs::OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(32 << 20));
    grown.expect("a file can grow");
    let noticed = std::process::Command::new("losetup").arg("--set-capacity").arg(&disk.device).status();
    assert!(noticed.expect("losetup can be run").success());
    node.wait_pv(&link, |_| true, SOON).await;
    node.clean_up().await;
}
