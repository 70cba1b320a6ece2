//! Gathers the keys of a volume: of a device from sysfs by its number, of a mounted
//! directory from its open file. Discovery and the claim use the same functions, so
//! that they see the same keys.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};

use super::bus_path::bus_path;
use super::mountinfo::{Mount, MountTable};
use super::sysfs::{Block, Sysfs, number_in, stat_locally};
use super::{ioctl, partition};
use crate::identity::{DeviceIdentity, DeviceNumber, MountIdentity, PartitionIdentity, Uuid, key};

/// Filesystems over several devices, with a made-up device number for each mount.
const SPANNING: [&str; 2] = ["btrfs", "bcachefs"];

/// The id that the kernel gave this boot (`Documentation/admin-guide/sysctl/kernel.rst`).
#[must_use]
pub fn boot_id() -> Option<Uuid> {
    static BOOT: OnceLock<Option<Uuid>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Uuid::try_from(text.trim().to_owned()).ok()
    })
}

/// The keys of a block device; `None` when the kernel has none with that number.
///
/// # Errors
/// When sysfs can't be read.
pub fn of_device(sysfs: &Sysfs, number: DeviceNumber) -> io::Result<Option<DeviceIdentity>> {
    let Some(device) = sysfs.block(number)? else { return Ok(None) };
    let disk = device.disk_of_partition();
    let partition = disk.is_some().then(|| {
        let (start, uuid) = partition::of(sysfs, &device, number);
        PartitionIdentity { start, uuid: uuid.and_then(|uuid| key(&uuid)) }
    });
    let disk = disk.as_ref().unwrap_or(&device);
    let wwid = wwid(disk);
    let (bus_path, model) = place_and_model(disk);
    Ok(Some(DeviceIdentity {
        boot: boot_id(),
        number,
        sequence: disk.sequence(),
        serial: serial(disk).filter(|serial| wwid.is_some() || !is_shared(sysfs, disk, serial)),
        wwid,
        uuid: uuid(sysfs, disk),
        partition,
        bus_path,
        model,
        bytes: device.bytes(),
    }))
}

fn wwid(disk: &Block) -> Option<Box<str>> {
    ["wwid", "device/wwid", "device/cid"].iter().find_map(|file| key(&disk.read(file)?))
}

fn serial(disk: &Block) -> Option<Box<str>> {
    ["serial", "device/serial"].iter().find_map(|file| key(&disk.read(file)?))
}

/// Whether another disk says the same: cheap bridges and virtual machines give one
/// serial number to all.
fn is_shared(sysfs: &Sysfs, disk: &Block, wanted: &str) -> bool {
    sysfs.disks().iter().any(|other| other != disk && serial(other).as_deref() == Some(wanted))
}

/// The UUID of a device-mapper or md device.
fn uuid(sysfs: &Sysfs, disk: &Block) -> Option<Box<str>> {
    // A plain dm-crypt device's is made of its name, whatever disk it lies on.
    let mapped = disk.read("dm/uuid").filter(|uuid| !uuid.starts_with("CRYPT-PLAIN"));
    let digits = |uuid: String| uuid.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let raid = || disk.read("md/uuid").or_else(|| sysfs.udev(disk.number()?, "MD_UUID")).map(digits);
    mapped.or_else(raid).and_then(|uuid| key(&uuid))
}

fn place_and_model(disk: &Block) -> (Option<Box<str>>, Option<Box<str>>) {
    if let Some(file) = disk.read("loop/backing_file") {
        // Not there when the file is deleted or not to be seen from here.
        let inode = stat_locally(&file).map_or_else(String::new, |file| format!(":{}", file.st_ino));
        return (Some(format!("file:{file}{inode}").into()), Some("loop".into()));
    }
    let model = disk.read("device/model").or_else(|| disk.read("device/name"));
    (bus_path(&disk.path).map(Into::into), model.and_then(|model| key(&model)))
}

/// The keys of a mounted directory from its open file, its stat (by [`stat_fd`]) and
/// the mount table.
///
/// # Errors
/// When sysfs can't be read.
pub fn of_mount(sysfs: &Sysfs, directory: impl AsFd, stat: &Statx, mounts: &MountTable) -> io::Result<MountIdentity> {
    let device = DeviceNumber { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
    let mount = mounts.get(stat.stx_mnt_id).filter(|mount| {
        // The table may be older than the mount, which may have got the id of another.
        mount.device == device.to_string() || SPANNING.contains(&mount.fs_type.as_str())
    });
    let disk_number = disk_number(device, mount);
    let disk = match disk_number {
        Some(number) => of_device(sysfs, number)?.map(|disk| Box::new(DeviceIdentity { boot: None, ..disk })),
        None => None,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into();
    Ok(MountIdentity {
        boot: boot_id(),
        device,
        uuid: disk_number.and_then(|number| filesystem_uuid(sysfs, directory, number, mount)),
        root: mount.map(|mount| text(&mount.root)),
        inode: stat.stx_ino,
        source: mount.and_then(|mount| mount.source.as_deref().map(Into::into)),
        fs_type: mount.map(|mount| mount.fs_type.as_str().into()),
        disk,
    })
}

/// The device of a filesystem; `None` for those without, such as tmpfs.
fn disk_number(device: DeviceNumber, mount: Option<&Mount>) -> Option<DeviceNumber> {
    if device.major != 0 {
        return Some(device);
    }
    let mount = mount.filter(|mount| SPANNING.contains(&mount.fs_type.as_str()))?;
    // A filesystem over several devices names one, or some with colons between.
    let node = mount.source.as_deref()?.split(':').next()?;
    number_in(&rustix::fs::stat(node).ok()?)
}

/// The UUID of a filesystem that lies on a device. A tmpfs makes one up at each mount.
fn filesystem_uuid(sysfs: &Sysfs, directory: impl AsFd, disk: DeviceNumber, mount: Option<&Mount>) -> Option<Box<str>> {
    if mount.is_some_and(|mount| mount.fs_type.starts_with("fuse")) {
        return None; // its server may say anything
    }
    // The file may be open as a mere place (O_PATH), which takes no ioctl.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let readable = rustix::fs::openat(directory, c".", flags, Mode::empty()).ok()?;
    let by_kernel = match ioctl::filesystem_uuid(&readable) {
        Ok(Some(uuid)) => Some(uuid),
        Ok(None) | Err(_) => ioctl::btrfs_uuid(&readable).ok(),
    };
    let text = by_kernel.map(Uuid).map(|uuid| uuid.to_string()).or_else(|| sysfs.udev(disk, "ID_FS_UUID"))?;
    key(&text.to_ascii_lowercase())
}

/// The devices that the volume lies on, all the way down, but not its own: of a
/// filesystem over several devices, one that it names and those below.
#[must_use]
pub fn below_mount(sysfs: &Sysfs, mount: &MountIdentity) -> Vec<DeviceNumber> {
    let Some(disk) = &mount.disk else { return Vec::new() };
    let own = (disk.number != mount.device).then_some(disk.number);
    own.into_iter().chain(sysfs.below(disk.number)).collect()
}

/// The number of an open block device, or of the one at an open place.
///
/// # Errors
/// The kernel's answer; `None` when it is no block device.
pub fn number_of(file: impl AsFd) -> io::Result<Option<DeviceNumber>> {
    let stat = stat_fd(file)?;
    let is_device = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice;
    Ok(is_device.then_some(DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }))
}

/// Stats an open file the way [`of_mount`] needs it.
///
/// # Errors
/// The kernel's answer.
pub fn stat_fd(fd: impl AsFd) -> io::Result<Statx> {
    let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)?)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
