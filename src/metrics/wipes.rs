//! The wipes that run now, and those whose PV is still to be removed: what the Go
//! provisioner keeps in its process table. A wipe is in it for as long as its
//! [`WipeUnderWay`] lives, so that none is forgotten there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::contract::Contract;
use crate::deleter::{Control, Phase};
use crate::method::Method;
use crate::volume::{Capacity, VolumeMode};

/// Who does a wipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A thread of the agent.
    Process,
    /// A Job.
    Job,
}

impl By {
    /// The Go provisioner's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Job => "job",
        }
    }
}

/// What is told of a wipe.
#[derive(Clone, Debug)]
pub struct Wipe {
    /// The class of its volume.
    pub class: String,
    /// What is wiped: by what it is, whatever its PV says.
    pub mode: VolumeMode,
    /// Who does it.
    pub by: By,
    /// The PV's capacity.
    pub capacity: Option<Capacity>,
    /// How its class's devices are wiped.
    pub method: Method,
}

/// The wipes under way.
#[derive(Clone, Debug, Default)]
pub struct Wipes {
    next: Arc<AtomicU64>,
    running: Arc<Mutex<BTreeMap<u64, Running>>>,
}

#[derive(Debug)]
struct Running {
    class: String,
    mode: VolumeMode,
    by: By,
    control: Arc<Control>,
    /// How far it was when it was last seen to have moved, and when that was.
    moved: ((u64, u64), Phase, Instant),
    succeeded: Arc<AtomicBool>,
}

/// The wipes under way, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that run.
    pub running: u32,
    /// Those that have ended well, and whose PV is being removed.
    pub succeeded: u32,
    /// Bytes done and bytes to do of the devices that are being wiped, over all passes, by
    /// class.
    pub bytes: BTreeMap<String, (u64, u64)>,
    /// How long at most one of them has stood still, by class. How far a Job or a command is,
    /// nobody knows.
    pub idle: BTreeMap<String, Duration>,
}

impl Wipes {
    pub(super) fn begin(&self, wipe: Wipe, control: Arc<Control>, contract: Contract) -> WipeUnderWay {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let succeeded = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let running = Running {
            class: wipe.class.clone(),
            mode: wipe.mode,
            by: wipe.by,
            moved: (control.progress(), control.phase(), began),
            control,
            succeeded: Arc::clone(&succeeded),
        };
        self.lock().insert(number, running);
        WipeUnderWay { number, wipes: self.clone(), began, wipe, succeeded, contract }
    }

    /// Counts them, as they are at that time.
    #[must_use]
    pub fn count(&self, now: Instant) -> Counts {
        let mut counts = Counts::default();
        for wipe in self.lock().values_mut() {
            if wipe.succeeded.load(Ordering::Relaxed) {
                counts.succeeded += 1;
                continue;
            }
            counts.running += 1;
            if let Some(idle) = wipe.idle(now) {
                let longest = counts.idle.entry(wipe.class.clone()).or_default();
                *longest = idle.max(*longest);
            }
            if wipe.mode == VolumeMode::Block {
                let (done, total) = wipe.control.progress();
                let bytes = counts.bytes.entry(wipe.class.clone()).or_default();
                *bytes = (bytes.0.saturating_add(done), bytes.1.saturating_add(total));
            }
        }
        counts
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// For how long it has been seen to stand still.
    fn idle(&mut self, now: Instant) -> Option<Duration> {
        let (progress, phase) = (self.control.progress(), self.control.phase());
        if (progress, phase) != (self.moved.0, self.moved.1) {
            self.moved = (progress, phase, now);
        }
        let is_told = self.by == By::Process && phase != Phase::RunningCommand;
        is_told.then(|| now.saturating_duration_since(self.moved.2))
    }
}

/// A wipe that is under way for as long as this value lives.
#[derive(Debug)]
pub struct WipeUnderWay {
    number: u64,
    wipes: Wipes,
    began: Instant,
    wipe: Wipe,
    succeeded: Arc<AtomicBool>,
    contract: Contract,
}

impl WipeUnderWay {
    /// The volume is wiped; its PV is to be removed.
    pub fn succeeded(&self) {
        self.succeeded.store(true, Ordering::Relaxed);
    }

    /// Its PV is removed.
    pub fn removed(self) {
        self.contract.reclaimed(&self.wipe, self.began.elapsed());
    }
}

impl Drop for WipeUnderWay {
    fn drop(&mut self) {
        self.wipes.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wipe_is_counted_until_its_pv_is_removed_or_it_is_given_up() {
        let (wipes, contract) = (Wipes::default(), Contract::default());
        let begin = |mode| {
            let wipe = Wipe { class: "c".to_owned(), mode, by: By::Process, capacity: None, method: Method::Auto };
            wipes.begin(wipe, Arc::default(), contract.clone())
        };
        let (first, second) = (begin(VolumeMode::Block), begin(VolumeMode::Filesystem));
        assert_eq!((wipes.count(Instant::now()).running, wipes.count(Instant::now()).succeeded), (2, 0));
        assert_eq!(wipes.count(Instant::now()).bytes, BTreeMap::from([("c".to_owned(), (0, 0))]));
        first.succeeded();
        assert_eq!((wipes.count(Instant::now()).running, wipes.count(Instant::now()).succeeded), (1, 1));
        drop(second);
        first.removed();
        assert_eq!(wipes.count(Instant::now()), Counts::default());
    }

    #[test]
    fn how_long_a_wipe_stands_still_counts_from_its_last_step_and_not_of_a_job() {
        let (wipes, contract, control) = (Wipes::default(), Contract::default(), Arc::<Control>::default());
        let begin = |by, control: &Arc<Control>| {
            let wipe =
                Wipe { class: "c".to_owned(), mode: VolumeMode::Block, by, capacity: None, method: Method::Auto };
            wipes.begin(wipe, Arc::clone(control), contract.clone())
        };
        let job = begin(By::Job, &Arc::default());
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(wipes.count(later(100)).idle, BTreeMap::new());
        let (other, _wipe) = (begin(By::Process, &Arc::default()), begin(By::Process, &control));
        drop(job);
        let idle = |at| wipes.count(at).idle["c"].as_secs();
        assert!((99..=100).contains(&idle(later(100))));
        drop(other);
        control.advance(1);
        let moved = later(100);
        assert_eq!(idle(moved), 0);
        assert_eq!(idle(moved + Duration::from_secs(60)), 60);
        control.enter(Phase::RunningCommand);
        assert_eq!(wipes.count(moved).idle, BTreeMap::new());
    }
}
