//! The security profile `filesystem`: with a few capabilities and nothing else that a
//! privileged container has, the agent does all that volumes with filesystems need; and of
//! these, none can go.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::ResourceExt;
use mooring::deleter::root::read;
use mooring::node::ioctl;
use rustix::fs::{IFlags, XattrFlags};
use rustix::thread::CapabilitySet;

use crate::common::{SOON, wait_saying};
use crate::harness::config_dir::storage_class_map;
use crate::harness::confine::FILESYSTEM;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, rbac, shared};
use crate::wipe_tree::xfs;

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the directory can be opened").into()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("root may");
}

fn owner(path: &Path, owner: u32) {
    chown(path, Some(owner), Some(owner)).expect("root may give away");
}

fn flag(path: &Path, flag: IFlags) {
    let file = open(path);
    let flags = rustix::fs::ioctl_getflags(&file).expect("the filesystem has flags");
    rustix::fs::ioctl_setflags(&file, flags | flag).expect("root may");
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("the filesystem has such attributes");
}

fn setfacl(path: &Path, arguments: &[&str]) {
    let status = Command::new("setfacl").args(arguments).arg(path).status();
    assert!(status.expect("setfacl can be run").success(), "{arguments:?}");
}

/// A file capability, as `setcap` writes it: revision 2, no bits.
const FILE_CAPABILITY: [u8; 20] = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn confined(node: &TestNode, class: &str, disks: &Path, capabilities: CapabilitySet) -> Agent {
    let map = storage_class_map(&[(class, disks, "")]);
    let config = [("storageClassMap", map.as_str())];
    let options = AgentOptions { config: &config, args: &["--v=4"], ..AgentOptions::default() };
    Agent::start(node, AgentOptions { confined: Some(capabilities), ..options })
}

async fn available(node: &TestNode, path: &Path) -> PersistentVolume {
    node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await
}

async fn offered_anew(node: &TestNode, path: &Path, before: &PersistentVolume) {
    node.wait_pv(path, |pv| phase(pv) == "Available" && pv.uid() != before.uid(), SOON).await;
}

/// What tenants leave, whoever their processes run as.
fn leave_files(volume: &Path) {
    let secret = volume.join("closed/sticky");
    fs::create_dir_all(&secret).expect("a directory can be made");
    for (number, name) in ["file", "append", "immutable"].iter().enumerate() {
        let file = secret.join(name);
        fs::write(&file, "a tenant's").expect("a file can be written");
        owner(&file, 3000 + u32::try_from(number).expect("small"));
        mode(&file, 0);
    }
    flag(&secret.join("append"), IFlags::APPEND);
    flag(&secret.join("immutable"), IFlags::IMMUTABLE);
    owner(&secret, 4000);
    mode(&secret, 0o1000);
    owner(&volume.join("closed"), 4001);
    mode(&volume.join("closed"), 0);
}

#[tokio::test]
async fn a_volume_is_served_from_first_to_last_without_privileges() {
    let node = TestNode::new(shared(), "profile").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let agent = confined(&node, &class, &disks, FILESYSTEM);
    for what in ["state_dir", "capabilities"] {
        agent.wait_metric(&format!("mooring_limited{{what=\"{what}\"}}"), |value| value < 0.5, SOON).await;
    }
    // Mounted after the agent's start, with all that an administrator may have prepared.
    let (volume, staged) = (disks.join("v"), node.root().join("staged"));
    let _disk = xfs(node.dir(), &staged);
    ioctl::set_project(open(&staged), 42).expect("XFS has projects");
    owner(&staged, 1000);
    setfacl(&staged, &["-m", "u:3000:rwx,d:u:3000:rwx"]);
    xattr(&staged, "user.note", b"kept");
    mode(&staged, 0o2770);
    flag(&staged, IFlags::PROJECT_INHERIT);
    let before = read(&open(&staged)).expect("it can be read");
    disk::bind_mount(&staged, &volume);
    disk::umount(&staged);
    let pv = available(&node, &volume).await;
    let claim = node.bind(&pv.name_any()).await;
    leave_files(&volume);
    setfacl(&volume, &["-b"]);
    xattr(&volume, "user.note", b"spoilt");
    xattr(&volume, "security.capability", &FILE_CAPABILITY);
    ioctl::set_project(open(&volume), 43).expect("XFS has projects");
    owner(&volume, 5);
    mode(&volume, 0o1000);
    flag(&volume, IFlags::IMMUTABLE);
    node.release(&claim).await;
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(before.difference(&read(&open(&volume)).expect("it can be read")), None);
    assert_eq!(fs::read_dir(&volume).expect("it can be read").count(), 0);
    assert_eq!(agent.metric("mooring_wipes_total{outcome=\"success\"}").await, Some(1.0));
    // Nothing else of it was refused either.
    let refused = |line: &&String| line.contains("not permitted") || line.contains("ermission denied");
    assert_eq!(agent.logs().iter().find(refused), None);
    node.clean_up().await;
}

