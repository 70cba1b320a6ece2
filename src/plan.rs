//! The decision: from what is there (findings), what is offered (own PVs), what is known
//! of each volume's content (ledger) and what is under way (memory) to a verdict for
//! every entry and a list of actions. Pure, so that the agent, a dry run and the tests
//! decide alike.
//!
//! A volume without a PV goes through [`publish`], one with a PV through [`tend`];
//! [`record`] says what the ledger is to remember, and [`adopt`] what a PV that exists
//! lacks.

mod adopt;
mod describe;
mod foresee;
mod occupied;
mod publish;
mod record;
mod tend;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Toleration;

use crate::brake::{self, Brake};
use crate::config::Config;
use crate::discovery::Finding;
use crate::identity::{DeviceNumber, Identity};
use crate::ledger::{Entry, Ledger, State};
use crate::memory::Memory;
use crate::method::WipeRules;
use crate::pv::{LabelChanges, OwnedPv, Phase, Seen, Volume};
use crate::reclaim::{Begun, Unclaimed};
use crate::verdict::{Reason, Verdict};
use crate::volume::{Capacity, NodeFacts, StorageClassFacts};

use occupied::Occupied;
use publish::Offered;

pub use describe::NAMES as ACTIONS;
pub use foresee::{Foresight, Step, foresee};
pub use publish::same_volume;

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The config in force.
    pub config: &'a Config,
    /// This node.
    pub node: &'a NodeFacts,
    /// The storage classes of the cluster, by name.
    pub classes: &'a BTreeMap<String, StorageClassFacts>,
    /// What discovery made of the last snapshot.
    pub findings: &'a [Finding],
    /// Directories, as this process sees them, that could not be looked at, and why.
    pub unseen: &'a BTreeMap<String, Verdict>,
    /// Our PVs, by name.
    pub owned: &'a BTreeMap<String, OwnedPv>,
    /// Our PVs that the watch no longer shows: gone, or only their label is.
    pub suspects: &'a BTreeSet<String>,
    /// Paths of this node that other PVs occupy: path to the names of the PVs.
    pub foreign: &'a BTreeMap<String, BTreeSet<String>>,
    /// What is known of each volume's content.
    pub ledger: &'a Ledger,
    /// Whether the ledger can be written now, or why not. (Without a state directory it is
    /// kept in memory, which never fails.)
    pub ledger_trouble: Option<&'a str>,
    /// Whether the ledger outlives this process.
    pub durable: bool,
    /// Whether PVs may be patched. Without that right they are made, wiped and deleted only.
    pub may_patch: bool,
    /// What the controller remembers.
    pub memory: &'a Memory,
    /// The time of the decision.
    pub now: Instant,
    /// The same on the clock, for times that the API server tells.
    pub clock: Timestamp,
    /// Random bits of this process, for new names of ledger entries.
    pub random: u64,
}

/// What to do and what to say.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// One line for each class and entry, and for each PV whose volume is gone.
    pub entries: Vec<EntryStatus>,
    /// What to begin now.
    pub actions: Vec<Action>,
    /// What the ledger is to remember from now on.
    pub records: Vec<Entry>,
    /// PVs whose volume is not there, to be remembered until the next decision.
    pub missing: BTreeSet<String>,
    /// PVs that are to be wiped, likewise.
    pub wanted: BTreeSet<String>,
    /// A mass release.
    pub mass_release: Option<Brake>,
    /// The same, while it is being held.
    pub brake: Option<Brake>,
    /// Since which second volumes were released that may be the first of one.
    pause_from: Option<i64>,
    /// When to decide again even if nothing happens.
    pub wake_at: Option<Instant>,
    /// Names of PVs that are to be made: of several with one name, the first has it.
    names: HashSet<String>,
}

/// The state of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// Name of the class.
    pub class: String,
    /// Name of the entry; empty for the discovery directory itself.
    pub entry: String,
    /// The path that a PV for it carries.
    pub path: String,
    /// The PV that offers it.
    pub pv: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
}

