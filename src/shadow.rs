//! The shadow: what this agent would do, compared with what another provisioner on the
//! same node has done. A difference counts only after it has lasted: the other one needs
//! its time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::discovery::Finding;
use crate::plan::{self, Action, Foresight, World};
use crate::pv::{self, Fields, OwnedPv};
use crate::reclaim;
use crate::verdict::Reason;

/// How the other provisioner differs: the closed list that the log and the metrics share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// This agent would make a PV, and there is none.
    Unpublished,
    /// This agent would make a PV that nobody can claim, and there is none.
    Quarantined,
    /// There is a PV that this agent would not have made.
    Unwanted,
    /// There is a PV that this agent would remove, because its volume is gone.
    Withdrawn,
    /// A field of a PV is not what this agent would write.
    Field,
    /// The volume of a Released PV is about to be wiped, and this agent would refuse to.
    RefusedWipe,
    /// An admin's word on a PV, which only this agent heeds.
    Word,
}

impl Kind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::Unpublished,
        Self::Quarantined,
        Self::Unwanted,
        Self::Withdrawn,
        Self::Field,
        Self::RefusedWipe,
        Self::Word,
    ];

    /// The spelling used in the log and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unpublished => "unpublished",
            Self::Quarantined => "quarantined",
            Self::Unwanted => "unwanted",
            Self::Withdrawn => "withdrawn",
            Self::Field => "field",
            Self::RefusedWipe => "refused_wipe",
            Self::Word => "word",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its kind.
    pub kind: Kind,
    /// The PV that is there or would be made.
    pub pv: String,
    /// The path that it names.
    pub path: String,
    /// The field, where it is one that differs.
    pub field: String,
    /// What this agent would do, or what there is and what would be.
    pub detail: String,
}

/// What differs at the moment. `fields` are those of the PVs that are there, by name.
#[must_use]
pub fn differences(world: &World<'_>, foresight: &Foresight, fields: &BTreeMap<String, Fields>) -> Vec<Difference> {
    let mut found = Vec::new();
    let path_of = |name: &str| world.owned.get(name).map(|owned| owned.path.clone()).unwrap_or_default();
    for action in foresight.steps.iter().map(|step| &step.action) {
        let (kind, path) = match action {
            Action::Create(creation) => {
                let open = creation.volume.claim.is_none();
                (if open { Kind::Unpublished } else { Kind::Quarantined }, creation.volume.path.clone())
            }
            Action::Withdraw { .. } => (Kind::Withdrawn, path_of(action.pv())),
            Action::Keep(_) | Action::DropWord(_) | Action::Retire { .. } => (Kind::Word, path_of(action.pv())),
            // The other one does the same, or does not need it; what has grown shows as a field.
            Action::Adopt(_)
            | Action::LookAgain { .. }
            | Action::Grow { .. }
            | Action::FreeIfBlank { .. }
            | Action::Reclaim(_) => continue,
        };
        let detail = action.describe();
        found.push(Difference { kind, pv: action.pv().to_owned(), path, field: String::new(), detail });
    }
    let withdrawn: BTreeSet<String> =
        found.iter().filter(|one| one.kind == Kind::Withdrawn).map(|one| one.pv.clone()).collect();
    for entry in &foresight.plan.entries {
        let Some(owned) = entry.pv.as_ref().and_then(|pv| world.owned.get(pv)) else { continue };
        if withdrawn.contains(&owned.name) || owned.terminating {
            continue;
        }
        let kind = match entry.verdict.reason {
            // As it should be, or time will tell; neither does anything about a volume that is
            // not there; of a size, the field tells.
            Reason::Published
            | Reason::Pending
            | Reason::Quarantined
            | Reason::Wiping
            | Reason::Busy
            | Reason::Vanished
            | Reason::Unresponsive
            | Reason::DirectoryUnreadable
            | Reason::Shrunk => continue,
            _ if reclaim::is_wanted(owned) => Kind::RefusedWipe,
            _ => Kind::Unwanted,
        };
        found.push(Difference {
            kind,
            pv: owned.name.clone(),
            path: owned.path.clone(),
            field: String::new(),
            detail: entry.verdict.to_string(),
        });
    }
    let twice = pvs_too_many(world);
    let known: BTreeSet<String> = found.iter().map(|one| one.pv.clone()).collect();
    found.extend(twice.into_iter().filter(|one| !known.contains(&one.pv)));
    found.extend(fields_that_differ(world, fields));
    found
}

