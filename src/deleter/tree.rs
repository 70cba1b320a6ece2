//! Removes everything below a volume's root directory, and never anything else:
//! each step down is an `openat2` that stays beneath, on the same mount, and follows
//! no link, so nested mounts and links are obstacles, not ways out.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Control, WipeError};

/// Directories open at once. A deeper one is first moved up to the root, so that any
/// depth takes few files and no recursion.
const MAX_DEPTH: usize = 64;
/// Passes in which nothing was moved up, before somebody else must be at work.
const MAX_PASSES: u32 = 10;
/// `fsck` keeps this directory in the root of ext filesystems; it is emptied, and left.
const LOST_AND_FOUND: &CStr = c"lost+found";

/// A directory on the way down: its name in the one above, and what is left to read.
struct Level {
    name: CString,
    fd: OwnedFd,
    entries: Dir,
}

struct Removal<'a> {
    root: BorrowedFd<'a>,
    control: &'a Control,
    moved: u64,
    removed_in_pass: u64,
    obstacle: Option<(String, Errno)>,
}

/// Removes all entries, then makes that durable. An entry that can't be removed does
/// not keep the others.
///
/// # Errors
/// [`WipeError::Obstacle`] with the first entry that is still there.
pub fn remove_contents(root: &OwnedFd, control: &Control) -> Result<(), WipeError> {
    let mut removal = Removal { root: root.as_fd(), control, moved: 0, removed_in_pass: 0, obstacle: None };
    // A pass may miss entries that were moved or made meanwhile: look until one finds
    // nothing, or can't get on, or somebody makes them as fast as they are removed.
    let mut passes = 0;
    while let Some(name) = first_entry(root)? {
        let moved = removal.moved;
        removal.removed_in_pass = 0;
        removal.obstacle = None;
        removal.pass()?;
        passes += u32::from(moved == removal.moved);
        if passes > MAX_PASSES {
            return Err(WipeError::Busy(format!("something is still writing into it ({name} was there again)")));
        }
        if removal.removed_in_pass == 0 {
            let (path, errno) = removal.obstacle.unwrap_or_else(|| ("an entry".to_owned(), Errno::BUSY));
            return Err(obstacle(path, errno));
        }
    }
    rustix::fs::syncfs(root).map_err(|errno| WipeError::io("making the removal durable")(errno.into()))
}

/// The name of an entry of the root that is neither `lost+found` nor empty.
pub fn first_entry(root: &OwnedFd) -> Result<Option<String>, WipeError> {
    for entry in Dir::read_from(root)? {
        let entry = entry?;
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
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

fn is_dot(name: &CStr) -> bool {
    name == c"." || name == c".."
}

fn obstacle(path: String, errno: Errno) -> WipeError {
    let problem = match errno {
        Errno::XDEV | Errno::BUSY => "something else is mounted there; unmount it".to_owned(),
        Errno::PERM => "it is immutable, append-only or an active swap file".to_owned(),
        other => std::io::Error::from(other).to_string(),
    };
    WipeError::Obstacle { path, problem }
}

impl Removal<'_> {
    /// Goes through the whole tree once, removing what it meets.
    fn pass(&mut self) -> Result<(), WipeError> {
        let mut levels: Vec<Level> = Vec::new();
        let mut top = Dir::read_from(self.root)?;
        loop {
            self.control.check()?;
            let entries = levels.last_mut().map_or(&mut top, |level| &mut level.entries);
            match entries.read() {
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    if is_dot(name) {
                        continue;
                    }
                    let parent = levels.last().map_or(self.root, |level| level.fd.as_fd());
                    match self.remove_or_descend(parent, name, entry.file_type(), levels.len()) {
                        Ok(Some(below)) => levels.push(below),
                        Ok(None) => {}
                        Err(errno) => self.note_obstacle(&levels, name, errno),
                    }
                }
                None => match levels.pop() {
                    Some(done) => self.remove_directory(&levels, &done),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Removes an entry that is no directory; opens one that is.
    fn remove_or_descend(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        kind: FileType,
        depth: usize,
    ) -> Result<Option<Level>, Errno> {
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) => {
                    self.count();
                    return Ok(None);
                }
                // Filesystems that do not tell the type say so only now.
                Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        let fd = match open_below(parent, name) {
            Err(Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        if depth >= MAX_DEPTH && self.move_to_root(parent, name) {
            return Ok(None);
        }
        let entries = Dir::read_from(&fd)?;
        Ok(Some(Level { name: name.to_owned(), fd, entries }))
    }

    /// Moves a deep directory to the root under a name of its own, where a later pass
    /// meets it. Where that can't be (project quotas), the way down goes on.
    fn move_to_root(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> bool {
        loop {
            self.moved += 1;
            let new_name = format!(".mooring-wipe-{}", self.moved);
            match rustix::fs::renameat(parent, name, self.root, &new_name) {
                Ok(()) => {
                    self.removed_in_pass += 1;
                    return true;
                }
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Removes a directory after its contents, unless something in it stayed.
    fn remove_directory(&mut self, above: &[Level], done: &Level) {
        if above.is_empty() && done.name.as_c_str() == LOST_AND_FOUND {
            return;
        }
        let parent = above.last().map_or(self.root, |level| level.fd.as_fd());
        match rustix::fs::unlinkat(parent, &done.name, AtFlags::REMOVEDIR) {
            Ok(()) => self.count(),
            // What stayed in it is an obstacle already, or is met in the next pass.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
            Err(errno) => self.note_obstacle(above, &done.name, errno),
        }
    }

    fn count(&mut self) {
        self.removed_in_pass += 1;
        self.control.advance(1);
    }

    fn note_obstacle(&mut self, above: &[Level], name: &CStr, errno: Errno) {
        self.obstacle.get_or_insert_with(|| {
            let names = above.iter().map(|level| level.name.as_c_str()).chain([name]);
            let path: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            (path.join("/"), errno)
        });
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
