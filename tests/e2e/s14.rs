//! How a local PV gets into a pod and out of it again, step by step, and what the agent does
//! meanwhile. docs/how-a-local-pv-is-mounted.md tells the same to people.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, ListParams, ResourceExt};
use serde_json::json;

use crate::harness::disk::{self, LoopDisk};
use crate::harness::pods::PodSpec;
use crate::harness::scratch::mounts_below;
use crate::harness::site::{SOON, container_id};
use crate::harness::volumes::phase;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[
    ("s14-dir", "{}"),
    ("s14-device", "{}"),
    ("s14-used", "{}"),
    ("s14-raw", r#"{"volumeMode": "Block"}"#),
    ("s14-late", "{}"),
    ("s14-cut", "{}"),
    ("s14-cut-raw", r#"{"volumeMode": "Block"}"#),
];

const KUBELET: &str = "/var/lib/kubelet";
const PLUGIN: &str = "kubernetes.io~local-volume";
const SIZE: u64 = 64 << 20;
const SECRET: &str = "the old tenant's secret";
const NODE: usize = 0;

#[tokio::test]
async fn s14_a_directory_is_bind_mounted_for_each_pod_and_not_wiped_before_it_is_unmounted() {
    let scene = stage::shared("s14-dir").await;
    let node = scene.node(NODE);
    let (path, disk) = node.mount_ext4("s14-dir", "disk", SIZE);
    let inner = path.join("inner");
    node.on_host(|| {
        fs::write(path.join("before"), "").expect("root can write");
        disk::tmpfs(&inner, SIZE);
        fs::write(inner.join("file"), "").expect("root can write");
    });
    let pv = scene.wait_available("s14-dir", NODE, "disk").await;

    // Nothing is bound before a pod wants it.
    scene.claim("s14-dir", "s14-dir", "1Mi");
    scene.wait_event("s14-dir", "WaitForFirstConsumer", "").await;
    assert_eq!(claim_phase(&scene, "s14-dir").await, "Pending");
    assert_eq!(phase(&scene.pvs().get(&pv.name_any()).await.expect("it is there")), "Available");
    let first = scene.run(&PodSpec::new("s14-first").claim("s14-dir", "/data").group(1234)).await;
    assert_bound(&scene, "s14-dir", &pv).await;
    assert_eq!(first.spec.as_ref().and_then(|spec| spec.node_name.as_deref()), Some(node.name()));
    assert_not_attached(&scene, &pv).await;

    let bind = pod_dir(&first).join("volumes").join(PLUGIN).join(pv.name_any());
    node.on_host(|| {
        assert_mounted(&bind, "it is mounted, and nothing that was mounted in it");
        assert_eq!(place(&bind), place(&path), "it is the same directory");
    });
    scene.sh("s14-first", &format!("echo \"{SECRET}\" > /data/file; sync"));
    assert_eq!(scene.sh("s14-first", "ls /data/inner"), "", "it is what lies beneath");
    assert_eq!(scene.sh("s14-first", "stat -c %g /data/before").trim(), "1234", "fsGroup is the files' group");
    assert!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("the host sees it").contains(SECRET));

    // A second pod of the node has a mount of its own, and changes no owner.
    let second = scene.run(&PodSpec::new("s14-second").claim("s14-dir", "/data").group(4321)).await;
    let other_bind = pod_dir(&second).join("volumes").join(PLUGIN).join(pv.name_any());
    assert_eq!(node.on_host(|| place(&other_bind)), node.on_host(|| place(&path)), "it is the same directory");
    assert!(scene.sh("s14-second", "cat /data/file").contains(SECRET));
    assert_eq!(scene.sh("s14-second", "stat -c %g /data/before").trim(), "1234", "its fsGroup is not");
    scene.wait_event("s14-second", "AlreadyMountedVolume", "fsGroup").await;
    scene.delete_pod("s14-second").await;
    let is_removed = async || (!node.on_host(|| other_bind.exists())).then_some(());
    scene.until("its mount is gone with its mount point", SOON, is_removed).await;
    node.on_host(|| assert_mounted(&bind, "the first pod's stays"));

    // A pod that nobody has scheduled gets no volume of another node.
    let mut elsewhere = PodSpec::new("s14-elsewhere").claim("s14-dir", "/data");
    elsewhere.value()["spec"]["nodeName"] = json!(scene.node(1 - NODE).name());
    scene.start(&elsewhere);
    scene.wait_event("s14-elsewhere", "FailedMount", "NodeAffinity").await;
    scene.delete_pod("s14-elsewhere").await;

    // Somebody's shell is in the pod's mount, so the kubelet can't unmount it.
    node.umount(&inner);
    let open = node.on_host(|| fs::File::open(&bind).expect("a directory can be opened"));
    delete_claim_before_pod(&scene, "s14-dir", "s14-first", &pv).await;
    assert_busy(&scene, "s14-dir", "disk", &bind.display().to_string()).await;
    scene.wait_event(&pv.name_any(), "Busy", PLUGIN).await;
    assert_eq!(phase(&scene.pvs().get(&pv.name_any()).await.expect("it is there")), "Released");
    node.on_host(|| {
        assert_eq!(place(&bind), place(&path), "it is still mounted");
        assert!(fs::read_to_string(path.join("file")).expect("nothing is wiped").contains(SECRET));
    });

    drop(open);
    scene.wait_anew("s14-dir", NODE, "disk", &pv).await;
    node.on_host(|| {
        assert!(mounts_below(&bind).is_empty(), "it was unmounted");
        assert!(!path.join("file").exists(), "it is wiped");
    });
    drop(disk);
}

#[tokio::test]
async fn s14_a_device_is_mounted_once_for_all_pods_and_unmounted_after_the_last() {
    let scene = stage::shared("s14-device").await;
    let node = scene.node(NODE);
    let (_, disk) = node.link_disk("s14-device", "disk", SIZE);
    let pv = scene.wait_available("s14-device", NODE, "disk").await;
    scene.claim("s14-device", "s14-device", "1Mi");
    let first = scene.run(&PodSpec::new("s14-first").claim("s14-device", "/data")).await;
    let second = scene.run(&PodSpec::new("s14-second").claim("s14-device", "/data")).await;
    assert_bound(&scene, "s14-device", &pv).await;
    assert_not_attached(&scene, &pv).await;

    let mounted = Path::new(KUBELET).join("plugins/kubernetes.io/local-volume/mounts").join(pv.name_any());
    node.on_host(|| {
        assert_mounted(&mounted, "the device is mounted");
        assert_eq!(fs::metadata(&mounted).expect("it is there").dev(), number(&disk.device), "it is the device");
        for pod in [&first, &second] {
            let bind = pod_dir(pod).join("volumes").join(PLUGIN).join(pv.name_any());
            assert_mounted(&bind, "it is mounted for the pod");
            assert_eq!(place(&bind), place(&mounted), "it is the device's root");
        }
    });
    let header = node.exec_on_host(&["dumpe2fs", "-h", &disk.device.display().to_string()]);
    assert!(header.lines().any(|line| line.starts_with("Reserved block count:") && line.ends_with(" 0")), "{header}");
    scene.sh("s14-first", &format!("echo \"{SECRET}\" > /data/file; sync"));
    assert!(scene.sh("s14-second", "cat /data/file").contains(SECRET));
    scene.delete_pod("s14-second").await;

    node.on_host(|| assert_mounted(&mounted, "it is as long as a pod has it"));

    delete_claim_before_pod(&scene, "s14-device", "s14-first", &pv).await;
    scene.wait_anew("s14-device", NODE, "disk", &pv).await;
    // The kubelet unmounts it before, and removes the directory by and by.
    let is_removed = async || (!node.on_host(|| mounted.exists())).then_some(());
    scene.until("the mount point is gone", SOON, is_removed).await;
    assert!(!node.on_host(|| disk.backing_contains(SECRET.as_bytes())), "it is wiped");
}

#[tokio::test]
async fn s14_the_kubelet_formats_no_device_that_is_not_blank() {
    let scene = stage::shared("s14-used").await;
    let node = scene.node(NODE);
    let disk = node.on_host(|| LoopDisk::new(node.dir(), SIZE));
    node.exec_on_host(&["mkswap", &disk.device.display().to_string()]);
    let before = node.on_host(|| disk.read_all());
    let dir = node.discovery("s14-used");
    node.on_host(|| disk.link(&dir, "disk"));
    let pv = scene.wait_available("s14-used", NODE, "disk").await;
    scene.claim("data", "s14-used", "1Mi");
    scene.start(&PodSpec::new("s14-used").claim("data", "/data"));
    scene.wait_event(&pv.name_any(), "FailedMountOnFilesystemMismatch", "").await;
    assert!(node.on_host(|| disk.read_all()) == before, "nothing is written");
    scene.delete_pod("s14-used").await;
    scene.delete_claim("data").await;
    scene.wait_anew("s14-used", NODE, "disk", &pv).await;
    let blocks = node.on_host(|| disk.read_all());
    assert!(blocks.chunks(4096).all(|block| block == [0; 4096]), "once it is wiped, the kubelet would format it");
}

#[tokio::test]
async fn s14_a_raw_device_is_kept_by_a_loop_device_as_long_as_its_pod_lives() {
    let scene = stage::shared("s14-raw").await;
    let node = scene.node(NODE);
    let (_, disk) = node.link_disk("s14-raw", "disk", SIZE);
    let pv = scene.wait_available("s14-raw", NODE, "disk").await;
    scene.claim_device("s14-raw", "s14-raw", "1Mi");
    let pod = scene.run(&PodSpec::new("s14-raw").device("s14-raw", "/dev/raw")).await;
    assert_bound(&scene, "s14-raw", &pv).await;
    assert_not_attached(&scene, &pv).await;

    let uid = pod.uid().expect("a pod has a uid");
    let bind = Path::new(KUBELET).join("plugins").join(PLUGIN).join("volumeDevices").join(pv.name_any()).join(&uid);
    let link = pod_dir(&pod).join("volumeDevices").join(PLUGIN).join(pv.name_any());
    let own = number(&disk.device);
    let over = node.on_host(|| {
        assert_mounted(&bind, "the node is bind-mounted");
        assert_eq!(number(&bind), own, "it is the disk's");
        assert_eq!(fs::read_link(&link).expect("there is a link"), disk.device);
        loop_over(&bind).expect("there is a loop device over it")
    });
    let (major, minor) = (nix::sys::stat::major(own), nix::sys::stat::minor(own));
    let in_pod = scene.sh("s14-raw", "stat -c %t:%T /dev/raw");
    assert_eq!(in_pod.trim(), format!("{major:x}:{minor:x}"), "the pod has the disk and not {}", over.display());
    scene.sh("s14-raw", &format!("echo \"{SECRET}\" | dd of=/dev/raw bs=512 conv=fsync"));
    let exclusive = || OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&disk.device).map(drop);
    node.on_host(exclusive).expect("the kernel would give the disk to somebody else");

    delete_claim_before_pod(&scene, "s14-raw", "s14-raw", &pv).await;
    scene.wait_anew("s14-raw", NODE, "disk", &pv).await;
    let is_tidy =
        async || node.on_host(|| !bind.exists() && fs::read_link(&link).is_err() && loop_over(&bind).is_none()).then_some(());
    scene.until("the kubelet has taken away what it made", SOON, is_tidy).await;
    assert!(!node.on_host(|| disk.backing_contains(SECRET.as_bytes())), "it is wiped");
}

