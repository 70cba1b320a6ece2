//! The agent's access rights, as the deployment's own manifest gives them, so that
//! every test also tests that manifest.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The namespace that the manifest makes.
pub const NAMESPACE: &str = "mooring-system";
/// The agent's `ServiceAccount` in it.
pub const SERVICE_ACCOUNT: &str = "mooring";
const TIMEOUT: Duration = Duration::from_mins(1);

/// Applies the agent's rights and the admission policies of `deploy/manifests`, and returns
/// once they are in force.
pub async fn apply(client: &kube::Client) {
    apply_files(client, &["rbac.yaml", "policy.yaml"]).await;
    wait_right(client, SERVICE_ACCOUNT, "list", VOLUMES, true).await;
    let why = "the token of the agent names no node";
    let is_denied = |answer: &kube::Result<Value>| match answer {
        Err(kube::Error::Api(status)) => status.message.contains(why),
        _ => false,
    };
    wait_answer(why, || try_create(client, ""), is_denied).await;
}

/// Lets agents make PVs of any affinity, as `policy.yaml` says how to, and returns once that
/// is in force. Only for a control plane that nobody shares.
pub async fn apply_any_affinity(client: &kube::Client) {
    let (strict, lax) =
        ("hostNamesAreNodeNames\n    expression: \"true\"", "hostNamesAreNodeNames\n    expression: \"false\"");
    let text = manifest("policy.yaml");
    assert!(text.contains(strict), "the policy can be told so");
    apply_manifest(client, &text.replace(strict, lax)).await;
    wait_answer("any affinity is allowed", || try_create(client, "n1"), Result::is_ok).await;
}

async fn wait_answer<T: std::fmt::Debug, F: Future<Output = T>>(
    what: &str,
    ask: impl Fn() -> F,
    wanted: impl Fn(&T) -> bool,
) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {answer:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the agent of a node might make a PV of its own with the affinity of another.
async fn try_create(client: &kube::Client, node: &str) -> kube::Result<Value> {
    let host = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": ["elsewhere"] });
    let pv = json!({
        "metadata": {
            "generateName": "policy-", "labels": { "mooring.dev/node": node },
            "annotations": { "pv.kubernetes.io/provisioned-by": format!("local-volume-provisioner-{node}") },
        },
        "spec": {
            "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "local": { "path": "/nowhere" },
            "storageClassName": "none",
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [host] }] } },
        },
    });
    let mut request = http::Request::post("/api/v1/persistentvolumes?dryRun=All")
        .header(http::header::CONTENT_TYPE, "application/json")
        .header("Impersonate-User", format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"));
    if !node.is_empty() {
        request = request.header("Impersonate-Extra-authentication.kubernetes.io%2fnode-name", node);
    }
    client.request(request.body(pv.to_string().into_bytes()).expect("it is a request")).await
}

/// Applies the optional right to take the start-up taint off a Node.
pub async fn apply_taint_right(client: &kube::Client) {
    apply_files(client, &["start-up-taint.yaml"]).await;
    wait_right(client, SERVICE_ACCOUNT, "patch", "nodes", true).await;
}

async fn apply_files(client: &kube::Client, files: &[&str]) {
    for file in files {
        apply_manifest(client, &manifest(file)).await;
    }
}

/// The text of a file in `deploy/manifests`.
pub fn manifest(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests").join(file);
    std::fs::read_to_string(path).expect("the manifests are there")
}

const VOLUMES: &str = "persistentvolumes";

/// The `ClusterRole` of the Go provisioner, as its chart makes it.
const OLD_RULES: &str = r#"[
    {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["get", "list", "watch", "create", "delete"]},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "update", "patch"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "update"]}
]"#;

/// Makes a `ServiceAccount` of that name with the rights of the Go provisioner and no others.
pub async fn apply_old(client: &kube::Client, name: &str) {
    make_account(client, name).await;
    give(client, name, serde_json::from_str(OLD_RULES).expect("they are rules")).await;
    wait_right(client, name, "list", VOLUMES, true).await;
}

