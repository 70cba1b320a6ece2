//! A volume with a PV of ours: left as it is, or changed along with the volume,
//! withdrawn, kept, retired or reclaimed.

use std::sync::Arc;
use std::time::Duration;

use super::adopt::{adoption, inherit, renewal};
use super::{Action, ByJob, EntryStatus, Plan, Target, World, left_of, publish, record, since, waiting};
use crate::brake;
use crate::config::Class;
use crate::discovery::{Candidate, Finding};
use crate::identity::{Comparison, Identity};
use crate::ledger::State;
use crate::memory::Setback;
use crate::pv::{OwnedPv, Phase, Seen, Word};
use crate::reclaim::{self, Unclaimed};
use crate::verdict::{Reason, Verdict};
use crate::volume::ReclaimPolicy;

/// How often it is looked whether a quarantined volume has been emptied, at first.
const BLANK_CHECK: Duration = Duration::from_secs(10);

/// The PV's path shows something.
pub fn present(
    world: &World<'_>,
    owned: &OwnedPv,
    finding: &Finding,
    rival: Option<&Finding>,
    plan: &mut Plan,
) -> Verdict {
    let at_work = world.memory.in_flight.contains(&owned.name) || world.suspects.contains(&owned.name);
    if !at_work && let Some(verdict) = taken_back(world, owned, plan) {
        return verdict;
    }
    let candidate = match &finding.outcome {
        Ok(candidate) => candidate,
        Err(verdict) => {
            absent(world, owned, !matches!(verdict.reason, Reason::Unresponsive | Reason::Pending), plan);
            return verdict.clone();
        }
    };
    if wants_reclaim(owned) {
        plan.wanted.insert(owned.name.clone());
    }
    if at_work {
        return if wants_reclaim(owned) { underway(world, owned) } else { kept(world, owned) };
    }
    if let Some(verdict) = without_patch(world, owned) {
        return verdict;
    }
    let now = &candidate.sighting.identity;
    if owned.former {
        return inherit(world, owned, now, plan);
    }
    let accepted = owned.accepted.as_deref().is_some_and(|accepted| *accepted == now.digest());
    let same = match record::identity(world, owned).map(|recorded| recorded.compare(now)) {
        Some(Comparison::Same) => true,
        // An empty directory may be reclaimed whatever it is: the claim looks.
        Some(_) if !accepted && wants_reclaim(owned) && !now.is_device() => false,
        Some(Comparison::Different(key)) if !accepted => return changed(world, owned, candidate, &key, plan),
        Some(Comparison::Unknown(why)) if !accepted => return changed(world, owned, candidate, why, plan),
        // What is at a place where its class was before may have come there since.
        None if (owned.terminating || owned.garbled || finding.former.is_some()) && !accepted => {
            return changed(world, owned, candidate, "nothing says which volume it was", plan);
        }
        // A PV without identity is taken for what is there now: nothing better is known. The
        // ledger has that from now on, also where the PV can't be given it.
        None if !world.may_patch => true,
        Some(_) | None => return adopt(world, owned, Some(now), plan),
    };
    if world.may_patch && !owned.terminating && (!owned.labelled || (same && owned.identity.is_none())) {
        // What is not known to be its volume is never recorded as such.
        return adopt(world, owned, Some(now).filter(|_| same), plan);
    }
    if let Some(why) = record::rolled_back(world, owned, now).filter(|_| owned.word.is_none()) {
        if Unclaimed::of(owned).is_some() {
            withdraw(world, owned, why.clone(), plan);
            return Verdict::new(Reason::Dirty, why);
        }
        if owned.phase == Phase::Released {
            let detail = format!("not wiped: {why}. If it is to be, annotate the PV with mooring.dev/reclaim: wipe");
            return Verdict::new(Reason::Refused, detail);
        }
    }
    if wants_reclaim(owned) {
        return reclaim(world, owned, finding, candidate, rival, plan);
    }
    follow(world, owned, finding, candidate, plan)
}

/// Released with policy Delete or an admin's word; or with our fence on it, unless a
/// claim has it again.
fn wants_reclaim(owned: &OwnedPv) -> bool {
    let fenced = owned.fenced && !(owned.terminating && owned.phase == Phase::Bound);
    fenced || (reclaim::is_wanted(owned) && !owned.terminating)
}

