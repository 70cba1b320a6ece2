//! Claims that are Bound on each node all the time. Without them, what a few scenarios release
//! within a minute would be most of a node's volumes, and the brake on mass release would hold it.

use std::time::Duration;

use kube::api::ResourceExt;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::harness::disk::mount_many;
use crate::harness::pods::Tenant;
use crate::harness::site::{SOON, Site};
use crate::harness::volumes::{is_on, phase};

pub const CLASSES: &[(&str, &str)] = &[(CLASS, "{}")];
pub const CLASS: &str = "ballast";
/// The claims' namespace.
pub const NAMESPACE: &str = "ballast";
/// How many each node has.
pub const COUNT: usize = 24;

static LOADED: OnceCell<()> = OnceCell::const_new();

/// Returns when each node has its claims, which the first call makes.
pub async fn load(site: &Site) {
    let load = async || {
        let tenant = Tenant::new(site, NAMESPACE).await;
        for node in site.nodes() {
            let dir = node.discovery(CLASS);
            node.on_host(|| mount_many(&dir, COUNT));
        }
        for node in site.nodes() {
            claim(&tenant, node.name()).await;
        }
    };
    LOADED.get_or_init(load).await;
}

/// Claims all that is Available on a node; returns when it is Bound.
pub async fn claim(tenant: &Tenant<'_>, node: &str) {
    let names = wait(tenant, node, "Available").await;
    let claim = |name: &String| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "node": node } },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "volumeName": name,
                "resources": { "requests": { "storage": "1Mi" } },
            },
        })
    };
    let claims: Vec<_> = names.iter().map(claim).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": claims });
    tenant.site().kubectl().must(&["create", "--filename=-"], &list.to_string());
    wait(tenant, node, "Bound").await;
}

/// Waits until all PVs of a node's ballast are in a phase; returns their names.
pub async fn wait(tenant: &Tenant<'_>, node: &str, wanted: &str) -> Vec<String> {
    let what = format!("the ballast of {node} is {wanted}");
    tenant
        .until(&what, SOON + Duration::from_secs(30), async || {
            let pvs = tenant.pvs_of(CLASS).await;
            let there = pvs.iter().filter(|pv| is_on(pv, node) && phase(pv) == wanted);
            let names: Vec<_> = there.map(ResourceExt::name_any).collect();
            (names.len() == COUNT).then_some(names)
        })
        .await
}
