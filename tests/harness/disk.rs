//! Filesystems and disks to discover: tmpfs, ext4 on loop devices, raw loop devices.
//! All need root and a mount namespace of their own.

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::scratch::{Scratch, mounts_below, unique};

/// How long a busy mount is given to become free: the agent may be looking at it.
const BUSY_TIMEOUT: Duration = Duration::from_mins(1);
const BLOCK: usize = 1 << 20;

/// Mounts a tmpfs of that size; makes the directory when it is missing.
pub fn tmpfs(path: &Path, bytes: u64) {
    fs::create_dir_all(path).expect("a mount point can be made");
    mount_tmpfs(path, bytes);
}

/// Mounts `count` tmpfs at `NNNNN` below the directory by system call, in that order, and returns their mount points.
pub fn mount_many(dir: &Path, count: usize) -> Vec<PathBuf> {
    let points: Vec<PathBuf> = (0..count).map(|number| dir.join(format!("{number:05}"))).collect();
    for point in &points {
        fs::create_dir_all(point).expect("a mount point can be made");
    }
    for point in &points {
        mount_tmpfs(point, 64 << 20);
    }
    points
}

fn mount_tmpfs(path: &Path, bytes: u64) {
    let options = format!("size={bytes}");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .unwrap_or_else(|error| panic!("cannot mount a tmpfs at {}: {error}", path.display()));
}

/// Mounts a ramfs, in whose files no holes can be punched.
pub fn ramfs(path: &Path) {
    fs::create_dir_all(path).expect("a mount point can be made");
    mount(Some("ramfs"), path, Some("ramfs"), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("cannot mount a ramfs at {}: {error}", path.display()));
}

/// Mounts a directory at another place.
pub fn bind_mount(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a mount point can be made");
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot bind {} to {}: {error}", from.display(), to.display()));
}

/// Lets namespaces that were made from this one see what is mounted below later.
pub fn make_shared(path: &Path) {
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
        .unwrap_or_else(|error| panic!("cannot make {} shared: {error}", path.display()));
}

/// Unmounts; one that stays busy is a failure of the test.
pub fn umount(path: &Path) {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    while let Err(error) = umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        let again = error == Errno::EBUSY && Instant::now() < deadline;
        assert!(again, "cannot unmount {}: {error}", path.display());
        sleep(Duration::from_millis(5));
    }
}