/// Something to begin.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a PV, once the ledger has the entry.
    Create(Box<Creation>),
    /// Put on a PV what it lacks: our label and signature, what is known of its volume,
    /// and what config, Node and StorageClass say by now.
    Adopt(Box<Adoption>),
    /// Read a PV that has left the watch.
    LookAgain {
        /// Its name.
        pv: String,
    },
    /// Raise a PV's capacity to that of its volume, which grew.
    Grow {
        /// The PV.
        pv: Seen,
        /// The new capacity.
        to: Capacity,
    },
    /// Remove an unclaimed PV whose volume is gone or another one.
    Withdraw {
        /// The PV.
        pv: Unclaimed,
        /// What the ledger is to say after.
        entry: Option<Box<Entry>>,
        /// Why, for people to read.
        why: String,
    },
    /// Offer a Released volume again with its data, at an admin's word.
    Keep(Seen),
    /// Take an admin's word off a PV that it can't be about.
    DropWord(Seen),
    /// Remove a Released PV and never offer its volume again, at an admin's word.
    Retire {
        /// The PV.
        pv: Seen,
        /// What the ledger then says.
        entry: Box<Entry>,
    },
    /// Remove a quarantined PV if nothing is on its volume.
    FreeIfBlank {
        /// The PV.
        pv: Seen,
        /// Its volume.
        target: Box<Target>,
    },
    /// Wipe a Released volume and remove its PV.
    Reclaim(Box<Target>),
}

/// A PV to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// What to make.
    pub volume: Volume,
    /// The volume, to be looked at before; its record is what the ledger is to say first.
    pub target: Target,
    /// What the ledger is to say again if the PV is certainly not made.
    pub before: Option<State>,
    /// When the volume was found.
    pub found_at: Instant,
    /// Whether devices are wiped by Jobs: one may be left.
    pub uses_jobs: bool,
}

/// What a PV lacks, to be put on it by one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// The PV.
    pub pv: Seen,
    /// The identity to record; none while the volume can't be seen.
    pub identity: Option<Arc<Identity>>,
    /// The ledger's entry for it.
    pub entry: Option<Box<str>>,
    /// Labels that differ, ours among them.
    pub labels: Option<LabelChanges>,
    /// The mount options, when they differ and nobody has claimed it.
    pub mount_options: Option<Vec<String>>,
    /// Our signature, in the place of that of a former Node.
    pub signature: Option<String>,
    /// The UID of a former Node that owns it: with that Node, it would be removed.
    pub former_owner: Option<Box<str>>,
    /// The name and UID of the Node that owns it from then on.
    pub owner: Option<(String, String)>,
}

impl Action {
    /// Name of the PV that the action is about.
    #[must_use]
    pub fn pv(&self) -> &str {
        match self {
            Self::Create(creation) => &creation.volume.name,
            Self::Adopt(adoption) => &adoption.pv.name,
            Self::LookAgain { pv } => pv,
            Self::Withdraw { pv, .. } => &pv.seen().name,
            Self::Grow { pv, .. }
            | Self::Keep(pv)
            | Self::DropWord(pv)
            | Self::Retire { pv, .. }
            | Self::FreeIfBlank { pv, .. } => &pv.name,
            Self::Reclaim(target) => &target.pv,
        }
    }
}

/// A volume to be wiped: the PV, where its volume was seen last, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Name of the PV.
    pub pv: String,
    /// UID of the PV.
    pub uid: String,
    /// UID of the claim whose data is to be wiped; empty where there is none.
    pub claim: Box<str>,
    /// The discovery directory as this process sees it.
    pub mount_dir: String,
    /// Name of the entry in it.
    pub entry: String,
    /// What was recorded when the volume was offered; compared on the open volume.
    pub identity: Arc<Identity>,
    /// Mount points that are the same volume by other names: its host path as seen
    /// through the directories of other classes. Full paths.
    pub aliases: Vec<String>,
    /// The digest of the volume that an admin has accepted, whatever was there before.
    pub accepted: Option<String>,
    /// How it is wiped.
    pub rules: WipeRules,
    /// The physical disks that it lies on, as far as they are known.
    pub disks: Box<[DeviceNumber]>,
    /// What the ledger says of it.
    pub record: Box<Entry>,
    /// What its class says of the Job that wipes it; none when the agent does it by itself.
    pub job: Option<ByJob>,
}

impl Target {
    /// The method in words, with a word before it when it is done by a Job.
    #[must_use]
    pub fn named(&self, method: impl fmt::Display) -> String {
        if self.job.is_some() { format!("job {method}") } else { method.to_string() }
    }
}

