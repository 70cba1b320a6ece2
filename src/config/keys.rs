//! The keys of the ConfigMap and of what is in them, and the form of each value: one table
//! by which texts are read, and with which schema and documentation are compared.

/// The form of a value.
#[derive(Debug)]
pub enum Shape {
    /// `true`, `yes`, `on`, or the opposite.
    Bool,
    /// A whole number.
    Int,
    /// Text; numbers and truth values are taken for it.
    Text,
    /// A list.
    List(&'static Shape),
    /// A map with names of the admin's choice.
    Map(&'static Shape),
    /// A map with these keys.
    Object(&'static [Key]),
}

/// A key, and the form of its value.
#[derive(Debug)]
pub struct Key {
    /// Its spelling.
    pub name: &'static str,
    /// What it has.
    pub shape: Shape,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape }
}

/// The class map's key: the only one that has to be there.
pub const CLASSES: &str = "storageClassMap";

/// The keys of the ConfigMap. The last three are ours, the others the Go provisioner's.
pub const KEYS: &[Key] = &[
    key(CLASSES, Shape::Map(&Shape::Object(CLASS))),
    key("nodeLabelsForPV", Shape::List(&Shape::Text)),
    key("labelsForPV", Shape::Map(&Shape::Text)),
    key("useAlphaAPI", Shape::Bool),
    key("useJobForCleaning", Shape::Bool),
    key("jobTolerations", Shape::List(&Shape::Object(TOLERATION))),
    key("minResyncPeriod", Shape::Text),
    key("useNodeNameOnly", Shape::Bool),
    key("setPVOwnerRef", Shape::Bool),
    key("removeNodeNotReadyTaint", Shape::Bool),
    key("provisionerNotReadyNodeTaintKey", Shape::Text),
    key("maxParallelWipes", Shape::Int),
    key("withdrawAfter", Shape::Text),
    key("holdTaintForBoundVolumes", Shape::Bool),
];

/// The keys of a class. The last three are ours.
const CLASS: &[Key] = &[
    key("hostDir", Shape::Text),
    key("mountDir", Shape::Text),
    key("volumeMode", Shape::Text),
    key("accessMode", Shape::Text),
    key("fsType", Shape::Text),
    key("namePattern", Shape::Text),
    key("blockCleanerCommand", Shape::List(&Shape::Text)),
    key("selector", Shape::List(&Shape::Object(TERM))),
    key("wipe", Shape::Object(WIPE)),
    key("wipeAfter", Shape::Text),
    key("dirty", Shape::Text),
];

const WIPE: &[Key] =
    &[key("method", Shape::Text), key("passes", Shape::Int), key("verify", Shape::Text), key("bandwidth", Shape::Text)];

/// Kubernetes' `NodeSelectorTerm`.
const TERM: &[Key] = &[
    key("matchExpressions", Shape::List(&Shape::Object(REQUIREMENT))),
    key("matchFields", Shape::List(&Shape::Object(REQUIREMENT))),
];

const REQUIREMENT: &[Key] =
    &[key("key", Shape::Text), key("operator", Shape::Text), key("values", Shape::List(&Shape::Text))];

/// Kubernetes' `Toleration`.
const TOLERATION: &[Key] = &[
    key("key", Shape::Text),
    key("operator", Shape::Text),
    key("value", Shape::Text),
    key("effect", Shape::Text),
    key("tolerationSeconds", Shape::Int),
];

/// All keys that are known, each with those that lead to it: `storageClassMap.*.wipe.method`.
/// `*` stands for a name of the admin's choice, and for each element of a list.
#[must_use]
pub fn known() -> Vec<String> {
    let mut found = Vec::new();
    for key in KEYS {
        collect(key.name, &key.shape, &mut found);
    }
    found
}

fn collect(path: &str, shape: &Shape, found: &mut Vec<String>) {
    let mut shape = shape;
    let mut below = path.to_owned();
    found.push(path.to_owned());
    while let Shape::List(inner) | Shape::Map(inner) = shape {
        below += ".*";
        shape = inner;
    }
    if let Shape::Object(keys) = shape {
        for key in *keys {
            collect(&format!("{below}.{}", key.name), &key.shape, found);
        }
    }
}
