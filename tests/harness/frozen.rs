//! A filesystem that can be frozen: a disk image served by nbdkit and shown by nbdfuse,
//! stopped by SIGSTOP. Whoever asks it anything then waits in the kernel. One of another
//! kind fails to write on demand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{disk, eventually, launch};

/// A FUSE filesystem with one file, `nbd`, mounted on a directory.
pub struct FrozenMount {
    point: PathBuf,
    server: Child,
}

impl FrozenMount {
    /// Mounts one on the directory, which is made, not frozen yet. Its file has so many bytes.
    pub fn new(point: &Path, bytes: u64) -> Self {
        Self::serve(point, bytes, &[])
    }

    /// As [`Self::new`], but every write fails with EIO for as long as the file `trigger` exists.
    pub fn failing(point: &Path, bytes: u64, trigger: &Path) -> Self {
        let trigger = format!("error-file={}", trigger.display());
        let rates = ["error-pwrite-rate=100%", "error-zero-rate=100%", "error-trim-rate=100%"];
        Self::serve(point, bytes, &[&["--filter=error", trigger.as_str()], rates.as_slice()].concat())
    }

    fn serve(point: &Path, bytes: u64, options: &[&str]) -> Self {
        fs::create_dir_all(point).expect("a directory can be made");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nbdfuse"]).arg(point);
        let (filters, settings): (Vec<&str>, Vec<&str>) = options.iter().partition(|option| option.starts_with("--"));
        command.args(["--command", "nbdkit", "-s", "--exit-with-parent"]).args(filters);
        command.arg("memory").arg(format!("size={bytes}")).args(settings);
        command.stdin(Stdio::null());
        let server = launch::spawn(command, Arc::default());
        let mount = Self { point: point.to_owned(), server };
        eventually("the FUSE filesystem", Duration::from_mins(1), || point.join("nbd").exists());
        mount
    }

    /// Stops or continues its server.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(self.pid(), signal).expect("its server is ours");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.server.id()).expect("a pid fits"))
    }
}

impl Drop for FrozenMount {
    fn drop(&mut self) {
        // A frozen server would keep all who wait for it.
        let _ = kill(self.pid(), Signal::SIGCONT);
        let _ = self.server.kill();
        let _ = self.server.wait();
        disk::detach_all(&self.point);
    }
}
