//! What is known of each volume's content: whether somebody may have written to it since
//! it was clean. It is kept apart from the PVs, so that a volume whose PV is gone is not
//! taken for a new one. Pure; `state_dir` makes it durable, one file an entry ([`file`]).

pub mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::identity::{Comparison, Identity};
use crate::method::WipeRules;
use crate::pv::{Claim, OwnedPv};
use crate::volume::fnv1a_64;

/// How many receipts of past wipes an entry keeps.
const RECEIPTS: usize = 5;

/// The name of an entry: random, so that a volume's mark does not tell its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId(pub u128);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for EntryId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = hex.then(|| u128::from_str_radix(&text, 16).ok()).flatten();
        id.map(Self).ok_or_else(|| format!("{text:?} is no 32 hexadecimal digits"))
    }
}

/// How far a wipe is: everything before it is durable on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// The pass it is at, from 0 on.
    pub pass: u32,
    /// The byte of the device where the pass goes on.
    pub offset: u64,
}

impl Cursor {
    /// Where every wipe begins.
    pub const START: Self = Self { pass: 0, offset: 0 };
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// The class that offered it.
    pub class: Box<str>,
    /// The path that its PV carried.
    pub path: Box<str>,
    /// By what it is known again.
    pub identity: Arc<Identity>,
    /// Owner, mode and the like of its root directory when it was first offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Box<str>>,
    /// What is known of its content.
    pub state: State,
    /// When that became known.
    pub as_of: Timestamp,
    /// The last wipes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<Receipt>,
}

/// What is known of a volume's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "is")]
pub enum State {
    /// Nothing is known of its content, and nobody has used it since it was found.
    AsFound,
    /// Wiped and verified, or found empty.
    Clean,
    /// A PV offers it, or is about to.
    Offered {
        /// Name of the PV.
        pv: Box<str>,
        /// Its UID, once it is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<Box<str>>,
        /// When it became Available, in seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<i64>,
    },
    /// A claim has had it: it may hold that tenant's data.
    Used {
        /// Name of the PV.
        pv: Box<str>,
        /// Its UID.
        uid: Box<str>,
        /// The claim, when it was seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<Claim>,
        /// When the PV's phase became what it was then, in seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<i64>,
    },
    /// Its wipe has begun.
    Wiping {
        /// Name of the PV; empty when it is wiped by hand (`mooring wipe`).
        pv: Box<str>,
        /// Its UID; empty when there is no PV yet, or none at all.
        uid: Box<str>,
        /// The claim whose data is wiped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<Claim>,
        /// How it is wiped.
        method: Box<str>,
        /// How far the wipe is; none before its first checkpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    /// It may hold data, and is kept from being claimed.
    Quarantined {
        /// Why.
        reason: Box<str>,
        /// Name of the PV that the claim was bound to.
        pv: Box<str>,
        /// The claim that had it, when that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        claim: Option<Claim>,
    },
    /// An admin does not want it offered any more.
    Retired {
        /// Why.
        reason: Box<str>,
    },
}

impl State {
    /// The least clean counts when two entries are about one volume.
    fn distrust(&self) -> u8 {
        match self {
            Self::AsFound | Self::Clean => 0,
            Self::Offered { .. } => 1,
            Self::Used { .. } => 2,
            Self::Wiping { .. } => 3,
            Self::Quarantined { .. } => 4,
            Self::Retired { .. } => 5,
        }
    }

    /// Whether `mooring wipe` has begun it, and not an agent: no PV is behind it.
    #[must_use]
    pub fn is_wipe_by_hand(&self) -> bool {
        matches!(self, Self::Wiping { pv, .. } if pv.is_empty())
    }

    /// Name of the PV that it is about.
    #[must_use]
    pub fn pv(&self) -> Option<&str> {
        match self {
            Self::Offered { pv, .. }
            | Self::Used { pv, .. }
            | Self::Wiping { pv, .. }
            | Self::Quarantined { pv, .. } => Some(pv),
            Self::AsFound | Self::Clean | Self::Retired { .. } => None,
        }
    }

    /// UID of the PV that it is about.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Offered { uid, .. } => uid.as_deref(),
            Self::Used { uid, .. } | Self::Wiping { uid, .. } => Some(uid),
            Self::AsFound | Self::Clean | Self::Quarantined { .. } | Self::Retired { .. } => None,
        }
    }
}

