//! The state directory on real filesystems: what a crash, a full or read-only disk, an
//! admin's hand or a second agent leaves of the ledger.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use mooring::identity::{DeviceIdentity, DeviceNumber, Identity};
use mooring::ledger::{Cursor, Entry, EntryId, Ledger, State};
use mooring::pv::Claim;
use mooring::state_dir::{StateDir, StateDirError};
use nix::mount::{MsFlags, mount};

use crate::harness::{Scratch, disk, require_own_namespace};

fn entry(id: u128, state: State) -> Entry {
    let number = DeviceNumber { major: 7, minor: u32::try_from(id % 1_000_000).expect("it is small") };
    Entry {
        id: EntryId(id),
        class: "fast".into(),
        path: format!("/mnt/fast/disk-{id}").into(),
        identity: Arc::new(Identity::Device(DeviceIdentity { number, sequence: Some(1), ..DeviceIdentity::default() })),
        root: None,
        state,
        receipts: Vec::new(),
        as_of: Timestamp::UNIX_EPOCH,
    }
}

fn wiping(offset: u64) -> State {
    State::Wiping {
        pv: "local-pv-12345678".into(),
        uid: "11111111-2222-3333-4444-555555555555".into(),
        claim: Some(Claim {
            namespace: "tenant".into(),
            name: "data-db-0".into(),
            uid: "66666666-7777-8888-9999-000000000000".into(),
        }),
        method: "zero".into(),
        cursor: Some(Cursor { pass: 0, offset }),
    }
}

fn open(path: &Path) -> (StateDir, Ledger) {
    StateDir::open(path, true).expect("the state directory can be opened")
}

fn reopen(state: &StateDir, path: &Path) -> (StateDir, Ledger) {
    state.close().wait().expect("it can be closed");
    open(path)
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("the directory can be read");
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().into_string().expect("names are text")).collect();
    names.sort();
    names
}

fn file(path: &Path, id: u128) -> std::path::PathBuf {
    path.join(format!("{}.json", EntryId(id)))
}

#[test]
fn what_was_saved_is_read_again() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, ledger) = open(&path);
    assert_eq!((ledger.entries().count(), ledger.lost()), (0, 0));
    for id in 1..=3 {
        state.save(&entry(id, State::Clean)).wait().expect("it is saved");
    }
    state.save(&entry(2, wiping(64))).wait().expect("it is saved");
    let (_state, ledger) = reopen(&state, &path);
    assert_eq!(
        ledger.entries().cloned().collect::<Vec<_>>(),
        [entry(1, State::Clean), entry(2, wiping(64)), entry(3, State::Clean)]
    );
    // Nobody else may read or write any of it.
    assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o700);
    for name in names(&path) {
        assert_eq!(fs::metadata(path.join(&name)).expect("it is there").mode() & 0o777, 0o600, "{name}");
    }
    let files = (1..=3).map(|id| format!("{}.json", EntryId(id)));
    assert_eq!(names(&path), files.chain(["lock".to_owned()]).collect::<Vec<_>>());
}

#[test]
fn the_last_of_several_changes_at_once_counts() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let answers: Vec<_> =
        (0..100).flat_map(|n| [state.save(&entry(1, wiping(n))), state.save(&entry(2, wiping(n)))]).collect();
    answers.into_iter().for_each(|answer| answer.wait().expect("all went well"));
    let (_state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, wiping(99)), entry(2, wiping(99))]);
}

