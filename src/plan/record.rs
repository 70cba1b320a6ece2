//! What the ledger is to remember of the volumes that have a PV.

use std::sync::Arc;

use super::{Plan, World};
use crate::identity::Identity;
use crate::ledger::{self, Entry, EntryId, Found, State};
use crate::pv::{OwnedPv, Phase};
use crate::volume::fnv1a_64;

/// Brings the ledger up to date with what the PV shows: offered, or used since. `present`
/// is the volume that was seen, when it is the PV's.
pub fn note(world: &World<'_>, owned: &OwnedPv, present: Option<&Arc<Identity>>, plan: &mut Plan) {
    if owned.terminating || owned.fenced || world.memory.in_flight.contains(&owned.name) {
        return;
    }
    let Some(identity) = identity(world, owned).or(present) else { return };
    let known = known(world, owned, identity);
    let Some(state) = next_state(known.map(|entry| &entry.state), owned) else { return };
    if known.is_some_and(|entry| entry.state == state) {
        return;
    }
    let mut entry = entry(world, owned, identity);
    entry.state = state;
    plan.records.push(entry);
}

/// The ledger's state of a volume whose PV is like this; `None` to leave it.
fn next_state(known: Option<&State>, owned: &OwnedPv) -> Option<State> {
    let (pv, uid): (Box<str>, Box<str>) = (owned.name.as_str().into(), owned.uid.as_str().into());
    let used = |claim| Some(State::Used { pv: pv.clone(), uid: uid.clone(), claim });
    match owned.phase {
        // Nobody has written to it but the tenant before.
        Phase::Released | Phase::Failed if owned.quarantined => None,
        Phase::Bound | Phase::Released | Phase::Failed => used(owned.claim.as_deref().cloned()),
        Phase::Pending => None,
        Phase::Available => match known {
            Some(State::Used { uid: of, .. }) if **of == *owned.uid => None,
            // Bound and released unseen, then taken back by an admin.
            Some(State::Offered { uid: Some(of), since: Some(before), .. })
                if **of == *owned.uid && owned.since.is_some_and(|since| since > *before) =>
            {
                used(None)
            }
            // Taken out of quarantine as it is, perhaps half wiped; or retired and offered by hand.
            Some(State::Quarantined { claim, .. } | State::Wiping { claim, .. }) => used(claim.clone()),
            Some(State::Retired { .. }) => used(None),
            _ => Some(State::Offered { pv, uid: Some(uid), since: owned.since }),
        },
    }
}

/// The identity that was recorded for the PV's volume: in the PV, or else in the ledger.
pub fn identity<'a>(world: &World<'a>, owned: &'a OwnedPv) -> Option<&'a Arc<Identity>> {
    owned.identity.as_ref().or_else(|| world.ledger.of_pv(&owned.uid).map(|entry| &entry.identity))
}

/// Why nobody may claim the PV.
pub fn why_quarantined(world: &World<'_>, owned: &OwnedPv) -> String {
    let entry = identity(world, owned).and_then(|identity| known(world, owned, identity));
    match entry.map(|entry| &entry.state) {
        Some(State::Quarantined { reason, .. }) => reason.to_string(),
        Some(state) if state.is_wipe_by_hand() => ledger::WIPE_BY_HAND.to_owned(),
        _ => "it may hold a tenant's data".to_owned(),
    }
}

fn known<'a>(world: &World<'a>, owned: &OwnedPv, identity: &Identity) -> Option<&'a Entry> {
    world.ledger.of_pv(&owned.uid).or_else(|| match world.ledger.find(identity, &owned.path) {
        Found::One(entry) | Found::Unsure(entry, _) => Some(entry),
        Found::None => None,
    })
}

/// What the ledger is to say once an unclaimed PV is withdrawn: nobody has used its volume,
/// unless somebody had before it was offered.
pub fn withdrawn(world: &World<'_>, owned: &OwnedPv) -> Option<Entry> {
    let entry = world.ledger.of_pv(&owned.uid)?;
    let untouched = next_state(Some(&entry.state), owned).unwrap_or_else(|| entry.state.clone());
    matches!(untouched, State::Offered { .. }).then(|| Entry {
        state: State::Clean,
        as_of: world.clock,
        ..entry.clone()
    })
}

/// The name of the ledger's entry for the PV's volume.
pub fn id_of(world: &World<'_>, owned: &OwnedPv, identity: &Identity) -> EntryId {
    known(world, owned, identity)
        .map(|entry| entry.id)
        .or(owned.entry.map(EntryId))
        .unwrap_or_else(|| EntryId((u128::from(world.random) << 64) | u128::from(fnv1a_64(owned.uid.bytes()))))
}

/// The ledger's entry for the PV's volume, or a new one.
pub fn entry(world: &World<'_>, owned: &OwnedPv, identity: &Arc<Identity>) -> Entry {
    let mut entry = known(world, owned, identity).cloned().unwrap_or_else(|| {
        let id = id_of(world, owned, identity);
        Entry::new(id, &owned.class, &owned.path, identity.clone(), world.clock)
    });
    // What grew has another size, and what was renamed another number.
    entry.identity = identity.clone();
    entry.path = owned.path.as_str().into();
    entry.class = owned.class.as_str().into();
    entry.as_of = world.clock;
    entry
}
