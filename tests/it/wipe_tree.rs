//! The removal of what is in a directory, on real filesystems and without an agent
//! around it: it stays inside, gets through what a tenant can leave, stops where the
//! filesystem fails, and goes on when it is called again.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mooring::deleter::{Control, WipeError, remove_contents};
use mooring::node::ioctl;
use nix::mount::{MsFlags, mount};
use rustix::fs::{IFlags, Mode, OFlags};
use rustix::thread::CapabilitySet;

use crate::common::SOON;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::{Scratch, eventually, launch, require_own_namespace};

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the directory can be opened").into()
}

fn wipe(path: &Path) -> Result<(), WipeError> {
    remove_contents(&open(path), &Control::default())
}

/// Path and problem of the entry that a wipe ended with.
fn obstacle(outcome: Result<(), WipeError>) -> (String, String) {
    match outcome {
        Err(WipeError::Obstacle { path, problem }) => (path, problem),
        other => panic!("no obstacle: {other:?}"),
    }
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("the directory can be read");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// An XFS filesystem: with projects, whether or not the kernel keeps quotas.
pub fn xfs(dir: &Path, volume: &Path) -> LoopDisk {
    let disk = LoopDisk::new(dir, 300 << 20);
    disk.format("xfs");
    disk.mount("xfs", volume);
    disk
}

/// Makes files in new directories.
fn fill(path: &Path, dirs: usize, files: usize) {
    for dir in 0..dirs {
        let dir = path.join(format!("dir-{dir}"));
        fs::create_dir_all(&dir).expect("a directory can be made");
        for file in 0..files {
            File::create(dir.join(format!("file-{file}"))).expect("a file can be made");
        }
    }
}

fn set_flags(path: &Path, flags: IFlags) {
    let file = open(path);
    let now = rustix::fs::ioctl_getflags(&file).expect("ext4 has flags");
    rustix::fs::ioctl_setflags(&file, now | flags).expect("root may set flags");
}

/// What a wipe of a large tree ends with when something happens to it on the way. If that comes too
/// late, it is undone.
fn interrupted(path: &Path, interrupt: impl Fn(&Control), undo: impl Fn()) -> WipeError {
    let mut dirs = 100;
    loop {
        fill(path, dirs, 200);
        let control = Control::default();
        let root = open(path);
        let outcome = thread::scope(|scope| {
            let wipe = scope.spawn(|| remove_contents(&root, &control));
            while control.progress().0 < 100 {
                thread::yield_now();
            }
            interrupt(&control);
            wipe.join().expect("a wipe does not panic")
        });
        match outcome {
            Err(error) => return error,
            // It was at its end before it was interrupted: then once more, with more.
            Ok(()) => {
                undo();
                dirs *= 2;
            }
        }
        assert!(dirs < 2_000, "a wipe of {dirs} directories can't be interrupted");
    }
}

fn remount(path: &Path, flags: MsFlags) {
    // A file that is just being made or removed keeps it writable for a moment.
    eventually("the remount", SOON, || {
        mount(None::<&str>, path, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).is_ok()
    });
}

#[test]
fn mounts_and_links_lead_nowhere() {
    require_own_namespace();
    let scratch = Scratch::new("tree-inside");
    let (whole, volume) = (scratch.path().join("disk"), scratch.path().join("volume"));
    let _disk = disk::ext4(&whole, 64 << 20);
    // The volume is a part of a filesystem, and next to it is another's data.
    fill(&whole.join("other"), 3, 3);
    fill(&whole.join("volume"), 3, 3);
    disk::bind_mount(&whole.join("volume"), &volume);
    disk::bind_mount(&whole.join("other"), &volume.join("dir-0/same-disk"));
    disk::tmpfs(&volume.join("dir-1/deeper/tmpfs"), 1 << 20);
    fill(&volume.join("dir-1/deeper/tmpfs"), 1, 1);
    File::create(volume.join("dir-2/file-mount")).expect("a file can be made");
    mount(
        Some(&whole.join("other/dir-0/file-0")),
        &volume.join("dir-2/file-mount"),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .expect("a file can be mounted");
    symlink(whole.join("other"), volume.join("link")).expect("a link can be made");
    symlink("../other", volume.join("dir-0/relative")).expect("a link can be made");
    symlink("/proc/self/root", volume.join("magic")).expect("a link can be made");

    let (path, problem) = obstacle(wipe(&volume));
    assert!(path.starts_with("dir-"), "{path}");
    assert!(problem.contains("mounted"), "{problem}");
    assert_eq!(names(&volume), ["dir-0", "dir-1", "dir-2"]);
    assert_eq!(names(&volume.join("dir-0")), ["same-disk"]);
    assert_eq!(names(&volume.join("dir-1")), ["deeper"]);
    assert_eq!(names(&volume.join("dir-2")), ["file-mount"]);
    assert_eq!(names(&volume.join("dir-1/deeper/tmpfs/dir-0")), ["file-0"]);
    let untouched = || {
        assert_eq!(names(&whole.join("other")), ["dir-0", "dir-1", "dir-2"]);
        assert_eq!(names(&whole.join("other/dir-0")), ["file-0", "file-1", "file-2"]);
    };
    untouched();

    disk::umount(&volume.join("dir-0/same-disk"));
    disk::umount(&volume.join("dir-1/deeper/tmpfs"));
    disk::umount(&volume.join("dir-2/file-mount"));
    wipe(&volume).expect("nothing is in the way any more");
    assert_eq!(names(&volume), [""; 0]);
    untouched();
    disk::umount(&volume);
    disk::umount(&whole);
}

#[test]
fn a_path_of_100_000_levels_goes() {
    require_own_namespace();
    let scratch = Scratch::new("tree-deep");
    let volume = scratch.path().join("v");
    // As many inodes as that.
    let _disk = disk::ext4(&volume, 4 << 30);
    let mut dir = open(&volume);
    for level in 0..100_000 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).expect("a directory can be made");
        if level % 1_000 == 0 {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, "f", flags, Mode::RUSR).expect("a file can be made");
        }
        dir = rustix::fs::openat(&dir, "d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("just made");
    }
    drop(dir);
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), ["lost+found"]);
    disk::umount(&volume);
}