#[test]
fn what_may_be_saved_later_is_saved_and_never_over_what_came_after_it() {
    let place = tempfile::tempdir().expect("a directory can be made");
    let (state, _) = open(place.path());
    // By itself.
    state.save_soon(&entry(1, State::Clean)).wait().expect("it is saved");
    assert_eq!(on_disk(place.path(), 1), State::Clean);
    // In the place of one that was to be saved later, and that is answered for.
    let overtaken = state.save_soon(&entry(2, State::AsFound));
    let after = state.save(&entry(2, wiping(1)));
    after.wait().expect("it is saved");
    overtaken.wait().expect("it is saved, by what came after");
    assert_eq!(on_disk(place.path(), 2), wiping(1));
    // After one that was saved at once.
    let before = state.save(&entry(3, State::AsFound));
    let after = state.save_soon(&entry(3, wiping(2)));
    before.wait().expect("it is saved");
    after.wait().expect("it is saved");
    assert_eq!(on_disk(place.path(), 3), wiping(2));
    // When it is closed, and when the last user is gone.
    let closing = state.save_soon(&entry(4, State::Clean));
    state.close().wait().expect("it is closed");
    closing.wait().expect("it is saved before");
    let (state, _) = open(place.path());
    let last = state.save_soon(&entry(5, State::Clean));
    drop(state);
    last.wait().expect("it is saved after all");
    assert_eq!((on_disk(place.path(), 4), on_disk(place.path(), 5)), (State::Clean, State::Clean));
}

fn on_disk(path: &Path, id: u128) -> State {
    let (_, ledger) = StateDir::open_beside_agent(path).expect("it can be opened");
    ledger.get(EntryId(id)).expect("it is there").state.clone()
}

#[test]
fn closing_waits_for_what_was_asked_for_before() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let answers: Vec<_> = (1..=50).map(|id| state.save(&entry(id, State::Clean))).collect();
    drop(answers);
    let (_again, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().count(), 50);
    assert_eq!(state.save(&entry(51, State::Clean)).wait(), Err(StateDirError::Closed));
}

#[test]
fn a_second_agent_is_refused_and_told_of_the_first() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let error = StateDir::open(&path, true).expect_err("one agent is enough");
    assert!(matches!(error, StateDirError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&format!("pid {} on ", std::process::id())), "{error}");
    // A command beside the agent reads and writes.
    state.save(&entry(1, State::Clean)).wait().expect("it is saved");
    let (beside, ledger) = StateDir::open_beside_agent(&path).expect("it needs no lock");
    assert_eq!(ledger.entries().count(), 1);
    beside.save(&entry(2, State::Clean)).wait().expect("it is saved");
    beside.close().wait().expect("it can be closed");
    let (_state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().count(), 2);
}

#[test]
fn a_directory_that_is_missing_or_open_to_others_is_refused() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    assert_eq!(StateDir::open(&path, false).expect_err("it is missing"), StateDirError::Missing(path.clone()));
    let deep = scratch.path().join("a/b");
    assert!(StateDir::open(&deep, true).is_err() && !scratch.path().join("a").exists());
    fs::create_dir(&path).expect("a directory can be made");
    for mode in [0o777, 0o720, 0o1777, 0o702] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode can be set");
        let error = StateDir::open(&path, true).expect_err("others can write to it");
        assert!(matches!(error, StateDirError::Exposed { mode: m, .. } if m == mode), "{error}");
    }
    // As the kubelet makes a hostPath.
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("its mode can be set");
    StateDir::open(&path, false).expect("others can only read it");
}

