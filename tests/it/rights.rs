//! What the API server keeps the agent from, whatever the agent would do: PVs of other
//! nodes, and changes that it has no business with. The policy is that of `deploy/manifests`.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{PersistentVolume, ServiceAccount};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::common::{SOON, start};
use crate::harness::config_dir::storage_class_map;
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Agent, AgentOptions, AuditEntry, ControlPlane, Options, cluster, disk, rbac, shared};

const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const BY: &str = "pv.kubernetes.io/provisioned-by";
const NODE_LABEL: &str = "mooring.dev/node";

fn signature(node: &str) -> String {
    format!("local-volume-provisioner-{node}")
}

/// A PV as the agent of that node makes it.
fn pv_of(node: &str, name: &str) -> Value {
    let host = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] });
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "labels": { NODE_LABEL: node },
            "annotations": { BY: format!("{}-{UID}", signature(node)) },
        },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "rights", "local": { "path": "/nowhere" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [host] }] } },
        },
    })
}

/// The same with changes, as a merge patch has them.
fn with(mut pv: Value, changes: &Value) -> Value {
    fn merge(into: &mut Value, changes: &Value) {
        let Value::Object(changes) = changes else { return *into = changes.clone() };
        for (key, change) in changes {
            match change {
                Value::Null => drop(into.as_object_mut().expect("an object").remove(key)),
                Value::Object(_) if into[key].is_object() => merge(&mut into[key], change),
                _ => into[key] = change.clone(),
            }
        }
    }
    merge(&mut pv, changes);
    pv
}

/// PVs by the hand of a node's agent, or of an administrator.
struct Hand(Api<PersistentVolume>);

impl Hand {
    async fn of_agent(node: &TestNode) -> Self {
        Self(Api::all(cluster::client_from(node.kubeconfig()).await))
    }

    async fn create(&self, pv: &Value) -> kube::Result<PersistentVolume> {
        let pv = serde_json::from_value(pv.clone()).expect("it is a PV");
        self.0.create(&PostParams::default(), &pv).await
    }