/// PVs for volumes that other PVs offer already.
fn pvs_too_many(world: &World<'_>) -> Vec<Difference> {
    let by_place: HashMap<(&str, &str), &OwnedPv> =
        world.owned.values().map(|owned| ((owned.class.as_str(), owned.path.as_str()), owned)).collect();
    let unwanted = |(second, first): (&Finding, &Finding)| {
        let owned = by_place.get(&(second.class.as_str(), second.host_path.as_str()))?;
        Some(Difference {
            kind: Kind::Unwanted,
            pv: owned.name.clone(),
            path: owned.path.clone(),
            field: String::new(),
            detail: format!("{}: {}", Reason::DuplicateOf.as_str(), plan::same_volume(first)),
        })
    };
    plan::offered_twice(world).into_iter().filter_map(unwanted).collect()
}

/// The fields of PVs that are not as this agent would write them for the volumes that are
/// there now.
fn fields_that_differ(world: &World<'_>, fields: &BTreeMap<String, Fields>) -> Vec<Difference> {
    let by_place: HashMap<(&str, &str), &Finding> =
        world.findings.iter().map(|finding| ((finding.class.as_str(), finding.host_path.as_str()), finding)).collect();
    let mut found = Vec::new();
    for owned in world.owned.values().filter(|owned| !owned.quarantined && !owned.terminating) {
        let Some(is) = fields.get(&owned.name) else { continue };
        let finding = by_place.get(&(owned.class.as_str(), owned.path.as_str()));
        let Some((finding, candidate)) = finding.and_then(|finding| Some((finding, finding.outcome.as_ref().ok()?)))
        else {
            continue;
        };
        let Some((class, storage_class)) = world.config.class(&owned.class).zip(world.classes.get(&owned.class)) else {
            continue;
        };
        let (entry, capacity, identity) = (&finding.entry, candidate.capacity, &candidate.sighting.identity);
        let volume = pv::volume(world.config, class, storage_class, world.node, entry, capacity, identity);
        let would_be = pv::fields(&pv::encode(&volume));
        for (field, is, would_be) in pv::fields_that_differ(is, &would_be) {
            found.push(Difference {
                kind: Kind::Field,
                pv: owned.name.clone(),
                path: owned.path.clone(),
                field: field.to_owned(),
                detail: format!("it is {is:?}, and would be {would_be:?}"),
            });
        }
    }
    found
}

/// The differences that there are, and since when.
#[derive(Debug)]
pub struct Book {
    grace: Duration,
    open: BTreeMap<(Kind, String, String), Open>,
}

#[derive(Debug)]
struct Open {
    difference: Difference,
    since: Instant,
    counts: bool,
}

/// What is new in the book.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Differences that count from now on.
    pub appeared: Vec<Difference>,
    /// Differences that counted, and are gone.
    pub vanished: Vec<Difference>,
}

impl Book {
    /// A difference counts once it has lasted for `grace`.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, open: BTreeMap::new() }
    }

    /// Takes over what differs now.
    pub fn update(&mut self, found: Vec<Difference>, now: Instant) -> News {
        let mut before = std::mem::take(&mut self.open);
        let mut news = News::default();
        for difference in found {
            let key = (difference.kind, difference.pv.clone(), difference.field.clone());
            let known = before.remove(&key);
            let (since, counted) = known.map_or((now, false), |known| (known.since, known.counts));
            let counts = counted || now.saturating_duration_since(since) >= self.grace;
            if counts && !counted {
                news.appeared.push(difference.clone());
            }
            self.open.insert(key, Open { difference, since, counts });
        }
        news.vanished.extend(before.into_values().filter(|open| open.counts).map(|open| open.difference));
        news
    }

    /// How many of each kind count.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts: BTreeMap<_, _> = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        for open in self.open.values().filter(|open| open.counts) {
            *counts.entry(open.difference.kind).or_default() += 1;
        }
        counts
    }

    /// When the next difference begins to count, if it lasts.
    #[must_use]
    pub fn next_to_count(&self) -> Option<Instant> {
        self.open.values().filter(|open| !open.counts).map(|open| open.since + self.grace).min()
    }
}

#[cfg(test)]
#[path = "shadow_tests.rs"]
mod tests;