/// The verdict of a volume that is being reclaimed: before its wipe has begun, what was in
/// the way the last time still may be.
fn underway(world: &World<'_>, owned: &OwnedPv) -> Verdict {
    let entry = world.ledger.of_pv(&owned.uid);
    let wiping = owned.fenced || entry.is_some_and(|entry| matches!(entry.state, State::Wiping { .. }));
    let setback = world.memory.setback(&owned.name).filter(|_| !wiping);
    setback.map_or_else(|| Verdict::new(Reason::Wiping, ""), |setback| setback.verdict.clone())
}

/// Removes a PV whose wipe has begun without a fence, if somebody has taken it from that: no
/// claim must get the volume before it is wiped to the end.
fn taken_back(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) -> Option<Verdict> {
    let claim = record::wiped_claim(world, owned)?;
    let pv = Unclaimed::half_wiped(owned, &claim.uid)?;
    if let Some(verdict) = waiting(world, &owned.name, plan) {
        return Some(verdict);
    }
    let why = "it was taken from its wipe; a new PV takes its place when its volume is wiped to the end";
    plan.begin(world, Action::Withdraw { pv, entry: None, why: why.to_owned() });
    Some(Verdict::new(Reason::Pending, why))
}

/// What is not done for a PV because PVs may not be patched.
fn without_patch(world: &World<'_>, owned: &OwnedPv) -> Option<Verdict> {
    if world.may_patch {
        return None;
    }
    let detail = match (&owned.word, owned.fenced, &owned.accepted) {
        (_, true, _) => "its finalizer mooring.dev/wipe can't be taken off",
        (Some(_), ..) => {
            "its annotation mooring.dev/reclaim has no effect, because it could not be taken off after: take it off; to \
             have the volume wiped, set its reclaim policy to Delete"
        }
        (.., Some(_)) => "its annotation mooring.dev/accept-identity has no effect, because it can't be recorded",
        _ => return None,
    };
    Some(Verdict::new(Reason::Refused, format!("{detail}: the agent lacks the right to patch persistentvolumes")))
}

/// Removes the PV, if nobody has claimed it.
fn withdraw(world: &World<'_>, owned: &OwnedPv, why: String, plan: &mut Plan) {
    if let Some(pv) = Unclaimed::of(owned)
        && waiting(world, &owned.name, plan).is_none()
    {
        let entry = record::withdrawn(world, owned).map(Box::new);
        plan.begin(world, Action::Withdraw { pv, entry, why });
    }
}

/// Puts on the PV what it lacks, and the identity of its volume with the ledger's entry,
/// when it is known.
fn adopt(world: &World<'_>, owned: &OwnedPv, identity: Option<&Arc<Identity>>, plan: &mut Plan) -> Verdict {
    if let Some(verdict) = waiting(world, &owned.name, plan) {
        return verdict;
    }
    plan.begin(world, Action::Adopt(Box::new(adoption(world, owned, identity))));
    kept(world, owned)
}

/// Another volume is there than the one that was offered.
fn changed(world: &World<'_>, owned: &OwnedPv, candidate: &Candidate, why: &str, plan: &mut Plan) -> Verdict {
    let digest = candidate.sighting.identity.digest();
    let detail = format!("{why}; the digest of what is there now is {digest}");
    withdraw(world, owned, detail.clone(), plan);
    Verdict::new(Reason::IdentityChanged, detail)
}

/// Wipes the volume of a Released PV, unless something holds that up.
fn reclaim(
    world: &World<'_>,
    owned: &OwnedPv,
    finding: &Finding,
    candidate: &Candidate,
    rival: Option<&Finding>,
    plan: &mut Plan,
) -> Verdict {
    if let Some(rival) = rival {
        let detail = format!("not wiped: {}", publish::same_volume(rival));
        return Verdict::new(Reason::DuplicateOf, detail);
    }
    if let Some(verdict) = held(world, owned, plan).or_else(|| delayed(world, owned, plan)) {
        return verdict;
    }
    if let Some(trouble) = world.ledger_trouble {
        return Verdict::new(Reason::Pending, format!("not wiped before the ledger can be written: {trouble}"));
    }
    if let Some(verdict) = given_away(world, owned) {
        return verdict;
    }
    match target(world, owned, finding, candidate) {
        Ok(target) => {
            plan.begin(world, Action::Reclaim(Box::new(target)));
            underway(world, owned)
        }
        Err(verdict) => verdict,
    }
}

