//! The wipes that run now, and those whose PV is still to be removed: what the Go
//! provisioner keeps in its process table. A wipe is in it for as long as its
//! [`WipeUnderWay`] lives, so that none is forgotten there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::contract::Contract;
use crate::deleter::Control;
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
    control: Arc<Control>,
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
}

impl Wipes {
    pub(super) fn begin(&self, wipe: Wipe, control: Arc<Control>, contract: Contract) -> WipeUnderWay {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let succeeded = Arc::new(AtomicBool::new(false));
        let running =
            Running { class: wipe.class.clone(), mode: wipe.mode, control, succeeded: Arc::clone(&succeeded) };
        self.lock().insert(number, running);
        WipeUnderWay { number, wipes: self.clone(), began: Instant::now(), wipe, succeeded, contract }
    }

    /// Counts them.
    #[must_use]
    pub fn count(&self) -> Counts {
        let mut counts = Counts::default();
        for wipe in self.lock().values() {
            if wipe.succeeded.load(Ordering::Relaxed) {
                counts.succeeded += 1;
                continue;
            }
            counts.running += 1;
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
        assert_eq!((wipes.count().running, wipes.count().succeeded), (2, 0));
        assert_eq!(wipes.count().bytes, BTreeMap::from([("c".to_owned(), (0, 0))]));
        first.succeeded();
        assert_eq!((wipes.count().running, wipes.count().succeeded), (1, 1));
        drop(second);
        first.removed();
        assert_eq!(wipes.count(), Counts::default());
    }
}
