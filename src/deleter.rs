//! The deleter's work on one volume: claim it, wipe it, verify it. The order is in
//! the types: only [`claim`] makes a [`Claimed`], only wiping it makes a [`Wiped`],
//! only verifying that makes a [`Verified`], and removing a PV takes a [`Warrant`].
//!
//! A path is used once, to open the volume; identity is compared on the open file,
//! and everything after goes through that file. Nothing here takes a path and
//! destroys data. All of it blocks: it runs on a thread of its own ([`spawn`]).

mod block;
mod claim;
mod tree;
mod verify;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tokio::sync::oneshot;

use crate::plan::Target;
use crate::reclaim::Fence;
use crate::verdict::{Reason, Verdict};

pub use claim::{claim, inspect};

/// A volume that is ours alone: its PV is fenced, its identity was compared on the
/// open file, and a device is held exclusively.
#[derive(Debug)]
pub struct Claimed {
    fence: Fence,
    volume: OpenVolume,
}

/// A claimed volume of which everything was overwritten or removed.
#[derive(Debug)]
pub struct Wiped(Claimed);

/// A wiped volume that was read back and found empty.
#[derive(Debug)]
pub struct Verified(Claimed);

/// What entitles to the removal of a PV.
#[derive(Debug)]
pub enum Warrant {
    /// Its volume was wiped and verified.
    Wiped(Verified),
}

impl Warrant {
    /// The fenced PV that may be removed.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        match self {
            Self::Wiped(verified) => &verified.0.fence,
        }
    }
}

/// The one open file of a claimed volume.
#[derive(Debug)]
enum OpenVolume {
    /// The root directory of a mounted filesystem.
    Directory(OwnedFd),
    /// A block device, open for writing and exclusively.
    Device { fd: OwnedFd, bytes: u64 },
}

/// Why a volume was not wiped.
#[derive(Debug, thiserror::Error)]
pub enum WipeError {
    /// The agent is stopping; the wipe is taken up again later.
    #[error("stopped before its end")]
    Cancelled,
    /// Nothing is at the volume's path.
    #[error("{0} is gone")]
    Vanished(String),
    /// A directory that is no mount point is never cleaned.
    #[error("{0} is no mount point any more; nothing in it was touched")]
    NotMounted(String),
    /// Another volume than the one that was discovered.
    #[error("it is another volume: {0}")]
    IdentityChanged(String),
    /// It is not certain that it is the same volume.
    #[error("it is not certain which volume it is: {0}")]
    IdentityUnknown(&'static str),
    /// Somebody uses it.
    #[error("{0}")]
    Busy(String),
    /// It must not be wiped.
    #[error("{0}")]
    Refused(String),
    /// Something inside can't be removed.
    #[error("{path} can't be removed: {problem}")]
    Obstacle {
        /// Relative to the volume's root.
        path: String,
        /// Why.
        problem: String,
    },
    /// The wipe ended, but data was found after it.
    #[error("verification failed: {0}")]
    NotClean(String),
    /// The kernel refused a step.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A defect of this program; the volume stays out.
    #[error("the wipe ended in a panic: {0}")]
    Panicked(String),
}

impl WipeError {
    fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { step, source }
    }

    /// What the volume's state is after this failure.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let reason = match self {
            Self::Cancelled => Reason::Wiping,
            Self::Vanished(_) => Reason::Vanished,
            Self::NotMounted(_) => Reason::NotAMountPoint,
            Self::IdentityChanged(_) => Reason::IdentityChanged,
            Self::Busy(_) => Reason::Busy,
            _ => Reason::Refused,
        };
        Verdict::new(reason, format!("its volume was not wiped: {self}"))
    }
}

/// The strings between a running wipe and who waits for it.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    running: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Control {
    /// Makes the wipe end at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Bytes (of a device) or entries (of a directory) done, and bytes in all; 0 when
    /// that is not known.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Whether a thread is at the volume.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), WipeError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(WipeError::Cancelled) } else { Ok(()) }
    }

    fn advance(&self, by: u64) {
        self.done.fetch_add(by, Ordering::Relaxed);
    }
}

/// Claims the fenced PV's volume, wipes and verifies it.
///
/// # Errors
/// Why it was not wiped, or not found clean after.
pub fn wipe(fence: Fence, target: &Target, control: &Control) -> Result<Verified, WipeError> {
    let claimed = claim(fence, target)?;
    let wiped = destroy(claimed, control)?;
    verify::verify(wiped, control)
}

fn destroy(claimed: Claimed, control: &Control) -> Result<Wiped, WipeError> {
    match &claimed.volume {
        OpenVolume::Directory(root) => tree::remove_contents(root, control)?,
        OpenVolume::Device { fd, bytes } => {
            control.total.store(*bytes, Ordering::Relaxed);
            block::zero(fd, *bytes, control)?;
        }
    }
    Ok(Wiped(claimed))
}

/// Runs blocking work on a thread of its own, named after the PV (the kernel keeps 15
/// bytes of it). The receiver's end is told the result; a panic is a failure of this
/// volume only.
pub fn spawn<T: Send + 'static>(
    name: &str,
    control: &Arc<Control>,
    work: impl FnOnce(&Control) -> Result<T, WipeError> + Send + 'static,
) -> oneshot::Receiver<Result<T, WipeError>> {
    let (sender, receiver) = oneshot::channel();
    let control = Arc::clone(control);
    let run = move || {
        control.running.store(true, Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| work(&control))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            Err(WipeError::Panicked(text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default()))
        });
        control.running.store(false, Ordering::Relaxed);
        // Nobody waits any more when the agent is stopping.
        let _ = sender.send(result);
    };
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(run) {
        // The closure, and the sender in it, are gone: the receiver sees that.
        tracing::warn!(%error, thread = name, "No thread to be had");
    }
    receiver
}
