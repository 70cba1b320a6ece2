//! Whoever is offered a volume must not find anything on it: each time that a PV turns Available, its
//! volume is looked at once from the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ResourceExt};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::timeout;

use crate::harness::site::{SOON, Site};
use crate::harness::volumes::{is_on, path_of, phase};
use crate::stage::Scene;

/// A watch of all PVs of some classes, on a thread of its own: tests block theirs.
pub struct Offers {
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// The UIDs of those that were offered.
    offered: BTreeSet<String>,
    dirty: Vec<String>,
}

impl Offers {
    /// Begins to watch; a volume that holds `secret`, or any file, is dirty.
    pub fn of(scene: &Scene, classes: &[&str], secret: &'static str) -> Self {
        let (seen, end) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let site = scene.site();
        let classes: Vec<_> = classes.iter().map(|&class| class.to_owned()).collect();
        let run = {
            let (seen, end) = (Arc::clone(&seen), Arc::clone(&end));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime can be made").block_on(watch(site, &classes, secret, &seen, &end));
            }
        };
        Self { seen, end, thread: Some(thread::spawn(run)) }
    }

    /// Waits until a PV that was offered has been looked at.
    pub async fn wait(&self, scene: &Scene, pv: &PersistentVolume) {
        let uid = pv.uid().expect("an object has a UID");
        let looked = async || self.seen().offered.contains(&uid).then_some(());
        scene.until(&format!("{} is looked at", pv.name_any()), SOON, looked).await;
        self.assert_clean();
    }

    /// Panics when something was on a volume that was offered.
    pub fn assert_clean(&self) {
        let seen = self.seen();
        assert!(seen.dirty.is_empty(), "offered with data on it: {:?}", seen.dirty);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Offers {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the watch has failed");
    }
}

async fn watch(site: &Site, classes: &[String], secret: &str, seen: &Mutex<Seen>, end: &AtomicBool) {
    let pvs: Api<PersistentVolume> = Api::all(site.client().await);
    let mut events = Box::pin(watcher(pvs, watcher::Config::default()));
    while !end.load(Ordering::Relaxed) {
        let Ok(event) = timeout(Duration::from_millis(100), events.next()).await else { continue };
        let Some(Ok(Event::InitApply(pv) | Event::Apply(pv))) = event else { continue };
        let class = pv.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
        let uid = pv.uid().expect("an object has a UID");
        let is_new = !seen.lock().unwrap_or_else(PoisonError::into_inner).offered.contains(&uid);
        if phase(&pv) != "Available" || !is_new || class.is_none_or(|class| !classes.contains(class)) {
            continue;
        }
        let node = site.nodes().iter().find(|node| is_on(&pv, node.name())).expect("a local PV has a node");
        let found = node.on_host(|| dirt(Path::new(path_of(&pv)), secret));
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.offered.insert(uid);
        seen.dirty.extend(found.map(|found| format!("{} ({}): {found}", path_of(&pv), pv.name_any())));
    }
}

/// What is on a volume that should be empty.
pub fn dirt(volume: &Path, secret: &str) -> Option<String> {
    let is_device = fs::metadata(volume).ok()?.file_type().is_block_device();
    if is_device {
        let content = fs::read(volume).expect("a device can be read");
        let at = memchr::memmem::find(&content, secret.as_bytes());
        return at.map(|at| format!("the secret is at byte {at}"));
    }
    let entries = fs::read_dir(volume).expect("a volume can be read").flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name != "lost+found")
}
