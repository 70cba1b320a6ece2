//! PVs that exist, as far as decisions need them: whose they are, what state they are in,
//! and what an admin has written on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LocalVolumeSource, PersistentVolume};

use super::{
    ACCEPT_IDENTITY, Claim, HOLD, HOSTNAME_LABEL, IDENTITY, LEDGER_ENTRY, Labels, NODE_LABEL, PROVISIONED_BY,
    QUARANTINED, RECLAIM, RECLAIMING, WIPE_FINALIZER, annotation, claim, node_label_value, provisioner_name,
};
use crate::identity::Identity;
use crate::volume::{Capacity, NodeFacts, ReclaimPolicy};

/// What an admin wants of a Released volume: the value of [`RECLAIM`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// Wipe it, whatever its reclaim policy.
    Wipe,
    /// Offer it again with the data on it.
    Keep,
    /// Remove its PV and never offer the volume again.
    Retire,
    /// None of these.
    Unknown(Box<str>),
}

impl Word {
    fn parse(text: &str) -> Self {
        match text {
            "wipe" => Self::Wipe,
            "keep" => Self::Keep,
            "retire" => Self::Retire,
            other => Self::Unknown(other.into()),
        }
    }
}

/// `status.phase` of a PV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Just made.
    Pending,
    /// Free to be claimed.
    Available,
    /// Claimed.
    Bound,
    /// Its claim is gone.
    Released,
    /// Reclaiming failed.
    Failed,
}

/// A PV of ours as the API server has it, no more of it than decisions need: there
/// may be thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedPv {
    /// `metadata.name`.
    pub name: String,
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.local.path`.
    pub path: String,
    /// Whether a former Node of this name signed it: it is not ours to change, wipe or
    /// remove until it is known to be about the volume that is there, and signed anew.
    pub former: bool,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim_policy: ReclaimPolicy,
    /// `spec.mountOptions`.
    pub mount_options: Vec<String>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// UID of the Node of this name that owns it, if one does.
    pub owner: Option<Box<str>>,
    /// Whether it has the label by which the watch of this node's PVs finds it.
    pub labelled: bool,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.lastPhaseTransitionTime`, in seconds since 1970.
    pub since: Option<i64>,
    /// `spec.claimRef`.
    pub claim: Option<Box<Claim>>,
    /// `spec.capacity.storage`.
    pub capacity: Option<Capacity>,
    /// The identity that was recorded in it.
    pub identity: Option<Arc<Identity>>,
    /// Whether an identity is recorded that can't be read.
    pub garbled: bool,
    /// The ledger's entry of its volume ([`LEDGER_ENTRY`]).
    pub entry: Option<u128>,
    /// What an admin wants of it.
    pub word: Option<Word>,
    /// Whether an admin holds its wipe.
    pub hold: bool,
    /// The digest that an admin accepts.
    pub accepted: Option<Box<str>>,
    /// The UID of the claim whose data may be wiped ([`RECLAIMING`]).
    pub reclaiming: Option<Box<str>>,
    /// Whether we made it to keep the volume from being claimed.
    pub quarantined: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Whether our finalizer [`WIPE_FINALIZER`] is on it.
    pub fenced: bool,
    /// Whether no finalizer is left; with `terminating`, the object is as good as gone.
    pub free_of_finalizers: bool,
}

impl OwnedPv {
    /// Whether nobody has claimed it or has it reserved, and nobody is removing it.
    #[must_use]
    pub fn is_unclaimed(&self) -> bool {
        self.phase == Phase::Available && self.claim.is_none() && !self.terminating && !self.fenced
    }

    /// Whether an admin says something on it that was not said `before`.
    #[must_use]
    pub fn says_more_than(&self, before: &Self) -> bool {
        let word = self.word.is_some() && self.word != before.word;
        let accepted = self.accepted.is_some() && self.accepted != before.accepted;
        word || accepted || (before.hold && !self.hold)
    }
}

/// A PV as it was when an action was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its resource version.
    pub version: String,
}

impl Seen {
    /// The PV as it is.
    #[must_use]
    pub fn of(owned: &OwnedPv) -> Self {
        Self { name: owned.name.clone(), uid: owned.uid.clone(), version: owned.resource_version.clone() }
    }
}

/// A PV that names a path of this node and is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPath {
    /// Its name.
    pub pv: String,
    /// The path that it occupies.
    pub path: String,
}

/// A PV from a list or watch, sorted by whose it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// Ours, to publish and reclaim.
    Owned(Box<OwnedPv>),
    /// Somebody else's, on this node.
    Foreign(ForeignPath),
    /// Of no interest here.
    Elsewhere,
}

/// Whether annotations hold up wipes. Any value but `false` does: a typing error must
/// not destroy anything.
#[must_use]
pub fn is_held(annotations: Option<&BTreeMap<String, String>>) -> bool {
    annotations.and_then(|annotations| annotations.get(HOLD)).is_some_and(|value| value != "false")
}

/// Whose PV is this? Ours only when the annotation says so; the path is judged later, by
/// [`Config`](crate::config::Config), before anything is done to the volume.
#[must_use]
pub fn sort(pv: &PersistentVolume, node: &NodeFacts, use_node_name_only: bool) -> Decoded {
    let Some(local) = pv.spec.as_ref().and_then(|spec| spec.local.as_ref()) else { return Decoded::Elsewhere };
    let former = match signer(pv, node, use_node_name_only) {
        Signer::ThisNode => false,
        Signer::FormerNode if names_this_node(pv, node) => true,
        // Of a Node of this name with another host name: its volume may be at that path still.
        Signer::Other if !names_this_node(pv, node) => return Decoded::Elsewhere,
        Signer::FormerNode | Signer::Other => {
            return Decoded::Foreign(ForeignPath {
                pv: pv.metadata.name.clone().unwrap_or_default(),
                path: local.path.clone(),
            });
        }
    };
    let owned = owned(pv, local, node).map(|owned| OwnedPv { former, ..owned });
    owned.map_or(Decoded::Elsewhere, |owned| Decoded::Owned(Box::new(owned)))
}

