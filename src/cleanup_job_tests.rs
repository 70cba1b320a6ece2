use super::*;
use crate::method::WipeRules;
use crate::testing;
use serde_json::{Value, json};

fn by() -> ByJob {
    ByJob { host_dir: "/h/c".to_owned(), tolerations: Vec::new() }
}

fn target(method: Method) -> Target {
    let rules = WipeRules { method, ..WipeRules::default() };
    Target { rules, job: Some(by()), ..testing::target("a", 1) }
}

fn job(target: &Target) -> Job {
    let (by, now) = (by(), Timestamp::UNIX_EPOCH);
    let (namespace, image, hostname, digest) = ("ns", "image", "n1", "0123456789abcdef");
    Order { target, by: &by, namespace, image, hostname, digest, now }.encode()
}

fn with_status(target: &Target, status: Value) -> Job {
    Job { status: Some(serde_json::from_value(status).expect("it is a status")), ..job(target) }
}

fn ended(target: &Target, kind: &str) -> Job {
    let condition = json!({ "type": kind, "status": "True", "reason": "Because", "message": "of this" });
    with_status(target, json!({ "conditions": [condition] }))
}

fn command(rules: WipeRules) -> String {
    let target = Target { rules, ..target(Method::Auto) };
    let spec = job(&target).spec.and_then(|spec| spec.template.spec).expect("a Job has a pod");
    spec.containers[0].command.as_ref().expect("it has a command").join(" ")
}

#[test]
fn what_the_scripts_do_is_done_by_this_program_and_a_command_runs_as_it_is() {
    let wipe = "/mooring wipe --yes --expect-identity 0123456789abcdef --verify";
    let full = |method| WipeRules { method, verify: Verify::Full, ..WipeRules::default() };
    for (rules, expected) in [
        (full(Method::Auto), format!("{wipe} none --method auto /m/c/a")),
        (full(Method::Overwrite { passes: 2 }), format!("{wipe} none --method overwrite --passes 2 /m/c/a")),
        (full(Method::Discard), format!("{wipe} full --method discard /m/c/a")),
        (full(Method::Signatures), format!("{wipe} none --method signatures /m/c/a")),
        (
            WipeRules { bandwidth: Some(200 << 20), ..full(Method::Zero { passes: 1 }) },
            format!("{wipe} none --method zero --passes 1 --bandwidth 209715200 /m/c/a"),
        ),
        (full(Method::Command(vec!["/bin/own".to_owned(), "x y".to_owned()])), "/bin/own x y".to_owned()),
    ] {
        assert_eq!(command(rules), expected);
    }
}

#[test]
fn only_a_job_for_this_very_wipe_has_a_word_in_it() {
    let target = target(Method::Overwrite { passes: 2 });
    let succeeded = Succeeded { uid: target.uid.clone(), digest: "0123456789abcdef".to_owned() };
    let ours = |job: &Job| judge(job, &target);
    assert_eq!(ours(&job(&target)), Found::Ours(Progress::Underway { runs: false }));
    let running = with_status(&target, json!({ "active": 1, "ready": 1 }));
    assert_eq!(ours(&running), Found::Ours(Progress::Underway { runs: true }));
    assert_eq!(ours(&ended(&target, "Complete")), Found::Ours(Progress::Succeeded(succeeded)));
    assert_eq!(ours(&ended(&target, "Failed")), Found::Ours(Progress::Failed("Because: of this".to_owned())));
    // Its end is not decided before its pod has ended.
    assert_eq!(ours(&ended(&target, "SuccessCriteriaMet")), Found::Ours(Progress::Underway { runs: false }));

    let without = |key: &str, mut job: Job| {
        job.metadata.annotations.as_mut().expect("it has some").remove(key);
        job
    };
    let of_another_pv = Target { uid: "another".to_owned(), ..target.clone() };
    let other_method = Target { rules: WipeRules::default(), ..target.clone() };
    let not_by_job = Target { job: None, ..target.clone() };
    for (target_now, change) in
        [(&target, Some(DIGEST)), (&of_another_pv, None), (&other_method, None), (&not_by_job, None)]
    {
        let judged = |job: Job| judge(&change.map_or(job.clone(), |key| without(key, job)), target_now);
        assert!(matches!(judged(job(&target)), Found::InTheWay(_)), "{target_now:?} {change:?}");
        for end in ["Complete", "Failed"] {
            assert!(matches!(judged(ended(&target, end)), Found::Over(_)), "{target_now:?} {change:?}");
        }
    }
    let mut leaving = ended(&target, "Complete");
    leaving.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    assert!(matches!(ours(&leaving), Found::InTheWay(_)), "its pod may be at work");
    let mut strange = job(&target);
    strange.metadata.labels = None;
    assert_eq!(ours(&strange), Found::Strange);
}

fn pod(status: &Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).expect("it is a pod")
}

#[test]
fn what_keeps_a_pod_from_its_work_is_named() {
    let container = |state: Value| {
        let mut status = json!({ "name": "cleaner", "image": "i", "imageID": "", "ready": false, "restartCount": 1 });
        status.as_object_mut().expect("it is an object").extend(state.as_object().expect("it is one").clone());
        pod(&json!({ "phase": "Running", "containerStatuses": [status] }))
    };
    let waiting = |reason: &str, message: &str| json!({ "waiting": { "reason": reason, "message": message } });
    let refused = json!({ "terminated": { "exitCode": 3, "message": "mooring wipe: refused\n" } });
    for (pod, expected) in [
        (
            container(json!({ "state": waiting("ImagePullBackOff", "no such image") })),
            "container cleaner: it waits: ImagePullBackOff: no such image",
        ),
        (
            container(json!({ "state": waiting("CrashLoopBackOff", ""), "lastState": refused })),
            "container cleaner: it ended with exit code 3: mooring wipe: refused; it waits: CrashLoopBackOff",
        ),
        (container(json!({ "state": waiting("ContainerCreating", "") })), ""),
        (container(json!({ "state": { "running": {} } })), ""),
        (
            pod(&json!({ "phase": "Pending", "conditions": [
                { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" },
            ] })),
            "Unschedulable: 0/1 nodes",
        ),
        (pod(&json!({ "phase": "Failed", "reason": "Evicted", "message": "disk" })), "Evicted: disk"),
    ] {
        assert_eq!(trouble(std::slice::from_ref(&pod)), expected, "{pod:?}");
    }
    assert_eq!(trouble(&[]), "");
    assert_eq!(living(&[pod(&json!({ "phase": "Failed" })), pod(&json!({ "phase": "Succeeded" }))]), None);
    assert_eq!(living(&[pod(&json!({ "phase": "Failed" })), pod(&json!({ "phase": "Running" }))]), Some("p"));
    assert_eq!(living(&[pod(&json!({}))]), Some("p"));
}
