//! A volume as a PersistentVolume, and back: the only place that knows where each
//! fact stands in the API object, and the answer to "is it ours?".

pub mod labels;
mod owned;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use serde::{Deserialize, Serialize};

use crate::config::{Class, Config};
use crate::identity::Identity;
use crate::volume::{
    AccessMode, Capacity, NodeFacts, ReclaimPolicy, StorageClassFacts, VolumeMode, fnv1a_32, fnv1a_64,
};

pub use labels::{LabelChanges, Labels};
pub use owned::{Decoded, ForeignPath, OwnedPv, Phase, Seen, Word, is_held, sort};

/// Says which provisioner made a PV (Kubernetes well-known annotation).
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Our label on each PV: the node that it belongs to. The PV watch selects on it.
pub const NODE_LABEL: &str = "mooring.dev/node";
/// Our finalizer: on a PV only while its volume is being wiped.
pub const WIPE_FINALIZER: &str = "mooring.dev/wipe";
/// Our annotation: the keys by which the volume is known again, as JSON of
/// [`Identity`].
pub const IDENTITY: &str = "mooring.dev/identity";
/// Our annotation: the ledger's entry of the volume.
pub const LEDGER_ENTRY: &str = "mooring.dev/ledger-entry";
/// Our annotation: owner, mode and the like of the volume's root directory when it was
/// first offered.
pub const ROOT: &str = "mooring.dev/root";
/// Our annotation, set with the finalizer: the UID of the claim whose data may be wiped.
/// It carries the decision over a restart.
pub const RECLAIMING: &str = "mooring.dev/reclaiming";
/// Our annotation: why nobody may claim the PV.
pub const QUARANTINED: &str = "mooring.dev/quarantined";
/// Our annotation: how far its wipe is, for people to read.
pub const PROGRESS: &str = "mooring.dev/progress";
/// An admin's annotation on a Released PV: see [`Word`].
pub const RECLAIM: &str = "mooring.dev/reclaim";
/// An admin's annotation on a PV or a Node: no wipe begins, and one under way stops.
pub const HOLD: &str = "mooring.dev/hold";
/// An admin's annotation: the digest of the identity that is the right one.
pub const ACCEPT_IDENTITY: &str = "mooring.dev/accept-identity";
/// Our annotation: the keys of the labels that config and Node have given the PV, with
/// commas between them.
pub const LABELS: &str = "mooring.dev/labels";
/// The well-known label that local PVs are bound to their node by.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// A local volume: all that its PV says.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// `metadata.name`.
    pub name: String,
    /// The provisioner named by the annotation [`PROVISIONED_BY`].
    pub provisioner: String,
    /// Labels, [`NODE_LABEL`] among them.
    pub labels: BTreeMap<String, String>,
    /// The Node's name and UID, when the Node owns the PV.
    pub owner: Option<(String, String)>,
    /// `spec.storageClassName`.
    pub class: String,
    /// `spec.local.path`.
    pub path: String,
    /// `spec.local.fsType`.
    pub fs_type: Option<String>,
    /// `spec.capacity.storage`.
    pub capacity: Capacity,
    /// `spec.volumeMode`.
    pub mode: VolumeMode,
    /// The one of `spec.accessModes`.
    pub access_mode: AccessMode,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim_policy: ReclaimPolicy,
    /// `spec.mountOptions`.
    pub mount_options: Vec<String>,
    /// `spec.nodeAffinity.required.nodeSelectorTerms`.
    pub affinity: Vec<NodeSelectorTerm>,
    /// Annotations of ours, [`IDENTITY`] among them.
    pub annotations: BTreeMap<String, String>,
    /// `spec.claimRef`: only for volumes that nobody else may claim.
    pub claim: Option<Claim>,
}

/// A reference to a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its UID; empty in a reservation that no claim has taken up yet.
    pub uid: Box<str>,
}

