//! Reads the attributes of a volume's root directory and puts them back, through the
//! open directory only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, IFlags, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use super::WipeError;
use crate::node::{capabilities, ioctl};
use crate::root::{Bytes, RootFacts, SELINUX_LABEL};

/// What an owner can change of a directory (`FS_FL_USER_MODIFIABLE` of `linux/fs.h`
/// without what concerns files only, and with what filesystems added). The other flags
/// are the filesystem's own, such as "has an index". Encryption can't be taken back:
/// that the directory is encrypted now is a difference that stays, and is reported.
const CHANGEABLE: u32 = 0x0000_00fc // compressed, sync, immutable, append, nodump, noatime
    | 0x0000_0400 // never compressed
    | 0x0000_0800 // encrypted
    | 0x0000_4000 // journalled data
    | 0x0001_0000 // dirsync
    | 0x0002_0000 // top of a hierarchy
    | 0x0080_0000 // no copy on write
    | 0x0200_0000 // DAX
    | 0x2000_0000 // project is inherited
    | 0x4000_0000; // names without case
/// The kernel computes these itself; the last two are how XFS stores POSIX access lists.
const OF_THE_KERNEL: [&str; 4] = ["security.evm", "security.ima", "trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT"];
/// The kernel's limit (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of `linux/limits.h`).
const XATTR_MAX: usize = 64 << 10;
/// Recorded facts must fit into an annotation.
const RECORDED_MAX: usize = 32 << 10;

/// The attributes as they are now. SELinux' label is among them. Left out are extent
/// size hints of XFS, and times.
///
/// # Errors
/// The kernel's answer; or the extended attributes are too many to be recorded (32 KiB
/// in all), or one has a name that is not UTF-8.
pub fn read(directory: &OwnedFd) -> io::Result<RootFacts> {
    let stat = rustix::fs::fstat(directory)?;
    let mut facts = RootFacts {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode & 0o7777,
        project: project(directory)?,
        flags: flags(directory)?.bits() & CHANGEABLE,
        ..RootFacts::default()
    };
    let mut size = 0;
    for name in names(directory)? {
        let name = name.into_string().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let Some(value) = value(directory.as_fd(), &name)? else { continue };
        size += name.len() + value.len();
        if size > RECORDED_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the extended attributes of the root directory take more than {RECORDED_MAX} bytes"),
            ));
        }
        facts.xattrs.insert(name, Bytes(value));
    }
    Ok(facts)
}

/// Makes the attributes those of `facts` and durable, changing only what differs; so
/// what the filesystem can't do is an error only when it would be needed. Extended
/// attributes that are not in `facts` go. SELinux' label is set where the kernel
/// permits, and never removed.
///
/// # Errors
/// [`WipeError::Io`] for a step that the kernel refused, [`WipeError::NotClean`] when
/// something is another still though no step was refused.
pub fn restore(directory: &OwnedFd, facts: &RootFacts) -> Result<(), WipeError> {
    clear_locks(directory).map_err(step("clearing the root directory's immutable flag"))?;
    let stat = rustix::fs::fstat(directory).map_err(step("looking at the root directory"))?;
    if (stat.st_uid, stat.st_gid) != (facts.uid, facts.gid) {
        rustix::fs::fchown(directory, Some(Uid::from_raw(facts.uid)), Some(Gid::from_raw(facts.gid)))
            .map_err(step("giving the root directory back to its owner"))?;
    }
    restore_xattrs(directory.as_fd(), facts)
        .map_err(WipeError::io("putting the root directory's extended attributes back"))?;
    // After chown, which may clear bits of it, and after access lists, which set some.
    let stat = rustix::fs::fstat(directory).map_err(step("looking at the root directory"))?;
    if stat.st_mode & 0o7777 != facts.mode {
        rustix::fs::fchmod(directory, Mode::from_raw_mode(facts.mode & 0o7777))
            .map_err(step("putting the root directory's mode back"))?;
    }
    if let Some(wanted) = facts.project
        && project(directory).map_err(WipeError::io("reading the root directory's project"))? != Some(wanted)
    {
        ioctl::set_project(directory, wanted).map_err(WipeError::io("putting the root directory's project back"))?;
    }
    // Last: an immutable directory takes no other change.
    let now = flags(directory).map_err(WipeError::io("reading the root directory's flags"))?.bits();
    if now & CHANGEABLE != facts.flags & CHANGEABLE {
        let wanted = IFlags::from_bits_retain(now & !CHANGEABLE | facts.flags & CHANGEABLE);
        rustix::fs::ioctl_setflags(directory, wanted).map_err(step("putting the root directory's flags back"))?;
    }
    rustix::fs::fsync(directory).map_err(step("making the root directory's attributes durable"))?;
    let now = read(directory).map_err(WipeError::io("reading the root directory's attributes back"))?;
    match facts.difference(&now) {
        None => Ok(()),
        // The kernel drops a setgid bit without a word.
        Some(difference) => {
            Err(WipeError::NotClean(format!("of the root directory, {difference}{}", capabilities::remedy())))
        }
    }
}

