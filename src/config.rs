//! The ConfigMap's text, made valid by construction: whoever holds a [`Config`]
//! need not check it again. The keys and their meaning are those of
//! sig-storage-local-static-provisioner, so that its ConfigMaps are read unchanged.
//! Each key arrives as a file of its own (a projected ConfigMap volume).

mod former;
mod wipe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::method::WipeRules;
use crate::pattern::NamePattern;
use crate::volume::{AccessMode, VolumeMode};

pub use former::Former;
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
    /// Classes that are configured no more, but may have PVs; the latest first.
    pub former: Vec<Former>,
    /// The text of `storageClassMap`.
    map: Arc<str>,
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

/// Why a ConfigMap can't be used: which key, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No `storageClassMap`, or an empty one.
    #[error("the key storageClassMap is missing or empty: name at least one class with hostDir and mountDir")]
    NoClasses,
    /// The value of a key is not the YAML that it should be.
    #[error("the key {key} can't be read: {problem}")]
    Syntax {
        /// Key of the ConfigMap.
        key: &'static str,
        /// The parser's words, with line and column.
        problem: String,
    },
    /// A value has the right form but no usable meaning.
    #[error("{place}: {problem}")]
    Value {
        /// Where, such as `storageClassMap.fast.volumeMode`.
        place: String,
        /// What is wrong and what is expected.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClass {
    host_dir: Option<String>,
    mount_dir: Option<String>,
    volume_mode: Option<String>,
    access_mode: Option<String>,
    fs_type: Option<String>,
    name_pattern: Option<String>,
    block_cleaner_command: Option<Vec<String>>,
    selector: Option<Vec<NodeSelectorTerm>>,
    wipe: Option<wipe::RawWipe>,
    wipe_after: Option<String>,
    dirty: Option<String>,
}

impl Config {
    /// Reads the files of a ConfigMap: key to text. Unknown keys are ignored.
    ///
    /// # Errors
    /// The first value that can't be used, with its place.
    pub fn parse(files: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let raw: BTreeMap<String, RawClass> = value(files, "storageClassMap")?.ok_or(ConfigError::NoClasses)?;
        if raw.is_empty() {
            return Err(ConfigError::NoClasses);
        }
        if value(files, "useAlphaAPI")?.unwrap_or(false) {
            return Err(ConfigError::Value {
                place: "useAlphaAPI".to_owned(),
                problem: "the alpha form of node affinity ended with Kubernetes 1.10; remove the key".to_owned(),
            });
        }
        let classes = raw.into_iter().map(|(name, raw)| class(name, raw)).collect::<Result<_, _>>()?;
        Ok(Self {
            classes,
            node_labels: value(files, "nodeLabelsForPV")?.unwrap_or_default(),
            labels: value::<BTreeMap<String, Option<String>>>(files, "labelsForPV")?
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.unwrap_or_default()))
                .collect(),
            use_node_name_only: value(files, "useNodeNameOnly")?.unwrap_or(false),
            set_pv_owner_ref: value(files, "setPVOwnerRef")?.unwrap_or(false),
            resync: value::<String>(files, "minResyncPeriod")?
                .map_or(Ok(Duration::from_secs(300)), |text| period("minResyncPeriod", &text))?,
            max_parallel_wipes: match value::<usize>(files, "maxParallelWipes")?.unwrap_or(4) {
                0 => {
                    return Err(ConfigError::Value {
                        place: "maxParallelWipes".to_owned(),
                        problem: "with 0, nothing would ever be wiped; to hold wipes, annotate the Node with \
                                  mooring.dev/hold"
                            .to_owned(),
                    });
                }
                wipes => wipes,
            },
            withdraw_after: value::<String>(files, "withdrawAfter")?
                .map_or(Ok(Duration::from_secs(30)), |text| duration("withdrawAfter", &text))?,
            use_job_for_cleaning: value(files, "useJobForCleaning")?.unwrap_or(false),
            job_tolerations: value(files, "jobTolerations")?.unwrap_or_default(),
            start_up_taint: value::<bool>(files, "removeNodeNotReadyTaint")?
                .unwrap_or(false)
                .then(|| value::<String>(files, "provisionerNotReadyNodeTaintKey"))
                .transpose()?
                .flatten(),
            former: Vec::new(),
            map: files.get("storageClassMap").map(String::as_str).unwrap_or_default().into(),
        })
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

