//! Actions in words, for those who read what would be done.

use super::Action;
use crate::identity::Identity;
use crate::method::Verify;

/// The stable names of all actions, in the order of the documentation.
pub const NAMES: [&str; 11] = [
    "create",
    "quarantine",
    "adopt",
    "grow",
    "wipe",
    "withdraw",
    "keep",
    "retire",
    "free-if-blank",
    "drop-word",
    "look-again",
];

impl Action {
    /// Its stable name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(creation) if creation.volume.claim.is_some() => "quarantine",
            Self::Create(_) => "create",
            Self::Adopt(_) => "adopt",
            Self::LookAgain { .. } => "look-again",
            Self::Grow { .. } => "grow",
            Self::Withdraw { .. } => "withdraw",
            Self::Keep(_) => "keep",
            Self::DropWord(_) => "drop-word",
            Self::Retire { .. } => "retire",
            Self::FreeIfBlank { .. } => "free-if-blank",
            Self::Reclaim(_) => "wipe",
        }
    }

    /// What is done, as a part of a sentence.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Create(creation) => {
                let volume = &creation.volume;
                let (capacity, mode, policy) = (volume.capacity, volume.mode, volume.reclaim_policy.as_str());
                match volume.annotations.get(crate::pv::QUARANTINED) {
                    Some(why) => format!("make a PV that nobody can claim ({capacity}, {mode}, {policy}): {why}"),
                    None => format!("make a PV ({capacity}, {mode}, {policy})"),
                }
            }
            Self::Adopt(adoption) => match &adoption.identity {
                Some(identity) => {
                    format!("label the PV as this node's, and record the identity {} of its volume", identity.digest())
                }
                None => "label the PV as this node's".to_owned(),
            },
            Self::LookAgain { .. } => "read the PV again".to_owned(),
            Self::Grow { to, .. } => format!("raise the capacity of the PV to {to}"),
            Self::Withdraw { why, .. } => format!("remove the PV, which nobody has claimed: {why}"),
            Self::Keep(_) => "offer the volume again with the data on it, at an admin's word".to_owned(),
            Self::DropWord(_) => "take the annotation mooring.dev/reclaim off the PV, which is not Released".to_owned(),
            Self::Retire { .. } => "remove the PV and never offer the volume again, at an admin's word".to_owned(),
            Self::FreeIfBlank { .. } => "look whether the volume is empty, and if so offer it".to_owned(),
            Self::Reclaim(target) => {
                let place = format!("{}/{}", target.mount_dir, target.entry);
                match &*target.identity {
                    Identity::Mount(_) => format!("remove everything in {place}, then the PV"),
                    Identity::Device(_) => {
                        let (method, verify) = (&target.rules.method, target.rules.verify);
                        let checked = match verify {
                            _ if !method.ends_in_zeros() => String::new(),
                            Verify::None => ", read back both ends".to_owned(),
                            verify => format!(", read back ({})", verify.as_str()),
                        };
                        format!("wipe {place} ({method}){checked}, remove the PV")
                    }
                }
            }
        }
    }
}
