//! Starts the control plane without holding up the rest, a Ctrl-C for example.

use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;

use super::harness::{ControlPlane, Options};

/// A control plane on its way; whoever gives up waiting still waits for it to end.
struct Starting(Option<JoinHandle<ControlPlane>>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.take().map(JoinHandle::join);
    }
}

/// Returns when it is ready.
pub async fn start() -> anyhow::Result<ControlPlane> {
    let (ready, started) = oneshot::channel();
    let mut starting = Starting(Some(std::thread::spawn(move || {
        let plane = ControlPlane::start(Options::default());
        let _ = ready.send(());
        plane
    })));
    started.await.context("the control plane does not start")?;
    let thread = starting.0.take().expect("nobody else takes it");
    thread.join().map_err(|_| anyhow!("the control plane does not start"))
}
