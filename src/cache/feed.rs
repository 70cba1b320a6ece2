//! What fills the cache: watches that recover by themselves, and the sweep of all PVs
//! of the cluster, which keeps of each page only what concerns this node. Each feed is
//! a task; its waits after failures grow and are jittered, so that the agents of a
//! cluster do not all come back at the same moment.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher::{self, Event as Watch, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::Event;
use crate::cluster::{ApiError, Cluster};
use crate::memory::backoff;
use crate::pv::{self, Decoded, HOSTNAME_LABEL, NODE_LABEL};
use crate::volume::{NodeFacts, ReclaimPolicy, StorageClassFacts};

/// Objects in a page of a list: few, so that memory does not grow with the cluster.
const PAGE: u32 = 100;
/// First and longest wait after a failure, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A watch that fails this often in a row is begun anew, with a list.
const FAILURES_BEFORE_RELIST: u32 = 5;
/// After this time the API server is asked again whether a right is missing.
const SECOND_OPINION: Duration = Duration::from_secs(2);
/// How often the Node is read where it may not be watched.
const NODE_PERIOD: Duration = Duration::from_secs(60);
/// Before the second page of a sweep, an agent waits up to this long for each PV that is
/// still to be listed, and never longer than the second time: of a thousand agents that
/// start together, each would list the whole of a large cluster at once.
const SPREAD: (Duration, Duration) = (Duration::from_micros(500), Duration::from_secs(10));
/// Mean time between two sweeps.
const SWEEP_PERIOD: Duration = Duration::from_secs(6 * 3600);

