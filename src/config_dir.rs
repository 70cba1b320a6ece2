//! The directory with the ConfigMap's keys as files: reads it as it is at one moment, and
//! says when it has changed. The kubelet changes all of it in one step, by the link
//! `..data`; plain files work as well.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::EventKind;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, warn};

use crate::config::{Config, ConfigError, Parsed};
use crate::volume::fnv1a_64;

/// The keys of a ConfigMap with their values.
pub type Files = BTreeMap<String, String>;

/// The link that the kubelet swaps.
const DATA: &str = "..data";
/// A key is no longer, in bytes: a ConfigMap has 1 MiB at most.
const LONGEST: u64 = 2 << 20;
/// How often the directory is read anew when it is swapped in the middle.
const ATTEMPTS: usize = 10;
/// The directory is read when nothing has happened in it for this long, but not later than
/// so long after the first change.
const QUIET: (Duration, Duration) = (Duration::from_millis(30), Duration::from_millis(300));
/// How often it is read while it can't be watched.
const UNWATCHED: Duration = Duration::from_secs(1);

/// Why the directory can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigDirError {
    /// The directory itself.
    #[error("{directory} can't be read ({errno}); mount the ConfigMap there")]
    Directory {
        /// Where it is.
        directory: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// One of the keys.
    #[error("the key {key} can't be read: {problem}")]
    Key {
        /// Its name.
        key: String,
        /// Why.
        problem: String,
    },
    /// Each time that it was read, it was another one by the end.
    #[error("{0} changes all the time; let it be for a second")]
    Restless(PathBuf),
}

/// A config that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// A hash of all keys and values, the same on every node that has the same; below 2^48,
    /// so that a metric can carry it.
    pub hash: u64,
}

/// What is in the directory now: a config, or why there is none, for people to read.
pub type Reading = Result<Loaded, String>;

/// The config of the keys; logs what may not be meant.
fn parse(files: &Files) -> Result<Loaded, ConfigError> {
    let Parsed { config, warnings } = Config::read(files)?;
    for warning in warnings {
        warn!(%warning, "The config may not do what is meant");
    }
    Ok(Loaded { config, hash: hash(files) })
}

/// Reads the keys as they are at one moment: never some of before a swap and some of after.
///
/// # Errors
/// The directory or a key can't be read.
pub fn read(directory: &Path) -> Result<Files, ConfigDirError> {
    for _ in 0..ATTEMPTS {
        let top = open_directory(rustix::fs::CWD, directory).map_err(|errno| unreadable(directory, errno))?;
        let Some(data) = open_data(&top).map_err(|errno| unreadable(directory, errno))? else {
            return files(directory, &top);
        };
        let files = files(directory, &data);
        // The former version is removed after the swap: what was missing may have been there.
        if open_data(&top).ok().flatten().is_some_and(|now| is_same(&data, &now)) {
            return files;
        }
    }
    Err(ConfigDirError::Restless(directory.to_owned()))
}