/// The value of a key; an absent one, an empty one and `null` are the same. Where a map
/// has a key twice, the last one counts.
fn value<T: DeserializeOwned>(files: &BTreeMap<String, String>, key: &'static str) -> Result<Option<T>, ConfigError> {
    let Some(text) = files.get(key).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| ConfigError::Syntax { key, problem: error.to_string() })
}

/// A duration above zero.
fn period(place: &str, text: &str) -> Result<Duration, ConfigError> {
    match duration(place, text)? {
        Duration::ZERO => Err(ConfigError::Value {
            place: place.to_owned(),
            problem: format!("{text:?} is no positive duration such as 5m or 1h30m"),
        }),
        period => Ok(period),
    }
}

fn duration(place: &str, text: &str) -> Result<Duration, ConfigError> {
    let parsed: Option<jiff::SignedDuration> = text.parse().ok();
    // Go writes no time as "0", without a unit.
    let parsed = if text == "0" { Some(jiff::SignedDuration::ZERO) } else { parsed };
    parsed.filter(|duration| !duration.is_negative()).map(jiff::SignedDuration::unsigned_abs).ok_or_else(|| {
        ConfigError::Value { place: place.to_owned(), problem: format!("{text:?} is no duration such as 30s or 1h30m") }
    })
}

fn class(name: String, raw: RawClass) -> Result<Class, ConfigError> {
    let wrong =
        |field: &str, problem: String| ConfigError::Value { place: format!("storageClassMap.{name}.{field}"), problem };
    let unknown =
        |field: &str, text: &str, expected: &str| wrong(field, format!("{text:?} is unknown; expected {expected}"));
    let host_dir = directory(raw.host_dir).map_err(|problem| wrong("hostDir", problem))?;
    let mount_dir = directory(raw.mount_dir).map_err(|problem| wrong("mountDir", problem))?;
    let mode = match text(raw.volume_mode) {
        None => VolumeMode::default(),
        Some(text) => VolumeMode::parse(&text).ok_or_else(|| unknown("volumeMode", &text, "Filesystem or Block"))?,
    };
    let access_mode = match text(raw.access_mode) {
        None => AccessMode::default(),
        Some(text) => AccessMode::parse(&text).ok_or_else(|| {
            unknown("accessMode", &text, "ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod")
        })?,
    };
    let pattern = match text(raw.name_pattern) {
        None => NamePattern::default(),
        Some(text) => NamePattern::parse(&text).map_err(|error| wrong("namePattern", error.to_string()))?,
    };
    if raw.block_cleaner_command.as_ref().is_some_and(Vec::is_empty) {
        return Err(wrong(
            "blockCleanerCommand",
            "an empty list cleans nothing; name a command, or remove the key".to_owned(),
        ));
    }
    let wipe = wipe::rules(raw.block_cleaner_command.as_deref(), raw.wipe);
    Ok(Class {
        wipe: wipe.map_err(|(field, problem)| wrong(field, problem))?,
        wipe_after: match text(raw.wipe_after) {
            None => Duration::ZERO,
            Some(text) => duration(&format!("storageClassMap.{name}.wipeAfter"), &text)?,
        },
        dirty: match text(raw.dirty) {
            None => DirtyPolicy::default(),
            Some(text) => {
                DirtyPolicy::parse(&text).ok_or_else(|| unknown("dirty", &text, "publish, quarantine or wipe"))?
            }
        },
        host_dir,
        mount_dir,
        mode,
        access_mode,
        fs_type: text(raw.fs_type),
        pattern,
        selector: raw.selector.unwrap_or_default(),
        name,
    })
}

