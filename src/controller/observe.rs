//! What the controller takes over into its state: snapshots of the node, and what the
//! watches and the sweep say; and the beginning of those.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Controller, shadow};
use crate::cache::{Event, feed};
use crate::discovery::{self, Listing};
use crate::events;
use crate::pv::{self, Decoded, OwnedPv};
use crate::reclaim::Release;

impl Controller {
    pub(super) fn look_at_snapshot(&mut self) {
        let Some(snapshot) = self.scanner.snapshots.borrow_and_update().clone() else { return };
        let is_configured = |directory: &str| self.config.classes.iter().any(|class| class.mount_dir == directory);
        for (directory, listing) in &snapshot.directories {
            let before = self.snapshot.as_ref().and_then(|before| before.directories.get(directory));
            match listing {
                Listing::Entries(_) if before.is_some_and(|before| !matches!(before, Listing::Entries(_))) => {
                    info!(directory, "Discovery directory can be read again");
                }
                Listing::Entries(_) => {}
                _ if before == Some(listing) => {}
                _ if !is_configured(directory) && self.next_config.is_none() => {
                    info!(directory, "Former discovery directory can't be read");
                }
                Listing::Failed(error) => {
                    warn!(directory, error, "Discovery directory can't be read; create it, or correct mountDir");
                }
                Listing::Unresponsive => {
                    warn!(directory, "Discovery directory does not answer; look after the disk or server behind it");
                }
            }
        }
        self.memory.note_look(snapshot.began);
        if !self.is_of_config(&snapshot) {
            return;
        }
        let is_first = self.snapshot.is_none();
        self.snapshot = Some(snapshot);
        self.judge_snapshot();
        if is_first {
            self.books.share_identities(&self.findings);
        }
        self.change_config();
    }

    /// What the config makes of the snapshot.
    pub(super) fn judge_snapshot(&mut self) {
        let Some(snapshot) = self.snapshot.as_deref() else { return };
        self.findings = discovery::discover(&self.config, snapshot);
        self.unseen = discovery::unseen(&self.config, snapshot);
        self.dirty = true;
    }

    pub(super) fn take_events(&mut self, first: Event) {
        let mut next = Some(first);
        while let Some(mut event) = next {
            if let Event::Pv(Decoded::Owned(owned)) | Event::Swept(Decoded::Owned(owned)) = &mut event {
                self.books.ledger().lend(owned);
            }
            match &event {
                Event::Node(Err(problem)) => warn!(problem, "This Node can't be used yet; waiting for it"),
                Event::Pv(Decoded::Owned(owned)) | Event::PvListed(Decoded::Owned(owned)) => {
                    self.memory.saw(&owned.name);
                    // What an admin says, and what is to be done in another phase, does not wait for
                    // what failed before.
                    let is_new = |before: &OwnedPv| owned.says_more_than(before) || owned.phase != before.phase;
                    if self.cache.owned().get(&owned.name).is_some_and(is_new) {
                        self.memory.forget_setback(&owned.name);
                    }
                    // Without a fence, nothing else keeps a claim from a volume that is wiped.
                    let before = self.cache.owned().get(&owned.name);
                    let is_over = || before.and_then(Release::of).is_some_and(|before| before.is_over(owned));
                    if let Some(control) = self.reclaiming.get(&owned.name).filter(|_| !owned.fenced && is_over()) {
                        control.cancel();
                    }
                    // It ends the look into a quarantined volume, too.
                    if let Some(control) =
                        self.reclaiming.get(&owned.name).filter(|_| owned.quarantined && owned.word.is_some())
                    {
                        control.cancel();
                    }
                }
                Event::PvLeft { name, .. } => {
                    // What was found wrong with the former PV is nothing against the next.
                    self.memory.forget_setback(name);
                    // Nothing is wiped for a PV that may be gone.
                    if let Some(control) = self.reclaiming.get(name) {
                        control.cancel();
                    }
                }
                _ => {}
            }
            let rights = matches!(event, Event::MayPatch(_));
            let may_patch = self.cache.may_patch();
            self.dirty |= self.cache.apply(event);
            if rights {
                self.heed_rights(may_patch);
            }
            next = self.events.try_recv().ok();
        }
        self.feed_pvs();
    }

    /// Begins to read what does not depend on the Node's identity.
    pub(super) fn feed_cluster(&mut self) {
        let (client, events) = (&self.watches, &self.event_sender);
        self.feeds.spawn(feed::node(self.cluster.clone(), client.clone(), self.node_name.clone(), events.clone()));
        self.feeds.spawn(feed::storage_classes(client.clone(), events.clone()));
    }

    /// Begins to read PVs once the Node is known, and anew when it is another one or signs
    /// its PVs otherwise.
    pub(super) fn feed_pvs(&mut self) {
        let Some(node) = self.cache.node() else { return };
        let fed_for = self.fed_for.as_ref();
        let name_only = self.config.use_node_name_only;
        let is_signed_alike = self.tools.use_node_name_only == name_only;
        if fed_for.is_some_and(|fed| fed.uid == node.uid && fed.hostname == node.hostname) && is_signed_alike {
            return;
        }
        self.tools.use_node_name_only = name_only;
        let node = node.clone();
        info!(node = node.name, uid = node.uid, hostname = node.hostname, "Node found");
        if fed_for.is_some() {
            self.pv_feeds.abort_all();
            self.cache.forget_pvs();
            for action in self.queue.drain(..) {
                self.memory.look_again(action.pv());
            }
            // What is still in the channel was sorted for the other Node.
            let (sender, receiver) = mpsc::channel(64);
            (self.event_sender, self.events) = (sender, receiver);
            self.feeds.abort_all();
            self.feed_cluster();
        }
        if let Some(shadow) = &self.shadow {
            // PVs that another provisioner makes do not have our label.
            let (client, events) = (self.watches.clone(), self.event_sender.clone());
            let (name_only, witness) = (self.config.use_node_name_only, shadow.witness());
            self.pv_feeds.spawn(feed::every_persistent_volume(client, node.clone(), name_only, events, witness));
            self.sender.spawn(shadow::send_none(self.unsent.take()));
        } else {
            self.spawn_pv_feeds(&node);
        }
        if let Some(unsent) = self.unsent.take() {
            let component = pv::provisioner_name(&node, self.config.use_node_name_only);
            self.sender.spawn(events::send_all(self.cluster.clone(), component, unsent));
        }
        self.tools.node = Some(Arc::new(node.clone()));
        self.fed_for = Some(node);
    }
}
