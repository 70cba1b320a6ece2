//! How fast the contents of a directory go, next to `rm -rf`, which the scripts of
//! other provisioners call. Both begin with nothing in the page cache, and end when all
//! is on the disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mooring::deleter::{Control, remove_contents};

use crate::harness::disk::run;
use crate::harness::{LoopDisk, Scratch, disk, require_own_namespace};
use crate::table::{Samples, Table, progress};

pub const DIRS: usize = 1_000;
/// In each of the directories.
pub const FILES: usize = 200;
const RUNS: usize = 3;
/// 1.7 times as fast.
const LIMIT_PERCENT: f64 = 100.0 / 1.7;

/// Measures on an ext4 filesystem on a loop device.
pub fn measure(table: &mut Table) {
    require_own_namespace();
    let scratch = Scratch::new("bench-tree");
    let volume = scratch.path().join("v");
    let disk = LoopDisk::new(scratch.path(), 4 << 30);
    disk.format_ext4();
    let (mut theirs, mut ours, mut part) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..RUNS {
        let rm = timed(&disk, &volume, |volume| {
            let dirs = (0..DIRS).map(|dir| volume.join(format!("dir-{dir}")));
            run(Command::new("rm").arg("-rf").args(dirs));
            run(Command::new("sync").arg("-f").arg(volume));
        });
        let own = timed(&disk, &volume, |volume| {
            let root = File::open(volume).expect("the directory can be opened").into();
            remove_contents(&root, &Control::default()).expect("it can be removed");
        });
        theirs.push_time(rm);
        ours.push_time(own);
        part.push(100.0 * own.as_secs_f64() / rm.as_secs_f64());
    }
    let what = format!("{} files in {DIRS} directories on ext4", DIRS * FILES);
    table.samples(&format!("removal of {what}"), "ms", &ours, None);
    table.samples("  by rm -rf", "ms", &theirs, None);
    table.samples("  ours, of the time that rm takes", "%", &part, Some(LIMIT_PERCENT));
}

/// Fills the filesystem, forgets what is cached of it, and times its removal.
fn timed(disk: &LoopDisk, volume: &Path, remove: impl Fn(&Path)) -> Duration {
    disk.mount_ext4(volume);
    fill(volume, DIRS, FILES);
    disk::umount(volume);
    run(Command::new("blockdev").arg("--flushbufs").arg(&disk.device));
    disk.mount_ext4(volume);
    let begun = Instant::now();
    remove(volume);
    let time = begun.elapsed();
    let left = fs::read_dir(volume).expect("the directory can be read").count();
    assert_eq!(left, 1, "only lost+found is left");
    disk::umount(volume);
    progress(&format!("removed after {time:?}"));
    time
}

/// Makes so many directories, and so many small files in each.
pub fn fill(volume: &Path, dirs: usize, files: usize) {
    for dir in 0..dirs {
        let dir = volume.join(format!("dir-{dir}"));
        fs::create_dir(&dir).expect("a directory can be made");
        for file in 0..files {
            let mut file = File::create(dir.join(format!("file-{file}"))).expect("a file can be made");
            file.write_all(&[1; 1024]).expect("a file can be written");
        }
    }
}
