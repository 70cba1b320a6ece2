//! The controller as a shadow: what is decided is not done but compared with what there
//! is. Reading is all that is left of its actions.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolume;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::events::Event;
use crate::metrics::Metrics;
use crate::plan::{Action, Adoption, Plan, World, foresee};
use crate::pv::{self, Fields};
use crate::shadow::{Book, Difference, differences};

/// Keeps the book of differences.
pub struct Shadow {
    book: Book,
    grace: Duration,
    /// Of each PV that would be adopted, by UID: its volume as it was first seen.
    adopted: BTreeMap<String, Adoption>,
    /// What the PVs look like, by name. Newer than the cache, and of one that went while the
    /// watch was away it has more: names are made of entries, so that they do not pile up.
    fields: watch::Sender<BTreeMap<String, Fields>>,
    metrics: Arc<Metrics>,
    /// When the first comparison was made, until its outcome has been told.
    begun: Option<Instant>,
    summed_up: bool,
}

impl Shadow {
    /// A difference counts once it has lasted for `grace`.
    pub fn new(grace: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            book: Book::new(grace),
            grace,
            adopted: BTreeMap::new(),
            fields: watch::Sender::default(),
            metrics,
            begun: None,
            summed_up: false,
        }
    }

    /// Is to be shown each PV of ours, or `None` when it is gone.
    pub fn witness(&self) -> impl Fn(&str, Option<&PersistentVolume>) + use<> {
        let fields = self.fields.clone();
        move |name, pv| {
            fields.send_modify(|all| {
                match pv {
                    Some(pv) => all.insert(name.to_owned(), pv::fields(pv)),
                    None => all.remove(name),
                };
            });
        }
    }

    /// Decides, tells what differs, and leaves of the actions only those that read.
    pub fn decide(&mut self, world: &World<'_>) -> Plan {
        let mut owned = world.owned.clone();
        for owned in owned.values_mut().filter(|owned| owned.accepted.is_none()) {
            if let Some(adoption) = self.adopted.get(&owned.uid) {
                adoption.apply_to(owned);
            }
        }
        let world = World { owned: &owned, ..*world };
        let foresight = foresee(&world, Duration::ZERO);
        let uids: HashSet<&str> = owned.values().map(|owned| owned.uid.as_str()).collect();
        self.adopted.retain(|uid, _| uids.contains(uid.as_str()));
        let mut reads = Vec::new();
        for action in foresight.steps.iter().map(|step| &step.action) {
            match action {
                Action::Adopt(adoption) if adoption.identity.is_some() => {
                    self.adopted.insert(adoption.pv.uid.clone(), (**adoption).clone());
                }
                Action::LookAgain { .. } => reads.push(action.clone()),
                _ => {}
            }
        }
        let found = differences(&world, &foresight, &self.fields.borrow());
        self.note(found, world.now);
        let wake_at = foresight.plan.wake_at.into_iter().chain(self.next_wake(world.now)).min();
        let mut plan = foresight.plan;
        (plan.actions, plan.records, plan.wake_at) = (reads, Vec::new(), wake_at);
        plan
    }

    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let sum = self.begun.filter(|_| !self.summed_up).map(|begun| begun + self.grace);
        // The sum is told a moment later than what it sums up.
        self.book.next_to_count().into_iter().chain(sum).min().map(|at| at.max(now + Duration::from_millis(1)))
    }

    fn note(&mut self, found: Vec<Difference>, now: Instant) {
        let news = self.book.update(found, now);
        for Difference { kind, pv, path, field, detail } in &news.appeared {
            warn!(kind = kind.as_str(), pv, path, field, detail, "Difference");
            self.metrics.shadow_difference_seen(kind.as_str());
        }
        for Difference { kind, pv, path, field, .. } in &news.vanished {
            info!(kind = kind.as_str(), pv, path, field, "Difference is gone");
        }
        let counts = self.book.counts();
        for (kind, count) in &counts {
            self.metrics.set_shadow_differences(kind.as_str(), *count);
        }
        let begun = *self.begun.get_or_insert(now);
        if !self.summed_up && now.saturating_duration_since(begun) >= self.grace {
            self.summed_up = true;
            let differences: usize = counts.values().sum();
            info!(differences, seconds = self.grace.as_secs(), "Shadow has compared everything once");
        }
    }
}

/// A shadow sends no Events.
pub async fn send_none(unsent: Option<mpsc::Receiver<Event>>) {
    let Some(mut unsent) = unsent else { return };
    while unsent.recv().await.is_some() {}
}