#[tokio::test]
async fn s14_where_nothing_is_mounted_a_pod_gets_the_empty_directory_and_the_agent_says_so() {
    let scene = stage::shared("s14-late").await;
    let node = scene.node(NODE);
    let (path, disk) = node.mount_ext4("s14-late", "disk", SIZE);
    let pv = scene.wait_available("s14-late", NODE, "disk").await;
    scene.claim("s14-late", "s14-late", "1Mi");
    scene.run(&PodSpec::new("before").claim("s14-late", "/data")).await;
    scene.sh("before", "echo on the disk > /data/file; sync");
    scene.delete_pod("before").await;

    node.umount(&path);
    for about in [pv.name_any(), "s14-late".to_owned()] {
        scene.wait_event(&about, "NotAMountPoint", "").await;
    }
    scene.run(&PodSpec::new("meanwhile").claim("s14-late", "/data")).await;
    assert_eq!(scene.sh("meanwhile", "ls /data"), "", "it gets the directory beneath without complaint");
    scene.sh("meanwhile", "echo beneath > /data/file");
    node.on_host(|| disk.mount_ext4(&path));
    assert_eq!(scene.sh("meanwhile", "cat /data/file").trim(), "beneath", "it keeps what it was started with");
    assert_eq!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("it is there").trim(), "on the disk");
    scene.delete_pod("meanwhile").await;
    // What is mounted on a shared mount is mounted on its copies as well, and unmounted with them.
    let left = node.on_host(|| mounts_below(&path));
    assert!(left.is_empty(), "the kubelet has taken the late mount away with the pod's: {left:?}");
    scene.wait_verdict(NODE, "s14-late", "disk", "NotAMountPoint").await;

    node.on_host(|| disk.mount_ext4(&path));
    scene.wait_verdict(NODE, "s14-late", "disk", "Published").await;
    scene.run(&PodSpec::new("after").claim("s14-late", "/data")).await;
    assert_eq!(scene.sh("after", "cat /data/file").trim(), "on the disk");
    let (_, now) = scene.wait_bound("s14-late").await;
    assert_eq!(now.uid(), pv.uid(), "it is the same PV");
    scene.delete_pod("after").await;
}