/// Watches this Node, or reads it every minute where it may only be read.
pub async fn node(cluster: Cluster, client: Client, name: String, events: Sender<Event>) {
    let mut complaint = Complaint::new("nodes");
    // Where it could be watched before, the API server has to say no twice, as for rights.
    let mut is_sure = true;
    loop {
        if watch_node(client.clone(), &name, events.clone()).await {
            is_sure = false;
        }
        if events.is_closed() {
            return;
        }
        match cluster.node(&name).await {
            Ok(found) => {
                complaint.settled();
                let node = found.as_ref().map_or_else(|| Err(no_node(&name)), node_facts);
                let wait = match (is_sure, &node) {
                    (false, _) => SECOND_OPINION,
                    (true, Ok(_)) => NODE_PERIOD,
                    (true, Err(_)) => BACKOFF.1,
                };
                let told = is_sure.then_some(Event::NodeWatched(false));
                for event in told.into_iter().chain([Event::Node(node)]) {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                is_sure = true;
                tokio::time::sleep(wait).await;
            }
            Err(error) => complaint.about(error).await,
        }
    }
}

/// Returns when nobody listens any more, or the Node may not be watched; says whether it
/// could be before.
async fn watch_node(client: Client, name: &str, events: Sender<Event>) -> bool {
    let config = watcher::Config::default().timeout(60).fields(&format!("metadata.name={name}"));
    let (mut found, mut listed) = (false, false);
    let translate = |event: Watch<Node>| {
        listed |= matches!(event, Watch::InitDone);
        let node = match event {
            Watch::Init => {
                found = false;
                return None;
            }
            Watch::InitApply(node) | Watch::Apply(node) => {
                found = true;
                node_facts(&node)
            }
            Watch::InitDone if found => return Some(Event::NodeWatched(true)),
            Watch::InitDone | Watch::Delete(_) => Err(no_node(name)),
        };
        Some(Event::Node(node))
    };
    let is_forbidden = |error: &ApiError| matches!(error, ApiError::Forbidden(_)) && !error.is_unready();
    follow("nodes", Api::<Node>::all(client), config, events, translate, is_forbidden).await;
    listed
}

fn no_node(name: &str) -> String {
    format!("there is no Node {name}: set MY_NODE_NAME to this node's name in the cluster (spec.nodeName)")
}

fn node_facts(node: &Node) -> Result<NodeFacts, String> {
    let name = node.name_any();
    match (node.labels().get(HOSTNAME_LABEL), node.uid()) {
        (Some(hostname), Some(uid)) => {
            let hold = pv::is_held(node.metadata.annotations.as_ref());
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            let taints = taints.map(|taint| taint.key.as_str().into()).collect();
            Ok(NodeFacts { hostname: hostname.clone(), uid, labels: node.labels().clone(), name, hold, taints })
        }
        _ => Err(format!("Node {name} has no label {HOSTNAME_LABEL}: label it, or local volumes can't be bound to it")),
    }
}

/// Watches the storage classes.
pub async fn storage_classes(client: Client, events: Sender<Event>) {
    let config = watcher::Config::default().timeout(60).page_size(PAGE);
    let mut listed = BTreeSet::new();
    let translate = move |event: Watch<StorageClass>| {
        Some(match event {
            Watch::Init => {
                listed.clear();
                return None;
            }
            Watch::InitApply(class) => {
                listed.insert(class.name_any());
                class_facts(&class)
            }
            Watch::Apply(class) => class_facts(&class),
            Watch::Delete(class) => Event::ClassGone(class.name_any()),
            Watch::InitDone => Event::ClassesListed(std::mem::take(&mut listed)),
        })
    };
    follow("storageclasses", Api::<StorageClass>::all(client), config, events, translate, |_| false).await;
}

fn class_facts(class: &StorageClass) -> Event {
    let facts = StorageClassFacts {
        reclaim_policy: ReclaimPolicy::parse(class.reclaim_policy.as_deref().unwrap_or("Delete")),
        mount_options: class.mount_options.clone().unwrap_or_default(),
    };
    Event::Class(class.name_any(), facts)
}

/// Tells whether PVs may be patched, if that can be found out. `refused`: it is known that
/// they may not, unless the API server says otherwise.
pub async fn rights(cluster: Cluster, refused: bool, events: Sender<Event>) {
    if let Some(may) = may_patch(&cluster).await.or(refused.then_some(false)) {
        // Nobody listens any more when the agent is stopping.
        let _ = events.send(Event::MayPatch(may)).await;
    }
}

/// Whether PVs may be patched; `None` when that can't be asked. An API server that has just
/// been started knows no roles for a moment, and a volume must not be wiped without a fence
/// for that: so it has to say no twice.
async fn may_patch(cluster: &Cluster) -> Option<bool> {
    let (mut failures, mut refusals) = (0, 0);
    loop {
        match cluster.may("patch", "persistentvolumes").await {
            Ok(true) => return Some(true),
            Ok(false) if refusals > 0 => return Some(false),
            Ok(false) => {
                refusals += 1;
                tokio::time::sleep(SECOND_OPINION).await;
            }
            Err(error) if matches!(error, ApiError::Unknown(_)) || error.is_unready() => {
                debug!(%error, "It is not known yet whether PVs may be patched");
                tokio::time::sleep(backoff(BACKOFF, failures, fastrand::f64())).await;
                (failures, refusals) = (failures + 1, 0);
            }
            Err(error) => {
                debug!(%error, "It can't be asked whether PVs may be patched");
                return None;
            }
        }
    }
}

/// What the watch of PVs goes by.
pub struct PvWatch {
    /// This node.
    pub node: NodeFacts,
    /// As in the config.
    pub use_node_name_only: bool,
    /// Whether PVs may be patched; asked first when it is not known.
    pub may_patch: Option<bool>,
}

/// Watches the PVs that carry our label for this node; or all of the cluster where those
/// of the Go provisioner can't be given it, and keeps only what concerns this node.
pub async fn persistent_volumes(cluster: Cluster, client: Client, watch: PvWatch, events: Sender<Event>) {
    let PvWatch { node, use_node_name_only, may_patch: known } = watch;
    let may = match known {
        Some(may) => may,
        // If nobody can say, a patch that is refused will.
        None => may_patch(&cluster).await.unwrap_or(true),
    };
    if events.send(Event::MayPatch(may)).await.is_err() {
        return;
    }
    let mut config = watcher::Config::default().timeout(60).page_size(PAGE);
    if may {
        config = config.labels(&format!("{NODE_LABEL}={}", pv::node_label_value(&node.name)));
    }
    let mut listed = BTreeSet::new();
    let translate = move |event: Watch<PersistentVolume>| {
        let sort = |pv: &PersistentVolume| match pv::sort(pv, &node, use_node_name_only) {
            Decoded::Elsewhere => None,
            decoded => Some(decoded),
        };
        Some(match event {
            Watch::Init => {
                listed.clear();
                return None;
            }
            Watch::InitApply(pv) => {
                let decoded = sort(&pv)?;
                listed.insert(pv.name_any());
                Event::PvListed(decoded)
            }
            Watch::Apply(pv) => Event::Pv(sort(&pv)?),
            Watch::Delete(pv) => {
                let last = sort(&pv)?;
                Event::PvLeft { name: pv.name_any(), uid: pv.uid().unwrap_or_default(), last }
            }
            Watch::InitDone => Event::PvsListed(std::mem::take(&mut listed)),
        })
    };
    follow("persistentvolumes", Api::<PersistentVolume>::all(client), config, events, translate, |_| false).await;
}

/// Runs a watch and sends what `translate` makes of it, until nobody takes it any more or a
/// failure ends it. Failures are told once each, as is the end of them.
async fn follow<K>(
    what: &str,
    api: Api<K>,
    config: watcher::Config,
    events: Sender<Event>,
    mut translate: impl FnMut(Watch<K>) -> Option<Event>,
    ends_it: impl Fn(&ApiError) -> bool,
) where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut complaint = Complaint::new(what);
    loop {
        let mut stream = Box::pin(watcher(api.clone(), config.clone()));
        let mut failures = 0;
        while failures < FAILURES_BEFORE_RELIST {
            match stream.next().await {
                Some(Ok(event)) => {
                    failures = 0;
                    // The begin of a list is no answer yet.
                    if !matches!(event, Watch::Init) {
                        complaint.settled();
                    }
                    if let Some(event) = translate(event)
                        && events.send(event).await.is_err()
                    {
                        return;
                    }
                }
                Some(Err(error)) => {
                    let error = ApiError::from(error);
                    if ends_it(&error) {
                        return;
                    }
                    failures += 1;
                    complaint.about(error).await;
                }
                None => break,
            }
        }
    }
}

