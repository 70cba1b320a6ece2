//! The disks of a node go away and come back, as over a boot: some under other names, and two
//! behind each other's link.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kube::api::ResourceExt;
use serde_json::json;

use crate::harness::disk::{self, LoopDisk, run};
use crate::harness::pods::PodSpec;
use crate::harness::site::container_id;
use crate::stage::{self, Scene};

pub const CLASSES: &[(&str, &str)] = &[("s08", "{}"), ("s08-raw", r#"{"volumeMode": "Block"}"#)];

const SIZE: u64 = 32 << 20;

/// The boot id stays the same, for the machine does. What that means for identity: a filesystem is known by
/// its UUID, so its disk may get another number; a device without an id of its own, such as a loop device, is known
/// by its attachment, so it stays attached, and only its link goes. After a real boot it would be known by
/// place, model and size: `a_disk_without_an_id_is_known_after_a_boot_only_by_place_model_and_size`.
#[tokio::test]
async fn s08_after_a_boot_each_claim_has_its_own_data_and_an_exchange_is_told() {
    let scene = stage::alone("s08").await;
    let node = scene.node(0);
    let mounted = ["a", "b", "free"].map(|entry| node.mount_ext4("s08", entry, SIZE));
    let [c, d, x, y] = ["c", "d", "x", "y"].map(|entry| node.link_disk("s08-raw", entry, SIZE));
    scene.wait_available("s08", 0, "free").await;
    for (class, mode, entries) in
        [("s08", "Filesystem", ["a", "b"].as_slice()), ("s08-raw", "Block", &["c", "d", "x", "y"])]
    {
        for entry in entries {
            let pv = scene.wait_available(class, 0, entry).await.name_any();
            scene.claim_with(entry, class, "1Mi", &json!({ "volumeMode": mode, "volumeName": pv }));
        }
    }
    let pod = PodSpec::new("stable").claim("a", "/a").claim("b", "/b").device("c", "/dev/c").device("d", "/dev/d");
    let exchanged = PodSpec::new("exchanged").device("x", "/dev/x").device("y", "/dev/y");
    let before = scene.run(&pod).await;
    scene.run(&exchanged).await;
    scene.sh("stable", "for v in a b; do echo data of $v > /$v/file; done; sync");
    scene.sh("stable", "for v in c d; do echo data of $v | dd of=/dev/$v bs=512 conv=fsync; done");
    scene.sh("exchanged", "for v in x y; do echo data of $v | dd of=/dev/$v bs=512 conv=fsync; done");
    let pvs = uids(&scene).await;
    assert_eq!(pvs.len(), 7);

    scene.power_off(0);
    let disks = node.on_host(|| {
        pvs.keys().for_each(|pv| forget(pv));
        mounted.iter().for_each(|(point, _)| disk::umount(point));
        for (link, _) in [&c, &d, &x, &y] {
            fs::remove_file(link).expect("a link can be removed");
        }
        // The machine is up again: the disks of the filesystems have each other's names, …
        let disks = come_back(mounted);
        // … a by-id link leads to its own disk, and a link to a name to whichever disk has it.
        relink(&c.0, &c.1);
        relink(&d.0, &d.1);
        relink(&x.0, &y.1);
        relink(&y.0, &x.1);
        disks
    });
    let booted = Instant::now();
    scene.power_on(0).await;
    let up = booted.elapsed();
    for (about, entry) in [("x", "x"), ("y", "y"), (&pv_of(&scene, "x").await, "x"), (&pv_of(&scene, "y").await, "y")] {
        let event = scene.wait_event(about, "IdentityChanged", "device number was").await;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        scene.wait_verdict(0, "s08-raw", entry, "IdentityChanged").await;
    }
    eprintln!("the node was up after {up:?}, and the exchange was told after {:?}", booted.elapsed());
    for (class, entry) in [("s08", "a"), ("s08", "b"), ("s08", "free"), ("s08-raw", "c"), ("s08-raw", "d")] {
        scene.wait_verdict(0, class, entry, "Published").await;
    }
    assert_eq!(uids(&scene).await, pvs, "none is there twice, none is lost, none is another");
    scene
        .wait_pod("stable", "runs in another container", |pod| {
            container_id(pod).is_some() && container_id(pod) != container_id(&before)
        })
        .await;
    for entry in ["a", "b"] {
        assert_eq!(scene.sh("stable", &format!("cat /{entry}/file")).trim(), format!("data of {entry}"));
        let file = Path::new("/mnt/disks/s08").join(entry).join("file");
        assert_eq!(node.on_host(|| fs::read_to_string(file)).expect("it is there").trim(), format!("data of {entry}"));
    }
    for entry in ["c", "d"] {
        assert!(scene.sh("stable", &format!("head -c 9 /dev/{entry}")).contains(&format!("data of {entry}")));
    }

    // Not even the end of the claim has the other one's disk wiped.
    scene.delete_pod("exchanged").await;
    let offered = scene.pvs().get(&pv_of(&scene, "x").await).await.expect("the PV is there");
    scene.delete_claim("x").await;
    scene.wait_phase(&offered.name_any(), "Released").await;
    node.mount_tmpfs("s08", "later", SIZE);
    scene.wait_available("s08", 0, "later").await;
    scene.wait_verdict(0, "s08-raw", "x", "IdentityChanged").await;
    assert_eq!(scene.wait_phase(&offered.name_any(), "Released").await.uid(), offered.uid());
    for (disk, entry) in [(&c, "c"), (&d, "d"), (&x, "x"), (&y, "y")] {
        let content = node.on_host(|| disk.1.read_all());
        assert!(content.starts_with(format!("data of {entry}").as_bytes()), "the disk of {entry} is as it was");
    }

    // Put right, each is what it was: one is wiped at last, and the other has its claim's data.
    node.on_host(|| {
        relink(&x.0, &x.1);
        relink(&y.0, &y.1);
    });
    scene.wait_anew("s08-raw", 0, "x", &offered).await;
    assert!(node.on_host(|| x.1.read_all()).iter().all(|&byte| byte == 0), "it is wiped");
    scene.run(&PodSpec::new("again").device("y", "/dev/y")).await;
    assert!(scene.sh("again", "head -c 9 /dev/y").contains("data of y"));
    assert!(node.on_host(|| y.1.read_all()).starts_with(b"data of y"));
    ["stable", "again"].iter().for_each(|pod| drop(scene.kubectl(&["delete", "pod", pod])));
    drop(disks);
}

/// The PVs of both classes, and which objects they are.
async fn uids(scene: &Scene) -> BTreeMap<String, String> {
    let mut pvs = scene.pvs_of("s08").await;
    pvs.extend(scene.pvs_of("s08-raw").await);
    pvs.into_iter().map(|pv| (pv.name_any(), pv.uid().expect("an object has a UID"))).collect()
}

async fn pv_of(scene: &Scene, claim: &str) -> String {
    scene.wait_bound(claim).await.1.name_any()
}

/// What a boot forgets of a PV: the kubelet's loop device over a raw device, and its mounts.
fn forget(pv: &str) {
    for device in fs::read_dir("/sys/block").expect("there is sysfs").flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(pv) {
            run(Command::new("losetup").arg("--detach").arg(Path::new("/dev").join(device.file_name())));
        }
    }
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("the mount table can be read");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| point.contains(pv)) {
        disk::umount(Path::new(point));
    }
}

