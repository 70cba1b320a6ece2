//! Block devices that are wiped by Jobs: the Job is the Go provisioner's, whatever becomes
//! of it is dealt with, and its word alone makes no disk clean.

mod kubelet;

use std::fs;
use std::os::unix::fs::symlink;

use k8s_openapi::api::batch::v1::Job;
use kube::api::ResourceExt;
use mooring::cleanup_job::Order;
use mooring::config::Config;
use mooring::identity::{DeviceIdentity, Identity};
use mooring::plan::{ByJob, Target};
use mooring::volume::fnv1a_32;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::claim::with_identity;
use crate::common::{SOON, wait_saying, wait_verdict};
use crate::harness::volumes::phase;
use crate::harness::{disk, rbac};
use crate::wipe_scene::{SECRET, first_not_zero, full_of_secrets, mark_on};
use kubelet::{IMAGE, JOB_MODE, SIZE, Scene, said};

const SHRED: &str = "volumeMode: Block\nblockCleanerCommand: [/scripts/shred.sh, '1']";
const PAGE: u64 = 4096;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cleanup-job.json");
    let text = fs::read_to_string(path).expect("the fixture is there");
    // The pod's name for the volume is a hash of the two directories: of those that the
    // recording was made with, in whose place it names others.
    let text = text.replace("mount-3676e2c4", &format!("mount-{:x}", fnv1a_32("/mnt/blk/mnt/in-pod".bytes())));
    serde_json::from_str(&text).expect("it is JSON")
}

/// Our Job for the recorded case, with that cleaner command.
fn ours(case: &Value, command: &Value) -> Value {
    let mut keys = case["config"].clone();
    keys["storageClassMap"]["blk"]["blockCleanerCommand"] = command.clone();
    // The recording says in words what was written there.
    keys["useJobForCleaning"] = json!("yes");
    let files = keys.as_object().expect("a config").iter().map(|(key, value)| (key.clone(), value.to_string()));
    let config = Config::parse(&files.collect()).expect("the config is valid");
    let class = &config.classes[0];
    let recorded = &case["job"]["metadata"];
    let text = |value: &Value| value.as_str().expect("it is text").to_owned();
    let target = Target {
        pv: text(&recorded["labels"]["pv"]),
        uid: text(&recorded["labels"]["pvuuid"]),
        rules: class.wipe.clone(),
        ..with_identity(class.mount_dir.as_ref(), "d1", Identity::Device(DeviceIdentity::default()).into())
    };
    let order = Order {
        target: &target,
        by: &ByJob { host_dir: class.host_dir.clone(), tolerations: config.job_tolerations.clone() },
        namespace: case["env"]["MY_NAMESPACE"].as_str().expect("it is text"),
        image: case["env"]["JOB_CONTAINER_IMAGE"].as_str().expect("it is text"),
        hostname: case["env"]["MY_NODE_NAME"].as_str().expect("it is text"),
        digest: "0123456789abcdef",
        now: recorded["annotations"]["start-time"].as_str().expect("it is text").parse().expect("it is a time"),
    };
    serde_json::to_value(order.encode()).expect("a Job is JSON")
}

/// Takes off what is added to the Go provisioner's Job.
fn without_our_own(mut job: Value) -> Value {
    let metadata = job["metadata"].as_object_mut().expect("it is an object");
    assert!(metadata.remove("ownerReferences").is_some(), "it goes with its PV");
    let annotations = metadata["annotations"].as_object_mut().expect("it is an object");
    annotations.retain(|key, _| !key.starts_with("mooring.dev/"));
    let spec = job["spec"].as_object_mut().expect("it is an object");
    assert!(spec.remove("ttlSecondsAfterFinished").is_some(), "it does not stay for ever");
    let container = spec["template"]["spec"]["containers"][0].as_object_mut().expect("it is an object");
    assert!(container.remove("terminationMessagePolicy").is_some(), "its last words are kept");
    job
}

