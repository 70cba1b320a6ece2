//! Which volume is this? The keys by which a volume is known again, and a pure
//! comparison of what was recorded with what is there now. Only keys that a tenant
//! cannot write take part: never the content of a device, never its size alone.
//!
//! Written as JSON, an identity is the text of the annotation `mooring.dev/identity`.
//! Keys that a later version may add are read over.

mod compare;
mod number;

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::volume::{VolumeMode, fnv1a_64};

pub use compare::Comparison;
pub use number::{DeviceNumber, Uuid};

/// What a volume is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// A block device.
    Device(DeviceIdentity),
    /// The root directory of a mounted filesystem subtree.
    Mount(MountIdentity),
}

/// The keys of a block device. Those of a partition are its disk's, but for `number`,
/// `partition` and `bytes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    /// The boot in which `number` and `sequence` hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Uuid>,
    /// Its number.
    pub number: DeviceNumber,
    /// The kernel's sequence number of the disk, new at each attachment
    /// (`/sys/block/*/diskseq`, Linux 5.15); absent on older kernels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The unique id that the disk reports: of SCSI by VPD page 0x83, of `NVMe` by its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<Box<str>>,
    /// The serial number that the disk reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Box<str>>,
    /// The UUID of a device-mapper or md device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Box<str>>,
    /// Which part of the disk, unless it is all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<PartitionIdentity>,
    /// Where the disk is plugged in; of a loop device `file:`, the path of its file and
    /// the inode. A weak key: another disk may be plugged in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_path: Option<Box<str>>,
    /// What the disk calls its kind; a weak key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Box<str>>,
    /// Size in bytes; a weak key, for volumes grow.
    #[serde(default)]
    pub bytes: u64,
}

/// The keys of a partition within its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionIdentity {
    /// Where it begins, in bytes from the start of the disk.
    pub start: u64,
    /// Its UUID in the disk's partition table (PARTUUID), in lower case; in an MBR, the
    /// disk's signature and the number of the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Box<str>>,
}

/// The keys of a mounted directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountIdentity {
    /// The boot in which `device` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Uuid>,
    /// Device number of the filesystem, as `st_dev`.
    pub device: DeviceNumber,
    /// UUID of the filesystem, in lower case; absent where the kernel makes one up for
    /// each mount, as for tmpfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Box<str>>,
    /// The directory within the filesystem that is mounted; absent when the
    /// mount table did not show the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Box<str>>,
    /// Inode number of the mounted directory.
    pub inode: u64,
    /// What was mounted, such as `/dev/sdb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Box<str>>,
    /// Type of the filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<Box<str>>,
    /// The device that the filesystem lies on, without `boot`: it tells filesystems
    /// with the same UUID apart, such as copies of one image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Box<DeviceIdentity>>,
}

impl Identity {
    /// Compares what was recorded (`self`) with what is there `now`.
    #[must_use]
    pub fn compare(&self, now: &Self) -> Comparison {
        match (self, now) {
            (Self::Device(then), Self::Device(now)) => then.compare(now),
            (Self::Mount(then), Self::Mount(now)) => then.compare(now),
            (Self::Device(_), Self::Mount(_)) => Comparison::Different("was a device, is a directory".to_owned()),
            (Self::Mount(_), Self::Device(_)) => Comparison::Different("was a directory, is a device".to_owned()),
        }
    }

    /// Whether it is certainly the same as `now` even if `now` may be on another machine.
    #[must_use]
    pub fn is_surely(&self, now: &Self) -> bool {
        let same_machine = match (self, now) {
            (Self::Device(then), Self::Device(now)) => then.is_of_same_machine(now),
            (Self::Mount(then), Self::Mount(now)) => then.is_of_same_machine(now),
            _ => false,
        };
        same_machine && self.compare(now) == Comparison::Same
    }

    /// Whether it has a key that outlasts a boot and moves with the volume: a volume that
    /// lacks it is not seen again once it is detached.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Device(device) => device.lasting_ids().next().is_some(),
            Self::Mount(mount) => {
                mount.uuid.is_some() || mount.disk.as_ref().is_some_and(|disk| disk.lasting_ids().next().is_some())
            }
        }
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// The mode of what it is, whatever its PV says.
    #[must_use]
    pub fn mode(&self) -> VolumeMode {
        if self.is_device() { VolumeMode::Block } else { VolumeMode::Filesystem }
    }

    /// Number of the device, or of the filesystem.
    #[must_use]
    pub fn device(&self) -> DeviceNumber {
        match self {
            Self::Device(device) => device.number,
            Self::Mount(mount) => mount.device,
        }
    }

    /// Hashes to look an identity up by: two that compare `Same` share at least one.
    /// Sharing one proves nothing. Another version may have others: they are not for files.
    #[must_use]
    pub fn keys(&self) -> Vec<u64> {
        match self {
            Self::Device(device) => device.keys(),
            Self::Mount(mount) => mount.keys(),
        }
    }

    /// 16 hex digits for an admin to name this very volume by. They stay the same for
    /// as long as it stays attached or mounted in this boot, whatever its size.
    #[must_use]
    pub fn digest(&self) -> String {
        let text = match self {
            Self::Device(device) => format!("device {:?} {}", device.boot, device.attachment()),
            Self::Mount(mount) => format!(
                "mount {:?} {} {:?} {:?} {} {:?}",
                mount.boot,
                mount.device,
                mount.uuid,
                mount.root,
                mount.inode,
                mount.disk.as_ref().map(|disk| disk.attachment())
            ),
        };
        format!("{:016x}", hash(&text))
    }
}

impl DeviceIdentity {
    /// What the kernel keeps while the disk stays attached.
    fn attachment(&self) -> String {
        let start = self.start();
        format!("{} {:?} {:?} {:?} {start:?}", self.number, self.sequence, self.wwid, self.uuid)
    }

