//! From a path to an open volume of known identity: the only place where a path
//! leads to something that will be destroyed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};

use super::{Claimed, OpenVolume, WipeError, tree};
use crate::by_hand::ByHand;
use crate::identity::{Comparison, DeviceIdentity, DeviceNumber, Identity};
use crate::node::mountinfo::MountTable;
use crate::node::sysfs::Sysfs;
use crate::node::{busy, identity, ioctl};
use crate::plan::Target;
use crate::reclaim::{Fence, Release};

/// Takes the volume for good: opens it, exclusively when it is a device, and compares
/// its identity on the open file.
///
/// # Errors
/// It is gone, not mounted, busy, another one, or can't be opened.
pub fn claim(fence: Fence, target: &Target) -> Result<Claimed, WipeError> {
    let Opened { volume, is_the_recorded_one, digest } = open(target, Intent::Claim)?;
    Ok(Claimed { leave: fence, volume, is_the_recorded_one, digest })
}

/// As [`claim`], for a PV that can't be fenced.
///
/// # Errors
/// As [`claim`].
pub fn claim_released(leave: Release, target: &Target) -> Result<Claimed<Release>, WipeError> {
    let Opened { volume, is_the_recorded_one, digest } = open(target, Intent::Claim)?;
    Ok(Claimed { leave, volume, is_the_recorded_one, digest })
}

/// As [`claim`], for a volume without a PV, at an admin's hand.
///
/// # Errors
/// As [`claim`].
pub fn claim_by_hand(leave: ByHand, target: &Target) -> Result<Claimed<ByHand>, WipeError> {
    let Opened { volume, is_the_recorded_one, digest } = open(target, Intent::Claim)?;
    Ok(Claimed { leave, volume, is_the_recorded_one, digest })
}

/// Makes sure that [`claim`] would succeed now, and changes nothing.
///
/// # Errors
/// As [`claim`].
pub fn inspect(target: &Target) -> Result<(), WipeError> {
    open(target, Intent::Inspect).map(drop)
}

/// The digest of what is there now, when [`claim`] would succeed.
///
/// # Errors
/// As [`claim`].
pub fn digest(target: &Target) -> Result<String, WipeError> {
    open(target, Intent::Inspect).map(|opened| opened.digest)
}

/// An open volume.
pub struct Opened {
    /// Its open file.
    pub volume: OpenVolume,
    /// Whether it is the one that was recorded; else it is in its place, and empty.
    pub is_the_recorded_one: bool,
    /// The digest of what is open.
    pub digest: String,
}

/// What a volume is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// To look at it before it is offered: a directory may be in use.
    Look,
    /// To look at it before it is claimed, or while it is quarantined.
    Inspect,
    /// To destroy what is in it.
    Claim,
}

/// Opens the volume and compares its identity on the open file.
///
/// # Errors
/// As [`claim`].
pub fn open(target: &Target, intent: Intent) -> Result<Opened, WipeError> {
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
        FileType::Directory => open_directory(&parent, target, &path(), intent),
        FileType::BlockDevice | FileType::Symlink => open_device(&parent, target, &path(), intent),
        _ => Err(WipeError::Refused(format!("{} is neither a directory nor a block device", path()))),
    }
}

fn open_directory(parent: &OwnedFd, target: &Target, path: &str, intent: Intent) -> Result<Opened, WipeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(parent, &target.entry, flags, Mode::empty(), resolve)
        .map_err(|errno| WipeError::io("opening the volume's root directory")(errno.into()))?;
    let stat = identity::stat_fd(&fd).map_err(WipeError::io("looking at the volume's root directory"))?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(WipeError::NotMounted(path.to_owned()));
    }
    // The open file keeps the mount, and with it the mount's id in the table.
    let mounts = MountTable::read_shared().map_err(WipeError::io("reading the mount table"))?;
    let now = identity::of_mount(&Sysfs::host(), &fd, &stat, &mounts)
        .map_err(WipeError::io("asking sysfs for the filesystem's device"))?;
    let mut is_the_recorded_one = true;
    let now = Identity::Mount(now);
    if let Err(error) = same(target, &now) {
        // With nothing in it, there is nothing to destroy and nothing to hand on: a tmpfs
        // that was mounted anew. It is not what is to be offered, though.
        if intent == Intent::Look || tree::first_entry(&fd)?.is_some() {
            return Err(error);
        }
        // A filesystem that would be known again is still somewhere, with its data.
        is_the_recorded_one = !target.identity.is_lasting();
    }
    let may_be_in_use = intent == Intent::Look;
    if let Some(user) = busy::user_of_directory(&mounts, stat.stx_mnt_id, &target.aliases).filter(|_| !may_be_in_use) {
        return Err(WipeError::Busy(format!("{path} is in use: {user}")));
    }
    // For directories there is no O_EXCL; this keeps out who works by the same rules.
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Opened { volume: OpenVolume::Directory(fd), is_the_recorded_one, digest: now.digest() }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(WipeError::Busy(format!("another process has {path} locked"))),
        Err(errno) => Err(WipeError::io("locking the volume's root directory")(errno.into())),
    }
}

