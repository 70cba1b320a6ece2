//! The Job that wipes a block device in the agent's place (`useJobForCleaning`), as an API
//! object: what it is made of, and what one that is there says. Name and fields are those
//! of the Go provisioner's Job; owner, lifetime and annotations are added.
//!
//! What the Go provisioner's own scripts do, is done by `mooring wipe` of the image. It
//! claims the device by itself, and refuses any but the one with the digest that the agent
//! has claimed before.

mod at_work;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, EnvVar, HostPathVolumeSource, Pod, PodSpec, PodTemplateSpec, SecurityContext, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::method::{DEVICE_VARIABLE, Method, Verify};
use crate::plan::{ByJob, Target};
use crate::pv::HOSTNAME_LABEL;

pub use at_work::AtWork;

/// Labels of the Go provisioner: name and UID of the PV.
const PV_LABEL: &str = "pv";
const UID_LABEL: &str = "pvuuid";
/// Annotations of the Go provisioner: the device's path, and when the Job was made.
const DEVICE: &str = "device";
const START_TIME: &str = "start-time";
/// Our annotation: the digest of the device that the agent had claimed. Only Jobs of this
/// program have it.
const DIGEST: &str = "mooring.dev/identity-digest";
/// Our annotation: how the device is wiped.
const METHOD: &str = "mooring.dev/method";
/// By which the controller-manager finds the pods of a Job.
const JOB_LABEL: &str = "job-name";
/// Selects the pods of all Jobs.
pub const PODS_OF_ANY: &str = JOB_LABEL;
/// This program in its image.
const PROGRAM: &str = "/mooring";
/// How long a Job that has ended is kept for an agent that is not there to see it, in
/// seconds. The Job of a PV that is gone goes at once.
const KEPT: i32 = 24 * 60 * 60;

/// Where Jobs are made, and of which image: from the agent's environment.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// `MY_NAMESPACE`.
    pub namespace: Option<String>,
    /// `JOB_CONTAINER_IMAGE`.
    pub image: Option<String>,
}

/// The name of the Job for a PV.
#[must_use]
pub fn name(pv: &str) -> String {
    format!("cleanup-{pv}")
}

/// Selects the pods of a Job by its name.
#[must_use]
pub fn pods_of(job: &str) -> String {
    format!("{JOB_LABEL}={job}")
}

/// A Job to be made.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The volume.
    pub target: &'a Target,
    /// What its class says of Jobs.
    pub by: &'a ByJob,
    /// Where the Job is made.
    pub namespace: &'a str,
    /// What it runs: this program, or the one with the class's command.
    pub image: &'a str,
    /// Value of the Node's label `kubernetes.io/hostname`.
    pub hostname: &'a str,
    /// The digest of the device that was claimed, marked, and let go for the Job.
    pub digest: &'a str,
    /// The time.
    pub now: Timestamp,
}

