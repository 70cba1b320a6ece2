//! Wipes of whole devices by the methods that end in zeros: what is left on the disk,
//! what a failing disk makes of them, and what verification finds.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::Instant;

use mooring::deleter::{Control, Cursor, MarkId, Phase, WipeError, read_mark};
use mooring::method::{Method, Verify, WipeRules};

use crate::harness::disk::{self, LoopDisk};
use crate::harness::frozen::FrozenMount;
use crate::harness::zram::Zram;
use crate::harness::{Scratch, require_own_namespace};
use crate::wipe_scene::{
    MARK, Notes, SECRET, bytes_written, first_not_zero, full_of_secrets, mark_on, open, rules, wipe, wipe_from,
    write_at,
};

const MIB: u64 = 1 << 20;

#[test]
fn every_method_that_ends_in_zeros_leaves_nothing_on_disks_of_any_size() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-methods");
    let methods =
        [Method::Auto, Method::Zero { passes: 2 }, Method::Discard, Method::Overwrite { passes: 1 }].map(rules);
    for rules in &methods {
        for bytes in [512, 4096, 7680, 8192, 9 * 512, 5 << 20, (2 << 20) + 3 * 512] {
            let disk = LoopDisk::attach(full_of_secrets(scratch.path(), bytes));
            // Also what the page cache holds must be gone.
            assert!(disk.read_all().starts_with(&SECRET[..10]));
            let mut notes = Notes::new();
            let control = Control::default();
            let receipt = wipe_from(&disk.device, rules, None, &mut notes, &control)
                .unwrap_or_else(|error| panic!("{} of {bytes}: {error}", rules.method));
            assert_eq!(first_not_zero(&disk.backing), None, "{} of {bytes}", rules.method);
            assert_eq!(disk.read_all(), vec![0; bytes]);
            assert_eq!((receipt.method, receipt.bytes), (rules.method.as_str(), bytes as u64));
            assert_eq!((receipt.verification, receipt.seconds > 0.0), ("full", true));
            assert_eq!(notes.cursors[0], Cursor::START);
            assert_eq!((control.progress().0, control.phase()), (control.progress().1, Phase::Unmarking));
            assert_eq!(mark_on(&disk.device), None);
            fs::remove_file(&disk.backing).expect("it can be removed");
        }
    }
}

#[test]
fn blocks_of_4_kib_are_no_obstacle() {
    require_own_namespace();
    for method in [Method::Auto, Method::Zero { passes: 2 }, Method::Discard, Method::Overwrite { passes: 1 }] {
        let zram = Zram::new(3 * MIB);
        for offset in [0, MIB, 3 * MIB - 4096] {
            write_at(&zram.device, offset, &SECRET.repeat(216)[..4096]);
        }
        assert_eq!(first_not_zero(&zram.device), Some(0));
        wipe(&zram.device, &rules(method.clone())).expect("it can be wiped");
        assert_eq!(first_not_zero(&zram.device), None, "{method}");
    }
}

/// The kernel rounds the file down to sectors, and lets nobody at what is no whole block.
#[test]
fn what_lies_behind_the_last_whole_block_is_out_of_everybodys_reach() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-rest");
    let backing = full_of_secrets(scratch.path(), (1 << 20) + 512);
    let disk = LoopDisk::attach_with_blocks(backing, 4096);
    wipe(&disk.device, &rules(Method::Auto)).expect("it can be wiped");
    assert_eq!(first_not_zero(&disk.backing), Some(MIB));
    let mut device = fs::File::open(&disk.device).expect("it can be opened");
    let read = std::io::copy(&mut device, &mut std::io::sink());
    assert!(read.as_ref().map_or(true, |count| *count == MIB), "{read:?}");
}

#[test]
fn a_mark_at_either_end_is_found_and_a_blank_disk_has_none() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-mark");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), (2 << 20) + 512));
    assert_eq!(mark_on(&disk.device), None);
    let control = Control::default();
    let mut notes = Notes::telling(|_| {
        control.cancel();
        Ok(())
    });
    let error = wipe_from(&disk.device, &rules(Method::Auto), None, &mut notes, &control);
    assert!(matches!(error, Err(WipeError::Cancelled)));
    assert_eq!(mark_on(&disk.device), Some(MARK));
    let ends = [0, 2 * MIB + 512 - 4096];
    for end in ends {
        let mut page = vec![0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&open_file(&disk.backing), &mut page, end).expect("it can be read");
        write_at(&disk.device, end, &[0; 4096]);
        assert_eq!(mark_on(&disk.device), Some(MARK), "the other end has it");
        write_at(&disk.device, end, &page);
    }
    for end in ends {
        write_at(&disk.device, end, &[0; 4096]);
    }
    assert_eq!(mark_on(&disk.device), None);
    // The reader's file is as it was: not direct.
    let (fd, bytes) = open(&disk.device);
    read_mark(&fd, bytes).expect("it can be read");
    assert!(!is_direct(&fd));
}