#[tokio::test]
async fn s14_what_the_containers_of_a_node_that_is_cut_off_still_have_is_not_wiped() {
    // The node's kubelet is stopped.
    let scene = stage::alone("s14-cut").await;
    let node = scene.node(NODE);
    let (path, mounted_disk) = node.mount_ext4("s14-cut", "directory", SIZE);
    let (_, disk) = node.link_disk("s14-cut", "device", SIZE);
    let (_, raw) = node.link_disk("s14-cut-raw", "raw", SIZE);
    let mut pvs = Vec::new();
    for (class, entry) in [("s14-cut", "directory"), ("s14-cut", "device"), ("s14-cut-raw", "raw")] {
        let pv = scene.wait_available(class, NODE, entry).await;
        let mode = pv.spec.as_ref().and_then(|spec| spec.volume_mode.clone());
        let wanted = json!({ "volumeName": pv.name_any(), "volumeMode": mode });
        scene.claim_with(entry, class, "1Mi", &wanted);
        pvs.push((class, entry, pv));
    }
    let files = PodSpec::new("files").claim("directory", "/directory").claim("device", "/device");
    scene.start(&files.device("raw", "/dev/raw"));
    let pod = scene.wait_running("files").await;
    let script = format!("for f in /directory/file /device/file; do echo \"{SECRET}\" > $f; done; sync");
    scene.sh("files", &script);
    scene.sh("files", &format!("echo \"{SECRET}\" | dd of=/dev/raw bs=512 conv=fsync"));

    scene.stop_kubelet(NODE);
    scene.kubectl(&["delete", "pod", "files", "--force", "--grace-period=0"]);
    for (_, entry, _) in &pvs {
        scene.delete_claim(entry).await;
    }
    let global = Path::new(KUBELET).join("plugins/kubernetes.io/local-volume/mounts").join(pvs[1].2.name_any());
    let over = format!("volumeDevices/{}/{}", pvs[2].2.name_any(), pod.uid().expect("a pod has a uid"));
    let over = Path::new(KUBELET).join("plugins").join(PLUGIN).join(over);
    let over = node.on_host(|| loop_over(&over)).expect("there is a loop device over it");
    let users = [pod_dir(&pod).join("volumes").join(PLUGIN), global, over];
    for ((class, entry, pv), user) in pvs.iter().zip(users) {
        scene.wait_phase(&pv.name_any(), "Released").await;
        assert_busy(&scene, class, entry, &user.display().to_string()).await;
    }
    node.container_pid(container_id(&pod).expect("it ran"));
    node.on_host(|| {
        assert!(fs::read_to_string(path.join("file")).expect("nothing is wiped").contains(SECRET));
        assert!(disk.backing_contains(SECRET.as_bytes()), "nothing is wiped");
        assert!(raw.read_all().starts_with(SECRET.as_bytes()), "nothing is wiped");
    });

    scene.start_kubelet(NODE).await;
    for (class, entry, pv) in &pvs {
        scene.wait_anew(class, NODE, entry, pv).await;
    }
    node.on_host(|| {
        assert!(!path.join("file").exists(), "it is wiped");
        assert!(!disk.backing_contains(SECRET.as_bytes()), "it is wiped");
        assert!(!raw.backing_contains(SECRET.as_bytes()), "it is wiped");
    });
    drop(mounted_disk);
}

