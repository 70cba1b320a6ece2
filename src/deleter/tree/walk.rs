//! One way through a whole tree, by several threads. Each takes a subtree and goes
//! through it depth first; while others lack work, it hands them the directories that
//! it meets. A directory is removed by whoever ends the last work below it.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fs::{AtFlags, FileType, RawDir};
use rustix::io::Errno;

use super::dir::Dir;
use super::locks::unlocked;
use super::queue::{Queue, StopOnPanic};
use super::{LOST_AND_FOUND, is_dot, is_fatal, obstacle, open_below, root as root_directory};
use crate::deleter::{Control, WipeError};
use crate::node::ioctl;

/// Directories open at once below each other. A deeper one is first moved up to the
/// root, so that any depth takes few files and no recursion.
const MAX_DEPTH: usize = 32;
/// How much of a directory is read at once, in bytes: a thousand short names. A
/// level of the way down keeps the names of directories in it.
const CHUNK: usize = 32 << 10;

/// What was done in all passes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Entries removed.
    pub removed: AtomicU64,
    /// Directories moved up to the root.
    pub moved: AtomicU64,
    /// Names tried for them.
    names: AtomicU64,
    /// The filesystem had no room for a change.
    pub full: AtomicBool,
}

/// Goes through the whole tree once with so many threads, removing what it meets; returns
/// what could not be removed, if there is such an entry.
///
/// # Errors
/// Cancelled, or an obstacle that ends all: the filesystem does not take changes.
pub fn pass(root: &OwnedFd, control: &Control, tally: &Tally, threads: usize) -> Result<Option<WipeError>, WipeError> {
    // Read from its beginning, which takes an open file of its own.
    let fd = open_below(root.as_fd(), c".").map_err(|errno| obstacle(".".to_owned(), c".", errno))?;
    // It takes in what is moved up. Whether this was of use, the removal shows.
    let _ = root_directory::clear_locks(&fd);
    let root = Arc::new(Dir { parent: None, name: c".".to_owned(), fd, depth: 0, unfinished: AtomicUsize::new(1) });
    let queue = Queue::new(Arc::clone(&root), threads);
    let pass = Pass { root, control, tally, queue, failure: Mutex::default(), obstacle: Mutex::default() };
    thread::scope(|scope| {
        for _ in 1..threads {
            let thread = thread::Builder::new().name("wipe".to_owned());
            if thread.spawn_scoped(scope, || pass.work()).is_err() {
                // Fewer threads do the same.
                break;
            }
        }
        pass.work();
    });
    match pass.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(pass.obstacle.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

struct Pass<'a> {
    root: Arc<Dir>,
    control: &'a Control,
    tally: &'a Tally,
    queue: Queue<Arc<Dir>>,
    /// What ended the pass before its end.
    failure: Mutex<Option<WipeError>>,
    /// The first entry that could not be removed.
    obstacle: Mutex<Option<WipeError>>,
}

/// A directory that a thread is at, and the directories that it met there.
struct Level {
    dir: Arc<Dir>,
    below: Vec<CString>,
}

impl Pass<'_> {
    fn work(&self) {
        let _stop = StopOnPanic(&self.queue);
        let mut buffer = vec![MaybeUninit::uninit(); CHUNK];
        while let Some(dir) = self.queue.next() {
            if let Err(error) = self.remove_below(dir, &mut buffer) {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                self.queue.stop();
            }
            self.queue.done();
        }
    }

    /// Removes what is in the directory, and then itself.
    fn remove_below(&self, dir: Arc<Dir>, buffer: &mut [MaybeUninit<u8>]) -> Result<(), WipeError> {
        let mut levels = vec![Level { dir, below: Vec::new() }];
        while let Some(level) = levels.last_mut() {
            self.check()?;
            if let Some(name) = level.below.pop() {
                match self.enter(&level.dir, name)? {
                    Some(dir) if self.queue.is_short() => self.queue.push(dir),
                    Some(dir) => levels.push(Level { dir, below: Vec::new() }),
                    None => {}
                }
            } else if !self.remove_chunk(level, buffer)?
                && let Some(level) = levels.pop()
            {
                self.finish(level.dir)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), WipeError> {
        self.control.check()?;
        // Whoever stopped it has said why.
        if self.queue.is_stopped() { Err(WipeError::Cancelled) } else { Ok(()) }
    }

    /// Reads some entries of the directory and removes those that are no directories;
    /// says whether there were any.
    fn remove_chunk(&self, level: &mut Level, buffer: &mut [MaybeUninit<u8>]) -> Result<bool, WipeError> {
        let mut chunk: Vec<(u64, FileType, CString)> = Vec::new();
        let mut entries = RawDir::new(&level.dir.fd, buffer);
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => chunk.push((entry.ino(), entry.file_type(), entry.file_name().to_owned())),
                // It was removed by somebody else.
                Err(Errno::NOENT) => break,
                Err(errno) => {
                    self.note(&level.dir, None, errno)?;
                    break;
                }
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        let any = !chunk.is_empty();
        // In the order in which they lie on the disk.
        chunk.sort_unstable_by_key(|(inode, ..)| *inode);
        for (_, kind, name) in chunk {
            if is_dot(&name) {
                continue;
            }
            self.check()?;
            if kind == FileType::Directory || !self.remove_file(&level.dir, &name)? {
                level.below.push(name);
            }
        }
        level.below.reverse();
        Ok(any)
    }

    /// Removes an entry, unless it is a directory, which filesystems that do not tell
    /// the type of entries say only now.
    fn remove_file(&self, parent: &Arc<Dir>, name: &CStr) -> Result<bool, WipeError> {
        match unlocked(parent.fd.as_fd(), name, || rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())) {
            Ok(()) => self.count(),
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => return Ok(false),
            Err(errno) => self.note(parent, Some(name), errno)?,
        }
        Ok(true)
    }

    /// Opens a directory to go through it, unless it lies so deep that it was moved.
    fn enter(&self, parent: &Arc<Dir>, name: CString) -> Result<Option<Arc<Dir>>, WipeError> {
        let fd = match open_below(parent.fd.as_fd(), &name) {
            Ok(fd) => fd,
            // Gone, or something else by now, which a later pass meets.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => {
                self.note(parent, Some(&name), errno)?;
                return Ok(None);
            }
        };
        let depth = parent.depth + 1;
        if depth > MAX_DEPTH && self.move_to_root(parent, &name, &fd) {
            return Ok(None);
        }
        parent.unfinished.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Arc::new(Dir { parent: Some(Arc::clone(parent)), name, fd, depth, unfinished: AtomicUsize::new(1) })))
    }

    /// Moves a deep directory to the root under a name of its own, where a later pass
    /// meets it. Where that can't be (the disk is full), the way down goes on.
    fn move_to_root(&self, parent: &Dir, name: &CStr, fd: &OwnedFd) -> bool {
        let root = &self.root.fd;
        let mut of_same_project = false;
        loop {
            let number = self.tally.names.fetch_add(1, Ordering::Relaxed) + 1;
            let new_name = format!(".mooring-wipe-{number}");
            let rename = || rustix::fs::renameat(&parent.fd, name, root, &new_name);
            match unlocked(parent.fd.as_fd(), name, rename) {
                Ok(()) => {
                    self.tally.moved.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
                // Directories that count for a project take in none of another.
                Err(Errno::XDEV) if !of_same_project => {
                    let joined = ioctl::project(root).and_then(|project| ioctl::set_project(fd, project));
                    if joined.is_err() {
                        return false;
                    }
                    of_same_project = true;
                }
                Err(_) => return false,
            }
        }
    }

    /// Notes that some work in a directory has ended. After the last it is removed,
    /// unless something in it stayed, and that was some work in the one above.
    fn finish(&self, mut dir: Arc<Dir>) -> Result<(), WipeError> {
        while dir.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            let Some(parent) = dir.parent.clone() else { break };
            self.remove_directory(&parent, &dir)?;
            dir = parent;
        }
        Ok(())
    }

    fn remove_directory(&self, parent: &Arc<Dir>, dir: &Dir) -> Result<(), WipeError> {
        if dir.depth == 1 && dir.name.as_c_str() == LOST_AND_FOUND {
            return Ok(());
        }
        let remove = || rustix::fs::unlinkat(&parent.fd, &dir.name, AtFlags::REMOVEDIR);
        match unlocked(parent.fd.as_fd(), &dir.name, remove) {
            Ok(()) => self.count(),
            // What stayed in it is an obstacle already, or is met in the next pass.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => self.note(parent, Some(&dir.name), errno)?,
        }
        Ok(())
    }

    fn count(&self) {
        self.tally.removed.fetch_add(1, Ordering::Relaxed);
        self.control.advance(1);
    }

    /// Keeps the first obstacle: an entry of a directory, or the directory. One that
    /// others would meet as well ends the pass.
    fn note(&self, dir: &Dir, entry: Option<&CStr>, errno: Errno) -> Result<(), WipeError> {
        let new = || obstacle(dir.path(entry), entry.unwrap_or(&dir.name), errno);
        if is_fatal(errno) {
            if matches!(errno, Errno::NOSPC | Errno::DQUOT) {
                self.tally.full.store(true, Ordering::Relaxed);
            }
            return Err(new());
        }
        self.obstacle.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(new);
        Ok(())
    }
}
