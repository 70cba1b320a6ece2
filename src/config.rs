//! The ConfigMap's text, made valid by construction: whoever holds a [`Config`]
//! need not check it again. The keys and their meaning are those of
//! sig-storage-local-static-provisioner, so that its ConfigMaps are read unchanged.
//! Each key arrives as a file of its own (a projected ConfigMap volume).

mod class;
mod duration;
mod fit;
mod former;
mod keys;
mod neighbours;
mod problem;
mod scalar;
mod wipe;
pub(crate) mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};

use crate::method::WipeRules;
use crate::pattern::NamePattern;
use crate::volume::{AccessMode, VolumeMode};

use fit::{Data, Fitter, Value};
use keys::CLASSES;

pub use former::Former;
pub use keys::known as known_keys;
pub use problem::{ConfigError, Place, Problem, Severity};
pub use wipe::DirtyPolicy;

/// What to discover and how to publish it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The classes, in the order of their names: where two pick the same entry, the first wins.
    pub classes: Vec<Class>,
    /// `nodeLabelsForPV`: labels copied from the Node, where it has them.
    pub node_labels: Vec<String>,
    /// `labelsForPV`: labels added to each PV; they win over copied ones.
    pub labels: BTreeMap<String, String>,
    /// `useNodeNameOnly`: leave the Node's UID out of the provisioner's name.
    pub use_node_name_only: bool,
    /// `setPVOwnerRef`: make the Node the owner of its PVs.
    pub set_pv_owner_ref: bool,
    /// `minResyncPeriod`: how often everything is looked at again without a cause.
    pub resync: Duration,
    /// `maxParallelWipes`: devices that are wiped at the same time.
    pub max_parallel_wipes: usize,
    /// `withdrawAfter`: how long the volume of an unclaimed PV may be gone before the PV is
    /// removed.
    pub withdraw_after: Duration,
    /// `useJobForCleaning`: block devices are wiped by a Job, not by the agent.
    pub use_job_for_cleaning: bool,
    /// `jobTolerations`: the tolerations of those Jobs.
    pub job_tolerations: Vec<Toleration>,
    /// `provisionerNotReadyNodeTaintKey`, with `removeNodeNotReadyTaint`: the key of the
    /// taint that is taken off the Node once its volumes are published.
    pub start_up_taint: Option<String>,
    /// `holdTaintForBoundVolumes`: that taint stays while the volume of a claim is missing.
    pub hold_taint_for_bound_volumes: bool,
    /// Classes that are configured no more, but may have PVs; the latest first.
    pub former: Vec<Former>,
    /// The text of `storageClassMap`.
    map: Source,
    /// The `hostDir`s of each `mountDir` in the first config before that had it, since this
    /// process began.
    shown: BTreeMap<String, BTreeSet<String>>,
}

/// How something was written: of two that mean the same, it makes no difference.
#[derive(Clone, Debug, Default)]
struct Source(Arc<str>);

impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One entry of `storageClassMap`.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Name of the StorageClass.
    pub name: String,
    /// The discovery directory as the kubelet sees it: absolute, no trailing slash.
    pub host_dir: String,
    /// The same directory as this process sees it.
    pub mount_dir: String,
    /// Mode of the PVs.
    pub mode: VolumeMode,
    /// Access mode of the PVs.
    pub access_mode: AccessMode,
    /// `local.fsType` of the PVs.
    pub fs_type: Option<String>,
    /// Which entries the class takes.
    pub pattern: NamePattern,
    /// Terms appended to the node affinity, ORed with the Node's own.
    pub selector: Vec<NodeSelectorTerm>,
    /// `wipe`, or else `blockCleanerCommand`: how its volumes are wiped.
    pub wipe: WipeRules,
    /// `wipeAfter`: how long a Released volume is left alone, so that its release can be
    /// undone.
    pub wipe_after: Duration,
    /// `dirty`: what becomes of a volume that has not been seen before.
    pub dirty: DirtyPolicy,
}

impl Class {
    /// The path that a PV for the entry carries.
    #[must_use]
    pub fn host_path(&self, entry: &str) -> String {
        format!("{}/{entry}", self.host_dir.trim_end_matches('/'))
    }

    /// The entry's name when the path is exactly a first-level entry of this
    /// class's directory as the kubelet sees it.
    #[must_use]
    pub fn entry_of<'p>(&self, host_path: &'p str) -> Option<&'p str> {
        let entry = host_path.strip_prefix(self.host_dir.trim_end_matches('/'))?.strip_prefix('/')?;
        (!entry.is_empty() && !entry.contains('/') && entry != "." && entry != "..").then_some(entry)
    }
}

/// A ConfigMap that can be used, and what is odd about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What it says.
    pub config: Config,
    /// What may not be meant, in the order of the text; none is an error.
    pub warnings: Vec<Problem>,
}

/// How often everything is looked at again, when nothing is said of it.
const RESYNC: Duration = Duration::from_secs(300);

