//! Who uses a device or a directory? What `O_EXCL` misses, and who it is when it says
//! that somebody does. Nothing here proves that nobody is: it sees what this process's
//! namespaces show, and at one moment.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};

use super::mountinfo::{Mount, MountTable, unescape};
use super::sysfs::{Block, Sysfs, device_number, is_remote, number_in};
use super::{ioctl, partition, patience};
use crate::identity::{DeviceNumber, is_within};

/// A device with its partitions, and if it is one, its disk.
struct Family {
    own: Vec<Block>,
    disk: Option<Block>,
}

impl Family {
    fn of(sysfs: &Sysfs, number: DeviceNumber) -> Option<Self> {
        let device = sysfs.block(number).ok()??;
        let disk = device.disk_of_partition();
        let own = std::iter::once(device.clone()).chain(device.partitions()).collect();
        Some(Self { own, disk })
    }

    fn all(&self) -> impl Iterator<Item = &Block> {
        self.own.iter().chain(&self.disk)
    }

    fn has(&self, number: DeviceNumber) -> bool {
        self.all().any(|device| device.number() == Some(number))
    }
}

/// Who uses a device that `O_EXCL` was granted for: a loop device over it (the kubelet
/// makes one for each raw block volume), or another process that has it open.
#[must_use]
pub fn user_of_device(sysfs: &Sysfs, number: DeviceNumber) -> Option<String> {
    let family = Family::of(sysfs, number)?;
    loop_over(sysfs, &family).or_else(|| opened_by(&family))
}

/// Who keeps `O_EXCL` from being granted, as far as it is to be seen.
#[must_use]
pub fn holder_of_device(sysfs: &Sysfs, number: DeviceNumber) -> String {
    Family::of(sysfs, number)
        .and_then(|family| {
            mounted(&family)
                .or_else(|| swapped_on(&family))
                .or_else(|| held_by(sysfs, &family))
                .or_else(|| loop_over(sysfs, &family))
                .or_else(|| opened_by(&family))
        })
        .unwrap_or_else(|| "mounted in a namespace that is not to be seen, or part of a filesystem or RAID".to_owned())
}

/// Who else uses a mounted directory: a mount of the same filesystem, seen from here,
/// that shows the directory or a part of it, such as a pod's. `id` is of the mount in
/// question. `aliases` are mount points that are the same volume by another name.
#[must_use]
pub fn user_of_directory(mounts: &MountTable, id: u64, aliases: &[String]) -> Option<String> {
    let own = mounts.get(id)?;
    let shows_it = |other: &Mount| {
        other.device == own.device
            && is_within(&other.root, &own.root)
            // The same mount, or one under or over it at the same place.
            && other.mount_point != own.mount_point
            && !aliases.iter().any(|alias| alias.as_bytes() == other.mount_point)
    };
    let mut points: Vec<_> = mounts.iter().filter(|(_, mount)| shows_it(mount)).map(|(_, mount)| mount).collect();
    points.sort_unstable_by(|a, b| a.mount_point.cmp(&b.mount_point));
    let other = points.first()?;
    let part = if other.root == own.root { "it" } else { "a directory in it" };
    Some(format!("{part} is also mounted at {}", String::from_utf8_lossy(&other.mount_point)))
}

/// Whether pods' mounts are to be seen: on every node some pod has a volume of Kubernetes'
/// own mounted, if only this process's.
#[must_use]
pub fn sees_pods(mounts: &MountTable) -> bool {
    let below = b"/volumes/kubernetes.io~";
    mounts.iter().any(|(_, mount)| mount.mount_point.windows(below.len()).any(|part| part == below))
}

fn loop_over(sysfs: &Sysfs, family: &Family) -> Option<String> {
    let mounts = MountTable::read().unwrap_or_default();
    let over = |device: &Block| backing(sysfs, &mounts, family, device).is_some_and(|number| family.has(number));
    sysfs.disks().iter().find(|device| over(device)).map(|device| format!("backing of /dev/{}", device.name()))
}

