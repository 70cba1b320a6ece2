//! `make demo`: the agent at work, step by step, on a real control plane and real
//! filesystems and disks. It ends with success only when everything that it claims
//! was seen to be so. With `NODES` it does so on whole nodes instead ([`nodes`]).

// A demo writes files and prints; the lints that forbid both are for the agent.
#![allow(clippy::disallowed_methods)]

#[path = "../harness/mod.rs"]
mod harness;
mod accidents;
mod nodes;
mod plane;
mod reclaim;
mod screen;
mod stage;
mod tenant;
mod timeline;
mod verdicts;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};

use screen::Screen;
use stage::Stage;

fn main() -> ExitCode {
    let screen = Screen::new();
    match run(&screen) {
        Ok(code) => code,
        Err(error) => {
            screen.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(screen: &Screen) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(harness::is_root(), "the demo mounts filesystems and attaches loop devices: run it as root");
    anyhow::ensure!(std::env::var_os("MOORING_BIN").is_some(), "MOORING_BIN names no agent: run `make demo`");
    let nodes = nodes::wanted()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let play = async {
            match nodes {
                Some(nodes) => nodes::play(screen, nodes).await,
                None => play(screen).await,
            }
        };
        tokio::select! {
            result = play => result.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(stopped(screen, 130)),
            _ = terminate.recv() => Ok(stopped(screen, 143)),
        }
    })
}

/// Everything that was made is gone by now: it ended with the future that held it.
fn stopped(screen: &Screen, code: u8) -> ExitCode {
    screen.failure("stopped; everything that was made is removed");
    ExitCode::from(code)
}

/// The whole play. What it makes is removed when this ends, is dropped, or panics.
async fn play(screen: &Screen) -> anyhow::Result<()> {
    let begin = Instant::now();
    screen.title("mooring: local disks as Kubernetes persistent volumes");
    let mut stage = Stage::set_up(screen).await?;
    // The harness panics where a test would fail. Caught here, the stage is still
    // taken down in order.
    let acts = AssertUnwindSafe(acts(screen, &mut stage)).catch_unwind().await;
    let result = acts.unwrap_or_else(|_| Err(anyhow::anyhow!("a step of the demo did not end as promised")));
    if result.is_err() {
        screen.lines("The agent's last lines:", stage.last_log_lines(15));
    }
    let summary = result?;
    stage.take_down(screen).await?;
    screen.summary(&summary, begin.elapsed());
    Ok(())
}

async fn acts(screen: &Screen, stage: &mut Stage) -> anyhow::Result<Vec<String>> {
    let volumes = stage.mount_all(screen).await?;
    verdicts::show(screen, stage).await?;
    let tenants = tenant::move_in(screen, stage, &volumes).await?;
    let reclaimed = reclaim::watch(screen, stage, &tenants).await.context("the reclaim did not end as promised")?;
    tenant::look_for_remains(screen, stage, &tenants)?;
    screen.lines("7  What the agent said of it (its log, shortened)", stage.told());
    accidents::show(screen, stage).await?;
    Ok(vec![
        format!("{} volumes published, the slowest {} after its disk appeared", volumes.len(), slowest(&volumes)),
        format!("{} claims bound, written to, and deleted", tenants.len()),
        format!("{} volumes wiped, verified and offered again; the slowest took {reclaimed}", tenants.len()),
        "no secret can be read back, from no mount and from no device".to_owned(),
        "disks that changed places were not wiped, and a deleted PV did not hand on its data".to_owned(),
    ])
}

fn slowest(volumes: &[stage::Published]) -> String {
    screen::ms(volumes.iter().map(|volume| volume.after).max().unwrap_or_default())
}
