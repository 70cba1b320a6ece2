//! The labels that config and Node give a PV, and what has to change about those of a PV
//! that exists. Which ones they gave is noted on it ([`LABELS`]): what others have put
//! there stays.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolume;

use super::{LABELS, NODE_LABEL, annotation, node_label_value};
use crate::config::Config;
use crate::volume::NodeFacts;

/// The labels of a PV that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    all: BTreeMap<String, String>,
    given: BTreeSet<String>,
}

/// What has to change about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelChanges {
    /// Labels to be set, or with `None` to be removed.
    pub set: BTreeMap<String, Option<String>>,
    /// The keys of all labels that are given from now on.
    pub given: BTreeSet<String>,
}

/// The labels that config and Node give; one in the config wins over the Node's.
pub fn given<'a>(config: &'a Config, node: &'a NodeFacts) -> impl Iterator<Item = (&'a String, &'a String)> {
    let of_node = config.node_labels.iter().filter(|key| !config.labels.contains_key(*key));
    let of_node = of_node.filter_map(|key| node.labels.get(key).map(|value| (key, value)));
    // Our own is not theirs to give.
    config.labels.iter().chain(of_node).filter(|(key, _)| *key != NODE_LABEL)
}

/// The text of [`LABELS`]; `None` when there is nothing to note.
#[must_use]
pub fn note(given: &BTreeSet<String>) -> Option<String> {
    let keys: Vec<&str> = given.iter().map(String::as_str).collect();
    (!keys.is_empty()).then(|| keys.join(","))
}

impl Labels {
    /// Those of a PV.
    #[must_use]
    pub fn of(pv: &PersistentVolume) -> Self {
        let noted = annotation(pv, LABELS).unwrap_or_default();
        Self {
            all: pv.metadata.labels.clone().unwrap_or_default(),
            given: noted.split(',').filter(|key| !key.is_empty()).map(ToOwned::to_owned).collect(),
        }
    }

    /// What has to change so that they are as config and Node say; `None` when they are.
    #[must_use]
    pub fn changes(&self, config: &Config, node: &NodeFacts) -> Option<LabelChanges> {
        let own = node_label_value(&node.name);
        let mut wanted = given(config, node);
        let is_set = wanted.all(|(key, value)| self.all.get(key) == Some(value) && self.given.contains(key));
        let is_given = |key: &String| given(config, node).any(|(wanted, _)| wanted == key);
        if is_set && self.given.iter().all(is_given) && self.all.get(NODE_LABEL) == Some(&own) {
            return None;
        }
        let given: BTreeMap<_, _> = given(config, node).collect();
        let obsolete = self.given.iter().filter(|key| !given.contains_key(key) && self.all.contains_key(*key));
        let mut set: BTreeMap<_, _> = obsolete.map(|key| (key.clone(), None)).collect();
        let wanted = given.iter().map(|(key, value)| ((*key).clone(), (*value).clone()));
        let wanted = wanted.chain([(NODE_LABEL.to_owned(), own)]);
        set.extend(
            wanted.filter(|(key, value)| self.all.get(key) != Some(value)).map(|(key, value)| (key, Some(value))),
        );
        Some(LabelChanges { set, given: given.into_keys().cloned().collect() })
    }

    /// What they are after the changes.
    #[must_use]
    pub fn with(&self, changes: &LabelChanges) -> Self {
        let mut all = self.all.clone();
        for (key, value) in &changes.set {
            match value {
                Some(value) => _ = all.insert(key.clone(), value.clone()),
                None => _ = all.remove(key),
            }
        }
        Self { all, given: changes.given.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn labels(all: &[(&str, &str)], given: &[&str]) -> Labels {
        Labels { all: map(all), given: given.iter().map(|key| (*key).to_owned()).collect() }
    }

    #[test]
    fn labels_follow_config_and_node_and_nobody_elses_are_removed() {
        let mut config = testing::config();
        let mut node = testing::node();
        config.labels = map(&[("env", "prod"), ("both", "config"), (NODE_LABEL, "another")]);
        config.node_labels = ["zone", "both", "absent", "zone", NODE_LABEL].map(ToOwned::to_owned).into();
        node.labels = map(&[("zone", "a"), ("both", "node"), ("other", "x"), (NODE_LABEL, "another")]);
        let theirs = labels(&[("mine", "1"), ("env", "test"), ("old", "x")], &["old", "gone"]);
        let changes = theirs.changes(&config, &node).expect("much has changed");
        let value = |key: &str| changes.set.get(key).map(|value| value.as_deref());
        assert_eq!(
            (value("env"), value("zone"), value("both")),
            (Some(Some("prod")), Some(Some("a")), Some(Some("config")))
        );
        assert_eq!((value("old"), value("mine"), value("gone"), value("absent")), (Some(None), None, None, None));
        assert_eq!(value(NODE_LABEL), Some(Some("n1")));
        assert_eq!(note(&changes.given).as_deref(), Some("both,env,zone"));
        let after = theirs.with(&changes);
        assert_eq!(after.changes(&config, &node), None);
        assert_eq!(after.all["mine"], "1");
        // What stays as it is only has to be noted.
        let unnoted = Labels { given: BTreeSet::new(), ..after.clone() };
        let changes = unnoted.changes(&config, &node).expect("nothing is noted");
        assert_eq!((changes.set.len(), unnoted.with(&changes)), (0, after.clone()));
        // Neither has any left to give.
        (config.labels, node.labels) = (BTreeMap::new(), BTreeMap::new());
        let last = after.changes(&config, &node).expect("three are obsolete");
        assert_eq!(after.with(&last), labels(&[("mine", "1"), (NODE_LABEL, "n1")], &[]));
        assert_eq!(note(&last.given), None);
    }
}
