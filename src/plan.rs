//! The decision: from what is there (findings), what is offered (own PVs) and what
//! is under way (memory) to a verdict for every entry and a list of actions. Pure,
//! so that the agent, a dry run and the tests decide alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::discovery::{Candidate, Finding};
use crate::identity::Identity;
use crate::memory::Memory;
use crate::pv::{self, OwnedPv, Phase, Volume};
use crate::verdict::{Reason, Verdict};
use crate::volume::{NodeFacts, ReclaimPolicy, StorageClassFacts};

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
    /// Classes whose directory could not be looked at, and why.
    pub unseen: &'a BTreeMap<String, Verdict>,
    /// Our PVs, by name.
    pub owned: &'a BTreeMap<String, OwnedPv>,
    /// Our PVs that the watch no longer shows: gone, or only their label is.
    pub suspects: &'a BTreeSet<String>,
    /// Paths of this node that other PVs occupy: path to PV name.
    pub foreign: &'a BTreeMap<String, String>,
    /// What the controller remembers.
    pub memory: &'a Memory,
    /// The time of the decision.
    pub now: Instant,
}

/// What to do and what to say.
#[derive(Debug, Default)]
pub struct Plan {
    /// One line for each class and entry, and for each PV whose volume is gone.
    pub entries: Vec<EntryStatus>,
    /// What to begin now.
    pub actions: Vec<Action>,
    /// When to decide again even if nothing happens.
    pub wake_at: Option<Instant>,
}

/// The state of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// Name of the class.
    pub class: String,
    /// Name of the entry.
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
    /// Make a PV.
    Create(Box<Volume>),
    /// Put our label on a PV of ours that lacks it.
    Adopt {
        /// Its name.
        pv: String,
        /// Its UID.
        uid: String,
    },
    /// Read a PV that has left the watch.
    LookAgain {
        /// Its name.
        pv: String,
    },
    /// Wipe a Released volume and remove its PV.
    Reclaim(Target),
}

impl Action {
    /// Name of the PV that the action is about.
    #[must_use]
    pub fn pv(&self) -> &str {
        match self {
            Self::Create(volume) => &volume.name,
            Self::Adopt { pv, .. } | Self::LookAgain { pv } => pv,
            Self::Reclaim(target) => &target.pv,
        }
    }
}

/// A volume to be wiped: the PV, and where its volume was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the PV.
    pub pv: String,
    /// UID of the PV.
    pub uid: String,
    /// The discovery directory as this process sees it.
    pub mount_dir: String,
    /// Name of the entry in it.
    pub entry: String,
    /// What was there at the last look; compared again on the open volume.
    pub identity: Arc<Identity>,
}

/// Decides.
#[must_use]
pub fn plan(world: &World<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut by_path: HashMap<&str, Vec<&OwnedPv>> = HashMap::new();
    for owned in world.owned.values() {
        by_path.entry(&owned.path).or_default().push(owned);
    }
    let mut taken: HashMap<&str, &str> = HashMap::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for finding in world.findings {
        let named_by = by_path.get(finding.host_path.as_str()).map(Vec::as_slice).unwrap_or_default();
        let owned = named_by.iter().find(|owned| owned.class == finding.class).or(named_by.first()).copied();
        let verdict = match owned {
            Some(owned) if named_by.len() > 1 || world.foreign.contains_key(&finding.host_path) => {
                seen.extend(named_by.iter().map(|owned| owned.name.as_str()));
                let others = named_by.iter().map(|other| &other.name).chain(world.foreign.get(&finding.host_path));
                let others: Vec<_> = others.filter(|name| **name != owned.name).map(String::as_str).collect();
                let detail = format!("PV {} names the path, and so does {}", owned.name, others.join(", "));
                Verdict::new(Reason::PathInUse, detail)
            }
            Some(owned) if owned.class == finding.class => {
                seen.insert(&owned.name);
                reclaim_or_keep(world, owned, finding, &mut plan)
            }
            Some(owned) if finding.selected && finding.outcome.is_ok() => {
                let detail = format!("PV {} of class {} offers it", owned.name, owned.class);
                Verdict::new(Reason::DuplicateOf, detail)
            }
            _ => {
                let winner = taken.get(finding.host_path.as_str()).copied();
                match create(world, finding, winner, &mut plan) {
                    Ok(verdict) => {
                        taken.insert(&finding.host_path, &finding.class);
                        verdict
                    }
                    Err(verdict) => verdict,
                }
            }
        };
        plan.entries.push(EntryStatus {
            class: finding.class.clone(),
            entry: finding.entry.clone(),
            path: finding.host_path.clone(),
            pv: owned.filter(|owned| owned.class == finding.class).map(|owned| owned.name.clone()),
            verdict,
        });
    }
    for owned in world.owned.values() {
        adopt_or_look_again(world, owned, &mut plan);
        if !seen.contains(owned.name.as_str()) {
            plan.entries.push(without_finding(world, owned));
        }
    }
    if let Some(until) = world.memory.silent_until(world.now) {
        plan.actions.clear();
        plan.wake_at = Some(until);
    }
    plan
}

