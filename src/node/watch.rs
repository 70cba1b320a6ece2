//! What wakes the scanner: the mount table (poll) and the discovery directories
//! (inotify). inotify says nothing of mounts, and a watch stays on a directory that
//! has been mounted over, so watches are set anew when the scan meets another
//! directory at the path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread;

use anyhow::Context as _;
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use rustix::event::{PollFd, PollFlags};
use tracing::{debug, warn};

use crate::node::Waker;
use crate::node::probe::Fingerprint;

/// Inotify watches on the discovery directories and on the directories above them,
/// where a missing one would appear and an existing one would be replaced.
pub struct Watches {
    watcher: RecommendedWatcher,
    armed: BTreeMap<String, Option<Fingerprint>>,
}

impl Watches {
    /// Makes the inotify instance; nothing is watched before [`Watches::rearm`].
    pub fn new(waker: Waker) -> anyhow::Result<Self> {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) => {
                if concerns(&event, &waker.directories()) {
                    waker.wake();
                }
            }
            Err(error) => {
                warn!(%error, "inotify failed; looking at everything instead");
                waker.wake();
            }
        })
        .context("no inotify instance can be had; raise fs.inotify.max_user_instances")?;
        Ok(Self { watcher, armed: BTreeMap::new() })
    }

    /// Ends the watches on other directories than these. Those on the directories above
    /// them stay; they are few, and what they say concerns nobody.
    pub fn retain(&mut self, directories: &BTreeSet<String>) {
        let Self { watcher, armed } = self;
        armed.retain(|directory, _| {
            let is_wanted = directories.contains(directory);
            if !is_wanted {
                // It may be gone, and its watch with it.
                let _ = watcher.unwatch(Path::new(directory));
            }
            is_wanted
        });
    }

    /// Watches the directory that the scan has just seen at the path (`None`: none), and
    /// the nearest one above it. Done at each scan: to watch again what is watched
    /// costs nothing, and a watch can be lost without a word, as by a directory that was
    /// removed and made again, even with the same inode. Returns whether it is another
    /// directory than before: what came into it before it was watched is not known then.
    pub fn rearm(&mut self, directory: &str, seen: Option<Fingerprint>) -> bool {
        let path = Path::new(directory);
        let before = self.armed.insert(directory.to_owned(), seen).flatten();
        if before.is_some() && before != seen {
            // The old directory may be gone, and its watch with it.
            let _ = self.watcher.unwatch(path);
        }
        if seen.is_some()
            && let Err(error) = self.watcher.watch(path, RecursiveMode::NonRecursive)
        {
            warn!(%error, directory, "Directory can't be watched; changes in it are seen at the next resync only");
        }
        if let Some(above) = path.ancestors().skip(1).find(|above| above.exists())
            && let Err(error) = self.watcher.watch(above, RecursiveMode::NonRecursive)
        {
            debug!(%error, directory = %above.display(), "Directory above a discovery directory can't be watched");
        }
        before != seen
    }
}

/// Whether an event can change a snapshot. The scan's own reading shows as `Access`;
/// writes into files and devices as `Modify(Data)`.
fn concerns(event: &notify::Event, directories: &BTreeSet<String>) -> bool {
    match event.kind {
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_)) => false,
        _ if event.need_rescan() || event.paths.is_empty() => true,
        _ => event.paths.iter().any(|path| {
            let mut directories = directories.iter().map(Path::new);
            directories.any(|directory| path.parent() == Some(directory) || directory.starts_with(path))
        }),
    }
}

/// Wakes the scanner at each change of this namespace's mount table, for as long as
/// the process lives. Reading the table holds up mount(2), hence this only waits.
pub fn poll_mount_table(waker: Waker) -> anyhow::Result<()> {
    let table = std::fs::File::open("/proc/self/mountinfo").context("cannot open /proc/self/mountinfo")?;
    thread::Builder::new().name("mount-table".to_owned()).spawn(move || {
        loop {
            let mut polled = [PollFd::new(&table, PollFlags::PRI)];
            match rustix::event::poll(&mut polled, None) {
                Ok(_) => waker.wake(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    warn!(%error, "The mount table can't be polled; mounts are seen at the next resync only");
                    return;
                }
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{AccessKind, CreateKind, DataChange, Flag};
    use std::path::PathBuf;

    #[test]
    fn only_events_that_can_change_a_snapshot_wake() {
        let directories = BTreeSet::from(["/mnt/disks".to_owned()]);
        let event = |kind, path: &str| notify::Event::new(kind).add_path(PathBuf::from(path));
        let created = EventKind::Create(CreateKind::Any);
        assert!(concerns(&event(created, "/mnt/disks/a"), &directories));
        assert!(concerns(&event(created, "/mnt/disks"), &directories));
        assert!(concerns(&event(created, "/mnt"), &directories));
        assert!(!concerns(&event(created, "/mnt/other"), &directories));
        assert!(!concerns(&event(EventKind::Access(AccessKind::Any), "/mnt/disks/a"), &directories));
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(!concerns(&event(data, "/mnt/disks/a"), &directories));
        assert!(concerns(&notify::Event::new(EventKind::Other).set_flag(Flag::Rescan), &directories));
    }
}