fn open_file(path: &Path) -> fs::File {
    fs::File::open(path).expect("it can be opened")
}

fn is_direct(fd: &std::os::fd::OwnedFd) -> bool {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).expect("a file has flags");
    nix::fcntl::OFlag::from_bits_retain(flags).contains(nix::fcntl::OFlag::O_DIRECT)
}

#[test]
fn a_forged_mark_saves_nothing_from_the_wipe() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-forged");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 4 << 20));
    let control = Control::default();
    let mut notes = Notes::telling(|_| {
        control.cancel();
        Ok(())
    });
    // A tenant copies the mark of an earlier wipe, and knows that nothing is in the journal.
    assert!(wipe_from(&disk.device, &rules(Method::Auto), None, &mut notes, &control).is_err());
    write_at(&disk.device, 2 * MIB, SECRET);
    wipe(&disk.device, &rules(Method::Auto)).expect("it can be wiped");
    assert_eq!(first_not_zero(&disk.backing), None);
}

#[test]
fn a_byte_that_appears_after_the_passes_is_found_and_the_wipe_begins_anew() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-lies");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 16 << 20));
    let place = 9 * MIB + 12_345;
    let mut notes = Notes::telling(|cursor| {
        if cursor.pass == 1 {
            write_at(&disk.device, place, b"x");
        }
        Ok(())
    });
    let error = wipe_from(&disk.device, &rules(Method::Auto), None, &mut notes, &Control::default());
    let error = error.expect_err("it is not clean");
    assert_eq!(error.to_string(), format!("verification failed: byte {place} is not zero"));
    assert_eq!(notes.last(), Cursor::START);
    assert_eq!(mark_on(&disk.device), Some(MARK));
    let from = Some(notes.last());
    drop(notes);
    wipe_from(&disk.device, &rules(Method::Auto), from, &mut Notes::new(), &Control::default()).expect("now it is");
    assert_eq!(first_not_zero(&disk.backing), None);
}

#[test]
fn a_disk_that_keeps_something_despite_a_discard_is_zeroed() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-discard");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 16 << 20));
    let start = bytes_written(&disk.device);
    let by_discard = Cell::new(0);
    let mut notes = Notes::telling(|cursor| {
        if cursor == (Cursor { pass: 1, offset: 0 }) {
            by_discard.set(bytes_written(&disk.device) - start);
            assert!(!disk.backing_contains(SECRET), "the discard did its work");
            write_at(&disk.device, 11 * MIB + 7, b"kept");
        }
        Ok(())
    });
    let discard = rules(Method::Discard);
    let receipt = wipe_from(&disk.device, &discard, None, &mut notes, &Control::default()).expect("it can be wiped");
    assert_eq!(receipt.method, "discard");
    assert_eq!(notes.last(), Cursor { pass: 2, offset: 0 });
    assert!(by_discard.get() < MIB, "only ends and edges were written: {}", by_discard.get());
    assert_eq!(first_not_zero(&disk.backing), None);
    // And one that does as it was told is not.
    let honest = LoopDisk::attach(full_of_secrets(scratch.path(), 16 << 20));
    let start = bytes_written(&honest.device);
    wipe(&honest.device, &discard).expect("it can be wiped");
    assert!(bytes_written(&honest.device) - start < MIB);
    assert_eq!(first_not_zero(&honest.backing), None);
}

#[test]
fn a_disk_that_can_neither_discard_nor_zero_by_itself_is_written() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-no-discard");
    let ram = scratch.path().join("ram");
    disk::ramfs(&ram);
    for (method, passes) in [(Method::Discard, 2), (Method::Auto, 1)] {
        let disk = LoopDisk::attach(full_of_secrets(&ram, 8 << 20));
        for limit in ["discard_max_bytes", "write_zeroes_max_bytes"] {
            assert_eq!(queue(&disk.device, limit), "0", "the scene is what it should be: {limit}");
        }
        let (start, mut notes) = (bytes_written(&disk.device), Notes::new());
        wipe_from(&disk.device, &rules(method), None, &mut notes, &Control::default()).expect("it can be wiped");
        assert_eq!(notes.last(), Cursor { pass: passes, offset: 0 });
        assert!(bytes_written(&disk.device) - start >= 8 * MIB);
        assert_eq!(first_not_zero(&disk.backing), None);
    }
    disk::detach_all(&ram);
}

fn queue(device: &Path, attribute: &str) -> String {
    let name = device.file_name().expect("a node has a name");
    let path = Path::new("/sys/block").join(name).join("queue").join(attribute);
    fs::read_to_string(path).expect("it is a disk").trim().to_owned()
}

