//! Wipes that do not come to their end: the disk is recognizable at any moment, and the
//! next wipe goes on where the journal says, or from the start when in doubt.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use mooring::deleter::{Control, Cursor, WipeError};
use mooring::method::{Method, Verify, WipeRules};

use crate::common::SOON;
use crate::harness::disk::LoopDisk;
use crate::harness::{Scratch, eventually, require_own_namespace};
use crate::wipe_scene::{MARK, Notes, SECRET, bytes_written, first_not_zero, full_of_secrets, mark_on, rules};
use crate::wipe_scene::{wipe_from, write_at};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 12 * MIB;
/// So that a cursor is written down in the middle.
const SLOW: u64 = 8 * MIB;

fn slow(method: Method) -> WipeRules {
    WipeRules { bandwidth: Some(SLOW), ..rules(method) }
}

/// Wipes until the journal holds a cursor for which `stop` holds, and there is cancelled.
fn wipe_until(disk: &LoopDisk, rules: &WipeRules, stop: impl Fn(Cursor) -> bool) -> Cursor {
    let control = Control::default();
    let mut notes = Notes::telling(|cursor| {
        if stop(cursor) {
            control.cancel();
        }
        Ok(())
    });
    let error = wipe_from(&disk.device, rules, None, &mut notes, &control).expect_err("it is cancelled");
    assert!(matches!(error, WipeError::Cancelled), "{error}");
    notes.last()
}

fn disk(scratch: &Scratch) -> LoopDisk {
    LoopDisk::attach(full_of_secrets(scratch.path(), usize::try_from(SIZE).expect("it fits")))
}

#[test]
fn wherever_a_wipe_is_cancelled_the_disk_is_marked_and_the_next_one_goes_on() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-cancel");
    let at = |pass, middle| move |cursor: Cursor| cursor.pass == pass && (cursor.offset > 0) == middle;
    let zeros = Method::Zero { passes: 2 };
    for (method, pass, middle, in_all) in [
        (Method::Auto, 0, false, 1),
        (Method::Auto, 0, true, 1),
        (Method::Auto, 1, false, 1),
        (zeros.clone(), 1, false, 2),
        (zeros, 1, true, 2),
        (Method::Overwrite { passes: 1 }, 1, false, 2),
        (Method::Discard, 0, true, 1),
    ] {
        let disk = disk(&scratch);
        let rules_of = if middle { slow } else { rules };
        let cursor = wipe_until(&disk, &rules_of(method.clone()), at(pass, middle));
        let scene = format!("{method} at {cursor:?}");
        assert_eq!(mark_on(&disk.device), Some(MARK), "{scene}");
        let before = bytes_written(&disk.device);
        let control = Control::default();
        let mut notes = Notes::new();
        wipe_from(&disk.device, &rules(method.clone()), Some(cursor), &mut notes, &control)
            .unwrap_or_else(|error| panic!("{scene}: {error}"));
        let written = bytes_written(&disk.device) - before;
        let left = u64::from(in_all - cursor.pass.min(in_all)) * SIZE - cursor.offset.min(SIZE);
        if method == Method::Discard {
            assert!(written < MIB, "{scene}: {written}");
        } else {
            assert!((left.saturating_sub(MIB)..=left + MIB).contains(&written), "{scene}: {written}, not {left}");
        }
        assert!(notes.cursors.iter().all(|noted| *noted >= cursor), "{scene}: {:?}", notes.cursors);
        assert_eq!(control.progress().0, control.progress().1, "{scene}");
        assert_eq!(first_not_zero(&disk.backing), None, "{scene}");
        assert_eq!(mark_on(&disk.device), None, "{scene}");
        fs::remove_file(&disk.backing).expect("it can be removed");
    }
}

#[test]
fn a_journal_that_fails_stops_the_wipe_before_its_first_byte() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-journal");
    let disk = disk(&scratch);
    let before = fs::read(&disk.backing).expect("it can be read");
    for method in
        [Method::Auto, Method::Discard, Method::Overwrite { passes: 1 }, Method::Signatures, command(&disk.device)]
    {
        let mut notes = Notes::telling(|_| Err(WipeError::Refused("the journal is full".to_owned())));
        let error = wipe_from(&disk.device, &rules(method), None, &mut notes, &Control::default());
        assert_eq!(error.expect_err("it stops").to_string(), "the journal is full");
        assert!(fs::read(&disk.backing).expect("it can be read") == before, "the disk was changed");
    }
}

fn command(device: &Path) -> Method {
    let script = format!("printf x | dd of={} conv=notrunc", device.display());
    Method::Command(["sh", "-c", script.as_str()].map(str::to_owned).to_vec())
}

