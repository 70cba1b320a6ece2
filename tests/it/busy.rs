//! Who uses a volume: everything that keeps a claim from being had, and is named by it.
//! Each user goes away again, and the claim is had.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mooring::deleter::{WipeError, inspect};
use mooring::plan::Target;

use crate::claim::target;
use crate::harness::disk::{self, LoopDisk};
use crate::harness::{Scratch, eventually, launch, require_own_namespace};

const PATIENCE: Duration = Duration::from_mins(1);

/// A shell that does something and undoes it when its input ends: with this value, or
/// with this process.
pub struct Holder(Child);

impl Holder {
    /// `begin` is run, then `end` after the wait.
    pub fn new(program: &[&str], begin: &str, end: &str) -> Self {
        let script = format!("{begin} && echo ready && cat >/dev/null; {end}");
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell can be run");
        let output = child.stdout.as_mut().expect("it is piped");
        let line = BufReader::new(output).lines().next().expect("the shell says something").expect("it is text");
        assert_eq!(line, "ready");
        Self(child)
    }

    /// The same in a mount namespace that only it is in, and where no other test has anything mounted.
    pub fn elsewhere(begin: &str, end: &str) -> Self {
        let hold = || {
            let _ours = launch::enter_own_namespace(&[]);
            Self::new(&["sh"], begin, end)
        };
        // A thread's namespace ends with it, but for what it has started.
        std::thread::scope(|scope| scope.spawn(hold).join()).expect("the shell is started")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn busy(target: &Target) -> Option<String> {
    match inspect(target) {
        Ok(()) => None,
        Err(WipeError::Busy(text)) => Some(text),
        Err(other) => panic!("it is neither free nor busy: {other}"),
    }
}

/// Makes sure that the volume is busy, and that the message names the user. Another one may
/// have it for a moment, and a loop device may be slow to answer what it is on.
fn busy_for(target: &Target, user: &str) {
    eventually(&format!("{user} is told"), PATIENCE, || busy(target).is_some_and(|text| text.contains(user)));
}

/// The last close of a device or a mount may come a moment after its user is gone; and one who
/// looks for a free loop device may have opened this one.
fn free(target: &Target) {
    eventually("it is free", PATIENCE, || busy(target).is_none());
}

/// A disk, and a link to it as `disk` in a discovery directory.
async fn disk(scratch: &Scratch) -> (LoopDisk, Target) {
    require_own_namespace();
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let disk = LoopDisk::new(scratch.path(), 64 << 20);
    disk.link(&dir, "disk");
    let target = target(&dir, "disk").await;
    free(&target);
    (disk, target)
}

#[tokio::test]
async fn a_device_that_is_mounted_is_busy_wherever_it_is_mounted() {
    let scratch = Scratch::new("busy-mounted");
    let (disk, target) = disk(&scratch).await;
    let point = scratch.path().join("mounted");
    disk.format_ext4();
    disk.mount_ext4(&point);
    busy_for(&target, &format!("mounted at {}", point.display()));
    disk::umount(&point);
    free(&target);
    // In a namespace that only another process is in.
    let holder = Holder::elsewhere(&format!("mount -t ext4 {} {}", disk.device.display(), point.display()), ":");
    busy_for(&target, &format!("mounted at {} as process ", point.display()));
    drop(holder);
    free(&target);
}

#[tokio::test]
async fn a_device_under_another_loop_device_is_busy() {
    let scratch = Scratch::new("busy-loop");
    let (disk, target) = disk(&scratch).await;
    let over = LoopDisk::attach(disk.device.clone());
    busy_for(&target, &format!("backing of {}", over.device.display()));
    drop(over);
    free(&target);
    // The kubelet's way: by a node of another name that only its own namespace shows.
    let node = scratch.path().join("node");
    let (node, device) = (node.display(), disk.device.display());
    let begin = format!("touch {node} && mount --bind {device} {node} && over=$(losetup --find --show {node})");
    let holder = Holder::elsewhere(&begin, "losetup --detach $over");
    busy_for(&target, "backing of /dev/loop");
    drop(holder);
    free(&target);
}

#[tokio::test]
async fn a_device_with_swap_on_it_is_busy() {
    let scratch = Scratch::new("busy-swap");
    let (disk, target) = disk(&scratch).await;
    let device = disk.device.display();
    let begin = format!("mkswap {device} >/dev/null && swapon {device}");
    let holder = Holder::new(&["sh"], &begin, &format!("swapoff {device}"));
    busy_for(&target, &format!("swap ({device})"));
    drop(holder);
    free(&target);
}

#[tokio::test]
async fn a_device_that_another_process_has_open_is_busy() {
    let scratch = Scratch::new("busy-open");
    let (disk, target) = disk(&scratch).await;
    // A raw block volume in a pod. Not our own child: such a one may only be about to
    // become another program.
    let open = |how: &str| Holder::new(&["sh", "-c", &format!("({}); :", nested(&disk.device, how)), "sh"], ":", ":");
    for how in ["<>", "<"] {
        let holder = open(how);
        busy_for(&target, "open in process ");
        drop(holder);
        free(&target);
    }
}

/// Opens the device, says so, and waits for the end of its input.
pub fn nested(device: &Path, how: &str) -> String {
    format!("exec 3{how}{}; echo ready; cat >/dev/null", device.display())
}

#[tokio::test]
async fn a_partition_and_its_disk_keep_each_other() {
    require_own_namespace();
    let scratch = Scratch::new("busy-partition");
    let dir = scratch.path().join("disks");
    fs::create_dir(&dir).expect("a directory can be made");
    let disk = LoopDisk::partitioned(scratch.path(), 64 << 20, "label: gpt\nsize=20M\nsize=20M\n");
    disk.link(&dir, "disk");
    for number in [1, 2] {
        std::os::unix::fs::symlink(disk.partition(number), dir.join(format!("part{number}")))
            .expect("a link can be made");
    }
    let whole = target(&dir, "disk").await;
    let parts = [target(&dir, "part1").await, target(&dir, "part2").await];
    let over = LoopDisk::attach(disk.partition(1));
    busy_for(&whole, &format!("backing of {}", over.device.display()));
    busy_for(&parts[0], &format!("backing of {}", over.device.display()));
    // Its neighbour is another volume.
    free(&parts[1]);
    drop(over);
    free(&whole);
    let over = LoopDisk::attach(disk.device.clone());
    busy_for(&parts[1], &format!("backing of {}", over.device.display()));
    drop(over);
    free(&parts[1]);
}

#[tokio::test]
async fn a_directory_that_a_pod_has_mounted_is_busy() {
    require_own_namespace();
    let scratch = Scratch::new("busy-directory");
    let dir = scratch.path().join("disks");
    let (volume, pod) = (dir.join("v"), scratch.path().join("pod"));
    disk::tmpfs(&volume, 1 << 20);
    fs::create_dir(volume.join("sub")).expect("a directory can be made");
    let target = target(&dir, "v").await;
    assert_eq!(busy(&target), None);
    for (from, what) in [(volume.clone(), "it is also mounted at"), (volume.join("sub"), "a directory in it")] {
        disk::bind_mount(&from, &pod);
        busy_for(&target, what);
        busy_for(&target, &pod.display().to_string());
        let known = Target { aliases: vec![pod.display().to_string()], ..target.clone() };
        assert_eq!(busy(&known), None, "the same volume by the name of another class");
        disk::umount(&pod);
        assert_eq!(busy(&target), None);
    }
    // Mounted over itself.
    disk::bind_mount(&volume, &volume);
    assert_eq!(busy(&target), None);
    disk::umount(&volume);
    disk::umount(&volume);
}

#[tokio::test]
async fn directories_side_by_side_in_one_filesystem_are_volumes_of_their_own() {
    require_own_namespace();
    let scratch = Scratch::new("busy-shared");
    let (dir, shared) = (scratch.path().join("disks"), scratch.path().join("shared"));
    disk::tmpfs(&shared, 1 << 20);
    for name in ["a", "ab"] {
        fs::create_dir_all(shared.join(name).join("b")).expect("a directory can be made");
        disk::bind_mount(&shared.join(name), &dir.join(name));
    }
    let target = target(&dir, "a").await;
    // Neither the filesystem above nor the neighbour shows what is in it alone.
    assert_eq!(busy(&target), None);
    disk::bind_mount(&shared.join("a/b"), &dir.join("nested"));
    busy_for(&target, "a directory in it is also mounted at");
    for name in ["nested", "a", "ab"] {
        disk::umount(&dir.join(name));
    }
    disk::umount(&shared);
}
