//! What the decision depends on besides the scan: the cluster and the ledger; and what is
//! assumed where they can't be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::{Options, Problem};
use crate::cache::read;
use crate::cli::wipe::STATE_DIR;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::ledger::{Entry, Ledger, State};
use crate::metrics::Metrics;
use crate::pv::{Claim, OwnedPv, Phase};
use crate::state_dir::StateDir;
use crate::volume::{NodeFacts, ReclaimPolicy, StorageClassFacts};

/// All of it.
pub struct Facts {
    /// With the classes that it had before.
    pub config: Config,
    pub cluster: ClusterFacts,
    pub ledger: Ledger,
    /// Whether there is, or will be, a state directory.
    pub durable: bool,
    /// What is assumed, a sentence each.
    pub assumed: Vec<String>,
}

/// What an API server knows.
pub struct ClusterFacts {
    pub node: NodeFacts,
    pub classes: BTreeMap<String, StorageClassFacts>,
    pub owned: BTreeMap<String, OwnedPv>,
    pub foreign: BTreeMap<String, BTreeSet<String>>,
}

/// Reads it.
pub fn gather(options: &Options) -> Result<Facts, Problem> {
    let mut assumed = Vec::new();
    let mut config = options.config.clone();
    let (ledger, durable) = ledger(options.state_dir.as_deref(), &mut config, &mut assumed)?;
    let cluster = if options.offline { offline(options, &ledger, &mut assumed) } else { online(options)? };
    if !options.offline {
        assumed.push(
            "What a running agent waits out after a failure is not known here (its page /volumes shows it), and \
             whether somebody uses a volume is looked at when its wipe begins"
                .to_owned(),
        );
    }
    Ok(Facts { config, cluster, ledger, durable, assumed })
}

/// What the state directory knows; the classes that are configured no more go to `config`.
fn ledger(named: Option<&Path>, config: &mut Config, assumed: &mut Vec<String>) -> Result<(Ledger, bool), Problem> {
    let directory = named.unwrap_or(Path::new(STATE_DIR));
    if directory.is_dir() {
        let (ledger, classes) = StateDir::read_only(directory)?;
        let problems = classes.map(|text| config.recall(&text)).unwrap_or_default();
        assumed.extend(problems.into_iter().map(|problem| format!("Classes of before are not known: {problem}")));
        return Ok((ledger, true));
    }
    assumed.push(if named.is_some() {
        format!("There is no state directory {} yet: the agent makes it, and knows no volume", directory.display())
    } else {
        format!("There is no state directory {}: the agent runs without one, and knows no volume", directory.display())
    });
    Ok((Ledger::default(), named.is_some()))
}

fn online(options: &Options) -> Result<ClusterFacts, Problem> {
    let no_cluster = |error: &dyn std::fmt::Display| Problem::Cluster(format!("the cluster can't be asked: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| no_cluster(&error))?.block_on(async {
        let connected = Cluster::connect(Arc::new(Metrics::default())).await;
        let (cluster, _) = connected.map_err(|error| no_cluster(&format!("{error:#}")))?;
        let name_only = options.config.use_node_name_only;
        let cache = read::read(&cluster.read_only(), &options.node_name, name_only).await;
        let cache = cache.map_err(|error| no_cluster(&error))?;
        Ok(ClusterFacts {
            node: cache.node().expect("what was read is complete").clone(),
            classes: cache.classes().clone(),
            owned: cache.owned().clone(),
            foreign: cache.foreign().clone(),
        })
    })
}

/// A cluster in which everything is as it should be.
fn offline(options: &Options, ledger: &Ledger, assumed: &mut Vec<String>) -> ClusterFacts {
    let name = &options.node_name;
    assumed.extend([
        "The StorageClasses of the config exist, with reclaimPolicy Delete and without mountOptions".to_owned(),
        format!("The Node {name} has the label kubernetes.io/hostname={name} and no other, and no mooring.dev/hold"),
        "The PVs are those that the ledger knows, as it saw them last; of PVs of others nothing is known".to_owned(),
    ]);
    let facts = StorageClassFacts { reclaim_policy: ReclaimPolicy::Delete, mount_options: Vec::new() };
    let node =
        NodeFacts { name: name.clone(), uid: "unknown".to_owned(), hostname: name.clone(), ..NodeFacts::default() };
    let mut owned = from_ledger(ledger);
    for owned in owned.values_mut() {
        let labels = owned.labels.changes(&options.config, &node).map(|changes| owned.labels.with(&changes));
        owned.labels = labels.map_or_else(Arc::default, Arc::new);
    }
    ClusterFacts {
        node,
        classes: options.config.classes.iter().map(|class| (class.name.clone(), facts.clone())).collect(),
        owned,
        foreign: BTreeMap::new(),
    }
}

/// The PVs that the ledger's entries are about. Of two about one PV, the newer counts.
fn from_ledger(ledger: &Ledger) -> BTreeMap<String, OwnedPv> {
    let mut entries: Vec<&Entry> = ledger.entries().collect();
    entries.sort_by_key(|entry| entry.as_of);
    let pv_of = |entry: &Entry| {
        let (pv, phase, claim) = match &entry.state {
            State::Offered { pv, .. } => (pv, Phase::Available, None),
            State::Used { pv, claim, .. } => (pv, Phase::Bound, claim.as_ref()),
            State::Wiping { pv, claim, .. } => (pv, Phase::Released, claim.as_ref()),
            State::AsFound | State::Clean | State::Quarantined { .. } | State::Retired { .. } => return None,
        };
        let uid = entry.state.uid().filter(|uid| !uid.is_empty() && !pv.is_empty())?;
        Some((pv.to_string(), owned(entry, pv, uid, phase, claim)))
    };
    entries.into_iter().filter_map(pv_of).collect()
}

fn owned(entry: &Entry, pv: &str, uid: &str, phase: Phase, claim: Option<&Claim>) -> OwnedPv {
    OwnedPv {
        name: pv.to_owned(),
        class: entry.class.to_string(),
        path: entry.path.to_string(),
        reclaim_policy: ReclaimPolicy::Delete,
        former: false,
        mount_options: Vec::new(),
        labels: Arc::default(),
        owner: None,
        labelled: true,
        uid: uid.to_owned(),
        resource_version: String::new(),
        phase,
        since: None,
        claim: claim.cloned().map(Box::new),
        capacity: None,
        identity: Some(entry.identity.clone()),
        garbled: false,
        entry: Some(entry.id.0),
        word: None,
        hold: false,
        accepted: None,
        reclaiming: None,
        quarantined: false,
        terminating: phase == Phase::Released,
        fenced: phase == Phase::Released,
        free_of_finalizers: phase != Phase::Released,
    }
}
