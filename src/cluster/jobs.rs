//! Jobs that wipe devices, and their pods.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};

use super::{ApiError, Cluster};
use crate::cleanup_job;
use crate::pv::HOSTNAME_LABEL;

impl Cluster {
    /// The Job of that name as it is now, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn job(&self, namespace: &str, name: &str) -> Result<Option<Job>, ApiError> {
        self.call("get", self.jobs(namespace).get_opt(name)).await
    }

    /// Makes a Job.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::NotFound`] when there is no such namespace.
    pub async fn create_job(&self, namespace: &str, job: &Job) -> Result<Job, ApiError> {
        self.call("create", self.jobs(namespace).create(&PostParams::default(), job)).await
    }

    /// Begins the removal of the Job with that UID. It stays until its pods have ended: who
    /// finds none any more, finds no process of it either.
    ///
    /// # Errors
    /// See [`ApiError`]; [`ApiError::Conflict`] when another Job has the name.
    pub async fn delete_job(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
        let params = DeleteParams::foreground()
            .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        self.call("delete", self.jobs(namespace).delete(name, &params)).await.map(drop)
    }

    /// The pods of the Job of that name, also when it is gone.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn pods_of_job(&self, namespace: &str, name: &str) -> Result<Vec<Pod>, ApiError> {
        let pods = Api::<Pod>::namespaced(self.pvs.clone().into_client(), namespace);
        let params = ListParams::default().labels(&cleanup_job::pods_of(name));
        self.call("list", pods.list(&params)).await.map(|list| list.items)
    }

    /// The Jobs of a Node's devices, whichever PVs they are of.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn jobs_of(&self, namespace: &str, hostname: &str) -> Result<Vec<Job>, ApiError> {
        let params = ListParams::default().labels(&format!("{HOSTNAME_LABEL}={hostname}"));
        self.call("list", self.jobs(namespace).list(&params)).await.map(|list| list.items)
    }

    /// The pods of all Jobs that have not ended.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn living_pods_of_jobs(&self, namespace: &str) -> Result<Vec<Pod>, ApiError> {
        let pods = Api::<Pod>::namespaced(self.pvs.clone().into_client(), namespace);
        let living = "status.phase!=Succeeded,status.phase!=Failed";
        let params = ListParams::default().labels(cleanup_job::PODS_OF_ANY).fields(living);
        self.call("list", pods.list(&params)).await.map(|list| list.items)
    }

    fn jobs(&self, namespace: &str) -> Api<Job> {
        Api::namespaced(self.pvs.clone().into_client(), namespace)
    }
}
