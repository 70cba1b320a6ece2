//! Another disk turns up where a Released volume was: nothing of either is touched, and
//! the verdict and an Event say by what they differ.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ResourceExt;
use rustix::fs::inotify;

use crate::common::{SOON, start, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, shared};
use crate::wipe_scene::{bytes_written, first_not_zero};

const SIZE: u64 = 4 << 20;

/// A node with an agent that offers raw disks.
struct Scene {
    node: TestNode,
    class: String,
    disks: PathBuf,
    agent: Agent,
}

impl Scene {
    async fn new(tag: &str) -> Self {
        let node = TestNode::new(shared(), tag).await;
        let class = node.class("raw", "Delete").await;
        let disks = node.discovery_dir("disks");
        let agent = start(&node, &[(&class, &disks, "")]);
        Self { node, class, disks, agent }
    }

    /// Waits for the volume's PV, claims it, and holds its wipe.
    async fn claimed(&self, entry: &str) -> (PersistentVolume, PersistentVolumeClaim) {
        let pv = self.node.wait_pv(&self.disks.join(entry), |pv| phase(pv) == "Available", SOON).await;
        self.node.hold(&pv.name_any(), true).await;
        let claim = self.node.bind(&pv.name_any()).await;
        (pv, claim)
    }

    async fn released(&self, entry: &str, claim: &PersistentVolumeClaim) {
        self.node.release(claim).await;
        self.node.wait_pv(&self.disks.join(entry), |pv| phase(pv) == "Released", SOON).await;
    }

    /// Lets go of the wipe, and makes sure that it is refused for that key.
    async fn is_refused(&self, entry: &str, pv: &PersistentVolume, key: &str) {
        self.node.hold(&pv.name_any(), false).await;
        let sentence = wait_verdict(&self.agent, &self.class, entry, "IdentityChanged").await;
        assert!(sentence.contains(key), "{sentence}");
        let event = self.node.wait_event_on(pv, "IdentityChanged", SOON).await;
        let text = event.message.unwrap_or_default();
        assert!(text.contains(key), "{text}");
        // What happens later is dealt with, and this is not.
        let later = self.disks.join(format!("later-{entry}"));
        disk::tmpfs(&later, 1 << 20);
        self.node.wait_pv(&later, |pv| phase(pv) == "Available", SOON).await;
        wait_verdict(&self.agent, &self.class, entry, "IdentityChanged").await;
        let now = self.node.wait_pv(&self.disks.join(entry), |_| true, SOON).await;
        assert_eq!((phase(&now), now.uid(), now.finalizers()), ("Released", pv.uid(), pv.finalizers()));
        assert_eq!(now.metadata.deletion_timestamp, None, "it is not even fenced");
        let wipes = self.agent.logs().into_iter().filter(|line| line.contains("Wipe begins")).count();
        assert_eq!(wipes, 0);
    }

    async fn is_offered_anew(&self, entry: &str, pv: &PersistentVolume) {
        let is_new = |now: &PersistentVolume| phase(now) == "Available" && now.uid() != pv.uid();
        self.node.wait_pv(&self.disks.join(entry), is_new, SOON).await;
    }

    async fn end(self) {
        drop(self.agent);
        self.node.clean_up().await;
    }
}

/// A disk that is full of data, which begins with the letter.
fn full(node: &TestNode, letter: u8) -> LoopDisk {
    let disk = LoopDisk::new(node.dir(), SIZE);
    fill(&disk, letter);
    disk
}

fn fill(disk: &LoopDisk, letter: u8) {
    disk.write_at(0, &content(letter));
}

fn content(letter: u8) -> Vec<u8> {
    [&[letter; 16], b"TENANT-SECRET...".as_slice()].concat().repeat(usize::try_from(SIZE / 32).expect("it fits"))
}

fn is_untouched(backing: &Path, letter: u8) -> bool {
    fs::read(backing).expect("it can be read") == content(letter)
}

/// Puts a link to another place where one is, in one step.
fn relink(link: &Path, to: &Path) {
    let new = link.with_extension("new");
    symlink(to, &new).expect("a link can be made");
    fs::rename(&new, link).expect("a link can be replaced");
}

#[tokio::test]
async fn two_disks_that_are_swapped_behind_their_links_are_not_wiped() {
    let scene = Scene::new("swap").await;
    let (one, two) = (LoopDisk::new(scene.node.dir(), SIZE), LoopDisk::new(scene.node.dir(), SIZE));
    let links = [one.link(&scene.disks, "one"), two.link(&scene.disks, "two")];
    let (first, claim_of_first) = scene.claimed("one").await;
    let (second, claim_of_second) = scene.claimed("two").await;
    fill(&one, b'1');
    fill(&two, b'2');
    scene.released("one", &claim_of_first).await;
    scene.released("two", &claim_of_second).await;
    relink(&links[0], &two.device);
    relink(&links[1], &one.device);
    scene.is_refused("one", &first, "device number was").await;
    scene.is_refused("two", &second, "device number was").await;
    assert!(is_untouched(&one.backing, b'1') && is_untouched(&two.backing, b'2'));
    // As they were, each is wiped.
    relink(&links[0], &one.device);
    relink(&links[1], &two.device);
    scene.is_offered_anew("one", &first).await;
    scene.is_offered_anew("two", &second).await;
    assert_eq!((first_not_zero(&one.backing), first_not_zero(&two.backing)), (None, None));
    scene.end().await;
}