/// Whether `claimRef` was pointed at another claim after the last one was gone: until the
/// controller-manager has seen it, the PV still looks Released.
fn given_away(world: &World<'_>, owned: &OwnedPv) -> Option<Verdict> {
    if owned.fenced || owned.word.is_some() {
        return None;
    }
    let entry = world.ledger.of_pv(&owned.uid)?;
    let State::Used { claim: Some(last), .. } = &entry.state else { return None };
    let now = owned.claim.as_ref().filter(|claim| claim.uid != last.uid)?;
    let way_out = if world.may_patch {
        "annotate the PV with mooring.dev/reclaim: wipe"
    } else {
        "delete the PV, and set the reclaim policy of the one that takes its place to Delete"
    };
    let detail = format!(
        "not wiped: claim {last} had it, and its claimRef names {now} since. If that one is gone as well, {way_out}"
    );
    Some(Verdict::new(Reason::Pending, detail))
}

/// What an admin or the brake has against a wipe.
fn held(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) -> Option<Verdict> {
    let wait = |plan: &mut Plan, left: Duration, why: String| {
        plan.wake(world.now + left);
        Some(Verdict::new(
            Reason::Pending,
            format!("its claim is gone; it is wiped in {} s: {why}", left.as_secs() + 1),
        ))
    };
    if owned.hold || world.node.hold {
        let whose = if owned.hold { "PV" } else { "Node" };
        let detail = format!("its wipe is held by the annotation mooring.dev/hold on the {whose}");
        return Some(Verdict::new(Reason::Pending, detail));
    }
    // A wipe that has begun goes on, and an admin's word is no accident.
    if owned.fenced || owned.word.is_some() {
        return None;
    }
    let since = since(world, owned);
    if let Some(brake) = plan.brake.filter(|brake| brake.holds(since))
        && let Some(left) = left_of(world, brake.until(), world.memory.braking_since(&brake), brake::HOLD)
    {
        let why = format!("{} of {} volumes were released within a minute", brake.released, brake.of);
        return wait(plan, left, why);
    }
    if plan.pause_from.is_some_and(|from| since >= from) {
        let until = world.memory.wanted_since(&owned.name).unwrap_or(world.now) + brake::PAUSE;
        if let Some(left) = until.checked_duration_since(world.now).filter(|left| !left.is_zero()) {
            return wait(plan, left, "others were released with it, maybe most of the node's volumes".to_owned());
        }
    }
    let class = world.config.class_of(&owned.class, &owned.path);
    let window = class.map_or(Duration::ZERO, |(class, _)| class.wipe_after);
    if window.is_zero() {
        return None;
    }
    let until = since.saturating_add(i64::try_from(window.as_secs()).unwrap_or(i64::MAX));
    let left = left_of(world, until, world.memory.wanted_since(&owned.name), window)?;
    wait(plan, left, "wipeAfter".to_owned())
}

/// The setback that is being waited out. An admin's word does not wait for the next time
/// that it is looked whether a quarantined volume is empty.
fn delayed(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) -> Option<Verdict> {
    let is_settled = |verdict: &Verdict| owned.word.is_some() && verdict.reason == Reason::Quarantined;
    waiting(world, &owned.name, plan).filter(|verdict| !is_settled(verdict))
}