/// Lists all PVs of the cluster page by page: the first page at once, and all of them
/// again rarely.
pub async fn sweep(cluster: Cluster, node: NodeFacts, use_node_name_only: bool, events: Sender<Event>) {
    let mut complaint = Complaint::new("persistentvolumes");
    loop {
        let mut foreign = BTreeSet::new();
        let mut token: Option<String> = None;
        loop {
            match cluster.list(token.as_deref(), PAGE).await {
                Ok(page) => {
                    complaint.settled();
                    let left = page.metadata.remaining_item_count.filter(|_| token.is_none());
                    token = page.metadata.continue_.filter(|token| !token.is_empty());
                    for pv in page.items {
                        let decoded = pv::sort(&pv, &node, use_node_name_only);
                        match &decoded {
                            Decoded::Elsewhere => continue,
                            Decoded::Foreign(path) => _ = foreign.insert(path.pv.clone()),
                            Decoded::Owned(_) => {}
                        }
                        if events.send(Event::Swept(decoded)).await.is_err() {
                            return;
                        }
                    }
                    if token.is_none() {
                        break;
                    }
                    tokio::time::sleep(spread(left).mul_f64(fastrand::f64())).await;
                }
                Err(error) => {
                    // The list may have expired: begin again.
                    complaint.about(error).await;
                    token = None;
                    foreign.clear();
                }
            }
        }
        if events.send(Event::SweepDone(foreign)).await.is_err() {
            return;
        }
        tokio::time::sleep(SWEEP_PERIOD.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// The longest wait when so many PVs are left after the first page; none after others.
fn spread(left: Option<i64>) -> Duration {
    let left = left.and_then(|left| u32::try_from(left).ok()).unwrap_or_default();
    SPREAD.0.saturating_mul(left).min(SPREAD.1)
}

/// Tells each new failure once, waits longer after each, and tells the end of them.
struct Complaint {
    what: String,
    last: Option<ApiError>,
    failures: u32,
}

impl Complaint {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), last: None, failures: 0 }
    }

    async fn about(&mut self, error: ApiError) {
        // An expired list is the API server's ordinary way to ask for a new one.
        let kind = std::mem::discriminant(&error);
        if self.last.as_ref().map(std::mem::discriminant) == Some(kind) {
            debug!(%error, resource = self.what, "Still not readable");
        } else {
            warn!(%error, resource = self.what, "Resource can't be read; trying again");
        }
        self.last = Some(error);
        let wait = backoff(BACKOFF, self.failures, fastrand::f64());
        self.failures += 1;
        tokio::time::sleep(wait).await;
    }

    fn settled(&mut self) {
        if self.last.take().is_some() {
            info!(resource = self.what, failures = self.failures, "Resource is readable again");
        }
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_cluster_is_listed_at_once_and_a_large_one_within_seconds() {
        assert_eq!(spread(None), Duration::ZERO);
        assert_eq!(spread(Some(100)), Duration::from_millis(50));
        assert_eq!(spread(Some(10_000)), Duration::from_secs(5));
        assert_eq!(spread(Some(1_000_000)), Duration::from_secs(10));
    }
}
