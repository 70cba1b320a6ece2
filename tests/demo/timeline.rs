//! When what happened to the volumes: every event of a watch of the API server with
//! the moment of its arrival, taken on a thread that does nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ResourceExt as _};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::harness::cluster::client_from;

const PATIENCE: Duration = Duration::from_secs(30);

/// A volume as one event showed it.
#[derive(Clone)]
pub struct Seen {
    pub at: Instant,
    pub pv: PersistentVolume,
    pub gone: bool,
}

/// All events so far, oldest first.
pub struct Timeline {
    seen: Vec<Seen>,
    events: UnboundedReceiver<Seen>,
}

impl Timeline {
    /// Starts the watch; it ends soon after this value.
    pub fn start(kubeconfig: &Path) -> anyhow::Result<Self> {
        let (sender, events) = unbounded_channel();
        let kubeconfig = kubeconfig.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("timeline".to_owned()).spawn(move || {
            runtime.block_on(async {
                let watch = follow(Api::all(client_from(&kubeconfig).await), &sender);
                tokio::select! {
                    () = watch => {}
                    () = sender.closed() => {}
                }
            });
        })?;
        Ok(Self { seen: Vec::new(), events })
    }

    /// The first event, now or later, that fulfils the predicate.
    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) -> anyhow::Result<Seen> {
        if let Some(seen) = self.seen.iter().find(|seen| wanted(seen)) {
            return Ok(seen.clone());
        }
        let search = async {
            while let Some(event) = self.events.recv().await {
                self.seen.push(event.clone());
                if wanted(&event) {
                    return Some(event);
                }
            }
            None
        };
        match timeout(PATIENCE, search).await {
            Ok(Some(seen)) => Ok(seen),
            Ok(None) => bail!("the watch ended before this was seen: {what}"),
            Err(_) => bail!("not seen within {} s: {what}", PATIENCE.as_secs()),
        }
    }
}

async fn follow(volumes: Api<PersistentVolume>, sender: &UnboundedSender<Seen>) {
    let mut events = Box::pin(watcher(volumes, watcher::Config::default()));
    while let Some(event) = events.next().await {
        let (pv, gone) = match event {
            Ok(Event::Apply(pv) | Event::InitApply(pv)) => (pv, false),
            Ok(Event::Delete(pv)) => (pv, true),
            _ => continue,
        };
        if sender.send(Seen { at: Instant::now(), pv, gone }).is_err() {
            return;
        }
    }
}

impl Seen {
    pub fn name(&self) -> String {
        self.pv.name_any()
    }

    pub fn uid(&self) -> String {
        self.pv.uid().unwrap_or_default()
    }
}