#[test]
fn a_directory_of_1_000_000_files_goes() {
    require_own_namespace();
    let scratch = Scratch::new("tree-wide");
    let volume = scratch.path().join("v");
    disk::tmpfs(&volume, 1 << 30);
    fill(&volume, 1, 1_000_000);
    let control = Control::default();
    remove_contents(&open(&volume), &control).expect("it can be removed");
    assert_eq!(names(&volume), [""; 0]);
    assert_eq!(control.progress().0, 1_000_001);
    disk::umount(&volume);
}

#[test]
fn a_filesystem_that_is_full_to_the_last_byte_is_emptied() {
    require_own_namespace();
    // On btrfs a removal needs room as well; ext4 is full of inodes, too.
    for (kind, size) in [("btrfs", 128 << 20), ("xfs", 300 << 20), ("ext4", 32 << 20)] {
        let scratch = Scratch::new(&format!("tree-full-{kind}"));
        let volume = scratch.path().join("v");
        let disk = LoopDisk::new(scratch.path(), size);
        disk.format(kind);
        disk.mount(kind, &volume);
        let left = stuff(&volume, 4 << 20) + stuff(&volume, 3_000) + stuff(&volume, 0);
        assert!(left > 100, "{kind}: it is full of small files, too: {left}");
        wipe(&volume).unwrap_or_else(|error| panic!("{kind}: {error}"));
        names(&volume).iter().for_each(|name| assert_eq!(name, "lost+found", "{kind}"));
        disk::umount(&volume);
    }
}

/// Makes files of that size until there is no room for another one; returns how many.
fn stuff(volume: &Path, size: usize) -> usize {
    let content = vec![7; size];
    for made in 0.. {
        let dir = volume.join(format!("{size}-{}", made / 1_000));
        let full = fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join(format!("{made:0>240}")), &content));
        match full.map_err(|error| error.kind()) {
            Ok(()) => {}
            Err(std::io::ErrorKind::StorageFull) => return made,
            Err(other) => panic!("{} can't be filled: {other}", volume.display()),
        }
    }
    unreachable!("no disk is endless")
}

#[test]
fn flags_that_forbid_changes_are_cleared() {
    require_own_namespace();
    let scratch = Scratch::new("tree-flags");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 256 << 20);
    for (number, flag) in [IFlags::IMMUTABLE, IFlags::APPEND].into_iter().enumerate() {
        fill(&volume, 3, 3);
        // One that lies so deep that it is moved up, into a root that takes nothing in.
        let mut deep = volume.join("dir-2");
        for _ in 0..100 {
            deep = deep.join("d");
            fs::create_dir(&deep).expect("a directory can be made");
        }
        let mut dir = volume.join("dir-2");
        for _ in 0..100 {
            dir = dir.join("d");
            set_flags(&dir, flag);
        }
        set_flags(&volume.join("dir-0/file-0"), flag);
        set_flags(&volume.join("dir-1/file-1"), flag);
        set_flags(&volume.join("dir-1"), flag);
        set_flags(&volume.join("lost+found"), flag);
        set_flags(&volume, flag);
        wipe(&volume).unwrap_or_else(|error| panic!("flag {number}: {error}"));
        assert_eq!(names(&volume), ["lost+found"]);
    }
    disk::umount(&volume);
}

