//! A volume without a PV: whether one is made for it. What may hold a tenant's data is
//! never offered as it is: a PV that nobody can claim shows it instead.

use std::cell::OnceCell;
use std::collections::HashMap;

use super::{Action, Creation, Plan, Target, World, record, waiting};
use crate::config::{Class, DirtyPolicy};
use crate::discovery::{Candidate, Finding};
use crate::identity::{Comparison, Identity};
use crate::ledger::{Entry, Found, Standing, State, standing};
use crate::pv::{self, Claim, LEDGER_ENTRY, OwnedPv, Volume};
use crate::verdict::{Reason, Verdict};
use crate::volume::{ReclaimPolicy, StorageClassFacts};

/// Makes a PV, if the class takes the volume and nothing stands against it.
pub fn offer(
    world: &World<'_>,
    finding: &Finding,
    rival: Option<&Finding>,
    offered: &Offered<'_>,
    plan: &mut Plan,
) -> Verdict {
    try_offer(world, finding, rival, offered, plan).unwrap_or_else(|verdict| verdict)
}

/// Which PV has which volume, by what was recorded in the PVs, or else in the ledger: their volumes may be at
/// other paths by now.
pub struct Offered<'a> {
    world: World<'a>,
    by_key: OnceCell<HashMap<u64, Vec<&'a OwnedPv>>>,
}

impl<'a> Offered<'a> {
    /// The PVs of the world.
    pub fn of(world: &World<'a>) -> Self {
        Self { world: *world, by_key: OnceCell::new() }
    }

    fn pv_of(&self, identity: &Identity) -> Option<&'a OwnedPv> {
        let by_key = self.by_key.get_or_init(|| {
            let mut by_key: HashMap<u64, Vec<&OwnedPv>> = HashMap::new();
            for owned in self.world.owned.values() {
                for key in record::identity(&self.world, owned).into_iter().flat_map(|identity| identity.keys()) {
                    by_key.entry(key).or_default().push(owned);
                }
            }
            by_key
        });
        let candidates = identity.keys().into_iter().filter_map(|key| by_key.get(&key)).flatten().copied();
        let same = |owned: &&OwnedPv| {
            record::identity(&self.world, owned).is_some_and(|recorded| recorded.compare(identity) == Comparison::Same)
        };
        candidates.into_iter().find(same)
    }
}

fn try_offer(
    world: &World<'_>,
    finding: &Finding,
    rival: Option<&Finding>,
    offered_by: &Offered<'_>,
    plan: &mut Plan,
) -> Result<Verdict, Verdict> {
    let refused = |reason, detail: String| Err(Verdict::new(reason, detail));
    let class = world.config.class(&finding.class).expect("findings come from the classes of the config");
    if !finding.selected {
        return refused(Reason::ExcludedByPattern, format!("namePattern is {}", class.pattern));
    }
    let candidate = finding.outcome.as_ref().map_err(Verdict::clone)?;
    if let Some(rival) = rival {
        let first = finding.host_path == rival.host_path;
        let detail = format!("class {} comes first in the order of names", rival.class);
        return refused(Reason::DuplicateOf, if first { detail } else { same_volume(rival) });
    }
    if let Some(pvs) = world.foreign.get(&finding.host_path) {
        let pvs: Vec<_> = pvs.iter().map(String::as_str).collect();
        let detail = match pvs.as_slice() {
            [pv] => format!("PV {pv}, which is not ours, names the path"),
            several => format!("PVs {}, which are not ours, name the path", several.join(", ")),
        };
        return refused(Reason::PathInUse, detail);
    }
    let storage_class = storage_class(world, finding)?;
    let identity = &candidate.sighting.identity;
    let (name, found) = name(world, finding, identity, plan)?;
    if let Some(other) = offered_by.pv_of(identity) {
        let detail = format!("PV {} offers the same volume, at {}", other.name, other.path);
        return refused(Reason::DuplicateOf, detail);
    }
    if let Some(verdict) = waiting(world, &name, plan) {
        return Ok(verdict);
    }
    if let Some(trouble) = world.ledger_trouble {
        return refused(Reason::Pending, format!("not before the ledger can be written: {trouble}"));
    }
    let volume =
        pv::volume(world.config, class, storage_class, world.node, &finding.entry, candidate.capacity, identity);
    let volume = Volume { name, ..volume };
    let (volume, entry, before) = through_the_gate(world, class, finding, candidate, found, volume)?;
    let verdict = match &volume.claim {
        None => being_made(world, &volume.name),
        Some(_) => Verdict::new(Reason::Dirty, volume.annotations.get(pv::QUARANTINED).cloned().unwrap_or_default()),
    };
    let target = Target {
        pv: volume.name.clone(),
        uid: String::new(),
        claim: Box::default(),
        mount_dir: class.mount_dir.clone(),
        entry: finding.entry.clone(),
        identity: candidate.sighting.identity.clone(),
        aliases: Vec::new(),
        accepted: None,
        rules: class.wipe.clone(),
        disks: Box::default(),
        record: Box::new(entry),
        job: None,
    };
    let found_at = world.memory.found_at(&volume.name).unwrap_or(world.now);
    plan.names.insert(volume.name.clone());
    let uses_jobs = world.config.use_job_for_cleaning;
    plan.actions.push(Action::Create(Box::new(Creation { volume, target, before, found_at, uses_jobs })));
    Ok(verdict)
}