/// What a class says of the Jobs that wipe its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct ByJob {
    /// Its discovery directory as the kubelet sees it.
    pub host_dir: String,
    /// What the pods tolerate.
    pub tolerations: Vec<Toleration>,
}

impl Target {
    /// What its reclaim is begun for.
    #[must_use]
    pub fn begun(&self) -> Begun<'_> {
        Begun { uid: &self.uid, claim: &self.claim }
    }
}

/// Decides.
#[must_use]
pub fn plan(world: &World<'_>) -> Plan {
    let (bound, released) = releases(world);
    let pause_from = brake::may_begin(bound, &released);
    let mass_release = Brake::find(bound, released);
    let brake = mass_release.filter(|brake| is_held(world, brake));
    let mut plan = Plan { mass_release, brake, pause_from, ..Plan::default() };
    let mut by_path: HashMap<&str, Vec<&OwnedPv>> = HashMap::new();
    for owned in world.owned.values() {
        by_path.entry(&owned.path).or_default().push(owned);
    }
    let named_by = |finding: &Finding| by_path.get(finding.host_path.as_str()).map(Vec::as_slice).unwrap_or_default();
    let of_class = |finding: &Finding| {
        let named_by = named_by(finding);
        named_by.iter().find(|owned| owned.class == finding.class).or(named_by.first()).copied()
    };
    let occupied =
        Occupied::of(world.findings, |finding| of_class(finding).is_some_and(|owned| owned.class == finding.class));
    let offered = Offered::of(world);
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, finding) in world.findings.iter().enumerate() {
        let named_by = named_by(finding);
        let owned = of_class(finding);
        if finding.former.is_some() && owned.is_none_or(|owned| owned.class != finding.class) {
            continue;
        }
        let rival = occupied.rival_of(index).map(|rival| &world.findings[rival]);
        if let Some(owned) = owned.filter(|owned| owned.class == finding.class) {
            let present = finding.outcome.as_ref().ok().filter(|_| finding.former.is_none());
            let present = present.map(|candidate| &candidate.sighting.identity);
            record::note(world, owned, present, &mut plan);
        }
        let verdict = match owned {
            Some(owned) if named_by.len() > 1 || world.foreign.contains_key(&finding.host_path) => {
                seen.extend(named_by.iter().map(|owned| owned.name.as_str()));
                let others = named_by
                    .iter()
                    .map(|other| &other.name)
                    .chain(world.foreign.get(&finding.host_path).into_iter().flatten());
                let others: Vec<_> = others.filter(|name| **name != owned.name).map(String::as_str).collect();
                let detail = format!("PV {} names the path, and so does {}", owned.name, others.join(", "));
                Verdict::new(Reason::PathInUse, detail)
            }
            Some(owned) if owned.class == finding.class => {
                seen.insert(&owned.name);
                tend::present(world, owned, finding, rival, &mut plan)
            }
            Some(owned) if finding.selected && finding.outcome.is_ok() => {
                let detail = format!("PV {} of class {} offers it", owned.name, owned.class);
                Verdict::new(Reason::DuplicateOf, detail)
            }
            _ => publish::offer(world, finding, rival, &offered, &mut plan),
        };
        let verdict = match &finding.former {
            Some(directory) if verdict.reason == Reason::Published && verdict.detail.is_empty() => {
                let detail =
                    format!("the class is not configured in {directory} any more; nothing new is offered there");
                Verdict::new(Reason::Published, detail)
            }
            _ => verdict,
        };
        plan.entries.push(EntryStatus {
            class: finding.class.clone(),
            entry: finding.entry.clone(),
            path: finding.host_path.clone(),
            pv: owned.filter(|owned| owned.class == finding.class).map(|owned| owned.name.clone()),
            verdict,
        });
    }
    plan.entries.extend(unseen_directories(world));
    for owned in world.owned.values() {
        look_again(world, owned, &mut plan);
        if !seen.contains(owned.name.as_str()) {
            record::note(world, owned, None, &mut plan);
            let status = tend::without_finding(world, owned, &mut plan);
            plan.entries.push(status);
        }
    }
    if let Some(until) = world.memory.silent_until(world.now) {
        plan.actions.clear();
        plan.wake_at = Some(until);
    }
    plan
}