impl Order<'_> {
    /// The API object.
    #[must_use]
    pub fn encode(&self) -> Job {
        let Target { pv, uid, rules, .. } = self.target;
        let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let (start, method) = (self.now.to_string(), rules.method.to_string());
        Job {
            metadata: ObjectMeta {
                name: Some(name(pv)),
                namespace: Some(self.namespace.to_owned()),
                labels: Some(text(&[(HOSTNAME_LABEL, self.hostname), (PV_LABEL, pv), (UID_LABEL, uid)])),
                annotations: Some(text(&[
                    (DEVICE, &self.path()),
                    (START_TIME, &start),
                    (DIGEST, self.digest),
                    (METHOD, &method),
                ])),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "PersistentVolume".to_owned(),
                    name: pv.clone(),
                    uid: uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(JobSpec {
                template: PodTemplateSpec { metadata: Some(ObjectMeta::default()), spec: Some(self.pod()) },
                ttl_seconds_after_finished: Some(KEPT),
                ..JobSpec::default()
            }),
            status: None,
        }
    }

    fn pod(&self) -> PodSpec {
        let (host_dir, mount_dir) = (&self.by.host_dir, &self.target.mount_dir);
        let directory = mount_name(host_dir, mount_dir);
        let volume = |name: &str, path: &str| Volume {
            name: name.to_owned(),
            host_path: Some(HostPathVolumeSource { path: path.to_owned(), type_: Some(String::new()) }),
            ..Volume::default()
        };
        let mount = |name: &str, path: &str| VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            ..VolumeMount::default()
        };
        let container = Container {
            name: "cleaner".to_owned(),
            image: Some(self.image.to_owned()),
            command: Some(self.command()),
            env: Some(vec![EnvVar { name: DEVICE_VARIABLE.to_owned(), value: Some(self.path()), value_from: None }]),
            security_context: Some(SecurityContext { privileged: Some(true), ..SecurityContext::default() }),
            // Its last words are all that is left of a pod that has failed.
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![mount(&directory, mount_dir), mount("dev", "/dev")]),
            ..Container::default()
        };
        PodSpec {
            containers: vec![container],
            node_selector: Some(BTreeMap::from([(HOSTNAME_LABEL.to_owned(), self.hostname.to_owned())])),
            restart_policy: Some("OnFailure".to_owned()),
            tolerations: Some(self.by.tolerations.clone()).filter(|tolerations| !tolerations.is_empty()),
            volumes: Some(vec![volume(&directory, host_dir), volume("dev", "/dev")]),
            ..PodSpec::default()
        }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.target.mount_dir, self.target.entry)
    }

    fn command(&self) -> Vec<String> {
        let rules = &self.target.rules;
        // The agent reads back by itself; but whether a discard has left zeros decides what
        // is done next.
        let verify = if rules.method == Method::Discard { rules.verify } else { Verify::None };
        let mut words = vec![PROGRAM, "wipe", "--yes", "--expect-identity", self.digest, "--verify", verify.as_str()];
        let passes = match &rules.method {
            Method::Command(command) => return command.clone(),
            Method::Zero { passes } | Method::Overwrite { passes } => Some(passes.to_string()),
            Method::Auto | Method::Discard | Method::Signatures => None,
        };
        words.extend(["--method", rules.method.as_str()]);
        words.extend(passes.iter().flat_map(|passes| ["--passes", passes]));
        let bandwidth = rules.bandwidth.map(|bytes| bytes.to_string());
        words.extend(bandwidth.iter().flat_map(|bytes| ["--bandwidth", bytes]));
        words.into_iter().map(str::to_owned).chain([self.path()]).collect()
    }
}

/// The Go provisioner's name for the volume of a discovery directory.
fn mount_name(host_dir: &str, mount_dir: &str) -> String {
    format!("mount-{:x}", crate::volume::fnv1a_32(host_dir.bytes().chain(mount_dir.bytes())))
}

/// What a Job of that name is to the wipe of a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// This program has made it for this very wipe.
    Ours(Progress),
    /// It has ended, and was for something else: the Go provisioner's, of another PV of
    /// the name, or of another method. It can go.
    Over(String),
    /// It may be at work on the volume, or its pod is: who it is, and what is to be waited for.
    InTheWay(String),
    /// It is no cleanup Job.
    Strange,
}

/// How far a Job of ours is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It has not ended.
    Underway {
        /// Whether its pod runs.
        runs: bool,
    },
    /// It says that it has wiped the device.
    Succeeded(Succeeded),
    /// It has given up: why.
    Failed(String),
}

/// A Job's word that it has wiped a device. Only [`judge`] makes one, of a Job of ours for
/// the PV that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succeeded {
    uid: String,
    digest: String,
}

