//! The state directory: the ledger's entries as files, one each, changed so that a
//! crash at any moment leaves the old one or the new one. One agent a node has it at a
//! time. All work on its files is done by one thread, to which [`StateDir`] is the way.

mod answer;
mod batch;
mod classes;
mod home;
mod load;
mod thread;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};

use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::ledger::file::{self, FileError};
use crate::ledger::{Entry, EntryId, Ledger};
use home::Home;
use thread::Request;

pub use answer::Answer;
pub use home::EntryLock;

/// An open state directory. Clones are of the same one; when the last is gone, what was
/// asked for is still done, then the lock is released.
#[derive(Clone, Debug)]
pub struct StateDir {
    requests: Sender<Request>,
}

/// Why something could not be done with the state directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateDirError {
    /// It does not exist.
    #[error("there is no state directory {0}: make it, or name another")]
    Missing(PathBuf),
    /// Others could forge what it says.
    #[error(
        "the state directory {path} belongs to user {owner} and has mode {mode:o}: it must belong to the agent's \
             own user, and only that one may write to it (chown root, chmod 700)"
    )]
    Exposed {
        /// Where it is.
        path: PathBuf,
        /// The user that it belongs to.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Two agents would wipe and publish the same volumes.
    #[error("another mooring agent runs on this node ({holder}; it has locked {lock}): stop it")]
    Locked {
        /// The lock file.
        lock: PathBuf,
        /// What the other agent says of itself.
        holder: String,
    },
    /// A file in it is of a newer program.
    #[error("{file} can't be used: {error}")]
    Newer {
        /// The file.
        file: PathBuf,
        /// Why.
        error: FileError,
    },
    /// What is at the path is not the directory that was opened.
    #[error(
        "the state directory {0} was removed or replaced while it was in use, so what is written to it would be lost: \
         put it back, or write all entries anew"
    )]
    Replaced(PathBuf),
    /// Somebody else is at work on the volume of the entry.
    #[error("another process is at work on this volume (it has locked {0}): wait for it, or stop it")]
    EntryBusy(PathBuf),
    /// The kernel refused a step.
    #[error("{step} {path}: {}{}", std::io::Error::from(*.errno), remedy(*.errno))]
    Io {
        /// What was being done.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// It was closed, or its thread has ended in a panic.
    #[error("the state directory is closed, nothing more is written to it")]
    Closed,
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC | Errno::DQUOT => "; make room there",
        Errno::ROFS => "; mount it for writing",
        Errno::IO => "; look for errors of this disk in the kernel's log",
        Errno::ACCESS | Errno::PERM => "; let the agent run as the directory's owner",
        _ => "",
    }
}

impl StateDir {
    /// Opens the state directory for the one agent of this node and reads the ledger.
    /// With `create`, makes the directory (not those above it) if there is none. Blocks.
    /// Files that are no entries are left as they are, warned of and counted as lost.
    ///
    /// # Errors
    /// It is missing or exposed to others, another agent has it, it holds an entry of
    /// a newer program, or the kernel refuses.
    pub fn open(path: &Path, create: bool) -> Result<(Self, Ledger), StateDirError> {
        if create {
            home::create(path)?;
        }
        let mut home = Home::open(path)?;
        home.lock_node()?;
        home.remove_leftovers()?;
        Self::start(home)
    }

    /// Opens the state directory while an agent may have it, for a command that locks
    /// the one entry that it changes. Blocks.
    ///
    /// # Errors
    /// As [`StateDir::open`], but for the other agent.
    pub fn open_beside_agent(path: &Path) -> Result<(Self, Ledger), StateDirError> {
        Self::start(Home::open(path)?)
    }

    /// Reads the ledger, and the text about the classes, while an agent may have the state
    /// directory, and changes nothing: no lock is taken. Blocks.
    ///
    /// # Errors
    /// As [`StateDir::open`], but for the other agent.
    pub fn read_only(path: &Path) -> Result<(Ledger, Option<Vec<u8>>), StateDirError> {
        let home = Home::open(path)?;
        let (ledger, _) = load::load(&home)?;
        Ok((ledger, classes::read(&home)?))
    }

    fn start(home: Home) -> Result<(Self, Ledger), StateDirError> {
        let (ledger, seen) = load::load(&home)?;
        let path = home.path.clone();
        let (requests, received) = mpsc::channel();
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || thread::serve(home, seen, &received))
            .map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                StateDirError::Io { step: "starting the thread for", path, errno }
            })?;
        Ok((Self { requests }, ledger))
    }

    /// Makes the entry durable. What is asked for while the disk is busy is written
    /// together. When it fails, the file is as it was; only when the directory itself can't
    /// be synced, the next boot may find either. Any later save begins anew.
    pub fn save(&self, entry: &Entry) -> Answer<()> {
        self.ask(|done| Request::Save { id: entry.id, text: file::write(entry), at_once: true, done })
    }

    /// As [`StateDir::save`], for what may be durable a little later: it is written when
    /// nothing was asked for during a tenth of a second, within a second in any case, and
    /// not at all if another save of the entry comes before that.
    pub fn save_soon(&self, entry: &Entry) -> Answer<()> {
        self.ask(|done| Request::Save { id: entry.id, text: file::write(entry), at_once: false, done })
    }

    /// Writes all entries anew: the way back after [`StateDirError::Replaced`]. Makes,
    /// opens and locks the directory again if need be; what others have put into it stays.
    pub fn rewrite_all<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) -> Answer<()> {
        let entries = entries.into_iter().map(|entry| (entry.id, file::write(entry))).collect();
        self.ask(|done| Request::RewriteAll { entries, done })
    }

    /// The entries that others have written since they were last read or written through
    /// this value. Left out is one whose volume somebody is at work on: it will change
    /// again.
    pub fn changed(&self) -> Answer<Vec<Entry>> {
        self.ask(|done| Request::Changed { done })
    }

    /// Reads all entries again. What others have written stays news for [`StateDir::changed`].
    pub fn read(&self) -> Answer<Ledger> {
        self.ask(|done| Request::Read { done })
    }

    /// The text that [`StateDir::save_classes`] was given last; `None` when it never was.
    pub fn read_classes(&self) -> Answer<Option<Vec<u8>>> {
        self.ask(|done| Request::ReadClasses { done })
    }

    /// Gives the file with that text another name, since it can't be used here and would be
    /// written over: another version may know what to do with it.
    pub fn set_classes_aside(&self) -> Answer<()> {
        self.ask(|done| Request::SetClassesAside { done })
    }

    /// Makes the text about the classes durable. When it fails, the file is as it was.
    pub fn save_classes(&self, text: Vec<u8>) -> Answer<()> {
        self.ask(|done| Request::SaveClasses { text, done })
    }

    /// Keeps other processes, and other callers in this one, from the volume of the entry
    /// until the lock is dropped. Does not wait for them.
    pub fn lock_entry(&self, id: EntryId) -> Answer<EntryLock> {
        self.ask(|done| Request::LockEntry { id, done })
    }

    /// Ends it for all clones: the answer comes when what was asked for before is done
    /// and the lock is released.
    pub fn close(&self) -> Answer<()> {
        self.ask(|done| Request::Close { done })
    }

    fn ask<T>(&self, request: impl FnOnce(thread::Done<T>) -> Request) -> Answer<T> {
        let (done, answer) = oneshot::channel();
        // When the thread has ended, the answer says so.
        let _ = self.requests.send(request(done));
        Answer(answer)
    }
}
