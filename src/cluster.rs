//! The API server: how to reach it, and every write to it. Each call has a deadline
//! and a typed outcome, and is counted. Nothing is retried here: the controller looks
//! again and decides anew. Removing a PV takes a [`Warrant`].

mod jobs;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume};
use kube::api::{Api, DeleteParams, ListParams, ObjectList, Patch, PatchParams, PostParams, Preconditions};
use kube::config::KubeConfigOptions;
use kube::runtime::watcher;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::deleter::Warrant;
use crate::metrics::Metrics;
use crate::plan::Adoption;
use crate::pv::{
    self, ACCEPT_IDENTITY, IDENTITY, LABELS, LEDGER_ENTRY, OwnedPv, PROGRESS, PROVISIONED_BY, QUARANTINED, RECLAIM,
    RECLAIMING, Seen, Volume, WIPE_FINALIZER,
};
use crate::reclaim::Fence;
use crate::taint::Removal;
use crate::volume::Capacity;

/// No single call takes longer; past it, the outcome is unknown.
const DEADLINE: Duration = Duration::from_secs(10);
/// Calls at the same time; over HTTP/1.1, each takes a connection.
const MAX_CALLS: usize = 32;

/// Why a call had no success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// There is one of that name already.
    #[error("it exists already")]
    AlreadyExists,
    /// It is not what it was when the call was decided on.
    #[error("it has changed meanwhile: {0}")]
    Conflict(String),
    /// The ServiceAccount may not do this.
    #[error("the ServiceAccount lacks a right: {0}; apply the RBAC manifests of this release")]
    Forbidden(String),
    /// The API server said no.
    #[error("the API server refused: {0}")]
    Rejected(String),
    /// No answer, or one that leaves open whether it was done.
    #[error("no answer from the API server: {0}")]
    Unknown(String),
}

impl ApiError {
    /// Whether the API server's authorizer, and not a policy, has refused to patch a PV.
    #[must_use]
    pub fn lacks_patch(&self) -> bool {
        matches!(self, Self::Forbidden(text) if text.contains("cannot patch resource \"persistentvolumes\""))
    }

    /// Whether the authorizer has refused for want of roles that it had not read yet, as one
    /// does that has just been started.
    #[must_use]
    pub fn is_unready(&self) -> bool {
        matches!(self, Self::Forbidden(text) if text.contains(" RBAC: "))
    }

    fn outcome(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound | Self::AlreadyExists | Self::Conflict(_) | Self::Rejected(_) => "refused",
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let message = status.message.clone();
                match status.code {
                    404 => Self::NotFound,
                    409 if status.reason == "AlreadyExists" => Self::AlreadyExists,
                    409 => Self::Conflict(message),
                    // How a patch says that the object has another UID.
                    422 if message.contains("metadata.uid") => Self::Conflict(message),
                    // No right would help: the message of the policy says what does.
                    403 if message.contains("ValidatingAdmissionPolicy") => Self::Rejected(message),
                    403 => Self::Forbidden(message),
                    401 => Self::Forbidden(format!("the token is not accepted ({message})")),
                    408 | 429 | 500.. => Self::Unknown(message),
                    _ => Self::Rejected(message),
                }
            }
            other => Self::Unknown(chain(&other)),
        }
    }
}

impl From<watcher::Error> for ApiError {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => kube::Error::Api(status).into(),
            other => Self::Unknown(other.to_string()),
        }
    }
}

/// An error with its causes; the outer ones alone often say nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}

/// Reads and writes PVs.
#[derive(Clone)]
pub struct Cluster {
    config: Arc<Config>,
    pvs: Api<PersistentVolume>,
    calls: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    read_only: bool,
}