impl Succeeded {
    /// UID of the PV.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The digest of the device that it was to wipe.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// The digest of the device that a Job of ours was made for.
#[must_use]
pub fn digest_of(job: &Job) -> Option<&str> {
    Some(job.metadata.annotations.as_ref()?.get(DIGEST)?)
}

/// What a Job of that PV's name is to its wipe.
#[must_use]
pub fn judge(job: &Job, target: &Target) -> Found {
    let label = |key: &str| job.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let annotation =
        |key: &str| job.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key)).map(String::as_str);
    let (Some(uid), true) = (label(UID_LABEL), label(PV_LABEL) == Some(&target.pv)) else { return Found::Strange };
    let status = job.status.as_ref();
    let end = ["Complete", "Failed"].into_iter().find_map(|kind| condition(status?, kind));
    if job.metadata.deletion_timestamp.is_some() {
        return Found::InTheWay("is being removed, and its pod has not ended".to_owned());
    }
    let digest = digest_of(job);
    let whose = match digest {
        _ if uid != target.uid => "it is of a PV of the same name that is gone",
        None => "it is the Go provisioner's",
        Some(_) if target.job.is_none() => "it was made before useJobForCleaning was taken out",
        Some(_) if annotation(METHOD) != Some(&target.rules.method.to_string()) => {
            "it was made for another method than the class has now"
        }
        Some(digest) => {
            return Found::Ours(match end {
                None => Progress::Underway { runs: status.is_some_and(|status| status.ready > Some(0)) },
                Some(("Complete", _)) => {
                    Progress::Succeeded(Succeeded { uid: uid.to_owned(), digest: digest.to_owned() })
                }
                Some((_, why)) => Progress::Failed(why),
            });
        }
    };
    match end {
        Some(_) => Found::Over(whose.to_owned()),
        None => Found::InTheWay(format!("has not ended ({whose})")),
    }
}

/// A condition that holds, and why.
fn condition<'k>(status: &JobStatus, kind: &'k str) -> Option<(&'k str, String)> {
    let mut conditions = status.conditions.iter().flatten();
    let it = conditions.find(|condition| condition.type_ == kind && condition.status == "True")?;
    Some((kind, said(it.reason.as_deref(), it.message.as_deref())))
}

fn said(reason: Option<&str>, message: Option<&str>) -> String {
    let parts = [reason, message].into_iter().flatten().map(str::trim).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(": ")
}

/// A pod that has not ended, by name.
#[must_use]
pub fn living(pods: &[Pod]) -> Option<&str> {
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let pod = pods.iter().find(|pod| !ended(pod))?;
    Some(pod.metadata.name.as_deref().unwrap_or_default())
}

/// What keeps the pods of a Job from doing their work, for people to read; empty when
/// nothing is known of it.
#[must_use]
pub fn trouble(pods: &[Pod]) -> String {
    let mut troubles = pods.iter().filter_map(|pod| pod.status.as_ref()).map(|status| {
        let containers = status.container_statuses.iter().flatten().filter_map(trouble_of);
        let conditions = status.conditions.iter().flatten().filter(|condition| condition.status == "False");
        let unscheduled = conditions
            .filter(|condition| condition.type_ == "PodScheduled")
            .map(|condition| said(condition.reason.as_deref(), condition.message.as_deref()));
        let of_pod = Some(said(status.reason.as_deref(), status.message.as_deref())).filter(|said| !said.is_empty());
        containers.chain(unscheduled).chain(of_pod).collect::<Vec<_>>().join("; ")
    });
    troubles.rfind(|trouble| !trouble.is_empty()).unwrap_or_default()
}

fn trouble_of(container: &ContainerStatus) -> Option<String> {
    let now = container.state.as_ref();
    let waits = now.and_then(|state| state.waiting.as_ref());
    let waits = waits.filter(|waiting| waiting.reason.as_deref() != Some("ContainerCreating"));
    let waits =
        waits.map(|waiting| format!("it waits: {}", said(waiting.reason.as_deref(), waiting.message.as_deref())));
    let ends = [now, container.last_state.as_ref()].into_iter().flatten();
    let end = ends.filter_map(|state| state.terminated.as_ref()).find(|end| end.exit_code != 0);
    let end = end.map(|end| {
        let words = said(None, end.message.as_deref());
        let words = if words.is_empty() { words } else { format!(": {words}") };
        format!("it ended with exit code {}{words}", end.exit_code)
    });
    let parts: Vec<_> = [end, waits].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("container {}: {}", container.name, parts.join("; ")))
}

#[cfg(test)]
#[path = "cleanup_job_tests.rs"]
mod tests;
