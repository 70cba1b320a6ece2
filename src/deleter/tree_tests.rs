#![allow(clippy::disallowed_methods)]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{first_entry, remove_contents};
use crate::deleter::Control;

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the directory can be opened").into()
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("the directory can be read");
    entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn everything_below_goes_and_nothing_beside() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let (root, beside) = (scratch.path().join("root"), scratch.path().join("beside"));
    fs::create_dir_all(root.join("lost+found/dir")).expect("a directory can be made");
    fs::create_dir_all(root.join("wide")).expect("a directory can be made");
    fs::create_dir(&beside).expect("a directory can be made");
    fs::write(beside.join("kept"), "x").expect("a file can be made");
    fs::hard_link(beside.join("kept"), root.join("hard")).expect("a link can be made");
    symlink(&beside, root.join("soft")).expect("a link can be made");
    symlink("..", root.join("up")).expect("a link can be made");
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    for index in 0..3_000 {
        fs::write(root.join(format!("wide/{index}")), "x").expect("a file can be made");
    }
    fs::write(root.join(".mooring-wipe-1"), "taken").expect("a file can be made");
    let mut deep = root.clone();
    for _ in 0..400 {
        deep = deep.join("d");
        fs::create_dir(&deep).expect("a directory can be made");
        fs::write(deep.join("f"), "x").expect("a file can be made");
    }
    let control = Control::default();
    remove_contents(&open(&root), &control).expect("it can be removed");
    assert_eq!(names(&root), ["lost+found"]);
    assert_eq!(names(&root.join("lost+found")), [""; 0]);
    assert_eq!(names(&beside), ["kept"]);
    assert!(control.progress().0 >= 3_000 + 800);
}

#[test]
fn what_is_left_is_found() {
    let scratch = tempfile::tempdir().expect("a directory can be made");
    let root = open(scratch.path());
    assert_eq!(first_entry(&root).expect("it can be read"), None);
    fs::create_dir(scratch.path().join("lost+found")).expect("a directory can be made");
    assert_eq!(first_entry(&root).expect("it can be read"), None, "an empty lost+found does not count");
    fs::write(scratch.path().join("lost+found/x"), "x").expect("a file can be made");
    assert_eq!(first_entry(&root).expect("it can be read").as_deref(), Some("lost+found"));
    remove_contents(&root, &Control::default()).expect("it can be removed");
    fs::create_dir(scratch.path().join("empty")).expect("a directory can be made");
    assert_eq!(first_entry(&root).expect("it can be read").as_deref(), Some("empty"));
}