#[tokio::test]
async fn another_disk_under_the_same_number_is_not_wiped() {
    let scene = Scene::new("number").await;
    let disk = LoopDisk::new(scene.node.dir(), SIZE);
    let (device, backing) = (disk.device.clone(), disk.backing.clone());
    disk.link(&scene.disks, "disk");
    let (pv, claim) = scene.claimed("disk").await;
    fill(&disk, b'1');
    scene.released("disk", &claim).await;
    let file = full(&scene.node, b'2').backing.clone();
    let other = in_the_place_of(disk, &file);
    assert_eq!(other.device, device);
    scene.is_refused("disk", &pv, "disk sequence number was").await;
    assert!(is_untouched(&backing, b'1') && is_untouched(&file, b'2'));
    scene.end().await;
}

/// Detaches a disk and puts another one on its number. Another test may have taken that
/// number meanwhile: then it is waited for.
fn in_the_place_of(disk: LoopDisk, file: &Path) -> LoopDisk {
    let device = disk.device.clone();
    drop(disk);
    // As long as that test may take.
    let deadline = std::time::Instant::now() + 5 * SOON;
    loop {
        if let Some(other) = LoopDisk::attach_at(&device, file.to_owned()) {
            return other;
        }
        assert!(std::time::Instant::now() < deadline, "{} is not free again", device.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_link_that_was_turned_to_a_disk_of_the_system_opens_it_for_reading_at_most() {
    let scene = Scene::new("system").await;
    let disk = LoopDisk::new(scene.node.dir(), SIZE);
    let link = disk.link(&scene.disks, "disk");
    // Stands for the root disk: mounted, of the same size, and none of ours.
    let (system, point) = (LoopDisk::new(scene.node.dir(), SIZE), scene.node.dir().join("system"));
    system.format_ext4();
    system.mount_ext4(&point);
    fs::write(point.join("passwd"), "root").expect("a file can be written");
    disk::umount(&point);
    // One that is in use, and one that nothing but its identity protects.
    let idle = full(&scene.node, b'3');
    let (pv, claim) = scene.claimed("disk").await;
    fill(&disk, b'1');
    scene.released("disk", &claim).await;

    nix::mount::mount(Some(&system.device), &point, Some("ext4"), nix::mount::MsFlags::MS_RDONLY, None::<&str>)
        .expect("it can be mounted");
    for (other, number) in [(&system, 0), (&idle, 1)] {
        let (content, written) = (fs::read(&other.backing).expect("it can be read"), bytes_written(&other.device));
        let opened = Opened::of(&other.device);
        relink(&link, &other.device);
        if number == 0 {
            scene.is_refused("disk", &pv, "device number was").await;
        } else {
            wait_verdict(&scene.agent, &scene.class, "disk", "IdentityChanged").await;
            let later = scene.disks.join("last");
            disk::tmpfs(&later, 1 << 20);
            scene.node.wait_pv(&later, |pv| phase(pv) == "Available", SOON).await;
        }
        assert!(!opened.for_writing(), "{} was opened for writing", other.device.display());
        assert_eq!(bytes_written(&other.device), written);
        assert!(fs::read(&other.backing).expect("it can be read") == content);
    }
    assert!(is_untouched(&disk.backing, b'1'));
    disk::umount(&point);
    relink(&link, &disk.device);
    scene.is_offered_anew("disk", &pv).await;
    assert_eq!(first_not_zero(&disk.backing), None);
    scene.end().await;
}

/// Hears when a device's node is closed by somebody who had it open for writing.
struct Opened(std::os::fd::OwnedFd);

impl Opened {
    fn of(device: &Path) -> Self {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let fd = fd.expect("an inotify instance can be had");
        inotify::add_watch(&fd, device, inotify::WatchFlags::CLOSE_WRITE).expect("a node can be watched");
        Self(fd)
    }

    fn for_writing(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&self.0, &mut buffer).next().is_ok()
    }
}

#[tokio::test]
async fn another_filesystem_at_the_same_mount_point_is_not_emptied() {
    let scene = Scene::new("remount").await;
    let volume = scene.disks.join("v");
    let (one, two) = (LoopDisk::new(scene.node.dir(), 16 << 20), LoopDisk::new(scene.node.dir(), 16 << 20));
    for disk in [&one, &two] {
        disk.format_ext4();
    }
    one.mount_ext4(&volume);
    let (pv, claim) = scene.claimed("v").await;
    fs::write(volume.join("one"), "TENANT-SECRET").expect("a file can be written");
    scene.released("v", &claim).await;
    disk::umount(&volume);
    two.mount_ext4(&volume);
    fs::write(volume.join("two"), "another's").expect("a file can be written");
    scene.is_refused("v", &pv, "UUID").await;
    assert_eq!(fs::read(volume.join("two")).expect("it is there"), b"another's");
    disk::umount(&volume);
    one.mount_ext4(&volume);
    scene.is_offered_anew("v", &pv).await;
    assert_eq!(fs::read_dir(&volume).expect("it can be read").count(), 1, "lost+found");
    disk::umount(&volume);
    two.mount_ext4(&volume);
    assert_eq!(fs::read(volume.join("two")).expect("it is there"), b"another's");
    scene.end().await;
}
