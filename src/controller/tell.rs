//! Tells what has changed: a log line for each new verdict, and an Event where an admin
//! should hear of it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::events::{About, Event, Events};
use crate::plan::EntryStatus;
use crate::pv::OwnedPv;
use crate::verdict::Reason;

/// Who uses a Released volume is told after this time: a pod that ends needs some.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// What was told already.
#[derive(Default)]
pub struct Teller {
    busy: HashMap<String, Option<Instant>>,
}

impl Teller {
    /// Tells the changed entries.
    pub fn tell(&mut self, changed: &[EntryStatus], owned: &BTreeMap<String, OwnedPv>, node: &str, events: &Events) {
        for entry in changed {
            log(entry);
            if is_alarming(entry) {
                send(entry, owned, node, events);
            }
        }
    }

    /// Tells who is in the way of a wipe for longer than a moment, once.
    pub fn tell_busy(
        &mut self,
        entries: &[EntryStatus],
        owned: &BTreeMap<String, OwnedPv>,
        node: &str,
        events: &Events,
    ) {
        // What is being tried again counts as busy until that ends otherwise.
        let busy = |entry: &&EntryStatus| matches!(entry.verdict.reason, Reason::Busy | Reason::Wiping);
        self.busy.retain(|path, _| entries.iter().filter(busy).any(|entry| entry.path == *path));
        for entry in entries.iter().filter(|entry| entry.verdict.reason == Reason::Busy) {
            let since = self.busy.entry(entry.path.clone()).or_insert_with(|| Some(Instant::now()));
            if since.is_some_and(|since| since.elapsed() >= BUSY_PATIENCE) {
                *since = None;
                send(entry, owned, node, events);
            }
        }
    }
}

/// Whether an admin should hear of it at once. Who is in the way is told by `tell_busy`.
fn is_alarming(entry: &EntryStatus) -> bool {
    let reason = entry.verdict.reason;
    reason != Reason::Busy && reason.is_told_by_event(entry.pv.is_some())
}

/// Whether the volume is not there.
fn is_missing(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Vanished | Reason::NotAMountPoint | Reason::ModeMismatch | Reason::ZeroCapacity | Reason::Unsupported
    )
}

/// An Event on the PV, or else on this Node; and one on the claim, whose owner has no
/// right to see PVs.
fn send(entry: &EntryStatus, owned: &BTreeMap<String, OwnedPv>, node: &str, events: &Events) {
    let reason = entry.verdict.reason;
    let remedy = reason.remedy();
    let note = format!("{} of class {}: {}. To do: {remedy}", entry.path, entry.class, entry.verdict.detail);
    let pv = entry.pv.as_ref().and_then(|pv| owned.get(pv));
    if let Some(pv) = pv.filter(|pv| reason == Reason::Refused && !pv.reclaim_policy.is_supported()) {
        return events.send(Event::unsupported_policy(pv, note));
    }
    let about = match pv {
        Some(pv) => About::Pv(pv.name.clone(), pv.uid.clone()),
        None => About::Node(node.to_owned()),
    };
    events.send(Event::warning(about, reason.as_str(), note.clone()));
    let of_claim = is_missing(reason) || matches!(reason, Reason::IdentityChanged | Reason::Shrunk);
    if let Some(claim) = pv.and_then(|pv| pv.claim.as_ref()).filter(|_| of_claim) {
        events.send(Event::warning(About::from(&**claim), reason.as_str(), note));
    }
}

/// One line for each change of a verdict.
fn log(entry: &EntryStatus) {
    let EntryStatus { class, path, pv, verdict, .. } = entry;
    let (verdict, detail, remedy) = (verdict.reason.as_str(), &verdict.detail, verdict.reason.remedy());
    match entry.verdict.reason {
        Reason::Published => info!(class, path, pv, detail, "Volume is published"),
        Reason::Wiping => info!(class, path, pv, "Volume is being wiped"),
        Reason::Pending | Reason::ExcludedByPattern => debug!(class, path, verdict, detail, "Volume is not published"),
        reason if is_alarming(entry) || reason == Reason::Busy => {
            warn!(class, path, pv, verdict, detail, remedy, "Volume needs attention");
        }
        _ => info!(class, path, verdict, detail, remedy, "Entry is not published"),
    }
}
