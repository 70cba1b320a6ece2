//! What a PV that exists lacks: our label and signature, what is known of its volume, and
//! the labels and mount options that config, Node and StorageClass give by now. All of it
//! is put on the PV by one call. Its reclaim policy and affinity never change.

use std::sync::Arc;

use super::{Action, Adoption, Plan, World, record, waiting};
use crate::identity::{Comparison, Identity};
use crate::pv::{OwnedPv, Seen, provisioner_name};
use crate::verdict::{Reason, Verdict};

/// A PV that a former Node of this name signed, whose volume may be the one that is there
/// `now`. It is ours from the moment on that it is signed anew, which takes certainty.
pub fn inherit(world: &World<'_>, owned: &OwnedPv, now: &Arc<Identity>, plan: &mut Plan) -> Verdict {
    if owned.terminating && !owned.fenced {
        return Verdict::new(Reason::Pending, "its PV is being removed");
    }
    let recorded = record::identity(world, owned);
    let doubt = match recorded.map(|recorded| recorded.compare(now)) {
        Some(Comparison::Same) if recorded.is_some_and(|recorded| recorded.is_surely(now)) => None,
        Some(Comparison::Same) => Some("no id of a disk says that it is not another machine's in its place".to_owned()),
        Some(Comparison::Different(key)) => Some(key),
        Some(Comparison::Unknown(why)) => Some(why.to_owned()),
        None => Some("nothing says which volume it was".to_owned()),
    };
    let digest = now.digest();
    let is_accepted = owned.accepted.as_deref() == Some(digest.as_str());
    if let Some(doubt) = doubt.filter(|_| !is_accepted) {
        let detail = format!(
            "PV {} is of a former Node of this name: {doubt}; the digest of what is there now is {digest}",
            owned.name
        );
        return Verdict::new(Reason::IdentityChanged, detail);
    }
    if !world.may_patch {
        let detail = "PV is of a former Node of this name; to be taken over, it has to be signed anew, which takes the \
                      right to patch it";
        return Verdict::new(Reason::Refused, detail);
    }
    if let Some(verdict) = waiting(world, &owned.name, plan) {
        return verdict;
    }
    plan.begin(world, Action::Adopt(Box::new(adoption(world, owned, Some(now)))));
    Verdict::new(Reason::Pending, "its PV is taken over from a former Node of this name")
}

/// All that the PV lacks, and the identity of its volume when that is to be recorded.
pub fn adoption(world: &World<'_>, owned: &OwnedPv, identity: Option<&Arc<Identity>>) -> Adoption {
    let node = world.node;
    let former_owner = owned.owner.clone().filter(|owner| **owner != *node.uid);
    let owner = former_owner.as_ref().filter(|_| world.config.set_pv_owner_ref);
    Adoption {
        pv: Seen::of(owned),
        identity: identity.cloned(),
        entry: identity.map(|identity| record::id_of(world, owned, identity).to_string().into()),
        labels: owned.labels.changes(world.config, node),
        mount_options: mount_options(world, owned),
        signature: owned.former.then(|| provisioner_name(node, world.config.use_node_name_only)),
        owner: owner.map(|_| (node.name.clone(), node.uid.clone())),
        former_owner,
    }
}

/// What has changed around a PV of ours that has all else.
pub fn renewal(world: &World<'_>, owned: &OwnedPv) -> Option<Adoption> {
    let is_orphan = || owned.owner.as_ref().is_some_and(|owner| **owner != *world.node.uid);
    let differs = owned.labels.changes(world.config, world.node).is_some()
        || mount_options(world, owned).is_some()
        || is_orphan();
    differs.then(|| adoption(world, owned, None))
}

/// Those of the StorageClass, if the PV's differ. Whoever has claimed it goes on with
/// those that it was claimed with.
fn mount_options(world: &World<'_>, owned: &OwnedPv) -> Option<Vec<String>> {
    let class = world.classes.get(&owned.class).filter(|_| owned.is_unclaimed())?;
    (class.mount_options != owned.mount_options).then(|| class.mount_options.clone())
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
