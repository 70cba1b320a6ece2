//! How much memory a wipe takes: in a process of its own, by how far its peak rises.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use mooring::deleter::{Control, remove_contents};
use mooring::method::{Method, Verify};

use crate::harness::disk::{self, run};
use crate::harness::{LoopDisk, Scratch, require_own_namespace};
use crate::table::Table;
use crate::{tree, wipe};

/// The first argument of a process that wipes; the second is what.
pub const CHILD: &str = "wipe-and-tell-memory";

const DEVICE: u64 = 4 << 30;
const LIMIT_KIB: f64 = 24.0 * 1024.0;

/// Measures, each in a child process.
pub fn measure(table: &mut Table) {
    require_own_namespace();
    let scratch = Scratch::new("bench-memory");
    let disk = LoopDisk::new(scratch.path(), DEVICE);
    let figure = |what: &str| format!("memory that a wipe takes: {what}");
    table.value(&figure("device of 4 GiB"), "KiB", in_child(&disk.device), Some(LIMIT_KIB));
    disk.format_ext4();
    let volume = scratch.path().join("v");
    for (what, dirs) in [("directories", tree::DIRS), ("directory", 1)] {
        disk.mount_ext4(&volume);
        tree::fill(&volume, dirs, tree::DIRS * tree::FILES / dirs);
        let what = format!("{} files in {dirs} {what}", tree::DIRS * tree::FILES);
        table.value(&figure(&what), "KiB", in_child(&volume), Some(LIMIT_KIB));
        disk::umount(&volume);
    }
}

fn in_child(volume: &Path) -> f64 {
    let own = std::env::current_exe().expect("a program knows its file");
    let told = run(Command::new(own).arg(CHILD).arg(volume));
    told.parse().expect("the child tells a number")
}

/// The child: wipes, and returns how far the peak of its memory has risen, in KiB.
pub fn wipe_and_tell(volume: &Path) -> u64 {
    // As the kernel counts it from now on (proc(5), clear_refs).
    fs::write("/proc/self/clear_refs", "5").expect("a process may reset its peak");
    let before = peak();
    if volume.is_dir() {
        let root = File::open(volume).expect("the directory can be opened").into();
        remove_contents(&root, &Control::default()).expect("it can be removed");
    } else {
        // Written, not handed to the disk, and read back: all that takes memory.
        wipe::wipe(volume, Method::Overwrite { passes: 1 }, Verify::Full);
    }
    peak() - before
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process can read its own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells the peak");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number of KiB")
}