#[test]
fn damaged_files_are_counted_and_left_as_they_are() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    state.save(&entry(1, wiping(64))).wait().expect("it is saved");
    let good = fs::read(file(&path, 1)).expect("it is there");
    let damaged = [good[..good.len() / 2].to_vec(), Vec::new(), vec![0; good.len()], b"{\"version\": 1}".to_vec()];
    for (id, text) in (2..).zip(&damaged) {
        fs::write(file(&path, id), text).expect("it can be written");
    }
    // An admin's copy: of two files of one id, neither is sure to be the newest.
    fs::copy(file(&path, 1), file(&path, 10)).expect("it can be copied");
    fs::copy(file(&path, 1), path.join("backup.json")).expect("it can be copied");
    fs::create_dir(file(&path, 11)).expect("a directory can be made");
    nix::unistd::mkfifo(&file(&path, 12), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    fs::write(path.join("notes.txt"), "of no interest").expect("it can be written");
    let before = names(&path);
    let (state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, wiping(64))]);
    assert_eq!(ledger.lost(), damaged.len() + 4);
    assert_eq!(names(&path), before);
    for (id, text) in (2..).zip(&damaged) {
        assert_eq!(&fs::read(file(&path, id)).expect("it is there"), text);
    }
    // What can't be replaced says so, and hinders nothing else.
    let error = state.save(&entry(11, State::Clean)).wait().expect_err("a directory is in the way");
    assert!(error.to_string().contains(&EntryId(11).to_string()), "{error}");
    assert_eq!(names(&path), before);
    // An entry in the place of a damaged one ends the damage.
    state.save(&entry(2, State::Clean)).wait().expect("it is saved");
    let (_state, ledger) = reopen(&state, &path);
    assert_eq!((ledger.entries().count(), ledger.lost()), (2, damaged.len() + 3));
}

#[test]
fn an_entry_of_a_newer_program_is_refused_in_words() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    fs::write(file(&path, 1), "not even JSON").expect("it can be written");
    fs::write(file(&path, 2), r#"{"version": 2, "moor": "ing"}"#).expect("it can be written");
    state.close().wait().expect("it can be closed");
    let error = StateDir::open(&path, false).expect_err("it must not be guessed at");
    assert!(matches!(error, StateDirError::Newer { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("newer mooring") && text.contains(&EntryId(2).to_string()) && text.contains("version 2"),
        "{text}"
    );
}

#[test]
fn what_a_crash_left_half_written_is_removed_and_nothing_else() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    state.save(&entry(1, State::Clean)).wait().expect("it is saved");
    let id = EntryId(1);
    let keep = [format!("{id}.json.tmp.tmp"), format!("{id}.tmp"), "x.json.tmp".to_owned(), format!("{id}.locked")];
    for name in &keep {
        fs::write(path.join(name), "not ours").expect("it can be written");
    }
    fs::write(path.join(format!("{id}.json.tmp")), "{\"versi").expect("it can be written");
    fs::write(path.join(format!("{}.json.tmp", EntryId(2))), "").expect("it can be written");
    fs::write(path.join(format!("{}.lock", EntryId(3))), "").expect("it can be written");
    // One that a command beside the agent is about to put in place.
    let (beside, _) = StateDir::open_beside_agent(&path).expect("it can be opened");
    let lock = beside.lock_entry(EntryId(4)).wait().expect("nobody has it");
    let underway = format!("{}.json.tmp", EntryId(4));
    fs::write(path.join(&underway), "").expect("it can be written");
    let (state, ledger) = reopen(&state, &path);
    assert_eq!((ledger.entries().count(), ledger.lost()), (1, 0));
    let own = [format!("{id}.json"), "lock".to_owned(), underway, format!("{}.lock", EntryId(4))];
    let mut expected: Vec<_> = keep.iter().chain(&own).cloned().collect();
    expected.sort();
    assert_eq!(names(&path), expected);
    drop(lock);
    let _state = reopen(&state, &path);
    assert!(!path.join(&own[2]).exists());
}

#[test]
fn links_are_not_followed() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let outside = scratch.path().join("outside");
    state.save(&entry(1, State::Clean)).wait().expect("it is saved");
    fs::rename(file(&path, 1), &outside).expect("it can be moved");
    let before = fs::read(&outside).expect("it is there");
    // To be written through.
    symlink(&outside, path.join(format!("{}.json.tmp", EntryId(2)))).expect("a link can be made");
    symlink(&outside, file(&path, 2)).expect("a link can be made");
    state.save(&entry(2, State::Clean)).wait().expect("the links are replaced");
    assert!(fs::symlink_metadata(file(&path, 2)).expect("it is there").is_file());
    // To be removed through, and to be read through.
    symlink(&outside, path.join(format!("{}.json.tmp", EntryId(3)))).expect("a link can be made");
    symlink(&outside, file(&path, 1)).expect("a link can be made");
    let (state, ledger) = reopen(&state, &path);
    assert_eq!((ledger.entries().count(), ledger.lost()), (1, 1));
    // To be locked through.
    symlink(&outside, path.join(format!("{}.lock", EntryId(2)))).expect("a link can be made");
    assert!(matches!(state.lock_entry(EntryId(2)).wait(), Err(StateDirError::Io { .. })));
    assert_eq!(fs::read(&outside).expect("it is there"), before);
    state.close().wait().expect("it can be closed");
    fs::remove_file(path.join("lock")).expect("it can be removed");
    symlink(&outside, path.join("lock")).expect("a link can be made");
    assert!(matches!(StateDir::open(&path, true), Err(StateDirError::Io { .. })));
    assert_eq!(fs::read(&outside).expect("it is there"), before);
}

