//! The start-up taint: a Node is registered with it, so that no pod comes before its local
//! volumes are offered, and the agent takes it off. Whether it may be, and by which patch.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::Config;
use crate::plan::EntryStatus;
use crate::pv::{OwnedPv, Phase};
use crate::verdict::Reason;
use crate::volume::NodeFacts;

/// What is to become of the taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taint {
    /// It is not on this Node, or none of our business.
    Absent,
    /// It stays until every volume that can be offered is.
    Publishing,
    /// It stays: claims have the volumes at these paths, and they are not there.
    Held(Vec<String>),
    /// It can go.
    Removable(Removal),
}

/// The removal of all taints of one key from a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    node: String,
    uid: String,
    key: String,
    /// Their places among the Node's taints, the last first.
    places: Vec<usize>,
}

impl Taint {
    /// Judges by the verdicts of the last plan. A volume that can't be offered holds nothing
    /// up; and unless the config says so, nor does one that is missing.
    #[must_use]
    pub fn judge(
        config: &Config,
        node: &NodeFacts,
        entries: &[EntryStatus],
        owned: &BTreeMap<String, OwnedPv>,
    ) -> Self {
        let Some(removal) = config.start_up_taint.as_ref().and_then(|key| Removal::of(node, key)) else {
            return Self::Absent;
        };
        if entries.iter().any(|entry| entry.pv.is_none() && entry.verdict.reason == Reason::Pending) {
            return Self::Publishing;
        }
        let missing: Vec<String> = entries
            .iter()
            .filter(|entry| config.hold_taint_for_bound_volumes && is_absent(entry.verdict.reason))
            .filter(|entry| {
                let pv = entry.pv.as_ref().and_then(|pv| owned.get(pv));
                pv.is_some_and(|pv| pv.phase == Phase::Bound)
            })
            .map(|entry| entry.path.clone())
            .collect();
        if missing.is_empty() { Self::Removable(removal) } else { Self::Held(missing) }
    }

    /// How many volumes of claims it waits for.
    #[must_use]
    pub fn waits_for(&self) -> usize {
        if let Self::Held(missing) = self { missing.len() } else { 0 }
    }
}

/// Whether the volume of a PV is not certain to be there: a pod would get an empty
/// directory in its place, or another disk.
fn is_absent(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Vanished
            | Reason::NotAMountPoint
            | Reason::ModeMismatch
            | Reason::ZeroCapacity
            | Reason::Unsupported
            | Reason::Unresponsive
            | Reason::DirectoryUnreadable
            | Reason::IdentityChanged
    )
}

impl Removal {
    fn of(node: &NodeFacts, key: &str) -> Option<Self> {
        let places: Vec<usize> = node
            .taints
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, taint)| taint.as_ref() == key)
            .map(|(place, _)| place)
            .collect();
        let there = !places.is_empty();
        there.then(|| Self { node: node.name.clone(), uid: node.uid.clone(), key: key.to_owned(), places })
    }

    /// Name of the Node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The taint's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A JSON patch. It fails as a whole when another taint has come to one of the places
    /// meanwhile, or the Node is another one.
    #[must_use]
    pub fn patch(&self) -> Value {
        let mut steps = vec![json!({ "op": "test", "path": "/metadata/uid", "value": self.uid })];
        for place in &self.places {
            let path = format!("/spec/taints/{place}");
            steps.push(json!({ "op": "test", "path": format!("{path}/key"), "value": self.key }));
            steps.push(json!({ "op": "remove", "path": path }));
        }
        Value::Array(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use crate::verdict::Verdict;

    const KEY: &str = "agent-not-ready";

    fn entry(pv: Option<&OwnedPv>, reason: Reason) -> EntryStatus {
        EntryStatus {
            class: "c".to_owned(),
            entry: "a".to_owned(),
            path: "/h/c/a".to_owned(),
            pv: pv.map(|pv| pv.name.clone()),
            verdict: Verdict::new(reason, ""),
        }
    }

    fn with_key() -> Config {
        let mut config = testing::config();
        config.start_up_taint = Some(KEY.to_owned());
        config
    }

    fn judge(hold: bool, entries: &[EntryStatus], phase: Phase) -> Taint {
        let owned = OwnedPv { phase, ..testing::owned_pv("a", "c") };
        let mut config = with_key();
        config.hold_taint_for_bound_volumes = hold;
        let node = NodeFacts { taints: vec!["other".into(), KEY.into()], ..testing::node() };
        Taint::judge(&config, &node, entries, &BTreeMap::from([(owned.name.clone(), owned)]))
    }

    #[test]
    fn all_taints_of_the_key_go_from_the_last_to_the_first() {
        let taints = [KEY, "other", KEY].map(Box::from).to_vec();
        let removal = Removal::of(&NodeFacts { taints, ..testing::node() }, KEY).expect("it is there");
        let test = |place: &str| json!({ "op": "test", "path": format!("/spec/taints/{place}/key"), "value": KEY });
        let remove = |place: &str| json!({ "op": "remove", "path": format!("/spec/taints/{place}") });
        let same_node = json!({ "op": "test", "path": "/metadata/uid", "value": "node-uid" });
        assert_eq!(removal.patch(), json!([same_node, test("2"), remove("2"), test("0"), remove("0")]));
    }

    #[test]
    fn what_can_be_offered_is_waited_for_and_what_can_not_is_not() {
        let owned = testing::owned_pv("a", "c");
        for (entry, removable) in [
            (entry(None, Reason::Pending), false),
            (entry(Some(&owned), Reason::Pending), true),
            (entry(None, Reason::Refused), true),
            (entry(None, Reason::Unresponsive), true),
            (entry(Some(&owned), Reason::Vanished), true),
        ] {
            let taint = judge(false, std::slice::from_ref(&entry), Phase::Bound);
            assert_eq!(matches!(taint, Taint::Removable(_)), removable, "{entry:?}: {taint:?}");
        }
    }

    #[test]
    fn the_volumes_of_claims_are_waited_for_if_the_config_says_so() {
        let owned = testing::owned_pv("a", "c");
        for (reason, phase, held) in [
            (Reason::NotAMountPoint, Phase::Bound, true),
            (Reason::IdentityChanged, Phase::Bound, true),
            (Reason::Unresponsive, Phase::Bound, true),
            (Reason::Vanished, Phase::Available, false),
            (Reason::Published, Phase::Bound, false),
            (Reason::Shrunk, Phase::Bound, false),
        ] {
            let taint = judge(true, &[entry(Some(&owned), reason)], phase);
            assert_eq!(taint.waits_for() == 1, held, "{reason:?}: {taint:?}");
        }
    }

    #[test]
    fn without_its_key_or_its_taint_nothing_is_done() {
        let node = NodeFacts { taints: vec![KEY.into()], ..testing::node() };
        assert_eq!(Taint::judge(&testing::config(), &node, &[], &BTreeMap::new()), Taint::Absent);
        assert_eq!(Taint::judge(&with_key(), &testing::node(), &[], &BTreeMap::new()), Taint::Absent);
    }
}