#[test]
fn a_cursor_is_not_believed_on_a_disk_that_does_not_bear_the_mark_of_that_very_wipe() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-doubt");
    let end = Some(Cursor { pass: 1, offset: 0 });
    let whole = |disk: &LoopDisk, method: Method, from: Option<Cursor>| {
        wipe_from(&disk.device, &rules(method), from, &mut Notes::new(), &Control::default()).expect("it can be wiped");
        assert_eq!(first_not_zero(&disk.backing), None);
    };
    // Never marked; or used again since.
    whole(&disk(&scratch), Method::Auto, end);
    // By another method: it had done one pass of another kind.
    let disk = disk(&scratch);
    let cursor = wipe_until(&disk, &rules(Method::Overwrite { passes: 1 }), |cursor| cursor.pass == 1);
    whole(&disk, Method::Auto, Some(cursor));
    // The disk has grown since, by what nobody has wiped.
    let mut grown = full_of_secrets(scratch.path(), usize::try_from(SIZE).expect("it fits"));
    let disk = LoopDisk::attach(grown.clone());
    let cursor = wipe_until(&disk, &rules(Method::Auto), |cursor| cursor.pass == 1);
    drop(disk);
    append_secrets(&mut grown);
    whole(&LoopDisk::attach(grown), Method::Auto, Some(cursor));
    // A cursor that no wipe can have had.
    let disk = LoopDisk::attach(full_of_secrets(scratch.path(), 4 << 20));
    wipe_until(&disk, &rules(Method::Auto), |cursor| cursor == Cursor::START);
    whole(&disk, Method::Auto, Some(Cursor { pass: 7, offset: 99 }));
}

fn append_secrets(backing: &mut PathBuf) {
    let mut file = OpenOptions::new().append(true).open(backing).expect("it can be opened");
    file.write_all(&SECRET.repeat(1 << 16)).expect("it can grow");
}

#[test]
fn a_wipe_that_ended_while_the_marks_were_taken_off_is_finished() {
    require_own_namespace();
    let scratch = Scratch::new("wipe-unmark");
    for end in [0, SIZE - 4096] {
        let disk = disk(&scratch);
        let cursor = wipe_until(&disk, &rules(Method::Auto), |cursor| cursor.pass == 1);
        write_at(&disk.device, end, &[0; 4096]);
        assert_eq!(mark_on(&disk.device), Some(MARK), "one is left");
        let before = bytes_written(&disk.device);
        let from = Some(cursor);
        wipe_from(&disk.device, &rules(Method::Auto), from, &mut Notes::new(), &Control::default()).expect("it ends");
        assert!(bytes_written(&disk.device) - before < MIB, "nothing is wiped twice");
        assert_eq!(first_not_zero(&disk.backing), None);
        fs::remove_file(&disk.backing).expect("it can be removed");
    }
}

const DEVICE: &str = "MOORING_TEST_WIPE_DEVICE";
/// So many that it is killed before it ends.
const ZEROS: Method = Method::Zero { passes: 12 };
const JOURNAL: &str = "MOORING_TEST_WIPE_JOURNAL";
const NAME: &str = "wipe_interrupted::a_wiping_process_that_is_killed_leaves_a_marked_disk_and_its_wipe_goes_on";

/// The wipe runs in a process of its own: this test program once more, with this test
/// only, and the device in its environment.
#[test]
fn a_wiping_process_that_is_killed_leaves_a_marked_disk_and_its_wipe_goes_on() {
    if let Some(device) = std::env::var_os(DEVICE) {
        let journal = PathBuf::from(std::env::var_os(JOURNAL).expect("it is given too"));
        return wipe_with_a_journal_on_disk(Path::new(&device), &journal);
    }
    require_own_namespace();
    let scratch = Scratch::new("wipe-kill");
    for lines in 1..=4 {
        let disk = disk(&scratch);
        let before = fs::read(&disk.backing).expect("it can be read");
        let journal = scratch.path().join("journal");
        fs::write(&journal, "").expect("a journal can be made");
        let mut process = Command::new(std::env::current_exe().expect("the test program has a path"));
        process.args(["--exact", NAME, "--nocapture"]).env(DEVICE, &disk.device).env(JOURNAL, &journal);
        let mut process = process.spawn().expect("the test program can be run");
        let noted = || fs::read_to_string(&journal).expect("it can be read");
        eventually("a checkpoint", SOON, || noted().matches('\n').count() >= lines);
        process.kill().expect("it is ours");
        process.wait().expect("it ends");
        let last = noted().lines().last().map(|line| serde_json::from_str(line).expect("it is a cursor"));
        let untouched = fs::read(&disk.backing).expect("it can be read") == before;
        assert!(mark_on(&disk.device) == Some(MARK) || (untouched && lines == 1), "at {last:?}");
        let again = rules(ZEROS);
        wipe_from(&disk.device, &again, last, &mut Notes::new(), &Control::default()).expect("it goes on");
        assert_eq!(first_not_zero(&disk.backing), None, "from {last:?}");
        fs::remove_file(&disk.backing).expect("it can be removed");
    }
}

fn wipe_with_a_journal_on_disk(device: &Path, journal: &Path) {
    let mut file = OpenOptions::new().append(true).open(journal).expect("the journal is there");
    let mut notes = Notes::telling(|cursor| {
        let line = serde_json::to_string(&cursor).expect("a cursor can be written");
        writeln!(file, "{line}").expect("the journal takes it");
        Ok(())
    });
    let rules = WipeRules { verify: Verify::None, ..slow(ZEROS) };
    wipe_from(device, &rules, None, &mut notes, &Control::default()).expect("it is not killed");
}
