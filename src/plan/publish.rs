//! A volume without a PV: whether one is made for it. What may hold a tenant's data is
//! never offered as it is: a PV that nobody can claim shows it instead.

use super::{Action, Creation, Plan, Target, World, waiting};
use crate::config::{Class, DirtyPolicy};
use crate::discovery::{Candidate, Finding};
use crate::ledger::{Entry, EntryId, Found, Standing, State, standing};
use crate::pv::{self, Claim, LEDGER_ENTRY, Volume};
use crate::verdict::{Reason, Verdict};
use crate::volume::{ReclaimPolicy, StorageClassFacts, fnv1a_64};

/// Makes a PV, if the class takes the volume and nothing stands against it.
pub fn offer(world: &World<'_>, finding: &Finding, rival: Option<&Finding>, plan: &mut Plan) -> Verdict {
    try_offer(world, finding, rival, plan).unwrap_or_else(|verdict| verdict)
}

fn try_offer(
    world: &World<'_>,
    finding: &Finding,
    rival: Option<&Finding>,
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
    if let Some(pv) = world.foreign.get(&finding.host_path) {
        return refused(Reason::PathInUse, format!("PV {pv}, which is not ours, names the path"));
    }
    let storage_class = storage_class(world, finding)?;
    // This far comes every volume whose PV is being made, at each decision of a burst.
    let name = pv::pv_name(&finding.entry, &world.node.name, &finding.class);
    if let Some(other) = world.owned.get(&name) {
        return refused(Reason::Refused, format!("the name {name} is taken by the PV for {}", other.path));
    }
    if world.memory.in_flight.contains(&name) {
        return Ok(Verdict::new(Reason::Pending, "its PV is being made"));
    }
    if let Some(verdict) = waiting(world, &name, plan) {
        return Ok(verdict);
    }
    if let Some(trouble) = world.ledger_trouble {
        return refused(Reason::Pending, format!("not before the ledger can be written: {trouble}"));
    }
    let (capacity, identity) = (candidate.capacity, &candidate.sighting.identity);
    let volume = pv::volume(world.config, class, storage_class, world.node, &finding.entry, capacity, identity);
    let (volume, entry) = through_the_gate(world, class, finding, candidate, volume)?;
    let verdict = match &volume.claim {
        None => Verdict::new(Reason::Pending, "its PV is being made"),
        Some(_) => Verdict::new(Reason::Dirty, volume.annotations.get(pv::QUARANTINED).cloned().unwrap_or_default()),
    };
    let target = Target {
        pv: volume.name.clone(),
        uid: String::new(),
        mount_dir: class.mount_dir.clone(),
        entry: finding.entry.clone(),
        identity: candidate.sighting.identity.clone(),
        aliases: Vec::new(),
        accepted: None,
        rules: class.wipe.clone(),
        disks: Box::default(),
        record: Box::new(entry),
    };
    plan.actions.push(Action::Create(Box::new(Creation { volume, target })));
    Ok(verdict)
}

/// How an entry is the same volume as another one.
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

/// What the ledger knows of the volume's content decides how its PV is made.
fn through_the_gate(
    world: &World<'_>,
    class: &Class,
    finding: &Finding,
    candidate: &Candidate,
    volume: Volume,
) -> Result<(Volume, Entry), Verdict> {
    let sighting = &candidate.sighting;
    let known = match world.ledger.find(&sighting.identity) {
        Found::One(entry) | Found::Unsure(entry, _) => Some(entry),
        Found::None => None,
    };
    let mut entry = known.cloned().unwrap_or_else(|| {
        let id = EntryId((u128::from(world.random) << 64) | u128::from(fnv1a_64(finding.host_path.bytes())));
        Entry::new(id, &finding.class, &finding.host_path, sighting.identity.clone(), world.clock)
    });
    entry.class = finding.class.as_str().into();
    entry.path = finding.host_path.as_str().into();
    entry.identity = sighting.identity.clone();
    entry.as_of = world.clock;
    let mut volume = volume;
    volume.annotations.insert(LEDGER_ENTRY.to_owned(), entry.id.to_string());
    if let Some(root) = &entry.root {
        volume.annotations.insert(pv::ROOT.to_owned(), root.to_string());
    }
    let quarantine = |volume: Volume, mut entry: Entry, claim: Option<&Claim>, why: &str| {
        entry.state = State::Quarantined { reason: why.into(), claim: claim.cloned() };
        Ok((volume.quarantined(claim, why, false), entry))
    };
    let wipe = |volume: Volume, entry: Entry, claim: Option<&Claim>, why: &str| {
        Ok((volume.quarantined(claim, why, true), entry))
    };
    match standing(known, world.ledger.lost() > 0) {
        Standing::HalfWiped { claim } => {
            wipe(volume, entry, claim.as_ref(), "its wipe was begun and has not ended; its PV was removed meanwhile")
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
            let (pv, uid) = (volume.name.as_str().into(), "".into());
            entry.state = State::Wiping { pv, uid, claim: None, method: "".into(), cursor: None };
            wipe(volume, entry, None, "it has not been seen before, and the class has dirty: wipe")
        }
        Standing::Free | Standing::NeverSeen => {
            entry.state = State::Offered { pv: volume.name.as_str().into(), uid: None, since: None };
            Ok((volume, entry))
        }
    }
}
