//! One look at a discovery directory, and one at an entry of it. Nothing is opened
//! that opening could change or block on: a device is known by its number and sysfs,
//! a FIFO by its type. Any call here can hang with the disk or server behind it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};

use crate::discovery::{Observed, Sighting};
use crate::identity::{DeviceNumber, Identity};
use crate::node::identity;
use crate::node::mountinfo::MountTable;
use crate::node::sysfs::Sysfs;

/// An open discovery directory and what tells it from another one at its path.
pub struct OpenDirectory {
    fd: OwnedFd,
    /// Changes when the directory is replaced or mounted over.
    pub fingerprint: Fingerprint,
}

/// Device, inode and mount of a directory.
pub type Fingerprint = (u32, u32, u64, u64);

/// What must be the same for the last look at an entry to hold still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Of a mounted directory.
    Mount(Fingerprint),
    /// Of a device: its number, the attachment of its disk, and its size in bytes.
    Device(DeviceNumber, u64, u64),
}

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): an id that no later mount gets again, while the
/// small ids of mountinfo are given away at once.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Opens a discovery directory. The fd must not be kept: it would keep the host
/// from unmounting the filesystem.
pub fn open_directory(path: &str) -> io::Result<OpenDirectory> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | MNT_ID_UNIQUE)?;
    Ok(OpenDirectory { fd, fingerprint: fingerprint(&stat) })
}

impl OpenDirectory {
    /// The names in it, in order.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Looks at one entry. `known` is the last look at it; filesystem and disk are
    /// asked for more only when they may be other ones.
    pub fn probe(&self, name: &OsStr, mounts: &MountTable, known: Option<&(Key, Observed)>) -> (Option<Key>, Observed) {
        match self.try_probe(name, mounts, known) {
            Ok(found) => found,
            Err(error) => (None, Observed::Failed(format!("it can't be looked at: {error}"))),
        }
    }

    fn try_probe(
        &self,
        name: &OsStr,
        mounts: &MountTable,
        known: Option<&(Key, Observed)>,
    ) -> io::Result<(Option<Key>, Observed)> {
        let stat = self.stat(name, AtFlags::SYMLINK_NOFOLLOW)?;
        let observed = match file_type(&stat) {
            FileType::Directory if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                let key = is_unique(&stat).then(|| Key::Mount(fingerprint(&stat)));
                if let Some((last, observed)) = known
                    && Some(*last) == key
                {
                    return Ok((key, observed.clone()));
                }
                let observed = Observed::MountPoint(self.mount_point(name, mounts)?);
                // A mount that the table did not show yet is looked at again.
                return Ok((key.filter(|_| is_complete(&observed)), observed));
            }
            FileType::Directory => Observed::PlainDirectory,
            FileType::BlockDevice => return device(&stat, known),
            FileType::Symlink => match self.stat(name, AtFlags::empty()) {
                Ok(target) => match file_type(&target) {
                    FileType::Directory => Observed::LinkToDirectory,
                    FileType::BlockDevice => return device(&target, known),
                    other => Observed::Other(description(other)),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => Observed::DanglingLink,
                Err(error) => return Err(error),
            },
            other => Observed::Other(description(other)),
        };
        Ok((None, observed))
    }

    fn stat(&self, name: &OsStr, flags: AtFlags) -> io::Result<Statx> {
        let mask = StatxFlags::TYPE | StatxFlags::INO | MNT_ID_UNIQUE;
        Ok(rustix::fs::statx(&self.fd, name, flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC, mask)?)
    }

    fn mount_point(&self, name: &OsStr, mounts: &MountTable) -> io::Result<Sighting> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        let usage = rustix::fs::fstatfs(&fd)?;
        let bytes = u64::try_from(usage.f_bsize).map_err(io::Error::other)?.saturating_mul(usage.f_blocks);
        let sysfs = Sysfs::host();
        let mount = identity::of_mount(&sysfs, &fd, &identity::stat_fd(&fd)?, mounts)?;
        let below = identity::below_mount(&sysfs, &mount).into();
        Ok(Sighting { below, ..Sighting::new(Identity::Mount(mount), bytes) })
    }
}

/// Whether a mount was in the table by which it was looked at.
pub fn is_complete(observed: &Observed) -> bool {
    match observed {
        Observed::MountPoint(sighting) => {
            !matches!(&*sighting.identity, Identity::Mount(mount) if mount.root.is_none())
        }
        _ => true,
    }
}

/// Size and identity of a block device, from sysfs.
fn device(stat: &Statx, known: Option<&(Key, Observed)>) -> io::Result<(Option<Key>, Observed)> {
    let number = DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
    let sysfs = Sysfs::host();
    let missing = || Ok((None, Observed::Failed(format!("the kernel has no block device {number}"))));
    let Some(block) = sysfs.block(number)? else { return missing() };
    let key = block.sequence().map(|sequence| Key::Device(number, sequence, block.bytes()));
    if let Some((last, observed)) = known
        && Some(*last) == key
    {
        return Ok((key, observed.clone()));
    }
    let Some(identity) = identity::of_device(&sysfs, number)? else { return missing() };
    let below: Box<[DeviceNumber]> = sysfs.below(number).into();
    // What a device-mapper device lies on can change while it stays attached.
    let is_steady = below.is_empty() || (identity.partition.is_some() && below.len() == 1);
    let key = key.filter(|_| is_steady);
    let bytes = identity.bytes;
    Ok((key, Observed::Device(Sighting { below, ..Sighting::new(Identity::Device(identity), bytes) })))
}

/// Whether the kernel gave the mount id that is never given again.
fn is_unique(stat: &Statx) -> bool {
    StatxFlags::from_bits_retain(stat.stx_mask).contains(MNT_ID_UNIQUE)
}

fn fingerprint(stat: &Statx) -> Fingerprint {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, stat.stx_mnt_id)
}

fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

fn description(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "neither a directory nor a block device",
    }
}