impl Cluster {
    /// Reads the kubeconfig that `KUBECONFIG` names, else the pod's own credentials.
    /// Also returns a client for watches.
    ///
    /// # Errors
    /// When neither is there or usable.
    pub async fn connect(metrics: Arc<Metrics>) -> anyhow::Result<(Self, Client)> {
        let mut config = if std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty()) {
            Config::from_kubeconfig(&KubeConfigOptions::default()).await?
        } else {
            Config::incluster()?
        };
        // A call that is retried out of sight is done twice, or much later than decided.
        config.default_retry = false;
        // Or the time that a connection was idle would count against the next answer.
        config.reset_reader_on_write = true;
        config.connect_timeout = Some(Duration::from_secs(5));
        let agent = concat!("mooring/", env!("CARGO_PKG_VERSION"));
        config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
        // Longer than a watch lasts (60 s), or its silence would count as a failure.
        config.read_timeout = Some(Duration::from_secs(70));
        let watches = Client::try_from(config.clone())?;
        config.read_timeout = Some(DEADLINE);
        let pvs = Api::all(Client::try_from(config.clone())?);
        let calls = Arc::new(Semaphore::new(MAX_CALLS));
        Ok((Self { config: Arc::new(config), pvs, calls, metrics, read_only: false }, watches))
    }

    /// The same, but every write fails before it is sent.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Closes the connections that a burst of calls has left, which the client below
    /// would keep for ever. Calls under way are not disturbed.
    pub fn close_idle_connections(&mut self) {
        match Client::try_from((*self.config).clone()) {
            Ok(client) => self.pvs = Api::all(client),
            Err(error) => tracing::debug!(%error, "No new client; keeping the old connections"),
        }
    }

    async fn call<T>(&self, verb: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        self.timed_call(verb, call).await.0
    }

    /// A call of the two kinds that the Go provisioner counts: to make a PV (`create`), and
    /// to delete one (`delete`).
    async fn counted_call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        let (result, took) = self.timed_call(method, call).await;
        self.metrics.contract.requested(method, result.is_err(), took);
        result
    }

    async fn timed_call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> (Result<T, ApiError>, Duration) {
        if self.read_only && !matches!(verb, "get" | "list") {
            let refused = ApiError::Rejected(format!("not sent ({verb}): this process only reads"));
            return (Err(refused), Duration::ZERO);
        }
        let _permit = self.calls.acquire().await.expect("the semaphore is never closed");
        let start = Instant::now();
        let result = match tokio::time::timeout(DEADLINE, call).await {
            Ok(answer) => answer.map_err(ApiError::from),
            Err(_) => Err(ApiError::Unknown(format!("none within {} s", DEADLINE.as_secs()))),
        };
        let outcome = result.as_ref().map_or_else(ApiError::outcome, |_| "success");
        let took = start.elapsed();
        self.metrics.api_request(verb, outcome, took);
        (result, took)
    }

    /// One page of all PVs of the cluster, with the token of the next.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn list(&self, token: Option<&str>, limit: u32) -> Result<ObjectList<PersistentVolume>, ApiError> {
        let mut params = ListParams::default().limit(limit);
        params.continue_token = token.map(ToOwned::to_owned);
        self.call("list", self.pvs.list(&params)).await
    }

    /// All objects of a kind that a field selector admits (empty: any), in pages of that size.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn read_all<K>(&self, fields: &str, limit: u32, mut each: impl FnMut(K)) -> Result<(), ApiError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::all(self.pvs.clone().into_client());
        let mut params = ListParams::default().limit(limit).fields(fields);
        loop {
            let page = self.call("list", api.list(&params)).await?;
            page.items.into_iter().for_each(&mut each);
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(());
            }
        }
    }

    /// The PV of that name as it is now, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn get(&self, name: &str) -> Result<Option<PersistentVolume>, ApiError> {
        self.call("get", self.pvs.get_opt(name)).await
    }

    /// The Node of that name as it is now, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn node(&self, name: &str) -> Result<Option<Node>, ApiError> {
        let nodes = Api::<Node>::all(self.pvs.clone().into_client());
        self.call("get", nodes.get_opt(name)).await
    }

    /// Whether the ServiceAccount may do this to every object of a resource of the core
    /// group. Every ServiceAccount may ask, by `system:basic-user`.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn may(&self, verb: &str, resource: &str) -> Result<bool, ApiError> {
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            resource: Some(resource.to_owned()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let reviews = Api::<SelfSubjectAccessReview>::all(self.pvs.clone().into_client());
        let answer = self.call("review", reviews.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        match status.evaluation_error.filter(|_| !status.allowed) {
            Some(error) => Err(ApiError::Unknown(error)),
            None => Ok(status.allowed),
        }
    }

    /// Makes a PV.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create(&self, volume: &Volume) -> Result<PersistentVolume, ApiError> {
        let (params, pv) = (PostParams::default(), pv::encode(volume));
        self.counted_call("create", self.pvs.create(&params, &pv)).await
    }

    /// Puts on a PV what it lacks, if nothing at all has changed on it. An identity that was
    /// to be accepted no longer is, once it is recorded.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn adopt(&self, adoption: &Adoption) -> Result<PersistentVolume, ApiError> {
        let mut metadata = json!({ "uid": adoption.pv.uid, "resourceVersion": adoption.pv.version });
        let mut annotations = serde_json::Map::new();
        if let Some(labels) = &adoption.labels {
            metadata["labels"] = json!(labels.set);
            annotations.insert(LABELS.to_owned(), json!(pv::labels::note(&labels.given)));
        }
        if let Some(identity) = &adoption.identity {
            annotations.insert(IDENTITY.to_owned(), json!(pv::identity_text(identity)));
            annotations.insert(LEDGER_ENTRY.to_owned(), json!(adoption.entry));
            annotations.insert(ACCEPT_IDENTITY.to_owned(), json!(null));
        }
        if let Some(signature) = &adoption.signature {
            annotations.insert(PROVISIONED_BY.to_owned(), json!(signature));
        }
        metadata["annotations"] = annotations.into();
        if let Some(former) = &adoption.former_owner {
            let now = adoption.owner.as_ref().map(|(name, uid)| pv::owner(name, uid));
            let former = json!({ "$patch": "delete", "uid": former });
            let owners: Vec<_> = now.map(|owner| json!(owner)).into_iter().chain([former]).collect();
            metadata["ownerReferences"] = json!(owners);
        }
        let mut patch = json!({ "metadata": metadata });
        if let Some(options) = &adoption.mount_options {
            patch["spec"] = json!({ "mountOptions": options });
        }
        self.patch(&adoption.pv.name, &patch).await
    }

    /// Raises the capacity of a PV, if nothing at all has changed on it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn grow(&self, pv: &Seen, to: Capacity) -> Result<PersistentVolume, ApiError> {
        let metadata = json!({ "uid": pv.uid, "resourceVersion": pv.version });
        let spec = json!({ "capacity": { "storage": to.to_string() } });
        self.patch(&pv.name, &json!({ "metadata": metadata, "spec": spec })).await
    }

    /// Offers a Released PV again as it is, if nothing at all has changed on it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn keep(&self, pv: &Seen) -> Result<PersistentVolume, ApiError> {
        let annotations = json!({ RECLAIM: null, QUARANTINED: null, RECLAIMING: null });
        let metadata = json!({ "uid": pv.uid, "resourceVersion": pv.version, "annotations": annotations });
        self.patch(&pv.name, &json!({ "metadata": metadata, "spec": { "claimRef": null } })).await
    }

    /// Takes an admin's word off a PV that it can't be about, if nothing at all has changed
    /// on it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn drop_word(&self, pv: &Seen) -> Result<PersistentVolume, ApiError> {
        let annotations = json!({ RECLAIM: null });
        let metadata = json!({ "uid": pv.uid, "resourceVersion": pv.version, "annotations": annotations });
        self.patch(&pv.name, &json!({ "metadata": metadata })).await
    }

    /// Notes on a PV how far its wipe is.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn note_progress(&self, fence: &Fence, text: &str) -> Result<PersistentVolume, ApiError> {
        let metadata = json!({ "uid": fence.uid(), "annotations": { PROGRESS: text } });
        self.patch(fence.pv(), &json!({ "metadata": metadata })).await
    }

    /// Adds our finalizer, if nothing at all has changed on the PV; with it the claim whose
    /// data may be wiped, and in the place of an admin's word if that is the reason.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn fence(&self, pv: &OwnedPv) -> Result<PersistentVolume, ApiError> {
        let claim = pv.claim.as_ref().map_or("", |claim| &claim.uid);
        let metadata = json!({
            "uid": pv.uid,
            "resourceVersion": pv.resource_version,
            "finalizers": [WIPE_FINALIZER],
            "annotations": { RECLAIMING: claim, RECLAIM: null },
        });
        self.patch(&pv.name, &json!({ "metadata": metadata })).await
    }

    /// Deletes a PV that our finalizer keeps, if nothing at all has changed on it. It
    /// is Terminating after, and no claim can bind it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when something has.
    pub async fn delete_fenced(&self, pv: &OwnedPv) -> Result<Option<PersistentVolume>, ApiError> {
        assert!(pv.fenced, "only a PV that our finalizer keeps is deleted");
        self.delete(&Seen::of(pv)).await
    }

    /// Takes our finalizer off a PV that is not to be wiped after all. It must not be
    /// Terminating, or this would remove it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when the PV has changed.
    pub async fn unfence(&self, pv: &OwnedPv) -> Result<PersistentVolume, ApiError> {
        assert!(!pv.terminating, "taking the finalizer off a Terminating PV removes it, which takes a warrant");
        let metadata = json!({
            "uid": pv.uid,
            "resourceVersion": pv.resource_version,
            "annotations": { RECLAIMING: null },
            "$deleteFromPrimitiveList/finalizers": [WIPE_FINALIZER],
        });
        self.patch(&pv.name, &json!({ "metadata": metadata })).await
    }

    /// Removes the PV that the warrant is for. A wiped one is Terminating, if it was fenced: our finalizer is
    /// taken off, and with it the PV goes, once nothing else keeps it. Any other is deleted,
    /// if nothing at all has changed on it.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when it is gone already, [`ApiError::Conflict`] when it has
    /// changed.
    pub async fn remove(&self, warrant: &Warrant) -> Result<Option<PersistentVolume>, ApiError> {
        match warrant {
            Warrant::Wiped(verified) => {
                let fence = verified.fence();
                let metadata = json!({ "uid": fence.uid(), "$deleteFromPrimitiveList/finalizers": [WIPE_FINALIZER] });
                self.patch(fence.pv(), &json!({ "metadata": metadata })).await.map(Some)
            }
            Warrant::WipedUnfenced(_, release) => self.delete(release.seen()).await,
            Warrant::Blank(blank) => self.delete(blank.seen()).await,
            Warrant::Unclaimed(unclaimed) => self.delete(unclaimed.seen()).await,
            Warrant::Retired(seen) => self.delete(seen).await,
        }
    }

    async fn delete(&self, pv: &Seen) -> Result<Option<PersistentVolume>, ApiError> {
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: Some(pv.uid.clone()), resource_version: Some(pv.version.clone()) });
        Ok(self.counted_call("delete", self.pvs.delete(&pv.name, &params)).await?.left())
    }

    /// Takes a taint off a Node, if its taints are as they were seen.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when they are not.
    pub async fn untaint(&self, removal: &Removal) -> Result<(), ApiError> {
        let request = http::Request::patch(format!("/api/v1/nodes/{}", removal.node()))
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(removal.patch().to_string().into_bytes())
            .expect("the name of a Node is fit for a path");
        match self.call("patch", self.pvs.clone().into_client().request::<Node>(request)).await {
            Ok(_) => Ok(()),
            // All that the API server says of a test in a JSON patch that fails.
            Err(ApiError::Rejected(message)) if message.contains("due to an error in our request") => {
                Err(ApiError::Conflict("its taints are others than were seen".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Records an Event.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn record(&self, event: &Event) -> Result<(), ApiError> {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let events = Api::<Event>::namespaced(self.pvs.clone().into_client(), namespace);
        self.call("create", events.create(&PostParams::default(), event)).await.map(drop)
    }

    async fn patch(&self, name: &str, patch: &serde_json::Value) -> Result<PersistentVolume, ApiError> {
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        self.call("patch", self.pvs.patch(name, &params, &patch)).await
    }
}

#[cfg(test)]
mod tests {
    use super::ApiError;

    #[test]
    fn a_refusal_by_rbac_is_told_from_one_by_a_policy_and_from_one_that_passes() {
        let error = |text: &str| ApiError::Forbidden(text.to_owned());
        let rbac = "persistentvolumes \"local-pv-1\" is forbidden: User \"system:serviceaccount:m:m\" cannot patch \
                    resource \"persistentvolumes\" in API group \"\" at the cluster scope";
        assert!(error(rbac).lacks_patch() && !error(rbac).is_unready());
        let unready = format!("{rbac}: RBAC: clusterrole.rbac.authorization.k8s.io \"mooring\" not found");
        assert!(error(&unready).lacks_patch() && error(&unready).is_unready());
        let policy = "persistentvolumes \"local-pv-1\" is forbidden: ValidatingAdmissionPolicy 'mooring-fence' with \
                      binding 'mooring-fence' denied request: the volume is being wiped";
        assert!(!error(policy).lacks_patch());
    }
}
