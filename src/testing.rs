//! Values that the unit tests of several modules start from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeStatus;

use crate::config::Config;
use crate::discovery::Sighting;
use crate::identity::{DeviceIdentity, DeviceNumber, Identity, MountIdentity, Uuid};
use crate::ledger::{Entry, EntryId};
use crate::method::WipeRules;
use crate::plan::Target;
use crate::pv::{self, Decoded, OwnedPv, Volume};
use crate::volume::{Capacity, NodeFacts, ReclaimPolicy, StorageClassFacts};

/// A config with classes `c` (of `/h/c`) and `d` (of `/h/d`).
pub fn config() -> Config {
    let map = "{c: {hostDir: /h/c, mountDir: /m/c}, d: {hostDir: /h/d, mountDir: /m/d}}";
    Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())])).expect("the config is valid")
}

/// A node `n1`.
pub fn node() -> NodeFacts {
    NodeFacts {
        name: "n1".to_owned(),
        uid: "node-uid".to_owned(),
        hostname: "n1".to_owned(),
        labels: BTreeMap::new(),
        hold: false,
        taints: Vec::new(),
    }
}

/// A storage class with the given policy.
pub fn storage_class(reclaim_policy: ReclaimPolicy) -> StorageClassFacts {
    StorageClassFacts { reclaim_policy, mount_options: Vec::new() }
}

/// The volume of an entry of a class of [`config`].
pub fn volume(entry: &str, class: &str) -> Volume {
    let config = config();
    let class = config.class(class).expect("a class of the test config");
    let storage_class = storage_class(ReclaimPolicy::Delete);
    let identity = disk(1, 1 << 26).identity;
    pv::volume(&config, class, &storage_class, &node(), entry, Capacity::rounded_down(1 << 26), &identity)
}

/// An Available PV of ours for such a volume.
pub fn owned_pv(entry: &str, class: &str) -> OwnedPv {
    let mut object = pv::encode(&volume(entry, class));
    object.metadata.uid = object.metadata.name.as_ref().map(|name| format!("uid-{name}"));
    object.metadata.resource_version = Some("1".to_owned());
    let status = PersistentVolumeStatus { phase: Some("Available".to_owned()), ..PersistentVolumeStatus::default() };
    object.status = Some(status);
    match pv::sort(&object, &node(), false) {
        Decoded::Owned(owned) => OwnedPv { free_of_finalizers: false, ..*owned },
        other => unreachable!("a PV of ours, not {other:?}"),
    }
}

/// A volume to be wiped: that of such a PV, on the disk `7:minor`.
pub fn target(entry: &str, minor: u32) -> Target {
    let owned = owned_pv(entry, "c");
    let identity = disk(minor, 1 << 26).identity;
    Target {
        mount_dir: "/m/c".to_owned(),
        entry: entry.to_owned(),
        aliases: Vec::new(),
        accepted: None,
        rules: WipeRules::default(),
        disks: Box::default(),
        record: Box::new(Entry::new(EntryId(1), "c", &owned.path, identity.clone(), Timestamp::UNIX_EPOCH)),
        job: None,
        identity,
        pv: owned.name,
        uid: owned.uid,
        claim: Box::default(),
    }
}

/// A disk `7:minor`.
pub fn disk(minor: u32, bytes: u64) -> Sighting {
    let number = DeviceNumber { major: 7, minor };
    Sighting::new(
        Identity::Device(DeviceIdentity {
            boot: Some(Uuid(1)),
            number,
            sequence: Some(1),
            ..DeviceIdentity::default()
        }),
        bytes,
    )
}

/// A filesystem `0:minor`, mounted as a whole.
pub fn mount(minor: u32, bytes: u64) -> Sighting {
    let device = DeviceNumber { major: 0, minor };
    Sighting::new(
        Identity::Mount(MountIdentity {
            boot: Some(Uuid(1)),
            device,
            root: Some("/".into()),
            inode: 1,
            ..MountIdentity::default()
        }),
        bytes,
    )
}