impl Claim {
    /// Whether it is the one that does not exist, by which we keep a PV from being claimed.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        *self.uid == *NOBODY
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The name by which the Go provisioner and we sign PVs.
#[must_use]
pub fn provisioner_name(node: &NodeFacts, use_node_name_only: bool) -> String {
    if use_node_name_only {
        format!("local-volume-provisioner-{}", node.name)
    } else {
        format!("local-volume-provisioner-{}-{}", node.name, node.uid)
    }
}

/// The Go provisioner's name for a PV: FNV-1a 32 over entry, node and class, in
/// lower-case hex without padding.
#[must_use]
pub fn pv_name(entry: &str, node: &str, class: &str) -> String {
    let hash = fnv1a_32([entry, node, class].iter().flat_map(|part| part.bytes()));
    format!("local-pv-{hash:x}")
}

/// The name of a PV when another one has its [`pv_name`]: 64 more bits, with the ends of
/// the three parts marked, so that "ab" and "c" differ from "a" and "bc".
#[must_use]
pub fn long_pv_name(entry: &str, node: &str, class: &str) -> String {
    let hash = fnv1a_64([entry, node, class].iter().flat_map(|part| part.bytes().chain([0])));
    format!("{}-{hash:016x}", pv_name(entry, node, class))
}

/// A node's name as the value of [`NODE_LABEL`]: itself, or when it is too long for
/// a label (63 characters) a FNV-1a 64 hash of it.
#[must_use]
pub fn node_label_value(node: &str) -> String {
    if node.len() <= 63 {
        return node.to_owned();
    }
    format!("node-{:016x}", fnv1a_64(node.bytes()))
}

/// The UID of a claim that does not exist.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// The volume that a class makes of an entry on this node.
#[must_use]
pub fn volume(
    config: &Config,
    class: &Class,
    storage_class: &StorageClassFacts,
    node: &NodeFacts,
    entry: &str,
    capacity: Capacity,
    identity: &Identity,
) -> Volume {
    let mut labels: BTreeMap<String, String> =
        labels::given(config, node).map(|(key, value)| (key.clone(), value.clone())).collect();
    let noted = labels::note(&labels.keys().cloned().collect());
    labels.insert(NODE_LABEL.to_owned(), node_label_value(&node.name));
    let own_term = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: HOSTNAME_LABEL.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.hostname.clone()]),
        }]),
        ..NodeSelectorTerm::default()
    };
    Volume {
        name: pv_name(entry, &node.name, &class.name),
        provisioner: provisioner_name(node, config.use_node_name_only),
        labels,
        owner: config.set_pv_owner_ref.then(|| (node.name.clone(), node.uid.clone())),
        class: class.name.clone(),
        path: class.host_path(entry),
        fs_type: class.fs_type.clone(),
        capacity,
        mode: class.mode,
        access_mode: class.access_mode,
        reclaim_policy: storage_class.reclaim_policy.clone(),
        mount_options: storage_class.mount_options.clone(),
        affinity: std::iter::once(own_term).chain(class.selector.iter().cloned()).collect(),
        annotations: [(IDENTITY, Some(identity_text(identity))), (LABELS, noted)]
            .into_iter()
            .filter_map(|(key, value)| value.map(|value| (key.to_owned(), value)))
            .collect(),
        claim: None,
    }
}

/// The text of [`IDENTITY`].
#[must_use]
pub fn identity_text(identity: &Identity) -> String {
    serde_json::to_string(identity).expect("an identity is plain data")
}

impl Volume {
    /// Makes a PV of it that shows as Released and that nobody can claim: for a volume
    /// that may hold the data of a claim, or of one that is not known. Unless it is to be
    /// wiped at once, its policy is Retain.
    ///
    /// `claim` is one that was bound to a PV of this very name: it gets its volume back, if
    /// it still lives. To one that is bound elsewhere the controller-manager would not
    /// leave the PV, but make it Available (`syncVolume`).
    #[must_use]
    pub fn quarantined(mut self, claim: Option<&Claim>, why: &str, wipe: bool) -> Self {
        // A claim with this UID does not exist, so the controller-manager shows the PV as
        // Released, and binds it to nothing.
        let nobody = || Claim { namespace: "default".into(), name: "mooring-unknown".into(), uid: NOBODY.into() };
        self.claim = Some(claim.filter(|claim| !claim.uid.is_empty()).cloned().unwrap_or_else(nobody));
        self.annotations.insert(QUARANTINED.to_owned(), why.to_owned());
        self.reclaim_policy = if wipe { ReclaimPolicy::Delete } else { ReclaimPolicy::Retain };
        self
    }
}

