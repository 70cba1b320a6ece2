//! The way from a path to a volume that may be destroyed, on real mounts and disks and
//! without an agent around it: what discovery saw is compared on the open file.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mooring::deleter::{WipeError, claim, inspect};
use mooring::discovery::{Listing, Observed, Snapshot};
use mooring::identity::{DeviceNumber, Identity};
use mooring::ledger::{Entry, EntryId};
use mooring::method::WipeRules;
use mooring::node::Scanner;
use mooring::node::mountinfo::{Mount, MountTable};
use mooring::node::sysfs::Sysfs;
use mooring::plan::Target;
use mooring::reclaim::{Begun, Fence, Step, next_step};

use crate::common::SOON;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::{Scratch, require_own_namespace};
use crate::properties::fenced_pv;

/// What discovery sees at an entry now. On a busy machine it may take the kernel for hung at first.
pub async fn observed(dir: &Path, entry: &str) -> Observed {
    let directory = dir.display().to_string();
    let mut scanner = Scanner::start([directory.clone()].into()).expect("a scanner can be started");
    let seen = |snapshot: &Option<Arc<Snapshot>>| {
        let Listing::Entries(entries) = &snapshot.as_ref()?.directories[&directory] else { return None };
        let entry = entries.iter().find(|other| other.name == entry)?;
        Some(entry.observed.clone()).filter(|observed| *observed != Observed::Unresponsive)
    };
    let found = scanner.snapshots.wait_for(|snapshot| seen(snapshot).is_some());
    let found = tokio::time::timeout(SOON, found).await.expect("the entry is seen");
    seen(&found.expect("the scanner runs")).expect("just waited for")
}

pub async fn target(dir: &Path, entry: &str) -> Target {
    let identity = match observed(dir, entry).await {
        Observed::MountPoint(sighting) | Observed::Device(sighting) => sighting.identity,
        other => panic!("{entry} is no volume: {other:?}"),
    };
    with_identity(dir, entry, identity)
}