    async fn patch(&self, name: &str, patch: &Value) -> kube::Result<PersistentVolume> {
        self.0.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    /// The PV, once the controller-manager has set its phase and leaves it alone.
    async fn settled(&self, name: &str) -> PersistentVolume {
        let deadline = Instant::now() + SOON;
        loop {
            let pv = self.0.get(name).await.expect("it is there");
            if phase(&pv) == "Available" {
                return pv;
            }
            assert!(Instant::now() < deadline, "{name} does not become Available");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn delete(&self, name: &str) -> kube::Result<()> {
        self.0.delete(name, &DeleteParams::default()).await.map(drop)
    }
}

/// Panics unless the policy has denied it, in those words.
fn denied<T: std::fmt::Debug>(what: &str, answer: kube::Result<T>, words: &str) {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let text = &status.message;
            assert!(text.contains("'mooring-own-node'") && text.contains(words), "{what}: {text}");
        }
        answer => panic!("{what}: {answer:?}"),
    }
}

#[tokio::test]
async fn another_node_s_pvs_are_beyond_an_agent_s_reach() {
    let node = TestNode::new(shared(), "rights").await;
    let (own, agent, admin) = (node.name(), Hand::of_agent(&node).await, Hand(Api::all(node.client())));
    // Names that begin like ours, one so that it could be a former Node of our name.
    let (longer, dotted, uid_like) = (format!("{own}-b"), format!("{own}.b"), format!("{own}-{UID}"));
    let (shorter, _) = own.rsplit_once('-').expect("it has parts");
    let signed = |by: String| json!({ "metadata": { "annotations": { BY: by } } });
    let unlabelled = json!({ "metadata": { "labels": { NODE_LABEL: null } } });
    let others = [
        ("another node's", pv_of("elsewhere", "")),
        ("the Go provisioner's", with(pv_of("elsewhere", ""), &unlabelled)),
        ("signed by name", with(pv_of(&longer, ""), &signed(signature(&longer)))),
        ("of a longer name", pv_of(&longer, "")),
        ("of a longer name, unlabelled", with(pv_of(&longer, ""), &unlabelled)),
        ("of a name with a dot", with(pv_of(&dotted, ""), &unlabelled)),
        ("of a name like a signature", with(with(pv_of(&uid_like, ""), &signed(signature(&uid_like))), &unlabelled)),
        ("of a shorter name", with(pv_of(shorter, ""), &unlabelled)),
        ("not signed", with(pv_of(own, ""), &signed(String::new()))),
        ("an administrator's", with(pv_of(own, ""), &json!({ "metadata": { "annotations": null, "labels": null } }))),
        ("labelled as ours", with(pv_of("elsewhere", ""), &json!({ "metadata": { "labels": { NODE_LABEL: own } } }))),
        ("signed as ours", with(pv_of("elsewhere", ""), &signed(format!("{}-{UID}", signature(own))))),
    ];
    let ours = json!({
        "metadata": { "labels": { NODE_LABEL: own }, "annotations": { BY: format!("{}-{UID}", signature(own)) } },
    });
    for (number, (what, pv)) in others.into_iter().enumerate() {
        let name = format!("{own}-{number}");
        let pv = with(pv, &json!({ "metadata": { "name": name } }));
        denied(&format!("to make one {what}"), agent.create(&pv).await, "may only make");
        admin.create(&pv).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let before = admin.settled(&name).await;
        let affinity = json!({ "spec": { "nodeAffinity": pv_of(own, "")["spec"]["nodeAffinity"] } });
        for patch in [
            ours.clone(),
            json!({ "metadata": { "labels": { NODE_LABEL: own } } }),
            json!({ "metadata": { "labels": null } }),
            json!({ "metadata": { "annotations": null, "labels": null } }),
            json!({ "metadata": { "finalizers": ["mooring.dev/wipe"] } }),
            json!({ "metadata": { "annotations": { "mooring.dev/identity": "{}" } } }),
            json!({ "spec": { "claimRef": { "namespace": "default", "name": "mine" } } }),
            with(ours.clone(), &affinity),
        ] {
            match agent.patch(&name, &patch).await {
                // Nothing would change by it.
                Ok(now) => {
                    assert_eq!(now.metadata.resource_version, before.metadata.resource_version, "{what}: {patch}");
                }
                // The API server itself keeps the affinity.
                Err(kube::Error::Api(status)) if status.code == 422 && patch["spec"]["nodeAffinity"].is_object() => {}
                answer => denied(&format!("{patch} of one {what}"), answer, "may only make"),
            }
        }
        denied(&format!("to delete one {what}"), agent.delete(&name).await, "may only make");
        let after = admin.0.get(&name).await.expect("it is there");
        assert!(after.metadata.labels == before.metadata.labels && after.metadata.deletion_timestamp.is_none());
        node.force_delete_pv(&after).await;
    }
    node.clean_up().await;
}

#[tokio::test]
async fn of_its_own_pvs_an_agent_may_do_only_what_it_has_to() {
    let node = TestNode::new(shared(), "own").await;
    let (own, agent, admin) = (node.name(), Hand::of_agent(&node).await, Hand(Api::all(node.client())));
    let name = format!("{own}-pv");
    let pv = pv_of(own, &name);
    let annotated = |key: &str, value: &str| json!({ "metadata": { "annotations": { key: value } } });
    let claim = |uid: &str| json!({ "spec": { "claimRef": { "namespace": "default", "name": "c", "uid": uid } } });
    let host = |operator: &str, key: &str, values: &[&str]| {
        let term = json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        json!({ "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": [term] } } } })
    };
    let mut either = pv_of(own, &name);
    let other = json!({ "matchExpressions": [{ "key": "shelf", "operator": "In", "values": ["7"] }] });
    let terms = &mut either["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    terms.as_array_mut().expect("a list").push(other);
    for (words, pv) in [
        ("affinity", either.clone()),
        ("affinity", with(pv.clone(), &host("NotIn", "kubernetes.io/hostname", &[own]))),
        ("affinity", with(pv.clone(), &host("In", "kubernetes.io/hostname", &[own, "elsewhere"]))),
        ("affinity", with(pv.clone(), &host("In", "kubernetes.io/os", &[own]))),
        ("local", with(pv.clone(), &json!({ "spec": { "local": null, "hostPath": { "path": "/nowhere" } } }))),
        ("label", with(pv.clone(), &json!({ "metadata": { "labels": { NODE_LABEL: null } } }))),
        ("quarantine", with(pv.clone(), &claim(UID))),
        ("quarantine", with(with(pv.clone(), &claim("")), &annotated("mooring.dev/quarantined", "x"))),
        ("put none", with(pv.clone(), &annotated("mooring.dev/reclaim", "wipe"))),
    ] {
        denied(&format!("to make {pv}"), agent.create(&pv).await, words);
    }
    // One that was made for a class with a `selector` stays its own when the class has none any more.
    let selected = with(either.clone(), &json!({ "metadata": { "name": format!("{own}-selected") } }));
    let made = admin.create(&selected).await.expect("an administrator may");
    let touched = agent.patch(&made.name_any(), &annotated("mooring.dev/volume", "x")).await;
    touched.expect("the agent may, as it has to wipe it");
    agent.delete(&made.name_any()).await.expect("the agent may, as it has to remove it");
    // Nothing but the name and perhaps a UID: else it could be signed for another node.
    for by in ["-b", ".b", "-", &format!("-b-{UID}"), &format!(".b-{UID}"), &format!("-{UID}-b"), UID] {
        let pv = with(pv.clone(), &annotated(BY, &format!("{}{by}", signature(own))));
        denied(&format!("to make {pv}"), agent.create(&pv).await, "provisioned-by");
    }
    let by_another = with(pv.clone(), &annotated(BY, &format!("x{}", signature(own))));
    denied("signed by another program", agent.create(&by_another).await, "provisioned-by");
    // What a node's agent makes, in each form of signing.
    let by_name = with(pv.clone(), &annotated(BY, &signature(own)));
    let quarantined = with(with(pv.clone(), &claim(UID)), &annotated("mooring.dev/quarantined", "x"));
    for pv in [pv.clone(), by_name, quarantined] {
        let made = agent.create(&pv).await.expect("it may");
        node.force_delete_pv(&made).await;
    }
    // One that somebody reserved, with a finalizer of somebody's and a word of the administrator's.
    let theirs = json!({ "metadata": { "finalizers": ["example.com/theirs"] } });
    let pv = with(with(with(pv, &theirs), &claim("")), &annotated("mooring.dev/hold", "x"));
    admin.create(&pv).await.expect("an administrator may");
    for (words, patch) in [
        ("finalizers", json!({ "metadata": { "finalizers": null } })),
        ("finalizers", json!({ "metadata": { "finalizers": ["example.com/theirs", "example.com/ours"] } })),
        ("smaller", json!({ "spec": { "capacity": { "storage": "1Mi" } } })),
        ("reclaim policy", json!({ "spec": { "persistentVolumeReclaimPolicy": "Retain" } })),
        ("claimRef", json!({ "spec": { "claimRef": null } })),
        ("claimRef", claim(UID)),
        ("put none", annotated("mooring.dev/reclaim", "keep")),
        ("put none", annotated("mooring.dev/hold", "false")),
        ("provisioned-by", annotated(BY, "somebody")),
        ("the label", json!({ "metadata": { "labels": { NODE_LABEL: "elsewhere" } } })),
    ] {
        denied(&patch.to_string(), agent.patch(&name, &patch).await, words);
    }
    let finalizers = admin.0.get(&name).await.expect("it is there").finalizers().to_vec();
    let fenced: Vec<&str> = finalizers.iter().map(String::as_str).chain(["mooring.dev/wipe"]).collect();
    for patch in [
        json!({ "metadata": { "finalizers": fenced } }),
        json!({ "metadata": { "finalizers": finalizers } }),
        json!({ "spec": { "capacity": { "storage": "2Gi" } } }),
        json!({ "metadata": { "annotations": { "mooring.dev/hold": null, "mooring.dev/progress": "x" } } }),
        annotated(BY, &signature(own)),
    ] {
        agent.patch(&name, &patch).await.unwrap_or_else(|error| panic!("{patch}: {error}"));
    }
    agent.delete(&name).await.expect("it may delete its own");
    node.force_delete_pv(&admin.0.get(&name).await.expect("finalizers keep it")).await;
    node.clean_up().await;
}

