//! Volumes that change under their PVs: gone, exchanged, back again, grown and shrunk.

use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use nix::mount::{MsFlags, mount};

use crate::common::{SOON, start_with, wait_ready, wait_saying, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::shared;
use crate::harness::volumes::phase;
use crate::tenancy::{Scene, Store};

/// Longer than any test.
const NEVER: &[(&str, &str)] = &[("withdrawAfter", "1h")];
const AT_ONCE: &[(&str, &str)] = &[("withdrawAfter", "0s")];

fn capacity(pv: &PersistentVolume) -> &str {
    let spec = pv.spec.as_ref().expect("it has a spec");
    &spec.capacity.as_ref().expect("it has a size")["storage"].0
}

/// Puts a new, blank disk in the place of a store's.
fn exchange(scene: &mut Scene, index: usize) -> LoopDisk {
    let other = LoopDisk::new(scene.node.dir(), 16 << 20);
    let store = &mut scene.stores[index];
    store.detach();
    let former = store.exchange(other);
    store.attach();
    former
}

/// What the agent does of its own accord after everything before: it has seen it all.
async fn agent_has_seen(scene: &Scene, name: &str) {
    disk::tmpfs(&scene.stores[0].dir.join(name), 1 << 20);
    scene.node.wait_pv(&scene.stores[0].dir.join(name), |pv| phase(pv) == "Available", SOON).await;
}

#[tokio::test]
async fn an_unclaimed_pv_is_withdrawn_when_its_volume_stays_away() {
    let mut scene = Scene::new("gone", "Delete").await;
    scene.keys = &[("withdrawAfter", "1s")];
    scene.stores.iter().for_each(Store::write_secret);
    scene.begin();
    for store in &scene.stores {
        let pv = store.wait(&scene.node, "Available").await;
        store.detach();
        scene.node.wait_gone(&pv, SOON).await;
        // Nobody has had it: it is offered again as it is.
        store.attach();
        store.wait_anew(&scene.node, "Available", &pv).await;
        assert!(store.has_secret());
    }
    scene.end().await;
}

#[tokio::test]
async fn an_unclaimed_pv_stays_for_a_while_without_its_volume() {
    let mut scene = Scene::new("while", "Delete").await;
    scene.keys = NEVER;
    scene.begin();
    for (store, verdict) in scene.stores.iter().zip(["NotAMountPoint", "Vanished"]) {
        let pv = store.wait(&scene.node, "Available").await;
        store.detach();
        wait_verdict(scene.agent(), &store.class, "vol", verdict).await;
        store.attach();
        wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
        assert_eq!(store.wait(&scene.node, "Available").await.uid(), pv.uid());
    }
    scene.end().await;
}

#[tokio::test]
async fn an_unclaimed_pv_is_withdrawn_at_once_when_another_disk_is_there() {
    let mut scene = Scene::new("swap", "Delete").await;
    scene.keys = NEVER;
    scene.begin();
    for index in [0, 1] {
        let pv = scene.stores[index].wait(&scene.node, "Available").await;
        let former = exchange(&mut scene, index);
        let store = &mut scene.stores[index];
        let other = store.wait_anew(&scene.node, "Available", &pv).await;
        assert_ne!(other.annotations()["mooring.dev/identity"], pv.annotations()["mooring.dev/identity"]);
        // And back, to one that was never used.
        store.detach();
        store.exchange_as_it_is(former);
        store.attach();
        let back = store.wait_anew(&scene.node, "Available", &other).await;
        assert_eq!(back.annotations()["mooring.dev/ledger-entry"], pv.annotations()["mooring.dev/ledger-entry"]);
    }
    scene.end().await;
}

#[tokio::test]
async fn nothing_is_withdrawn_when_the_directory_cant_be_read_or_all_is_gone_at_once() {
    let node = TestNode::new(shared(), "allgone").await;
    let class = node.class("fast", "Delete").await;
    let (disks, others) = (node.discovery_dir("disks"), node.discovery_dir("others"));
    let other_class = node.class("other", "Delete").await;
    let volumes = ["a", "b", "c"].map(|name| disks.join(name));
    for volume in &volumes {
        disk::tmpfs(volume, 1 << 20);
    }
    let agent = start_with(&node, &[(&class, &disks, ""), (&other_class, &others, "")], AT_ONCE);
    let mut offered = Vec::new();
    for volume in &volumes {
        offered.push(node.wait_pv(volume, |pv| phase(pv) == "Available", SOON).await);
    }
    let still_there = async |after: &str| {
        // What it would do, it has begun by the time that it has dealt with this.
        disk::tmpfs(&others.join(after), 1 << 20);
        node.wait_pv(&others.join(after), |pv| phase(pv) == "Available", SOON).await;
        let now: Vec<_> = node.pvs().await.iter().map(ResourceExt::uid).collect();
        assert!(offered.iter().all(|pv| now.contains(&pv.uid())), "after {after}");
    };
    fs::rename(&disks, disks.with_file_name("away")).expect("a directory can be moved");
    for entry in ["a", "b", "c"] {
        wait_verdict(&agent, &class, entry, "DirectoryUnreadable").await;
    }
    still_there("it could not be read").await;
    fs::create_dir(&disks).expect("a directory can be made");
    // It can be read, and is empty: what was mounted on it is not.
    for entry in ["a", "b", "c"] {
        wait_verdict(&agent, &class, entry, "Vanished").await;
    }
    still_there("all was gone").await;
    fs::remove_dir(&disks).expect("a directory can be removed");
    fs::rename(disks.with_file_name("away"), &disks).expect("a directory can be moved");
    for entry in ["a", "b", "c"] {
        wait_verdict(&agent, &class, entry, "Published").await;
    }
    // With one of them left, the others are gone for good.
    disk::umount(&volumes[1]);
    disk::umount(&volumes[2]);
    node.wait_gone(&offered[1], SOON).await;
    node.wait_gone(&offered[2], SOON).await;
    node.wait_pv(&volumes[0], |pv| pv.uid() == offered[0].uid(), SOON).await;
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_bound_volume_that_goes_away_is_told_of_on_its_pv_and_its_claim_and_may_come_back() {
    let mut scene = Scene::new("lost", "Delete").await;
    scene.keys = AT_ONCE;
    scene.begin();
    let used = scene.use_all().await;
    for ((store, (pv, claim)), reason) in scene.stores.iter().zip(&used).zip(["NotAMountPoint", "Vanished"]) {
        store.detach();
        for about in [pv.name_any(), claim.name_any()] {
            let message = scene.node.wait_event(&about, reason, "To do: mount", SOON).await;
            assert!(message.contains(&store.path().display().to_string()), "{message}");
        }
        agent_has_seen(&scene, &format!("after-{reason}")).await;
        assert_eq!(store.wait(&scene.node, "Bound").await.uid(), pv.uid());
        store.attach();
        wait_verdict(scene.agent(), &store.class, "vol", "Published").await;
        assert!(store.has_secret());
        assert_eq!(store.wait(&scene.node, "Bound").await.uid(), pv.uid());
    }
    scene.end().await;
}

#[tokio::test]
async fn a_bound_volume_that_is_exchanged_is_told_of_and_never_wiped_for_the_other() {
    let mut scene = Scene::new("theirs", "Delete").await;
    scene.keys = AT_ONCE;
    scene.begin();
    let used = scene.use_all().await;
    for index in [0, 1] {
        let former = exchange(&mut scene, index);
        let store = &scene.stores[index];
        store.write_secret();
        let (pv, claim) = &used[index];
        for about in [pv.name_any(), claim.name_any()] {
            scene.node.wait_event(&about, "IdentityChanged", "put the former disk back", SOON).await;
        }
        scene.node.release(claim).await;
        let released = store.wait(&scene.node, "Released").await;
        wait_verdict(scene.agent(), &store.class, "vol", "IdentityChanged").await;
        assert!(store.has_secret());
        assert_eq!(released.uid(), pv.uid());
        // The former one is back, and wiped as it should have been.
        let store = &mut scene.stores[index];
        store.detach();
        let other = store.exchange_as_it_is(former);
        store.attach();
        store.wait_anew(&scene.node, "Available", pv).await;
        assert!(store.is_blank());
        assert!(other.backing_contains(crate::tenancy::SECRET), "the other one was not touched");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_released_volume_that_is_away_is_wiped_when_it_is_back() {
    let mut scene = Scene::new("away", "Delete").await;
    scene.keys = AT_ONCE;
    scene.begin();
    let used = scene.use_all().await;
    // On the PV: what the Node says may come after the release.
    for (pv, _) in &used {
        scene.node.hold(&pv.name_any(), true).await;
    }
    for ((store, (pv, claim)), reason) in scene.stores.iter().zip(&used).zip(["NotAMountPoint", "Vanished"]) {
        scene.node.release(claim).await;
        store.wait(&scene.node, "Released").await;
        wait_saying(scene.agent(), &store.class, "vol", "Pending", "hold").await;
        store.detach();
        wait_verdict(scene.agent(), &store.class, "vol", reason).await;
        if reason == "NotAMountPoint" {
            fs::write(store.path().join("beneath"), "x").expect("a file can be written");
        }
        scene.node.wait_event(&pv.name_any(), reason, "", SOON).await;
    }
    for (pv, _) in &used {
        scene.node.hold(&pv.name_any(), false).await;
    }
    agent_has_seen(&scene, "after").await;
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        let now = store.wait(&scene.node, "Released").await;
        assert_eq!(now.uid(), pv.uid());
        assert!(store.disk.backing_contains(crate::tenancy::SECRET), "nothing was deleted");
    }
    assert!(scene.stores[0].path().join("beneath").exists());
    for (store, (pv, _)) in scene.stores.iter().zip(&used) {
        store.attach();
        store.wait_anew(&scene.node, "Available", pv).await;
        assert!(store.is_blank());
    }
    scene.stores[0].detach();
    assert!(scene.stores[0].path().join("beneath").exists());
    scene.end().await;
}

fn remount(path: &Path, bytes: u64) {
    let options = format!("size={bytes}");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_REMOUNT, Some(options.as_str()))
        .unwrap_or_else(|error| panic!("{} can't be remounted: {error}", path.display()));
}

fn resize(disk: &LoopDisk, bytes: u64) {
    let file = fs::OpenOptions::new().write(true).open(&disk.backing).and_then(|file| file.set_len(bytes));
    file.expect("a backing file can be resized");
    disk::run(Command::new("losetup").arg("--set-capacity").arg(&disk.device));
}

#[tokio::test]
async fn a_volume_that_grows_raises_the_capacity_of_its_pv_bound_or_not() {
    let node = TestNode::new(shared(), "grow").await;
    let (fs_class, raw_class) = (node.class("fs", "Delete").await, node.class("raw", "Delete").await);
    let (fs_dir, raw_dir) = (node.discovery_dir("fs"), node.discovery_dir("raw"));
    let volume = fs_dir.join("v");
    disk::tmpfs(&volume, 16 << 20);
    let disk = LoopDisk::new(node.dir(), 16 << 20);
    let link = disk.link(&raw_dir, "disk");
    let classes = [(&*fs_class, &*fs_dir, ""), (&*raw_class, &*raw_dir, "volumeMode: Block")];
    let agent = start_with(&node, &classes, &[("minResyncPeriod", "200ms")]);
    let mut uids = Vec::new();
    for path in [&volume, &link] {
        uids.push(node.wait_pv(path, |pv| phase(pv) == "Available" && capacity(pv) == "16Mi", SOON).await.uid());
    }
    for (size, bound) in [("32Mi", false), ("48Mi", true)] {
        let bytes = size[..2].parse::<u64>().expect("it is a number") << 20;
        remount(&volume, bytes);
        resize(&disk, bytes);
        for (path, uid) in [&volume, &link].into_iter().zip(&uids) {
            let grown = node.wait_pv(path, |pv| capacity(pv) == size, SOON).await;
            assert_eq!((phase(&grown), &grown.uid()), (if bound { "Bound" } else { "Available" }, uid));
            if !bound {
                node.bind(&grown.name_any()).await;
            }
        }
    }
    for (class, entry) in [(&fs_class, "v"), (&raw_class, "disk")] {
        wait_verdict(&agent, class, entry, "Published").await;
    }
    drop(agent);
    node.clean_up().await;
}

#[tokio::test]
async fn a_volume_that_shrinks_is_offered_anew_or_told_of_when_a_claim_has_it() {
    let node = TestNode::new(shared(), "shrink").await;
    let class = node.class("fs", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    disk::tmpfs(&volume, 48 << 20);
    let agent = start_with(&node, &[(&class, &disks, "")], &[("minResyncPeriod", "200ms")]);
    wait_ready(&agent).await;
    let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
    remount(&volume, 32 << 20);
    let smaller = node.wait_pv(&volume, |pv| phase(pv) == "Available" && capacity(pv) == "32Mi", SOON).await;
    assert_ne!(smaller.uid(), pv.uid(), "nobody may claim less than they asked for");
    let claim = node.bind(&smaller.name_any()).await;
    fs::write(volume.join("data"), "x").expect("a file can be written");
    remount(&volume, 16 << 20);
    let detail = wait_verdict(&agent, &class, "v", "Shrunk").await;
    assert!(detail.contains("32Mi") && detail.contains("16Mi"), "{detail}");
    for about in [smaller.name_any(), claim.name_any()] {
        node.wait_event(&about, "Shrunk", "16Mi", SOON).await;
    }
    let now = node.wait_pv(&volume, |_| true, SOON).await;
    assert_eq!((now.uid(), phase(&now), capacity(&now)), (smaller.uid(), "Bound", "32Mi"));
    remount(&volume, 32 << 20);
    wait_verdict(&agent, &class, "v", "Published").await;
    assert!(volume.join("data").exists());
    drop(agent);
    node.clean_up().await;
}