fn open_device(parent: &OwnedFd, target: &Target, path: &str, intent: Intent) -> Result<Opened, WipeError> {
    let sysfs = Sysfs::host();
    // First without opening the device itself: opening a number that no device has
    // can create one, and another device than the one that is meant is left alone.
    let place =
        rustix::fs::openat(parent, &target.entry, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
            match errno {
                rustix::io::Errno::NOENT => WipeError::Vanished(path.to_owned()),
                errno => WipeError::io("following the link to the device")(errno.into()),
            }
        })?;
    let number = device_number(&place)?
        .ok_or_else(|| WipeError::Refused(format!("{path} is a link to something that is no block device")))?;
    same(target, &Identity::Device(gather(&sysfs, number, path)?))?;
    let access = if intent == Intent::Claim { OFlags::RDWR } else { OFlags::RDONLY };
    take_device(&sysfs, &place, number, target, path, access)
}

/// From the place of a device to the device: what was at the place may have been
/// exchanged since it was looked at.
fn take_device(
    sysfs: &Sysfs,
    place: &OwnedFd,
    number: DeviceNumber,
    target: &Target,
    path: &str,
    access: OFlags,
) -> Result<Opened, WipeError> {
    let fd = open_exclusively(sysfs, place, number, access)?;
    // From here on the open file keeps the device, its number included, from being
    // exchanged. What the kernel tells of an open file is asked of this one.
    let number = device_number(&fd)?.unwrap_or(number);
    let sequence = ioctl::disk_sequence(&fd).map_err(WipeError::io("asking for the disk's sequence number"))?;
    let bytes = ioctl::device_size(&fd).map_err(WipeError::io("asking for the device's size"))?;
    let now = Identity::Device(DeviceIdentity { sequence, bytes, ..gather(sysfs, number, path)? });
    same(target, &now)?;
    if let Some(user) = busy::user_of_device(sysfs, number) {
        return Err(WipeError::Busy(format!("device {number} is in use: {user}")));
    }
    Ok(Opened { volume: OpenVolume::Device { fd, bytes }, is_the_recorded_one: true, digest: now.digest() })
}

fn open_exclusively(
    sysfs: &Sysfs,
    place: &OwnedFd,
    number: DeviceNumber,
    access: OFlags,
) -> Result<OwnedFd, WipeError> {
    let flags = access | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()).map_err(
        |errno| match errno {
            rustix::io::Errno::BUSY => {
                WipeError::Busy(format!("device {number} is in use: {}", busy::holder_of_device(sysfs, number)))
            }
            errno => WipeError::io("opening the device")(errno.into()),
        },
    )
}

fn gather(sysfs: &Sysfs, number: DeviceNumber, path: &str) -> Result<DeviceIdentity, WipeError> {
    identity::of_device(sysfs, number)
        .map_err(WipeError::io("asking sysfs for the device"))?
        .ok_or_else(|| WipeError::Vanished(format!("{path} (device {number})")))
}

fn device_number(fd: &OwnedFd) -> Result<Option<DeviceNumber>, WipeError> {
    identity::number_of(fd).map_err(WipeError::io("looking at the device"))
}

/// Whether it is the volume that is meant, or one that an admin has accepted for it.
fn same(target: &Target, now: &Identity) -> Result<(), WipeError> {
    let digest = now.digest();
    let with_digest = |why: &str| format!("{why}; its digest is {digest}");
    match target.identity.compare(now) {
        Comparison::Same => Ok(()),
        _ if target.accepted.as_ref() == Some(&digest) => Ok(()),
        Comparison::Different(key) => Err(WipeError::IdentityChanged(with_digest(&key))),
        Comparison::Unknown(why) => Err(WipeError::IdentityUnknown(with_digest(why))),
    }
}

impl From<rustix::io::Errno> for WipeError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io { step: "working on the volume", source: io::Error::from(errno) }
    }
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
