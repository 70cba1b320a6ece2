//! What the ledger is to remember of the volumes that have a PV.

use std::sync::Arc;

use super::{Plan, World};
use crate::identity::{Comparison, Identity};
use crate::ledger::{self, Entry, EntryId, Found, State};
use crate::pv::{Claim, OwnedPv, Phase, Word};
use crate::volume::fnv1a_64;

/// Brings the ledger up to date with what the PV shows: offered, or used since. `present`
/// is what was seen at its path; it counts when nothing says which volume the PV has.
pub fn note(world: &World<'_>, owned: &OwnedPv, present: Option<&Arc<Identity>>, plan: &mut Plan) {
    // Whoever works on it writes its entry.
    if world.memory.in_flight.contains(&owned.name) || owned.garbled {
        return;
    }
    let recorded = identity(world, owned);
    let Some(identity) = recorded.or(present) else { return };
    let known = known(world, owned, identity);
    if owned.former && recorded.is_none() {
        return note_doubt(world, owned, identity, known, plan);
    }
    // An entry that another PV has is that one's.
    if known.is_some_and(|entry| is_of_another(world, owned, &entry.state)) {
        return;
    }
    // What the API server shows of before tells nothing new.
    if known.is_some_and(|entry| is_outdated(entry, owned)) {
        return;
    }
    let Some(state) = next_state(known, owned) else { return };
    let is_noted = |entry: &Entry| entry.state == state && entry.identity.compare(identity) == Comparison::Same;
    if !known.is_some_and(is_noted) {
        let entry = entry(world, owned, identity);
        plan.records.push(Entry { state, ..entry });
    }
}

/// A PV of a former Node does not say which volume it has: it may be the one that is there.
/// Once the PV is removed, that one is not to be offered with the data on it; but until
/// then this is no proof that it is the one.
fn note_doubt(world: &World<'_>, owned: &OwnedPv, present: &Arc<Identity>, known: Option<&Entry>, plan: &mut Plan) {
    let used = matches!(owned.phase, Phase::Bound | Phase::Released | Phase::Failed);
    if used && known.is_none() {
        let (pv, claim) = (owned.name.as_str().into(), owned.claim.as_deref().cloned());
        let reason = format!("PV {} of a former Node of this name may have been about it", owned.name).into();
        let entry = entry(world, owned, present);
        plan.records.push(Entry { state: State::Quarantined { reason, pv, claim }, ..entry });
    }
}

/// Whether another PV that is there has the state's volume.
fn is_of_another(world: &World<'_>, owned: &OwnedPv, state: &State) -> bool {
    let others = || world.owned.values().filter(|other| other.uid != owned.uid);
    state.uid().is_some_and(|uid| *uid != *owned.uid && others().any(|other| *other.uid == *uid))
}

/// The ledger's state of a volume whose PV is like this; `None` to leave it.
fn next_state(known: Option<&Entry>, owned: &OwnedPv) -> Option<State> {
    let (pv, uid): (Box<str>, Box<str>) = (owned.name.as_str().into(), owned.uid.as_str().into());
    let claim = || owned.claim.as_deref().filter(|claim| !claim.is_nobody()).cloned();
    if owned.fenced {
        // Its wipe may have begun; how far it is, nobody knows.
        let wiping = State::Wiping { pv, uid, claim: claim(), method: "".into(), cursor: None };
        return known.is_none().then_some(wiping);
    }
    // Its wipe has begun without a fence: until it ends, or a claim gets it, that is so.
    if wiped_claim_in(known, owned).is_some() && owned.phase != Phase::Bound {
        return None;
    }
    let used = |claim: Option<Claim>| Some(State::Used { pv: pv.clone(), uid: uid.clone(), claim, since: owned.since });
    match owned.phase {
        // Nobody has written to it but the tenant before.
        Phase::Pending | Phase::Released | Phase::Failed if owned.quarantined => {
            let reason = "a PV that nobody may claim shows it".into();
            known.is_none().then(|| State::Quarantined { reason, pv: pv.clone(), claim: claim() })
        }
        // Retired at an admin's word, and on its way out.
        Phase::Released | Phase::Failed if is_being_retired(known, owned) => None,
        Phase::Released | Phase::Failed if is_wiped(known, owned) => None,
        Phase::Released | Phase::Failed if is_given_away(known, owned) => None,
        Phase::Bound | Phase::Released | Phase::Failed => used(claim()),
        // A claim has it, and the controller-manager, which may be away, has not said so yet.
        Phase::Pending | Phase::Available if claim().is_some_and(|claim| !claim.uid.is_empty()) => used(claim()),
        Phase::Pending => None,
        Phase::Available if owned.terminating => None,
        Phase::Available => match known.map(|entry| &entry.state) {
            // Once used, only a wipe makes it clean, whoever offers it.
            Some(State::Used { .. }) => None,
            // Bound and released unseen, then taken back by an admin.
            Some(State::Offered { uid: Some(of), since: Some(before), .. })
                if **of == *owned.uid && owned.since.is_some_and(|since| since > *before) =>
            {
                used(None)
            }
            // Offered by another PV before, which is gone: nobody knows who had it.
            Some(State::Offered { uid: Some(of), .. }) if **of != *owned.uid => used(None),
            // Taken out of quarantine as it is, perhaps half wiped; or retired and offered by hand.
            Some(State::Quarantined { claim, .. } | State::Wiping { claim, .. }) => used(claim.clone()),
            Some(State::Retired { .. }) => used(None),
            _ => Some(State::Offered { pv, uid: Some(uid), since: owned.since }),
        },
    }
}

