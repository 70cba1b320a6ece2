//! A limit on how fast a process may write to a disk, by the blkio controller of
//! cgroup v1 or the io controller of v2: it makes a wipe last as long as a test needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::eventually;
use super::scratch::unique;

/// A cgroup with a limit. Its processes must have ended before it is dropped.
pub struct Throttle {
    group: PathBuf,
}

impl Throttle {
    /// Lets the process write so many bytes a second to the device.
    pub fn new(pid: u32, device: &Path, bytes_per_second: u64) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (parent, file, limit) = if v1.is_dir() {
            (v1, "blkio.throttle.write_bps_device", bytes_per_second.to_string())
        } else {
            (Path::new("/sys/fs/cgroup"), "io.max", format!("wbps={bytes_per_second}"))
        };
        let group = parent.join(format!("mooring-test-{}-{}", std::process::id(), unique()));
        fs::create_dir(&group).expect("root can make a cgroup");
        let number = fs::metadata(device).map(|data| std::os::unix::fs::MetadataExt::rdev(&data)).expect("a device");
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let write = |file: &str, text: String| fs::write(group.join(file), text).expect("a cgroup can be set up");
        write(file, format!("{major}:{minor} {limit}"));
        write("cgroup.procs", pid.to_string());
        Self { group }
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let group = self.group.clone();
        eventually("the end of a cgroup", Duration::from_mins(1), || fs::remove_dir(&group).is_ok());
    }
}