/// The receipt of a wipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// When it ended.
    pub at: Timestamp,
    /// How it was wiped.
    pub method: Box<str>,
    /// Bytes of a device that were written, or entries of a directory that were removed.
    pub amount: u64,
    /// How long it took, since the last restart.
    pub seconds: f64,
    /// How it was verified.
    pub verification: Box<str>,
    /// Digest of the volume's identity.
    pub identity: Box<str>,
    /// The claim whose data it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Name of the PV.
    pub pv: Box<str>,
    /// UID of the PV.
    pub uid: Box<str>,
}

impl Entry {
    /// An entry for a volume that has not been seen before.
    #[must_use]
    pub fn new(id: EntryId, class: &str, path: &str, identity: Arc<Identity>, as_of: Timestamp) -> Self {
        let (class, path) = (class.into(), path.into());
        Self { id, class, path, identity, root: None, state: State::AsFound, as_of, receipts: Vec::new() }
    }

    /// What the state was before the volume was offered: nobody has used it since.
    #[must_use]
    pub fn unused(&self) -> State {
        if self.receipts.is_empty() { State::AsFound } else { State::Clean }
    }

    /// Adds the receipt of a wipe, and forgets the oldest.
    pub fn sign(&mut self, receipt: Receipt) {
        if self.receipts.len() >= RECEIPTS {
            self.receipts.remove(0);
        }
        self.receipts.push(receipt);
    }

    /// Where a wipe by the same method was left, if one was.
    #[must_use]
    pub fn resume_point(&self, rules: &WipeRules) -> Option<Cursor> {
        match &self.state {
            State::Wiping { method, cursor, .. } if **method == *rules.method.to_string() => *cursor,
            _ => None,
        }
    }
}

/// All entries.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Boxed: the nodes of the map are half empty.
    entries: BTreeMap<EntryId, Box<Entry>>,
    /// By hashes: of the keys of their identities, and of the UIDs of their PVs.
    by_key: BTreeSet<(u64, EntryId)>,
    by_uid: BTreeSet<(u64, EntryId)>,
    lost: usize,
}

/// What the ledger knows of a volume.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found<'a> {
    /// This is its entry.
    One(&'a Entry),
    /// It may be the volume of this entry: why it is not certain.
    Unsure(&'a Entry, &'static str),
    /// Nothing.
    None,
}

impl Ledger {
    /// The entries, and how many there should be besides that can't be read.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = Entry>, lost: usize) -> Self {
        let mut ledger = Self { lost, ..Self::default() };
        entries.into_iter().for_each(|entry| ledger.insert(entry));
        ledger
    }

    /// Takes over an entry, in the place of the one of that name.
    pub fn insert(&mut self, entry: Entry) {
        if let Some(before) = self.entries.remove(&entry.id) {
            for key in keys(&before.identity, &before.path) {
                self.by_key.remove(&(key, entry.id));
            }
            if let Some(uid) = before.state.uid() {
                self.by_uid.remove(&(hash(uid), entry.id));
            }
        }
        self.by_key.extend(keys(&entry.identity, &entry.path).map(|key| (key, entry.id)));
        self.by_uid.extend(entry.state.uid().map(|uid| (hash(uid), entry.id)));
        self.entries.insert(entry.id, Box::new(entry));
    }

    /// What is known of the volume at that path. When several entries are about it, the
    /// least clean counts. One for the same path of which it can't be told whether it is
    /// about this volume may be.
    #[must_use]
    pub fn find(&self, identity: &Identity, path: &str) -> Found<'_> {
        let mut found = Found::None;
        for entry in keys(identity, path).flat_map(|key| self.listed(&self.by_key, key)) {
            let candidate = match entry.identity.compare(identity) {
                Comparison::Same => Found::One(entry),
                Comparison::Unknown(why) => Found::Unsure(entry, why),
                Comparison::Different(_) => continue,
            };
            let better = match (&found, &candidate) {
                (Found::None, _) | (Found::Unsure(..), Found::One(_)) => true,
                (Found::One(before), Found::One(_)) | (Found::Unsure(before, _), Found::Unsure(..)) => {
                    entry.state.distrust() > before.state.distrust()
                }
                _ => false,
            };
            if better {
                found = candidate;
            }
        }
        found
    }

    /// The entry of the volume that the PV with this UID offers or offered.
    #[must_use]
    pub fn of_pv(&self, uid: &str) -> Option<&Entry> {
        self.listed(&self.by_uid, hash(uid)).find(|entry| entry.state.uid() == Some(uid))
    }

    fn listed<'a>(&'a self, index: &'a BTreeSet<(u64, EntryId)>, key: u64) -> impl Iterator<Item = &'a Entry> {
        let ids = index.range((key, EntryId(0))..=(key, EntryId(u128::MAX))).map(|(_, id)| id);
        ids.filter_map(|id| self.get(*id))
    }

    /// Lets the PV have the copy of its entry's identity, if its own is the very same: there
    /// may be thousands.
    pub fn lend(&self, owned: &mut OwnedPv) {
        let entry = owned.entry.and_then(|id| self.get(EntryId(id)));
        if let Some(entry) = entry.filter(|entry| owned.identity.as_ref() == Some(&entry.identity)) {
            owned.identity = Some(Arc::clone(&entry.identity));
        }
    }

    /// Keeps one copy of an identity that is the very same as that of an entry.
    pub fn share(&mut self, identity: &Arc<Identity>) {
        let same = identity.keys().into_iter().flat_map(|key| self.listed(&self.by_key, key));
        let Some(id) = same.filter(|entry| entry.identity == *identity).map(|entry| entry.id).next() else { return };
        self.entries.get_mut(&id).expect("it was found just now").identity = Arc::clone(identity);
    }

    /// The entry of that name.
    #[must_use]
    pub fn get(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(&id).map(|entry| &**entry)
    }

    /// All entries, in the order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|entry| &**entry)
    }

    /// How many entries can't be read. While there are any, a volume without an entry may
    /// be one of them.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.lost
    }
}

