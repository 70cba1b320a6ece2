//! A claim is deleted: its volume is wiped and offered again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kube::api::ResourceExt;

use crate::harness::disk::{LoopDisk, run, umount};
use crate::harness::pods::PodSpec;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("s04", "{}")];

const SIZE: u64 = 64 << 20;
const SECRET: &str = "the old tenant's secret";

#[tokio::test]
async fn s04_after_its_claim_a_volume_is_wiped_and_offered_again() {
    let scene = stage::shared("s04").await;
    let node = scene.node(0);
    let path = node.discovery("s04").join("disk");
    let disk = node.on_host(|| {
        let disk = LoopDisk::new(node.dir(), SIZE);
        disk.format_ext4();
        // The agent records what it is at first, so it is so before it is there.
        let aside = node.dir().join("s04");
        disk.mount_ext4(&aside);
        std::os::unix::fs::chown(&aside, Some(1234), Some(5678)).expect("root can give a directory away");
        run(std::process::Command::new("chmod").arg("2750").arg(&aside));
        umount(&aside);
        disk.mount_ext4(&path);
        disk
    });
    let pv = scene.wait_available("s04", 0, "disk").await;

    scene.claim("data", "s04", "1Mi");
    scene.run(&PodSpec::new("old").claim("data", "/data")).await;
    scene.sh("old", &format!("mkdir -p /data/a/b; echo \"{SECRET}\" | tee /data/file /data/a/b/.hidden; chmod 777 /data; sync"));
    assert_eq!(scene.exec("old", &["cat", "/data/a/b/.hidden"]).trim(), SECRET);
    let (_, bound) = scene.wait_bound("data").await;
    assert_eq!(bound.name_any(), pv.name_any());
    assert!(node.on_host(|| fs::read_to_string(path.join("file"))).expect("the host sees it").contains(SECRET));

    scene.delete_pod("old").await;
    scene.delete_claim("data").await;
    let again = scene.wait_anew("s04", 0, "disk", &pv).await;
    assert_eq!(again.name_any(), pv.name_any(), "it has the name it had");

    let (left, owner, mode) = node.on_host(|| (entries(&path), owner(&path), mode(&path)));
    assert!(left.iter().all(|name| name == "lost+found"), "of the old tenant there is {left:?}");
    assert_eq!((owner, mode), ((1234, 5678), 0o2750), "the root directory is as it was");

    scene.claim("data", "s04", "1Mi");
    scene.run(&PodSpec::new("new").claim("data", "/data")).await;
    let found = scene.sh("new", "find /data -type f");
    assert_eq!(found, "", "the new tenant sees nothing of the old one");
    assert_eq!(scene.sh("new", "stat -c %u:%g:%a /data").trim(), "1234:5678:2750");
    scene.delete_pod("new").await;
    drop(disk);
}

fn entries(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("the volume can be read").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn owner(path: &Path) -> (u32, u32) {
    let root = fs::metadata(path).expect("the volume is there");
    (root.uid(), root.gid())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the volume is there").mode() & 0o7777
}
