//! One look at a discovery directory, and one at an entry of it. Nothing is opened
//! that opening could change or block on: a device is known by its number and sysfs,
//! a FIFO by its type. Any call here can hang with the disk or server behind it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};

use crate::discovery::{Observed, Sighting};
use crate::identity::{DeviceIdentity, DeviceNumber, Identity, MountIdentity};
use crate::node::mountinfo::MountTable;

/// An open discovery directory and what tells it from another one at its path.
pub struct OpenDirectory {
    fd: OwnedFd,
    /// Changes when the directory is replaced or mounted over.
    pub fingerprint: Fingerprint,
}

/// Device, inode and mount of a directory.
pub type Fingerprint = (u32, u32, u64, u64);

/// What must be the same for the last look at a mounted directory to hold still.
pub type MountKey = Fingerprint;

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

    /// Looks at one entry. `known` is the last look at a directory mounted there;
    /// the filesystem is asked for its size only when that may be another one.
    pub fn probe(
        &self,
        name: &OsStr,
        mounts: &MountTable,
        known: Option<&(MountKey, Observed)>,
    ) -> (Option<MountKey>, Observed) {
        match self.try_probe(name, mounts, known) {
            Ok(found) => found,
            Err(error) => (None, Observed::Failed(format!("it can't be looked at: {error}"))),
        }
    }

    fn try_probe(
        &self,
        name: &OsStr,
        mounts: &MountTable,
        known: Option<&(MountKey, Observed)>,
    ) -> io::Result<(Option<MountKey>, Observed)> {
        let stat = self.stat(name, AtFlags::SYMLINK_NOFOLLOW)?;
        let observed = match file_type(&stat) {
            FileType::Directory if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) => {
                let key = is_unique(&stat).then(|| fingerprint(&stat));
                return match known {
                    Some((last, observed)) if Some(*last) == key => Ok((key, observed.clone())),
                    _ => Ok((key, self.mount_point(name, mounts)?)),
                };
            }
            FileType::Directory => Observed::PlainDirectory,
            FileType::BlockDevice => device(&stat)?,
            FileType::Symlink => match self.stat(name, AtFlags::empty()) {
                Ok(target) => match file_type(&target) {
                    FileType::Directory => Observed::LinkToDirectory,
                    FileType::BlockDevice => device(&target)?,
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

    fn mount_point(&self, name: &OsStr, mounts: &MountTable) -> io::Result<Observed> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        let usage = rustix::fs::fstatfs(&fd)?;
        let bytes = u64::try_from(usage.f_bsize).map_err(io::Error::other)?.saturating_mul(usage.f_blocks);
        Ok(Observed::MountPoint(Sighting::new(mount_identity(&stat_fd(&fd)?, mounts), bytes)))
    }
}

/// The identity of a mounted directory from its stat (with `STATX_MNT_ID`) and the
/// mount table.
#[must_use]
pub fn mount_identity(stat: &Statx, mounts: &MountTable) -> Identity {
    Identity::Mount(MountIdentity {
        boot: None,
        device: DeviceNumber { major: stat.stx_dev_major, minor: stat.stx_dev_minor },
        root: mounts.get(stat.stx_mnt_id).map(|mount| String::from_utf8_lossy(&mount.root).into()),
        inode: stat.stx_ino,
    })
}

/// Size and identity of a block device, from sysfs.
fn device(stat: &Statx) -> io::Result<Observed> {
    let number = DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
    let directory = format!("/sys/dev/block/{number}");
    let sectors = match fs::read_to_string(format!("{directory}/size")) {
        Ok(text) => text.trim().parse::<u64>().map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Observed::Failed(format!("the kernel has no block device {number}")));
        }
        Err(error) => return Err(error),
    };
    // Only whole disks have the file; a partition's parent directory is its disk.
    let sequence = ["diskseq", "../diskseq"]
        .iter()
        .find_map(|file| fs::read_to_string(format!("{directory}/{file}")).ok())
        .and_then(|text| text.trim().parse().ok());
    // Sysfs counts in units of 512 bytes whatever the device's block size.
    let identity = Identity::Device(DeviceIdentity { boot: None, number, sequence });
    Ok(Observed::Device(Sighting::new(identity, sectors.saturating_mul(512))))
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

/// Stats an open file the way [`mount_identity`] needs it.
///
/// # Errors
/// The kernel's answer.
pub fn stat_fd(fd: impl AsFd) -> io::Result<Statx> {
    let mask = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)?)
}