/// A volume that is there and is not to be wiped: an admin's word on it, or what has
/// changed about it.
fn follow(world: &World<'_>, owned: &OwnedPv, finding: &Finding, candidate: &Candidate, plan: &mut Plan) -> Verdict {
    if owned.terminating || delayed(world, owned, plan).is_some() {
        let told = |_: &&Setback| !(owned.quarantined && owned.phase == Phase::Released);
        return world
            .memory
            .setback(&owned.name)
            .filter(told)
            .map_or_else(|| kept(world, owned), |setback| setback.verdict.clone());
    }
    let released = owned.phase == Phase::Released;
    match &owned.word {
        Some(Word::Keep) if released && record::wiped_claim(world, owned).is_some() => {
            let detail = "its wipe has begun: what is left of its data can't be offered; use wipe or retire";
            return Verdict::new(Reason::Refused, detail);
        }
        Some(Word::Keep) if released => {
            plan.begin(world, Action::Keep(Seen::of(owned)));
            return kept(world, owned);
        }
        Some(Word::Retire) if released => return retire(world, owned, candidate, plan),
        Some(Word::Unknown(text)) if released => {
            let detail = format!("its annotation mooring.dev/reclaim is {text:?}; use wipe, keep or retire");
            return Verdict::new(Reason::Refused, detail);
        }
        _ if is_out_of_place(owned) => {
            plan.begin(world, Action::DropWord(Seen::of(owned)));
            return kept(world, owned);
        }
        _ => {}
    }
    if let Some(adoption) = renewal(world, owned).filter(|_| world.may_patch) {
        plan.begin(world, Action::Adopt(Box::new(adoption)));
        return kept(world, owned);
    }
    if released {
        if owned.quarantined {
            if let Ok(target) = target(world, owned, finding, candidate) {
                plan.begin(world, Action::FreeIfBlank { pv: Seen::of(owned), target: Box::new(target) });
            }
            plan.wake(world.now + BLANK_CHECK);
        }
        return kept(world, owned);
    }
    let Some(offered) = owned.capacity else { return kept(world, owned) };
    let is = candidate.capacity;
    if is > offered && !world.may_patch {
        return Verdict::new(Reason::Published, format!("it has grown to {is}; its PV can't be patched to say so"));
    }
    if is > offered && matches!(owned.phase, Phase::Available | Phase::Bound) {
        plan.begin(world, Action::Grow { pv: Seen::of(owned), to: is });
    } else if is < offered && Unclaimed::of(owned).is_some() {
        withdraw(world, owned, format!("{} shrank from {offered} to {is}", finding.host_path), plan);
    } else if is < offered {
        let detail = format!("the volume shrank: its PV says {offered}, and it has {is}");
        return Verdict::new(Reason::Shrunk, detail);
    }
    kept(world, owned)
}

/// Whether an admin's word is on a PV that it can't be about. It is about the claim that
/// is gone, and the next one must not inherit it; but one that keeps a claim's data may be
/// said before the claim goes.
fn is_out_of_place(owned: &OwnedPv) -> bool {
    matches!(
        (&owned.word, owned.phase),
        (Some(Word::Wipe | Word::Retire), Phase::Available | Phase::Bound) | (Some(Word::Keep), Phase::Available)
    )
}

fn retire(world: &World<'_>, owned: &OwnedPv, candidate: &Candidate, plan: &mut Plan) -> Verdict {
    if !world.durable {
        let detail = "it can't be retired without a state directory, which would remember it: run the agent with \
                      --state-dir";
        return Verdict::new(Reason::Refused, detail);
    }
    let mut entry = record::entry(world, owned, &candidate.sighting.identity);
    entry.state = State::Retired { reason: "by an admin's word".into() };
    plan.begin(world, Action::Retire { pv: Seen::of(owned), entry: Box::new(entry) });
    kept(world, owned)
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
        Phase::Pending | Phase::Released | Phase::Failed if owned.quarantined => quarantined(world, owned),
        Phase::Released | Phase::Failed if !owned.reclaim_policy.is_supported() => {
            let policy = owned.reclaim_policy.as_str();
            let detail = format!("its reclaim policy {policy} is not supported: change it to Delete or Retain");
            Verdict::new(Reason::Refused, detail)
        }
        Phase::Failed if owned.reclaim_policy == ReclaimPolicy::Delete => {
            let detail = "its phase is Failed, and not Released: it is not wiped. Delete the PV; its volume is kept \
                          from being claimed then, until it is wiped at your word";
            Verdict::new(Reason::Refused, detail)
        }
        Phase::Released | Phase::Failed => {
            let policy = owned.reclaim_policy.as_str();
            Verdict::new(Reason::Published, format!("its claim is gone; its policy {policy} keeps it as it is"))
        }
        Phase::Pending | Phase::Available | Phase::Bound => Verdict::new(Reason::Published, ""),
    }
}

/// Why a volume is quarantined, and what the last look at it has found. It stays the same
/// while the look is repeated, or every look would be told anew.
fn quarantined(world: &World<'_>, owned: &OwnedPv) -> Verdict {
    let why = record::why_quarantined(world, owned);
    match world.memory.setback(&owned.name) {
        Some(setback) => Verdict::new(setback.verdict.reason, format!("{why}; {}", setback.verdict.detail)),
        None => Verdict::new(Reason::Quarantined, why),
    }
}

/// A PV whose path is none of ours.
fn refused(owned: &OwnedPv) -> Verdict {
    let OwnedPv { class, path, .. } = owned;
    let detail = format!(
        "{path} is no entry of a configured directory of its class: if class {class} was removed, or its hostDir \
         changed, add the class again as it was"
    );
    Verdict::new(Reason::Refused, detail)
}

