//! Who may still be at work on a device of this node: a Job that has not ended, or a pod
//! that is left of one, whichever PV it was made for.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::{JOB_LABEL, PV_LABEL, condition};
use crate::method::DEVICE_VARIABLE;
use crate::pv::HOSTNAME_LABEL;

/// A Job, or a pod of one, that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtWork {
    /// The name of the Job.
    job: String,
    /// The PV that it was made for.
    pv: Option<String>,
    /// The path of the device on the node.
    path: Option<String>,
    /// What is to be waited for.
    what: String,
}

impl AtWork {
    /// The Job, if it has not ended. Of one that has, a pod may be left.
    #[must_use]
    pub fn of_job(job: &Job) -> Option<Self> {
        let has_ended = |status| ["Complete", "Failed"].into_iter().any(|kind| condition(status, kind).is_some());
        if job.status.as_ref().is_some_and(has_ended) {
            return None;
        }
        let labels = job.metadata.labels.as_ref();
        let path = job.spec.as_ref().and_then(|spec| path_of(spec.template.spec.as_ref()?));
        Some(Self {
            job: job.metadata.name.clone()?,
            pv: labels.and_then(|labels| labels.get(PV_LABEL)).cloned(),
            path,
            what: "has not ended".to_owned(),
        })
    }

    /// The pod of a Job, if it runs or is to run on the node with that label. It has not ended, the caller knows.
    #[must_use]
    pub fn of_pod(pod: &Pod, hostname: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let selected = spec.node_selector.as_ref().and_then(|selector| selector.get(HOSTNAME_LABEL));
        if selected.is_none_or(|selected| selected != hostname) {
            return None;
        }
        let job = pod.metadata.labels.as_ref()?.get(JOB_LABEL)?.clone();
        let what = format!("may be gone, but its pod {} has not ended", pod.metadata.name.as_deref()?);
        Some(Self { pv: job.strip_prefix("cleanup-").map(str::to_owned), job, path: path_of(spec), what })
    }

    /// Whether it may be at work on what has that path on the node, or was offered by the PV of that name.
    #[must_use]
    pub fn is_on(&self, pv: &str, path: &str) -> bool {
        self.pv.as_deref() == Some(pv) || self.path.as_deref() == Some(path)
    }

    /// Who it is, and what is to be waited for.
    #[must_use]
    pub fn describe(&self, namespace: &str) -> String {
        format!("the Job {namespace}/{} {}", self.job, self.what)
    }
}

/// Where the device that a pod is to wipe is on the node: its variable names the path in the container.
fn path_of(pod: &PodSpec) -> Option<String> {
    let container = pod.containers.first()?;
    let variable = container.env.iter().flatten().find(|variable| variable.name == DEVICE_VARIABLE)?;
    let device = variable.value.as_deref()?;
    let below = |mount: &str| device.strip_prefix(mount.trim_end_matches('/'))?.strip_prefix('/');
    let mounts = container.volume_mounts.iter().flatten();
    let seen = mounts.filter_map(|mount| Some((&mount.name, below(&mount.mount_path)?)));
    // The innermost mount is the one that shows it.
    let (name, entry) = seen.min_by_key(|(_, entry)| entry.len())?;
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == *name)?;
    Some(format!("{}/{entry}", volume.host_path.as_ref()?.path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(device: &str) -> Value {
        json!({
            "nodeSelector": { "kubernetes.io/hostname": "n1" },
            "containers": [{
                "name": "cleaner",
                "env": [{ "name": "LOCAL_PV_BLKDEVICE", "value": device }],
                "volumeMounts": [
                    { "name": "all", "mountPath": "/mnt" },
                    { "name": "m", "mountPath": "/mnt/in-pod/" },
                    { "name": "dev", "mountPath": "/dev" },
                ],
            }],
            "volumes": [
                { "name": "all", "hostPath": { "path": "/wrong" } },
                { "name": "m", "hostPath": { "path": "/mnt/disks" } },
                { "name": "dev", "hostPath": { "path": "/dev" } },
            ],
        })
    }

    fn job(device: &str, status: &Value) -> Job {
        let labels = json!({ "pv": "local-pv-1" });
        let template = json!({ "spec": spec(device) });
        let job = json!({
            "metadata": { "name": "cleanup-local-pv-1", "labels": labels },
            "spec": { "template": template },
            "status": status,
        });
        serde_json::from_value(job).expect("it is a Job")
    }

    #[test]
    fn a_job_that_has_not_ended_is_known_by_its_pv_and_by_the_path_on_the_node() {
        let it = AtWork::of_job(&job("/mnt/in-pod/d1", &json!({ "active": 1 }))).expect("it has not ended");
        for (pv, path, is_on) in [
            ("local-pv-1", "/elsewhere", true),
            ("another", "/mnt/disks/d1", true),
            ("another", "/mnt/disks/d10", false),
            ("another", "/mnt/in-pod/d1", false),
        ] {
            assert_eq!(it.is_on(pv, path), is_on, "{pv} {path}");
        }
        assert_eq!(it.describe("ns"), "the Job ns/cleanup-local-pv-1 has not ended");
        // Of what says nothing of a path, the name is known.
        let it = AtWork::of_job(&job("/nowhere", &Value::Null)).expect("it has not ended");
        assert!(it.is_on("local-pv-1", "/x") && !it.is_on("another", "/nowhere"));
    }

    #[test]
    fn a_job_that_has_ended_is_not_at_work_and_one_that_is_being_removed_may_be() {
        for (kind, has_ended) in [("Complete", true), ("Failed", true), ("Suspended", false)] {
            let job = job("/mnt/in-pod/d1", &json!({ "conditions": [{ "type": kind, "status": "True" }] }));
            assert_eq!(AtWork::of_job(&job).is_none(), has_ended, "{kind}");
        }
        let mut job = job("/mnt/in-pod/d1", &json!({}));
        job.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").ok();
        assert!(AtWork::of_job(&job).is_some());
    }

    #[test]
    fn a_pod_of_a_job_is_known_on_its_own_node() {
        let labels = json!({ "job-name": "cleanup-local-pv-1" });
        let pod = json!({ "metadata": { "name": "p", "labels": labels }, "spec": spec("/mnt/in-pod/d1") });
        let pod: Pod = serde_json::from_value(pod).expect("it is a pod");
        let it = AtWork::of_pod(&pod, "n1").expect("it is one");
        assert!(it.is_on("another", "/mnt/disks/d1") && it.is_on("local-pv-1", "/x"));
        assert!(it.describe("ns").ends_with("its pod p has not ended"));
        assert_eq!(AtWork::of_pod(&pod, "n2"), None);
    }
}
