//! What is fuzzed: reading what an admin, another program or a damaged disk may have
//! written. Nothing may panic, and what can be read is the same when written and read
//! again. The test `fuzz_corpus` puts the committed inputs through the same functions.

#![allow(dead_code)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use mooring::config::Config;
use mooring::identity::{Comparison, Identity};
use mooring::ledger::{Found, Ledger, file};
use mooring::pv::{self, Decoded};
use mooring::volume::NodeFacts;

/// A ConfigMap's files: each begins with a line `# file NAME`; text before the first is
/// the class map.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut name = "storageClassMap";
    for line in text.split_inclusive('\n') {
        match line.strip_prefix("# file ") {
            Some(next) => name = next.trim(),
            None => files.entry(name.to_owned()).or_default().push_str(line),
        }
    }
    match Config::parse(&files) {
        Ok(config) => {
            assert!(!config.classes.is_empty() && config.max_parallel_wipes > 0 && !config.resync.is_zero());
            for class in &config.classes {
                assert!(class.host_dir.starts_with('/') && class.mount_dir.starts_with('/'));
                assert_eq!(class.entry_of(&class.host_path("sda")), Some("sda"));
                assert_eq!(class.entry_of(&class.host_dir), None, "the directory itself is no entry of it");
                let _ = class.pattern.matches("sda");
            }
            assert_eq!(Config::parse(&files).ok(), Some(config), "it is read the same way each time");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The annotation of a PV: anybody who may edit PVs can write it.
pub fn identity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(identity) = serde_json::from_str::<Identity>(text) else { return };
    let written = pv::identity_text(&identity);
    let again: Identity = serde_json::from_str(&written).expect("what was written can be read");
    assert_eq!(again, identity);
    assert_eq!(again.digest(), identity.digest());
    assert!(!matches!(identity.compare(&again), Comparison::Different(_)), "it is no other than itself");
}

/// A file of the state directory, as a bad disk or a newer program may leave it.
pub fn ledger(data: &[u8]) {
    let Ok(entry) = file::read(data) else { return };
    assert_eq!(file::read(&file::write(&entry)), Ok(entry.clone()));
    let mut ledger = Ledger::default();
    ledger.insert(entry.clone());
    if let Found::One(found) = ledger.find(&entry.identity, &entry.path) {
        assert_eq!(found.id, entry.id);
    }
}

/// A PV as the API server gives it.
pub fn pv(data: &[u8]) {
    let Ok(object) = serde_json::from_slice::<PersistentVolume>(data) else { return };
    let node = NodeFacts {
        name: "node-a".to_owned(),
        uid: "6f1a2b3c-0000-4000-8000-000000000001".to_owned(),
        hostname: "node-a".to_owned(),
        ..NodeFacts::default()
    };
    for name_only in [false, true] {
        if let Decoded::Owned(owned) = pv::sort(&object, &node, name_only) {
            assert_eq!(object.metadata.name.as_deref(), Some(owned.name.as_str()));
        }
    }
    if let Some(volume) = pv::decode(&object) {
        assert_eq!(pv::decode(&pv::encode(&volume)), Some(volume));
    }
}