#[tokio::test]
async fn the_word_keep_lets_a_released_pv_s_claim_be_cleared_and_nothing_else_does() {
    let node = TestNode::new(shared(), "keep").await;
    let (agent, name) = (Hand::of_agent(&node).await, format!("{}-pv", node.name()));
    node.class("rights", "Delete").await;
    Hand(Api::all(node.client())).create(&pv_of(node.name(), &name)).await.expect("an administrator may");
    let claim = node.bind(&name).await;
    let cleared = json!({ "spec": { "claimRef": null } });
    let word = |word: &str| json!({ "metadata": { "annotations": { "mooring.dev/reclaim": word } } });
    node.patch_pv(&name, word("keep")).await.expect("an administrator may");
    denied("while it is bound", agent.patch(&name, &cleared).await, "claimRef");
    node.release(&claim).await;
    node.watch_pvs("it is Released", SOON, |pvs| pvs.get(&name).filter(|pv| phase(pv) == "Released").map(drop)).await;
    node.patch_pv(&name, word("wipe")).await.expect("an administrator may");
    denied("at another word", agent.patch(&name, &cleared).await, "claimRef");
    node.patch_pv(&name, word("keep")).await.expect("an administrator may");
    agent.patch(&name, &cleared).await.expect("it may");
    node.clean_up().await;
}