    /// The ids of the disk that outlast a boot, each with its kind.
    fn lasting_ids(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let ids = [("wwid", &self.wwid), ("serial", &self.serial), ("uuid", &self.uuid)];
        ids.into_iter().filter_map(|(kind, id)| Some((kind, id.as_deref()?)))
    }

    /// Where its part of the disk begins.
    fn start(&self) -> Option<u64> {
        self.partition.as_ref().map(|partition| partition.start)
    }

    fn keys(&self) -> Vec<u64> {
        let start = self.start();
        let lasting = self.lasting_ids().map(|id| hash_in_memory(("disk", id, start)));
        let in_boot = self.boot.map(|boot| hash_in_memory(("number", boot, self.number)));
        let place = self.bus_path.as_ref().map(|path| hash_in_memory(("bus", path, start)));
        lasting.chain(in_boot).chain(place).collect()
    }
}

impl MountIdentity {
    /// Whether both are directories of one filesystem, by what the kernel calls it now.
    #[must_use]
    pub fn is_same_filesystem(&self, other: &Self) -> bool {
        // The subvolumes of one btrfs have numbers of their own.
        let numbered_anew = self.device.major == 0 && other.device.major == 0;
        self.device == other.device || (numbered_anew && self.uuid.is_some() && self.uuid == other.uuid)
    }

    /// Whether, in one filesystem, one of the directories is the other or lies in it.
    #[must_use]
    pub fn is_nested(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(one), Some(two)) => {
                is_within(one.as_bytes(), two.as_bytes()) || is_within(two.as_bytes(), one.as_bytes())
            }
            _ => true, // not known: the worst is assumed
        }
    }

    fn keys(&self) -> Vec<u64> {
        let place = (&self.root, self.inode);
        let by_uuid = self.uuid.as_ref().map(|uuid| hash_in_memory(("filesystem", uuid, place)));
        let disk = self.disk.as_deref().into_iter();
        let by_disk =
            disk.flat_map(|disk| disk.lasting_ids().map(|id| hash_in_memory(("on", id, disk.start(), place))));
        let in_boot = self.boot.map(|boot| hash_in_memory(("mounted", boot, self.device, place)));
        by_uuid.into_iter().chain(by_disk).chain(in_boot).collect()
    }
}

/// Whether a directory is another or lies in it; both are paths from the same root.
#[must_use]
pub fn is_within(path: &[u8], directory: &[u8]) -> bool {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn hash(text: &str) -> u64 {
    fnv1a_64(text.bytes())
}

/// Each decision asks for the keys of every volume several times.
fn hash_in_memory(key: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Longer texts are cut, and end in a hash of the whole.
const LONGEST_KEY: usize = 256;

/// Makes a key of what firmware or the kernel says; `None` when it tells no disk from
/// another: nothing, or one character over and over, such as zeros.
#[must_use]
pub fn key(text: &str) -> Option<Box<str>> {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim();
    // The kernel puts the kind of id before a dot: `naa.`, `eui.`, `uuid.`, `t10.`
    let id = text.split_once('.').map_or(text, |(_, id)| id);
    let mut said = id.chars().filter(char::is_ascii_alphanumeric);
    let first = said.next()?;
    if said.all(|c| c == first) {
        return None;
    }
    if text.len() <= LONGEST_KEY {
        return Some(text.into());
    }
    Some(format!("{}~{:016x}", &text[..text.floor_char_boundary(LONGEST_KEY - 17)], hash(text)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_whatever_a_later_version_adds() {
        let text = r#"{"device":{"number":"8:16","wwid":"naa.5000c500a1b2c3d4","moon":"full","partition":{"start":1048576,"x":1}}}"#;
        let identity: Identity = serde_json::from_str(text).expect("it is an identity");
        let Identity::Device(device) = &identity else { panic!("it is a device") };
        assert_eq!(device.wwid.as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(device.partition, Some(PartitionIdentity { start: 1 << 20, uuid: None }));
        // Absent keys are left out.
        let written = serde_json::to_string(&identity).expect("it is JSON");
        let expected =
            r#"{"device":{"number":"8:16","wwid":"naa.5000c500a1b2c3d4","partition":{"start":1048576},"bytes":0}}"#;
        assert_eq!(written, expected);
        assert!(serde_json::from_str::<Identity>(r#"{"mount":{"device":"0:40","inode":1,"later":[]}}"#).is_ok());
    }

    #[test]
    fn what_firmware_says_is_a_key_only_if_it_tells_disks_apart() {
        for junk in
            ["", " \n", "0000000000", "naa.0000000000000000", "uuid.00000000-0000-0000-0000-000000000000", "FFFF"]
        {
            assert_eq!(key(junk), None, "{junk:?}");
        }
        assert_eq!(key("  WD-WCC4\u{1b}N\n").as_deref(), Some("WD-WCC4N"));
        assert_eq!(key("t10.ATA     QEMU HARDDISK   QM00001").as_deref(), Some("t10.ATA     QEMU HARDDISK   QM00001"));
        let long = |end: &str| key(&format!("{}{end}", "ab".repeat(400))).expect("it is a key");
        assert!(long("1").len() <= LONGEST_KEY && long("1") != long("2"));
    }

    #[test]
    fn the_digest_is_of_the_attachment_and_not_of_the_size() {
        let disk = |sequence, bytes| {
            Identity::Device(DeviceIdentity { sequence: Some(sequence), bytes, ..DeviceIdentity::default() })
        };
        assert_eq!(disk(1, 10).digest(), disk(1, 20).digest());
        assert_ne!(disk(1, 10).digest(), disk(2, 10).digest());
        assert_eq!(disk(1, 10).digest().len(), 16);
    }
}
