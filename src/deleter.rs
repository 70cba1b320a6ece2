//! The deleter's work on one volume: claim it, wipe it, verify it. The order is in
//! the types: only [`claim`] makes a [`Claimed`], only wiping it, or a Job that has
//! succeeded, makes a [`Wiped`], only verifying that makes a [`Verified`], and removing a
//! PV takes a [`Warrant`].
//!
//! A path is used once, to open the volume; identity is compared on the open file,
//! and everything after goes through that file. Nothing here takes a path and
//! destroys data; only a cleaner command of the admin's own is told one, while the file
//! is held. All of it blocks: it runs on a thread of its own ([`spawn`]).

mod by_job;
mod claim;
mod control;
mod look;
pub mod root;
mod tree;
mod verify;
mod wipe;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::node::capabilities;
use crate::pv::Seen;
use crate::reclaim::{Fence, Release, Unclaimed};
use crate::verdict::{Reason, Verdict};

pub use by_job::{leave_to_job, verify_job};
pub use claim::{claim, claim_by_hand, claim_released, digest, inspect};
pub use control::{Control, Phase};
pub use look::{Blank, Offerable, blank, look};
pub use tree::remove_contents;
pub use wipe::{Cursor, Job, Journal, MarkId, Unrecorded, read_mark};

use wipe::Device;

/// A volume that is ours alone: its PV is fenced, or `L` is the leave to wipe it without a
/// fence ([`Release`]) or by hand ([`ByHand`](crate::by_hand::ByHand)); its identity was compared on the open file, and
/// a device is held exclusively.
#[derive(Debug)]
pub struct Claimed<L = Fence> {
    leave: L,
    volume: OpenVolume,
    is_the_recorded_one: bool,
    digest: String,
}

/// A claimed volume of which everything was overwritten or removed.
#[derive(Debug)]
pub struct Wiped<L = Fence> {
    claimed: Claimed<L>,
    began: Instant,
}

/// A wiped volume that was read back and found empty.
#[derive(Debug)]
pub struct Verified<L = Fence> {
    claimed: Claimed<L>,
    receipt: Receipt,
}

impl Verified<Fence> {
    /// The fence that its PV is behind.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.claimed.leave
    }
}

impl<L> Verified<L> {
    /// Whether it is the volume that was recorded, or one in its place that was empty.
    #[must_use]
    pub fn is_the_recorded_one(&self) -> bool {
        self.claimed.is_the_recorded_one
    }

    /// What was done.
    #[must_use]
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }
}

/// What was done to a volume that is clean now.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// The method of a device's wipe as in the configuration, or `remove` for a directory.
    pub method: &'static str,
    /// The device's size; 0 for a directory.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was read back: `none`, `sample` or `full`.
    pub verification: &'static str,
}

/// What entitles to the removal of a PV.
#[derive(Debug)]
pub enum Warrant {
    /// Its volume was wiped and verified.
    Wiped(Verified),
    /// The same without a fence, and the PV was seen Released from the same claim after.
    WipedUnfenced(Verified<Release>, Release),
    /// It was quarantined, and nothing is on its volume.
    Blank(Blank),
    /// Nobody has claimed it, and its volume is gone or another one.
    Unclaimed(Unclaimed),
    /// An admin wants so, and the ledger remembers it.
    Retired(Seen),
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
    /// Another volume than the one that was discovered. Names the key that differs, and
    /// the digest of what is there.
    #[error("it is another volume: {0}")]
    IdentityChanged(String),
    /// It is not certain that it is the same volume. Says why, and the digest of what is there.
    #[error("it is not certain which volume it is: {0}")]
    IdentityUnknown(String),
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
    /// The disk failed, or the kernel refused, at a place that is known.
    #[error("{step} at bytes {} to {}: {source}", range.start, range.end)]
    AtPlace {
        /// What was being done.
        step: &'static str,
        /// Where on the device: from its first byte up to, not including, its last.
        range: Range<u64>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The cleaner command did not do it.
    #[error("the cleaner command {program} {problem}")]
    Command {
        /// Its first word.
        program: String,
        /// What went wrong, and what it said last.
        problem: String,
    },
    /// The Job that was to wipe it did not.
    #[error("the Job {job} {problem}")]
    Job {
        /// Its namespace and name.
        job: String,
        /// What went wrong.
        problem: String,
    },
    /// The kernel did not answer in time.
    #[error("the kernel does not answer when it is looked at")]
    Unresponsive,
    /// A quarantined volume is not empty.
    #[error("it is not empty: {0}")]
    NotBlank(String),
    /// The ledger can't be written, so nothing is destroyed.
    #[error("{0}")]
    Ledger(String),
    /// A defect of this program; the volume stays out.
    #[error("the wipe ended in a panic: {0}")]
    Panicked(String),
}

impl WipeError {
    fn io(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| {
            let remedy = match source.kind() {
                io::ErrorKind::PermissionDenied => capabilities::remedy(),
                _ => String::new(),
            };
            let source =
                if remedy.is_empty() { source } else { io::Error::new(source.kind(), format!("{source}{remedy}")) };
            Self::Io { step, source }
        }
    }

