use super::Comparison::{Different, Same, Unknown};
use super::*;
use crate::identity::{DeviceNumber, Identity, Uuid};

const NOW: Option<Uuid> = Some(Uuid(1));
const LATER: Option<Uuid> = Some(Uuid(2));

fn text(text: &str) -> Option<Box<str>> {
    Some(text.into())
}

/// A disk without any id.
fn plain(boot: Option<Uuid>, minor: u32, sequence: u64) -> DeviceIdentity {
    DeviceIdentity {
        boot,
        number: DeviceNumber { major: 8, minor },
        sequence: Some(sequence),
        bytes: 1 << 30,
        ..DeviceIdentity::default()
    }
}

fn named(boot: Option<Uuid>, minor: u32, wwid: &str, serial: &str) -> DeviceIdentity {
    let known = |text: &str| (!text.is_empty()).then(|| text.into());
    DeviceIdentity { wwid: known(wwid), serial: known(serial), ..plain(boot, minor, u64::from(minor)) }
}

fn part(disk: DeviceIdentity, start: u64, uuid: Option<&str>) -> DeviceIdentity {
    DeviceIdentity { partition: Some(PartitionIdentity { start, uuid: uuid.map(Into::into) }), ..disk }
}

/// Compares, and holds what must be true of each answer.
fn compare(then: &Identity, now: &Identity) -> Comparison {
    let answer = then.compare(now);
    if answer == Same {
        assert!(then.keys().iter().any(|key| now.keys().contains(key)), "{then:?} {now:?}");
    }
    assert_eq!(now.compare(then) == Same, answer == Same);
    answer
}

fn devices(then: &DeviceIdentity, now: &DeviceIdentity) -> Comparison {
    compare(&Identity::Device(then.clone()), &Identity::Device(now.clone()))
}

fn differs(answer: &Comparison, key: &str) {
    assert!(matches!(answer, Different(text) if text.starts_with(key)), "{answer:?} is not for the {key}");
}

#[test]
fn an_id_of_the_disk_decides_whatever_its_number_and_boot() {
    let disk = named(NOW, 16, "naa.1", "S1");
    assert_eq!(devices(&disk, &named(LATER, 32, "naa.1", "S1")), Same);
    assert_eq!(devices(&disk, &named(NOW, 48, "naa.1", "")), Same);
    assert_eq!(devices(&disk, &named(LATER, 48, "", "S1")), Same);
    differs(&devices(&disk, &named(NOW, 16, "naa.2", "S1")), "WWID was naa.1, is naa.2");
    differs(&devices(&disk, &named(NOW, 16, "naa.1", "S2")), "serial number was S1, is S2");
    let lv = |uuid: &str| DeviceIdentity { uuid: text(uuid), ..plain(NOW, 0, 7) };
    assert_eq!(devices(&lv("LVM-a"), &lv("LVM-a")), Same);
    differs(&devices(&lv("LVM-a"), &lv("LVM-b")), "UUID was LVM-a, is LVM-b");
    // A disk that has grown is still the same.
    assert_eq!(devices(&disk, &DeviceIdentity { bytes: 1 << 40, ..disk.clone() }), Same);
}

#[test]
fn a_partition_is_known_by_its_disk_its_start_and_its_uuid() {
    let disk = || named(NOW, 16, "naa.1", "");
    let first = part(disk(), 1 << 20, Some("u1"));
    assert_eq!(devices(&first, &part(named(LATER, 32, "naa.1", ""), 1 << 20, Some("u1"))), Same);
    assert_eq!(devices(&first, &part(disk(), 1 << 20, None)), Same);
    differs(&devices(&first, &part(disk(), 2 << 20, Some("u1"))), "first byte of the partition");
    differs(&devices(&first, &part(disk(), 1 << 20, Some("u2"))), "UUID of the partition");
    differs(&devices(&first, &disk()), "was a partition, is a whole disk");
    differs(&devices(&disk(), &first), "was a whole disk, is a partition");
    // The UUIDs of a copied table say nothing of the disk.
    let copy = part(plain(NOW, 32, 9), 1 << 20, Some("u1"));
    differs(&devices(&part(plain(NOW, 16, 8), 1 << 20, Some("u1")), &copy), "device number");
    assert!(matches!(devices(&part(plain(LATER, 32, 9), 1 << 20, Some("u1")), &copy), Unknown(_)));
}

#[test]
fn a_disk_without_an_id_is_known_by_its_attachment_in_one_boot() {
    assert_eq!(devices(&plain(NOW, 0, 621), &plain(NOW, 0, 621)), Same);
    differs(&devices(&plain(NOW, 0, 621), &plain(NOW, 0, 624)), "disk sequence number was 621, is 624");
    differs(&devices(&plain(NOW, 0, 621), &plain(NOW, 1, 621)), "device number was 8:0, is 8:1");
    let unnumbered = |bus_path| DeviceIdentity { sequence: None, bus_path, ..plain(NOW, 0, 0) };
    assert!(matches!(devices(&plain(NOW, 0, 621), &unnumbered(None)), Unknown(_)));
    assert!(matches!(devices(&unnumbered(None), &unnumbered(None)), Unknown(_)));
    assert_eq!(devices(&unnumbered(text("slot 1")), &unnumbered(text("slot 1"))), Same);
    differs(&devices(&unnumbered(text("slot 1")), &unnumbered(text("slot 2"))), "place");
    // Without a boot id nobody knows whether the numbers still hold.
    assert!(matches!(devices(&plain(None, 0, 621), &plain(None, 0, 621)), Unknown(_)));
}