/// An absent and an empty string mean the same in the Go provisioner.
fn text(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

/// An absolute path without `.`, `..` and needless slashes.
fn directory(value: Option<String>) -> Result<String, String> {
    let path = text(value).ok_or("is missing; name an absolute path")?;
    if !path.starts_with('/') || path.contains('\0') {
        return Err(format!("{path:?} is no absolute path"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("{path:?} must not contain \"..\""));
    }
    if parts.is_empty() {
        return Err("the root directory can't be a discovery directory".to_owned());
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
    }

    fn one_class(entry: &str) -> Result<Config, ConfigError> {
        Config::parse(&files(&[("storageClassMap", &format!("fast: {entry}"))]))
    }

    #[test]
    fn a_full_configmap_is_read() {
        let config = Config::parse(&files(&[
            (
                "storageClassMap",
                "ssd:\n   hostDir: /mnt/ssd/\n   mountDir: /in//pod/./ssd\n   blockCleanerCommand:\n     - /scripts/shred.sh\n     - \"2\"\n   volumeMode: Block\n   accessMode: ReadWriteOncePod\n   fsType: xfs\n   namePattern: nvme*,sd?\nhdd: {hostDir: /mnt/hdd, mountDir: /mnt/hdd}\n",
            ),
            ("nodeLabelsForPV", "- zone\n- rack\n"),
            ("labelsForPV", "env: prod\n"),
            ("useNodeNameOnly", "yes"),
            ("setPVOwnerRef", "\"true\""),
            ("minResyncPeriod", "\"7m30s\"\n"),
            ("somethingElse", "{{{"),
        ]))
        .expect("the ConfigMap is valid");
        assert_eq!(config.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["hdd", "ssd"]);
        let ssd = config.class("ssd").expect("the class is there");
        assert_eq!((ssd.host_dir.as_str(), ssd.mount_dir.as_str()), ("/mnt/ssd", "/in/pod/ssd"));
        assert_eq!((ssd.mode, ssd.access_mode), (VolumeMode::Block, AccessMode::ReadWriteOncePod));
        assert!(ssd.pattern.matches("sda") && !ssd.pattern.matches("sda1"));
        assert_eq!(config.node_labels, ["zone", "rack"]);
        assert!(config.use_node_name_only && config.set_pv_owner_ref);
        assert_eq!(config.resync, Duration::from_secs(450));
    }

    #[test]
    fn what_is_empty_null_or_given_twice_is_read_as_in_go() {
        let config = Config::parse(&files(&[
            ("storageClassMap", "a: {hostDir: /a, mountDir: /a}\na: {hostDir: /b, mountDir: /b, fsType: null}\n"),
            ("useNodeNameOnly", "# not set\n"),
            ("setPVOwnerRef", "null"),
            ("labelsForPV", "a:\nb: x\n"),
            ("nodeLabelsForPV", "[]"),
            ("minResyncPeriod", "# not set"),
        ]))
        .expect("the ConfigMap is valid");
        assert_eq!((config.classes.len(), config.classes[0].host_dir.as_str()), (1, "/b"));
        assert!(!config.use_node_name_only && !config.set_pv_owner_ref);
        assert_eq!((config.labels["a"].as_str(), config.labels["b"].as_str()), ("", "x"));
        assert_eq!(config.resync, Duration::from_secs(300));
    }

    #[test]
    fn a_period_is_a_positive_duration() {
        for (text, seconds) in [("5m", Some(300)), ("1h30m", Some(5_400)), ("5m0s", Some(300)), ("90s", Some(90))] {
            assert_eq!(period("minResyncPeriod", text).ok().map(|period| period.as_secs()), seconds, "{text}");
        }
        for text in ["", "0s", "-5m", "5m-10m", "5", "99999999999999999h", "soon"] {
            assert!(period("minResyncPeriod", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        for (entry, words) in [
            ("{mountDir: /a}", "storageClassMap.fast.hostDir: is missing"),
            ("{hostDir: a, mountDir: /a}", "no absolute path"),
            ("{hostDir: /a/../etc, mountDir: /a}", "must not contain"),
            ("{hostDir: /, mountDir: /a}", "root directory"),
            ("{hostDir: /a, mountDir: /a, volumeMode: block}", "expected Filesystem or Block"),
            ("{hostDir: /a, mountDir: /a, accessMode: RWO}", "expected ReadWriteOnce"),
            ("{hostDir: /a, mountDir: /a, namePattern: \"[\"}", "is not closed"),
            ("{hostDir: /a, mountDir: /a, blockCleanerCommand: []}", "cleans nothing"),
            ("[1]", "the key storageClassMap can't be read"),
        ] {
            let error = one_class(entry).expect_err(entry).to_string();
            assert!(error.contains(words), "{entry}: {error}");
        }
        assert!(matches!(Config::parse(&files(&[])), Err(ConfigError::NoClasses)));
    }

    #[test]
    fn only_first_level_entries_belong_to_a_class() {
        let config = one_class("{hostDir: /mnt/disks/, mountDir: /x}").expect("the class is valid");
        let class = &config.classes[0];
        assert_eq!(class.entry_of(&class.host_path("a b")), Some("a b"));
        for path in
            ["/mnt/disks", "/mnt/disks/", "/mnt/disks/a/b", "/mnt/disks2/a", "/mnt/disks/..", "/mnt/disks/.", "a"]
        {
            assert_eq!(class.entry_of(path), None, "{path}");
        }
    }
}