impl Config {
    /// Reads the files of a ConfigMap: key to text. What is only odd is not told:
    /// [`Config::read`] does.
    ///
    /// # Errors
    /// All that is wrong, with its place.
    pub fn parse(files: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        Self::read(files).map(|parsed| parsed.config)
    }

    /// Reads the files of a ConfigMap: key to text.
    ///
    /// # Errors
    /// All that is wrong or odd, with its place.
    pub fn read(files: &BTreeMap<String, String>) -> Result<Parsed, ConfigError> {
        let mut fitter = Fitter::default();
        let values = values(&mut fitter, files);
        let config = config(&mut fitter, &values);
        let mut problems = fitter.problems;
        problems.sort();
        match config {
            Some(config) if !problems.iter().any(Problem::is_error) => {
                let map =
                    files.iter().find(|(key, _)| key.eq_ignore_ascii_case(CLASSES)).map(|(_, text)| text.as_str());
                let config = Self { map: Source(map.unwrap_or_default().into()), ..config };
                Ok(Parsed { config, warnings: problems })
            }
            _ => Err(ConfigError { problems }),
        }
    }

    /// The class of that name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|class| class.name == name)
    }

    /// The directories to look at, each once, as this process sees them.
    #[must_use]
    pub fn mount_dirs(&self) -> std::collections::BTreeSet<String> {
        self.present_and_former().map(|class| class.mount_dir.clone()).collect()
    }
}

/// Whether YAML takes text without quotes and tag for text: not for a number, a truth
/// value, or nothing.
#[must_use]
pub fn is_text(text: &str) -> bool {
    matches!(scalar::resolve(None, text, true), Ok(scalar::Scalar::Text(_)))
}

/// The values of the known keys, by their right spelling.
fn values(fitter: &mut Fitter, files: &BTreeMap<String, String>) -> BTreeMap<&'static str, Value> {
    let mut values = BTreeMap::new();
    for (name, text) in files {
        name.clone_into(&mut fitter.key);
        let same = keys::KEYS.iter().find(|key| key.name == name);
        let Some(key) = same.or_else(|| keys::KEYS.iter().find(|key| key.name.eq_ignore_ascii_case(name))) else {
            let suggestion = problem::suggestion(name, keys::KEYS.iter().map(|key| key.name));
            fitter.warn(None, format!("{name}: there is no such key, and it is ignored{suggestion}"));
            continue;
        };
        if key.name != name {
            fitter.warn(None, format!("{name}: the key is spelled {}", key.name));
        }
        let mut documents = match yaml::documents(text) {
            Ok(documents) => documents.into_iter(),
            Err(yaml::Fault { place, text }) => {
                fitter.error(Some(place), format!("{}: {text}", key.name));
                continue;
            }
        };
        let Some(node) = documents.next() else { continue };
        if let Some(second) = documents.next() {
            fitter.error(Some(second.place), format!("{}: a second document begins; a key has one value", key.name));
        }
        if let Some(value) = fitter.fit(&node, &key.shape, key.name)
            && values.insert(key.name, value).is_some()
        {
            fitter.warn(None, format!("{} is there in two spellings; this one counts", key.name));
        }
    }
    values
}

/// The config, as far as its values can be used; what is wrong with them goes to `fitter`.
fn config(fitter: &mut Fitter, values: &BTreeMap<&'static str, Value>) -> Option<Config> {
    let flag = |key| values.get(key).and_then(Value::as_bool).unwrap_or(false);
    let classes = classes(fitter, values.get(CLASSES));
    "useAlphaAPI".clone_into(&mut fitter.key);
    if let Some(value) = values.get("useAlphaAPI").filter(|_| flag("useAlphaAPI")) {
        let problem = "useAlphaAPI: the alpha form of node affinity ended with Kubernetes 1.10; remove the key";
        fitter.error(Some(value.place), problem.to_owned());
    }
    let node_labels = node_labels(fitter, values.get("nodeLabelsForPV"));
    let labels = labels(fitter, values.get("labelsForPV"));
    let resync = resync(fitter, values.get("minResyncPeriod"));
    let max_parallel_wipes = max_parallel_wipes(fitter, values.get("maxParallelWipes"));
    let withdraw_after = withdraw_after(fitter, values.get("withdrawAfter"));
    let start_up_taint = start_up_taint(fitter, values, flag("removeNodeNotReadyTaint"));
    Some(Config {
        classes,
        node_labels,
        labels,
        use_node_name_only: flag("useNodeNameOnly"),
        set_pv_owner_ref: flag("setPVOwnerRef"),
        resync,
        max_parallel_wipes: max_parallel_wipes?,
        withdraw_after: withdraw_after?,
        use_job_for_cleaning: flag("useJobForCleaning"),
        job_tolerations: values
            .get("jobTolerations")
            .map(|value| value.elements().iter().map(Value::decode).collect())
            .unwrap_or_default(),
        start_up_taint,
        hold_taint_for_bound_volumes: flag("holdTaintForBoundVolumes"),
        former: Vec::new(),
        map: Source::default(),
        shown: BTreeMap::new(),
    })
}