/// A volume without a PV: make one, if the class takes it and nothing stands against
/// it. `Ok` means that it now is this class's, even if the PV is still to come.
fn create(world: &World<'_>, finding: &Finding, winner: Option<&str>, plan: &mut Plan) -> Result<Verdict, Verdict> {
    let class = world.config.class(&finding.class).expect("findings come from the classes of the config");
    if !finding.selected {
        return Err(Verdict::new(Reason::ExcludedByPattern, format!("namePattern is {}", class.pattern)));
    }
    let Candidate { capacity, .. } = finding.outcome.as_ref().map_err(Verdict::clone)?;
    if let Some(winner) = winner {
        return Err(Verdict::new(Reason::DuplicateOf, format!("class {winner} comes first in the order of names")));
    }
    if let Some(pv) = world.foreign.get(&finding.host_path) {
        return Err(Verdict::new(Reason::PathInUse, format!("PV {pv}, which is not ours, names the path")));
    }
    let Some(storage_class) = world.classes.get(&finding.class) else {
        return Err(Verdict::new(Reason::NoStorageClass, format!("the cluster has no StorageClass {}", finding.class)));
    };
    if !matches!(storage_class.reclaim_policy, ReclaimPolicy::Delete | ReclaimPolicy::Retain) {
        let policy = storage_class.reclaim_policy.as_str();
        let detail = format!("StorageClass {} has reclaimPolicy {policy}; use Delete or Retain", finding.class);
        return Err(Verdict::new(Reason::Refused, detail));
    }
    let volume = pv::volume(world.config, class, storage_class, world.node, &finding.entry, *capacity);
    if let Some(other) = world.owned.get(&volume.name) {
        let detail = format!("the name {} is taken by the PV for {}", volume.name, other.path);
        return Err(Verdict::new(Reason::Refused, detail));
    }
    if world.memory.in_flight.contains(&volume.name) {
        return Ok(Verdict::new(Reason::Pending, "its PV is being made"));
    }
    if let Some(verdict) = waiting(world, &volume.name, plan) {
        return Ok(verdict);
    }
    plan.actions.push(Action::Create(Box::new(volume)));
    Ok(Verdict::new(Reason::Pending, "its PV is being made"))
}

/// A volume with a PV of ours: leave it, or reclaim it when its claim is gone.
fn reclaim_or_keep(world: &World<'_>, owned: &OwnedPv, finding: &Finding, plan: &mut Plan) -> Verdict {
    let name = &owned.name;
    let candidate = match &finding.outcome {
        Ok(candidate) => candidate,
        Err(verdict) => return verdict.clone(),
    };
    if !wants_reclaim(owned) {
        return kept(world, owned);
    }
    if world.memory.in_flight.contains(name) || world.suspects.contains(name) {
        return Verdict::new(Reason::Wiping, "");
    }
    if let Some(verdict) = waiting(world, name, plan) {
        return verdict;
    }
    match target(world, owned, candidate) {
        Ok(target) => {
            plan.actions.push(Action::Reclaim(target));
            Verdict::new(Reason::Wiping, "")
        }
        Err(verdict) => verdict,
    }
}