/// Detaches every mount at or below the path, busy or not, the innermost first.
pub fn detach_all(path: &Path) {
    for point in mounts_below(path).iter().rev() {
        // A copy that an outer unmount took along is gone already.
        let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// Makes an ext4 filesystem on a new disk and mounts it.
pub fn ext4(path: &Path, bytes: u64) -> LoopDisk {
    let scratch = Scratch::new("ext4");
    let backing = sparse_file(scratch.path(), bytes);
    let mut disk = LoopDisk::attach(backing);
    disk.scratch = Some(scratch);
    disk.format_ext4();
    disk.mount_ext4(path);
    disk
}

/// A loop device on a sparse file. It detaches by itself when its last user closes
/// it: this value (also by the death of the process), a mount, or an agent.
pub struct LoopDisk {
    /// The device node, such as `/dev/loop7`.
    pub device: PathBuf,
    /// The file with its content.
    pub backing: PathBuf,
    _holder: InFlight,
    scratch: Option<Scratch>,
}

impl LoopDisk {
    /// A new disk of that size; its file is made in `dir`.
    pub fn new(dir: &Path, bytes: u64) -> Self {
        Self::attach(sparse_file(dir, bytes))
    }

    /// A new disk with partitions, by a script for sfdisk.
    pub fn partitioned(dir: &Path, bytes: u64, script: &str) -> Self {
        let disk = Self::new(dir, bytes);
        disk.write_table(script);
        // Some kernels read no tables themselves; the end of the disk is the partitions' end.
        run(Command::new("partx").arg("--update").arg(&disk.device));
        disk
    }

    /// Writes a partition table, by a script for sfdisk; the kernel does not look at it.
    pub fn write_table(&self, script: &str) {
        let mut sfdisk = Command::new("sfdisk");
        sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(&self.device).stdin(Stdio::piped());
        let mut child = sfdisk.spawn().expect("sfdisk can be run");
        child.stdin.take().expect("it is piped").write_all(script.as_bytes()).expect("it reads its script");
        assert!(child.wait().expect("sfdisk ends").success(), "{script}");
    }

    /// The node of a partition.
    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.display()))
    }

    /// A disk with the content of a file.
    pub fn attach(backing: PathBuf) -> Self {
        Self::attach_with_blocks(backing, 512)
    }

    /// As [`attach`](Self::attach), with logical blocks of that size.
    pub fn attach_with_blocks(backing: PathBuf, block: u32) -> Self {
        // With `--partscan` its partitions go when it does.
        let mut losetup = Command::new("losetup");
        losetup.args(["--partscan", "--find", "--show", "--sector-size"]).arg(block.to_string()).arg(&backing);
        let device = PathBuf::from(run(&mut losetup));
        Self::hold(device, backing)
    }

    /// As [`attach`](Self::attach), under a number that must be free: `None` when it is not.
    pub fn attach_at(device: &Path, backing: PathBuf) -> Option<Self> {
        let output = Command::new("losetup").arg("--partscan").arg(device).arg(&backing).output();
        output.expect("losetup can be run").status.success().then(|| Self::hold(device.to_owned(), backing))
    }

    fn hold(device: PathBuf, backing: PathBuf) -> Self {
        let holder = InFlight::new(&File::open(&device).expect("a loop device that was just made can be opened"));
        // While it is open the kernel does not detach it; it does at the last close.
        run(Command::new("losetup").arg("--detach").arg(&device));
        Self { device, backing, _holder: holder, scratch: None }
    }

    /// Whether the device is still on this disk's file.
    pub fn is_attached(&self) -> bool {
        is_attached(&self.device, &self.backing)
    }

    /// Makes an ext4 filesystem on it.
    pub fn format_ext4(&self) {
        self.format("ext4");
    }

    /// Makes a filesystem on it: ext4, xfs or btrfs.
    pub fn format(&self, kind: &str) {
        let force = if kind == "ext4" { "-F" } else { "-f" };
        run_when_free(Command::new(format!("mkfs.{kind}")).args(["-q", force]).arg(&self.device));
    }

    /// Mounts the filesystem that is on it.
    pub fn mount_ext4(&self, path: &Path) {
        self.mount("ext4", path);
    }

    /// Mounts the filesystem of that kind that is on it.
    pub fn mount(&self, kind: &str, path: &Path) {
        fs::create_dir_all(path).expect("a mount point can be made");
        let deadline = Instant::now() + BUSY_TIMEOUT;
        while let Err(error) = mount(Some(&self.device), path, Some(Path::new(kind)), MsFlags::empty(), None::<&Path>) {
            let again = error == Errno::EBUSY && Instant::now() < deadline;
            assert!(again, "cannot mount {} at {}: {error}", self.device.display(), path.display());
            sleep(Duration::from_millis(5));
        }
    }

    /// Makes a link to the device, as an administrator does in a discovery directory.
    pub fn link(&self, dir: &Path, name: &str) -> PathBuf {
        let link = dir.join(name);
        std::os::unix::fs::symlink(&self.device, &link).expect("a link can be made in a discovery directory");
        link
    }

    /// Writes through the device; the bytes have reached the file when this returns.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) {
        let device = OpenOptions::new().write(true).custom_flags(OFlag::O_DSYNC.bits()).open(&self.device);
        device.expect("the device can be opened").write_all_at(bytes, offset).expect("the device takes writes");
    }

    /// The whole content, read through the device.
    pub fn read_all(&self) -> Vec<u8> {
        fs::read(&self.device).expect("the device can be read")
    }

    /// Whether the bytes are anywhere in the file, which is what is left of them on the disk.
    pub fn backing_contains(&self, needle: &[u8]) -> bool {
        let file = File::open(&self.backing).expect("the backing file can be read");
        let mut window = Vec::new();
        loop {
            let read = (&file).take(BLOCK as u64).read_to_end(&mut window).expect("the backing file can be read");
            if memchr::memmem::find(&window, needle).is_some() {
                return true;
            }
            if read == 0 {
                return false;
            }
            // What a match across the boundary would begin with.
            window.drain(..window.len().saturating_sub(needle.len()));
        }
    }
}

/// Keeps a file open on its way through a socket: as long as this process lives, but not
/// among its descriptors, where an agent would take us for a user of the disk.
struct InFlight {
    _sockets: (UnixDatagram, UnixDatagram),
}

impl InFlight {
    fn new(file: &File) -> Self {
        let sockets = UnixDatagram::pair().expect("a pair of sockets can be had");
        let rights = [file.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&rights)];
        let sent = sendmsg::<()>(sockets.0.as_raw_fd(), &[IoSlice::new(b".")], &message, MsgFlags::empty(), None);
        sent.expect("a descriptor can be sent");
        Self { _sockets: sockets }
    }
}

/// Whether a loop device is on that file.
pub fn is_attached(device: &Path, backing: &Path) -> bool {
    let name = device.file_name().expect("a device node has a name");
    let attribute = Path::new("/sys/block").join(name).join("loop/backing_file");
    let file = fs::read_to_string(attribute).unwrap_or_default();
    let file = file.trim_end();
    Path::new(file.strip_suffix(" (deleted)").unwrap_or(file)) == backing
}

fn sparse_file(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join(format!("disk-{}.img", unique()));
    let file = File::create_new(&path).expect("a backing file can be made");
    file.set_len(bytes).expect("a backing file can be made as large as asked");
    path
}

/// As [`run`], of a program that wants a disk for itself: who looks for a free loop device may
/// have it for a moment.
pub fn run_when_free(command: &mut Command) -> String {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        }
        let is_busy = ["busy", "in use"].iter().any(|words| errors.contains(words));
        assert!(is_busy && Instant::now() < deadline, "{command:?}: {errors}");
        sleep(Duration::from_millis(5));
    }
}

/// Runs a program that must succeed, and returns what it says.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