fn step(step: &'static str) -> impl Fn(Errno) -> WipeError {
    move |errno| WipeError::io(step)(errno.into())
}

fn restore_xattrs(directory: BorrowedFd<'_>, facts: &RootFacts) -> io::Result<()> {
    let named = |name: &str, errno: Errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{name}: {error}"))
    };
    for name in names(directory)? {
        let text = name.to_string_lossy();
        if facts.xattrs.contains_key(&*text) || text == SELINUX_LABEL {
            continue;
        }
        match rustix::fs::fremovexattr(directory, &name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(named(&text, errno)),
        }
    }
    for (name, Bytes(wanted)) in &facts.xattrs {
        if value(directory, name)?.as_ref() == Some(wanted) {
            continue;
        }
        match rustix::fs::fsetxattr(directory, name, wanted, XattrFlags::empty()) {
            Ok(()) => {}
            Err(_) if name == SELINUX_LABEL => {}
            Err(errno) => return Err(named(name, errno)),
        }
    }
    Ok(())
}

/// The names of the extended attributes, but for those that the kernel computes.
fn names(directory: impl AsFd) -> io::Result<Vec<CString>> {
    let mut buffer = vec![0; XATTR_MAX];
    let length = match rustix::fs::flistxattr(directory, &mut buffer) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = buffer[..length].split_inclusive(|byte| *byte == 0);
    let names = names.filter_map(|name| CStr::from_bytes_with_nul(name).ok());
    Ok(names
        .filter(|name| !OF_THE_KERNEL.iter().any(|own| own.as_bytes() == name.to_bytes()))
        .map(Into::into)
        .collect())
}

/// The value of an extended attribute; `None` when there is none of that name.
fn value(directory: BorrowedFd<'_>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; XATTR_MAX];
    match rustix::fs::fgetxattr(directory, name, &mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn project(directory: &OwnedFd) -> io::Result<Option<u32>> {
    match ioctl::project(directory) {
        Ok(project) => Ok(Some(project)),
        Err(error) if is_unsupported(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The flags that `chattr` shows; none on a filesystem without.
fn flags(file: impl AsFd) -> io::Result<IFlags> {
    match rustix::fs::ioctl_getflags(file).map_err(io::Error::from) {
        Err(error) if is_unsupported(&error) => Ok(IFlags::empty()),
        flags => flags,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::NOTTY, Errno::OPNOTSUPP, Errno::INVAL, Errno::NOSYS];
    unsupported.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Clears the flags that keep a file or directory from being changed, if there are any.
pub(super) fn clear_locks(file: impl AsFd) -> Result<(), Errno> {
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    match rustix::fs::ioctl_getflags(&file) {
        Ok(flags) if flags.intersects(locks) => rustix::fs::ioctl_setflags(file, flags - locks),
        // Without flags there is nothing to clear.
        _ => Ok(()),
    }
}