/// Where to find the volume of a PV; refused unless its path is exactly a first-level
/// entry of a directory of its class, of now or of before.
fn target(world: &World<'_>, owned: &OwnedPv, finding: &Finding, candidate: &Candidate) -> Result<Target, Verdict> {
    let (class, entry) = world.config.class_of(&owned.class, &owned.path).ok_or_else(|| refused(owned))?;
    let mount_dir = finding.former.as_deref().unwrap_or(&class.mount_dir);
    let sighting = &candidate.sighting;
    let identity = record::identity(world, owned).unwrap_or(&sighting.identity).clone();
    Ok(Target {
        pv: owned.name.clone(),
        uid: owned.uid.clone(),
        claim: owned.claim.as_ref().map_or_else(Box::default, |claim| claim.uid.clone()),
        mount_dir: mount_dir.to_owned(),
        entry: entry.to_owned(),
        aliases: aliases(world, class, mount_dir, entry),
        accepted: None,
        rules: class.wipe.clone(),
        disks: if sighting.below.is_empty() { [identity.device()].into() } else { sighting.below.clone() },
        record: Box::new(record::entry(world, owned, &identity)),
        job: (world.config.use_job_for_cleaning && identity.is_device())
            .then(|| ByJob { host_dir: class.host_dir.clone(), tolerations: world.config.job_tolerations.clone() }),
        identity,
    })
}

/// The same entry through the other directories by which this process sees the class's.
fn aliases(world: &World<'_>, class: &Class, mount_dir: &str, entry: &str) -> Vec<String> {
    let same = world.config.present_and_former().filter(|other| other.host_dir == class.host_dir);
    let others = same.filter(|other| other.mount_dir != mount_dir);
    others.map(|other| format!("{}/{entry}", other.mount_dir)).collect()
}

/// The volume is not there. `certain` when its directory was read.
fn absent(world: &World<'_>, owned: &OwnedPv, certain: bool, plan: &mut Plan) {
    if !certain {
        return;
    }
    plan.missing.insert(owned.name.clone());
    if Unclaimed::of(owned).is_none() {
        if world.may_patch && !owned.labelled && !owned.terminating && !owned.former {
            adopt(world, owned, None, plan);
        }
        return;
    }
    let since = world.memory.missing_since(&owned.name).unwrap_or(world.now);
    let due = since + world.config.withdraw_after;
    if due > world.now {
        plan.wake(due);
    } else if !all_gone(world, owned) {
        let why = format!("nothing has been at {} for {} s", owned.path, world.config.withdraw_after.as_secs());
        withdraw(world, owned, why, plan);
    }
}

/// Whether all that the directory held, if more than one, is gone: a directory that was
/// not mounted looks like that.
fn all_gone(world: &World<'_>, owned: &OwnedPv) -> bool {
    let is_beside = |class: &str, path: &str| class == owned.class && directory(path) == directory(&owned.path);
    let mut beside = world.findings.iter().filter(|finding| is_beside(&finding.class, &finding.host_path));
    let any_left = beside.any(|finding| finding.outcome.is_ok());
    let others = world.owned.values().filter(|other| is_beside(&other.class, &other.path)).count();
    !any_left && others > 1
}

fn directory(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(directory, _)| directory)
}

/// A PV whose path shows nothing: its volume is gone, or its path is none of ours.
pub fn without_finding(world: &World<'_>, owned: &OwnedPv, plan: &mut Plan) -> EntryStatus {
    let path = &owned.path;
    let place = world.config.class_of(&owned.class, path);
    let taken = place.and_then(|_| taken_back(world, owned, plan).or_else(|| without_patch(world, owned)));
    let verdict = match place.map(|(class, _)| world.unseen.get(&class.mount_dir)) {
        Some(_) if taken.is_some() => taken.expect("it was seen just now"),
        Some(Some(why)) => {
            absent(world, owned, false, plan);
            why.clone()
        }
        Some(None) => {
            absent(world, owned, true, plan);
            let detail = if owned.fenced {
                "nothing is at its path, and its wipe had begun: without the disk, only taking the finalizer \
                 mooring.dev/wipe off the PV ends it"
                    .to_owned()
            } else {
                format!("PV {} is there, but nothing is at its path", owned.name)
            };
            Verdict::new(Reason::Vanished, detail)
        }
        None => refused(owned),
    };
    EntryStatus {
        class: owned.class.clone(),
        entry: place.map(|(_, entry)| entry).unwrap_or_default().to_owned(),
        path: path.clone(),
        pv: Some(owned.name.clone()),
        verdict,
    }
}