/// Attaches the disks of filesystems again, each under the next one's name, and mounts each where
/// it was. Where another program was faster, the name is any other.
fn come_back(mounted: [(PathBuf, LoopDisk); 3]) -> Vec<LoopDisk> {
    let former: Vec<_> =
        mounted.into_iter().map(|(point, disk)| (point, disk.device.clone(), disk.backing.clone())).collect();
    let mut names: Vec<_> = former.iter().map(|(_, device, _)| device.clone()).collect();
    names.rotate_left(1);
    let disks = former.iter().zip(names).map(|((point, device, file), name)| {
        let deadline = Instant::now() + Duration::from_secs(2);
        let disk = loop {
            if let Some(disk) = LoopDisk::attach_at(&name, file.clone()) {
                break disk;
            }
            if Instant::now() > deadline {
                // Its own is not to be among those that are free.
                let _own = LoopDisk::attach_at(device, file.clone());
                break LoopDisk::attach(file.clone());
            }
            sleep(Duration::from_millis(10));
        };
        assert_ne!(&disk.device, device, "its name is another one");
        disk.mount_ext4(point);
        disk
    });
    disks.collect()
}

/// Makes a link lead to a disk, whether or not it is there.
fn relink(link: &Path, disk: &LoopDisk) {
    // Not as an entry of its own.
    let new = Path::new("/mnt/new");
    std::os::unix::fs::symlink(&disk.device, new).expect("a link can be made");
    fs::rename(new, link).expect("a link can be replaced");
}
