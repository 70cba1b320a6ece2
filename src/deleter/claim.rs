//! From a path to an open volume of known identity: the only place where a path
//! leads to something that will be destroyed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};

use super::{Claimed, OpenVolume, WipeError};
use crate::identity::{Comparison, DeviceIdentity, DeviceNumber, Identity};
use crate::node::ioctl;
use crate::node::mountinfo::MountTable;
use crate::node::{mount_identity, stat_fd};
use crate::plan::Target;
use crate::reclaim::Fence;

/// Takes the volume for good: opens it, exclusively when it is a device, and compares
/// its identity on the open file.
///
/// # Errors
/// It is gone, not mounted, busy, another one, or can't be opened.
pub fn claim(fence: Fence, target: &Target) -> Result<Claimed, WipeError> {
    Ok(Claimed { fence, volume: open(target, OFlags::RDWR)? })
}

/// Makes sure that [`claim`] would succeed now, and changes nothing.
///
/// # Errors
/// As [`claim`].
pub fn inspect(target: &Target) -> Result<(), WipeError> {
    open(target, OFlags::RDONLY).map(drop)
}

fn open(target: &Target, access: OFlags) -> Result<OpenVolume, WipeError> {
    let path = || format!("{}/{}", target.mount_dir, target.entry);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(&target.mount_dir, flags, Mode::empty())
        .map_err(|errno| WipeError::io("opening the discovery directory")(errno.into()))?;
    let mask = StatxFlags::TYPE;
    let stat = rustix::fs::statx(&parent, &target.entry, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, mask)
        .map_err(|errno| match errno {
            rustix::io::Errno::NOENT => WipeError::Vanished(path()),
            errno => WipeError::io("looking at the volume")(errno.into()),
        })?;
    match FileType::from_raw_mode(u32::from(stat.stx_mode)) {
        FileType::Directory => open_directory(&parent, target, &path()),
        FileType::BlockDevice | FileType::Symlink => open_device(&parent, target, &path(), access),
        _ => Err(WipeError::Refused(format!("{} is neither a directory nor a block device", path()))),
    }
}

fn open_directory(parent: &OwnedFd, target: &Target, path: &str) -> Result<OpenVolume, WipeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(parent, &target.entry, flags, Mode::empty(), resolve)
        .map_err(|errno| WipeError::io("opening the volume's root directory")(errno.into()))?;
    let stat = stat_fd(&fd).map_err(WipeError::io("looking at the volume's root directory"))?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(WipeError::NotMounted(path.to_owned()));
    }
    let mounts = MountTable::read().map_err(WipeError::io("reading the mount table"))?;
    same(&target.identity, &mount_identity(&stat, &mounts))?;
    // For directories there is no O_EXCL; this keeps out other agents at least.
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(OpenVolume::Directory(fd)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(WipeError::Busy(format!("another process has {path} locked"))),
        Err(errno) => Err(WipeError::io("locking the volume's root directory")(errno.into())),
    }
}

fn open_device(parent: &OwnedFd, target: &Target, path: &str, access: OFlags) -> Result<OpenVolume, WipeError> {
    // First without opening the device itself: opening a number that no device has
    // can create one.
    let place =
        rustix::fs::openat(parent, &target.entry, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
            match errno {
                rustix::io::Errno::NOENT => WipeError::Vanished(path.to_owned()),
                errno => WipeError::io("following the link to the device")(errno.into()),
            }
        })?;
    let before = device_number(&place)?
        .ok_or_else(|| WipeError::Refused(format!("{path} is a link to something that is no block device")))?;
    if let Identity::Device(then) = &*target.identity
        && then.number != before
    {
        return Err(WipeError::IdentityChanged(format!("device number was {}, is {before}", then.number)));
    }
    if !fs::exists(format!("/sys/dev/block/{before}")).map_err(WipeError::io("asking sysfs for the device"))? {
        return Err(WipeError::Vanished(format!("{path} (device {before})")));
    }
    let flags = access | OFlags::EXCL | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()).map_err(|errno| {
            match errno {
                rustix::io::Errno::BUSY => {
                    WipeError::Busy(format!("device {before} is in use: mounted, swap, or part of another device"))
                }
                errno => WipeError::io("opening the device")(errno.into()),
            }
        })?;
    // From here on the open file keeps the device from being exchanged.
    let number = device_number(&fd)?.unwrap_or(before);
    let sequence = ioctl::disk_sequence(&fd).map_err(WipeError::io("asking for the disk's sequence number"))?;
    same(&target.identity, &Identity::Device(DeviceIdentity { boot: None, number, sequence }))?;
    let bytes = ioctl::device_size(&fd).map_err(WipeError::io("asking for the device's size"))?;
    Ok(OpenVolume::Device { fd, bytes })
}

fn device_number(fd: &OwnedFd) -> Result<Option<DeviceNumber>, WipeError> {
    let stat = stat_fd(fd).map_err(WipeError::io("looking at the device"))?;
    let is_device = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice;
    Ok(is_device.then_some(DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }))
}

fn same(expected: &Identity, now: &Identity) -> Result<(), WipeError> {
    match expected.compare(now) {
        Comparison::Same => Ok(()),
        Comparison::Different(key) => Err(WipeError::IdentityChanged(key)),
        Comparison::Unknown(why) => Err(WipeError::IdentityUnknown(why)),
    }
}

impl From<rustix::io::Errno> for WipeError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io { step: "working on the volume", source: io::Error::from(errno) }
    }
}
