//! The leave for a wipe by hand (`mooring wipe`), without a PV and its fence: what the
//! ledger has against it, and what an admin can say to that. Pure; whoever uses the volume
//! is found out by the claim.

use std::sync::Arc;

use jiff::Timestamp;

use crate::identity::{Comparison, DeviceIdentity, Identity};
use crate::ledger::{Entry, EntryId, Found, Ledger, State};
use crate::pv::Claim;

/// What is to be wiped, and what was said about it on the command line.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path as it was given, absolute.
    pub path: String,
    /// What is there now.
    pub identity: Arc<Identity>,
    /// The digest that was typed so that this very volume is wiped in spite of the ledger.
    pub forced: Option<String>,
    /// The digest that the volume must have.
    pub expected: Option<String>,
}

/// Why a volume is not wiped by hand. All but the last can be overruled by its digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A PV offers it, or a claim has it, as far as the ledger knows.
    #[error(
        "the ledger says that {user}; release the claim and delete the PV (the agent then wipes it or lets you), or, if \
         that is past, type --force-identity {digest}"
    )]
    InUse {
        /// Who has it, as a sentence.
        user: String,
        /// Of what is there.
        digest: String,
    },
    /// Another volume is known at the path.
    #[error(
        "the ledger knows another volume at {path} ({key}); if the one that is there now is meant, type \
         --force-identity {digest}"
    )]
    Another {
        /// The path.
        path: String,
        /// What differs.
        key: String,
        /// Of what is there.
        digest: String,
    },
    /// It can't be told which volume it is.
    #[error("it is not certain which volume it is: {why}; if this one is meant, type --force-identity {digest}")]
    Unsure {
        /// Why not.
        why: String,
        /// Of what is there.
        digest: String,
    },
    /// Another digest was typed.
    #[error("the digest of what is there is {digest}, and not {typed}")]
    Digest {
        /// Of what is there.
        digest: String,
        /// What was typed.
        typed: String,
    },
}

/// Proof that the ledger has nothing against wiping a volume, or that an admin has typed
/// the digest of the very volume. Only [`ByHand::check`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct ByHand {
    entry: Option<Entry>,
    root: Option<Box<str>>,
    class: Box<str>,
    path: String,
    identity: Arc<Identity>,
}

impl ByHand {
    /// Asks the ledger.
    ///
    /// # Errors
    /// What it has against it.
    pub fn check(ledger: &Ledger, request: &Request) -> Result<Self, Refusal> {
        let Request { path, identity, forced, expected } = request;
        let digest = identity.digest();
        if let Some(typed) = [forced, expected].into_iter().flatten().find(|typed| **typed != digest) {
            return Err(Refusal::Digest { digest, typed: typed.clone() });
        }
        let found = ledger.find(identity, path);
        if let Some(refusal) = objection(ledger, found, request, digest).filter(|_| forced.is_none()) {
            return Err(refusal);
        }
        let (known, entry) = match found {
            Found::One(entry) => (Some(entry), Some(entry)),
            // Only its place is the same for certain: what it says of another volume must
            // not be lost.
            Found::Unsure(entry, _) => (Some(entry), None),
            Found::None => (None, None),
        };
        Ok(Self {
            entry: entry.cloned(),
            root: known.and_then(|entry| entry.root.clone()),
            class: known.map_or_else(Box::default, |entry| entry.class.clone()),
            path: path.clone(),
            identity: identity.clone(),
        })
    }

