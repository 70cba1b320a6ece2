//! The one cache of this node's PVs, of the storage classes and of this Node. Watches
//! and the sweep of all PVs ([`feed`]) send it compact [`Event`]s; the controller owns
//! it and applies them. Nothing may be decided before it [`Cache::is_complete`].

pub mod feed;
pub mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;

use crate::pv::{self, Decoded, Labels, OwnedPv};
use crate::volume::{NodeFacts, StorageClassFacts};

/// A change, as the feeds report it.
#[derive(Debug)]
pub enum Event {
    /// This Node, or what is wrong with it.
    Node(Result<NodeFacts, String>),
    /// Whether this Node is watched; else it is read every minute.
    NodeWatched(bool),
    /// Whether PVs may be patched. If not, PVs of the Go provisioner stay without our
    /// label, and all PVs are watched.
    MayPatch(bool),
    /// A storage class is there.
    Class(String, StorageClassFacts),
    /// A storage class is gone.
    ClassGone(String),
    /// These are all the storage classes.
    ClassesListed(BTreeSet<String>),
    /// A PV that is watched is there.
    Pv(Decoded),
    /// A list of the PVs that are watched has this one. What a list says holds, also when it
    /// is older than what was known: the API server's data may have been restored.
    PvListed(Decoded),
    /// A PV has left the watch: it is gone, or only its label is. (The
    /// object that the API server sends along does not tell which.)
    PvLeft {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// What it was like at last.
        last: Decoded,
    },
    /// These are all the PVs that are watched.
    PvsListed(BTreeSet<String>),
    /// These are all our PVs, whether or not they have our label, and all PVs of others that
    /// name paths of this node.
    AllListed {
        /// Names of ours.
        owned: BTreeSet<String>,
        /// Names of those of others.
        foreign: BTreeSet<String>,
    },
    /// The sweep met a PV of this node.
    Swept(Decoded),
    /// The sweep is through; these PVs of others name paths of this node.
    SweepDone(BTreeSet<String>),
}

/// What the API server has, as far as it concerns this node.
#[derive(Debug, Default)]
pub struct Cache {
    node: Option<Result<NodeFacts, String>>,
    node_is_read: bool,
    may_patch: Option<bool>,
    classes: BTreeMap<String, StorageClassFacts>,
    owned: BTreeMap<String, OwnedPv>,
    suspects: BTreeSet<String>,
    /// By path: several may name one.
    foreign: BTreeMap<String, BTreeSet<String>>,
    /// One copy of each set of labels: most PVs have the same.
    labels: BTreeSet<Arc<Labels>>,
    classes_listed: bool,
    pvs_listed: bool,
    swept: bool,
}

