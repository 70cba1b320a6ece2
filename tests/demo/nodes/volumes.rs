//! Disks appear on every node, under the same names, and so do their PVs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{FAST, Play, RAW};
use crate::harness::LoopDisk;
use crate::harness::volumes::{is_on, path_of, phase};
use crate::screen::ms;
use crate::timeline::Seen;

const ENTRY: &str = "disk";
const SIZE: u64 = 64 << 20;
const WIDTHS: [usize; 5] = [8, 29, 18, 10, 10];

/// A disk of a node, and its PV.
pub struct Volume {
    pub node: usize,
    /// Such as `node-0/fast`.
    pub label: String,
    pub raw: bool,
    /// On the node's machine.
    pub path: PathBuf,
    pub pv: String,
    pub uid: String,
    /// How long it took to become Available.
    pub available: Duration,
    pub disk: LoopDisk,
}

/// Mounts and links the disks, one after the other.
pub async fn appear(play: &mut Play<'_>) -> anyhow::Result<Vec<Volume>> {
    play.screen.act("2  Disks appear, and so do their PersistentVolumes");
    play.screen.note("counted from the mount or the link; each event is the API server's own");
    play.screen.row(&WIDTHS, &["NODE", "WHAT", "PV", "MADE", "AVAILABLE"], true);
    let mut volumes = Vec::new();
    for node in play.nodes() {
        volumes.push(one(play, node, FAST, "ext4, mounted at", LoopDisk::mount_ext4).await?);
        let link = |disk: &LoopDisk, path: &Path| {
            disk.link(path.parent().expect("an entry is in a directory"), ENTRY);
        };
        volumes.push(one(play, node, RAW, "a device, linked at", link).await?);
    }
    Ok(volumes)
}

async fn one(
    play: &mut Play<'_>,
    number: usize,
    class: &str,
    what: &str,
    appear: impl FnOnce(&LoopDisk, &Path) + Send,
) -> anyhow::Result<Volume> {
    let node = play.site.node(number);
    let path = node.discovery(class).join(ENTRY);
    let (disk, start) = node.on_host(|| {
        let disk = LoopDisk::new(node.dir(), SIZE);
        if class == FAST {
            disk.format_ext4();
        }
        let start = Instant::now();
        appear(&disk, &path);
        (disk, start)
    });
    let here = |seen: &Seen| Path::new(path_of(&seen.pv)) == path && is_on(&seen.pv, node.name());
    let what_for = format!("a PV for {} on {}", path.display(), node.name());
    let made = play.timeline.wait(&what_for, here).await?;
    let ready = |seen: &Seen| here(seen) && phase(&seen.pv) == "Available";
    let available = play.timeline.wait(&format!("{what_for}, Available"), ready).await?;
    let since = |at: Instant| at.saturating_duration_since(start);
    let (pv, took) = (made.name(), since(available.at));
    let what = format!("{what} {class}/{ENTRY}");
    play.screen.row(&WIDTHS, &[node.name(), &what, &pv, &ms(since(made.at)), &ms(took)], false);
    let label = format!("{}/{class}", node.name());
    Ok(Volume { node: number, label, raw: class == RAW, path, pv, uid: made.uid(), available: took, disk })
}