/// Whether `claimRef` names another claim than the last one that had the PV, which shows as
/// Released from that one still: it may never have been Bound to the other, or be about to.
fn is_given_away(known: Option<&Entry>, owned: &OwnedPv) -> bool {
    let Some(State::Used { uid, claim: Some(last), since, .. }) = known.map(|entry| &entry.state) else { return false };
    let is_another = owned.claim.as_ref().is_none_or(|claim| claim.uid != last.uid);
    // Since then it has been in another phase, which tells that a claim had it.
    let is_later = owned.since.zip(*since).is_some_and(|(now, before)| now > before);
    **uid == *owned.uid && is_another && !is_later
}

/// Whether more has become of the volume since the PV became what it shows: the API server's
/// data was restored from a time before that. The PV may even be one that was removed since.
fn is_outdated(entry: &Entry, owned: &OwnedPv) -> bool {
    let is_its_own = entry.state.uid().is_some_and(|uid| *uid == *owned.uid);
    let noted = match (&entry.state, owned.phase) {
        (State::Used { since: Some(since), .. }, Phase::Available | Phase::Released) => *since,
        (State::Used { .. }, Phase::Available | Phase::Released) if !is_its_own => entry.as_of.as_second(),
        (State::Wiping { .. } | State::Quarantined { .. } | State::Retired { .. }, Phase::Available) => {
            entry.as_of.as_second()
        }
        _ => return false,
    };
    // By itself it is Released only once it is Bound.
    let is_later_phase = is_its_own && owned.phase == Phase::Released;
    !owned.quarantined && !owned.fenced && !is_later_phase && owned.since.is_some_and(|since| since < noted)
}

/// Why the PV is not what it shows, by what the ledger says of the volume: `present`, when
/// nothing says which volume it was.
pub fn rolled_back(world: &World<'_>, owned: &OwnedPv, present: &Arc<Identity>) -> Option<String> {
    let entry = known(world, owned, identity(world, owned).unwrap_or(present))?;
    if !is_outdated(entry, owned) || is_of_another(world, owned, &entry.state) {
        return None;
    }
    let what = match &entry.state {
        State::Used { claim: Some(claim), .. } => format!("claim {claim} has had it"),
        State::Used { .. } => "a claim has had it".to_owned(),
        State::Retired { .. } => "it was retired".to_owned(),
        _ => "it was found to need a wipe".to_owned(),
    };
    Some(format!("{what} since its PV became {:?}: the API server shows an older state", owned.phase))
}

/// The claim whose data was being wiped when the PV, which no fence guards, was seen last.
pub fn wiped_claim<'a>(world: &World<'a>, owned: &OwnedPv) -> Option<&'a Claim> {
    wiped_claim_in(world.ledger.of_pv(&owned.uid), owned).filter(|_| !owned.terminating)
}

fn wiped_claim_in<'a>(known: Option<&'a Entry>, owned: &OwnedPv) -> Option<&'a Claim> {
    match known.map(|entry| &entry.state) {
        // One without a method has not begun.
        Some(State::Wiping { uid, claim, method, .. })
            if **uid == *owned.uid && !method.is_empty() && !owned.fenced =>
        {
            claim.as_ref()
        }
        _ => None,
    }
}

/// Whether the volume was wiped for the removal of this very PV, which is on its way out: it shows
/// its last claim for as long as another's finalizer keeps it.
fn is_wiped(known: Option<&Entry>, owned: &OwnedPv) -> bool {
    let Some(entry) = known.filter(|entry| owned.terminating && entry.state == State::Clean) else { return false };
    entry.receipts.last().is_some_and(|receipt| *receipt.uid == *owned.uid)
}

/// Whether the ledger has an admin's word that retires the volume, and the PV goes for it.
fn is_being_retired(known: Option<&Entry>, owned: &OwnedPv) -> bool {
    let retired = known.is_some_and(|entry| matches!(entry.state, State::Retired { .. }));
    retired && (owned.terminating || owned.word == Some(Word::Retire))
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

/// The ledger's entry of the PV's volume.
fn known<'a>(world: &World<'a>, owned: &OwnedPv, identity: &Identity) -> Option<&'a Entry> {
    if let Found::One(entry) = world.ledger.find(identity, &owned.path) {
        return Some(entry);
    }
    // The one that the PV had before another volume was accepted for it is not it.
    let of_pv = world.ledger.of_pv(&owned.uid);
    of_pv.filter(|entry| !matches!(entry.identity.compare(identity), Comparison::Different(_)))
}

/// What the ledger is to say once an unclaimed PV is withdrawn: nobody has used its volume,
/// unless somebody had before it was offered.
pub fn withdrawn(world: &World<'_>, owned: &OwnedPv) -> Option<Entry> {
    let entry = world.ledger.of_pv(&owned.uid)?;
    let offered = next_state(Some(entry), owned).unwrap_or_else(|| entry.state.clone());
    matches!(offered, State::Offered { .. }).then(|| Entry {
        state: entry.unused(),
        as_of: world.clock,
        ..entry.clone()
    })
}

/// The name of the ledger's entry for the PV's volume.
pub fn id_of(world: &World<'_>, owned: &OwnedPv, identity: &Identity) -> EntryId {
    let by_pv = || owned.entry.map(EntryId).filter(|id| world.ledger.get(*id).is_none());
    let known = known(world, owned, identity).map(|entry| entry.id);
    known.or_else(by_pv).unwrap_or_else(|| new_id(world, &owned.uid, identity))
}

/// A name that no entry has.
pub fn new_id(world: &World<'_>, about: &str, identity: &Identity) -> EntryId {
    let hash = fnv1a_64(about.bytes().chain(identity.digest().bytes()));
    let first = (u128::from(world.random) << 64) | u128::from(hash);
    let mut ids = (0..).map(|step| EntryId(first.wrapping_add(step)));
    ids.find(|id| world.ledger.get(*id).is_none()).expect("there are more names than entries")
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
