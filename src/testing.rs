//! Values that the unit tests of several modules start from.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::discovery::Sighting;
use crate::identity::{DeviceIdentity, DeviceNumber, Identity, MountIdentity};
use crate::pv::{self, OwnedPv, Phase, Volume};
use crate::volume::{Capacity, NodeFacts, ReclaimPolicy, StorageClassFacts};

/// A config with classes `c` (of `/h/c`) and `d` (of `/h/d`).
pub fn config() -> Config {
    let map = "{c: {hostDir: /h/c, mountDir: /m/c}, d: {hostDir: /h/d, mountDir: /m/d}}";
    Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())])).expect("the config is valid")
}

/// A node `n1`.
pub fn node() -> NodeFacts {
    NodeFacts { name: "n1".to_owned(), uid: "node-uid".to_owned(), hostname: "n1".to_owned(), labels: BTreeMap::new() }
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
    pv::volume(&config, class, &storage_class, &node(), entry, Capacity::rounded_down(1 << 26))
}

/// An Available PV of ours for such a volume.
pub fn owned_pv(entry: &str, class: &str) -> OwnedPv {
    let volume = volume(entry, class);
    OwnedPv {
        uid: format!("uid-{}", volume.name),
        name: volume.name,
        class: volume.class,
        path: volume.path,
        reclaim_policy: volume.reclaim_policy,
        labelled: true,
        resource_version: "1".to_owned(),
        phase: Phase::Available,
        terminating: false,
        fenced: false,
        free_of_finalizers: false,
    }
}

/// A disk `7:minor`.
pub fn disk(minor: u32, bytes: u64) -> Sighting {
    let number = DeviceNumber { major: 7, minor };
    Sighting::new(Identity::Device(DeviceIdentity { number, sequence: Some(1), ..DeviceIdentity::default() }), bytes)
}

/// A filesystem `0:minor`, mounted as a whole.
pub fn mount(minor: u32, bytes: u64) -> Sighting {
    let device = DeviceNumber { major: 0, minor };
    Sighting::new(
        Identity::Mount(MountIdentity { device, root: Some("/".into()), inode: 1, ..MountIdentity::default() }),
        bytes,
    )
}
