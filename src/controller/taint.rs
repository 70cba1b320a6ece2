//! Takes the start-up taint off this Node when [`Taint`] says that it can go, and tells
//! why it stays. Nothing else waits for that, and a failure is only tried again.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::Controller;
use crate::cluster::{ApiError, Cluster};
use crate::events::{self, About, Event, Events};
use crate::memory::backoff;
use crate::plan::EntryStatus;
use crate::report::Totals;
use crate::taint::{Removal, Taint};

/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(300));
/// The same when others have changed the taints: the watch shows how they are now.
const CONFLICT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Until the watch of the Node shows what was done to it.
const SETTLE: Duration = Duration::from_secs(1);
/// What may pass by itself is told when it has come so often.
const TOLD_AT: u32 = 4;
/// Likewise, of others' changes of the taints.
const CONFLICTS_TOLD_AT: u32 = 30;
/// Paths that are named in an Event.
const NAMED: usize = 5;

impl Controller {
    /// Takes the start-up taint off if that is due after a plan with these entries. Returns
    /// what there is of this node's PVs and of the taint.
    pub(super) fn take_stock(&mut self, entries: &[EntryStatus]) -> Totals {
        let node = self.cache.node().expect("a complete cache knows the Node");
        let taint = Taint::judge(&self.config, node, entries, self.cache.owned());
        let mut totals = Totals::of(self.cache.owned().values(), &self.config, &self.memory);
        totals.ledger_trouble = self.books.trouble().is_some();
        totals.tainted = taint != Taint::Absent;
        totals.taint_waits_for = u32::try_from(taint.waits_for()).unwrap_or(u32::MAX);
        if self.shadow.is_none() {
            self.untainting.decide(taint, &self.node_name, &self.cluster, &self.tools.events);
        }
        totals
    }
}

/// The removal of the taint, as far as it is.
#[derive(Default)]
pub struct Untainting {
    attempt: JoinSet<(Removal, Result<(), ApiError>)>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Whether it was told that it can't be removed.
    told: bool,
    held_for: Vec<String>,
}

impl Untainting {
    /// Completes when there is reason to [`Untainting::decide`] again.
    pub async fn progress(&mut self, events: &Events) {
        if let Some(ended) = self.attempt.join_next().await {
            let (removal, result) = ended.expect("a call to the API server does not panic");
            let wait = self.take(&removal, result, events);
            self.retry_at = Some(Instant::now() + wait);
        }
        match self.retry_at {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
        self.retry_at = None;
    }

    /// Begins what is to be done, and tells of a taint that is held.
    pub fn decide(&mut self, taint: Taint, node: &str, cluster: &Cluster, events: &Events) {
        self.tell_held(&taint, node, events);
        match taint {
            Taint::Removable(removal) if self.attempt.is_empty() && self.retry_at.is_none() => {
                let cluster = cluster.clone();
                self.attempt.spawn(async move {
                    let result = cluster.untaint(&removal).await;
                    (removal, result)
                });
            }
            // It is gone: the next one is another story.
            Taint::Absent => (self.failures, self.told) = (0, false),
            _ => {}
        }
    }

    fn take(&mut self, removal: &Removal, result: Result<(), ApiError>, events: &Events) -> Duration {
        let (node, key) = (removal.node(), removal.key());
        let Err(error) = result else {
            info!(node, key, "The start-up taint is taken off this Node");
            (self.failures, self.told) = (0, false);
            return SETTLE;
        };
        let (waits, patience) = match error {
            ApiError::Forbidden(_) => (BACKOFF, 1),
            ApiError::Conflict(_) => (CONFLICT, CONFLICTS_TOLD_AT),
            _ => (BACKOFF, TOLD_AT),
        };
        let wait = backoff(waits, self.failures, fastrand::f64());
        self.failures = self.failures.saturating_add(1);
        if self.told || self.failures < patience {
            debug!(node, key, %error, "The start-up taint is not taken off; looking again");
            return wait;
        }
        self.told = true;
        warn!(node, key, %error, "The start-up taint can't be taken off this Node; trying again");
        let remedy = if matches!(error, ApiError::Forbidden(_)) {
            "apply deploy/manifests/start-up-taint.yaml, which gives the right to patch this Node; or set \
             removeNodeNotReadyTaint to false and take the taint off yourself"
        } else {
            "see what refuses it; it is tried again"
        };
        let note = format!("the start-up taint {key} stays on this Node: {error}. To do: {remedy}");
        events.send(Event::warning(About::Node(node.to_owned()), events::TAINT_NOT_REMOVED, note));
        wait
    }

    fn tell_held(&mut self, taint: &Taint, node: &str, events: &Events) {
        let missing = match taint {
            Taint::Held(missing) if self.held_for != *missing => missing,
            Taint::Removable(_) if !self.held_for.is_empty() => {
                self.held_for.clear();
                return info!("The volumes of all claims are there; the start-up taint need not wait for them");
            }
            Taint::Absent => return self.held_for.clear(),
            // While others are being offered, it is not known whether it would be held.
            _ => return,
        };
        self.held_for.clone_from(missing);
        let named = missing[..missing.len().min(NAMED)].join(", ");
        let more = if missing.len() > NAMED { ", …" } else { "" };
        warn!(volumes = missing.len(), named, "The start-up taint stays: volumes that claims have are not there");
        let note = format!(
            "the start-up taint stays on this Node: of the volumes that claims have, {} are not there: {named}{more}. To \
             do: mount or attach them; or, if one will not come back, delete its claim",
            missing.len()
        );
        events.send(Event::warning(About::Node(node.to_owned()), events::TAINT_HELD, note));
    }
}
