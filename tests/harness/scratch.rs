//! Directories for the data of one control plane or node. Each is kept by a file
//! lock; one whose lock is free was left by a run that died and is removed when
//! the next is made. The directory of a failed test stays until then.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// A number that no other caller in this process gets.
pub fn unique() -> usize {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Where all of them are. One a user: nobody can lock or sweep another's.
pub fn parent() -> PathBuf {
    std::env::temp_dir().join(format!("mooring-tests-{}", nix::unistd::geteuid()))
}

/// A directory that is removed when this is dropped, or by a later run.
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// A new directory whose name begins with `tag`, and the removal of those that dead runs left.
    pub fn new(tag: &str) -> Self {
        let parent = parent();
        fs::create_dir_all(&parent).expect("a directory for test data can be made");
        // Between making a directory and locking it, no other run may sweep.
        let gate = File::create(parent.join(".gate")).expect("the gate file can be made");
        gate.lock().expect("the gate file can be locked");
        sweep(&parent);
        let path = parent.join(format!("{tag}-{}-{}", std::process::id(), unique()));
        fs::create_dir(&path).expect("the name of a test directory is new");
        let lock = File::create(path.join(".lock")).expect("a lock file can be made in a new directory");
        lock.lock().expect("a new lock file can be locked");
        Self { path, _lock: lock }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            remove(&self.path);
        }
    }
}

fn sweep(parent: &Path) {
    let entries = fs::read_dir(parent).expect("the directory for test data can be read");
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        match File::open(path.join(".lock")).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => {}
            _ => remove(&path),
        }
    }
}

/// Removes the directory, unless something is still mounted in it here: no test
/// shall empty a disk by way of its clean-up.
fn remove(path: &Path) {
    if mounts_below(path).is_empty() {
        // What cannot be removed now is left to the next sweep.
        let _ = fs::remove_dir_all(path);
    }
}

/// The mount points at or below `path` in this thread's mount table, in the order they were mounted.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/thread-self/mountinfo").expect("the mount table can be read");
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|point| point.starts_with(path))
        .collect()
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) if *first == b'\\' => {
                text.push(code);
                rest = &tail[3..];
            }
            _ => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    text
}