#[test]
fn on_a_full_disk_the_old_entry_stays_and_saving_heals_by_itself() {
    require_own_namespace();
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    disk::tmpfs(&path, 64 << 10);
    fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("its mode can be set");
    let (state, _) = open(&path);
    state.save(&entry(1, wiping(64))).wait().expect("it is saved");
    let filler = path.join("filler");
    let error = fs::write(&filler, vec![1; 128 << 10]).expect_err("there is not so much room");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let answers: Vec<_> = (1..=20).map(|id| state.save(&entry(id, State::Clean))).collect();
    for answer in answers {
        let error = answer.wait().expect_err("there is no room");
        assert!(error.to_string().contains("make room"), "{error}");
    }
    // Nothing half-written takes up room.
    assert_eq!(names(&path), [format!("{}.json", EntryId(1)), "filler".to_owned(), "lock".to_owned()]);
    let (state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, wiping(64))]);
    fs::remove_file(&filler).expect("it can be removed");
    state.save(&entry(1, State::Clean)).wait().expect("there is room again");
    let (state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, State::Clean)]);
    state.close().wait().expect("it can be closed");
    disk::umount(&path);
}

#[test]
fn on_a_read_only_disk_the_old_entry_stays_and_saving_heals_by_itself() {
    require_own_namespace();
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    disk::tmpfs(&path, 1 << 20);
    fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("its mode can be set");
    let (state, _) = open(&path);
    state.save(&entry(1, wiping(64))).wait().expect("it is saved");
    let remount = |flags| {
        let flags = MsFlags::MS_REMOUNT | flags;
        mount(None::<&Path>, &path, None::<&Path>, flags, None::<&Path>).expect("it can be remounted");
    };
    remount(MsFlags::MS_RDONLY);
    let error = state.save(&entry(1, State::Clean)).wait().expect_err("it is read-only");
    assert!(error.to_string().contains("mount it for writing"), "{error}");
    let (beside, ledger) = StateDir::open_beside_agent(&path).expect("it can still be read");
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, wiping(64))]);
    remount(MsFlags::empty());
    state.save(&entry(1, State::Clean)).wait().expect("it can be written again");
    let (state, ledger) = reopen(&state, &path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), [entry(1, State::Clean)]);
    state.close().wait().expect("it can be closed");
    beside.close().wait().expect("it can be closed");
    disk::umount(&path);
}