#[test]
fn an_overwrite_leaves_neither_secrets_nor_zeros_before_its_last_pass() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-random");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 5 << 20));
    let seen = Cell::new(0);
    let mut last = Vec::new();
    let mut notes = Notes::telling(|cursor| {
        if cursor.offset == 0 && (1..=2).contains(&cursor.pass) {
            let content = fs::read(&disk.backing).expect("it can be read");
            let data = &content[4096..content.len() - 4096];
            for block in data.chunks(4096) {
                assert!(block.iter().filter(|byte| **byte == 0).count() < 100, "1 of 256 bytes is zero");
                assert!(!block.windows(SECRET.len()).any(|window| window == SECRET));
            }
            assert!(last != data, "each pass is another");
            last = data.to_vec();
            seen.set(seen.get() + 1);
        }
        Ok(())
    });
    let overwrite = rules(Method::Overwrite { passes: 2 });
    wipe_from(&disk.device, &overwrite, None, &mut notes, &Control::default()).expect("it can be wiped");
    assert_eq!((notes.last(), seen.get()), (Cursor { pass: 3, offset: 0 }, 2));
    assert_eq!(first_not_zero(&disk.backing), None);
}

#[test]
fn a_disk_that_fails_in_the_middle_is_named_with_the_place_and_goes_on_when_it_heals() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-eio");
    let trigger = scratch.path().join("fail");
    let server = FrozenMount::failing(&scratch.path().join("fuse"), 16 * MIB, &trigger);
    let disk = LoopDisk::attach(scratch.path().join("fuse/nbd"));
    for place in [0, 5 * MIB, 16 * MIB - 512] {
        write_at(&disk.device, place, SECRET);
    }
    // Slow enough for a cursor between the start and the end.
    let slow = WipeRules { bandwidth: Some(8 * MIB), ..rules(Method::Auto) };
    let mut notes = Notes::telling(|cursor| {
        if cursor > Cursor::START {
            fs::write(&trigger, "").expect("a file can be made");
        }
        Ok(())
    });
    let error = wipe_from(&disk.device, &slow, None, &mut notes, &Control::default()).expect_err("the disk fails");
    let WipeError::AtPlace { range, source, .. } = &error else { panic!("{error:?}") };
    let cursor = notes.last();
    assert_eq!(range.start, cursor.offset, "the write after the cursor: {error}");
    assert_eq!(source.raw_os_error(), Some(nix::libc::EIO), "{error}");
    assert!(error.to_string().contains(&format!("at bytes {} to ", range.start)), "{error}");
    fs::remove_file(&trigger).expect("the disk can be healed");
    assert_eq!(mark_on(&disk.device), Some(MARK));
    let before = bytes_written(&disk.device);
    let fast = rules(Method::Auto);
    wipe_from(&disk.device, &fast, Some(cursor), &mut Notes::new(), &Control::default()).expect("it is healed");
    let written = bytes_written(&disk.device) - before;
    assert!(written <= 16 * MIB - cursor.offset + MIB, "{written} from {cursor:?}");
    assert_eq!(first_not_zero(&disk.device), None);
    drop(disk);
    drop(server);
}

#[test]
fn a_bad_tail_is_named_with_its_place() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-tail");
    let small = scratch.path().join("small");
    disk::tmpfs(&small, 8 * MIB);
    let disk = LoopDisk::new(&small, 32 * MIB);
    // The ends fit in, and some MiB more; the rest does not.
    let error = wipe(&disk.device, &rules(Method::Zero { passes: 2 })).expect_err("there is no room behind it");
    let WipeError::AtPlace { range, source, .. } = &error else { panic!("{error:?}") };
    assert!((6 * MIB..=8 * MIB).contains(&range.start), "{error}");
    assert!([nix::libc::ENOSPC, nix::libc::EIO].map(Some).contains(&source.raw_os_error()), "{error}");
    assert_eq!(mark_on(&disk.device), Some(MARK));
    drop(disk);
    disk::detach_all(&small);
}

#[test]
fn a_bandwidth_is_kept_to() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-slow");
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 8 << 20));
    let bandwidth = 16 * MIB;
    for method in [Method::Auto, Method::Zero { passes: 2 }] {
        let rules = WipeRules { method, verify: Verify::None, bandwidth: Some(bandwidth), ..WipeRules::default() };
        let control = Control::default();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let wiper = scope.spawn(|| wipe_from(&disk.device, &rules, None, &mut Notes::new(), &control));
            while !wiper.is_finished() {
                let (done, total) = control.progress();
                // A chunk of a fifth of a second is paid for after it is written.
                let allowed = bandwidth as f64 * (start.elapsed().as_secs_f64() + 0.2);
                assert!((done as f64) <= allowed, "{done} of {total}, but {allowed} are allowed");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            wiper.join().expect("it does not panic").expect("it can be wiped");
        });
        let (done, total) = control.progress();
        assert_eq!(done, total);
    }
    assert_eq!(first_not_zero(&disk.backing), None);
}

#[test]
fn random_marks_differ() {
    assert_ne!(MarkId::random(), MarkId::random());
}
