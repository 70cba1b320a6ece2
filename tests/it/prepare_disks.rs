//! The commands of `docs/prepare-disks.md`, typed as they stand there, with `/mnt`, fstab and the
//! disks' links in a place of the test's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{SOON, start, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::scratch::mounts_below;
use crate::harness::shared;
use crate::harness::volumes::phase;
use crate::migration::commands;

const MIB: u64 = 1 << 20;

/// Types a block of the page; `mount` and `findmnt` read the test's own fstab.
fn types(node: &TestNode, text: &str) -> String {
    let (fstab, bin) = (node.dir().join("fstab"), node.dir().join("bin"));
    let root = node.root().display();
    let text = text
        .replace("/etc/fstab", &fstab.display().to_string())
        .replace("/mnt/", &format!("{root}/mnt/"))
        .replace("/dev/disk/by-id/", &format!("{root}/by-id/"));
    let path = format!("{}:{}:/usr/sbin:/sbin", bin.display(), std::env::var("PATH").expect("there is a PATH"));
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &text]).env("PATH", path).current_dir(node.dir()).stdin(Stdio::null());
    let output = shell.output().expect("bash can be run");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}\n{said}");
    said
}

fn program(node: &TestNode, name: &str, script: &str) {
    let bin = node.dir().join("bin");
    fs::create_dir_all(&bin).expect("a folder can be made");
    fs::write(bin.join(name), format!("#!/bin/sh\n{script}\n")).expect("a script can be written");
    fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("it has a mode");
}

/// The names in a directory.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the page makes it").flatten();
    entries.map(|entry| entry.file_name().into_string().expect("it is text")).collect()
}

#[tokio::test]
async fn the_commands_that_prepare_disks_make_volumes() {
    let node = TestNode::new(shared(), "prepared").await;
    let fstab = node.dir().join("fstab");
    fs::write(&fstab, "").expect("a file can be written");
    program(&node, "mount", &format!("exec /usr/bin/mount --fstab {} \"$@\"", fstab.display()));
    let verify = format!("[ \"$1\" = --verify ] && set -- --verify --tab-file {}", fstab.display());
    program(&node, "findmnt", &format!("{verify}\nexec /usr/bin/findmnt \"$@\""));
    fs::create_dir(node.root().join("by-id")).expect("a folder can be made");
    // mkfs.xfs wants 300 MiB; they are sparse.
    let disks = [320 * MIB, 32 * MIB, 16 * MIB].map(|bytes| LoopDisk::new(node.dir(), bytes));
    for (disk, number) in disks.iter().zip(1..) {
        let link = node.root().join(format!("by-id/nvme-EXAMPLE_{number}"));
        symlink(&disk.device, link).expect("a link can be made");
    }

    let page = commands("docs/prepare-disks.md");
    let mut said = String::new();
    for heading in
        ["A disk with a filesystem", "A disk that is shared", "Memory", "A raw device", "Looking at the result"]
    {
        said = types(&node, &page[heading].concat());
    }
    assert_eq!(page.len(), 5, "all of its commands were typed: {:?}", page.keys());
    let (fast_dir, block_dir) = (node.root().join("mnt/fast-disks"), node.root().join("mnt/block-disks"));
    let fast_names = entries(&fast_dir);
    assert_eq!(fast_names.len(), 4, "{fast_names:?}");
    assert!(fast_names.iter().all(|name| said.contains(&format!("fast-disks/{name}\n"))), "{said}");

    let (fast, raw) = (node.class("fast", "Delete").await, node.class("raw", "Delete").await);
    let classes = [(&*fast, &*fast_dir, ""), (&*raw, &*block_dir, "volumeMode: Block")];
    let mut agent = start(&node, &classes);
    let paths = fast_names.iter().map(|name| fast_dir.join(name)).chain([block_dir.join("nvme-EXAMPLE_3")]);
    let mut made = Vec::new();
    for path in paths {
        let pv = node.wait_pv(&path, |pv| phase(pv) == "Available", SOON).await;
        made.push((path, pv.metadata.uid));
    }

    // A boot: nothing is mounted but what fstab says.
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.wait_exit(SOON).await;
    drop(agent);
    let mounted = || mounts_below(&node.root().join("mnt"));
    assert_eq!(mounted().len(), 5, "{:?}", mounted());
    mounted().iter().rev().for_each(|point| disk::umount(point));
    let immutable = fast_names.iter().filter(|name| fs::write(fast_dir.join(name).join("f"), "x").is_err());
    assert_eq!(immutable.count(), 1, "the directory beneath the whole disk can't be written");
    types(&node, "mount -a");
    let agent = start(&node, &classes);
    for name in &fast_names {
        wait_verdict(&agent, &fast, name, "Published").await;
    }
    // What was in memory is another filesystem now, and perhaps another PV's.
    for (path, uid) in made.iter().filter(|(path, _)| !path.ends_with("memory")) {
        assert_eq!(node.wait_pv(path, |_| true, SOON).await.metadata.uid, *uid, "{}", path.display());
    }
    drop(agent);
    mounted().iter().rev().for_each(|point| disk::umount(point));
    types(&node, "chattr -i /mnt/fast-disks/*");
    drop(disks);
    node.clean_up().await;
}
