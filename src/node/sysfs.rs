//! Block devices as sysfs shows them (`Documentation/ABI/stable/sysfs-block`). Reading
//! it opens no device.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use super::mountinfo::{Mount, MountTable};
use crate::identity::{DeviceNumber, is_within};

/// Where the kernel's and udev's files are.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// Those of this machine.
    #[must_use]
    pub fn host() -> Self {
        Self::at("/")
    }

    /// Those below another directory than `/`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of a device; `None` when the kernel has no such device.
    ///
    /// # Errors
    /// The kernel's answer, if it is another.
    pub fn block(&self, number: DeviceNumber) -> io::Result<Option<Block>> {
        match fs::canonicalize(self.root.join(format!("sys/dev/block/{number}"))) {
            Ok(path) => Ok(Some(Block { path })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every device that is no partition.
    #[must_use]
    pub fn disks(&self) -> Vec<Block> {
        let links = entries(&self.root.join("sys/block"));
        links.iter().filter_map(|link| fs::canonicalize(link).ok()).map(|path| Block { path }).collect()
    }

    /// A value that udev keeps about a device, such as `ID_FS_UUID`; `None` also where no
    /// udev is, as in most containers.
    #[must_use]
    pub fn udev(&self, number: DeviceNumber, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(format!("run/udev/data/b{number}"))).ok()?;
        text.lines()
            .filter_map(|line| line.strip_prefix("E:")?.split_once('='))
            .find_map(|(key, value)| (key == name).then(|| value.to_owned()))
    }

    /// The device that a path below `/dev` names by the kernel's own name for it, whatever
    /// is at that path here.
    #[must_use]
    pub fn named(&self, path: &str) -> Option<Block> {
        let name = path.strip_prefix("/dev/")?.replace('/', "!");
        fs::canonicalize(self.root.join("sys/class/block").join(name)).ok().map(|path| Block { path })
    }

    /// The device that a loop device is on, unless that is a file.
    #[must_use]
    pub fn below_loop(&self, device: &Block) -> Option<DeviceNumber> {
        let path = device.read("loop/backing_file")?;
        if let Some(named) = self.named(&path) {
            return named.number();
        }
        number_in(&stat_locally(&path)?)
    }

    /// The devices that a device lies on, all the way down, nearest first: a partition
    /// on its disk, device-mapper and md on their `slaves`, a loop device on its backing.
    #[must_use]
    pub fn below(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        let mut found = vec![number];
        let mut next = 0;
        while let Some(number) = found.get(next) {
            next += 1;
            let Ok(Some(device)) = self.block(*number) else { continue };
            let disk = device.disk_of_partition().and_then(|disk| disk.number());
            let members = device.linked("slaves");
            for below in disk.into_iter().chain(members).chain(self.below_loop(&device)) {
                if !found.contains(&below) {
                    found.push(below);
                }
            }
        }
        found.split_off(1)
    }
}

/// The directory of one block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Without symbolic links: `/sys/devices/…/sda` or `/sys/devices/…/sda/sda1`.
    pub path: PathBuf,
}

impl Block {
    /// The kernel's name of the device, such as `sda1`.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The trimmed text of an attribute; `None` when there is none.
    #[must_use]
    pub fn read(&self, attribute: &str) -> Option<String> {
        let bytes = fs::read(self.path.join(attribute)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// An attribute that is a number.
    #[must_use]
    pub fn read_number(&self, attribute: &str) -> Option<u64> {
        self.read(attribute)?.parse().ok()
    }

    /// Size in bytes. Sysfs counts in units of 512 bytes whatever the device's block size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read_number("size").unwrap_or(0).saturating_mul(512)
    }

    /// The kernel's number of this attachment of the disk (Linux 5.15).
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        // Only whole disks have the file.
        self.disk_of_partition().as_ref().unwrap_or(self).read_number("diskseq")
    }

    /// Its device number.
    #[must_use]
    pub fn number(&self) -> Option<DeviceNumber> {
        DeviceNumber::try_from(self.read("dev")?).ok()
    }

    /// The whole disk, when this is a partition.
    #[must_use]
    pub fn disk_of_partition(&self) -> Option<Self> {
        let is_partition = self.path.join("partition").exists();
        is_partition.then(|| Self { path: self.path.parent().expect("a partition lies in its disk").to_owned() })
    }

    /// The partitions of a whole disk.
    #[must_use]
    pub fn partitions(&self) -> Vec<Self> {
        let paths = entries(&self.path).into_iter().filter(|path| path.join("partition").exists());
        paths.map(|path| Self { path }).collect()
    }

    /// The devices that `slaves` (it lies on them) or `holders` (they lie on it) name.
    #[must_use]
    pub fn linked(&self, kind: &str) -> Vec<DeviceNumber> {
        entries(&self.path.join(kind)).into_iter().filter_map(|path| Self { path }.number()).collect()
    }
}

/// The paths in a directory, in the order of their names; none when it can't be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

/// The number of a block device's node; `None` for any other file.
#[must_use]
pub fn number_in(stat: &Stat) -> Option<DeviceNumber> {
    (FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice).then(|| device_number(stat.st_rdev))
}

/// A device number as stat(2) packs it.
#[must_use]
pub fn device_number(packed: u64) -> DeviceNumber {
    DeviceNumber { major: rustix::fs::major(packed), minor: rustix::fs::minor(packed) }
}

/// Filesystems without a device that answer by themselves.
const LOCAL: [&str; 7] = ["devtmpfs", "tmpfs", "ramfs", "overlay", "btrfs", "bcachefs", "zfs"];

/// Whether a path is on a network or FUSE filesystem, whose server may never answer.
#[must_use]
pub fn is_remote(mounts: &MountTable, path: &str) -> bool {
    let on = |mount: &&Mount| is_within(path.as_bytes(), &mount.mount_point);
    let depth = mounts.iter().map(|(_, mount)| mount).filter(on).map(|mount| mount.mount_point.len()).max();
    // Several may be mounted over each other.
    let mut nearest =
        mounts.iter().map(|(_, mount)| mount).filter(on).filter(|mount| Some(mount.mount_point.len()) == depth);
    nearest.any(|mount| {
        let fs_type = mount.fs_type.as_str();
        !LOCAL.contains(&fs_type) && (mount.device.starts_with("0:") || fs_type.starts_with("fuse"))
    })
}

/// Stats the file of a loop device, if it can be seen from here and surely answers.
#[must_use]
pub fn stat_locally(path: &str) -> Option<Stat> {
    let mounts = MountTable::read().ok()?;
    if is_remote(&mounts, path) { None } else { rustix::fs::stat(path).ok() }
}