    fn at(step: &'static str, range: Range<u64>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::AtPlace { step, range, source }
    }

    /// What the volume's state is after this failure.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let detail = if matches!(self, Self::NotBlank(_)) {
            self.to_string()
        } else {
            format!("its volume was not wiped: {self}")
        };
        Verdict::new(self.reason(), detail)
    }

    /// The same when it was only looked at, to be offered.
    #[must_use]
    pub fn verdict_of_look(&self) -> Verdict {
        Verdict::new(self.reason(), format!("it is not offered: {self}"))
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Cancelled => Reason::Wiping,
            Self::Vanished(_) => Reason::Vanished,
            Self::NotMounted(_) => Reason::NotAMountPoint,
            Self::IdentityChanged(_) | Self::IdentityUnknown(_) => Reason::IdentityChanged,
            Self::NotBlank(_) => Reason::Quarantined,
            Self::Unresponsive => Reason::Unresponsive,
            Self::Busy(_) => Reason::Busy,
            _ => Reason::Refused,
        }
    }
}

/// Wipes and verifies a claimed volume: a directory by removing all in it, a device as
/// the job says. It blocks for as long as that takes.
///
/// # Errors
/// Why it was not wiped, or not found clean after. The volume is then as it was left: a
/// device bears the job's mark.
pub fn wipe<L>(claimed: Claimed<L>, mut job: Job<'_>, control: &Control) -> Result<Verified<L>, WipeError> {
    let wiped = destroy(claimed, &mut job, control)?;
    verify::verify(wiped, &mut job, control)
}

fn destroy<L>(claimed: Claimed<L>, job: &mut Job<'_>, control: &Control) -> Result<Wiped<L>, WipeError> {
    let began = Instant::now();
    control.begin()?;
    match &claimed.volume {
        OpenVolume::Directory(root) => {
            control.enter(Phase::Removing);
            tree::remove_contents(root, control)?;
            if let Some(facts) = job.root {
                root::restore(root, facts)?;
            }
        }
        OpenVolume::Device { fd, bytes } => wipe::destroy(&Device::new(fd, *bytes)?, job, control)?,
    }
    Ok(Wiped { claimed, began })
}

/// Wipes and verifies a device of so many bytes, through a file that is open for
/// reading and writing, exclusively, and of which it is certain which device it is.
///
/// # Errors
/// As [`wipe`].
pub fn wipe_device(fd: &OwnedFd, bytes: u64, mut job: Job<'_>, control: &Control) -> Result<Receipt, WipeError> {
    let began = Instant::now();
    let device = Device::new(fd, bytes)?;
    wipe::destroy(&device, &mut job, control)?;
    let verification = verify::device(&device, &mut job, control)?.as_str();
    Ok(Receipt { method: job.rules.method.as_str(), bytes, seconds: began.elapsed().as_secs_f64(), verification })
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
        control.set_running(true);
        let result = catch_unwind(AssertUnwindSafe(|| work(&control))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            Err(WipeError::Panicked(text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default()))
        });
        control.set_running(false);
        // Nobody waits any more when the agent is stopping.
        let _ = sender.send(result);
    };
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(run) {
        // The closure, and the sender in it, are gone: the receiver sees that.
        tracing::warn!(%error, thread = name, "No thread to be had");
    }
    receiver
}
