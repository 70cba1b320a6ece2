//! The strings between a running wipe and who waits for it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::WipeError;

/// How long a wipe sleeps at most before it looks whether it shall end.
const NAP: Duration = Duration::from_millis(100);

/// What a wipe is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing yet.
    Starting,
    /// Writes to both ends that the device is being wiped.
    Marking,
    /// Removes a directory's contents.
    Removing,
    /// Tells the disk that its content is not needed.
    Discarding,
    /// Writes random data.
    Overwriting,
    /// Writes zeros.
    Zeroing,
    /// Zeroes what tells filesystems and partition tables.
    ErasingSignatures,
    /// Waits for the cleaner command.
    RunningCommand,
    /// Reads back.
    Verifying,
    /// Takes the marks off.
    Unmarking,
}

impl Phase {
    const ALL: [Self; 10] = [
        Self::Starting,
        Self::Marking,
        Self::Removing,
        Self::Discarding,
        Self::Overwriting,
        Self::Zeroing,
        Self::ErasingSignatures,
        Self::RunningCommand,
        Self::Verifying,
        Self::Unmarking,
    ];

    /// For logs and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Marking => "marking",
            Self::Removing => "removing",
            Self::Discarding => "discarding",
            Self::Overwriting => "overwriting",
            Self::Zeroing => "zeroing",
            Self::ErasingSignatures => "erasing signatures",
            Self::RunningCommand => "running the command",
            Self::Verifying => "verifying",
            Self::Unmarking => "unmarking",
        }
    }
}

/// The strings between a running wipe and who waits for it.
#[derive(Debug, Default)]
pub struct Control {
    cancelled: AtomicBool,
    cancel: Notify,
    begun: AtomicBool,
    running: AtomicBool,
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
}

impl Control {
    /// Makes the wipe end at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.cancel.notify_one();
    }

    /// Completes once the wipe was told to end. For one who waits at a time.
    pub async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.cancel.notified().await;
        }
    }

    /// Bytes (of a device, over all passes) or entries (of a directory) done, and bytes
    /// in all; 0 when that is not known. A wipe that was taken up again begins with what
    /// was done before.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// What it is at.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Whether a thread is at the volume.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Whether it was told to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether something of the volume's content may have changed. When it says no after a
    /// cancel, nothing has and nothing will.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Called before the first byte changes.
    pub(super) fn begin(&self) -> Result<(), WipeError> {
        self.check()?;
        self.begun.store(true, Ordering::SeqCst);
        self.check()
    }

    pub(super) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Relaxed);
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), WipeError> {
        if self.is_cancelled() { Err(WipeError::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn advance(&self, by: u64) {
        self.done.fetch_add(by, Ordering::Relaxed);
    }

    /// Sets out with so much done already, of so much.
    pub(super) fn set_progress(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// There is more to do than was thought.
    pub(super) fn expect_more(&self, by: u64) {
        self.total.fetch_add(by, Ordering::Relaxed);
    }

    /// Waits, but not beyond a cancel.
    pub(super) fn sleep(&self, how_long: Duration) -> Result<(), WipeError> {
        let start = Instant::now();
        loop {
            self.check()?;
            let left = how_long.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_told_as_it_is() {
        let control = Control::default();
        assert_eq!(control.phase(), Phase::Starting);
        for phase in Phase::ALL {
            control.enter(phase);
            assert_eq!(control.phase(), phase);
        }
    }

    #[test]
    fn what_was_cancelled_before_it_began_does_not_begin() {
        let control = Control::default();
        control.cancel();
        assert!(matches!(control.begin(), Err(WipeError::Cancelled)));
        assert!(!control.has_begun());
        let control = Control::default();
        assert!(control.begin().is_ok());
        control.cancel();
        assert!(control.has_begun());
    }

    #[test]
    fn a_cancel_ends_a_sleep() {
        let control = Control::default();
        control.cancel();
        assert!(matches!(control.sleep(Duration::from_hours(1)), Err(WipeError::Cancelled)));
    }
}