fn label<'p>(pv: &'p PersistentVolume, key: &str) -> Option<&'p String> {
    pv.metadata.labels.as_ref()?.get(key)
}

/// Who signed a PV.
enum Signer {
    ThisNode,
    /// A Node of this name that was there before, or this one in the other form of signing.
    FormerNode,
    Other,
}

fn signer(pv: &PersistentVolume, node: &NodeFacts, use_node_name_only: bool) -> Signer {
    let Some(signature) = annotation(pv, PROVISIONED_BY) else { return Signer::Other };
    let (by_name, by_uid) = (provisioner_name(node, true), provisioner_name(node, false));
    let uid = signature.strip_prefix(&by_name).and_then(|rest| rest.strip_prefix('-'));
    // With useNodeNameOnly, PVs from before that setting: signed with some UID of a
    // node of this name, and carrying its host name as a label.
    let is_labelled = || label(pv, HOSTNAME_LABEL).is_some_and(|name| *name == node.name);
    if signature == by_uid || use_node_name_only && (signature == by_name || uid.is_some() && is_labelled()) {
        return Signer::ThisNode;
    }
    // The rest may be that of a longer node name: `a-b` begins like `a`.
    if signature == by_name || uid.is_some_and(is_uid) { Signer::FormerNode } else { Signer::Other }
}

/// Whether it has the form of a UID of the API server: 8-4-4-4-12 hexadecimal digits.
fn is_uid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn owned(pv: &PersistentVolume, local: &LocalVolumeSource, node: &NodeFacts) -> Option<OwnedPv> {
    let (metadata, spec) = (&pv.metadata, pv.spec.as_ref()?);
    let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
    let identity = annotation(pv, IDENTITY).map(|text| serde_json::from_str(text).ok().map(Arc::new));
    let owners = metadata.owner_references.iter().flatten();
    Some(OwnedPv {
        name: metadata.name.clone()?,
        class: spec.storage_class_name.clone().unwrap_or_default(),
        path: local.path.clone(),
        former: false,
        // The API server's default for PVs is to keep the data.
        reclaim_policy: ReclaimPolicy::parse(spec.persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain")),
        mount_options: spec.mount_options.clone().unwrap_or_default(),
        labels: Arc::new(Labels::of(pv)),
        owner: owners
            .filter(|owner| owner.kind == "Node" && owner.name == node.name)
            .map(|owner| owner.uid.as_str().into())
            .next(),
        labelled: label(pv, NODE_LABEL).is_some_and(|value| *value == node_label_value(&node.name)),
        uid: metadata.uid.clone()?,
        resource_version: metadata.resource_version.clone()?,
        phase: match pv.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some("Available") => Phase::Available,
            Some("Bound") => Phase::Bound,
            Some("Released") => Phase::Released,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        },
        since: pv
            .status
            .as_ref()
            .and_then(|status| status.last_phase_transition_time.as_ref())
            .map(|time| time.0.as_second()),
        claim: claim(pv).map(Box::new),
        capacity: spec.capacity.as_ref().and_then(|capacity| Capacity::parse(&capacity.get("storage")?.0)),
        garbled: identity == Some(None),
        identity: identity.flatten(),
        entry: annotation(pv, LEDGER_ENTRY).and_then(|text| u128::from_str_radix(text, 16).ok()),
        word: annotation(pv, RECLAIM).map(Word::parse),
        hold: is_held(metadata.annotations.as_ref()),
        accepted: annotation(pv, ACCEPT_IDENTITY).map(Into::into),
        reclaiming: annotation(pv, RECLAIMING).map(Into::into),
        quarantined: annotation(pv, QUARANTINED).is_some(),
        terminating: metadata.deletion_timestamp.is_some(),
        fenced: finalizers.iter().any(|finalizer| finalizer == WIPE_FINALIZER),
        free_of_finalizers: finalizers.is_empty(),
    })
}

/// Whether the PV's node affinity admits this node by its host name label.
fn names_this_node(pv: &PersistentVolume, node: &NodeFacts) -> bool {
    let terms = pv
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref())
        .and_then(|affinity| affinity.required.as_ref())
        .map(|required| required.node_selector_terms.as_slice())
        .unwrap_or_default();
    terms.iter().any(|term| {
        term.match_expressions.iter().flatten().any(|requirement| {
            requirement.key == HOSTNAME_LABEL
                && requirement.operator == "In"
                && requirement.values.iter().flatten().any(|value| *value == node.hostname)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::owned_pv;

    #[test]
    fn what_an_admin_says_anew_is_told_from_what_was_said_or_was_done() {
        let silent = owned_pv("a", "c");
        let with_word = |word| OwnedPv { word: Some(word), ..silent.clone() };
        let (wipe, keep) = (with_word(Word::Wipe), with_word(Word::Keep));
        let accepting = OwnedPv { accepted: Some("0123".into()), ..silent.clone() };
        let held = OwnedPv { hold: true, ..silent.clone() };
        for (now, before, says_more) in [
            (&wipe, &silent, true),
            (&keep, &wipe, true),
            (&wipe, &wipe, false),
            (&silent, &wipe, false),
            (&accepting, &silent, true),
            (&silent, &accepting, false),
            (&silent, &held, true),
            (&held, &silent, false),
            (&silent, &silent, false),
        ] {
            assert_eq!(now.says_more_than(before), says_more, "{now:?} after {before:?}");
        }
    }
}
