#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use super::*;
use crate::testing;

fn losetup(arguments: &[&Path]) -> Output {
    Command::new("losetup").args(arguments).output().expect("losetup can be run")
}

/// Opened, a loop device may be told to detach: it does so at the last close, which is
/// also the end of this process.
fn hold(device: &Path) -> File {
    let file = File::open(device).expect("a loop device can be opened");
    assert!(losetup(&["--detach".as_ref(), device]).status.success());
    file
}

fn disk(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let file = File::create_new(&path).expect("a file can be made");
    file.set_len(1 << 20).expect("it can be made as large as asked");
    path
}

/// The disk is pulled and another gets its number after the look at the place and
/// before the device is opened. Only what is asked of the open file shows it.
#[test]
fn a_disk_that_is_exchanged_before_it_is_opened_is_noticed() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let (first, second) = (disk(scratch.path(), "first"), disk(scratch.path(), "second"));
    let sysfs = Sysfs::host();
    // Somebody else may get the number: then once more.
    for _ in 0..50 {
        let attached = losetup(&["--find".as_ref(), "--show".as_ref(), &first]);
        assert!(attached.status.success(), "{attached:?}");
        let device = PathBuf::from(String::from_utf8_lossy(&attached.stdout).trim());
        let holder = hold(&device);
        let place = rustix::fs::open(&device, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("there is a node");
        let number = device_number(&place).expect("it can be looked at").expect("it is a device");
        let identity = gather(&sysfs, number, "disk").expect("it is there");
        let target = Target {
            mount_dir: scratch.path().display().to_string(),
            identity: Arc::new(Identity::Device(identity)),
            ..testing::target("disk", 0)
        };
        let take = || take_device(&sysfs, &place, number, &target, "disk", OFlags::RDWR);
        take().expect("it is the one that was looked at");
        drop(holder);
        if !losetup(&[&device, &second]).status.success() {
            continue;
        }
        let _holder = hold(&device);
        assert!(matches!(take(), Err(WipeError::IdentityChanged(_))));
        return;
    }
    panic!("no device number could be had twice in a row");
}
