//! The attributes of a volume's root directory: what a tenant did to them is undone,
//! on real filesystems.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use mooring::deleter::WipeError;
use mooring::deleter::root::{read, restore};
use mooring::node::ioctl;
use mooring::root::{Bytes, RootFacts};
use nix::mount::{MsFlags, mount};
use rustix::fs::{IFlags, XattrFlags};

use crate::harness::{Scratch, disk, require_own_namespace};
use crate::wipe_tree::xfs;

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the directory can be opened").into()
}

fn setfacl(path: &Path, arguments: &[&str]) {
    let status = Command::new("setfacl").args(arguments).arg(path).status();
    assert!(status.expect("setfacl can be run").success(), "{arguments:?}");
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).expect("the filesystem has such attributes");
}

/// What an administrator may have prepared.
fn prepare(volume: &Path) {
    chown(volume, Some(1000), Some(2000)).expect("root may give away");
    setfacl(volume, &["-m", "u:3000:rwx,g:4000:r-x"]);
    setfacl(volume, &["-d", "-m", "u:3000:rwx"]);
    fs::set_permissions(volume, fs::Permissions::from_mode(0o2770)).expect("root may");
    set_xattr(volume, "user.note", b"kept\0\xff");
    set_xattr(volume, "trusted.note", b"kept");
}

/// What a tenant may do, even to what forbids it to the agent.
fn spoil(volume: &Path) {
    chown(volume, Some(5), Some(6)).expect("root may give away");
    setfacl(volume, &["-b"]);
    setfacl(volume, &["-m", "u:7:rwx"]);
    fs::set_permissions(volume, fs::Permissions::from_mode(0o1777)).expect("root may");
    set_xattr(volume, "user.note", b"spoilt");
    set_xattr(volume, "user.secret", b"secret");
    rustix::fs::removexattr(volume, "trusted.note").expect("it is there");
}

#[test]
fn everything_a_tenant_changed_goes_back() {
    require_own_namespace();
    let scratch = Scratch::new("root-xfs");
    let volume = scratch.path().join("v");
    let _disk = xfs(scratch.path(), &volume);
    let root = open(&volume);
    prepare(&volume);
    ioctl::set_project(&root, 42).expect("it has projects");
    let flags = rustix::fs::ioctl_getflags(&root).expect("XFS has flags");
    rustix::fs::ioctl_setflags(&root, flags | IFlags::PROJECT_INHERIT).expect("root may");
    let facts = read(&root).expect("it can be read");
    assert_eq!((facts.uid, facts.gid, facts.mode, facts.project), (1000, 2000, 0o2770, Some(42)));
    assert_eq!(facts.flags, IFlags::PROJECT_INHERIT.bits());
    let names: Vec<_> = facts.xattrs.keys().map(String::as_str).collect();
    let all = ["system.posix_acl_access", "system.posix_acl_default", "trusted.note", "user.note"];
    assert_eq!(names, all);
    restore(&root, &facts).expect("there is nothing to do");

    spoil(&volume);
    ioctl::set_project(&root, 43).expect("it has projects");
    let spoilt = IFlags::APPEND | IFlags::NOATIME | IFlags::SYNC;
    rustix::fs::ioctl_setflags(&root, flags | spoilt).expect("root may");
    // As text it went into a ledger and came out again.
    let text = serde_json::to_string(&facts).expect("facts can be written as JSON");
    let facts: RootFacts = serde_json::from_str(&text).expect("it is what was written");
    restore(&root, &facts).expect("it can be restored");
    assert_eq!(read(&root).expect("it can be read"), facts);
    // Not only in our own words.
    let data = fs::metadata(&volume).expect("it is there");
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 2000, 0o2770));
    let acl = Command::new("getfacl").args(["-cn"]).arg(&volume).output().expect("getfacl can be run").stdout;
    let acl = String::from_utf8_lossy(&acl).into_owned();
    assert!(acl.contains("user:3000:rwx") && acl.contains("default:user:3000:rwx"), "{acl}");
    assert!(!acl.contains("user:7:"), "{acl}");
    assert!(rustix::fs::getxattr(&volume, "user.secret", &mut [0_u8; 16]).is_err());
    drop(root);
    disk::umount(&volume);
}

#[test]
fn a_root_that_was_immutable_is_so_again() {
    require_own_namespace();
    let scratch = Scratch::new("root-flags");
    let volume = scratch.path().join("v");
    let _disk = disk::ext4(&volume, 64 << 20);
    let root = open(&volume);
    let flags = rustix::fs::ioctl_getflags(&root).expect("ext4 has flags");
    rustix::fs::ioctl_setflags(&root, flags | IFlags::IMMUTABLE).expect("root may");
    let facts = read(&root).expect("it can be read");
    rustix::fs::ioctl_setflags(&root, flags).expect("root may");
    spoil_mode(&volume);
    restore(&root, &facts).expect("it can be restored");
    assert_eq!(read(&root).expect("it can be read"), facts);
    drop(root);
    disk::umount(&volume);
}

fn spoil_mode(volume: &Path) {
    fs::set_permissions(volume, fs::Permissions::from_mode(0o777)).expect("root may");
}

#[test]
fn what_a_filesystem_cannot_do_matters_only_when_it_is_needed() {
    require_own_namespace();
    let scratch = Scratch::new("root-ramfs");
    let volume = scratch.path().join("v");
    // Neither projects nor attributes of users.
    mount_ramfs(&volume);
    let root = open(&volume);
    let facts = read(&root).expect("it can be read");
    assert_eq!((facts.project, facts.flags), (None, 0));
    chown(&volume, Some(5), Some(6)).expect("root may give away");
    spoil_mode(&volume);
    restore(&root, &facts).expect("it can be restored");
    assert_eq!(read(&root).expect("it can be read"), facts);
    let with_project = RootFacts { project: Some(42), ..facts.clone() };
    assert!(matches!(restore(&root, &with_project), Err(WipeError::Io { .. })));
    let mut with_xattr = facts;
    with_xattr.xattrs.insert("user.note".to_owned(), Bytes(b"x".to_vec()));
    let error = restore(&root, &with_xattr).expect_err("there are none").to_string();
    assert!(error.contains("user.note"), "{error}");
    drop(root);
    disk::umount(&volume);
}

fn mount_ramfs(volume: &Path) {
    fs::create_dir(volume).expect("a directory can be made");
    mount(Some("ramfs"), volume, Some("ramfs"), MsFlags::empty(), None::<&str>).expect("it can be mounted");
}

#[test]
fn a_tmpfs_is_put_back_too() {
    require_own_namespace();
    let scratch = Scratch::new("root-tmpfs");
    let volume = scratch.path().join("v");
    disk::tmpfs(&volume, 1 << 20);
    let root = open(&volume);
    prepare(&volume);
    let facts = read(&root).expect("it can be read");
    spoil(&volume);
    restore(&root, &facts).expect("it can be restored");
    assert_eq!(read(&root).expect("it can be read"), facts);
    drop(root);
    disk::umount(&volume);
}
