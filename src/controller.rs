//! The one loop that drives everything. It owns all state that changes: it waits for
//! something to happen, takes it over, decides (`plan`), and begins what was decided
//! ([`act`]). What it begins runs beside it and reports back by ending.

mod act;
mod books;
mod limits;
mod observe;
mod pace;
mod reload;
mod results;
mod scribe;
mod shadow;
mod taint;
mod tell;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::admin::View;
use crate::brake::{self, Brake};
use crate::cache::{Cache, Event};
use crate::cleanup_job::Site;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::config_dir::{Loaded, Reading};
use crate::deleter::Control;
use crate::discovery::{Finding, Snapshot};
use crate::events::{self, About, Events};
use crate::ledger::Ledger;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::node::{Scanner, ioctl};
use crate::plan::{self, Action, World};
use crate::state_dir::StateDir;
use crate::verdict::{Reason, Verdict};
use crate::volume::NodeFacts;
use act::{Done, Jobs, LeftJobs, Tools};
use books::Books;
use limits::Limits;
use pace::Pace;
use shadow::Shadow;
use taint::Untainting;
use tell::Teller;
use turns::Turns;

/// PVs that are being made or changed at the same time. Of these, `cluster` lets 32 call
/// the API server; meanwhile the others are looked at and recorded in the ledger.
const MAX_IN_FLIGHT: usize = 96;
/// Released PVs that are being looked after at the same time.
const MAX_RECLAIMS: usize = 64;
/// The loop comes round at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a stop waits for wipes to end.
const STOP_PATIENCE: Duration = Duration::from_secs(8);
/// How long it waits for the state directory after that.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What the controller works with.
pub struct Parts {
    /// The config, with the former classes that the state directory knows.
    pub config: Loaded,
    /// What is read when it changes.
    pub readings: mpsc::UnboundedReceiver<Reading>,
    /// What the state directory has of the config, for [`Config::recall`].
    pub remembered: Vec<u8>,
    /// Name of this Node.
    pub node_name: String,
    /// Reads and writes PVs.
    pub cluster: Cluster,
    /// For the watches.
    pub watches: Client,
    /// Shows the controller to the HTTP pages.
    pub view: watch::Sender<View>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is known of each volume's content.
    pub ledger: Ledger,
    /// Makes that durable, when there is a state directory.
    pub state: Option<StateDir>,
    /// Where Events are put, and whence they are sent.
    pub events: (Events, mpsc::Receiver<events::Event>),
    /// Where Jobs are made.
    pub jobs: Site,
    /// Nothing is done, only compared: how long a difference must last to count. What the
    /// parts write with must be [`Cluster::read_only`], and there must be no `state`.
    pub shadow: Option<Duration>,
}

/// The loop and its state.
pub struct Controller {
    config: Config,
    config_hash: u64,
    /// It comes into force when its directories have been looked at.
    next_config: Option<Loaded>,
    readings: mpsc::UnboundedReceiver<Reading>,
    node_name: String,
    scanner: Scanner,
    cluster: Cluster,
    watches: Client,
    view: watch::Sender<View>,
    tools: Tools,
    cache: Cache,
    events: mpsc::Receiver<Event>,
    event_sender: mpsc::Sender<Event>,
    feeds: JoinSet<()>,
    pv_feeds: JoinSet<()>,
    sender: JoinSet<()>,
    fed_for: Option<NodeFacts>,
    snapshot: Option<Arc<Snapshot>>,
    findings: Vec<Finding>,
    unseen: BTreeMap<String, Verdict>,
    memory: Memory,
    books: Books,
    teller: Teller,
    /// Events, until it is known who sends them.
    unsent: Option<mpsc::Receiver<events::Event>>,
    limits: Limits,
    turns: Turns,
    brake: Option<Brake>,
    untainting: Untainting,
    shadow: Option<Shadow>,
    random: u64,
    queue: VecDeque<Action>,
    work: JoinSet<Done>,
    reclaiming: BTreeMap<String, Arc<Control>>,
    stop: watch::Sender<bool>,
    dirty: bool,
    pace: Pace,
    /// The first decision since the last [`Controller::settle`].
    unsettled_since: Option<Instant>,
    /// The most calls at the same time since then.
    calls_since_settled: usize,
    wake_at: Option<Instant>,
    resync_at: Instant,
}