#[test]
fn flags_that_cannot_be_cleared_end_it_and_are_told() {
    require_own_namespace();
    let scratch = Scratch::new("tree-locked");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 64 << 20);
    // Among them are some that can't be moved up either.
    let mut dir = volume.join("dir");
    for _ in 0..100 {
        fs::create_dir(&dir).expect("a directory can be made");
        dir = dir.join("d");
    }
    let mut dir = volume.join("dir");
    for _ in 0..100 {
        set_flags(&dir, IFlags::IMMUTABLE);
        dir = dir.join("d");
    }
    let outcome = thread::scope(|scope| {
        let wipe = scope.spawn(|| {
            // Holds for this thread and those that it starts.
            let mut sets = rustix::thread::capabilities(None).expect("a thread has capabilities");
            sets.effective.remove(CapabilitySet::LINUX_IMMUTABLE);
            rustix::thread::set_capabilities(None, sets).expect("capabilities can be given away");
            wipe(&volume)
        });
        wipe.join().expect("a wipe does not panic")
    });
    let (path, problem) = obstacle(outcome);
    assert!(path.starts_with("dir/d/d"), "{path}");
    assert!(problem.contains("immutable"), "{problem}");
    wipe(&volume).expect("root may clear them");
    assert_eq!(names(&volume), ["lost+found"]);
    disk::umount(&volume);
}

#[test]
fn deep_directories_of_another_project_are_moved_up_all_the_same() {
    require_own_namespace();
    let scratch = Scratch::new("tree-project");
    let volume = scratch.path().join("v");
    let _disk = xfs(scratch.path(), &volume);
    ioctl::set_project(open(&volume), 7).expect("XFS has projects");
    set_flags(&volume, IFlags::PROJECT_INHERIT);
    let mut dir = open(&volume);
    // More than files can be open.
    for level in 0..30_000 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).expect("a directory can be made");
        dir = rustix::fs::openat(&dir, "d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("just made");
        if level == 0 {
            ioctl::set_project(&dir, 8).expect("XFS has projects");
        }
    }
    drop(dir);
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), [""; 0]);
    disk::umount(&volume);
}

#[test]
fn what_a_tenant_wrote_on_lost_and_found_goes_and_other_kinds_of_it_too() {
    use std::os::unix::fs::{MetadataExt, chown};
    require_own_namespace();
    let scratch = Scratch::new("tree-lost");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 64 << 20);
    let lost = volume.join("lost+found");
    fill(&lost, 2, 2);
    rustix::fs::setxattr(&lost, "user.secret", b"secret", rustix::fs::XattrFlags::empty()).expect("ext4 has them");
    chown(&lost, Some(1000), Some(1000)).expect("root may give away");
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), ["lost+found"]);
    assert_eq!(names(&lost), [""; 0]);
    let data = fs::metadata(&lost).expect("it is there");
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (0, 0, 0o700));
    assert!(rustix::fs::getxattr(&lost, "user.secret", &mut [0_u8; 16]).is_err());
    fs::remove_dir(&lost).expect("it is empty");
    symlink("/", &lost).expect("a link can be made");
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), [""; 0]);
    disk::umount(&volume);
}

#[test]
fn special_files_are_removed_and_never_opened() {
    require_own_namespace();
    let scratch = Scratch::new("tree-special");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 64 << 20);
    // A loop device that does not exist yet: to open its node would make it.
    let number = (300_000..1 << 20).find(|minor| !Path::new(&format!("/sys/dev/block/7:{minor}")).exists());
    let number = number.expect("there is a free number");
    let dir = volume.join("dir");
    fs::create_dir(&dir).expect("a directory can be made");
    let device = rustix::fs::makedev(7, number);
    let kind = rustix::fs::FileType::BlockDevice;
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("disk"), kind, Mode::RUSR, device).expect("root may make nodes");
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    assert!(fs::metadata(dir.join("fifo")).expect("it is there").file_type().is_fifo());
    // In a directory that takes no changes, each of them is "not permitted" at first.
    set_flags(&dir, IFlags::IMMUTABLE);
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), ["lost+found"]);
    assert!(!Path::new(&format!("/sys/dev/block/7:{number}")).exists(), "the device was made");
    disk::umount(&volume);
}

#[test]
fn a_cancelled_wipe_ends_soon_and_another_one_finishes() {
    require_own_namespace();
    let scratch = Scratch::new("tree-cancel");
    let volume = scratch.path().join("v");
    disk::tmpfs(&volume, 1 << 30);
    assert!(matches!(interrupted(&volume, Control::cancel, || {}), WipeError::Cancelled));
    assert_ne!(names(&volume), [""; 0]);
    wipe(&volume).expect("it can be removed");
    assert_eq!(names(&volume), [""; 0]);
    disk::umount(&volume);
}