#[tokio::test]
async fn a_token_that_names_no_node_may_change_no_pv_and_the_agent_says_why() {
    let node = TestNode::new(shared(), "no-claim").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(node.client(), rbac::NAMESPACE);
    let request = serde_json::from_value(json!({ "spec": { "audiences": [] } })).expect("it is a request");
    let answer = accounts.create_token_request(rbac::SERVICE_ACCOUNT, &PostParams::default(), &request).await;
    let token = answer.expect("the API server issues tokens").status.expect("it has a status").token;
    let text = fs::read_to_string(node.kubeconfig()).expect("the kubeconfig can be read");
    let mut config: Value = serde_json::from_str(&text).expect("JSON is YAML");
    config["users"][0]["user"] = json!({ "token": token });
    fs::write(node.kubeconfig(), config.to_string()).expect("a kubeconfig can be written");
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let line = agent.wait_log("names no node", SOON).await;
    assert!(line.contains("token of its pod") && !line.contains("lacks a right"), "{line}");
    assert!(node.pvs().await.is_empty());
    node.clean_up().await;
}

#[tokio::test]
async fn the_policies_are_sound_and_concern_nobody_else() {
    let plane = shared();
    let api: Api<ValidatingAdmissionPolicy> = Api::all(plane.client().await);
    for name in ["mooring-fence", "mooring-own-node"] {
        let deadline = Instant::now() + SOON;
        let checked = loop {
            let status = api.get(name).await.expect("it is there").status;
            if let Some(checked) = status.and_then(|status| status.type_checking) {
                break checked;
            }
            assert!(Instant::now() < deadline, "the types of {name} are not checked");
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(checked.expression_warnings, None, "{name}");
    }
    // Another account makes, changes and deletes what no agent may.
    let node = TestNode::new(plane, "others").await;
    let others = Hand(Api::all(node.client()));
    let name = format!("{}-pv", node.name());
    others.create(&with(pv_of("elsewhere", &name), &json!({ "metadata": { "labels": null } }))).await.expect("it may");
    let patch = json!({ "metadata": { "labels": { NODE_LABEL: "x" }, "finalizers": null } });
    others.patch(&name, &patch).await.expect("it may");
    others.delete(&name).await.expect("it may");
    node.clean_up().await;
}

#[tokio::test]
async fn where_host_names_are_not_node_names_the_policy_can_be_told_and_still_keeps_nodes_apart() {
    let plane = ControlPlane::start(Options::default());
    // Too long for a label, so that even ours is a hash of it.
    let name = format!("{}example.com", "long-name.".repeat(7));
    let labels = [("kubernetes.io/hostname".to_owned(), "long".to_owned())].into();
    let node = TestNode::named(&plane, name.clone(), labels).await;
    let (class, disks) = (node.class("fast", "Delete").await, node.discovery_dir("disks"));
    disk::tmpfs(&disks.join("v"), 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    agent.wait_log("change hostNamesAreNodeNames in this policy", SOON).await;
    rbac::apply_any_affinity(&plane.client().await).await;
    let (hand, admin) = (Hand::of_agent(&node).await, Hand(Api::all(node.client())));
    let deadline = Instant::now() + SOON * 2;
    let made = loop {
        let all = admin.0.list(&ListParams::default()).await.expect("PVs can be listed").items;
        if let Some(pv) = all.into_iter().find(|pv| phase(pv) == "Available") {
            break pv;
        }
        assert!(Instant::now() < deadline, "it is not offered");
        sleep(Duration::from_millis(10)).await;
    };
    assert!(made.labels()[NODE_LABEL].starts_with("node-"), "{:?}", made.labels());
    let pv = with(pv_of("other", "others"), &json!({ "metadata": { "labels": null } }));
    admin.create(&pv).await.expect("an administrator may");
    let label = json!({ "metadata": { "labels": { NODE_LABEL: made.labels()[NODE_LABEL] } } });
    denied("to label another's", hand.patch("others", &label).await, "provisioned-by");
    denied("to delete another's", hand.delete("others").await, "provisioned-by");
    drop(agent);
    node.clean_up().await;
}

/// Resource and verb of each right.
fn granted(rules: &[PolicyRule]) -> BTreeSet<(String, String)> {
    let of = |rule: &PolicyRule| {
        let verbs = rule.verbs.clone();
        let each = move |resource: String| verbs.clone().into_iter().map(move |verb| (resource.clone(), verb));
        rule.resources.clone().unwrap_or_default().into_iter().flat_map(each)
    };
    rules.iter().flat_map(of).collect()
}

#[tokio::test]
async fn without_any_one_of_its_rights_the_agent_says_what_it_may_not_do() {
    let client = shared().client().await;
    let client = &client;
    let rights = granted(&rbac::our_rules(client).await).into_iter().enumerate();
    let each = rights.map(|(number, (resource, verb))| async move {
        let node = TestNode::new(shared(), &format!("without-{number}")).await;
        rbac::apply_without(client, node.name(), &verb, &resource).await;
        let kubeconfig = node.kubeconfig_of(rbac::NAMESPACE, node.name()).await;
        let (class, disks) = (node.class("fast", "Delete").await, node.discovery_dir("disks"));
        let volume = disks.join("v");
        disk::tmpfs(&volume, 1 << 20);
        let map = storage_class_map(&[(&class, &disks, "")]);
        let (config, env) = ([("storageClassMap", map.as_str())], kubeconfig.display().to_string());
        let env = [("KUBECONFIG", env.as_str())];
        let options = AgentOptions { config: &config, args: &["--v=4"], env: &env, ..AgentOptions::default() };
        let agent = Agent::start(&node, options);
        let life = async {
            // Longer than what is waited for here: without some rights, it never comes.
            let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON * 2).await;
            let claim = node.bind(&pv.name_any()).await;
            node.release(&claim).await;
            std::future::pending::<()>().await;
        };
        let words = match verb.as_str() {
            // That is asked for beforehand.
            "patch" => "give the ServiceAccount the right to patch persistentvolumes".to_owned(),
            // Where it may not be watched, it would be read every minute.
            _ if resource == "nodes" => r#"cannot get resource \"nodes\""#.to_owned(),
            _ => format!("cannot {verb} resource \\\"{resource}\\\""),
        };
        tokio::select! {
            _ = agent.wait_log(&words, SOON) => {}
            () = life => {}
        }
        drop(agent);
        node.clean_up().await;
    });
    // A few at a time: most of it is waiting.
    stream::iter(each).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn every_right_is_used_and_none_is_refused() {
    let plane = ControlPlane::start(Options { audit: true });
    let node = TestNode::new(&plane, "audit").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    disk::tmpfs(&volume, 1 << 20);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    fs::write(volume.join("data"), "a tenant's").expect("a file can be written");
    node.release(&claim).await;
    node.wait_pv(&volume, |now| phase(now) == "Available" && now.uid() != pv.uid(), SOON).await;
    node.wait_event(&pv.name_any(), "VolumeWiped", "", SOON).await;

    let account = format!("system:serviceaccount:{}:{}", rbac::NAMESPACE, rbac::SERVICE_ACCOUNT);
    let granted = granted(&rbac::our_rules(&plane.client().await).await);
    let calls = || plane.audit().into_iter().filter(|call| call.user == account).collect::<Vec<_>>();
    let is_unused = |calls: &[AuditEntry], (resource, verb): &(String, String)| {
        !calls.iter().any(|call| call.resource == *resource && call.verb == *verb)
    };
    // Watches are in the log when they have ended, and all a little later.
    drop(agent);
    let deadline = Instant::now() + SOON;
    while granted.iter().any(|right| is_unused(&calls(), right)) && Instant::now() < deadline {
        sleep(Duration::from_millis(50)).await;
    }
    let calls = calls();
    let refused: Vec<_> = calls.iter().filter(|call| call.code == 403).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let used: BTreeSet<_> = calls.iter().map(|call| (call.resource.as_str(), call.verb.as_str())).collect();
    let granted: BTreeSet<_> = granted.iter().map(|(resource, verb)| (resource.as_str(), verb.as_str())).collect();
    // Whoever may ask what it may do: everybody.
    let beyond: Vec<_> = used.difference(&granted).filter(|call| call.0 != "selfsubjectaccessreviews").collect();
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(beyond.is_empty() && unused.is_empty(), "beyond: {beyond:?}, unused: {unused:?}");
    node.clean_up().await;
}