#[test]
fn a_directory_that_was_removed_or_replaced_is_noticed_and_made_again_when_asked() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, mut ledger) = open(&path);
    for id in 1..=3 {
        ledger.insert(entry(id, State::Clean));
        state.save(&entry(id, State::Clean)).wait().expect("it is saved");
    }
    let replaced = Err(StateDirError::Replaced(path.clone()));
    // Removed.
    fs::remove_dir_all(&path).expect("it can be removed");
    assert_eq!(state.save(&entry(1, wiping(64))).wait(), replaced);
    ledger.insert(entry(1, wiping(64)));
    state.rewrite_all(ledger.entries()).wait().expect("it is made again");
    assert!(matches!(StateDir::open(&path, true), Err(StateDirError::Locked { .. })));
    // Replaced, by one in which another agent is at work.
    fs::rename(&path, scratch.path().join("aside")).expect("it can be moved");
    assert_eq!(state.save(&entry(2, wiping(64))).wait(), replaced);
    let (other, _) = open(&path);
    assert_eq!(state.save(&entry(1, State::Clean)).wait(), replaced);
    assert!(matches!(state.rewrite_all(ledger.entries()).wait(), Err(StateDirError::Locked { .. })));
    assert_eq!(names(&path), ["lock"]);
    other.close().wait().expect("it can be closed");
    state.rewrite_all(ledger.entries()).wait().expect("it is taken");
    state.save(&entry(4, State::Clean)).wait().expect("it is saved");
    let (_state, again) = reopen(&state, &path);
    ledger.insert(entry(4, State::Clean));
    assert_eq!(again.entries().collect::<Vec<_>>(), ledger.entries().collect::<Vec<_>>());
}

#[test]
fn an_entry_is_locked_for_one_at_a_time() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let (beside, _) = StateDir::open_beside_agent(&path).expect("it can be opened");
    let lock = state.lock_entry(EntryId(1)).wait().expect("nobody has it");
    for other in [&state, &beside] {
        assert!(matches!(other.lock_entry(EntryId(1)).wait(), Err(StateDirError::EntryBusy(_))));
    }
    let another = beside.lock_entry(EntryId(2)).wait().expect("nobody has that one");
    drop(lock);
    let lock = beside.lock_entry(EntryId(1)).wait().expect("it is free again");
    drop((lock, another));
    assert_eq!(names(&path), ["lock"]);
}

#[test]
fn what_others_have_written_is_told_once_and_not_while_they_are_at_work() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    for id in 1..=3 {
        state.save(&entry(id, wiping(64))).wait().expect("it is saved");
    }
    let changed = || state.changed().wait().expect("it can be looked");
    assert_eq!(changed(), [], "nobody else has written");
    let (beside, ledger) = StateDir::open_beside_agent(&path).expect("it can be opened");
    assert_eq!(ledger.entries().count(), 3);
    // One that is known, one that is new, and one whose writer is still at it.
    let lock = beside.lock_entry(EntryId(3)).wait().expect("nobody has it");
    for id in [1, 3, 4] {
        beside.save(&entry(id, State::Clean)).wait().expect("it is saved");
    }
    assert_eq!(changed(), [entry(1, State::Clean), entry(4, State::Clean)]);
    drop(lock);
    assert_eq!(changed(), [entry(3, State::Clean)]);
    assert_eq!(changed(), [], "it was told");
    // What is written here last is no news, whoever wrote before.
    beside.save(&entry(1, wiping(7))).wait().expect("it is saved");
    state.save(&entry(1, wiping(8))).wait().expect("it is saved");
    assert_eq!(changed(), []);
    let offsets = state.read().wait().expect("it can be read again");
    assert_eq!(offsets.get(EntryId(1)), Some(&entry(1, wiping(8))));
    // Rubbish is no news.
    fs::write(file(&path, 2), "rubbish").expect("it can be written");
    assert_eq!(changed(), []);
}

#[tokio::test]
async fn five_hundred_entries_at_once_are_all_saved() {
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    let (state, _) = open(&path);
    let entries: Vec<_> = (1..=500).map(|id| entry(id, wiping(64))).collect();
    let start = Instant::now();
    let answers: Vec<_> = entries.iter().map(|entry| state.save(entry)).collect();
    for answer in answers {
        answer.await.expect("it is saved");
    }
    // For whoever reads it; a slow disk fails nothing.
    eprintln!("500 entries: {:?}", start.elapsed());
    state.close().await.expect("it can be closed");
    let (_state, ledger) = open(&path);
    assert_eq!(ledger.entries().cloned().collect::<Vec<_>>(), entries);
}