#[test]
fn a_filesystem_that_turns_read_only_ends_it_and_it_goes_on_later() {
    require_own_namespace();
    let scratch = Scratch::new("tree-ro");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 1 << 30);
    let error = interrupted(&volume, |_| remount(&volume, MsFlags::MS_RDONLY), || remount(&volume, MsFlags::empty()));
    let (path, problem) = obstacle(Err(error));
    assert!(path.starts_with("dir-"), "{path}");
    assert!(problem.contains("read-only"), "{problem}");
    remount(&volume, MsFlags::empty());
    wipe(&volume).expect("it is writable again");
    assert_eq!(names(&volume), ["lost+found"]);
    disk::umount(&volume);
}

#[test]
fn entries_that_others_make_meanwhile_go_too_or_are_told() {
    require_own_namespace();
    let scratch = Scratch::new("tree-busy");
    let volume = scratch.path().join("v");
    disk::tmpfs(&volume, 1 << 30);
    fill(&volume, 10, 100);
    let open_file = File::open(volume.join("dir-0/file-0")).expect("a file can be opened");
    let over = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // The directory goes from under it.
                let _ = fs::create_dir(volume.join("dir-3"));
                let _ = File::create(volume.join(format!("dir-3/new-{number}")));
            }
        });
        let outcome = wipe(&volume);
        over.store(true, Ordering::Relaxed);
        outcome
    });
    assert!(matches!(outcome, Ok(()) | Err(WipeError::Busy(_))), "{outcome:?}");
    wipe(&volume).expect("nobody writes any more");
    assert_eq!(names(&volume), [""; 0]);
    drop(open_file);
    disk::umount(&volume);
}

/// A disk that answers reads with EIO while a file exists.
struct FailingDisk {
    disk: Option<LoopDisk>,
    point: PathBuf,
    trigger: PathBuf,
    server: Child,
}

impl FailingDisk {
    fn new(dir: &Path, bytes: u64) -> Self {
        let (point, trigger) = (dir.join("fuse"), dir.join("fail"));
        fs::create_dir(&point).expect("a directory can be made");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nbdfuse"]).arg(&point);
        command.args(["--command", "nbdkit", "-s", "--exit-with-parent", "--filter=error", "memory"]);
        command.arg(format!("size={bytes}")).args(["error=EIO", "error-pread-rate=100%"]);
        command.arg(format!("error-file={}", trigger.display())).stdin(Stdio::null());
        let server = launch::spawn(command, Arc::default());
        eventually("the FUSE filesystem", SOON, || point.join("nbd").exists());
        let disk = Some(LoopDisk::attach(point.join("nbd")));
        Self { disk, point, trigger, server }
    }

    fn disk(&self) -> &LoopDisk {
        self.disk.as_ref().expect("it is there until the end")
    }

    fn fail(&self, failing: bool) {
        if failing {
            File::create(&self.trigger).expect("a file can be made");
        } else {
            fs::remove_file(&self.trigger).expect("a file can be removed");
        }
    }

    /// Forgets what was read, so that it is read from the disk again.
    fn flush(&self) {
        let flushed = Command::new("blockdev").arg("--flushbufs").arg(&self.disk().device).status();
        assert!(flushed.expect("blockdev can be run").success());
        let file = File::open(&self.disk().backing).expect("the backing file can be opened");
        rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed).expect("advice is taken");
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        self.disk = None;
        disk::detach_all(&self.point);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_disk_that_fails_ends_it_and_it_goes_on_when_the_disk_is_well() {
    require_own_namespace();
    let scratch = Scratch::new("tree-eio");
    let volume = scratch.path().join("v");
    let failing = FailingDisk::new(scratch.path(), 64 << 20);
    let device = &failing.disk().device;
    // A journal would end the filesystem for good at the first error.
    disk::run_when_free(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(device));
    let mount_it = || {
        fs::create_dir_all(&volume).expect("a directory can be made");
        let mounted = || mount(Some(device), &volume, Some("ext4"), MsFlags::empty(), Some("errors=continue"));
        eventually("it can be mounted", SOON, || mounted().is_ok());
    };
    mount_it();
    fill(&volume, 50, 50);
    disk::umount(&volume);
    failing.flush();
    mount_it();
    // The kernel knows these without reading; they go, and what is to be read stays.
    for number in 0..20 {
        File::create(volume.join(format!("new-{number}"))).expect("a file can be made");
    }
    failing.fail(true);
    let control = Control::default();
    let (path, problem) = obstacle(remove_contents(&open(&volume), &control));
    // Which of them comes first is decided by the seed of the filesystem's hashes.
    assert!(path.starts_with("dir-") || path == "lost+found", "{path}");
    assert!((20..2_000).contains(&control.progress().0), "{:?}", control.progress());
    assert!(problem.contains("Input/output error"), "{problem}");
    failing.fail(false);
    wipe(&volume).expect("the disk is well again");
    assert_eq!(names(&volume), ["lost+found"]);
    disk::umount(&volume);
}