    /// The ledger's entry of the volume, if there is one.
    #[must_use]
    pub fn known(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    /// The entry as it is to be while the volume is wiped by that method; `new_id` is for a
    /// volume that has none. What a PV has offered stays used: the PV may still be there.
    #[must_use]
    pub fn begin(&self, new_id: EntryId, method: &str, now: Timestamp) -> Entry {
        let mut entry = self.entry.clone().unwrap_or_else(|| Entry {
            root: self.root.clone(),
            ..Entry::new(new_id, &self.class, &self.path, self.identity.clone(), now)
        });
        entry.identity = self.identity.clone();
        entry.as_of = now;
        entry.state = match entry.state {
            State::Used { .. } => return entry,
            State::Offered { pv, uid, .. } => {
                State::Used { pv, uid: uid.unwrap_or_default(), claim: None, since: None }
            }
            before => {
                let cursor = match &before {
                    State::Wiping { method: begun, cursor, .. } if **begun == *method => *cursor,
                    _ => None,
                };
                let claim = claim_of(&before).cloned();
                State::Wiping { pv: "".into(), uid: "".into(), claim, method: method.into(), cursor }
            }
        };
        entry
    }
}

/// The claim that is known to have had the volume.
#[must_use]
pub fn claim_of(state: &State) -> Option<&Claim> {
    match state {
        State::Used { claim, .. } | State::Wiping { claim, .. } | State::Quarantined { claim, .. } => claim.as_ref(),
        State::AsFound | State::Clean | State::Offered { .. } | State::Retired { .. } => None,
    }
}

/// What the ledger says against it.
fn objection(ledger: &Ledger, found: Found<'_>, request: &Request, digest: String) -> Option<Refusal> {
    let Request { path, identity, .. } = request;
    let overlapping = ledger.entries().filter(|entry| shares_disk(&entry.identity, identity));
    let candidates = match found {
        Found::One(entry) | Found::Unsure(entry, _) => Some(entry),
        Found::None => None,
    };
    if let Some(user) = candidates.into_iter().chain(overlapping).find_map(user) {
        return Some(Refusal::InUse { user, digest });
    }
    match found {
        Found::One(_) => None,
        Found::Unsure(_, why) => Some(Refusal::Unsure { why: why.to_owned(), digest }),
        Found::None if ledger.lost() > 0 => {
            let why = format!("{} entries of the ledger can't be read, and it may be one of them", ledger.lost());
            Some(Refusal::Unsure { why, digest })
        }
        Found::None => ledger.entries().filter(|entry| *entry.path == **path).find_map(|entry| {
            match entry.identity.compare(identity) {
                Comparison::Different(key) => {
                    Some(Refusal::Another { path: path.clone(), key, digest: digest.clone() })
                }
                _ => None,
            }
        }),
    }
}

/// Who has the entry's volume, or may be given it any moment.
fn user(entry: &Entry) -> Option<String> {
    let path = &entry.path;
    match &entry.state {
        State::Offered { pv, .. } => Some(format!("PV {pv} offers {path}")),
        State::Used { pv, claim: Some(claim), .. } => Some(format!("claim {claim} has {path} by PV {pv}")),
        State::Used { pv, claim: None, .. } => Some(format!("a claim has {path} by PV {pv}")),
        State::AsFound | State::Clean | State::Wiping { .. } | State::Quarantined { .. } | State::Retired { .. } => {
            None
        }
    }
}

/// Whether two volumes lie on one disk, and not in parts of it that are apart: a disk and
/// its partition, a device and the filesystem on it. Two filesystems do not: they are
/// emptied, not overwritten.
fn shares_disk(one: &Identity, other: &Identity) -> bool {
    let (Some((one_boot, one_disk)), Some((other_boot, other_disk))) = (disk(one), disk(other)) else { return false };
    if !one.is_device() && !other.is_device() {
        return false;
    }
    let same = |one: &Option<Box<str>>, other: &Option<Box<str>>| one.is_some() && one == other;
    let attached = one_boot.is_some() && one_boot == other_boot && one_disk.sequence.is_some();
    let same_disk = same(&one_disk.wwid, &other_disk.wwid)
        || same(&one_disk.serial, &other_disk.serial)
        || same(&one_disk.uuid, &other_disk.uuid)
        || (attached && one_disk.sequence == other_disk.sequence);
    let start = |disk: &DeviceIdentity| disk.partition.as_ref().map(|partition| partition.start);
    let apart = start(one_disk).zip(start(other_disk)).is_some_and(|(one, other)| one != other);
    same_disk && !apart
}

type Boot = Option<crate::identity::Uuid>;

/// The device that a volume is or lies on, with the boot in which its sequence number holds.
fn disk(identity: &Identity) -> Option<(Boot, &DeviceIdentity)> {
    match identity {
        Identity::Device(device) => Some((device.boot, device)),
        Identity::Mount(mount) => mount.disk.as_deref().map(|disk| (mount.boot, disk)),
    }
}

#[cfg(test)]
#[path = "by_hand_tests.rs"]
mod tests;