/// This test program again, with one of its ignored tests and a variable for it.
fn child(test: &str, value: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its program"));
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("MOORING_TEST_CHILD", value).stdin(Stdio::null());
    command
}

fn child_value() -> String {
    std::env::var("MOORING_TEST_CHILD").expect("it is run by another test")
}

#[test]
#[ignore = "the child of the test below"]
fn child_that_saves_until_it_is_killed() {
    let (state, _) = open(Path::new(&child_value()));
    for n in 0.. {
        let answers: Vec<_> = (1..=20).map(|id| state.save(&entry(id, wiping(n)))).collect();
        answers.into_iter().for_each(|answer| answer.wait().expect("it is saved"));
        eprintln!("saved {n}.");
    }
}

#[test]
fn a_killed_agent_leaves_each_entry_as_it_was_last_answered_for_or_newer() {
    use std::io::{BufRead, BufReader};
    let scratch = Scratch::new("ledger");
    let path = scratch.path().join("state");
    for round in 0..10 {
        let value = path.display().to_string();
        let mut command = child("ledger::child_that_saves_until_it_is_killed", &value);
        let mut process =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the test program can be run");
        let output = BufReader::new(process.stderr.take().expect("it is piped"));
        let saved = |line: String| line.strip_prefix("saved ")?.strip_suffix('.')?.parse::<u64>().ok();
        let mut rounds = output.lines().map_while(Result::ok).filter_map(saved);
        let mut last = rounds.nth(3).expect("it saves");
        // Somewhere in the midst of a later round.
        std::thread::sleep(std::time::Duration::from_micros(700 * round));
        process.kill().expect("it can be killed");
        process.wait().expect("it has ended");
        // What it had said before it was killed counts too.
        last = rounds.last().unwrap_or(last);
        let (state, ledger) = open(&path);
        assert_eq!((ledger.entries().count(), ledger.lost()), (20, 0));
        for entry in ledger.entries() {
            let State::Wiping { cursor: Some(cursor), .. } = entry.state else { panic!("{entry:?}") };
            assert!(cursor.offset >= last && cursor.offset <= last + 1, "{} of {last}", cursor.offset);
        }
        assert!(names(&path).iter().all(|name| !name.ends_with(".tmp")));
        state.close().wait().expect("it can be closed");
    }
}

#[test]
#[ignore = "the child of the test below"]
fn child_that_measures_memory() {
    let resident = || {
        let text = fs::read_to_string("/proc/self/statm").expect("a process can read its own memory");
        let pages: u64 = text.split(' ').nth(1).expect("it has fields").parse().expect("they are numbers");
        pages * 4096
    };
    let count: u64 = child_value().parse().expect("it is a number");
    let entries = || (0..u128::from(count)).map(|_| entry(fastrand::u128(..), wiping(64)));
    let identities: Vec<_> = entries().map(|entry| entry.identity).collect();
    let before = resident();
    let mut ledger = Ledger::default();
    for (entry, identity) in entries().zip(&identities) {
        ledger.insert(Entry { identity: Arc::clone(identity), ..entry });
    }
    eprintln!("bytes an entry: {}.", (resident() - before) / count);
    assert_eq!(ledger.entries().count() as u64, count);
}

#[test]
fn an_entry_takes_little_memory() {
    let output = child("ledger::child_that_measures_memory", "20000").output().expect("the test program can be run");
    let text = String::from_utf8_lossy(&output.stderr);
    let bytes = text.split("bytes an entry: ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
    eprintln!("{bytes:?} bytes an entry");
    assert!(bytes.expect("it says how many") < 1536, "{text}");
}