/// Classes whose directory could not be looked at: that is told also when they have no PV.
fn unseen_directories<'a>(world: &World<'a>) -> impl Iterator<Item = EntryStatus> {
    let (classes, unseen) = (&world.config.classes, world.unseen);
    classes.iter().filter_map(|class| {
        let verdict = unseen.get(&class.mount_dir)?.clone();
        let (name, path) = (class.name.clone(), class.host_dir.clone());
        Some(EntryStatus { class: name, entry: String::new(), path, pv: None, verdict })
    })
}

impl Plan {
    /// Decides again at `at`, at the latest.
    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// Begins an action, unless another one for the PV comes first.
    fn begin(&mut self, world: &World<'_>, action: Action) {
        let free = !world.memory.in_flight.contains(action.pv()) && !world.suspects.contains(action.pv());
        if free && !self.actions.iter().rev().take(1).any(|other| other.pv() == action.pv()) {
            self.actions.push(action);
        }
    }
}

/// Volumes that two PVs of ours offer: the one that comes second, and the first.
#[must_use]
pub fn offered_twice<'a>(world: &World<'a>) -> Vec<(&'a Finding, &'a Finding)> {
    let places: BTreeSet<(&str, &str)> =
        world.owned.values().map(|owned| (owned.class.as_str(), owned.path.as_str())).collect();
    let has_pv = |finding: &Finding| places.contains(&(finding.class.as_str(), finding.host_path.as_str()));
    let occupied = Occupied::of(world.findings, has_pv);
    let pair = |(index, finding)| {
        let first = occupied.rival_of(index).filter(|rival| *rival < index)?;
        let first = &world.findings[first];
        (has_pv(finding) && has_pv(first)).then_some((finding, first))
    };
    world.findings.iter().enumerate().filter_map(pair).collect()
}

/// The setback that is being waited out for the PV, if any.
fn waiting(world: &World<'_>, pv: &str, plan: &mut Plan) -> Option<Verdict> {
    let setback = world.memory.setback(pv).filter(|setback| setback.retry_at > world.now)?;
    plan.wake(setback.retry_at);
    Some(setback.verdict.clone())
}

fn look_again(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) {
    let name = &owned.name;
    if !world.suspects.contains(name) {
        return;
    }
    let begun = world.memory.in_flight.contains(name) || plan.actions.iter().any(|action| action.pv() == name);
    if !begun && waiting(world, name, plan).is_none() {
        plan.actions.push(Action::LookAgain { pv: name.clone() });
    }
}

/// How many PVs are Bound, and when the others were released: those that are Released and those that
/// were wiped lately. A volume that is released again and again counts once.
fn releases(world: &World<'_>) -> (usize, Vec<i64>) {
    let bound = world.owned.values().filter(|owned| owned.phase == Phase::Bound).count();
    let mut times: HashMap<&str, i64> = world.memory.reclaimed().collect();
    let released = world.owned.values().filter(|owned| owned.phase == Phase::Released && !owned.quarantined);
    times.extend(released.map(|owned| (owned.name.as_str(), since(world, owned))));
    (bound, times.into_values().collect())
}

fn is_held(world: &World<'_>, brake: &Brake) -> bool {
    left_of(world, brake.until(), world.memory.braking_since(brake), brake::HOLD).is_some()
}

/// When the PV came into its phase, in seconds since 1970; now, if nobody says.
fn since(world: &World<'_>, owned: &OwnedPv) -> i64 {
    owned.since.unwrap_or_else(|| world.clock.as_second())
}

/// What is left of a time of waiting, by the clock and by how long this process has seen
/// its cause: the API server's clock may be another one.
fn left_of(world: &World<'_>, until_second: i64, seen: Option<Instant>, length: Duration) -> Option<Duration> {
    let by_clock = until(world, until_second);
    let by_own = (seen.unwrap_or(world.now) + length).checked_duration_since(world.now).filter(|left| !left.is_zero());
    by_clock.max(by_own)
}

/// The time left until a second of the clock.
fn until(world: &World<'_>, second: i64) -> Option<Duration> {
    let left = second.saturating_mul(1_000).saturating_sub(world.clock.as_millisecond());
    u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