/// The API object for a volume.
#[must_use]
pub fn encode(volume: &Volume) -> PersistentVolume {
    let mut annotations = volume.annotations.clone();
    annotations.insert(PROVISIONED_BY.to_owned(), volume.provisioner.clone());
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume.name.clone()),
            annotations: Some(annotations),
            labels: (!volume.labels.is_empty()).then(|| volume.labels.clone()),
            owner_references: volume.owner.as_ref().map(|(name, uid)| vec![owner(name, uid)]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec![volume.access_mode.as_str().to_owned()]),
            claim_ref: volume.claim.as_ref().map(|claim| ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: Some(claim.namespace.to_string()),
                name: Some(claim.name.to_string()),
                uid: Some(claim.uid.to_string()),
                ..ObjectReference::default()
            }),
            capacity: Some(BTreeMap::from([("storage".to_owned(), Quantity(volume.capacity.to_string()))])),
            local: Some(LocalVolumeSource { path: volume.path.clone(), fs_type: volume.fs_type.clone() }),
            mount_options: (!volume.mount_options.is_empty()).then(|| volume.mount_options.clone()),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: volume.affinity.clone() }),
            }),
            persistent_volume_reclaim_policy: Some(volume.reclaim_policy.as_str().to_owned()),
            storage_class_name: Some(volume.class.clone()),
            volume_mode: Some(volume.mode.as_str().to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// The reference to a Node that owns a PV.
#[must_use]
pub fn owner(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Reads the volume out of an API object. `None` when it is no local PV, or one
/// that neither we nor the Go provisioner would have made.
#[must_use]
pub fn decode(pv: &PersistentVolume) -> Option<Volume> {
    let spec = pv.spec.as_ref()?;
    let local = spec.local.as_ref()?;
    let owner = pv.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "Node");
    Some(Volume {
        name: pv.metadata.name.clone()?,
        provisioner: pv.metadata.annotations.as_ref()?.get(PROVISIONED_BY)?.clone(),
        labels: pv.metadata.labels.clone().unwrap_or_default(),
        owner: owner.map(|owner| (owner.name.clone(), owner.uid.clone())),
        class: spec.storage_class_name.clone().unwrap_or_default(),
        path: local.path.clone(),
        fs_type: local.fs_type.clone(),
        capacity: Capacity::parse(&spec.capacity.as_ref()?.get("storage")?.0)?,
        mode: spec.volume_mode.as_deref().map_or(Some(VolumeMode::default()), VolumeMode::parse)?,
        access_mode: AccessMode::parse(spec.access_modes.as_ref()?.first()?)?,
        reclaim_policy: ReclaimPolicy::parse(spec.persistent_volume_reclaim_policy.as_deref().unwrap_or("Retain")),
        mount_options: spec.mount_options.clone().unwrap_or_default(),
        affinity: spec.node_affinity.as_ref()?.required.as_ref()?.node_selector_terms.clone(),
        annotations: pv
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| key.starts_with("mooring.dev/"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        claim: claim(pv),
    })
}

/// The claim that a PV is bound to or reserved for.
#[must_use]
pub fn claim(pv: &PersistentVolume) -> Option<Claim> {
    let reference = pv.spec.as_ref()?.claim_ref.as_ref()?;
    let text = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
    Some(Claim { namespace: text(&reference.namespace), name: text(&reference.name), uid: text(&reference.uid) })
}

/// The value of an annotation.
#[must_use]
pub fn annotation<'p>(pv: &'p PersistentVolume, key: &str) -> Option<&'p str> {
    pv.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}