/// What a loop device is on, if that is a device that can be of the family. The kubelet
/// mounts a device's node over an empty file, which is all that another namespace may
/// show of it: so if its path does not tell, the loop device itself is asked.
fn backing(sysfs: &Sysfs, mounts: &MountTable, family: &Family, device: &Block) -> Option<DeviceNumber> {
    let file = device.read("loop/backing_file")?;
    if let Some(below) = sysfs.named(&file) {
        return below.number();
    }
    if is_remote(mounts, &file) {
        return None;
    }
    if let Some(number) = rustix::fs::stat(file.as_str()).ok().as_ref().and_then(number_in) {
        return Some(number);
    }
    // To answer, the kernel asks the file's server, which may hang: hence only where
    // the size fits.
    let (offset, limit) = (device.read_number("loop/offset")?, device.read_number("loop/sizelimit")?);
    let end = offset.saturating_add(device.bytes());
    let is_whole = offset == 0 && limit == 0;
    if !family.all().map(Block::bytes).any(|size| if is_whole { end == size } else { end <= size }) {
        return None;
    }
    let node = partition::open_node(device, device.number()?).ok()??;
    // One that does not answer waits for the server of a file: it is on no device.
    let packed = patience::ask(&device.name(), move || ioctl::loop_backing(node.as_fd()))?;
    packed.ok().filter(|packed| *packed != 0).map(device_number)
}

fn held_by(sysfs: &Sysfs, family: &Family) -> Option<String> {
    let holder = family.own.iter().flat_map(|device| device.linked("holders")).next()?;
    let device = sysfs.block(holder).ok()??;
    let mapped = device.read("dm/name").map_or_else(String::new, |name| format!(" ({name})"));
    Some(format!("held by {}{mapped}", device.name()))
}

fn swapped_on(family: &Family) -> Option<String> {
    let table = fs::read("/proc/swaps").ok()?;
    let mut files =
        table.split(|byte| *byte == b'\n').skip(1).filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    files.find_map(|file| {
        let file = String::from_utf8_lossy(&unescape(file)).into_owned();
        let number = rustix::fs::stat(&file).ok().map(|stat| device_number(stat.st_rdev));
        let is_it = number.is_some_and(|number| family.has(number)) || is_named(family, &file);
        is_it.then(|| format!("swap ({file})"))
    })
}

fn is_named(family: &Family, file: &str) -> bool {
    file.strip_prefix("/dev/").is_some_and(|name| family.all().any(|device| device.name() == name))
}

/// A mount of the device in any mount namespace that can be seen.
fn mounted(family: &Family) -> Option<String> {
    let names = |mount: &Mount| {
        let number = DeviceNumber::try_from(mount.device.clone());
        let by_number = number.is_ok_and(|number| family.has(number));
        by_number || mount.source.as_deref().is_some_and(|source| is_named(family, source))
    };
    let mut seen = Vec::new();
    let processes = std::iter::once("self".to_owned()).chain(processes());
    processes
        .filter_map(|process| {
            let folder = Path::new("/proc").join(&process);
            let namespace = fs::read_link(folder.join("ns/mnt")).ok()?;
            if seen.contains(&namespace) {
                return None;
            }
            seen.push(namespace);
            let mounts = MountTable::parse(&fs::read(folder.join("mountinfo")).ok()?);
            // The same one at each try.
            let found = mounts.iter().map(|(_, mount)| mount).filter(|mount| names(mount));
            let mount = found.min_by(|a, b| a.mount_point.cmp(&b.mount_point))?;
            let place = String::from_utf8_lossy(&mount.mount_point).into_owned();
            Some(match process.as_str() {
                "self" => format!("mounted at {place}"),
                process => format!("mounted at {place} as {} sees it", describe(process)),
            })
        })
        .next()
}

/// Another process that has the device or a partition of it open. Who only reads
/// it counts too.
fn opened_by(family: &Family) -> Option<String> {
    let own = fs::read_link("/proc/self").ok()?.to_string_lossy().into_owned();
    let is_it = |number| family.own.iter().any(|device| device.number() == Some(number));
    processes().filter(|process| *process != own).find_map(|process| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        let opened = files.flatten().any(|file| {
            let Ok(stat) = rustix::fs::statx(rustix::fs::CWD, file.path(), AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)
            else {
                return false;
            };
            FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice
                && is_it(DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
                && !is_place(&process, &file.file_name().to_string_lossy())
        });
        // Our own child has what we have, until it becomes another program.
        (opened && parent_of(&process).as_deref() != Some(&own)).then(|| format!("open in {}", describe(&process)))
    })
}

/// Whether a file is open as a mere place (`O_PATH`), which uses nothing.
fn is_place(process: &str, file: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{file}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| OFlags::from_bits_retain(flags).contains(OFlags::PATH))
}

fn processes() -> impl Iterator<Item = String> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

fn parent_of(process: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).map(|parent| parent.trim().to_owned())
}

fn describe(process: &str) -> String {
    let program = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    format!("process {process} ({})", program.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_mere_place_is_no_use_of_a_file() {
        for (flags, expected) in [(OFlags::PATH, true), (OFlags::RDONLY, false)] {
            let file = rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty()).expect("it can be opened");
            assert_eq!(is_place("self", &file.as_raw_fd().to_string()), expected);
        }
    }
}
