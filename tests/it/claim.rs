//! The way from a path to a volume that may be destroyed, on real mounts and disks and
//! without an agent around it: what discovery saw is compared on the open file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mooring::deleter::{WipeError, inspect};
use mooring::discovery::{Listing, Observed};
use mooring::identity::Identity;
use mooring::node::Scanner;
use mooring::plan::Target;

use crate::harness::disk::{self, LoopDisk};
use crate::harness::{Scratch, require_own_namespace};

/// What discovery sees at an entry now.
async fn observed(dir: &Path, entry: &str) -> Observed {
    let directory = dir.display().to_string();
    let mut scanner = Scanner::start([directory.clone()].into()).expect("a scanner can be started");
    let snapshot = scanner.snapshots.wait_for(Option::is_some).await.expect("it takes a snapshot").clone();
    let listing = &snapshot.as_ref().expect("just waited for").directories[&directory];
    let Listing::Entries(entries) = listing else { panic!("the directory can't be read: {listing:?}") };
    entries.iter().find(|other| other.name == entry).expect("the entry is there").observed.clone()
}

async fn target(dir: &Path, entry: &str) -> Target {
    let identity = match observed(dir, entry).await {
        Observed::MountPoint(sighting) | Observed::Device(sighting) => sighting.identity,
        other => panic!("{entry} is no volume: {other:?}"),
    };
    with_identity(dir, entry, identity)
}

fn with_identity(dir: &Path, entry: &str, identity: Arc<Identity>) -> Target {
    Target {
        pv: "local-pv-0".to_owned(),
        uid: "uid".to_owned(),
        mount_dir: dir.display().to_string(),
        entry: entry.to_owned(),
        identity,
    }
}

#[tokio::test]
async fn only_the_directory_that_was_seen_mounted_is_taken() {
    require_own_namespace();
    let scratch = Scratch::new("claim-dir");
    let dir = scratch.path();
    disk::tmpfs(&dir.join("v"), 1 << 20);
    let target = target(dir, "v").await;
    inspect(&target).expect("it is as it was seen");
    // Another filesystem over it.
    disk::tmpfs(&dir.join("v"), 1 << 20);
    assert!(matches!(inspect(&target), Err(WipeError::IdentityChanged(_))));
    disk::umount(&dir.join("v"));
    inspect(&target).expect("the first one is seen again");
    // A subtree of the same filesystem.
    fs::create_dir(dir.join("v/sub")).expect("a directory can be made");
    disk::bind_mount(&dir.join("v/sub"), &dir.join("v"));
    assert!(matches!(inspect(&target), Err(WipeError::IdentityChanged(_))));
    disk::umount(&dir.join("v"));
    // Not mounted any more: the directory beneath is not the volume.
    disk::umount(&dir.join("v"));
    assert!(matches!(inspect(&target), Err(WipeError::NotMounted(_))));
    fs::remove_dir(dir.join("v")).expect("a directory can be removed");
    assert!(matches!(inspect(&target), Err(WipeError::Vanished(_))));
}

#[tokio::test]
async fn a_link_to_a_mounted_directory_a_file_or_nothing_is_not_taken() {
    require_own_namespace();
    let scratch = Scratch::new("claim-link");
    let dir = scratch.path();
    disk::tmpfs(&dir.join("v"), 1 << 20);
    let identity = target(dir, "v").await.identity;
    symlink(dir.join("v"), dir.join("link")).expect("a link can be made");
    fs::write(dir.join("file"), "x").expect("a file can be made");
    symlink("/nowhere", dir.join("dangling")).expect("a link can be made");
    symlink("/dev/null", dir.join("null")).expect("a link can be made");
    let try_it = |entry: &str| inspect(&with_identity(dir, entry, identity.clone())).expect_err("it is no volume");
    assert!(matches!(try_it("link"), WipeError::Refused(_)));
    assert!(matches!(try_it("file"), WipeError::Refused(_)));
    assert!(matches!(try_it("null"), WipeError::Refused(_)));
    assert!(matches!(try_it("dangling"), WipeError::Vanished(_)));
    // Out of the directory there is no way.
    assert!(inspect(&with_identity(&dir.join("v"), "../v", identity.clone())).is_err());
    disk::umount(&dir.join("v"));
}

#[tokio::test]
async fn only_the_disk_that_was_seen_is_taken_and_only_while_nobody_uses_it() {
    require_own_namespace();
    let scratch = Scratch::new("claim-disk");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let (first, second) = (LoopDisk::new(scratch.path(), 16 << 20), LoopDisk::new(scratch.path(), 16 << 20));
    let link = first.link(&dir, "disk");
    let target = target(&dir, "disk").await;
    inspect(&target).expect("it is as it was seen");
    // The link leads to another disk.
    fs::remove_file(&link).expect("a link can be removed");
    second.link(&dir, "disk");
    assert!(matches!(inspect(&target), Err(WipeError::IdentityChanged(_))));
    fs::remove_file(&link).expect("a link can be removed");
    first.link(&dir, "disk");
    // Mounted, it is busy; free again, it is taken.
    first.format_ext4();
    first.mount_ext4(&scratch.path().join("mounted"));
    assert!(matches!(inspect(&target), Err(WipeError::Busy(_))));
    disk::umount(&scratch.path().join("mounted"));
    inspect(&target).expect("it is free again");
}

#[tokio::test]
async fn another_disk_under_the_same_device_number_is_not_taken() {
    require_own_namespace();
    let scratch = Scratch::new("claim-number");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let other = LoopDisk::new(scratch.path(), 16 << 20);
    // Somebody else may get the number first: then once more.
    for _ in 0..20 {
        let first = LoopDisk::new(scratch.path(), 16 << 20);
        let link = first.link(&dir, "disk");
        let target = target(&dir, "disk").await;
        inspect(&target).expect("it is as it was seen");
        let device = first.device.clone();
        drop(first);
        let attached = Command::new("losetup").arg(&device).arg(&other.backing).status();
        if attached.expect("losetup can be run").success() {
            let outcome = inspect(&target);
            let detached = Command::new("losetup").arg("--detach").arg(&device).status();
            assert!(detached.expect("losetup can be run").success());
            assert!(matches!(outcome, Err(WipeError::IdentityChanged(_))), "{outcome:?}");
            return;
        }
        fs::remove_file(&link).expect("a link can be removed");
    }
    panic!("no device number could be had twice in a row");
}