#[test]
fn a_job_is_the_go_provisioners_but_for_what_is_added() {
    let case = golden();
    let container = "/spec/template/spec/containers/0/command";
    let own = json!(["/opt/own.sh", "now"]);
    let mut expected = case["job"].clone();
    *expected.pointer_mut(container).expect("it has a command") = own.clone();
    assert_eq!(without_our_own(ours(&case, &own)), expected, "a command of the admin's own is run as it is");
    // The shipped script is this program's to do.
    let mut shred = without_our_own(ours(&case, &case["config"]["storageClassMap"]["blk"]["blockCleanerCommand"]));
    let command = shred.pointer_mut(container).expect("it has a command");
    assert_eq!(command[0], "/mooring");
    *command = own;
    assert_eq!(shred, expected);
}

/// The Go provisioner's counter of what became of PVs of devices that Jobs wipe.
fn counted(what: &str) -> String {
    format!("local_volume_provisioner_persistentvolume_{what}_total{{mode=\"Block\",type=\"job\"}}")
}

#[tokio::test]
async fn a_job_shreds_the_disk_and_the_pv_is_offered_anew() {
    let scene = Scene::new("job-shred", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let job = scene.job(None).await;
    let pod = scene.pod(&job).await;
    // Until somebody has read it back, the disk is half wiped, whatever the Job does.
    assert!(mark_on(&scene.disk.device).is_some());
    assert_eq!(wait_verdict(&agent, &scene.class, "disk", "Wiping").await, "");
    let output = scene.run(&pod);
    assert!(output.status.success(), "{}", said(&output));
    assert!(scene.is_there(&pv).await, "the agent does not go by the disk alone");
    scene.succeed(&pod).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    assert!(!scene.disk.backing_contains(SECRET));
    let receipt = scene.node.wait_event(&pv.name_any(), "VolumeWiped", "method job overwrite", SOON).await;
    assert!(receipt.contains("verification sample"), "{receipt}");
    agent.wait_metric("mooring_wipes_total{outcome=\"success\"}", |count| count == 1.0, SOON).await;
    agent.wait_metric(&counted("delete"), |count| count == 1.0, SOON).await;
    scene.no_job().await;
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_command_of_the_admins_own_runs_in_its_image() {
    let zero = "volumeMode: Block\nblockCleanerCommand:\n- sh\n- -c\n- \
                dd if=/dev/zero of=$LOCAL_PV_BLKDEVICE bs=1M conv=fsync count=4 status=none";
    let scene = Scene::new("job-command", zero).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let pod = scene.pod(&scene.job(None).await).await;
    let container = &pod.spec.as_ref().expect("it has one").containers[0];
    assert_eq!(container.image.as_deref(), Some(IMAGE));
    assert_eq!(container.command.as_ref().map(|words| (words[0].as_str(), words.len())), Some(("sh", 3)));
    // It may need what is at the ends of the disk.
    assert_eq!(mark_on(&scene.disk.device), None);
    assert!(scene.disk.read_all().starts_with(SECRET));
    assert!(scene.run(&pod).status.success());
    scene.succeed(&pod).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_job_that_fails_is_told_and_another_one_does_it() {
    let scene = Scene::new("job-fails", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let first = scene.job(None).await;
    scene.crash(&scene.pod(&first).await, 1, "the disk burns", &pv).await;
    let told = scene.failed("failed: BackoffLimitExceeded", &pv).await;
    assert!(told.contains(&format!("{}/cleanup-{}", scene.namespace, pv.name_any())), "{told}");
    assert!(told.contains("container cleaner: it ended with exit code 1: the disk burns"), "{told}");
    agent.wait_metric("mooring_wipes_total{outcome=\"failed\"}", |count| count >= 1.0, SOON).await;
    agent.wait_metric(&counted("delete_failed"), |count| count >= 1.0, SOON).await;
    let second = scene.job(Some(&first)).await;
    scene.do_it(&second).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn an_agent_that_was_killed_goes_on_waiting_for_the_same_job() {
    let scene = Scene::new("job-killed", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let job = scene.job(None).await;
    let pod = scene.pod(&job).await;
    agent.signal(Signal::SIGKILL);
    drop(agent);
    let agent = scene.start(JOB_MODE);
    agent.wait_log("Job is there already", SOON).await;
    assert_eq!(wait_verdict(&agent, &scene.class, "disk", "Wiping").await, "");
    // Stopped in order, it leaves the Job alone as well; and the Job ends without it.
    agent.signal(Signal::SIGTERM);
    agent.wait_log("Stopped", SOON).await;
    drop(agent);
    assert!(scene.run(&pod).status.success());
    scene.succeed(&pod).await;
    assert_eq!(scene.jobs().await.iter().map(ResourceExt::uid).collect::<Vec<_>>(), [job.uid()], "one Job only");
    let agent = scene.start(JOB_MODE);
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    assert!(!agent.logs().iter().any(|line| line.contains("Job is made")), "the first one has done it");
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_job_of_before_a_boot_gives_place_to_another() {
    let scene = Scene::new("job-boot", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let first = scene.job(None).await;
    agent.signal(Signal::SIGKILL);
    drop(agent);
    // A digest holds for one boot.
    scene.annotate(&first, "mooring.dev/identity-digest", "0123456789abcdef").await;
    let agent = scene.start(JOB_MODE);
    scene.do_it(&scene.job(Some(&first)).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_disk_that_takes_the_place_while_the_job_waits_is_not_touched() {
    let scene = Scene::new("job-exchange", SHRED).await;
    let other = disk::LoopDisk::attach(full_of_secrets(scene.node.dir(), SIZE));
    let before = other.read_all();
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let first = scene.job(None).await;
    let pod = scene.pod(&first).await;
    let put = |device| {
        fs::remove_file(&scene.link).expect("a link can be removed");
        symlink(device, &scene.link).expect("a link can be made");
    };
    put(&other.device);
    let output = scene.run(&pod);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("the digest of what is there is"), "{}", said(&output));
    scene.crash(&pod, 3, &said(&output), &pv).await;
    scene.failed("failed: BackoffLimitExceeded", &pv).await;
    wait_verdict(&agent, &scene.class, "disk", "IdentityChanged").await;
    assert!(other.read_all() == before, "not a byte of it");
    // With the right one back, it is done.
    put(&scene.disk.device);
    scene.do_it(&scene.job(Some(&first)).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    assert!(other.read_all() == before, "not a byte of it");
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_job_that_lies_is_found_out_and_done_again() {
    let scene = Scene::new("job-lies", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    // It has done nothing at all.
    let first = scene.job(None).await;
    scene.succeed(&scene.pod(&first).await).await;
    scene.failed("the mark of the wipe is still there", &pv).await;
    // It has zeroed both ends.
    let second = scene.job(Some(&first)).await;
    let end = u64::try_from(SIZE).expect("it fits") - PAGE;
    for place in [0, end] {
        scene.disk.write_at(place, &vec![0; usize::try_from(PAGE).expect("it fits")]);
    }
    scene.succeed(&scene.pod(&second).await).await;
    scene.failed("byte 4096 is not zero", &pv).await;
    assert!(scene.disk.backing_contains(SECRET) && scene.is_there(&pv).await);
    scene.do_it(&scene.job(Some(&second)).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn an_agent_that_may_not_patch_waits_for_the_go_provisioners_job_and_makes_none() {
    let scene = Scene::without_rights("job-old", "volumeMode: Block").await;
    let account = format!("go-{}", scene.node.name());
    rbac::apply_old(&scene.node.client(), &account).await;
    scene.grant_rights_to(&account).await;
    let kubeconfig = scene.node.kubeconfig_of(rbac::NAMESPACE, &account).await.display().to_string();
    let agent = scene.start_with(JOB_MODE, &[("KUBECONFIG", &kubeconfig)]);
    let (pv, claim) = scene.claimed(&agent).await;
    let job = job_of_the_go_provisioner(&scene, &pv).await;
    scene.node.release(&claim).await;
    wait_saying(&agent, &scene.class, "disk", "Busy", "has not ended (it is the Go provisioner's)").await;
    assert!(scene.disk.read_all().starts_with(SECRET));
    scene.succeed(&scene.pod(&job).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    assert_eq!(scene.jobs().await.len(), 0, "the agent has wiped it itself");
    drop(agent);
    scene.clean_up().await;
}

/// The Go provisioner's Job for the PV, made before this agent came.
async fn job_of_the_go_provisioner(scene: &Scene, pv: &k8s_openapi::api::core::v1::PersistentVolume) -> Job {
    let mut job = golden()["job"].take();
    let name = pv.name_any();
    job["metadata"]["name"] = json!(format!("cleanup-{name}"));
    job["metadata"]["namespace"] = json!(scene.namespace);
    job["metadata"]["labels"]["pv"] = json!(name);
    job["metadata"]["labels"]["pvuuid"] = json!(pv.uid());
    let job: Job = serde_json::from_value(job).expect("it is a Job");
    scene.create(&job).await
}

#[tokio::test]
async fn a_job_of_the_go_provisioner_that_has_not_ended_keeps_its_volume() {
    let scene = Scene::new("job-go", "volumeMode: Block").await;
    for keys in [&[][..], JOB_MODE] {
        let agent = scene.start(keys);
        let pv = scene.claimed(&agent).await;
        let job = job_of_the_go_provisioner(&scene, &pv.0).await;
        scene.node.release(&pv.1).await;
        wait_saying(&agent, &scene.class, "disk", "Busy", "has not ended (it is the Go provisioner's)").await;
        let now = scene.node.wait_pv(&scene.link, |now| phase(now) == "Released", SOON).await;
        assert_eq!(now.metadata.finalizers, pv.0.metadata.finalizers, "it is not even fenced");
        assert!(scene.disk.read_all().starts_with(SECRET));
        // It has ended, and is not believed.
        scene.succeed(&scene.pod(&job).await).await;
        if !keys.is_empty() {
            scene.do_it(&scene.job(Some(&job)).await).await;
        }
        scene.offered_anew(&pv.0).await;
        assert_eq!(first_not_zero(&scene.disk.backing), None);
        scene.no_job().await;
    }
    scene.clean_up().await;
}

/// A Job of another hand for the disk, of a PV of that name that was never seen here.
async fn job_on_the_disk(scene: &Scene, pv: &str, directory: &str) -> Job {
    let mut job = golden()["job"].take();
    let spec = &mut job["spec"]["template"]["spec"];
    for place in ["/volumes/0/hostPath/path", "/containers/0/volumeMounts/0/mountPath"] {
        *spec.pointer_mut(place).expect("the fixture has it") = json!(directory);
    }
    spec["containers"][0]["env"][0]["value"] = json!(format!("{directory}/disk"));
    spec["nodeSelector"]["kubernetes.io/hostname"] = json!(scene.node.name());
    job["metadata"]["name"] = json!(format!("cleanup-{pv}"));
    job["metadata"]["namespace"] = json!(scene.namespace);
    job["metadata"]["labels"]["pv"] = json!(pv);
    job["metadata"]["labels"]["kubernetes.io/hostname"] = json!(scene.node.name());
    scene.create(&serde_json::from_value(job).expect("it is a Job")).await
}

#[tokio::test]
async fn a_device_is_not_offered_while_a_job_of_a_pv_that_is_gone_is_at_work_on_it() {
    // Known by its PV's name; or by the path, under another class's name for it.
    for (tag, by_name, keys) in [("job-left", true, &[][..]), ("job-path", false, JOB_MODE)] {
        let scene = Scene::new(tag, "volumeMode: Block").await;
        let usual = mooring::pv::pv_name("disk", scene.node.name(), &scene.class);
        let disks = scene.disks.display().to_string();
        let (name, directory) = if by_name { (&*usual, "/elsewhere") } else { ("local-pv-former", &*disks) };
        let job = job_on_the_disk(&scene, name, directory).await;
        let pod = scene.pod(&job).await;
        let agent = scene.start(keys);
        let why = wait_verdict(&agent, &scene.class, "disk", "Busy").await;
        assert!(why.contains(&format!("the Job {}/cleanup-{name} has not ended", scene.namespace)), "{why}");
        if !by_name {
            // Nor while only the pod is left of it.
            scene.orphan(&job).await;
            scene.no_job().await;
            let line = agent.wait_log("its pod", SOON).await;
            assert!(line.contains(&format!("{} has not ended", pod.name_any())), "{line}");
        }
        assert_eq!(scene.node.pvs().await.len(), 0, "no PV has been made");
        scene.succeed(&pod).await;
        scene.node.wait_pv(&scene.link, |pv| phase(pv) == "Available", SOON).await;
        drop(agent);
        scene.clean_up().await;
    }
}

#[tokio::test]
async fn without_the_right_to_make_jobs_or_an_image_nothing_is_touched() {
    let scene = Scene::without_rights("job-rights", SHRED).await;
    let agent = scene.start_with(JOB_MODE, &[("JOB_CONTAINER_IMAGE", "")]);
    let pv = scene.release(&agent).await;
    scene.failed("JOB_CONTAINER_IMAGE", &pv).await;
    drop(agent);
    let agent = scene.start(JOB_MODE);
    let told = scene.failed("lacks a right", &pv).await;
    assert!(told.contains("deploy/manifests/jobs.yaml"), "{told}");
    assert!(scene.disk.read_all().starts_with(SECRET));
    let now = scene.node.wait_pv(&scene.link, |now| phase(now) == "Released", SOON).await;
    assert!(now.metadata.deletion_timestamp.is_none(), "it is not even fenced");
    // It goes on by itself when it may.
    scene.grant_rights().await;
    scene.do_it(&scene.job(None).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_hold_ends_the_job_and_another_one_begins_without_it() {
    let scene = Scene::new("job-hold", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let first = scene.job(None).await;
    scene.pod(&first).await;
    scene.node.hold(&pv.name_any(), true).await;
    scene.no_job().await;
    wait_saying(&agent, &scene.class, "disk", "Pending", "mooring.dev/hold").await;
    assert!(mark_on(&scene.disk.device).is_some(), "it is never taken for clean");
    scene.node.hold(&pv.name_any(), false).await;
    scene.do_it(&scene.job(Some(&first)).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_job_that_does_not_get_on_is_told_and_waited_for() {
    let scene = Scene::new("job-stuck", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let job = scene.job(None).await;
    let pod = scene.pod(&job).await;
    scene.wait_for_image(&pod, "no such image").await;
    let told = scene.failed("ImagePullBackOff: no such image", &pv).await;
    assert!(told.contains("does not get on"), "{told}");
    wait_verdict(&agent, &scene.class, "disk", "Wiping").await;
    scene.do_it(&job).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_job_that_somebody_removes_is_made_anew_once_its_pod_has_ended() {
    let scene = Scene::new("job-removed", SHRED).await;
    let agent = scene.start(JOB_MODE);
    let pv = scene.release(&agent).await;
    let first = scene.job(None).await;
    let pod = scene.pod(&first).await;
    scene.orphan(&first).await;
    scene.failed("was removed by somebody", &pv).await;
    wait_saying(&agent, &scene.class, "disk", "Busy", &format!("its pod {} has not ended", pod.name_any())).await;
    assert_eq!(scene.jobs().await.len(), 0);
    scene.succeed(&pod).await;
    scene.do_it(&scene.job(Some(&first)).await).await;
    scene.offered_anew(&pv).await;
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    drop(agent);
    scene.clean_up().await;
}

#[tokio::test]
async fn a_filesystem_is_emptied_by_the_agent_itself_in_job_mode_too() {
    let scene = Scene::new("job-fs", "").await;
    let volume = scene.disks.join("v");
    disk::tmpfs(&volume, 1 << 20);
    let agent = scene.start(JOB_MODE);
    let pv = scene.node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
    let claim = scene.node.bind(&pv.name_any()).await;
    fs::write(volume.join("secret"), SECRET).expect("a file can be written");
    scene.node.release(&claim).await;
    scene.node.wait_pv(&volume, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
    assert_eq!(fs::read_dir(&volume).expect("it can be read").count(), 0);
    assert_eq!(scene.jobs().await.len(), 0);
    drop(agent);
    scene.clean_up().await;
}
