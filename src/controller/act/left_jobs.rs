//! Before a volume is offered: Jobs that are left of a PV that is gone, and may still wipe
//! what is at its path.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{Ended, Tools};
use crate::cleanup_job::AtWork;
use crate::cluster::ApiError;
use crate::deleter::WipeError;
use crate::pv::Volume;

/// How long an answer holds: in a burst of new volumes not each of them asks.
const FRESH: Duration = Duration::from_millis(250);
/// How long it holds that Jobs may not be read.
const REFUSED: Duration = Duration::from_hours(1);

/// Who was at work on the node's devices when it was last asked.
#[derive(Clone, Default)]
pub struct LeftJobs(Arc<Mutex<Answer>>);

#[derive(Default)]
struct Answer {
    until: Option<Instant>,
    at_work: Vec<AtWork>,
}

impl Tools {
    /// Makes sure that no Job that has not ended, and no pod of one, is at work on a volume that is about to
    /// be offered.
    pub(super) async fn heed_left_jobs(&self, uses_jobs: bool, volume: &Volume) -> Result<(), Ended> {
        let Some(namespace) = self.jobs.namespace(uses_jobs) else { return Ok(()) };
        let mut answer = self.left_jobs.0.lock().await;
        if answer.until.is_none_or(|until| Instant::now() >= until) {
            let (at_work, holds) = match self.who_is_at_work(&namespace).await {
                Ok(at_work) => (at_work, FRESH),
                Err(ApiError::Forbidden(_)) => {
                    self.jobs.tell(&namespace);
                    (Vec::new(), REFUSED)
                }
                Err(error @ ApiError::Unknown(_)) => return Err(Ended::Api(error)),
                Err(error) => {
                    let problem = format!("can't be read: {error}");
                    return Err(Ended::NotOffered(WipeError::Job { job: format!("{namespace}/*"), problem }));
                }
            };
            *answer = Answer { until: Some(Instant::now() + holds), at_work };
        }
        match answer.at_work.iter().find(|it| it.is_on(&volume.name, &volume.path)) {
            Some(it) => Err(Ended::NotOffered(WipeError::Busy(it.describe(&namespace)))),
            None => Ok(()),
        }
    }

    async fn who_is_at_work(&self, namespace: &str) -> Result<Vec<AtWork>, ApiError> {
        let hostname = self.node.as_ref().map_or("", |node| node.hostname.as_str());
        // In this order: a pod that is made after the first list is of a Job that is in it.
        let jobs = self.cluster.jobs_of(namespace, hostname).await?;
        let pods = match self.cluster.living_pods_of_jobs(namespace).await {
            Err(ApiError::Forbidden(_)) => {
                self.jobs.tell(namespace);
                Vec::new()
            }
            pods => pods?,
        };
        let jobs = jobs.iter().filter_map(AtWork::of_job);
        Ok(jobs.chain(pods.iter().filter_map(|pod| AtWork::of_pod(pod, hostname))).collect())
    }
}
