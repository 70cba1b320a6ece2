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
pub(super) const PAGE: u32 = 100;
/// First and longest wait after a failure, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A watch that fails this often in a row is begun anew, with a list.
const FAILURES_BEFORE_RELIST: u32 = 5;
/// Mean time between two sweeps.
const SWEEP_PERIOD: Duration = Duration::from_secs(6 * 3600);

/// Watches this Node.
pub async fn node(client: Client, name: String, events: Sender<Event>) {
    let config = watcher::Config::default().timeout(60).fields(&format!("metadata.name={name}"));
    let mut found = false;
    follow("nodes", Api::<Node>::all(client), config, events, move |event| {
        let node = match event {
            Watch::Init => {
                found = false;
                return None;
            }
            Watch::InitApply(node) | Watch::Apply(node) => {
                found = true;
                node_facts(&node)
            }
            Watch::InitDone if found => return None,
            Watch::InitDone | Watch::Delete(_) => Err(format!(
                "there is no Node {name}: set MY_NODE_NAME to this node's name in the cluster (spec.nodeName)"
            )),
        };
        Some(Event::Node(node))
    })
    .await;
}

pub(super) fn node_facts(node: &Node) -> Result<NodeFacts, String> {
    let name = node.name_any();
    match (node.labels().get(HOSTNAME_LABEL), node.uid()) {
        (Some(hostname), Some(uid)) => {
            let hold = pv::is_held(node.metadata.annotations.as_ref());
            Ok(NodeFacts { hostname: hostname.clone(), uid, labels: node.labels().clone(), name, hold })
        }
        _ => Err(format!("Node {name} has no label {HOSTNAME_LABEL}: label it, or local volumes can't be bound to it")),
    }
}

/// Watches the storage classes.
pub async fn storage_classes(client: Client, events: Sender<Event>) {
    let config = watcher::Config::default().timeout(60).page_size(PAGE);
    let mut listed = BTreeSet::new();
    follow("storageclasses", Api::<StorageClass>::all(client), config, events, move |event| {
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
    })
    .await;
}

pub(super) fn class_facts(class: &StorageClass) -> Event {
    let facts = StorageClassFacts {
        reclaim_policy: ReclaimPolicy::parse(class.reclaim_policy.as_deref().unwrap_or("Delete")),
        mount_options: class.mount_options.clone().unwrap_or_default(),
    };
    Event::Class(class.name_any(), facts)
}

/// Watches the PVs that carry our label for this node.
pub async fn persistent_volumes(client: Client, node: NodeFacts, use_node_name_only: bool, events: Sender<Event>) {
    let selector = format!("{NODE_LABEL}={}", pv::node_label_value(&node.name));
    let config = watcher::Config::default().timeout(60).page_size(PAGE).labels(&selector);
    let mut listed = BTreeSet::new();
    follow("persistentvolumes", Api::<PersistentVolume>::all(client), config, events, move |event| {
        Some(match event {
            Watch::Init => {
                listed.clear();
                return None;
            }
            Watch::InitApply(pv) => {
                listed.insert(pv.name_any());
                Event::PvListed(pv::sort(&pv, &node, use_node_name_only))
            }
            Watch::Apply(pv) => Event::Pv(pv::sort(&pv, &node, use_node_name_only)),
            Watch::Delete(pv) => {
                let last = pv::sort(&pv, &node, use_node_name_only);
                Event::PvLeft { name: pv.name_any(), uid: pv.uid().unwrap_or_default(), last }
            }
            Watch::InitDone => Event::PvsListed(std::mem::take(&mut listed)),
        })
    })
    .await;
}

/// Watches all PVs of the cluster and keeps what concerns this node: an API server load
/// that only few agents may make. `witness` is shown each PV of ours as it is or, with
/// `None`, that it is gone, before the event is sent.
pub async fn every_persistent_volume(
    client: Client,
    node: NodeFacts,
    use_node_name_only: bool,
    events: Sender<Event>,
    witness: impl Fn(&str, Option<&PersistentVolume>),
) {
    let config = watcher::Config::default().timeout(60).page_size(PAGE);
    let (mut owned, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    follow("persistentvolumes", Api::<PersistentVolume>::all(client), config, events, move |event| {
        let sort = |pv: &PersistentVolume| {
            let decoded = pv::sort(pv, &node, use_node_name_only);
            if let Decoded::Owned(owned) = &decoded {
                witness(&owned.name, Some(pv));
            }
            decoded
        };
        match event {
            Watch::Init => {
                owned.clear();
                foreign.clear();
                None
            }
            Watch::InitApply(pv) => {
                let decoded = sort(&pv);
                match &decoded {
                    Decoded::Owned(one) => _ = owned.insert(one.name.clone()),
                    Decoded::Foreign(path) => _ = foreign.insert(path.pv.clone()),
                    Decoded::Elsewhere => return None,
                }
                Some(Event::PvListed(decoded))
            }
            Watch::Apply(pv) => Some(sort(&pv)).filter(|pv| *pv != Decoded::Elsewhere).map(Event::Pv),
            Watch::Delete(pv) => {
                let last = pv::sort(&pv, &node, use_node_name_only);
                if last == Decoded::Elsewhere {
                    return None;
                }
                witness(&pv.name_any(), None);
                Some(Event::PvLeft { name: pv.name_any(), uid: pv.uid().unwrap_or_default(), last })
            }
            Watch::InitDone => {
                Some(Event::AllListed { owned: std::mem::take(&mut owned), foreign: std::mem::take(&mut foreign) })
            }
        }
    })
    .await;
}

/// Runs a watch and sends what `translate` makes of it, until nobody takes it any more.
/// Failures are told once each, as is the end of them.
async fn follow<K>(
    what: &str,
    api: Api<K>,
    config: watcher::Config,
    events: Sender<Event>,
    mut translate: impl FnMut(Watch<K>) -> Option<Event>,
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
                    failures += 1;
                    complaint.about(api_error(error)).await;
                }
                None => break,
            }
        }
    }
}

fn api_error(error: watcher::Error) -> ApiError {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error.into(),
        watcher::Error::WatchError(status) => kube::Error::Api(status).into(),
        other => ApiError::Unknown(other.to_string()),
    }
}

/// Lists all PVs of the cluster page by page, at once and then rarely.
pub async fn sweep(cluster: Cluster, node: NodeFacts, use_node_name_only: bool, events: Sender<Event>) {
    let mut complaint = Complaint::new("persistentvolumes");
    loop {
        let mut foreign = BTreeSet::new();
        let mut token: Option<String> = None;
        loop {
            match cluster.list(token.as_deref(), PAGE).await {
                Ok(page) => {
                    complaint.settled();
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