/// Does something with a device that somebody may have open for a moment: who looks for a free
/// loop device, or has not yet become another program.
fn unless_busy<T>(work: impl Fn() -> Result<T, WipeError>) -> Result<T, WipeError> {
    let deadline = Instant::now() + SOON;
    loop {
        match work() {
            Err(WipeError::Busy(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            done => return done,
        }
    }
}

/// Makes sure that the volume is refused for another key; returns the digest that it
/// has now, as the message tells it.
pub fn refused_for(target: &Target, key: &str) -> String {
    match unless_busy(|| inspect(target)) {
        Err(WipeError::IdentityChanged(text)) if text.starts_with(key) => {
            text.rsplit(' ').next().expect("it is a sentence").to_owned()
        }
        other => panic!("it is not refused for its {key}: {other:?}"),
    }
}

pub fn with_identity(dir: &Path, entry: &str, identity: Arc<Identity>) -> Target {
    Target {
        pv: "local-pv-0".to_owned(),
        uid: "uid".to_owned(),
        claim: Box::default(),
        mount_dir: dir.display().to_string(),
        entry: entry.to_owned(),
        rules: WipeRules::default(),
        disks: Box::default(),
        record: Box::new(Entry::new(EntryId(1), "c", entry, identity.clone(), Timestamp::UNIX_EPOCH)),
        identity,
        aliases: Vec::new(),
        accepted: None,
        job: None,
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
    // Another filesystem over it, with something in it.
    disk::tmpfs(&dir.join("v"), 1 << 20);
    inspect(&target).expect("there is nothing in it to destroy");
    fs::create_dir(dir.join("v/lost+found")).expect("a directory can be made");
    inspect(&target).expect("every ext4 has this directory");
    fs::write(dir.join("v/lost+found/found"), "x").expect("a file can be made");
    let digest = refused_for(&target, "filesystem was ");
    // An admin may say that it is to be taken nevertheless.
    inspect(&Target { accepted: Some(digest), ..target.clone() }).expect("it is accepted");
    let other = Target { accepted: Some("0123456789abcdef".to_owned()), ..target.clone() };
    assert!(matches!(inspect(&other), Err(WipeError::IdentityChanged(_))));
    disk::umount(&dir.join("v"));
    inspect(&target).expect("the first one is seen again");
    // A subtree of the same filesystem.
    fs::create_dir_all(dir.join("v/sub/file")).expect("a directory can be made");
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
    unless_busy(|| inspect(&target)).expect("it is as it was seen");
    // The link leads to another disk.
    fs::remove_file(&link).expect("a link can be removed");
    second.link(&dir, "disk");
    assert!(matches!(unless_busy(|| inspect(&target)), Err(WipeError::IdentityChanged(_))));
    fs::remove_file(&link).expect("a link can be removed");
    first.link(&dir, "disk");
    let both = [first.link(&dir, "one"), second.link(&dir, "two")];
    let targets = [self::target(&dir, "one").await, self::target(&dir, "two").await];
    // Two links changed places: neither disk is taken for the other.
    fs::rename(&both[0], dir.join("aside")).expect("a link can be moved");
    fs::rename(&both[1], &both[0]).expect("a link can be moved");
    fs::rename(dir.join("aside"), &both[1]).expect("a link can be moved");
    for target in &targets {
        refused_for(target, "device number was 7:");
    }
    // Mounted, it is busy; free again, it is taken.
    first.format_ext4();
    first.mount_ext4(&scratch.path().join("mounted"));
    assert!(matches!(inspect(&target), Err(WipeError::Busy(_))));
    disk::umount(&scratch.path().join("mounted"));
    unless_busy(|| inspect(&target)).expect("it is free again");
}

/// Detaches the disk and attaches the file under the same number, as long as nobody
/// else gets the number first.
fn exchange(disk: LoopDisk, file: &Path) -> Option<LoopDisk> {
    let device = disk.device.clone();
    drop(disk);
    LoopDisk::attach_at(&device, file.to_owned())
}

#[tokio::test]
async fn another_disk_under_the_same_device_number_is_not_taken() {
    require_own_namespace();
    let scratch = Scratch::new("claim-number");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let other = LoopDisk::new(scratch.path(), 16 << 20);
    let mut shown = (false, false);
    // Somebody else may get the number first: then once more.
    for _ in 0..50 {
        let first = LoopDisk::new(scratch.path(), 16 << 20);
        let link = first.link(&dir, "disk");
        let target = target(&dir, "disk").await;
        unless_busy(|| inspect(&target)).expect("it is as it was seen");
        // The same file again is another attachment: what was done to it meanwhile?
        let file = first.backing.clone();
        if let Some(again) = exchange(first, &file) {
            refused_for(&target, "disk sequence number was ");
            shown.0 = true;
            if let Some(_other) = exchange(again, &other.backing) {
                refused_for(&target, "disk sequence number was ");
                shown.1 = true;
            }
        }
        fs::remove_file(&link).expect("a link can be removed");
        if shown == (true, true) {
            return;
        }
    }
    panic!("no device number could be had twice in a row: {shown:?}");
}

/// As `next_step` gives it for a PV that is fenced and on its way out.
fn fence() -> Fence {
    let pv = fenced_pv();
    match next_step(Some(&pv), Begun { uid: &pv.uid, claim: "" }, false) {
        Step::Wipe(fence) => fence,
        other => panic!("the PV is fenced: {other:?}"),
    }
}

#[tokio::test]
async fn a_claimed_disk_is_not_exchanged_under_the_claim() {
    require_own_namespace();
    let scratch = Scratch::new("claim-exchange");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let (first, other) = (LoopDisk::new(scratch.path(), 16 << 20), LoopDisk::new(scratch.path(), 16 << 20));
    first.link(&dir, "disk");
    let target = target(&dir, "disk").await;
    let claimed = unless_busy(|| claim(fence(), &target)).expect("it is as it was seen");
    // Between the look and the first byte the disk is pulled and another plugged in.
    let (device, file) = (first.device.clone(), first.backing.clone());
    assert!(exchange(first, &other.backing).is_none(), "the claim's open file keeps the number");
    assert!(disk::is_attached(&device, &file), "what the claim writes goes to the disk that was checked");
    assert!(matches!(inspect(&target), Err(WipeError::Busy(_))), "one claim at a time");
    drop(claimed);
}

/// The device of a filesystem that this machine runs on.
fn mounted_device() -> (PathBuf, String) {
    let mounts = MountTable::read().expect("the mount table can be read");
    let mut mounts: Vec<_> = mounts.iter().map(|(_, mount)| mount.clone()).collect();
    mounts.sort_by_key(|mount| mount.mount_point.len());
    let device = |mount: &Mount| {
        let number = DeviceNumber::try_from(mount.device.clone()).ok().filter(|number| number.major != 0)?;
        let name = Sysfs::host().block(number).ok()??.name();
        Some((Path::new("/dev").join(name), String::from_utf8_lossy(&mount.mount_point).into_owned()))
    };
    mounts.iter().find_map(device).expect("this machine runs on a disk")
}

#[tokio::test]
async fn a_link_to_the_disk_of_the_machine_itself_is_not_taken() {
    require_own_namespace();
    let scratch = Scratch::new("claim-root");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let volume = LoopDisk::new(scratch.path(), 16 << 20);
    let link = volume.link(&dir, "disk");
    let meant = target(&dir, "disk").await;
    let (device, mounted_at) = mounted_device();
    fs::remove_file(&link).expect("a link can be removed");
    symlink(&device, &link).expect("a link can be made");
    refused_for(&meant, "device number was ");
    // Even if that is what was seen, or what an admin has accepted. Only ever inspected.
    let seen = target(&dir, "disk").await;
    let digest = seen.identity.digest();
    for target in [seen, Target { accepted: Some(digest), ..meant }] {
        match inspect(&target) {
            Err(WipeError::Busy(text)) => assert!(text.ends_with(&format!("mounted at {mounted_at}")), "{text}"),
            // A sandbox may keep even root from opening its disk.
            Err(WipeError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {}
            other => panic!("{} is not refused: {other:?}", device.display()),
        }
    }
}