trait Group {
    fn group(self, id: u32) -> Self;
}

impl Group for PodSpec {
    /// With that `fsGroup`.
    fn group(mut self, id: u32) -> Self {
        self.value()["spec"]["securityContext"] = json!({ "fsGroup": id });
        self
    }
}

/// The claim is deleted while the pod has it, which keeps it; then the pod is, by force: the API server
/// forgets it at once, whatever its node still has to do.
async fn delete_claim_before_pod(scene: &Scene, claim: &str, pod: &str, pv: &PersistentVolume) {
    scene.kubectl(&["delete", "pvc", claim, "--wait=false"]);
    let kept = scene.api::<PersistentVolumeClaim>().get(claim).await.expect("it is still there");
    assert!(kept.metadata.deletion_timestamp.is_some(), "it is to go");
    assert!(kept.finalizers().iter().any(|name| name == "kubernetes.io/pvc-protection"), "{:?}", kept.finalizers());
    assert_eq!(phase(&scene.pvs().get(&pv.name_any()).await.expect("it is there")), "Bound");
    scene.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0", "--wait=false"]);
    let claims = scene.api::<PersistentVolumeClaim>();
    let gone = async || claims.get_opt(claim).await.expect("it can be read").is_none().then_some(());
    scene.until(&format!("the claim {claim} is gone"), SOON, gone).await;
}

