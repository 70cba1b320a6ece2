//! Removes everything below a volume's root directory, and never anything else:
//! each step down is an `openat2` that stays beneath, on the same mount, and follows
//! no link, so nested mounts and links are obstacles, not ways out.

mod dir;
mod locks;
mod queue;
mod walk;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Control, WipeError, root};
use crate::node::capabilities;
use crate::root::RootFacts;
use walk::Tally;

/// More threads gain little: they wait for the filesystem's journal.
const MAX_THREADS: usize = 4;
/// Passes in which nothing was moved up, before somebody else must be at work.
const MAX_PASSES: u32 = 10;
/// `fsck` keeps this directory in the root of ext filesystems; it is emptied, and left.
const LOST_AND_FOUND: &CStr = c"lost+found";
/// No way down leaves the directory or its mount.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Removes all entries with a few threads, then makes that durable. An entry that
/// can't be removed does not keep the others, unless the filesystem takes no changes.
/// May be called again after any failure, and then goes on.
///
/// # Errors
/// [`WipeError::Obstacle`] with the first entry that is still there,
/// [`WipeError::Busy`] when entries are made as fast as they are removed,
/// [`WipeError::Cancelled`] soon after `control` says so.
pub fn remove_contents(root: &OwnedFd, control: &Control) -> Result<(), WipeError> {
    let tally = Tally::default();
    let now = || (tally.removed.load(Ordering::Relaxed), tally.moved.load(Ordering::Relaxed));
    // A pass may miss entries that were moved or made meanwhile: look until one finds
    // nothing, or can't get on, or somebody makes them as fast as they are removed.
    let mut passes = 0;
    let mut threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_THREADS);
    while let Some(name) = first_entry(root)? {
        let before = now();
        let outcome = walk::pass(root, control, &tally, threads);
        if tally.full.swap(false, Ordering::Relaxed) && (threads > 1 || now() != before) {
            control.check()?;
            // A copy-on-write filesystem needs room to remove something. What was removed
            // gives it back with the next commit, and one change at a time needs the least.
            syncfs(root)?;
            threads = 1;
            continue;
        }
        let obstacle = outcome?;
        if now() == before
            && let Some(obstacle) = obstacle
        {
            return Err(obstacle);
        }
        passes += u32::from(now().1 == before.1);
        if passes > MAX_PASSES {
            return Err(WipeError::Busy(format!("something is still writing into it ({name} was there again)")));
        }
    }
    if let Ok(fd) = open_below(root.as_fd(), LOST_AND_FOUND) {
        // As mkfs made it: a tenant may have kept something in its attributes.
        root::restore(&fd, &RootFacts { mode: 0o700, ..RootFacts::default() })?;
    }
    syncfs(root)
}

fn syncfs(root: &OwnedFd) -> Result<(), WipeError> {
    rustix::fs::syncfs(root).map_err(|errno| WipeError::io("making the removal durable")(errno.into()))
}

/// The name of an entry of the root that is neither `lost+found` nor empty.
pub fn first_entry(root: &OwnedFd) -> Result<Option<String>, WipeError> {
    let failed = |errno: Errno| WipeError::io("reading the volume's root directory")(errno.into());
    for entry in Dir::read_from(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if is_dot(name) || (name == LOST_AND_FOUND && is_empty_directory(root, name)?) {
            continue;
        }
        return Ok(Some(name.to_string_lossy().into_owned()));
    }
    Ok(None)
}

fn is_empty_directory(parent: &OwnedFd, name: &CStr) -> Result<bool, WipeError> {
    match open_below(parent.as_fd(), name) {
        Ok(fd) => {
            for entry in Dir::read_from(&fd)? {
                if !is_dot(entry?.file_name()) {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}

fn open_below(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), RESOLVE)
}

fn is_dot(name: &CStr) -> bool {
    name == c"." || name == c".."
}

/// Whether the filesystem, and not the entry, is the reason: to go on would meet the
/// same at each entry, or make it worse.
fn is_fatal(errno: Errno) -> bool {
    const FATAL: [Errno; 14] = [
        Errno::ROFS,
        Errno::IO,
        Errno::STALE,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::UCLEAN,
        Errno::BADMSG,
        Errno::NXIO,
        Errno::NODEV,
        Errno::NOTCONN,
        Errno::SHUTDOWN,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
    ];
    FATAL.contains(&errno)
}

fn obstacle(path: String, name: &CStr, errno: Errno) -> WipeError {
    let problem = match errno {
        Errno::XDEV | Errno::BUSY => "something else is mounted there; unmount it".to_owned(),
        Errno::PERM => format!("{}{}", locks::not_permitted(name), capabilities::remedy()),
        Errno::ACCESS => format!("{}{}", std::io::Error::from(errno), capabilities::remedy()),
        Errno::ROFS => {
            "the filesystem is read-only; the kernel's log says whether an error made it so. Make it writable, and \
             the wipe goes on"
                .to_owned()
        }
        errno if is_fatal(errno) => {
            let error = std::io::Error::from(errno);
            format!("{error}. The wipe stopped there, and goes on when the filesystem is well again")
        }
        other => std::io::Error::from(other).to_string(),
    };
    WipeError::Obstacle { path, problem }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
