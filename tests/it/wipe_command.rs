//! Cleaner commands: what they are given, and what becomes of those that fail, hang, or
//! leave something running.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mooring::deleter::{Control, Cursor, Receipt, WipeError};
use mooring::method::{Method, WipeRules};

use crate::common::SOON;
use crate::harness::disk::LoopDisk;
use crate::harness::{Scratch, eventually, require_own_namespace};
use crate::wipe_scene::{MARK, Notes, SECRET, full_of_secrets, mark_on, open, rules, wipe, wipe_from};

fn script(text: &str) -> WipeRules {
    rules(Method::Command(["sh", "-c", text].map(str::to_owned).to_vec()))
}

fn disk(scratch: &Scratch) -> LoopDisk {
    LoopDisk::attach(full_of_secrets(scratch.path(), 4 << 20))
}

fn problem(result: Result<Receipt, WipeError>) -> String {
    match result.expect_err("the command does not succeed") {
        error @ WipeError::Command { .. } => error.to_string(),
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_command_finds_the_device_in_its_environment_and_what_it_writes_counts() {
    require_own_namespace();
    let scratch = Scratch::new("command");
    let disk = disk(&scratch);
    // It needs what was at the start, and leaves something there: both are its affair.
    let text = "test \"$(head -c 12 \"$LOCAL_PV_BLKDEVICE\")\" = 'the tenant'\"'\"'s' || exit 9
        dd if=/dev/zero of=\"$LOCAL_PV_BLKDEVICE\" bs=64k count=64 status=none
        printf done | dd of=\"$LOCAL_PV_BLKDEVICE\" conv=notrunc status=none";
    let mut notes = Notes::new();
    let receipt = wipe_from(&disk.device, &script(text), None, &mut notes, &Control::default()).expect("it succeeds");
    assert_eq!((receipt.method, receipt.verification), ("command", "none"));
    assert_eq!(notes.cursors[0], Cursor::START);
    let content = fs::read(&disk.backing).expect("it can be read");
    assert!(content.starts_with(b"done\0") && content[5..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_command_that_fails_is_reported_with_its_last_words() {
    require_own_namespace();
    let scratch = Scratch::new("command-fails");
    let disk = disk(&scratch);
    let said = problem(wipe(&disk.device, &script("echo begin; echo 'no such luck' >&2; echo; exit 3")));
    assert!(said.contains("exit status: 3") && said.ends_with("no such luck"), "{said}");
    let said = problem(wipe(&disk.device, &script("printf '10 %%\\r20 %%'; kill -9 $$")));
    assert!(said.contains("signal: 9") && said.ends_with("20 %"), "{said}");
    let missing = rules(Method::Command(vec!["/scripts/mine.sh".to_owned()]));
    assert!(problem(wipe(&disk.device, &missing)).contains("/scripts/mine.sh is not in the agent's image"));
    assert!(disk.backing_contains(SECRET));
}

#[test]
fn a_command_that_does_not_end_is_killed_with_all_that_it_started() {
    require_own_namespace();
    let scratch = Scratch::new("command-hangs");
    let disk = disk(&scratch);
    let pid_file = scratch.path().join("pid");
    let hanging = format!("sleep 1000 & echo $! > {}; echo waiting; wait", pid_file.display());
    // On a busy machine it may not have come to its last words by then.
    let has_spoken = [500, 5_000, 30_000].into_iter().map(Duration::from_millis).any(|deadline| {
        let said = problem(wipe(&disk.device, &WipeRules { command_deadline: deadline, ..script(&hanging) }));
        assert!(said.contains(&format!("has not ended within {deadline:?}")), "{said}");
        said.ends_with("waiting")
    });
    assert!(has_spoken, "its last words are told");
    assert_ended(&pid_file);
    // A cancel does the same, at once.
    let control = Control::default();
    std::thread::scope(|scope| {
        let wiper = scope.spawn(|| wipe_from(&disk.device, &script(&hanging), None, &mut Notes::new(), &control));
        eventually("the command", SOON, || fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')));
        control.cancel();
        assert!(matches!(wiper.join().expect("it does not panic"), Err(WipeError::Cancelled)));
    });
    assert_ended(&pid_file);
}

#[test]
fn what_a_command_leaves_running_is_killed_before_the_device_counts_as_clean() {
    require_own_namespace();
    let scratch = Scratch::new("command-leaves");
    let disk = disk(&scratch);
    let pid_file = scratch.path().join("pid");
    let leaving = format!("sleep 1000 & echo $! > {}", pid_file.display());
    wipe(&disk.device, &script(&leaving)).expect("the command itself succeeds");
    assert_ended(&pid_file);
    // Nothing keeps the device either.
    drop(open(&disk.device));
}

/// That the process whose number is in the file has ended; removes the file.
fn assert_ended(pid_file: &Path) {
    let pid = fs::read_to_string(pid_file).expect("the command has written it");
    let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    eventually("its end", SOON, || state().is_empty() || state().contains(") Z "));
    fs::remove_file(pid_file).expect("it can be removed");
}

#[test]
fn the_device_stays_in_use_while_a_process_of_the_command_lives() {
    require_own_namespace();
    let scratch = Scratch::new("command-holds");
    let disk = disk(&scratch);
    let (ready, go) = (scratch.path().join("ready"), scratch.path().join("go"));
    // A process that makes itself a session of its own escapes the kill, but not the hold.
    let escaping = format!(
        "setsid sh -c 'touch {}; while ! test -e {}; do sleep 0.05; done' >/dev/null 2>&1 & 
        while ! test -e {}; do sleep 0.05; done",
        ready.display(),
        go.display(),
        ready.display(),
    );
    wipe(&disk.device, &script(&escaping)).expect("the command itself succeeds");
    let exclusive = || {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = nix::fcntl::OFlag::O_EXCL.bits();
        fs::OpenOptions::new().read(true).custom_flags(flags).open(&disk.device).map(drop)
    };
    assert_eq!(exclusive().expect_err("it is held").raw_os_error(), Some(nix::libc::EBUSY));
    fs::write(&go, "").expect("a file can be made");
    eventually("its end", SOON, || exclusive().is_ok());
}

#[test]
fn a_node_of_another_device_is_not_given_to_a_command() {
    require_own_namespace();
    let scratch = Scratch::new("command-node");
    let (ours, other) = (disk(&scratch), disk(&scratch));
    let link = scratch.path().join("link");
    let rules = script(&format!("ln -sfn {} {}", other.device.display(), link.display()));
    let run = |rules: &WipeRules| {
        let (fd, bytes) = open(&ours.device);
        let (node, journal) = (link.to_str().expect("it is plain"), &mut Notes::new());
        let job = mooring::deleter::Job { rules, mark: MARK, from: None, node, root: None, journal };
        mooring::deleter::wipe_device(&fd, bytes, job, &Control::default())
    };
    std::os::unix::fs::symlink(&ours.device, &link).expect("a link can be made");
    // The link changes while the command runs: what was wiped is not known.
    assert!(matches!(run(&rules), Err(WipeError::IdentityChanged(_))));
    // And now it is wrong before it.
    let marker = scratch.path().join("ran");
    let error = run(&script(&format!("touch {}", marker.display()))).expect_err("it is another device");
    assert!(matches!(error, WipeError::IdentityChanged(_)) && !marker.exists(), "{error}");
}

#[test]
fn a_mark_that_an_earlier_wipe_left_goes_after_a_command_that_succeeded() {
    require_own_namespace();
    let scratch = Scratch::new("command-mark");
    let disk = disk(&scratch);
    let control = Control::default();
    let mut notes = Notes::telling(|_| {
        control.cancel();
        Ok(())
    });
    assert!(wipe_from(&disk.device, &rules(Method::Auto), None, &mut notes, &control).is_err());
    assert!(wipe(&disk.device, &script("false")).is_err());
    assert_eq!(mark_on(&disk.device), Some(MARK), "the disk is still half wiped");
    wipe(&disk.device, &script("true")).expect("the command succeeds");
    assert_eq!(mark_on(&disk.device), None);
}

#[test]
fn a_tool_that_wants_the_device_for_itself_is_told_so() {
    require_own_namespace();
    let scratch = Scratch::new("command-excl");
    let disk = disk(&scratch);
    let said = problem(wipe(&disk.device, &script("blkdiscard -z \"$LOCAL_PV_BLKDEVICE\"")));
    assert!(said.contains("blkdiscard") && said.contains("busy"), "{said}");
    wipe(&disk.device, &script("blkdiscard -f -z \"$LOCAL_PV_BLKDEVICE\"")).expect("-f does not ask for it");
    assert!(!disk.backing_contains(SECRET));
}
