//! The method that only makes filesystems and partition tables unrecognizable, on real
//! ones: no tool finds them or their copies again, and the data between stays.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use mooring::deleter::{Control, WipeError};
use mooring::method::Method;

use crate::harness::disk::{LoopDisk, run_when_free};
use crate::harness::{Scratch, require_own_namespace};
use crate::wipe_scene::{MARK, Notes, SECRET, mark_on, rules, wipe, wipe_from, write_at};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;
/// Where nothing but data is, in any of the filesystems.
const DATA: u64 = 500 * MIB + 4096 * 7;

const EXT_MAGIC: [u8; 2] = [0x53, 0xEF];

fn tool(program: &str, arguments: &[&str], device: &Path) -> String {
    run_when_free(Command::new(program).args(arguments).arg(device))
}

fn bytes_at(path: &Path, offset: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    File::open(path).expect("it can be opened").read_exact_at(&mut bytes, offset).expect("it can be read");
    bytes
}

/// Wipes the signatures; after it no tool knows the disk, and the data is there.
fn wipe_signatures(disk: &LoopDisk) {
    write_at(&disk.device, DATA, SECRET);
    let receipt = wipe(&disk.device, &rules(Method::Signatures)).expect("it can be wiped");
    assert_eq!((receipt.method, receipt.verification), ("signatures", "none"));
    assert_nothing_is_recognized(&disk.device);
    assert_eq!(bytes_at(&disk.backing, DATA, SECRET.len()), SECRET, "the data stays");
}

fn assert_nothing_is_recognized(device: &Path) {
    assert_eq!(mark_on(device), None);
    assert_eq!(tool("wipefs", &["--no-act"], device), "");
    let blkid = Command::new("blkid").arg("--probe").arg(device).output().expect("blkid can be run");
    assert_eq!(blkid.status.code(), Some(2), "{}", String::from_utf8_lossy(&blkid.stdout));
}

/// The blocks at which `dumpe2fs` sees copies of the superblock.
fn ext_copies(device: &Path) -> Vec<u64> {
    let report = tool("dumpe2fs", &[], device);
    let copies = report.lines().filter_map(|line| line.trim().strip_prefix("Backup superblock at "));
    copies.map(|rest| rest.split(',').next().expect("there is a first").parse().expect("it is a number")).collect()
}

#[test]
fn no_copy_of_an_ext_superblock_is_left() {
    require_own_namespace();
    let scratch = Scratch::new("signatures-ext");
    for (options, block) in [
        ("-b 4096", 4096),
        ("-b 2048", 2048),
        ("-b 1024", 1024),
        ("-b 4096 -g 12288", 4096),
        ("-b 4096 -O ^resize_inode,^sparse_super", 4096),
        ("-b 4096 -O ^resize_inode,sparse_super2", 4096),
    ] {
        let disk = LoopDisk::new(scratch.path(), SIZE);
        let arguments: Vec<&str> = ["-q", "-F"].into_iter().chain(options.split(' ')).collect();
        tool("mkfs.ext4", &arguments, &disk.device);
        let copies = ext_copies(&disk.device);
        assert!(copies.len() >= 2, "{options}: {copies:?}");
        assert!(copies.iter().all(|copy| bytes_at(&disk.backing, copy * block + 56, 2) == EXT_MAGIC), "{options}");
        wipe_signatures(&disk);
        for copy in copies {
            let magic = bytes_at(&disk.backing, copy * block + 56, 2);
            assert_eq!(magic, [0, 0], "{options}: the copy in block {copy}");
            let mut check = Command::new("e2fsck");
            check.args(["-n", "-b", &copy.to_string(), "-B", &block.to_string()]).arg(&disk.device);
            let checked = check.output().expect("e2fsck can be run");
            assert_eq!(checked.status.code(), Some(8), "{options}: {}", String::from_utf8_lossy(&checked.stdout));
        }
        std::fs::remove_file(&disk.backing).expect("it can be removed");
    }
}

#[test]
fn no_copy_of_an_xfs_or_btrfs_superblock_is_left() {
    require_own_namespace();
    let scratch = Scratch::new("signatures-xfs");
    let disk = LoopDisk::new(scratch.path(), SIZE);
    let report = tool("mkfs.xfs", &["-q", "-f", "-d", "agcount=7"], &disk.device);
    assert_eq!(report, "");
    let number = |at| u64::from(u32::from_be_bytes(bytes_at(&disk.backing, at, 4).try_into().expect("4 bytes")));
    let group = number(4) * number(84);
    let copies: Vec<u64> = (1..7).map(|index| index * group).collect();
    assert!(copies.iter().all(|copy| bytes_at(&disk.backing, *copy, 4) == b"XFSB"));
    wipe_signatures(&disk);
    assert!(copies.iter().all(|copy| bytes_at(&disk.backing, *copy, 4) == [0; 4]));

    let disk = LoopDisk::new(scratch.path(), SIZE);
    tool("mkfs.btrfs", &["-q", "-f"], &disk.device);
    assert_eq!(bytes_at(&disk.backing, 64 * MIB + 64, 8), b"_BHRfS_M");
    wipe_signatures(&disk);
    assert_eq!(bytes_at(&disk.backing, 64 * MIB + 64, 8), [0; 8]);
}

#[test]
fn both_partition_tables_go() {
    require_own_namespace();
    let scratch = Scratch::new("signatures-gpt");
    let disk = LoopDisk::new(scratch.path(), SIZE);
    tool("sh", &["-c", "printf 'label: gpt\\n,100M\\n,\\n' | sfdisk -q \"$0\""], &disk.device);
    assert_eq!(bytes_at(&disk.backing, SIZE - 512, 8), b"EFI PART");
    wipe_signatures(&disk);
}

#[test]
fn a_wipe_of_signatures_that_was_interrupted_still_finds_all_copies() {
    require_own_namespace();
    let scratch = Scratch::new("signatures-again");
    let disk = LoopDisk::new(scratch.path(), SIZE);
    // Groups of a size that only the first superblock tells.
    tool("mkfs.ext4", &["-q", "-F", "-b", "4096", "-g", "12288"], &disk.device);
    let copies = ext_copies(&disk.device);
    assert!(copies.len() >= 2, "{copies:?}");
    let magics = |magic| copies.iter().all(|copy| bytes_at(&disk.backing, copy * 4096 + 56, 2) == magic);
    assert!(magics(EXT_MAGIC));
    let control = Control::default();
    let mut notes = Notes::telling(|_| {
        control.cancel();
        Ok(())
    });
    let stopped = wipe_from(&disk.device, &rules(Method::Signatures), None, &mut notes, &control);
    assert!(matches!(stopped, Err(WipeError::Cancelled)));
    assert_eq!(mark_on(&disk.device), Some(MARK));
    assert!(magics(EXT_MAGIC));
    wipe_signatures(&disk);
    assert!(magics([0, 0]), "{copies:?}");
}

#[test]
fn a_small_disk_has_no_middle() {
    require_own_namespace();
    let scratch = Scratch::new("signatures-small");
    for bytes in [4096, 8192, 32 * MIB] {
        let disk = LoopDisk::new(scratch.path(), bytes);
        write_at(&disk.device, bytes - 512, SECRET);
        wipe(&disk.device, &rules(Method::Signatures)).expect("it can be wiped");
        assert_nothing_is_recognized(&disk.device);
        assert!(!disk.backing_contains(SECRET));
    }
}
