//! Linux facts of this node: what is in the discovery directories, what is mounted
//! on what, and when that changes. The [`Scanner`] turns all of it into snapshots.

mod bus_path;
pub mod busy;
pub mod capabilities;
pub mod identity;
pub mod ioctl;
pub mod mountinfo;
mod partition;
mod patience;
mod probe;
mod scan;
pub mod sysfs;
mod watch;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch as latest;

use crate::discovery::{Observed, Snapshot};

/// Takes a snapshot whenever something may have changed, on threads of its own.
pub struct Scanner {
    /// The newest snapshot; `None` until the first is complete.
    pub snapshots: latest::Receiver<Option<Arc<Snapshot>>>,
    waker: Waker,
}

impl Scanner {
    /// Starts to look at the directories, given by their paths in this process.
    ///
    /// # Errors
    /// When a thread or the inotify instance can't be had.
    pub fn start(directories: BTreeSet<String>) -> anyhow::Result<Self> {
        let (waker, wakes) = Waker::new(directories);
        let (sender, snapshots) = latest::channel(None);
        let watches = watch::Watches::new(waker.clone())?;
        watch::poll_mount_table(waker.clone())?;
        scan::spawn(watches, &waker, wakes, sender)?;
        waker.wake();
        Ok(Self { snapshots, waker })
    }

    /// Looks at these directories from now on. A snapshot of them follows, if they are others.
    pub fn look_in(&self, directories: BTreeSet<String>) {
        self.waker.set_directories(directories);
        self.waker.wake();
    }

    /// Asks for a snapshot in which nothing is taken over from the last one.
    pub fn look_at_everything(&self) {
        self.waker.full.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// Takes one snapshot of the directories, given by their paths in this process. What the
/// kernel does not answer for is left out of it as [`Observed::Unresponsive`], on a thread
/// that stays behind.
#[must_use]
pub fn scan_once(directories: BTreeSet<String>) -> Snapshot {
    scan::once(directories)
}

/// Looks at one entry of a directory as the scan does. It can hang with the disk behind.
///
/// # Errors
/// When the directory or the mount table can't be read.
pub fn look_at(directory: &str, entry: &OsStr) -> io::Result<Observed> {
    let mounts = mountinfo::MountTable::read()?;
    Ok(probe::open_directory(directory)?.probe(entry, &mounts, None).1)
}

/// Wakes the scanner; many wakes before it gets to act are one. Holds what it is asked for.
#[derive(Clone)]
struct Waker {
    signal: SyncSender<()>,
    full: Arc<AtomicBool>,
    directories: Arc<Mutex<Arc<BTreeSet<String>>>>,
}

impl Waker {
    fn new(directories: BTreeSet<String>) -> (Self, std::sync::mpsc::Receiver<()>) {
        let (signal, wakes) = sync_channel(1);
        (Self { signal, full: Arc::default(), directories: Arc::new(Mutex::new(Arc::new(directories))) }, wakes)
    }

    fn directories(&self) -> Arc<BTreeSet<String>> {
        Arc::clone(&self.directories.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_directories(&self, directories: BTreeSet<String>) {
        *self.directories.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(directories);
    }

    fn wake(&self) {
        // A full channel holds a wake already; a closed one has nobody to wake.
        let _ = self.signal.try_send(());
    }
}
