//! What keeps an entry from being removed: flags that `chattr` sets, which are
//! cleared, and its use as swap, which is told.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{RESOLVE, root};

/// Does `action`, which changes the entry `name` of a directory. When that is not
/// permitted, clears the immutable and append-only flags of both, and tries once more.
pub fn unlocked<T>(parent: BorrowedFd<'_>, name: &CStr, action: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match action() {
        Err(Errno::PERM) => {
            // Whether this was of use, the second try shows.
            let _ = root::clear_locks(parent);
            let _ = clear_locks_of_entry(parent, name);
            action()
        }
        outcome => outcome,
    }
}

/// Clears the flags of a regular file or directory. Nothing else is ever opened: to
/// open a device or a FIFO can do something.
fn clear_locks_of_entry(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        _ => return Ok(()),
    }
    // The kernel takes flags only through a file that is really open.
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    root::clear_locks(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Why an entry that is not locked by flags is "not permitted" to be removed.
pub fn not_permitted(name: &CStr) -> String {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if is_swap(&swaps, &name.to_string_lossy()) {
        "it is an active swap file (/proc/swaps names it); end that with swapoff".to_owned()
    } else {
        "it is immutable, append-only, an active swap file or another user's in a sticky directory, and this process \
         may not change that"
            .to_owned()
    }
}

/// Whether a file of that name is in use as swap. The table has paths as another mount
/// namespace may see them, so only names are compared.
fn is_swap(swaps: &str, name: &str) -> bool {
    let mut files = swaps.lines().map(str::split_whitespace).filter_map(|mut words| {
        let path = words.next()?;
        (words.next()? == "file").then_some(path)
    });
    files.any(|path| Path::new(path).file_name().is_some_and(|last| last == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_file_is_known_by_its_name() {
        let swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/dm-1                               partition\t8388604\t\t0\t\t-2\n\
            /mnt/disks/v1/swapfile                  file\t\t65532\t\t0\t\t-3\n";
        assert!(is_swap(swaps, "swapfile"));
        assert!(!is_swap(swaps, "dm-1"), "a partition is no file");
        assert!(!is_swap(swaps, "file"));
        assert!(!is_swap(swaps, "v1"));
        assert!(!is_swap("", ""));
    }
}
