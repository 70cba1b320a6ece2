//! A raw watch of all volumes on a thread of its own, so that the time of an event's
//! arrival does not depend on what the benchmark is doing at that moment.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ListParams, ResourceExt, WatchEvent, WatchParams};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use crate::harness::cluster::client_from;
use crate::harness::volumes::{path_of, phase};

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Seconds that one watch request lasts; the next goes on where it ended.
const WATCH_SECONDS: u32 = 290;

/// What has happened to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One event, and when it was here and decoded.
pub struct Sighting {
    pub at: Instant,
    pub kind: Kind,
    pub pv: PersistentVolume,
}

impl Sighting {
    /// Whether a volume at that path was made.
    pub fn made_at(&self, path: &Path) -> bool {
        self.kind == Kind::Added && Path::new(path_of(&self.pv)) == path
    }

    /// Whether this is about the volume of that name.
    pub fn is(&self, kind: Kind, name: &str) -> bool {
        self.kind == kind && self.pv.metadata.name.as_deref() == Some(name)
    }

    /// Whether the volume of that name has changed and is in the phase now.
    pub fn turned(&self, name: &str, wanted: &str) -> bool {
        self.is(Kind::Modified, name) && phase(&self.pv) == wanted
    }
}

/// The watch.
pub struct Witness {
    sightings: UnboundedReceiver<Sighting>,
}

impl Witness {
    /// Begins to watch and returns when the API server has answered.
    pub fn start(kubeconfig: &Path) -> Self {
        let kubeconfig = kubeconfig.to_owned();
        let (sender, sightings) = unbounded_channel();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(watch(kubeconfig, sender, ready));
        });
        is_ready.recv_timeout(PATIENCE).expect("volumes can be watched");
        Self { sightings }
    }

    /// The next event that fulfils the predicate; those before it are dropped.
    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&Sighting) -> bool) -> Sighting {
        let search = async {
            loop {
                let sighting = self.sightings.recv().await.expect("the watch goes on");
                if wanted(&sighting) {
                    return sighting;
                }
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
    }

    /// When the last one of that many such events was here.
    pub async fn wait_many(&mut self, what: &str, count: usize, wanted: impl Fn(&Sighting) -> bool) -> Instant {
        let mut last = None;
        for number in 1..=count {
            last = Some(self.wait(&format!("{what}, {number} of {count}"), &wanted).await.at);
        }
        last.expect("at least one was waited for")
    }

    /// Returns when nothing has happened for that long.
    pub async fn quiet(&mut self, time: Duration) {
        while timeout(time, self.sightings.recv()).await.is_ok() {}
    }
}

async fn watch(kubeconfig: PathBuf, sightings: UnboundedSender<Sighting>, ready: mpsc::Sender<()>) {
    let volumes: Api<PersistentVolume> = Api::all(client_from(&kubeconfig).await);
    let list = volumes.list(&ListParams::default().limit(1)).await.expect("volumes can be listed");
    let mut version = list.metadata.resource_version.expect("a list has a version");
    let params = WatchParams::default().timeout(WATCH_SECONDS);
    loop {
        // It fails when the control plane has ended; whoever waits then says for what.
        let Ok(events) = volumes.watch(&params, &version).await else { return };
        let mut events = Box::pin(events);
        // Nobody waits any more after the first request.
        let _ = ready.send(());
        while let Some(Ok(event)) = events.next().await {
            let at = Instant::now();
            let (kind, pv) = match event {
                WatchEvent::Added(pv) => (Kind::Added, pv),
                WatchEvent::Modified(pv) => (Kind::Modified, pv),
                WatchEvent::Deleted(pv) => (Kind::Deleted, pv),
                WatchEvent::Bookmark(bookmark) => {
                    version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => panic!("the watch failed: {status:?}"),
            };
            version = pv.resource_version().expect("an object of the API server has a version");
            if sightings.send(Sighting { at, kind, pv }).is_err() {
                return;
            }
        }
    }
}
