//! What real disks and filesystems are known by, and what they stay known through.

use std::fs;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use mooring::deleter::{WipeError, inspect};
use mooring::discovery::{Observed, Sighting};
use mooring::identity::{Comparison, DeviceIdentity, DeviceNumber, Identity, MountIdentity, PartitionIdentity, Uuid};
use mooring::plan::Target;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use crate::claim::{observed, target};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::{Scratch, require_own_namespace};

/// What is seen at an entry, as the agent would keep it in an annotation.
async fn seen(dir: &Path, entry: &str) -> Sighting {
    let sighting = match observed(dir, entry).await {
        Observed::MountPoint(sighting) | Observed::Device(sighting) => sighting,
        other => panic!("{entry} is no volume: {other:?}"),
    };
    let text = serde_json::to_string(&*sighting.identity).expect("an identity is JSON");
    assert_eq!(serde_json::from_str::<Identity>(&text).expect("it was JSON"), *sighting.identity);
    sighting
}

fn device(sighting: &Sighting) -> &DeviceIdentity {
    match &*sighting.identity {
        Identity::Device(device) => device,
        Identity::Mount(_) => panic!("it is a device"),
    }
}

fn mount(sighting: &Sighting) -> &MountIdentity {
    match &*sighting.identity {
        Identity::Mount(mount) => mount,
        Identity::Device(_) => panic!("it is a directory"),
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program can be run");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn a_disk_stays_the_same_whatever_is_written_to_it() {
    require_own_namespace();
    let scratch = Scratch::new("identity-disk");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let disk = LoopDisk::new(scratch.path(), 64 << 20);
    disk.link(&dir, "disk");
    let first = seen(&dir, "disk").await;
    assert!(device(&first).boot.is_some() && device(&first).sequence.is_some());
    let file = device(&first).bus_path.as_deref().expect("a loop device is on a file");
    assert!(file.starts_with(&format!("file:{}:", disk.backing.display())), "{file}");
    // The kubelet formats it, a tenant partitions it, and its file grows.
    disk.format_ext4();
    assert_eq!(first.identity.compare(&seen(&dir, "disk").await.identity), Comparison::Same);
    disk.write_table("label: gpt\nsize=20M\n");
    assert_eq!(first.identity.compare(&seen(&dir, "disk").await.identity), Comparison::Same);
    let backing = OpenOptions::new().write(true).open(&disk.backing).expect("the file can be opened");
    backing.set_len(128 << 20).expect("the file can grow");
    run("losetup", &["--set-capacity", disk.device.to_str().expect("it is text")]);
    let grown = seen(&dir, "disk").await;
    assert_eq!(grown.bytes, 128 << 20);
    assert_eq!(first.identity.compare(&grown.identity), Comparison::Same);
    assert_eq!(first.identity.digest(), grown.identity.digest());
}

#[tokio::test]
async fn a_partition_is_known_by_its_table_and_lies_on_its_disk() {
    require_own_namespace();
    let scratch = Scratch::new("identity-partition");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    for (table, is_gpt) in [("label: gpt\nsize=20M\nsize=20M\n", true), ("label: dos\nsize=20M\nsize=20M\n", false)] {
        let disk = LoopDisk::partitioned(scratch.path(), 64 << 20, table);
        let links = [disk.link(&dir, "disk"), dir.join("part1"), dir.join("part2")];
        for number in [1, 2] {
            std::os::unix::fs::symlink(disk.partition(number), dir.join(format!("part{number}")))
                .expect("a link can be made");
        }
        let whole = seen(&dir, "disk").await;
        let parts = [seen(&dir, "part1").await, seen(&dir, "part2").await];
        for (part, number) in parts.iter().zip(["1", "2"]) {
            let keys = device(part).partition.as_ref().expect("it is a partition");
            // sfdisk's own word for it: the UUID, or the disk's signature.
            let node = disk.device.to_str().expect("it is text");
            let expected = if is_gpt {
                run("sfdisk", &["--part-uuid", node, number])
            } else {
                format!("{}-0{number}", run("sfdisk", &["--disk-id", node]).trim_start_matches("0x"))
            };
            assert_eq!(keys.uuid.as_deref(), Some(expected.to_lowercase().as_str()));
            assert_eq!(keys.start, if number == "1" { 1 << 20 } else { 21 << 20 });
            assert_eq!(*part.below, [device(&whole).number]);
            assert!(part.overlaps(&whole) && whole.overlaps(part));
            assert!(matches!(part.identity.compare(&whole.identity), Comparison::Different(_)));
            assert_eq!(part.identity.compare(&part.identity), Comparison::Same);
        }
        assert!(!parts[0].overlaps(&parts[1]));
        assert!(matches!(parts[0].identity.compare(&parts[1].identity), Comparison::Different(_)));
        for link in links {
            fs::remove_file(link).expect("a link can be removed");
        }
    }
}

#[tokio::test]
async fn a_filesystem_is_known_by_its_uuid_under_any_device_number() {
    require_own_namespace();
    let scratch = Scratch::new("identity-uuid");
    let dir = scratch.path().join("disks");
    for kind in ["ext4", "xfs", "btrfs"] {
        let point = dir.join(kind);
        let first = LoopDisk::new(scratch.path(), 400 << 20);
        first.format(kind);
        first.mount(kind, &point);
        let before = seen(&dir, kind).await;
        let uuid = run("blkid", &["-p", "-o", "value", "-s", "UUID", first.device.to_str().expect("it is text")]);
        assert_eq!(mount(&before).uuid.as_deref(), Some(uuid.as_str()), "{kind}");
        assert_eq!((mount(&before).root.as_deref(), mount(&before).fs_type.as_deref()), (Some("/"), Some(kind)));
        disk::umount(&point);
        let file = first.backing.clone();
        // Another disk has the number now, whoever got it.
        let second = LoopDisk::attach(file);
        second.mount(kind, &point);
        drop(first);
        let after = seen(&dir, kind).await;
        assert_ne!(mount(&before).source, mount(&after).source);
        assert_eq!(before.identity.compare(&after.identity), Comparison::Same, "{kind}");
        // A directory of it, mounted alone.
        fs::create_dir(point.join("sub")).expect("a directory can be made");
        disk::bind_mount(&point.join("sub"), &dir.join("sub"));
        let sub = seen(&dir, "sub").await;
        assert_eq!(mount(&sub).root.as_deref(), Some("/sub"));
        assert!(matches!(after.identity.compare(&sub.identity), Comparison::Different(_)));
        assert!(sub.overlaps(&after) && after.overlaps(&sub));
        // The device is the volume, too.
        second.link(&dir, "disk");
        let disk = seen(&dir, "disk").await;
        assert!(disk.overlaps(&after) && after.overlaps(&disk) && sub.overlaps(&disk));
        fs::remove_file(dir.join("disk")).expect("a link can be removed");
        disk::umount(&dir.join("sub"));
        disk::umount(&point);
    }
}

#[tokio::test]
async fn subvolumes_of_one_btrfs_are_told_apart_and_found_nested() {
    require_own_namespace();
    let scratch = Scratch::new("identity-subvolume");
    let (dir, all) = (scratch.path().join("disks"), scratch.path().join("all"));
    let disk = LoopDisk::new(scratch.path(), 400 << 20);
    disk.format("btrfs");
    disk.mount("btrfs", &all);
    let text = |path: &Path| path.to_str().expect("it is text").to_owned();
    for (name, subvolume) in [("a", "a"), ("ab", "ab"), ("nested", "a/b")] {
        run("btrfs", &["subvolume", "create", &text(&all.join(subvolume))]);
        fs::create_dir_all(dir.join(name)).expect("a directory can be made");
        let options = format!("subvol={subvolume}");
        run("mount", &["-t", "btrfs", "-o", &options, &text(&disk.device), &text(&dir.join(name))]);
    }
    let (a, ab, nested) = (seen(&dir, "a").await, seen(&dir, "ab").await, seen(&dir, "nested").await);
    assert!(!a.overlaps(&ab) && a.overlaps(&nested) && nested.overlaps(&a));
    for other in [&ab, &nested] {
        assert!(matches!(a.identity.compare(&other.identity), Comparison::Different(_)));
    }
    // One that is mounted elsewhere keeps those around it busy, and not those beside it.
    let busy = |target: &Target| matches!(inspect(target), Err(WipeError::Busy(_)));
    let (a, ab) = (target(&dir, "a").await, target(&dir, "ab").await);
    assert!(busy(&a) && !busy(&ab));
    disk::umount(&dir.join("nested"));
    assert!(!busy(&a), "directories are looked for in this namespace");
    disk::umount(&dir.join("ab"));
    disk::umount(&dir.join("a"));
    disk::umount(&all);
}

#[tokio::test]
async fn a_tmpfs_has_no_uuid_and_is_known_in_this_boot() {
    require_own_namespace();
    let scratch = Scratch::new("identity-tmpfs");
    disk::tmpfs(&scratch.path().join("v"), 1 << 20);
    disk::tmpfs(&scratch.path().join("w"), 1 << 20);
    let (v, w) = (seen(scratch.path(), "v").await, seen(scratch.path(), "w").await);
    assert_eq!((&mount(&v).uuid, &mount(&v).disk, v.below.len()), (&None, &None, 0));
    assert_eq!(v.identity.compare(&v.identity), Comparison::Same);
    assert!(matches!(v.identity.compare(&w.identity), Comparison::Different(_)));
    disk::umount(&scratch.path().join("v"));
    disk::umount(&scratch.path().join("w"));
}

fn word() -> impl Strategy<Value = Option<Box<str>>> {
    option::of(prop_oneof![Just("a"), Just("b")].prop_map(Into::into))
}

fn devices() -> impl Strategy<Value = DeviceIdentity> {
    let keys = (word(), word(), word(), option::of((0_u64..2, word())));
    let rest = (option::of(0_u128..2), 0_u32..2, option::of(0_u64..2), word(), word(), 0_u64..2);
    (keys, rest).prop_map(|((wwid, serial, uuid, partition), (boot, minor, sequence, bus_path, model, bytes))| {
        DeviceIdentity {
            boot: boot.map(Uuid),
            number: DeviceNumber { major: 7, minor },
            sequence,
            wwid,
            serial,
            uuid,
            partition: partition.map(|(start, uuid)| PartitionIdentity { start, uuid }),
            bus_path,
            model,
            bytes,
        }
    })
}

fn mounts() -> impl Strategy<Value = MountIdentity> {
    let keys = (option::of(0_u128..2), 0_u32..2, word(), word(), 0_u64..2);
    (keys, word(), word(), option::of(devices())).prop_map(|(keys, source, fs_type, disk)| {
        let (boot, minor, uuid, root, inode) = keys;
        let (boot, device) = (boot.map(Uuid), DeviceNumber { major: 7, minor });
        MountIdentity { boot, device, uuid, root, inode, source, fs_type, disk: disk.map(Box::new) }
    })
}

fn identities() -> impl Strategy<Value = Identity> {
    prop_oneof![devices().prop_map(Identity::Device), mounts().prop_map(Identity::Mount)]
}

fn differ<T: PartialEq>(then: &Option<T>, now: &Option<T>) -> bool {
    then.is_some() && now.is_some() && then != now
}

fn disks_differ(then: &DeviceIdentity, now: &DeviceIdentity) -> bool {
    differ(&then.wwid, &now.wwid)
        || differ(&then.serial, &now.serial)
        || differ(&then.uuid, &now.uuid)
        || then.partition.is_some() != now.partition.is_some()
        || then
            .partition
            .as_ref()
            .zip(now.partition.as_ref())
            .is_some_and(|(then, now)| then.start != now.start || differ(&then.uuid, &now.uuid))
}

proptest! {
    #[test]
    fn identities_survive_being_written(identity in identities(), strange in any::<String>()) {
        let identity = match identity {
            Identity::Mount(mount) => Identity::Mount(MountIdentity { root: Some(strange.into()), ..mount }),
            device @ Identity::Device(_) => device,
        };
        let text = serde_json::to_string(&identity).expect("it is JSON");
        prop_assert_eq!(serde_json::from_str::<Identity>(&text).expect("it was JSON"), identity);
    }

    #[test]
    fn the_same_volume_shares_a_key_and_no_key_that_lasts_differs(then in identities(), now in identities()) {
        let same = then.compare(&now) == Comparison::Same;
        prop_assert_eq!(now.compare(&then) == Comparison::Same, same);
        if same {
            prop_assert!(then.keys().iter().any(|key| now.keys().contains(key)));
            let agree = match (&then, &now) {
                (Identity::Device(then), Identity::Device(now)) => !disks_differ(then, now),
                (Identity::Mount(then), Identity::Mount(now)) => {
                    let known = then.root.is_some() && then.root == now.root && then.inode == now.inode;
                    let disks = then.disk.as_ref().zip(now.disk.as_ref());
                    known && !differ(&then.uuid, &now.uuid) && !disks.is_some_and(|(then, now)| disks_differ(then, now))
                }
                _ => false,
            };
            prop_assert!(agree);
        }
    }

    #[test]
    fn what_is_known_well_enough_is_the_same_as_itself(identity in identities()) {
        let complete = match &identity {
            Identity::Device(device) => device.boot.is_some() && device.sequence.is_some(),
            Identity::Mount(mount) => {
                let attached = mount.disk.as_ref().is_none_or(|disk| disk.sequence.is_some());
                mount.boot.is_some() && mount.root.is_some() && attached
            }
        };
        if complete {
            prop_assert_eq!(identity.compare(&identity), Comparison::Same);
        }
    }
}
