//! The state directory: the ledger's entries as files on the host, one each, and the lock
//! that keeps a second agent of this node from acting at the same time. Everything in it
//! is reached through the one open directory; nothing is followed out of it.

mod writer;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tracing::{debug, warn};

use crate::ledger::file::{self, FileError};
use crate::ledger::{Entry, EntryId, Ledger};

pub use writer::{SaveError, Writer};

/// Held for as long as the agent lives.
const LOCK: &str = "lock";
/// The end of an entry's file name.
const ENTRY: &str = ".json";
/// The end of the name of a file that is being written.
const TEMPORARY: &str = ".json.tmp";
/// A larger file is none of ours.
const MAX_FILE: u64 = 1 << 20;

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another agent has it.
    #[error("another mooring agent runs on this node and has it locked: stop that one")]
    Locked,
    /// A newer agent wrote into it.
    #[error("{name}: {error}")]
    Newer {
        /// Name of the file.
        name: String,
        /// What is wrong with it.
        error: FileError,
    },
    /// The kernel refused.
    #[error("{step}: {source}; give the agent a directory on the host that it may write")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl StateDirError {
    fn io(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Io { step, source: errno.into() }
    }
}

/// The open and locked directory.
#[derive(Debug)]
pub struct StateDir {
    directory: OwnedFd,
    path: std::path::PathBuf,
    _lock: OwnedFd,
}

impl StateDir {
    /// Opens the directory (`create`: makes it, if it is missing), locks it, and reads the
    /// ledger. A file that can't be read is left as it is, named in a warning, and counted
    /// as lost.
    ///
    /// # Errors
    /// When it can't be opened, another agent has it, or a newer one wrote into it.
    pub fn open(path: &Path, create: bool) -> Result<(Self, Ledger), StateDirError> {
        let directory = open_directory(path, create)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&directory, LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(StateDirError::io("opening its lock"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StateDirError::Locked),
            Err(errno) => return Err(StateDirError::io("locking it")(errno)),
        }
        let ledger = read_all(&directory)?;
        Ok((Self { directory, path: path.to_owned(), _lock: lock }, ledger))
    }

    /// Starts the thread that writes. It keeps the lock until [`Writer::close`], or until the
    /// process ends.
    ///
    /// # Errors
    /// When no thread is to be had.
    pub fn into_writer(self) -> io::Result<Writer> {
        Writer::start(self)
    }
}

/// Reads the ledger of a directory that an agent may have locked, to look at only.
///
/// # Errors
/// As [`StateDir::open`].
pub fn look(path: &Path) -> Result<Ledger, StateDirError> {
    read_all(&open_directory(path, false)?)
}

fn open_directory(path: &Path, create: bool) -> Result<OwnedFd, StateDirError> {
    if create {
        let private = Mode::RWXU;
        match rustix::fs::mkdir(path, private) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(StateDirError::io("making it")(errno)),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(StateDirError::io("opening it"))
}

fn read_all(directory: &OwnedFd) -> Result<Ledger, StateDirError> {
    let mut entries = Vec::new();
    let mut lost = 0;
    for listed in Dir::read_from(directory).map_err(StateDirError::io("listing it"))? {
        let listed = listed.map_err(StateDirError::io("listing it"))?;
        let Ok(name) = listed.file_name().to_str() else { continue };
        if let Some(id) = name.strip_suffix(TEMPORARY).and_then(id) {
            // Left by a crash; the file of that name, if any, is whole.
            debug!(entry = %id, "Removing a file of an interrupted write");
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            continue;
        }
        let Some(id) = name.strip_suffix(ENTRY).and_then(id) else { continue };
        match read(directory, name) {
            Ok(entry) if entry.id == id => entries.push(entry),
            Ok(_) => {
                lost += 1;
                warn!(file = name, problem = "it is about another entry than its name says", "{UNREADABLE}");
            }
            Err(error @ FileError::Newer(_)) => return Err(StateDirError::Newer { name: name.to_owned(), error }),
            Err(FileError::Garbage(problem)) => {
                lost += 1;
                warn!(file = name, problem, "{UNREADABLE}");
            }
        }
    }
    Ok(Ledger::new(entries, lost))
}

const UNREADABLE: &str = "An entry of the ledger can't be read: until the file is removed, volumes that have not been \
                          seen before are kept from being claimed";

fn id(stem: &str) -> Option<EntryId> {
    EntryId::try_from(stem.to_owned()).ok()
}

fn read(directory: &OwnedFd, name: &str) -> Result<Entry, FileError> {
    let garbage = |error: io::Error| FileError::Garbage(error.to_string());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(|errno| garbage(errno.into()))?;
    let size = rustix::fs::fstat(&fd).map_err(|errno| garbage(errno.into()))?.st_size;
    if u64::try_from(size).is_ok_and(|size| size > MAX_FILE) {
        return Err(FileError::Garbage(format!("it has {size} bytes")));
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(fd), &mut text).map_err(garbage)?;
    file::read(&text)
}

/// Replaces an entry's file, up to and without making the new name durable.
fn write(directory: impl AsFd, entry: &Entry) -> io::Result<()> {
    let temporary = format!("{}{TEMPORARY}", entry.id);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&directory, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    let written = write_text(fd, &file::write(entry))
        .and_then(|()| Ok(rustix::fs::renameat(&directory, temporary.as_str(), &directory, name(entry).as_str())?));
    if written.is_err() {
        // What is half written is of no use, and takes the room that may be missing.
        let _ = rustix::fs::unlinkat(&directory, temporary.as_str(), AtFlags::empty());
    }
    written
}

fn write_text(fd: OwnedFd, text: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, text)?;
    file.sync_data()
}

fn name(entry: &Entry) -> String {
    format!("{}{ENTRY}", entry.id)
}