/// Makes a `ServiceAccount` of that name with the rights of our own manifest but one, and
/// returns once they are in force.
pub async fn apply_without(client: &kube::Client, name: &str, verb: &str, resource: &str) {
    make_account(client, name).await;
    let mut rules = our_rules(client).await;
    for rule in rules.iter_mut().filter(|rule| rule.resources.iter().flatten().any(|one| one == resource)) {
        rule.verbs.retain(|one| one != verb);
    }
    rules.retain(|rule| !rule.verbs.is_empty());
    give(client, name, rules).await;
    let (other, of) = if resource == VOLUMES { ("list", "nodes") } else { ("list", VOLUMES) };
    wait_right(client, name, other, of, true).await;
}

/// Makes a `ServiceAccount` of that name with the rights of our own manifest, which its
/// policies do not concern: for an agent of a Node that its token can't name.
pub async fn apply_unpinned(client: &kube::Client, name: &str) {
    make_account(client, name).await;
    give(client, name, our_rules(client).await).await;
    wait_right(client, name, "list", VOLUMES, true).await;
}

/// The rights that our own manifest gives.
pub async fn our_rules(client: &kube::Client) -> Vec<PolicyRule> {
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.get(SERVICE_ACCOUNT).await.expect("our role is there").rules.expect("it has rules")
}

/// Makes a `ServiceAccount` and a role of that name, bound to it, without rights.
async fn make_account(client: &kube::Client, name: &str) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata: metadata.clone(), ..ServiceAccount::default() };
    accounts.create(&PostParams::default(), &account).await.expect("a ServiceAccount can be made");
    let role = ClusterRole { metadata: metadata.clone(), ..ClusterRole::default() };
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.create(&PostParams::default(), &role).await.expect("a ClusterRole can be made");
    let binding = ClusterRoleBinding {
        metadata,
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "ClusterRole".to_owned(),
            name: name.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: name.to_owned(),
            namespace: Some(NAMESPACE.to_owned()),
            ..Subject::default()
        }]),
    };
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &binding).await.expect("a ClusterRoleBinding can be made");
}

/// Gives an account of [`apply_old`] the rights of our own manifest, or only the old ones again.
pub async fn give_ours(client: &kube::Client, name: &str, ours: bool) {
    let rules = match ours {
        true => our_rules(client).await,
        false => serde_json::from_str(OLD_RULES).expect("they are rules"),
    };
    give(client, name, rules).await;
    wait_right(client, name, "patch", VOLUMES, ours).await;
}

async fn give(client: &kube::Client, name: &str, rules: Vec<PolicyRule>) {
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let rules = Patch::Merge(json!({ "rules": rules }));
    roles.patch(name, &PatchParams::default(), &rules).await.expect("a ClusterRole can be changed");
}

/// Waits until an account has a right, or has it no more: the authorizer learns of roles by a
/// watch of its own.
pub async fn wait_right(client: &kube::Client, account: &str, verb: &str, resource: &str, expected: bool) {
    let deadline = Instant::now() + TIMEOUT;
    while may(client, account, verb, resource).await != expected {
        assert!(Instant::now() < deadline, "whether {NAMESPACE}/{account} may {verb} {resource} is not {expected}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Makes or updates each object of a YAML text (server-side apply).
pub async fn apply_manifest(client: &kube::Client, text: &str) {
    let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(text).expect("a manifest is valid YAML");
    for object in objects {
        let types = object.types.as_ref().expect("an object in a manifest has a kind");
        let kind = GroupVersionKind::try_from(types).expect("an apiVersion is group/version");
        let resource = ApiResource::from_gvk(&kind);
        let name = object.metadata.name.as_deref().expect("an object in a manifest has a name");
        let api: Api<DynamicObject> = match &object.metadata.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let parameters = PatchParams::apply("mooring-tests").force();
        let applied = api.patch(name, &parameters, &Patch::Apply(&object)).await;
        applied.unwrap_or_else(|error| panic!("cannot apply {} {name}: {error}", kind.kind));
    }
}

async fn may(client: &kube::Client, account: &str, verb: &str, resource: &str) -> bool {
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        resource: Some(resource.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{NAMESPACE}:{account}")),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.expect("the API server reviews access");
    answer.status.is_some_and(|status| status.allowed)
}
