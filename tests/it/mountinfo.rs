//! The mount table that threads share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mooring::node::mountinfo::MountTable;

use crate::harness::{Scratch, disk, require_own_namespace};

#[test]
fn a_shared_mount_table_is_never_older_than_the_question() {
    require_own_namespace();
    let scratch = Scratch::new("mountinfo");
    let (point, stop) = (scratch.path().join("v"), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut kept = None;
                while !stop.load(Ordering::Relaxed) {
                    // The table before lives on while the next one is asked for.
                    kept.replace(MountTable::read_shared().expect("the table can be read"));
                }
            });
        }
        let result = std::panic::catch_unwind(|| {
            for _ in 0..200 {
                disk::tmpfs(&point, 1 << 20);
                let is_there = |table: &MountTable| {
                    table.iter().any(|(_, mount)| mount.mount_point == point.as_os_str().as_encoded_bytes())
                };
                assert!(is_there(&MountTable::read_shared().expect("the table can be read")), "the mount is missing");
                disk::umount(&point);
                let later = MountTable::read_shared().expect("the table can be read");
                assert!(!is_there(&later), "the mount is gone, and still there");
            }
        });
        stop.store(true, Ordering::Relaxed);
        result.expect("each table is new enough");
    });
}
