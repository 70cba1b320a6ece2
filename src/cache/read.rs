//! Reads everything once, for commands that look and go.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use super::feed::{PAGE, class_facts, node_facts};
use super::{Cache, Event};
use crate::cluster::{ApiError, Cluster};
use crate::pv;

/// Why the cache could not be filled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A list could not be had.
    #[error("the {resource} can't be read: {error}")]
    Api {
        /// Of what.
        resource: &'static str,
        /// Why not.
        error: ApiError,
    },
    /// The Node is not there, or can't be used.
    #[error("{0}")]
    Node(String),
}

/// A cache that is complete, as of now.
///
/// # Errors
/// A list could not be had, or the Node can't be used.
pub async fn read(cluster: &Cluster, node: &str, use_node_name_only: bool) -> Result<Cache, ReadError> {
    let of = |resource| move |error| ReadError::Api { resource, error };
    let mut cache = Cache::default();
    let mut found = None;
    let only = format!("metadata.name={node}");
    cluster.read_all::<Node>(&only, PAGE, |node| found = Some(node)).await.map_err(of("nodes"))?;
    let missing = || {
        ReadError::Node(format!(
            "there is no Node {node}: name it as in the cluster (spec.nodeName), by --node-name or MY_NODE_NAME"
        ))
    };
    let facts = node_facts(&found.ok_or_else(missing)?).map_err(ReadError::Node)?;
    cache.apply(Event::Node(Ok(facts.clone())));
    let mut classes = BTreeSet::new();
    let class = |class: StorageClass| {
        classes.insert(class.name_any());
        cache.apply(class_facts(&class));
    };
    cluster.read_all("", PAGE, class).await.map_err(of("storageclasses"))?;
    cache.apply(Event::ClassesListed(classes));
    let mut all = (BTreeSet::new(), BTreeSet::new());
    let volume = |volume: PersistentVolume| {
        let decoded = pv::sort(&volume, &facts, use_node_name_only);
        match &decoded {
            pv::Decoded::Owned(owned) => _ = all.0.insert(owned.name.clone()),
            pv::Decoded::Foreign(foreign) => _ = all.1.insert(foreign.pv.clone()),
            pv::Decoded::Elsewhere => return,
        }
        cache.apply(Event::PvListed(decoded));
    };
    cluster.read_all("", PAGE, volume).await.map_err(of("persistentvolumes"))?;
    let (owned, foreign) = all;
    cache.apply(Event::AllListed { owned, foreign });
    Ok(cache)
}