/// The name for its PV, and what the ledger knows of the volume: the Go provisioner's name,
/// or when another PV has that, a longer one. An error while a PV of that name is being made.
fn name<'a>(
    world: &World<'a>,
    finding: &Finding,
    identity: &Identity,
    plan: &Plan,
) -> Result<(String, Found<'a>), Verdict> {
    let (entry, node, class) = (&finding.entry, &world.node.name, &finding.class);
    let usual = pv::pv_name(entry, node, class);
    let is_taken = world.owned.contains_key(&usual) || world.memory.is_taken(&usual);
    // This far comes every volume whose PV is being made, at each decision of a burst.
    if !is_taken && (world.memory.in_flight.contains(&usual) || plan.names.contains(&usual)) {
        return Err(being_made(world, &usual));
    }
    let found = world.ledger.find(identity, &finding.host_path);
    let long = pv::long_pv_name(entry, node, class);
    // Under the name that it was offered by last it may still be, as far as anybody knows.
    let had_long = matches!(found, Found::One(entry) if entry.state.pv() == Some(&long));
    let name = if is_taken || had_long { long } else { usual };
    if let Some(other) = world.owned.get(&name) {
        let detail = format!("the name {name} is taken by the PV for {}", other.path);
        return Err(Verdict::new(Reason::Refused, detail));
    }
    if world.memory.in_flight.contains(&name) {
        return Err(being_made(world, &name));
    }
    Ok((name, found))
}

/// The verdict of a volume whose PV is being made: what was in the way the last time still may be.
fn being_made(world: &World<'_>, pv: &str) -> Verdict {
    let setback = world.memory.setback(pv);
    setback.map_or_else(|| Verdict::new(Reason::Pending, "its PV is being made"), |setback| setback.verdict.clone())
}

/// How an entry is the same volume as another one.
#[must_use]
pub fn same_volume(rival: &Finding) -> String {
    format!("{} of class {} is the same volume, or part of it", rival.host_path, rival.class)
}

/// The storage class, if PVs can be made for it.
fn storage_class<'a>(world: &World<'a>, finding: &Finding) -> Result<&'a StorageClassFacts, Verdict> {
    let Some(storage_class) = world.classes.get(&finding.class) else {
        return Err(Verdict::new(Reason::NoStorageClass, format!("the cluster has no StorageClass {}", finding.class)));
    };
    if !matches!(storage_class.reclaim_policy, ReclaimPolicy::Delete | ReclaimPolicy::Retain) {
        let policy = storage_class.reclaim_policy.as_str();
        let detail = format!("StorageClass {} has reclaimPolicy {policy}; use Delete or Retain", finding.class);
        return Err(Verdict::new(Reason::Refused, detail));
    }
    Ok(storage_class)
}

/// How the volume's PV is made, what the ledger is to say before, and what again if the
/// PV is certainly not made.
fn through_the_gate(
    world: &World<'_>,
    class: &Class,
    finding: &Finding,
    candidate: &Candidate,
    found: Found<'_>,
    volume: Volume,
) -> Result<(Volume, Entry, Option<State>), Verdict> {
    let identity = &candidate.sighting.identity;
    // One that is not certainly about this volume stays as it is, beside a new one.
    let known = if let Found::One(entry) = found { Some(entry) } else { None };
    let mut entry = known.cloned().unwrap_or_else(|| {
        let id = record::new_id(world, &finding.host_path, identity);
        Entry::new(id, &finding.class, &finding.host_path, identity.clone(), world.clock)
    });
    entry.class = finding.class.as_str().into();
    entry.path = finding.host_path.as_str().into();
    entry.identity = identity.clone();
    entry.as_of = world.clock;
    let mut volume = volume;
    volume.annotations.insert(LEDGER_ENTRY.to_owned(), entry.id.to_string());
    if let Some(root) = &entry.root {
        volume.annotations.insert(pv::ROOT.to_owned(), root.to_string());
    }
    let standing = match known.map(|entry| &entry.state) {
        // This process has asked for the PV, and has not seen it since: it asks again.
        Some(State::Offered { uid: None, .. }) if world.memory.is_offering(&volume.name) => Standing::Free,
        _ => standing(found, world.ledger.lost() > 0),
    };
    let name: Box<str> = volume.name.as_str().into();
    let quarantine = |volume: Volume, mut entry: Entry, claim: Option<&(Box<str>, Claim)>, why: &str| {
        let pv = claim.map_or_else(|| name.clone(), |(pv, _)| pv.clone());
        let of_this_name = claim.filter(|(pv, _)| *pv == name).map(|(_, claim)| claim);
        let volume = volume.quarantined(of_this_name, why, false);
        // How far a wipe by hand has come is still needed.
        if !entry.state.is_wipe_by_hand() {
            entry.state = State::Quarantined { reason: why.into(), pv, claim: claim.map(|(_, claim)| claim.clone()) };
        }
        Ok((volume, entry, None))
    };
    match standing {
        Standing::HalfWiped => {
            let why = "its wipe was begun and has not ended; its PV was removed meanwhile";
            Ok((volume.quarantined(None, why, true), entry, None))
        }
        Standing::Retired => Err(Verdict::new(
            Reason::Dirty,
            "an admin has retired it; `mooring wipe` on the node makes it fit to be offered again",
        )),
        Standing::Dirty { claim, why } => quarantine(volume, entry, claim.as_ref(), &why),
        Standing::NeverSeen if class.dirty == DirtyPolicy::Quarantine => {
            let why = "it has not been seen before, and the class has dirty: quarantine";
            quarantine(volume, entry, None, why)
        }
        Standing::NeverSeen if class.dirty == DirtyPolicy::Wipe => {
            entry.state = State::Wiping { pv: name, uid: "".into(), claim: None, method: "".into(), cursor: None };
            let why = "it has not been seen before, and the class has dirty: wipe";
            Ok((volume.quarantined(None, why, true), entry, None))
        }
        Standing::Free | Standing::NeverSeen => {
            let before = entry.unused();
            entry.state = State::Offered { pv: name, uid: None, since: None };
            Ok((volume, entry, Some(before)))
        }
    }
}