#[tokio::test]
async fn subvolumes_that_a_tenant_made_are_removed_without_privileges() {
    let node = TestNode::new(shared(), "subvolume").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let (volume, disk) = (disks.join("v"), LoopDisk::new(node.dir(), 256 << 20));
    disk.format("btrfs");
    fs::create_dir(&volume).expect("a directory can be made");
    disk.mount("btrfs", &volume);
    let _agent = confined(&node, &class, &disks, FILESYSTEM);
    let pv = available(&node, &volume).await;
    let claim = node.bind(&pv.name_any()).await;
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(volume.join("of-a-tenant")).status();
    assert!(made.expect("btrfs can be run").success());
    fs::write(volume.join("of-a-tenant/data"), "a tenant's").expect("a file can be written");
    node.release(&claim).await;
    offered_anew(&node, &volume, &pv).await;
    assert_eq!(fs::read_dir(&volume).expect("it can be read").count(), 0);
    node.clean_up().await;
}

#[tokio::test]
async fn a_device_is_not_offered_where_it_can_t_be_opened_and_the_verdict_says_so() {
    let node = TestNode::new(shared(), "no-dev").await;
    let class = node.class("raw", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), 16 << 20);
    disk.link(&disks, "disk");
    let agent = confined(&node, &class, &disks, FILESYSTEM);
    wait_saying(&agent, &class, "disk", "Unsupported", "/dev").await;
    assert!(node.pvs().await.is_empty());
    node.clean_up().await;
}

/// A capability, its name, and what a tenant does to a volume that takes it to undo.
type Use = (CapabilitySet, &'static str, fn(&Path));

/// What each capability is for.
const USES: [Use; 6] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN", |volume| owner(volume, 5)),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE", |volume| {
        let dir = volume.join("closed");
        fs::create_dir(&dir).expect("a directory can be made");
        fs::write(dir.join("file"), "a tenant's").expect("a file can be written");
        owner(&dir, 5);
        mode(&dir, 0);
    }),
    (CapabilitySet::FOWNER, "CAP_FOWNER", |volume| {
        let dir = volume.join("sticky");
        fs::create_dir(&dir).expect("a directory can be made");
        fs::write(dir.join("file"), "a tenant's").expect("a file can be written");
        owner(&dir.join("file"), 6);
        owner(&dir, 5);
        mode(&dir, 0o1777);
    }),
    (CapabilitySet::FSETID, "CAP_FSETID", |volume| mode(volume, 0o777)),
    (CapabilitySet::LINUX_IMMUTABLE, "CAP_LINUX_IMMUTABLE", |volume| {
        fs::write(volume.join("file"), "a tenant's").expect("a file can be written");
        flag(&volume.join("file"), IFlags::IMMUTABLE);
    }),
    (CapabilitySet::SETFCAP, "CAP_SETFCAP", |volume| xattr(volume, "security.capability", &FILE_CAPABILITY)),
];

#[tokio::test]
async fn without_one_of_its_capabilities_a_wipe_waits_and_says_for_which() {
    assert_eq!(USES.iter().fold(CapabilitySet::empty(), |all, (one, ..)| all | *one), FILESYSTEM);
    let each = USES.into_iter().enumerate().map(|(number, (capability, name, spoil))| async move {
        let node = TestNode::new(shared(), &format!("lacks-{number}")).await;
        let class = node.class("fast", "Delete").await;
        let disks = node.discovery_dir("disks");
        let volume = disks.join("v");
        let _disk = disk::ext4(&volume, 32 << 20);
        // A group that the agent is not in.
        chown(&volume, None, Some(2000)).expect("root may give away");
        mode(&volume, 0o2777);
        let agent = confined(&node, &class, &disks, FILESYSTEM - capability);
        let pv = available(&node, &volume).await;
        let claim = node.bind(&pv.name_any()).await;
        spoil(&volume);
        node.release(&claim).await;
        agent.wait_metric("mooring_limited{what=\"capabilities\"}", |value| value > 0.5, SOON).await;
        wait_saying(&agent, &class, "v", "Refused", name).await;
        let now = node.pvs().await;
        assert!(now.iter().all(|now| now.uid() == pv.uid()), "{name}: it is not offered half wiped");
        assert!(now[0].finalizers().iter().any(|name| name == "mooring.dev/wipe"), "{name}");
        drop(agent);
        let _agent = confined(&node, &class, &disks, FILESYSTEM);
        offered_anew(&node, &volume, &pv).await;
        node.clean_up().await;
    });
    futures::future::join_all(each).await;
}

#[test]
fn the_profiles_of_the_documents_are_those_that_were_tested() {
    let page =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/rights.md")).expect("it is there");
    let names: Vec<&str> = USES.iter().map(|(_, name, _)| name.strip_prefix("CAP_").expect("it is one")).collect();
    assert!(page.contains(&format!("add: [{}]", names.join(", "))), "{names:?}");
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
    let daemonset: DaemonSet = serde_saphyr::from_str(&rbac::manifest("daemonset.yaml")).expect("it is one");
    let pod = daemonset.spec.and_then(|spec| spec.template.spec).expect("it has pods");
    let context = pod.containers[0].security_context.clone().expect("it has one");
    assert_eq!((context.privileged, context.read_only_root_filesystem), (Some(true), Some(true)));
}
