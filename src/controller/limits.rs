//! What can't be promised for want of a right, a directory or a view: finds out, tells it
//! once each, and takes up a right when it is given.

use std::collections::BTreeSet;

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::Controller;
use crate::cache::feed;
use crate::cluster::ApiError;
use crate::events::{About, Event, HALF_WIPED, LIMITED};
use crate::ledger::{Entry, State};
use crate::limit::Limit;
use crate::node::busy;
use crate::node::capabilities;
use crate::node::mountinfo::MountTable;
use crate::volume::{NodeFacts, VolumeMode};

/// What was told.
#[derive(Default)]
pub struct Limits {
    told: BTreeSet<Limit>,
    /// Asks the API server for a right.
    asking: Option<AbortHandle>,
    /// Whether pods' mounts are to be seen; asked once.
    sees_pods: Option<bool>,
}

impl Limits {
    fn sees_pods(&mut self) -> bool {
        *self.sees_pods.get_or_insert_with(|| MountTable::read().is_ok_and(|mounts| busy::sees_pods(&mounts)))
    }
}

impl Controller {
    /// Begins to read PVs; first it is found out whether they may be patched.
    pub(super) fn spawn_pv_feeds(&mut self, node: &NodeFacts) {
        let use_node_name_only = self.config.use_node_name_only;
        let (cluster, client, events) = (self.cluster.clone(), self.watches.clone(), self.event_sender.clone());
        let watch = feed::PvWatch { node: node.clone(), use_node_name_only, may_patch: self.cache.may_patch() };
        self.pv_feeds.spawn(feed::sweep(cluster.clone(), node.clone(), use_node_name_only, events.clone()));
        self.pv_feeds.spawn(feed::persistent_volumes(cluster, client, watch, events));
    }

    /// Asks whether a right that was missing has been given.
    pub(super) fn ask_for_rights(&mut self) {
        if self.cache.may_patch() == Some(false) {
            self.ask(false);
        }
    }

    /// A call was refused. If it was to patch a PV, asks whether that right is missing.
    pub(super) fn note_refusal(&mut self, error: &ApiError) {
        if error.lacks_patch() && self.tools.may_patch {
            self.ask(!error.is_unready());
        }
    }

    fn ask(&mut self, refused: bool) {
        if self.limits.asking.as_ref().is_none_or(AbortHandle::is_finished) {
            while self.feeds.try_join_next().is_some() {}
            let question = feed::rights(self.cluster.clone(), refused, self.event_sender.clone());
            self.limits.asking = Some(self.feeds.spawn(question));
        }
    }

    /// Takes over whether PVs may be patched. When that has changed, they are watched anew.
    pub(super) fn heed_rights(&mut self, before: Option<bool>) {
        let now = self.cache.may_patch();
        self.tools.may_patch = now != Some(false);
        if before.is_none() || before == now {
            return;
        }
        // What has failed for want of it may go now, and the other way round.
        self.memory.forget_setbacks();
        self.pv_feeds.abort_all();
        if let Some(node) = self.fed_for.clone() {
            self.spawn_pv_feeds(&node);
        }
        self.dirty = true;
    }

    /// Tells what is missing, and shows it in the metrics.
    pub(super) fn tell_limits(&mut self) {
        let has_directories = self.config.classes.iter().any(|class| class.mode == VolumeMode::Filesystem);
        let missing: BTreeSet<Limit> = [
            (!self.tools.may_patch, Limit::Patch),
            (self.cache.node_is_read(), Limit::NodeWatch),
            (!self.tools.scribe.is_durable(), Limit::StateDir),
            (has_directories && !self.limits.sees_pods(), Limit::KubeletView),
            (has_directories && capabilities::missing().is_some(), Limit::Capabilities),
        ]
        .into_iter()
        .filter_map(|(is_missing, limit)| is_missing.then_some(limit))
        .collect();
        self.tools.metrics.show_limits(&missing.iter().copied().collect::<Vec<_>>());
        let new: Vec<Limit> = missing.difference(&self.limits.told).copied().collect();
        for limit in &new {
            let (what, loss, remedy) = (limit.as_str(), limit.loss(), limit.remedy());
            warn!(what, loss, remedy, "Something is missing; going on without it");
        }
        for limit in self.limits.told.difference(&missing) {
            info!(what = limit.as_str(), "What was missing is there now");
        }
        // That the kubelet's directory is not shown is not worth a write at each start.
        if new.iter().any(|limit| *limit != Limit::KubeletView) {
            let sentences: Vec<String> =
                new.iter().map(|limit| format!("{}: {}", limit.as_str(), limit.loss())).collect();
            let note = format!("{}. To do: see docs/rights.md", sentences.join(". "));
            self.tools.events.send(Event::warning(About::Node(self.node_name.clone()), LIMITED, note));
        }
        self.limits.told = missing;
    }

    /// Tells of claims that have got a volume in the middle of its wipe. `records` is what
    /// the ledger is about to remember.
    pub(super) fn tell_taken(&self, records: &[Entry]) {
        for entry in records {
            let before = self.books.ledger().get(entry.id).map(|before| &before.state);
            let Some(State::Wiping { uid: wiped, claim: former, method, .. }) = before else { continue };
            let State::Used { pv, uid, claim: Some(claim), .. } = &entry.state else { continue };
            if wiped != uid || method.is_empty() || former.as_ref().is_some_and(|former| former.uid == claim.uid) {
                continue;
            }
            let note = format!(
                "claim {claim} was bound to PV {pv} while its volume was being wiped, because its claimRef was changed: \
                 it may find what is left of the former tenant's data. To do: delete the claim, and the volume is wiped"
            );
            warn!(pv, %claim, "A claim has got a volume in the middle of its wipe");
            for about in [About::Pv(pv.to_string(), uid.to_string()), About::from(claim)] {
                self.tools.events.send(Event::warning(about, HALF_WIPED, note.clone()));
            }
        }
    }
}