impl Cache {
    /// Takes over a change; says whether it changed anything.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Node(node) => {
                let changed = self.node.as_ref() != Some(&node);
                self.node = Some(node);
                changed
            }
            Event::NodeWatched(watched) => std::mem::replace(&mut self.node_is_read, !watched) == watched,
            Event::MayPatch(may) => self.may_patch.replace(may) != Some(may),
            Event::Class(name, facts) => self.classes.insert(name, facts.clone()) != Some(facts),
            Event::ClassGone(name) => self.classes.remove(&name).is_some(),
            Event::ClassesListed(names) => {
                self.classes.retain(|name, _| names.contains(name));
                self.classes_listed = true;
                true
            }
            Event::Pv(decoded) => self.insert(decoded),
            Event::PvListed(decoded) => {
                if let Decoded::Owned(owned) = &decoded
                    && self.owned.get(&owned.name).is_some_and(|known| version(known) > version(owned))
                {
                    self.owned.remove(&owned.name);
                }
                self.insert(decoded)
            }
            Event::Swept(decoded) => {
                // The pages of a list are as old as its first: what the watch does not
                // know may be gone since.
                if let Decoded::Owned(owned) = &decoded
                    && self.pvs_listed
                    && (owned.labelled || self.watches_all())
                    && !self.owned.contains_key(&owned.name)
                {
                    let name = owned.name.clone();
                    self.insert(decoded);
                    return self.suspects.insert(name);
                }
                self.insert(decoded)
            }
            Event::PvLeft { name, uid, last } => {
                if self.owned.get(&name).is_some_and(|owned| owned.uid == uid) {
                    // Of one that only lost its label, the object is as it was before.
                    if let Decoded::Owned(last) = last
                        && last.terminating
                        && self.owned.get(&name).is_none_or(|known| version(known) <= version(&last))
                    {
                        self.owned.insert(name.clone(), *last);
                    }
                    self.suspects.insert(name)
                } else {
                    self.retain_foreign(|pv| pv != name)
                }
            }
            Event::PvsListed(names) => {
                let all = self.watches_all();
                let missing = self.owned.iter().filter(|(name, owned)| {
                    // A PV without our label never was in the list of those that have it.
                    !names.contains(*name) && (owned.labelled || all)
                });
                self.suspects.extend(missing.map(|(name, _)| name.clone()));
                self.pvs_listed = true;
                true
            }
            Event::AllListed { owned, foreign } => {
                let missing = self.owned.keys().filter(|name| !owned.contains(*name));
                self.suspects.extend(missing.cloned());
                self.retain_foreign(|pv| foreign.contains(pv));
                (self.pvs_listed, self.swept) = (true, true);
                true
            }
            Event::SweepDone(foreign) => {
                self.retain_foreign(|pv| foreign.contains(pv));
                self.swept = true;
                true
            }
        }
    }

    /// Takes over the answer of a write or a read of one PV.
    pub fn learn(&mut self, pv: &PersistentVolume, use_node_name_only: bool) -> Option<OwnedPv> {
        let node = self.node()?.clone();
        let decoded = pv::sort(pv, &node, use_node_name_only);
        let Decoded::Owned(owned) = &decoded else {
            // It may have been ours before.
            if let Some(name) = &pv.metadata.name {
                self.remove(name);
            }
            self.insert(decoded);
            return None;
        };
        let owned = (**owned).clone();
        let stale = self.owned.get(&owned.name).is_some_and(|known| version(known) > version(&owned));
        if owned.terminating && owned.free_of_finalizers {
            self.remove(&owned.name);
        } else if !stale {
            // An answer that was overtaken by the watch clears nothing.
            self.suspects.remove(&owned.name);
            self.insert(decoded);
        }
        Some(owned)
    }

    /// Takes over that there is no PV of that name.
    pub fn remove(&mut self, name: &str) {
        self.owned.remove(name);
        self.suspects.remove(name);
        self.retain_foreign(|pv| pv != name);
    }

    fn insert(&mut self, decoded: Decoded) -> bool {
        match decoded {
            Decoded::Owned(mut owned) => {
                let name = owned.name.clone();
                // Answers of writes overtake the watch; what it says of before is old.
                if self.owned.get(&name).is_some_and(|known| version(known) >= version(&owned)) {
                    return false;
                }
                self.suspects.remove(&name);
                if let Some(others) = self.foreign.get_mut(&owned.path)
                    && others.remove(&name)
                    && others.is_empty()
                {
                    self.foreign.remove(&owned.path);
                }
                self.share_labels(&mut owned);
                self.owned.insert(name, *owned);
                true
            }
            Decoded::Foreign(foreign) => self.foreign.entry(foreign.path).or_default().insert(foreign.pv),
            Decoded::Elsewhere => false,
        }
    }

    /// Keeps those PVs of others; says whether there were more.
    fn retain_foreign(&mut self, keep: impl Fn(&str) -> bool) -> bool {
        let mut changed = false;
        self.foreign.retain(|_, pvs| {
            let before = pvs.len();
            pvs.retain(|pv| keep(pv));
            changed |= pvs.len() != before;
            !pvs.is_empty()
        });
        changed
    }

    fn share_labels(&mut self, owned: &mut OwnedPv) {
        if let Some(same) = self.labels.get(&owned.labels) {
            owned.labels = Arc::clone(same);
        } else {
            self.labels.retain(|labels| Arc::strong_count(labels) > 1);
            self.labels.insert(Arc::clone(&owned.labels));
        }
    }

    /// Whether every list has been read once and the Node is usable.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.node().is_some() && self.classes_listed && self.pvs_listed && self.swept
    }

    /// What is still missing, for people to read.
    #[must_use]
    pub fn missing(&self) -> &'static str {
        match (self.node().is_some(), self.classes_listed, self.pvs_listed && self.swept) {
            (false, ..) => "the Node",
            (_, false, _) => "the storage classes",
            (.., false) => "the list of persistent volumes",
            _ => "",
        }
    }

    /// Makes sure that what no watch shows is looked at again: our PVs without label.
    pub fn suspect_unlabelled(&mut self) {
        let all = self.watches_all();
        let unlabelled = self.owned.values().filter(|owned| !owned.labelled && !all);
        self.suspects.extend(unlabelled.map(|owned| owned.name.clone()));
    }

    /// Forgets the PVs; they are read anew for another Node.
    pub fn forget_pvs(&mut self) {
        let kept = std::mem::take(self);
        *self = Self {
            node: kept.node,
            node_is_read: kept.node_is_read,
            may_patch: kept.may_patch,
            classes: kept.classes,
            classes_listed: kept.classes_listed,
            ..Self::default()
        };
    }

    /// Whether the watch shows our PVs without our label too.
    fn watches_all(&self) -> bool {
        self.may_patch == Some(false)
    }

    /// Whether PVs may be patched, once that is known.
    #[must_use]
    pub fn may_patch(&self) -> Option<bool> {
        self.may_patch
    }

    /// Whether this Node is only read now and then.
    #[must_use]
    pub fn node_is_read(&self) -> bool {
        self.node_is_read
    }

    /// This Node, when it is there and usable.
    #[must_use]
    pub fn node(&self) -> Option<&NodeFacts> {
        self.node.as_ref()?.as_ref().ok()
    }

    /// The storage classes by name.
    #[must_use]
    pub fn classes(&self) -> &BTreeMap<String, StorageClassFacts> {
        &self.classes
    }

    /// Our PVs by name.
    #[must_use]
    pub fn owned(&self) -> &BTreeMap<String, OwnedPv> {
        &self.owned
    }

    /// Our PVs that have left the watch without being certainly gone.
    #[must_use]
    pub fn suspects(&self) -> &BTreeSet<String> {
        &self.suspects
    }

    /// Paths of this node that PVs of others name, with their names.
    #[must_use]
    pub fn foreign(&self) -> &BTreeMap<String, BTreeSet<String>> {
        &self.foreign
    }
}

/// Resource versions are comparable integers (Kubernetes API concepts, 1.35).
fn version(pv: &OwnedPv) -> u64 {
    pv.resource_version.parse().unwrap_or(0)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
