#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::*;

/// A tree as the kernel and udev lay it out.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory can be made"))
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.0.path())
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory can be made");
        fs::write(path, text).expect("a file can be written");
    }

    fn link(&self, to: &str, from: &str) {
        let from = self.0.path().join(from);
        fs::create_dir_all(from.parent().expect("it is in a directory")).expect("a directory can be made");
        symlink(self.0.path().join(to), from).expect("a link can be made");
    }

    /// A device at a path below `sys/devices`, with attributes; a partition has one of that name.
    fn device(&self, number: &str, path: &str, attributes: &[(&str, &str)]) {
        let directory = format!("sys/devices/{path}");
        let name = Path::new(path).file_name().expect("it has a name").to_string_lossy().into_owned();
        self.write(&format!("{directory}/dev"), &format!("{number}\n"));
        for (attribute, text) in attributes {
            self.write(&format!("{directory}/{attribute}"), &format!("{text}\n"));
        }
        self.link(&directory, &format!("sys/dev/block/{number}"));
        self.link(&directory, &format!("sys/class/block/{name}"));
        if !attributes.iter().any(|(attribute, _)| *attribute == "partition") {
            self.link(&directory, &format!("sys/block/{name}"));
        }
    }

    fn seen(&self, number: &str) -> DeviceIdentity {
        of_device(&self.sysfs(), self.number(number)).expect("sysfs can be read").expect("there is such a device")
    }

    #[allow(clippy::unused_self)]
    fn number(&self, text: &str) -> DeviceNumber {
        text.to_owned().try_into().expect("a device number")
    }

    fn below(&self, number: &str) -> Vec<String> {
        self.sysfs().below(self.number(number)).iter().map(ToString::to_string).collect()
    }
}

fn text(text: &str) -> Option<Box<str>> {
    Some(text.into())
}

#[test]
fn the_keys_of_every_kind_of_disk_are_found() {
    let tree = Tree::new();
    let nvme = "pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme3/nvme3n1";
    tree.device(
        "259:0",
        nvme,
        &[
            ("wwid", "eui.0025385b71b12345"),
            ("device/serial", "S4EVNX0M  "),
            ("device/model", "Samsung SSD 970 EVO Plus 1TB            "),
            ("diskseq", "3"),
            ("size", "2048"),
        ],
    );
    let scsi = "pci0000:00/0000:00:1f.2/ata5/host4/target4:0:0/4:0:0:0/block/sda";
    tree.device(
        "8:0",
        scsi,
        &[("device/wwid", "naa.5000c500a1b2c3d4"), ("device/model", "ST4000NM0035-1V4"), ("size", "8")],
    );
    let virtio = "pci0000:00/0000:00:02.0/virtio7/block/vda";
    tree.device("254:0", virtio, &[("serial", "disk-7"), ("size", "8")]);
    let card = "platform/fe340000.mmc/mmc_host/mmc1/mmc1:0001/block/mmcblk1";
    tree.device(
        "179:0",
        card,
        &[
            ("device/cid", "150100424a4e42345208a1b2c3d4e500"),
            ("device/serial", "0xa1b2c3d4"),
            ("device/name", "BJNB4R"),
            ("size", "8"),
        ],
    );

    let nvme = tree.seen("259:0");
    assert_eq!((&nvme.wwid, &nvme.serial), (&text("eui.0025385b71b12345"), &text("S4EVNX0M")));
    assert_eq!(nvme.model, text("Samsung SSD 970 EVO Plus 1TB"));
    assert_eq!(nvme.bus_path, text("pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme0/n1"));
    assert_eq!((nvme.sequence, nvme.bytes, nvme.boot), (Some(3), 1 << 20, boot_id()));
    let scsi = tree.seen("8:0");
    assert_eq!((&scsi.wwid, &scsi.serial), (&text("naa.5000c500a1b2c3d4"), &None));
    assert_eq!(scsi.bus_path, text("pci0000:00/0000:00:1f.2/ata0/host0/target0:0/0:0:0"));
    let virtio = tree.seen("254:0");
    assert_eq!((&virtio.wwid, &virtio.serial, &virtio.model), (&None, &text("disk-7"), &None));
    assert_eq!(virtio.bus_path, text("pci0000:00/0000:00:02.0/virtio0"));
    let card = tree.seen("179:0");
    assert_eq!((&card.wwid, &card.model), (&text("150100424a4e42345208a1b2c3d4e500"), &text("BJNB4R")));
    assert_eq!(card.bus_path, text("platform/fe340000.mmc/mmc_host/mmc0/0001"));
}

