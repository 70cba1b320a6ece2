//! The scan: one thread that takes snapshots, and workers that do what can hang.
//! A worker that is stuck on an entry past the patience is left there, the entry is
//! `Unresponsive`, and a new worker goes on without it; so there is at most one
//! stuck thread for each such entry. When the kernel lets it go, it is tried again,
//! with more patience.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch as latest;
use tracing::{info, warn};

use crate::discovery::{Entry, Listing, Observed, Snapshot};
use crate::node::Waker;
use crate::node::mountinfo::MountTable;
use crate::node::probe::{self, Fingerprint, Key};
use crate::node::watch::Watches;

/// How long one entry may take before the scan goes on without it; doubled each time
/// that it was too short, up to the maximum.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// How long one scan waits in all for entries that are slow; with that spent, each gets
/// the least patience only.
const PATIENCE_PER_SCAN: Duration = Duration::from_secs(2);
const LEAST_PATIENCE: Duration = Duration::from_millis(20);
/// Who looks only once has nothing to go on with, and had better wait: a machine that is
/// busy is no disk that hangs.
const PATIENCE_ONCE: Duration = Duration::from_secs(10);
/// Rest after a scan, as a multiple of the time that it took, and its bounds: reading
/// the mount table holds up mount(2), so a scan must not follow on a scan; many mounts
/// in a row are then a few scans. A short scan needs a short rest only.
const REST: (u32, Duration, Duration) = (10, Duration::from_millis(1), Duration::from_millis(20));

/// Something that can hang: a directory's listing (`None`) or one entry of it.
type Place = (String, Option<OsString>);
/// Places with a thread stuck in each.
type Hung = Arc<Mutex<HashSet<Place>>>;
/// What was seen last, by directory and name.
type Known = HashMap<String, HashMap<OsString, (Key, Observed)>>;

/// What a worker reports, in the order of its work.
enum Report {
    Listed(io::Result<(Fingerprint, Vec<OsString>)>),
    Probed(Option<Key>, Observed),
}

/// Starts the thread that takes snapshots; it ends with the process.
pub fn spawn(
    watches: Watches,
    waker: &Waker,
    wakes: Receiver<()>,
    snapshots: latest::Sender<Option<Arc<Snapshot>>>,
) -> io::Result<()> {
    let mut scan = Scan::new(Some(watches), waker.clone());
    thread::Builder::new().name("scan".to_owned()).spawn(move || {
        while wakes.recv().is_ok() {
            let start = Instant::now();
            let snapshot = Snapshot { began: Some(start), ..scan.snapshot() };
            let rest = (start.elapsed() * REST.0).clamp(REST.1, REST.2);
            snapshots.send_if_modified(|latest| {
                let changed = latest.as_deref().map(|latest| &latest.directories) != Some(&snapshot.directories);
                if changed {
                    *latest = Some(Arc::new(snapshot));
                }
                changed
            });
            thread::sleep(rest);
        }
    })?;
    Ok(())
}

/// Takes one snapshot.
pub fn once(directories: BTreeSet<String>) -> Snapshot {
    Scan::new(None, Waker::new(directories).0).snapshot()
}

struct Scan {
    directories: Arc<BTreeSet<String>>,
    /// None when there is only one scan.
    watches: Option<Watches>,
    waker: Waker,
    hung: Hung,
    patience: HashMap<Place, Duration>,
    patience_left: Duration,
    known: Arc<Known>,
    fingerprints: HashMap<String, Fingerprint>,
}

impl Scan {
    fn new(watches: Option<Watches>, waker: Waker) -> Self {
        Self {
            directories: Arc::default(),
            watches,
            waker,
            hung: Hung::default(),
            patience: HashMap::new(),
            patience_left: PATIENCE_PER_SCAN,
            known: Arc::default(),
            fingerprints: HashMap::new(),
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        self.patience_left = if self.is_only_once() { PATIENCE_ONCE } else { PATIENCE_PER_SCAN };
        self.directories = self.waker.directories();
        if let Some(watches) = &mut self.watches {
            watches.retain(&self.directories);
        }
        self.fingerprints.retain(|directory, _| self.directories.contains(directory));
        if self.waker.full.swap(false, Ordering::Relaxed) {
            self.known = Arc::default();
        }
        loop {
            let hung = lock(&self.hung).clone();
            let worker = match self.start_worker(hung.clone()) {
                Ok(worker) => worker,
                Err(error) => {
                    warn!(%error, "No thread to look at the discovery directories with");
                    let failed = |path: &String| (path.clone(), Listing::Failed(format!("no thread: {error}")));
                    return Snapshot { directories: self.directories.iter().map(failed).collect(), began: None };
                }
            };
            match self.attempt(&worker, &hung) {
                Ok((snapshot, known)) => {
                    self.known = Arc::new(known);
                    self.rearm(&snapshot);
                    return snapshot;
                }
                Err(place) => self.give_up(&worker, place),
            }
        }
    }

    fn is_only_once(&self) -> bool {
        self.watches.is_none()
    }

    fn rearm(&mut self, snapshot: &Snapshot) {
        let Some(watches) = &mut self.watches else { return };
        for (directory, listing) in &snapshot.directories {
            let seen = match listing {
                Listing::Entries(_) => self.fingerprints.get(directory).copied(),
                Listing::Failed(_) => None,
                Listing::Unresponsive => continue,
            };
            if watches.rearm(directory, seen) {
                self.waker.wake();
            }
        }
    }

    /// One pass over everything that is not hung; fails with the first place that
    /// the kernel does not answer for.
    fn attempt(&mut self, worker: &RunningWorker, hung: &HashSet<Place>) -> Result<(Snapshot, Known), Place> {
        let mut snapshot = Snapshot::default();
        let mut known = Known::new();
        for directory in Arc::clone(&self.directories).iter() {
            let listing = if hung.contains(&(directory.clone(), None)) {
                Listing::Unresponsive
            } else {
                match self.await_report(worker, &(directory.clone(), None))? {
                    Report::Listed(Ok((fingerprint, names))) => {
                        self.fingerprints.insert(directory.clone(), fingerprint);
                        let known = known.entry(directory.clone()).or_default();
                        Listing::Entries(self.entries(directory, names, hung, worker, known)?)
                    }
                    Report::Listed(Err(error)) => Listing::Failed(error.to_string()),
                    Report::Probed(..) => unreachable!("a worker lists a directory before it probes its entries"),
                }
            };
            snapshot.directories.insert(directory.clone(), listing);
        }
        Ok((snapshot, known))
    }

    fn entries(
        &mut self,
        directory: &str,
        names: Vec<OsString>,
        hung: &HashSet<Place>,
        worker: &RunningWorker,
        known: &mut HashMap<OsString, (Key, Observed)>,
    ) -> Result<Vec<Entry>, Place> {
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let place = (directory.to_owned(), Some(name.clone()));
            let observed = if hung.contains(&place) {
                Observed::Unresponsive
            } else if let Report::Probed(key, observed) = self.await_report(worker, &place)? {
                if let Some(key) = key {
                    known.insert(name.clone(), (key, observed.clone()));
                }
                observed
            } else {
                unreachable!("a worker probes each entry of the directory that it has listed")
            };
            entries.push(Entry { name, observed });
        }
        Ok(entries)
    }

