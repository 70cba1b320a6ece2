//! What the Go provisioner and we write into a PV, field by field, so that two PVs can be
//! compared. Left out is what only we write.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::Value;

use crate::volume::Capacity;

/// Fields of a PV by their place in the API object; absent ones are empty.
pub type Fields = BTreeMap<String, String>;

/// Where labels stand. A PV may have more of them than we would give it.
const LABELS: &str = "metadata.labels.";

/// The fields of a PV.
#[must_use]
pub fn fields(pv: &PersistentVolume) -> Fields {
    let json = |value: Result<Value, serde_json::Error>| match value.expect("a PV's fields are plain data") {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    let spec = pv.spec.clone().unwrap_or_default();
    let local = spec.local.unwrap_or_default();
    let capacity = spec.capacity.and_then(|mut capacity| capacity.remove("storage")).map(|quantity| quantity.0);
    let capacity = capacity.map(|text| Capacity::parse(&text).map_or(text, |capacity| capacity.to_string()));
    let owners = pv.metadata.owner_references.iter().flatten();
    let owners: Vec<_> = owners.map(|owner| format!("{} {} {}", owner.kind, owner.name, owner.uid)).collect();
    let mut fields: Fields = [
        ("metadata.name", pv.metadata.name.clone().unwrap_or_default()),
        ("metadata.ownerReferences", owners.join(", ")),
        ("spec.accessModes", json(serde_json::to_value(spec.access_modes))),
        ("spec.capacity.storage", capacity.unwrap_or_default()),
        ("spec.local.fsType", local.fs_type.unwrap_or_default()),
        ("spec.local.path", local.path),
        ("spec.mountOptions", json(serde_json::to_value(spec.mount_options))),
        ("spec.nodeAffinity", json(serde_json::to_value(spec.node_affinity))),
        ("spec.persistentVolumeReclaimPolicy", spec.persistent_volume_reclaim_policy.unwrap_or_default()),
        ("spec.storageClassName", spec.storage_class_name.unwrap_or_default()),
        ("spec.volumeMode", spec.volume_mode.unwrap_or_default()),
    ]
    .map(|(place, text)| (place.to_owned(), text))
    .into();
    let labels = pv.metadata.labels.iter().flatten();
    let both = labels.filter(|(key, _)| !key.starts_with("mooring.dev/"));
    fields.extend(both.map(|(key, value)| (format!("{LABELS}{key}"), value.clone())));
    fields
}

/// The fields of the second that differ: place, what it is, what it would be.
#[must_use]
pub fn fields_that_differ<'f>(is: &'f Fields, would_be: &'f Fields) -> Vec<(&'f str, &'f str, &'f str)> {
    let text = |fields: &'f Fields, place: &str| fields.get(place).map_or("", String::as_str);
    let of_would_be = would_be.keys().map(|place| (place.as_str(), text(is, place), text(would_be, place)));
    of_would_be.filter(|(_, is, would_be)| is != would_be).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pv;
    use crate::testing;

    #[test]
    fn a_pv_that_has_only_more_labels_does_not_differ_and_others_do() {
        let volume = testing::volume("a", "c");
        let would_be = fields(&pv::encode(&volume));
        let mut pv = pv::encode(&volume);
        pv.metadata.labels = Some(BTreeMap::from([("team".to_owned(), "db".to_owned())]));
        pv.metadata.annotations = None;
        assert_eq!(fields_that_differ(&fields(&pv), &would_be), []);
        let spec = pv.spec.as_mut().expect("it has one");
        spec.capacity.as_mut().expect("it has one").get_mut("storage").expect("it has one").0 = "65536Ki".to_owned();
        assert_eq!(fields_that_differ(&fields(&pv), &would_be), [], "another spelling of 64Mi");
        let spec = pv.spec.as_mut().expect("it has one");
        spec.capacity.as_mut().expect("it has one").get_mut("storage").expect("it has one").0 = "1Gi".to_owned();
        spec.mount_options = Some(vec!["noatime".to_owned()]);
        spec.node_affinity = None;
        let found = fields(&pv);
        let places: Vec<_> =
            fields_that_differ(&found, &would_be).into_iter().map(|(place, is, _)| (place, is)).collect();
        let expected =
            [("spec.capacity.storage", "1Gi"), ("spec.mountOptions", "[\"noatime\"]"), ("spec.nodeAffinity", "")];
        assert_eq!(places, expected);
    }

    #[test]
    fn a_label_that_we_would_give_it_is_missed() {
        let mut volume = testing::volume("a", "c");
        volume.labels.insert("disk".to_owned(), "ssd".to_owned());
        let (would_be, is) = (fields(&pv::encode(&volume)), fields(&pv::encode(&testing::volume("a", "c"))));
        assert_eq!(fields_that_differ(&is, &would_be), [("metadata.labels.disk", "", "ssd")]);
    }
}