fn classes(fitter: &mut Fitter, value: Option<&Value>) -> Vec<Class> {
    CLASSES.clone_into(&mut fitter.key);
    let no_classes = BTreeMap::new();
    let entries = match value {
        Some(Value { data: Data::Map(entries), .. }) => entries,
        _ => &no_classes,
    };
    // What did not fit was told.
    if entries.is_empty() && !fitter.has_error(CLASSES) {
        let problem =
            format!("the key {CLASSES} is missing or empty: name at least one class with hostDir and mountDir");
        fitter.error(value.map(|value| value.place), problem);
    }
    let read = entries.iter().map(|(name, (at, entry))| (*at, class::read(fitter, name, *at, entry)));
    let read: Vec<(Place, Option<Class>)> = read.collect();
    let (places, classes): (Vec<Place>, Vec<Class>) =
        read.into_iter().filter_map(|(at, class)| Some((at, class?))).unzip();
    neighbours::check(fitter, &classes, &places);
    classes
}

fn node_labels(fitter: &mut Fitter, value: Option<&Value>) -> Vec<String> {
    "nodeLabelsForPV".clone_into(&mut fitter.key);
    for label in value.map(Value::elements).unwrap_or_default() {
        if let Some(problem) = class::label_problem(label.as_text().unwrap_or_default(), "") {
            fitter.warn(Some(label.place), format!("nodeLabelsForPV: {problem}, and no Node has it"));
        }
    }
    value.map(Value::texts).unwrap_or_default()
}

fn labels(fitter: &mut Fitter, value: Option<&Value>) -> BTreeMap<String, String> {
    "labelsForPV".clone_into(&mut fitter.key);
    let Some(Value { data: Data::Map(entries), .. }) = value else { return BTreeMap::new() };
    let labels = entries.iter().map(|(key, (at, value))| {
        let text = value.as_text().unwrap_or_default();
        if let Some(problem) = class::label_problem(key, text) {
            fitter.error(Some(*at), format!("labelsForPV: {problem}"));
        }
        (key.clone(), text.to_owned())
    });
    labels.collect()
}

/// The Go provisioner runs with zero and less, and then never looks again without a cause.
fn resync(fitter: &mut Fitter, value: Option<&Value>) -> Duration {
    "minResyncPeriod".clone_into(&mut fitter.key);
    let Some((value, text)) = value.and_then(|value| Some((value, value.as_text()?))) else { return RESYNC };
    match duration::parse(text) {
        Ok(Duration::ZERO) | Err(duration::DurationError::Negative) => {
            let problem = format!("minResyncPeriod: {text:?} is no positive duration; 5m is used");
            fitter.warn(Some(value.place), problem);
            RESYNC
        }
        Ok(period) => period,
        Err(error) => {
            let problem = class::duration_problem(text, error);
            fitter.error(Some(value.place), format!("minResyncPeriod: {problem}"));
            RESYNC
        }
    }
}

fn max_parallel_wipes(fitter: &mut Fitter, value: Option<&Value>) -> Option<usize> {
    "maxParallelWipes".clone_into(&mut fitter.key);
    let Some((value, wipes)) = value.and_then(|value| Some((value, value.as_int()?))) else { return Some(4) };
    let problem = match usize::try_from(wipes) {
        Ok(0) => "with 0, nothing would ever be wiped; to hold wipes, annotate the Node with mooring.dev/hold",
        Ok(wipes) => return Some(wipes),
        Err(_) => "it is below zero; expected a number such as 4",
    };
    fitter.error(Some(value.place), format!("maxParallelWipes: {problem}"));
    None
}

fn withdraw_after(fitter: &mut Fitter, value: Option<&Value>) -> Option<Duration> {
    "withdrawAfter".clone_into(&mut fitter.key);
    match value.and_then(|value| Some((value, value.as_text()?))) {
        None => Some(Duration::from_secs(30)),
        Some((value, text)) => {
            let note = |error| {
                let problem = class::duration_problem(text, error);
                fitter.error(Some(value.place), format!("withdrawAfter: {problem}"));
            };
            duration::parse(text).map_err(note).ok()
        }
    }
}

fn start_up_taint(fitter: &mut Fitter, values: &BTreeMap<&'static str, Value>, is_removed: bool) -> Option<String> {
    "removeNodeNotReadyTaint".clone_into(&mut fitter.key);
    let key = values.get("provisionerNotReadyNodeTaintKey").and_then(Value::as_text);
    if is_removed && key.is_none() {
        let place = values.get("removeNodeNotReadyTaint").map(|value| value.place);
        let problem = "removeNodeNotReadyTaint: no taint is removed; name its key by provisionerNotReadyNodeTaintKey";
        fitter.warn(place, problem.to_owned());
    }
    key.filter(|_| is_removed).map(str::to_owned)
}

#[cfg(test)]
mod go_tests;
#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