    fn await_report(&mut self, worker: &RunningWorker, place: &Place) -> Result<Report, Place> {
        if let Ok(report) = worker.reports.try_recv() {
            return Ok(report);
        }
        let first = if self.is_only_once() { PATIENCE_ONCE } else { PATIENCE.0 };
        let patience = self.patience.get(place).copied().unwrap_or(first);
        let start = Instant::now();
        let report = worker.reports.recv_timeout(patience.min(self.patience_left).max(LEAST_PATIENCE));
        self.patience_left = self.patience_left.saturating_sub(start.elapsed());
        report.map_err(|_| place.clone())
    }

    /// Leaves the worker where it is stuck. It notices by itself when it gets on.
    fn give_up(&mut self, worker: &RunningWorker, place: Place) {
        let mut state = lock(&worker.state);
        if matches!(*state, WorkerState::Ended) {
            return; // its last report came just now: take another pass
        }
        let entry = place.1.as_deref().map(|name| name.to_string_lossy().into_owned());
        warn!(directory = place.0, entry, "The kernel does not answer; going on without this entry");
        let patience = self.patience.entry(place.clone()).or_insert(PATIENCE.0);
        *patience = (*patience * 2).min(PATIENCE.1);
        lock(&self.hung).insert(place.clone());
        *state = WorkerState::GivenUp(place);
    }

    fn start_worker(&self, hung: HashSet<Place>) -> io::Result<RunningWorker> {
        let (sender, reports) = channel();
        let state = Arc::new(Mutex::new(WorkerState::Working));
        let worker = Worker {
            directories: Arc::clone(&self.directories),
            skip: hung,
            known: Arc::clone(&self.known),
            reports: sender,
            state: Arc::clone(&state),
            hung: Arc::clone(&self.hung),
            waker: self.waker.clone(),
        };
        thread::Builder::new().name("scan-worker".to_owned()).spawn(move || worker.run())?;
        Ok(RunningWorker { reports, state })
    }
}

/// The scan's side of a worker.
struct RunningWorker {
    reports: Receiver<Report>,
    state: Arc<Mutex<WorkerState>>,
}

enum WorkerState {
    Working,
    /// The scan goes on without this place.
    GivenUp(Place),
    /// It will report nothing more.
    Ended,
}

/// Does one pass, reporting each step. Lives for one pass, or as long as the kernel
/// holds it.
struct Worker {
    directories: Arc<BTreeSet<String>>,
    skip: HashSet<Place>,
    known: Arc<Known>,
    reports: Sender<Report>,
    state: Arc<Mutex<WorkerState>>,
    hung: Hung,
    waker: Waker,
}

impl Worker {
    fn run(self) {
        self.pass();
        let state = std::mem::replace(&mut *lock(&self.state), WorkerState::Ended);
        if let WorkerState::GivenUp(place) = state {
            info!(directory = place.0, entry = ?place.1, "The kernel answers again");
            lock(&self.hung).remove(&place);
            self.waker.wake();
        }
    }

    /// Ends early when nobody listens any more.
    fn pass(&self) {
        let mut mounts = MountTable::read().unwrap_or_default();
        for directory in self.directories.iter() {
            if self.skip.contains(&(directory.clone(), None)) {
                continue;
            }
            let opened =
                probe::open_directory(directory).and_then(|opened| opened.names().map(|names| (opened, names)));
            let listed = match &opened {
                Ok((opened, names)) => Ok((opened.fingerprint, names.clone())),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            if self.reports.send(Report::Listed(listed)).is_err() {
                return;
            }
            let Ok((opened, names)) = opened else { continue };
            for name in names {
                let place = (directory.clone(), Some(name.clone()));
                if self.skip.contains(&place) {
                    continue;
                }
                let known = self.known.get(directory).and_then(|known| known.get(&name));
                let (mut key, mut observed) = opened.probe(&name, &mounts, known);
                if !probe::is_complete(&observed) {
                    // It was mounted after the table was read.
                    mounts = MountTable::read().unwrap_or_default();
                    (key, observed) = opened.probe(&name, &mounts, known);
                }
                if self.reports.send(Report::Probed(key, observed)).is_err() {
                    return;
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