#[test]
fn disks_on_disks_have_uuids_and_lie_on_their_members() {
    let tree = Tree::new();
    for (number, name) in [("8:0", "sda"), ("8:16", "sdb")] {
        let path = format!("pci0000:00/0000:00:05.0/host0/target0:0:0/0:0:0:0/block/{name}");
        tree.device(number, &path, &[("size", "4096")]);
    }
    let part = "pci0000:00/0000:00:05.0/host0/target0:0:0/0:0:0:0/block/sda/sda2";
    tree.device(
        "8:2",
        part,
        &[
            ("partition", "2"),
            ("start", "2048"),
            ("size", "1024"),
            ("uevent", "DEVNAME=sda2\nPARTN=2\nPARTUUID=18C12365-C970-DC43-98F8-CEBBE6E29742"),
        ],
    );
    tree.device("9:127", "virtual/block/md127", &[("md/uuid", "6c7b2c5e-8a06-4f6e-9a3a-0d2f9d3c1a11"), ("size", "8")]);
    tree.link("sys/class/block/sda2", "sys/devices/virtual/block/md127/slaves/sda2");
    tree.link("sys/class/block/sdb", "sys/devices/virtual/block/md127/slaves/sdb");
    tree.device("253:0", "virtual/block/dm-0", &[("dm/uuid", "LVM-abc"), ("dm/name", "vg-lv"), ("size", "8")]);
    tree.link("sys/class/block/md127", "sys/devices/virtual/block/dm-0/slaves/md127");
    tree.device("253:1", "virtual/block/dm-1", &[("dm/uuid", "CRYPT-PLAIN-scratch"), ("size", "8")]);
    tree.device("7:0", "virtual/block/loop0", &[("loop/backing_file", "/dev/dm-0"), ("size", "8")]);

    let part = tree.seen("8:2").partition.expect("it is a partition");
    assert_eq!((part.start, part.uuid), (1 << 20, text("18c12365-c970-dc43-98f8-cebbe6e29742")));
    assert_eq!(tree.seen("9:127").uuid, text("6c7b2c5e8a064f6e9a3a0d2f9d3c1a11"));
    assert_eq!((tree.seen("253:0").uuid, tree.seen("253:0").bus_path), (text("LVM-abc"), None));
    assert_eq!(tree.seen("253:1").uuid, None, "it is made of a name");
    assert_eq!(tree.below("8:0"), [""; 0]);
    assert_eq!(tree.below("8:2"), ["8:0"]);
    assert_eq!(tree.below("253:0"), ["9:127", "8:2", "8:16", "8:0"]);
    assert_eq!(tree.below("7:0"), ["253:0", "9:127", "8:2", "8:16", "8:0"]);
}

#[test]
fn what_the_kernel_does_not_say_udev_may() {
    let tree = Tree::new();
    tree.device("8:0", "pci0000:00/block/sda", &[]);
    tree.device("8:1", "pci0000:00/block/sda/sda1", &[("partition", "1"), ("start", "34"), ("uevent", "PARTN=1")]);
    tree.device("9:0", "virtual/block/md0", &[]);
    tree.write("run/udev/data/b8:1", "S:disk/by-id/x\nE:ID_PART_ENTRY_UUID=ABCD1234-01\n");
    tree.write("run/udev/data/b9:0", "E:MD_UUID=6c7b2c5e:8a064f6e:9a3a0d2f:9d3c1a11\n");
    let part = tree.seen("8:1").partition.expect("it is a partition");
    assert_eq!((part.start, part.uuid), (34 * 512, text("abcd1234-01")));
    assert_eq!(tree.seen("9:0").uuid, text("6c7b2c5e8a064f6e9a3a0d2f9d3c1a11"));
    assert!(of_device(&tree.sysfs(), tree.number("8:99")).expect("sysfs can be read").is_none());
}

#[test]
fn a_serial_number_that_two_disks_give_is_no_key() {
    let tree = Tree::new();
    tree.device("254:0", "pci0000:00/0000:00:02.0/virtio0/block/vda", &[("serial", "same")]);
    assert_eq!(tree.seen("254:0").serial, text("same"));
    tree.device("254:16", "pci0000:00/0000:00:03.0/virtio1/block/vdb", &[("serial", "same")]);
    assert_eq!((tree.seen("254:0").serial, tree.seen("254:16").serial), (None, None));
    // Of the paths to one disk, the WWID tells that it is one.
    for (number, name) in [("8:0", "sda"), ("8:16", "sdb")] {
        tree.device(number, &format!("pci0000:00/block/{name}"), &[("wwid", "naa.5000c500"), ("serial", "Z1")]);
    }
    assert_eq!(tree.seen("8:0").serial, text("Z1"));
}

#[test]
fn a_place_is_the_same_however_the_kernel_numbers_its_hosts() {
    let tree = Tree::new();
    let place = |path: &str| {
        let directory = tree.0.path().join("sys/devices").join(path);
        fs::create_dir_all(&directory).expect("a directory can be made");
        bus_path(&directory)
    };
    // Two ports of one controller, and the same ports at the next boot.
    let first = place("pci0/a/ata1/host0/target0:0:0/0:0:0:0/block/sda");
    let second = place("pci0/a/ata2/host1/target1:0:0/1:0:0:0/block/sdb");
    assert_eq!(second.as_deref(), Some("pci0/a/ata1/host0/target0:0/0:0:0"));
    assert_ne!(first, second);
    fs::rename(tree.0.path().join("sys/devices/pci0"), tree.0.path().join("sys/devices/before")).expect("it moves");
    assert_eq!(place("pci0/a/ata7/host6/target6:0:0/6:0:0:0/block/sdf"), first);
    assert_eq!(place("pci0/a/ata8/host7/target7:0:0/7:0:0:0/block/sda"), second);
    // The buses of USB, and its ports, which are numbered by the hardware.
    let stick = place("pci0/usb/usb3/3-2/3-2:1.0/host9/target9:0:0/9:0:0:1/block/sdc");
    assert_eq!(stick.as_deref(), Some("pci0/usb/usb0/2/1.0/host0/target0:0/0:0:1"));
    // No place to go by.
    assert_eq!(place("virtual/block/zram0"), None);
    assert_eq!(place("pci0/fc/host1/rport-1:0-2/target1:0:0/1:0:0:0/block/sdd"), None);
}
