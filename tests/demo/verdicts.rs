//! The agent's verdicts, as its HTTP page has them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::screen::Screen;
use super::stage::Stage;

/// What the page must say of each entry.
const EXPECTED: [(&str, &str); 6] = [
    ("fast/a-fifo", "Unsupported"),
    ("fast/ext4", "Published"),
    ("fast/not-mounted", "NotAMountPoint"),
    ("fast/scratch", "Published"),
    ("raw/a-directory", "ModeMismatch"),
    ("raw/disk", "Published"),
];
const PATIENCE: Duration = Duration::from_secs(10);
const WIDTHS: [usize; 3] = [17, 15, 40];

/// Shows every entry's verdict, and what to do about those that are no volumes.
pub async fn show(screen: &Screen, stage: &Stage) -> anyhow::Result<()> {
    screen.act("3  Every entry has a verdict (GET /volumes)");
    let lines = wait(stage).await?;
    screen.row(&WIDTHS, &["ENTRY", "VERDICT", "WHY, AND WHAT TO DO"], true);
    for line in lines {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let path = stage.short(&text("path"));
        screen.row(&WIDTHS, &[&path, &text("verdict"), &text("detail")], false);
        if !text("remedy").is_empty() {
            screen.row(&WIDTHS, &["", "", &format!("-> {}", text("remedy"))], true);
        }
    }
    Ok(())
}

/// Waits until the entry has the verdict, and returns the detail.
pub async fn turns(stage: &Stage, label: &str, verdict: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = lines(stage).await?;
        let line = lines.iter().find(|line| stage.short(line["path"].as_str().unwrap_or_default()) == label);
        let found = line.and_then(|line| line["verdict"].as_str());
        if found == Some(verdict) {
            let detail = line.and_then(|line| line["detail"].as_str()).unwrap_or_default();
            return Ok(stage.short(detail));
        }
        ensure!(Instant::now() < deadline, "the verdict of {label} is {found:?}, and not {verdict}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn lines(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    let (status, page) = stage.agent.as_ref().context("the agent runs")?.get("/volumes").await;
    ensure!(status == 200, "/volumes answers {status}");
    Ok(serde_json::from_str(&page)?)
}

async fn wait(stage: &Stage) -> anyhow::Result<Vec<Value>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = lines(stage).await?;
        let mut found: Vec<(String, &str)> = lines
            .iter()
            .map(|line| {
                (stage.short(line["path"].as_str().unwrap_or_default()), line["verdict"].as_str().unwrap_or_default())
            })
            .collect();
        found.sort();
        if found.iter().map(|(path, verdict)| (path.as_str(), *verdict)).eq(EXPECTED) {
            return Ok(lines);
        }
        if Instant::now() > deadline {
            bail!("the verdicts are {found:?}, and not {EXPECTED:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