impl Controller {
    /// Starts the scanner and the feeds.
    ///
    /// # Errors
    /// When a thread or the inotify instance can't be had.
    pub fn start(parts: Parts) -> anyhow::Result<Self> {
        let Loaded { config, hash: config_hash } = parts.config;
        let scanner = Scanner::start(config.mount_dirs())?;
        let (event_sender, events) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let resync_at = Instant::now() + next_resync(&config);
        let (notices, unsent) = parts.events;
        assert!(parts.shadow.is_none() || parts.state.is_none(), "a shadow has no state directory to write to");
        let (mut books, scribe) = Books::open(parts.ledger, parts.remembered, parts.state);
        books.note_classes(config.remembered(), &scribe);
        parts.metrics.config_last_reload_successful.set(1);
        parts.metrics.config_hash.set(config_hash.cast_signed());
        let shadow = parts.shadow.map(|grace| Shadow::new(grace, Arc::clone(&parts.metrics)));
        let mut controller = Self {
            node_name: parts.node_name,
            tools: Tools {
                cluster: parts.cluster.clone(),
                node: None,
                use_node_name_only: config.use_node_name_only,
                may_patch: true,
                stopped,
                metrics: parts.metrics,
                scribe,
                events: notices,
                jobs: Jobs::new(parts.jobs, parts.watches.clone()),
                left_jobs: LeftJobs::default(),
            },
            unsent: Some(unsent),
            books,
            teller: Teller::default(),
            limits: Limits::default(),
            turns: Turns::new(config.max_parallel_wipes),
            brake: None,
            untainting: Untainting::default(),
            shadow,
            random: fastrand::u64(..),
            config,
            config_hash,
            next_config: None,
            readings: parts.readings,
            scanner,
            cluster: parts.cluster,
            watches: parts.watches,
            view: parts.view,
            cache: Cache::default(),
            events,
            event_sender,
            feeds: JoinSet::new(),
            pv_feeds: JoinSet::new(),
            sender: JoinSet::new(),
            fed_for: None,
            snapshot: None,
            findings: Vec::new(),
            unseen: BTreeMap::new(),
            memory: Memory::default(),
            queue: VecDeque::new(),
            work: JoinSet::new(),
            reclaiming: BTreeMap::new(),
            stop,
            dirty: false,
            pace: Pace::default(),
            unsettled_since: None,
            calls_since_settled: 0,
            wake_at: None,
            resync_at,
        };
        controller.feed_cluster();
        Ok(controller)
    }

