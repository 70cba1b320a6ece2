//! The agent's access rights, as the deployment's own manifest gives them, so that
//! every test also tests that manifest.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use tokio::time::{Instant, sleep};

/// The namespace that the manifest makes.
pub const NAMESPACE: &str = "mooring-system";
/// The agent's `ServiceAccount` in it.
pub const SERVICE_ACCOUNT: &str = "mooring";

/// Applies the agent's rights and the admission policy of `deploy/manifests`, and returns
/// once the rights are in force.
pub async fn apply(client: &kube::Client) {
    apply_files(client, &["rbac.yaml", "policy.yaml"]).await;
    wait_allowed(client, "list", "persistentvolumes").await;
}

/// Applies the optional right to take the start-up taint off a Node.
pub async fn apply_taint_right(client: &kube::Client) {
    apply_files(client, &["start-up-taint.yaml"]).await;
    wait_allowed(client, "patch", "nodes").await;
}

async fn apply_files(client: &kube::Client, files: &[&str]) {
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests").join(file);
        let text = std::fs::read_to_string(path).expect("the manifests are there");
        apply_manifest(client, &text).await;
    }
}

/// Waits until the agent's `ServiceAccount` has a right: the authorizer learns of new roles
/// by a watch of its own.
async fn wait_allowed(client: &kube::Client, verb: &str, resource: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_allowed(client, verb, resource).await {
        assert!(
            Instant::now() < deadline,
            "the ServiceAccount {NAMESPACE}/{SERVICE_ACCOUNT} has no right to {verb} {resource}"
        );
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

async fn is_allowed(client: &kube::Client, verb: &str, resource: &str) -> bool {
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        resource: Some(resource.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}")),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.expect("the API server reviews access");
    answer.status.is_some_and(|status| status.allowed)
}