#[test]
fn a_disk_without_an_id_is_known_after_a_boot_only_by_place_model_and_size() {
    let disk = |boot, bus: &str, model: &str, bytes| DeviceIdentity {
        bus_path: text(bus),
        model: text(model),
        bytes,
        ..plain(boot, 16, 1)
    };
    let then = disk(NOW, "slot 1", "M", 10);
    assert_eq!(devices(&then, &disk(LATER, "slot 1", "M", 10)), Same);
    for other in [disk(LATER, "slot 2", "M", 10), disk(LATER, "slot 1", "N", 10), disk(LATER, "slot 1", "M", 11)] {
        assert!(matches!(devices(&then, &other), Unknown(_)), "{other:?}");
    }
    let no_model = |boot| DeviceIdentity { model: None, ..disk(boot, "slot 1", "M", 10) };
    assert!(matches!(devices(&no_model(NOW), &no_model(LATER)), Unknown(_)));
    // The UUID of a partition counts at the same place.
    let parted = |boot, uuid| part(no_model(boot), 1 << 20, uuid);
    assert_eq!(devices(&parted(NOW, Some("u")), &parted(LATER, Some("u"))), Same);
    assert!(matches!(devices(&parted(NOW, None), &parted(LATER, None)), Unknown(_)));
    assert!(matches!(devices(&plain(NOW, 16, 1), &plain(LATER, 16, 1)), Unknown(_)));
}

fn mounted(boot: Option<Uuid>, minor: u32, uuid: &str) -> MountIdentity {
    MountIdentity {
        boot,
        device: DeviceNumber { major: 8, minor },
        uuid: (!uuid.is_empty()).then(|| uuid.into()),
        root: text("/"),
        inode: 2,
        source: text("/dev/x"),
        fs_type: text("ext4"),
        disk: None,
    }
}

fn mounts(then: &MountIdentity, now: &MountIdentity) -> Comparison {
    compare(&Identity::Mount(then.clone()), &Identity::Mount(now.clone()))
}

#[test]
fn a_filesystem_with_a_uuid_is_known_by_it_and_the_directory() {
    let then = mounted(NOW, 16, "a");
    assert_eq!(mounts(&then, &mounted(LATER, 32, "a")), Same);
    differs(&mounts(&then, &mounted(NOW, 16, "b")), "UUID of the filesystem was a, is b");
    differs(&mounts(&then, &MountIdentity { root: text("/sub"), ..then.clone() }), "mounted directory was /, is /sub");
    differs(&mounts(&then, &MountIdentity { inode: 9, ..then.clone() }), "inode of the mounted directory");
    assert!(matches!(mounts(&then, &MountIdentity { root: None, ..then.clone() }), Unknown(_)));
    // Known on one side only: the attachment decides, and nothing does after a boot.
    assert_eq!(mounts(&then, &mounted(NOW, 16, "")), Same);
    differs(&mounts(&then, &mounted(NOW, 17, "")), "filesystem was 8:16, is 8:17");
    assert!(matches!(mounts(&then, &mounted(LATER, 16, "")), Unknown(_)));
}

#[test]
fn a_filesystem_without_a_uuid_is_known_in_one_boot() {
    let then = mounted(NOW, 16, "");
    assert_eq!(mounts(&then, &then), Same);
    differs(&mounts(&then, &mounted(NOW, 17, "")), "filesystem");
    differs(&mounts(&then, &MountIdentity { source: text("/dev/y"), ..then.clone() }), "source of the mount");
    differs(&mounts(&then, &MountIdentity { fs_type: text("xfs"), ..then.clone() }), "type of the filesystem");
    differs(&mounts(&then, &MountIdentity { inode: 9, ..then.clone() }), "inode");
    assert!(matches!(mounts(&then, &mounted(LATER, 16, "")), Unknown(_)));
    assert!(matches!(mounts(&mounted(None, 16, ""), &mounted(None, 16, "")), Unknown(_)));
    // Another disk under the same number.
    let on = |sequence| MountIdentity { disk: Some(Box::new(plain(None, 16, sequence))), ..then.clone() };
    assert_eq!(mounts(&on(1), &on(1)), Same);
    differs(&mounts(&on(1), &on(2)), "disk sequence number");
}

#[test]
fn copies_of_one_filesystem_are_kept_apart_by_their_disks() {
    let on = |boot, uuid: &str, wwid: &str| {
        let disk = Some(Box::new(named(None, 16, wwid, "")));
        MountIdentity { disk, ..mounted(boot, 16, uuid) }
    };
    differs(&mounts(&on(NOW, "a", "naa.1"), &on(NOW, "a", "naa.2")), "of the filesystem's disk, the WWID");
    assert_eq!(mounts(&on(NOW, "a", "naa.1"), &on(LATER, "a", "naa.1")), Same);
    // And without a UUID the disk's id is enough.
    assert_eq!(mounts(&on(NOW, "", "naa.1"), &on(LATER, "", "naa.1")), Same);
    let moved = MountIdentity { root: text("/sub"), ..on(LATER, "", "naa.1") };
    differs(&mounts(&on(NOW, "", "naa.1"), &moved), "mounted directory");
}

#[test]
fn a_device_is_no_directory() {
    let (device, mount) = (Identity::Device(plain(NOW, 0, 1)), Identity::Mount(mounted(NOW, 0, "a")));
    differs(&compare(&device, &mount), "was a device");
    differs(&compare(&mount, &device), "was a directory");
}