    /// Runs until `shutdown` completes, then stops in order: nothing new is begun,
    /// wipes are told to end, and who does not is named.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let wake_at = self.next_wake();
            tokio::select! {
                () = &mut shutdown => break,
                changed = self.scanner.snapshots.changed() => {
                    changed.expect("the scanner lives as long as the process");
                    self.look_at_snapshot();
                }
                Some(event) = self.events.recv() => self.take_events(event),
                Some(done) = self.work.join_next() => self.take_results(done),
                changes = self.books.written() => self.dirty |= changes,
                () = self.untainting.progress(&self.tools.events) => self.dirty = true,
                reading = self.readings.recv(), if !self.readings.is_closed() => self.take_reading(
                    reading.unwrap_or_else(|| Err("its reader has ended by a defect; restart the agent".to_owned()))
                ),
                () = tokio::time::sleep_until(wake_at.into()) => self.tick(),
            }
            self.view.send_modify(|view| view.heartbeat = Instant::now());
            if self.dirty && self.rested() {
                self.decide();
            }
            self.begin_queued();
            self.calls_since_settled = self.calls_since_settled.max(self.work.len());
        }
        self.stop().await;
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let rest = self.pace.next(self.is_busy()).filter(|_| self.dirty);
        let settle = self.unsettled_since.filter(|_| self.work.is_empty()).map(|since| since + HEARTBEAT);
        let times = [rest, settle, self.wake_at, self.books.next_tick(), Some(self.resync_at), Some(now + HEARTBEAT)];
        times.into_iter().flatten().min().unwrap_or(now)
    }

    fn rested(&self) -> bool {
        self.pace.next(self.is_busy()).is_none_or(|at| at <= Instant::now())
    }

    /// Whether PVs are being made or changed.
    fn is_busy(&self) -> bool {
        self.work.len() > self.reclaiming.len()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.unsettled_since.is_some_and(|since| now - since >= HEARTBEAT) && self.work.is_empty() {
            self.settle();
        }
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.dirty = true;
        }
        self.books.tick(&self.tools.scribe);
        if self.resync_at <= now {
            debug!("Looking at everything again");
            self.resync_at = now + next_resync(&self.config);
            self.scanner.look_at_everything();
            if self.shadow.is_none() {
                self.cache.suspect_unlabelled();
                self.ask_for_rights();
            }
            self.dirty = true;
        }
    }

    /// Gives back what a burst of work has left behind: connections and memory.
    fn settle(&mut self) {
        if self.calls_since_settled > 1 {
            self.cluster.close_idle_connections();
            self.tools.cluster = self.cluster.clone();
        }
        self.calls_since_settled = 0;
        self.unsettled_since = None;
        ioctl::release_free_memory();
    }

    fn decide(&mut self) {
        if self.snapshot.is_none() || !self.cache.is_complete() {
            let missing = if self.snapshot.is_none() { "the discovery directories" } else { self.cache.missing() };
            self.view.send_modify(|view| view.readiness = Err(missing.to_owned()));
            self.dirty = false;
            return;
        }
        self.forget_former_classes();
        let now = Instant::now();
        for id in self.books.take_written() {
            let owned = self.cache.owned().values().find(|owned| owned.entry == Some(id.0));
            if let Some(owned) = owned {
                self.memory.forget_setback(&owned.name);
            }
        }
        if let Some(trouble) = self.books.take_new_trouble() {
            let about = About::Node(self.node_name.clone());
            self.tools.events.send(events::Event::warning(about, events::LEDGER_NOT_WRITABLE, trouble));
        }
        let world = World {
            config: &self.config,
            node: self.cache.node().expect("a complete cache knows the Node"),
            classes: self.cache.classes(),
            findings: &self.findings,
            unseen: &self.unseen,
            owned: self.cache.owned(),
            suspects: self.cache.suspects(),
            foreign: self.cache.foreign(),
            ledger: self.books.ledger(),
            ledger_trouble: self.books.trouble(),
            durable: self.tools.scribe.is_durable(),
            may_patch: self.tools.may_patch,
            memory: &self.memory,
            now,
            clock: jiff::Timestamp::now(),
            random: self.random,
        };
        let plan = match &mut self.shadow {
            Some(shadow) => shadow.decide(&world),
            None => plan::plan(&world),
        };
        self.memory.decided();
        self.memory.note_missing(plan.missing, now);
        self.memory.note_wanted(plan.wanted, now);
        self.memory.note_mass_release(plan.mass_release, now);
        self.tell_taken(&plan.records);
        if self.shadow.is_none() {
            self.tell_limits();
        }
        self.books.note(plan.records, &self.tools.scribe);
        self.heed_brakes(plan.brake);
        self.dirty = false;
        self.unsettled_since.get_or_insert(now);
        self.wake_at = plan.wake_at;
        self.queue.extend(plan.actions.into_iter().inspect(|action| {
            self.memory.begin(action.pv());
            if let Action::Create(creation) = action {
                self.memory.begin_offering(action.pv(), creation.found_at);
            }
        }));
        let totals = self.take_stock(&plan.entries);
        self.view.send_modify(|view| {
            if view.readiness.is_err() {
                view.readiness = Ok(());
                info!(entries = plan.entries.len(), "Ready: every entry was looked at");
            }
            let (owned, events) = (self.cache.owned(), &self.tools.events);
            self.teller.tell_busy(&plan.entries, owned, &self.node_name, events);
            let changed = view.status.update(plan.entries);
            view.status.count(totals);
            let mismatches = changed.iter().filter(|entry| entry.verdict.reason == Reason::IdentityChanged);
            self.tools.metrics.identity_mismatches.inc_by(mismatches.count() as u64);
            self.teller.tell(&changed, owned, &self.node_name, events);
        });
        self.pace.decided(now, now.elapsed());
    }

    /// Stops the wipes that an admin holds, and tells of a mass release.
    fn heed_brakes(&mut self, brake: Option<Brake>) {
        let all = self.cache.node().is_some_and(|node| node.hold);
        for (pv, control) in &self.reclaiming {
            if all || self.cache.owned().get(pv).is_some_and(|owned| owned.hold) {
                control.cancel();
            }
        }
        if all || brake.is_some() {
            // What has not begun is decided on anew.
            let (dropped, kept) =
                std::mem::take(&mut self.queue).into_iter().partition(|action| matches!(action, Action::Reclaim(_)));
            self.queue = kept;
            let dropped: VecDeque<Action> = dropped;
            dropped.iter().for_each(|action| self.memory.look_again(action.pv()));
        }
        if let Some(Brake { released, of, .. }) = brake.filter(|_| self.brake.is_none()) {
            let minutes = brake::HOLD.as_secs() / 60;
            let note = format!(
                "{released} of {of} volumes were released within a minute, as after a restore of etcd: their wipes \
                 wait for {minutes} minutes. To keep them, annotate the Node with mooring.dev/hold"
            );
            warn!(released, of, "Most volumes were released at once; their wipes wait");
            self.tools.events.send(events::Event::warning(
                About::Node(self.node_name.clone()),
                events::MASS_RELEASE,
                note,
            ));
        }
        self.brake = brake;
        self.tools.metrics.brake.set(i64::from(brake.is_some()));
    }

    /// Begins what was decided, as far as the limits allow; the rest waits its turn.
    fn begin_queued(&mut self) {
        // In a silence, one call finds out whether it is over.
        let limit = if self.memory.is_silent() { 1 } else { MAX_IN_FLIGHT };
        for action in std::mem::take(&mut self.queue) {
            match &action {
                Action::Reclaim(target) | Action::FreeIfBlank { target, .. }
                    if self.reclaiming.len() < MAX_RECLAIMS =>
                {
                    let control = Arc::new(Control::default());
                    self.reclaiming.insert(target.pv.clone(), Arc::clone(&control));
                    let (tools, place) = (self.tools.clone(), self.turns.place(target));
                    match action {
                        Action::FreeIfBlank { pv, target } => {
                            self.work.spawn(tools.free_if_blank(pv, *target, place, control))
                        }
                        Action::Reclaim(target) => self.work.spawn(tools.reclaim(*target, place, control)),
                        _ => unreachable!("matched above"),
                    };
                }
                Action::Reclaim(_) | Action::FreeIfBlank { .. } => self.queue.push_back(action),
                _ if self.work.len() - self.reclaiming.len() < limit => {
                    self.work.spawn(self.tools.clone().write(action));
                }
                _ => self.queue.push_back(action),
            }
        }
    }

    async fn stop(mut self) {
        info!(wipes = self.reclaiming.len(), "Stopping");
        let _ = self.stop.send(true);
        self.queue.clear();
        self.feeds.abort_all();
        self.pv_feeds.abort_all();
        self.reclaiming.values().for_each(|control| control.cancel());
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        while !self.reclaiming.is_empty() {
            match tokio::time::timeout_at(deadline, self.work.join_next()).await {
                Ok(Some(done)) => self.take_results(done),
                Ok(None) => break,
                Err(_) => {
                    for (pv, control) in &self.reclaiming {
                        let (done, total) = control.progress();
                        let thread = act::thread_name(pv);
                        if control.is_running() {
                            warn!(pv, thread, done, total, "The kernel holds this thread; leaving without it");
                        } else {
                            warn!(pv, "The API server has not answered for this PV; leaving without it");
                        }
                    }
                    break;
                }
            }
        }
        // A thread that the kernel holds keeps its volume, and this process, but not the
        // node from the next agent.
        self.work.abort_all();
        match tokio::time::timeout(CLOSE_PATIENCE, self.tools.scribe.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "The state directory is not closed in order"),
            Err(_) => warn!("The state directory does not answer; it is closed with the end of this process"),
        }
        info!("Stopped");
    }
}

/// A time in [p, 2p), so that the agents of a cluster spread.
fn next_resync(config: &Config) -> Duration {
    config.resync.mul_f64(1.0 + fastrand::f64())
}