/// By what an entry is found: two that are about one volume, or may be, share a key.
fn keys(identity: &Identity, path: &str) -> impl Iterator<Item = u64> {
    let path = fnv1a_64(b"path".iter().copied().chain(path.bytes()));
    identity.keys().into_iter().chain([path])
}

fn hash(uid: &str) -> u64 {
    fnv1a_64(uid.bytes())
}

/// What is to become of a volume without a PV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has used it since it was clean or first seen: it may be offered.
    Free,
    /// It has no entry: the class's `dirty:` policy decides.
    NeverSeen,
    /// It may hold a tenant's data.
    Dirty {
        /// The claim that had it, and the name of the PV that it was bound to, when that is
        /// known.
        claim: Option<(Box<str>, Claim)>,
        /// How that is known.
        why: String,
    },
    /// Its wipe has begun and has not ended.
    HalfWiped,
    /// An admin does not want it offered.
    Retired,
}

/// Why a volume is kept from being claimed while a wipe by hand has not ended.
pub const WIPE_BY_HAND: &str = "its wipe by `mooring wipe` has begun and has not ended; run it again, and it goes on \
                                where it was";

/// The dirty gate: what the ledger says of a volume without a PV. `lost`: whether there
/// are entries that can't be read.
#[must_use]
pub fn standing(found: Found<'_>, lost: bool) -> Standing {
    let dirty = |claim: Option<(&Box<str>, &Claim)>, why: &str| Standing::Dirty {
        claim: claim.map(|(pv, claim)| (pv.clone(), claim.clone())),
        why: why.to_owned(),
    };
    let (entry, certain) = match found {
        Found::One(entry) => (entry, true),
        Found::Unsure(entry, _) => (entry, false),
        Found::None if lost => {
            return dirty(None, "the ledger has entries that can't be read, and it may be one of them");
        }
        Found::None => return Standing::NeverSeen,
    };
    match &entry.state {
        State::Clean if certain => Standing::Free,
        State::Clean | State::AsFound => Standing::NeverSeen,
        State::Offered { pv, .. } => {
            dirty(None, &format!("PV {pv} offered it, and was removed by somebody: it may have been used"))
        }
        State::Used { pv, claim: Some(claim), .. } => {
            dirty(Some((pv, claim)), &format!("claim {claim} had it, and its PV {pv} was removed before it was wiped"))
        }
        State::Used { pv, claim: None, .. } => {
            dirty(None, &format!("a claim had it, and its PV {pv} was removed before it was wiped"))
        }
        // Whoever began it may have stopped it for good reason.
        state @ State::Wiping { pv, claim, .. } if state.is_wipe_by_hand() => {
            dirty(claim.as_ref().map(|claim| (pv, claim)), WIPE_BY_HAND)
        }
        State::Wiping { .. } if certain => Standing::HalfWiped,
        State::Wiping { pv, claim, .. } => dirty(
            claim.as_ref().map(|claim| (pv, claim)),
            "a wipe was begun at this path, and it is not certain that it was of this volume",
        ),
        State::Quarantined { reason, pv, claim } => dirty(claim.as_ref().map(|claim| (pv, claim)), reason),
        State::Retired { .. } => Standing::Retired,
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
