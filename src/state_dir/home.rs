//! The open directory: what is at its path, who has it locked, and the names in it.
//! Every file is reached from the directory's fd and no link is followed.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, process};

use rustix::fs::{Advice, AtFlags, Dir, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use tracing::warn;

use super::StateDirError;
use crate::ledger::EntryId;

/// The lock of the one agent. Never removed: a second agent could lock a new one.
const NODE_LOCK: &str = "lock";
/// Of all files.
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
/// Of the directory.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// The open state directory.
#[derive(Debug)]
pub struct Home {
    pub path: PathBuf,
    pub dir: Arc<OwnedFd>,
    node_lock: Option<Lock>,
}

/// A locked file, unlocked when dropped: closing it would not do while a child that is
/// just being started shares it.
#[derive(Debug)]
struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        // Should that fail, the lock ends with the file.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// The volume of an entry is this holder's alone among those who ask for the lock.
#[derive(Debug)]
pub struct EntryLock {
    dir: Arc<OwnedFd>,
    name: String,
    _lock: Lock,
}

impl Drop for EntryLock {
    fn drop(&mut self) {
        // While it is still locked: whoever opens the file now finds out that it is gone.
        // One that stays is an unlocked file, which does no harm.
        let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

/// What tells one version of a file from another: inode, size, and time of the last write
/// in seconds and nanoseconds. A new name changes none of these.
pub type Version = (u64, i64, i64, i64);

/// The version of a file.
pub fn version(stat: &Stat) -> Version {
    (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or_default())
}

/// The file of an entry.
pub fn entry_file(id: EntryId) -> String {
    format!("{id}.json")
}

/// Where the file of an entry is written before it takes its name.
pub fn temporary_file(id: EntryId) -> String {
    format!("{id}.json.tmp")
}

/// Makes the directory, durably, if nothing is there.
pub fn create(path: &Path) -> Result<(), StateDirError> {
    let failed = |step| move |errno| StateDirError::Io { step, path: path.to_owned(), errno };
    match rustix::fs::mkdir(path, DIRECTORY_MODE) {
        Err(Errno::EXIST) => return Ok(()),
        made => made.map_err(failed("making the state directory"))?,
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    rustix::fs::open(above, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(rustix::fs::fsync)
        .map_err(failed("making the state directory durable:"))
}

impl Home {
    /// Opens the directory, without its lock.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |errno| StateDirError::Io { step: "opening the state directory", path: path.to_owned(), errno };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => StateDirError::Missing(path.to_owned()),
            errno => failed(errno),
        })?;
        let stat = rustix::fs::fstat(&dir).map_err(failed)?;
        let mode = stat.st_mode & 0o7777;
        if stat.st_uid != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
            return Err(StateDirError::Exposed { path: path.to_owned(), owner: stat.st_uid, mode });
        }
        Ok(Self { path: path.to_owned(), dir: Arc::new(dir), node_lock: None })
    }

    /// Takes the lock that only one agent of the node has.
    pub fn lock_node(&mut self) -> Result<(), StateDirError> {
        let Some(lock) = self.lock(NODE_LOCK)? else {
            let mut holder = String::new();
            let read = self.open_file(NODE_LOCK).map(|file| fs::File::from(file).take(256).read_to_string(&mut holder));
            if !matches!(read, Ok(Ok(_))) || holder.trim().is_empty() {
                "it does not say which".clone_into(&mut holder);
            }
            return Err(StateDirError::Locked { lock: self.path.join(NODE_LOCK), holder: holder.trim().to_owned() });
        };
        self.node_lock = Some(lock);
        // Who has it is for people to read: without it the lock is as good.
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let text = format!("pid {} on {}\n", process::id(), host.trim());
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _ = rustix::fs::openat(&self.dir, NODE_LOCK, flags, Mode::empty())
            .map(|file| fs::File::from(file).write_all(text.as_bytes()));
        Ok(())
    }

    /// Whether this is the agent's own.
    pub fn is_agents(&self) -> bool {
        self.node_lock.is_some()
    }

    /// Takes the lock of one entry.
    pub fn lock_entry(&self, id: EntryId) -> Result<EntryLock, StateDirError> {
        let name = format!("{id}.lock");
        match self.lock(&name)? {
            Some(lock) => Ok(EntryLock { dir: Arc::clone(&self.dir), name, _lock: lock }),
            None => Err(StateDirError::EntryBusy(self.path.join(name))),
        }
    }

    /// Makes and locks the file of that name; `None` while somebody has it locked.
    fn lock(&self, name: &str) -> Result<Option<Lock>, StateDirError> {
        let failed = |errno| StateDirError::Io { step: "locking", path: self.path.join(name), errno };
        // Not for writing: that would keep the host from making its disk read-only.
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        loop {
            let file = Lock(rustix::fs::openat(&self.dir, name, flags, FILE_MODE).map_err(failed)?);
            match rustix::fs::flock(&file.0, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                locked => locked.map_err(failed)?,
            }
            // The last holder may have removed the file after it was opened here: then
            // it keeps nobody out.
            if self.is_at(&file, name).map_err(failed)? {
                return Ok(Some(file));
            }
        }
    }

    /// Whether the open file still is the one of that name.
    fn is_at(&self, file: &Lock, name: &str) -> Result<bool, Errno> {
        let own = rustix::fs::fstat(&file.0)?;
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => Ok((now.st_dev, now.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the open directory still is the one at the path.
    pub fn is_in_place(&self) -> bool {
        match (rustix::fs::fstat(&self.dir), rustix::fs::stat(&self.path)) {
            (Ok(own), Ok(now)) => own.st_nlink > 0 && (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino),
            _ => false,
        }
    }

    /// The names in it, in order.
    pub fn names(&self) -> Result<Vec<String>, StateDirError> {
        let failed = |errno| StateDirError::Io { step: "reading the state directory", path: self.path.clone(), errno };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(failed)? {
            // A name that is no text is none of ours.
            names.extend(entry.map_err(failed)?.file_name().to_str().map(ToOwned::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes what a crash has left: files that never took their names, and locks
    /// that nobody holds. Only for the agent, and not while somebody has the entry.
    pub fn remove_leftovers(&self) -> Result<(), StateDirError> {
        for name in self.names()? {
            let Some((id, ending)) = name.split_once('.') else { continue };
            let Ok(id) = EntryId::try_from(id.to_owned()) else { continue };
            if ending != "json.tmp" && ending != "lock" {
                continue;
            }
            // The lock's own file goes with the lock.
            let removed = match self.lock_entry(id) {
                Ok(_lock) if ending == "json.tmp" => {
                    rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()).map_err(std::io::Error::from)
                }
                Ok(_) | Err(StateDirError::EntryBusy(_)) => Ok(()),
                Err(error) => Err(std::io::Error::other(error)),
            };
            if let Err(error) = removed {
                warn!(file = %self.path.join(&name).display(), %error, "A leftover in the state directory stays");
            }
        }
        Ok(())
    }

    /// Opens a file for reading.
    pub fn open_file(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, name, flags, Mode::empty())
    }

    /// Writes a new file and lets its content set out for the disk: [`NewFile::arrive`]
    /// waits for it. What was there under the name is removed, and a link not followed.
    /// After a failure nothing is left.
    pub fn write_new(&self, name: String, text: &[u8]) -> Result<NewFile<'_>, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.dir, &name, flags, FILE_MODE);
        let file = fs::File::from(match open() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty())?;
                open()?
            }
            opened => opened?,
        });
        let mut new = NewFile { dir: &self.dir, name, file, has_arrived: false };
        new.file.write_all(text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // Linux begins to write what is not to stay in memory. Should it not, it does later.
        let _ = rustix::fs::fadvise(&new.file, 0, None, Advice::DontNeed);
        Ok(new)
    }
}

/// A file that is on its way to the disk; removed when dropped before it is there.
#[derive(Debug)]
pub struct NewFile<'a> {
    dir: &'a OwnedFd,
    name: String,
    file: fs::File,
    has_arrived: bool,
}

impl NewFile<'_> {
    /// Returns once its content is on the disk, with its version.
    pub fn arrive(mut self) -> Result<Version, Errno> {
        rustix::fs::fdatasync(&self.file)?;
        let version = version(&rustix::fs::fstat(&self.file)?);
        self.has_arrived = true;
        Ok(version)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.has_arrived {
            // What can't be removed now is a leftover for the next start.
            let _ = rustix::fs::unlinkat(self.dir, &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
#[path = "home_tests.rs"]
mod tests;