/// The verdict of a volume whose PV stays as it is.
fn kept(world: &World<'_>, owned: &OwnedPv) -> Verdict {
    if owned.terminating {
        return Verdict::new(Reason::Pending, "its PV is being removed");
    }
    if let Some(setback) = world.memory.setback(&owned.name).filter(|_| !owned.labelled) {
        return setback.verdict.clone();
    }
    match owned.phase {
        Phase::Released | Phase::Failed => {
            let policy = owned.reclaim_policy.as_str();
            Verdict::new(Reason::Published, format!("its claim is gone; its policy {policy} keeps it as it is"))
        }
        Phase::Pending | Phase::Available | Phase::Bound => Verdict::new(Reason::Published, ""),
    }
}

/// Released with policy Delete; or with our fence on it, unless a claim has it again.
fn wants_reclaim(owned: &OwnedPv) -> bool {
    let released = owned.phase == Phase::Released && owned.reclaim_policy == ReclaimPolicy::Delete;
    let fenced = owned.fenced && !(owned.terminating && owned.phase == Phase::Bound);
    fenced || (released && !owned.terminating)
}

/// Where to find the volume of a PV; refused unless its path is exactly a first-level
/// entry of its class's directory.
fn target(world: &World<'_>, owned: &OwnedPv, candidate: &Candidate) -> Result<Target, Verdict> {
    let class = world.config.class(&owned.class);
    let Some((class, entry)) = class.and_then(|class| class.entry_of(&owned.path).map(|entry| (class, entry))) else {
        let detail = format!("{} is no entry of a configured directory of its class", owned.path);
        return Err(Verdict::new(Reason::Refused, detail));
    };
    Ok(Target {
        pv: owned.name.clone(),
        uid: owned.uid.clone(),
        mount_dir: class.mount_dir.clone(),
        entry: entry.to_owned(),
        identity: Arc::clone(&candidate.sighting.identity),
    })
}

fn waiting(world: &World<'_>, pv: &str, plan: &mut Plan) -> Option<Verdict> {
    let setback = world.memory.setback(pv).filter(|setback| setback.retry_at > world.now)?;
    plan.wake_at = Some(plan.wake_at.map_or(setback.retry_at, |at| at.min(setback.retry_at)));
    Some(setback.verdict.clone())
}

fn adopt_or_look_again(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) {
    let name = &owned.name;
    if world.memory.in_flight.contains(name) {
        return;
    }
    let action = if world.suspects.contains(name) {
        Action::LookAgain { pv: name.clone() }
    } else if !owned.labelled && !owned.terminating {
        Action::Adopt { pv: name.clone(), uid: owned.uid.clone() }
    } else {
        return;
    };
    // One thing at a time for each PV: a reclaim comes first.
    if waiting(world, name, plan).is_none() && !plan.actions.iter().any(|other| other.pv() == name) {
        plan.actions.push(action);
    }
}

/// A PV whose path shows nothing: its volume is gone, or its path is none of ours.
fn without_finding(world: &World<'_>, owned: &OwnedPv) -> EntryStatus {
    let path = &owned.path;
    let entry = world.config.class(&owned.class).and_then(|class| class.entry_of(path));
    let verdict = match entry {
        Some(_) if world.unseen.contains_key(&owned.class) => world.unseen[&owned.class].clone(),
        Some(_) if owned.fenced => {
            let detail = "nothing is at its path, and its wipe had begun: without the disk, only taking the \
                          finalizer mooring.dev/wipe off the PV ends it";
            Verdict::new(Reason::Vanished, detail)
        }
        Some(_) => Verdict::new(Reason::Vanished, format!("PV {} is there, but nothing is at its path", owned.name)),
        None => Verdict::new(Reason::Refused, format!("{path} is no entry of a configured directory of its class")),
    };
    EntryStatus {
        class: owned.class.clone(),
        entry: entry.unwrap_or_default().to_owned(),
        path: path.clone(),
        pv: Some(owned.name.clone()),
        verdict,
    }
}