async fn assert_busy(scene: &Scene, class: &str, entry: &str, user: &str) {
    scene.wait_saying(NODE, class, entry, "Busy", user).await;
}

async fn assert_bound(scene: &Scene, claim: &str, pv: &PersistentVolume) {
    let (_, bound) = scene.wait_bound(claim).await;
    assert_eq!(bound.uid(), pv.uid(), "it is this PV");
}

/// No attacher has anything to do with it.
async fn assert_not_attached(scene: &Scene, pv: &PersistentVolume) {
    let attachments = Api::<VolumeAttachment>::all(scene.client()).list(&ListParams::default()).await;
    let of_it = |found: &&VolumeAttachment| found.spec.source.persistent_volume_name == pv.metadata.name;
    assert_eq!(attachments.expect("they can be listed").items.iter().find(of_it), None);
    let node = Api::<Node>::all(scene.client()).get(scene.node(NODE).name()).await.expect("it is there");
    let attached = node.status.and_then(|status| status.volumes_attached).unwrap_or_default();
    assert!(attached.iter().all(|volume| !volume.name.contains(&pv.name_any())), "{attached:?}");
}

async fn claim_phase(scene: &Scene, claim: &str) -> String {
    let claim = scene.api::<PersistentVolumeClaim>().get(claim).await.expect("it is there");
    claim.status.and_then(|status| status.phase).unwrap_or_default()
}

/// Something is mounted there, and nothing below.
fn assert_mounted(path: &Path, why: &str) {
    assert_eq!(mounts_below(path), [path.to_path_buf()], "{why}");
}

fn pod_dir(pod: &Pod) -> PathBuf {
    Path::new(KUBELET).join("pods").join(pod.uid().expect("a pod has a uid"))
}

/// Filesystem and inode.
fn place(path: &Path) -> (u64, u64) {
    let found = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.dev(), found.ino())
}

/// The number of a device node.
fn number(path: &Path) -> u64 {
    let found = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found.file_type().is_block_device(), "{} is no block device", path.display());
    found.rdev()
}

/// The loop device whose file was opened at that path.
fn loop_over(path: &Path) -> Option<PathBuf> {
    let devices = fs::read_dir("/sys/block").expect("there is a sysfs").flatten();
    let is_over = |device: &fs::DirEntry| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        Path::new(file.trim_end()) == path
    };
    devices.into_iter().find(is_over).map(|device| Path::new("/dev").join(device.file_name()))
}
