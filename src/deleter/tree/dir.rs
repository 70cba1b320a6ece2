//! A directory that is open for removal, and the chain of those above it.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// An open directory.
pub struct Dir {
    /// `None` for the root.
    pub parent: Option<Arc<Dir>>,
    /// In the one above.
    pub name: CString,
    /// Open for reading.
    pub fd: OwnedFd,
    /// 0 for the root.
    pub depth: usize,
    /// Reading it counts one, and each directory in it that was opened another.
    pub unfinished: AtomicUsize,
}

impl Dir {
    /// The path of an entry, or of the directory itself, from the root on.
    pub fn path(&self, entry: Option<&CStr>) -> String {
        let mut names: Vec<_> = entry.map(CStr::to_string_lossy).into_iter().collect();
        let mut dir = self;
        while let Some(parent) = &dir.parent {
            names.push(dir.name.to_string_lossy());
            dir = parent;
        }
        if names.is_empty() {
            names.push(dir.name.to_string_lossy());
        }
        names.reverse();
        names.join("/")
    }
}

impl Drop for Dir {
    /// One after the other: a chain of any length takes little stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(mut dir) = next.and_then(Arc::into_inner) {
            next = dir.parent.take();
        }
    }
}
