//! A device whose claim is gone, a namespace for its Jobs, and the kubelet's part, played
//! by the test: it runs a pod's command for real, and tells the API server how it ended.
//! All else is the controller-manager's.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::common::SOON;
use crate::harness::agent::{Agent, AgentOptions};
use crate::harness::config_dir::storage_class_map;
use crate::harness::disk::LoopDisk;
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{launch, rbac, shared};
use crate::wipe_scene::{SECRET, full_of_secrets};

pub const IMAGE: &str = "example/cleaner:1";
pub const JOB_MODE: &[(&str, &str)] = &[("useJobForCleaning", "yes")];
pub const SIZE: usize = 4 << 20;
const POLL: Duration = Duration::from_millis(20);

pub struct Scene {
    pub node: TestNode,
    pub namespace: String,
    pub class: String,
    pub disks: PathBuf,
    pub disk: LoopDisk,
    pub link: PathBuf,
    further: &'static str,
}

/// What a program has said.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Scene {
    /// A disk `disk` of a class with these further lines, and all rights for Jobs.
    pub async fn new(tag: &str, further: &'static str) -> Self {
        let scene = Self::without_rights(tag, further).await;
        scene.grant_rights().await;
        scene
    }

    pub async fn without_rights(tag: &str, further: &'static str) -> Self {
        let node = TestNode::new(shared(), tag).await;
        let class = node.class("raw", "Delete").await;
        let disks = node.discovery_dir("disks");
        let disk = LoopDisk::attach(full_of_secrets(node.dir(), SIZE));
        // A class without Jobs is no place for a device.
        let link = disk.link(if further.is_empty() { node.dir() } else { &disks }, "disk");
        let namespace = node.name().to_owned();
        let object: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": namespace } })).expect("it is one");
        let namespaces: Api<Namespace> = Api::all(node.client());
        namespaces.create(&PostParams::default(), &object).await.expect("a namespace can be made");
        Self { node, namespace, class, disks, disk, link, further }
    }

    pub async fn grant_rights(&self) {
        self.grant_rights_to(rbac::SERVICE_ACCOUNT).await;
    }

    /// Gives an agent's account the rights of the deployment's manifest in this namespace,
    /// and waits until they are in force.
    pub async fn grant_rights_to(&self, account: &str) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/manifests/jobs.yaml");
        let text = std::fs::read_to_string(path).expect("the manifest is there");
        let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(&text).expect("it is valid YAML");
        for mut object in objects {
            object.metadata.namespace = Some(self.namespace.clone());
            if let Some(subject) = object.data.pointer_mut("/subjects/0/name") {
                *subject = json!(account);
            }
            let text = serde_json::to_string(&object).expect("it is JSON");
            rbac::apply_manifest(&self.node.client(), &text).await;
        }
        for (group, resource, verb) in [("batch", "jobs", "create"), ("", "pods", "list")] {
            eventually("the rights", async || self.may(account, group, resource, verb).await.then_some(())).await;
        }
    }

    async fn may(&self, account: &str, group: &str, resource: &str, verb: &str) -> bool {
        let attributes = ResourceAttributes {
            namespace: Some(self.namespace.clone()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{}:{account}", rbac::NAMESPACE)),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.node.client());
        let answer = reviews.create(&PostParams::default(), &review).await.expect("the API server reviews access");
        answer.status.is_some_and(|status| status.allowed)
    }

    /// Starts an agent with these keys besides the class.
    pub fn start(&self, keys: &[(&str, &str)]) -> Agent {
        self.start_with(keys, &[])
    }

    /// As [`Self::start`], with further environment variables.
    pub fn start_with(&self, keys: &[(&str, &str)], env: &[(&str, &str)]) -> Agent {
        let map = storage_class_map(&[(&self.class, &self.disks, self.further)]);
        let config: Vec<_> = [("storageClassMap", map.as_str())].into_iter().chain(keys.iter().copied()).collect();
        let usual = [("MY_NAMESPACE", self.namespace.as_str()), ("JOB_CONTAINER_IMAGE", IMAGE)];
        let env: Vec<_> = usual.into_iter().chain(env.iter().copied()).collect();
        Agent::start(
            &self.node,
            AgentOptions { config: &config, args: &["--v=4"], env: &env, ..AgentOptions::default() },
        )
    }

    /// Claims the device, and fills it.
    pub async fn claimed(&self, _: &Agent) -> (PersistentVolume, PersistentVolumeClaim) {
        let pv = self.node.wait_pv(&self.link, |pv| phase(pv) == "Available", SOON).await;
        let claim = self.node.bind(&pv.name_any()).await;
        let content: Vec<u8> = SECRET.iter().copied().cycle().take(SIZE).collect();
        self.disk.write_at(0, &content);
        (pv, claim)
    }

    /// As [`Self::claimed`], and lets go of it.
    pub async fn release(&self, agent: &Agent) -> PersistentVolume {
        let (pv, claim) = self.claimed(agent).await;
        self.node.release(&claim).await;
        pv
    }

    /// Waits until another PV offers the device, which nobody does to what is half wiped.
    pub async fn offered_anew(&self, before: &PersistentVolume) {
        let is_new = |pv: &PersistentVolume| phase(pv) == "Available" && pv.uid() != before.uid();
        self.node.wait_pv(&self.link, is_new, SOON).await;
    }

    pub async fn is_there(&self, pv: &PersistentVolume) -> bool {
        self.node.pvs().await.iter().any(|now| now.uid() == pv.uid())
    }

    /// Waits for the Event that says that the volume was not wiped, and with these words.
    pub async fn failed(&self, words: &str, pv: &PersistentVolume) -> String {
        self.node.wait_event(&pv.name_any(), "VolumeFailedDelete", words, SOON).await
    }

    fn jobs_api(&self) -> Api<Job> {
        Api::namespaced(self.node.client(), &self.namespace)
    }

    fn pods_api(&self) -> Api<Pod> {
        Api::namespaced(self.node.client(), &self.namespace)
    }

    pub async fn jobs(&self) -> Vec<Job> {
        self.jobs_api().list(&ListParams::default()).await.expect("Jobs can be listed").items
    }

    pub async fn create(&self, job: &Job) -> Job {
        self.jobs_api().create(&PostParams::default(), job).await.expect("a Job can be made")
    }

    /// Sets an annotation of a Job.
    pub async fn annotate(&self, job: &Job, key: &str, value: &str) {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { key: value } } }));
        self.jobs_api().patch(&job.name_any(), &PatchParams::default(), &patch).await.expect("a Job can be annotated");
    }

    /// Waits for the Job after another one.
    pub async fn job(&self, after: Option<&Job>) -> Job {
        let after = after.and_then(kube::ResourceExt::uid);
        eventually("a Job", async || self.jobs().await.into_iter().find(|job| job.uid() != after)).await
    }

    /// Waits until there is none.
    pub async fn no_job(&self) {
        eventually("no Job", async || self.jobs().await.is_empty().then_some(())).await;
    }

    /// Removes a Job, and leaves its pods alone.
    pub async fn orphan(&self, job: &Job) {
        let params =
            DeleteParams { propagation_policy: Some(kube::api::PropagationPolicy::Orphan), ..Default::default() };
        self.jobs_api().delete(&job.name_any(), &params).await.expect("a Job can be deleted");
    }

    /// Waits for a Job's pod.
    pub async fn pod(&self, job: &Job) -> Pod {
        let (api, name, uid) = (self.pods_api(), job.name_any(), job.uid().expect("an object has a UID"));
        let of_job = ListParams::default().labels(&format!("job-name={name}"));
        let is_its = |pod: &Pod| pod.owner_references().iter().any(|owner| owner.uid == uid);
        eventually("a pod", async || {
            api.list(&of_job).await.expect("pods can be listed").items.into_iter().find(is_its)
        })
        .await
    }

    /// Runs what the pod is to run, with the disks where they are. An agent of another test may have
    /// the loop device open for a moment, to ask what it is on: then it is started again.
    pub fn run(&self, pod: &Pod) -> Output {
        let deadline = Instant::now() + SOON;
        loop {
            let output = self.run_once(pod);
            if !said(&output).contains("in use: open in process") || Instant::now() > deadline {
                return output;
            }
            std::thread::sleep(POLL);
        }
    }

    fn run_once(&self, pod: &Pod) -> Output {
        let container = &pod.spec.as_ref().expect("a pod has a spec").containers[0];
        let [program, arguments @ ..] = container.command.as_deref().expect("it has a command") else {
            panic!("the command is empty");
        };
        let mut command = match program.as_str() {
            "/mooring" => launch::command_line(&launch::binary(None)),
            program => Command::new(program),
        };
        for variable in container.env.iter().flatten() {
            command.env(&variable.name, variable.value.as_deref().unwrap_or_default());
        }
        command.args(arguments).stdin(Stdio::null()).output().expect("it can be run")
    }

    /// Runs a Job's pod to its good end.
    pub async fn do_it(&self, job: &Job) {
        let pod = self.pod(job).await;
        let output = self.run(&pod);
        assert!(output.status.success(), "{}", said(&output));
        self.succeed(&pod).await;
    }

    /// Says that the pod has ended well.
    pub async fn succeed(&self, pod: &Pod) {
        let ended = json!({ "terminated": { "exitCode": 0, "reason": "Completed" } });
        self.report(pod, "Succeeded", &json!({ "restartCount": 0, "state": ended })).await;
    }

    /// Says that the container has ended so, and waits until the agent tells it; then that it
    /// has ended so again and again. The controller-manager removes the pod at once.
    pub async fn crash(&self, pod: &Pod, code: i32, words: &str, pv: &PersistentVolume) {
        let ended = json!({ "terminated": { "exitCode": code, "reason": "Error", "message": words } });
        let waits = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        for restarts in [1, 7] {
            let container = json!({ "restartCount": restarts, "state": waits, "lastState": ended });
            self.report(pod, "Running", &container).await;
            self.failed(&format!("does not get on: container cleaner: it ended with exit code {code}"), pv).await;
        }
    }

    /// Says that there is no such image.
    pub async fn wait_for_image(&self, pod: &Pod, words: &str) {
        let waits = json!({ "waiting": { "reason": "ImagePullBackOff", "message": words } });
        self.report(pod, "Pending", &json!({ "restartCount": 0, "state": waits })).await;
    }

    async fn report(&self, pod: &Pod, phase: &str, container: &Value) {
        let mut status = json!({ "name": "cleaner", "image": IMAGE, "imageID": "", "ready": false });
        let more = container.as_object().expect("it is an object").clone();
        status.as_object_mut().expect("it is an object").extend(more);
        let patch = json!({ "status": { "phase": phase, "containerStatuses": [status] } });
        let patched =
            self.pods_api().patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.expect("a pod's status can be written");
    }

    pub async fn clean_up(self) {
        let namespaces: Api<Namespace> = Api::all(self.node.client());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.expect("a namespace can be deleted");
        self.node.clean_up().await;
    }
}

/// Waits until the question has an answer.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        sleep(POLL).await;
    }
}