fn unreadable(directory: &Path, errno: Errno) -> ConfigDirError {
    ConfigDirError::Directory { directory: directory.to_owned(), errno }
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The directory that `..data` leads to now; `None` when there is no such link.
fn open_data(top: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    match rustix::fs::statat(top, DATA, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        there => {
            there?;
            open_directory(top, DATA).map(Some)
        }
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let key = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    key(one).is_ok_and(|one| key(other) == Ok(one))
}

/// The regular files of a directory, links followed, but for those of the kubelet's own.
fn files(path: &Path, directory: &OwnedFd) -> Result<Files, ConfigDirError> {
    let mut files = Files::new();
    for entry in Dir::read_from(directory).map_err(|errno| unreadable(path, errno))? {
        let entry = entry.map_err(|errno| unreadable(path, errno))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with("..") || name == "." {
            continue;
        }
        let failed = |problem: String| ConfigDirError::Key { key: name.to_owned(), problem };
        // Not to wait for somebody who writes into a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            opened => opened.map_err(|errno| failed(errno.to_string()))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.to_string()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let mut text = String::new();
        let length = File::from(file).take(LONGEST).read_to_string(&mut text);
        if length.map_err(|error| failed(error.to_string()))? as u64 == LONGEST {
            return Err(failed("it is longer than any ConfigMap".to_owned()));
        }
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

/// The hash of a [`Loaded`].
#[must_use]
pub fn hash(files: &Files) -> u64 {
    // No text has the byte 0xff.
    let texts = files.iter().flat_map(|(key, value)| [key, value]);
    fnv1a_64(texts.flat_map(|text| text.bytes().chain([0xff]))) & ((1 << 48) - 1)
}

/// Reads the directory, at once and whenever it may have changed, on a thread of its own;
/// at least once in each `period`, should a change go unnoticed. What is read again as it
/// was is not sent again.
///
/// # Errors
/// When no thread can be had.
pub fn watch(directory: PathBuf, period: Duration) -> io::Result<UnboundedReceiver<Reading>> {
    let (sender, readings) = unbounded_channel();
    thread::Builder::new().name("config".to_owned()).spawn(move || follow(&directory, period, &sender))?;
    Ok(readings)
}

/// Ends when nobody listens any more.
fn follow(directory: &Path, period: Duration, readings: &UnboundedSender<Reading>) {
    let (signal, wakes) = sync_channel(1);
    let mut watch = Watch::new(signal);
    let mut last: Option<Result<Files, ConfigDirError>> = None;
    loop {
        // First watched, then read: what changes in between is read again.
        let is_watched = watch.arm(directory);
        let now = settled(directory, &wakes);
        if last.as_ref() != Some(&now) {
            let reading = match &now {
                Ok(files) => parse(files).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            last = Some(now);
            if readings.send(reading).is_err() {
                return;
            }
        }
        if wakes.recv_timeout(if is_watched { period } else { UNWATCHED.min(period) }).is_ok() {
            rest(&wakes);
        }
    }
}

/// Waits until nothing happens for a moment: a change is many events.
fn rest(wakes: &Receiver<()>) {
    let begun = Instant::now();
    while begun.elapsed() < QUIET.1 && wakes.recv_timeout(QUIET.0).is_ok() {}
}

/// Reads the directory. Plain files do not change in one step: they are read until they
/// have been the same twice.
fn settled(directory: &Path, wakes: &Receiver<()>) -> Result<Files, ConfigDirError> {
    let mut before = read(directory);
    for _ in 0..ATTEMPTS {
        if directory.join(DATA).is_symlink() {
            break;
        }
        rest(wakes);
        let now = read(directory);
        if now == before {
            break;
        }
        before = now;
    }
    before
}

/// The inotify watch on the directory, if it can be had.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory that is watched.
    armed: Option<(u64, u64)>,
    told: bool,
    /// While it lives, who waits for wakes waits.
    _signal: SyncSender<()>,
}

impl Watch {
    fn new(signal: SyncSender<()>) -> Self {
        let wakes = signal.clone();
        let wake = move |event: notify::Result<notify::Event>| {
            // Our own reading shows as `Access`.
            if !matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
                // A full channel holds a wake already; a closed one has nobody to wake.
                let _ = wakes.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(wake);
        if let Err(error) = &watcher {
            warn!(%error, "No inotify instance can be had; the config is read every second instead");
        }
        Self { watcher: watcher.ok(), armed: None, told: false, _signal: signal }
    }

    /// Watches the directory that is at the path now: to watch again what is watched costs
    /// nothing, and a watch can be lost without a word. Returns whether it is watched.
    fn arm(&mut self, directory: &Path) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let there = rustix::fs::stat(directory).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if self.armed.is_some() && self.armed != there {
            let _ = watcher.unwatch(directory);
        }
        self.armed = None;
        match watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => self.armed = there,
            Err(error) if self.told => debug!(%error, "The config directory still can't be watched"),
            Err(error) => {
                let directory = directory.display();
                warn!(%error, %directory, "The config directory can't be watched; it is read every second instead");
                self.told = true;
            }
        }
        self.armed.is_some()
    }
}
