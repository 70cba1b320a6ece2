//! `mooring wipe`, the real program on real disks: what it wipes, what it refuses without
//! touching a byte, and how it gets on with an agent beside it.

use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, ResourceExt};
use mooring::deleter::{MarkId, WipeError, inspect, look};
use mooring::discovery::Observed;
use mooring::identity::Identity;
use mooring::ledger::{Entry, EntryId, Ledger, State};
use mooring::state_dir::{StateDir, StateDirError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::claim::{observed, target};
use crate::common::{SOON, start, wait_ready, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::node::TestNode;
use crate::harness::volumes::phase;
use crate::harness::{Scratch, eventually, launch, require_own_namespace, shared};
use crate::wipe_scene::{bytes_written, first_not_zero, full_of_secrets, mark_on};

const MIB: u64 = 1 << 20;
const REFUSED: i32 = 3;

fn command(path: &Path, arguments: &[&str]) -> Command {
    let mut command = launch::command_line(&launch::binary(None));
    command.arg("wipe").arg(path).args(arguments).stdin(Stdio::null());
    command
}

fn wipe(path: &Path, arguments: &[&str]) -> Output {
    command(path, arguments).output().expect("the program can be run")
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("it was ended by a signal: {output:?}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Again, for as long as it is refused because somebody uses the volume: the agents of other
/// tests look at each disk of the size of theirs for a moment, and who looks for a free loop
/// device at each.
fn unless_in_use(run: impl Fn() -> Output, is_meant: impl Fn(&str) -> bool) -> Output {
    let deadline = Instant::now() + SOON;
    loop {
        let output = run();
        let said = said(&output);
        let again = code(&output) == REFUSED && said.contains("in use") && !is_meant(&said);
        if !again || Instant::now() > deadline {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn succeeds(path: &Path, arguments: &[&str]) -> String {
    let output = unless_in_use(|| wipe(path, arguments), |_| false);
    assert_eq!(code(&output), 0, "{}", said(&output));
    String::from_utf8(output.stdout).expect("it is text")
}

fn refuses(path: &Path, arguments: &[&str], why: &str) -> String {
    let output = unless_in_use(|| wipe(path, arguments), |said| said.contains(why));
    let said = said(&output);
    assert_eq!(code(&output), REFUSED, "{said}");
    assert!(said.contains(why), "{said:?} does not say {why:?}");
    said
}

/// A disk full of secrets, a state directory, and a place for mounts.
struct Scene {
    scratch: Scratch,
    state: PathBuf,
    disk: LoopDisk,
}

fn scene(bytes: u64) -> Scene {
    require_own_namespace();
    let scratch = Scratch::new("wipe-cli");
    let state = scratch.path().join("state");
    fs::create_dir(&state).expect("a directory can be made");
    fs::set_permissions(&state, Permissions::from_mode(0o700)).expect("its mode can be set");
    let backing = full_of_secrets(scratch.path(), usize::try_from(bytes).expect("it fits"));
    Scene { disk: LoopDisk::attach(backing), scratch, state }
}

impl Scene {
    /// The arguments that each wipe needs.
    fn with<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let state = self.state.to_str().expect("its name is text");
        ["--yes", "--state-dir", state].into_iter().chain(more.iter().copied()).collect()
    }

    fn device(&self) -> &Path {
        &self.disk.device
    }

    fn ledger(&self) -> Ledger {
        ledger(&self.state)
    }

    fn entry(&self) -> Entry {
        let ledger = self.ledger();
        assert_eq!((ledger.entries().count(), ledger.lost()), (1, 0));
        ledger.entries().next().expect("there is one").clone()
    }

    /// Puts an entry for the disk into the ledger, as an agent does.
    async fn remember(&self, state: State) -> Entry {
        let entry = Entry { state, ..Entry::new(EntryId(5), "c", "/mnt/c/a", identity(self.device()).await, now()) };
        let (directory, _) = StateDir::open_beside_agent(&self.state).expect("it can be opened");
        directory.save(&entry).await.expect("it is saved");
        entry
    }

    /// Makes sure that nothing on the disk and nothing in the ledger changes meanwhile.
    fn untouched<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        let look = || (fs::read(&self.disk.backing).expect("it can be read"), files(&self.state));
        let before = look();
        let result = meanwhile();
        assert!(look() == before, "something was touched");
        result
    }
}

fn ledger(state: &Path) -> Ledger {
    StateDir::open_beside_agent(state).expect("it can be opened").1
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).expect("the directory can be read").flatten();
    let mut files: Vec<_> =
        entries.map(|entry| (entry.path(), fs::read(entry.path()).expect("a file can be read"))).collect();
    files.sort();
    files
}

fn now() -> Timestamp {
    Timestamp::now()
}

async fn identity(path: &Path) -> Arc<Identity> {
    let name = path.file_name().and_then(|name| name.to_str()).expect("it has a name");
    match observed(path.parent().expect("it is in a directory"), name).await {
        Observed::Device(sighting) | Observed::MountPoint(sighting) => sighting.identity,
        other => panic!("it is no volume: {other:?}"),
    }
}

fn used() -> State {
    State::Used { pv: "local-pv-1".into(), uid: "uid".into(), claim: None, since: None }
}

#[tokio::test]
async fn a_device_is_wiped_verified_and_clean_in_the_ledger() {
    let scene = scene(12 * MIB);
    let digest = identity(scene.device()).await.digest();
    let receipt = succeeds(scene.device(), &scene.with(&["--verify", "full", "--expect-identity", &digest]));
    let expected = format!("verification full, identity {digest}");
    assert!(receipt.contains("is wiped: method auto, 12582912 bytes") && receipt.contains(&expected), "{receipt}");
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    let entry = scene.entry();
    assert_eq!((&entry.state, entry.receipts.len()), (&State::Clean, 1));
    assert_eq!(&*entry.path, scene.device().to_str().expect("it is text"));
    assert_eq!(files(&scene.state).len(), 1, "no lock is left");
    // Again, by a link and another method: it is the same volume.
    let link = scene.disk.link(scene.scratch.path(), "link");
    succeeds(&link, &scene.with(&["--method", "overwrite", "--passes", "1"]));
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    assert_eq!((scene.entry().id, scene.entry().receipts.len()), (entry.id, 2));
    assert_eq!(&*scene.entry().receipts[1].method, "overwrite");
}

#[tokio::test]
async fn a_cleaner_command_does_it_with_what_follows_the_dashes() {
    let scene = scene(3 * MIB);
    let script = "dd if=/dev/zero of=$LOCAL_PV_BLKDEVICE bs=64k count=48 conv=notrunc";
    succeeds(scene.device(), &scene.with(&["--method", "command", "--", "/bin/sh", "-c", script]));
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    let fails = || wipe(scene.device(), &scene.with(&["--method", "command", "--", "/bin/false"]));
    let output = unless_in_use(fails, |_| false);
    assert_eq!(code(&output), 1, "{}", said(&output));
    assert!(scene.entry().state.is_wipe_by_hand(), "it is not clean: {:?}", scene.entry().state);
}

#[tokio::test]
async fn a_mounted_directory_is_emptied_and_nothing_else() {
    let scene = scene(3 * MIB);
    for kind in ["tmpfs", "ext4"] {
        let volume = scene.scratch.path().join(kind);
        let _disk = match kind {
            "tmpfs" => {
                disk::tmpfs(&volume, MIB);
                None
            }
            _ => Some(disk::ext4(&volume, 16 * MIB)),
        };
        fs::create_dir_all(volume.join("a/b")).expect("a directory can be made");
        fs::write(volume.join("a/b/c"), "secret").expect("a file can be written");
        symlink(&scene.state, volume.join("link")).expect("a link can be made");
        let receipt = succeeds(&volume.join("."), &scene.with(&[]));
        assert!(receipt.contains("method remove, 4 entries removed"), "{receipt}");
        let left: Vec<_> = fs::read_dir(&volume).expect("it can be read").flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| name == "lost+found"), "{left:?}");
        disk::umount(&volume);
    }
    let states: Vec<_> = scene.ledger().entries().map(|entry| entry.state.clone()).collect();
    assert_eq!(states, [State::Clean, State::Clean]);
}

#[tokio::test]
async fn without_a_state_directory_a_volume_is_wiped_as_well() {
    let scene = scene(3 * MIB);
    let missing = scene.scratch.path().join("missing");
    scene.untouched(|| {
        refuses(scene.device(), &["--yes", "--state-dir", missing.to_str().expect("text")], "no state directory");
    });
    if Path::new("/var/lib/mooring").exists() {
        return; // a machine with an agent: its ledger is not for tests
    }
    succeeds(scene.device(), &["--yes"]);
    assert_eq!((first_not_zero(&scene.disk.backing), files(&scene.state).len()), (None, 0));
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_done_and_changes_nothing() {
    let scene = scene(3 * MIB);
    let quarantined = State::Quarantined { reason: "it was found in the street".into(), pv: "p".into(), claim: None };
    let entry = scene.remember(quarantined).await;
    let volume = scene.scratch.path().join("v");
    disk::tmpfs(&volume, MIB);
    fs::write(volume.join("kept"), "x").expect("a file can be written");
    scene.untouched(|| {
        let said = succeeds(scene.device(), &scene.with(&["--dry-run", "--method", "zero", "--passes", "2"]));
        for words in ["zero x2", &entry.identity.digest(), "found in the street", "Dry run"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(succeeds(&volume, &scene.with(&["--dry-run"])).contains("everything in the directory is removed"));
        refuses(scene.scratch.path(), &scene.with(&["--dry-run"]), "no mount point");
    });
    assert!(volume.join("kept").exists());
    disk::umount(&volume);
}

#[tokio::test]
async fn what_is_no_volume_is_refused() {
    let scene = scene(3 * MIB);
    let dir = scene.scratch.path();
    disk::tmpfs(&dir.join("v"), MIB);
    fs::write(dir.join("v/kept"), "x").expect("a file can be written");
    fs::create_dir_all(dir.join("plain/kept")).expect("a directory can be made");
    fs::write(dir.join("file"), "x").expect("a file can be written");
    for (link, to) in [("to-v", "v"), ("to-nothing", "nothing"), ("to-file", "file")] {
        symlink(dir.join(to), dir.join(link)).expect("a link can be made");
    }
    for (path, why) in [
        ("plain", "is no mount point"),
        ("v/kept", "is a regular file"),
        ("to-v", "symbolic link to a directory"),
        ("to-v/", "symbolic link to a directory"),
        ("to-nothing", "symbolic link to nothing"),
        ("to-file", "neither"),
        ("missing", "No such file"),
        ("missing/deeper", "No such file"),
        ("v/..", "names no entry"),
        ("/", "names no entry"),
        ("/dev/null", "character device"),
    ] {
        scene.untouched(|| refuses(&dir.join(path), &scene.with(&[]), why));
    }
    assert!(dir.join("v/kept").exists() && dir.join("plain/kept").exists());
    disk::umount(&dir.join("v"));
}

#[tokio::test]
async fn what_is_in_use_is_refused() {
    let scene = scene(16 * MIB);
    let dir = scene.scratch.path();
    let over = LoopDisk::attach(scene.device().to_owned());
    scene.untouched(|| refuses(scene.device(), &scene.with(&[]), "backing of"));
    drop(over);
    let program = format!("exec 3<{}; echo; cat", scene.device().display());
    let mut shell = Command::new("sh")
        .args(["-c", &format!("(sh -c '{program}'); :")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell can be run");
    let mut line = [0];
    std::io::Read::read_exact(shell.stdout.as_mut().expect("it is piped"), &mut line).expect("it says that it is open");
    scene.untouched(|| refuses(scene.device(), &scene.with(&[]), "open in process"));
    drop(shell.stdin.take());
    shell.wait().expect("it ends");
    let points = [dir.join("one"), dir.join("two")];
    scene.disk.format_ext4();
    scene.disk.mount_ext4(&points[0]);
    fs::write(points[0].join("kept"), "x").expect("a file can be written");
    refuses(scene.device(), &scene.with(&[]), "mounted at");
    // As a pod's volume is.
    disk::bind_mount(&points[0], &points[1]);
    refuses(&points[0], &scene.with(&[]), "also mounted at");
    assert!(points[0].join("kept").exists());
    disk::umount(&points[1]);
    disk::umount(&points[0]);
    assert_eq!(files(&scene.state), []);
}

#[tokio::test]
async fn what_the_ledger_gives_to_a_pv_takes_its_digest_typed_exactly() {
    let scene = scene(3 * MIB);
    let offered = State::Offered { pv: "local-pv-1".into(), uid: None, since: None };
    for state in [offered, used()] {
        let digest = scene.remember(state).await.identity.digest();
        let wrong = format!("{}{}", &digest[1..], &digest[..1]);
        scene.untouched(|| {
            let said = refuses(scene.device(), &scene.with(&[]), "local-pv-1");
            assert!(said.contains(&format!("--force-identity {digest}")), "{said}");
            for typed in [wrong.as_str(), &digest[..15], ""] {
                refuses(scene.device(), &scene.with(&["--force-identity", typed]), "the digest of what is there is");
            }
            refuses(scene.device(), &scene.with(&["--expect-identity", &wrong]), "the digest of what is there is");
        });
    }
    let digest = scene.entry().identity.digest();
    let said = succeeds(scene.device(), &scene.with(&["--force-identity", &digest]));
    assert!(said.contains("PV local-pv-1 may still offer it"), "{said}");
    assert_eq!(first_not_zero(&scene.disk.backing), None);
    let entry = scene.entry();
    assert_eq!((&entry.state, entry.receipts.len()), (&used(), 1), "what the PV does after is not known");
}

#[tokio::test]
async fn another_disk_than_the_ledger_knows_at_the_path_takes_its_digest() {
    let scene = scene(3 * MIB);
    let other = LoopDisk::new(scene.scratch.path(), MIB);
    let entry = Entry {
        path: scene.device().to_str().expect("it is text").into(),
        ..Entry::new(EntryId(7), "c", "", identity(&other.device).await, now())
    };
    let (directory, _) = StateDir::open_beside_agent(&scene.state).expect("it can be opened");
    directory.save(&entry).await.expect("it is saved");
    scene.untouched(|| refuses(scene.device(), &scene.with(&[]), "knows another volume"));
    let digest = identity(scene.device()).await.digest();
    succeeds(scene.device(), &scene.with(&["--force-identity", &digest]));
    let ledger = scene.ledger();
    assert_eq!((ledger.entries().count(), ledger.get(EntryId(7))), (2, Some(&entry)), "the other's entry stays");
}

#[tokio::test]
async fn who_does_not_say_yes_or_meets_another_wipe_is_refused() {
    let scene = scene(3 * MIB);
    let state = scene.state.to_str().expect("it is text");
    scene.untouched(|| refuses(scene.device(), &["--state-dir", state], "add --yes"));
    // On a terminal it is asked.
    let once = |answer: &str| {
        let line = format!("{} wipe {} --state-dir {state}", launch::binary(None).display(), scene.device().display());
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::piped());
        let mut terminal = terminal.stdout(Stdio::piped()).spawn().expect("there is `script`");
        writeln!(terminal.stdin.as_mut().expect("it is piped"), "{answer}").expect("it takes the answer");
        terminal.wait_with_output().expect("it ends")
    };
    let ask = |answer: &str| {
        let output = unless_in_use(|| once(answer), |_| false);
        (code(&output), said(&output))
    };
    let (code, text) = scene.untouched(|| ask("y"));
    assert!(code == REFUSED && text.contains("Type yes to go on") && text.contains("not yes"), "{code}: {text}");
    // Another wipe is at the volume.
    let entry = scene.remember(State::Clean).await;
    let (directory, _) = StateDir::open_beside_agent(&scene.state).expect("it can be opened");
    let lock = directory.lock_entry(entry.id).await.expect("nobody has it");
    for more in [&[][..], &["--dry-run"]] {
        scene.untouched(|| refuses(scene.device(), &scene.with(more), "another process is at work on this volume"));
    }
    drop(lock);
    let (code, text) = ask("yes");
    assert_eq!(code, 0, "{text}");
    assert_eq!(first_not_zero(&scene.disk.backing), None);
}

/// A wipe that goes on until it is told to end: 2 MiB a second, to which a cursor is known.
fn slow_wipe(scene: &Scene, at_least: u64) -> Child {
    let begin = || {
        let mut command = command(scene.device(), &scene.with(&["--bandwidth", "2Mi"]));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("the program can be run")
    };
    let child = RefCell::new(begin());
    eventually("a cursor in the midst", SOON, || {
        let ended = child.borrow_mut().try_wait().expect("it is ours");
        if ended.is_some_and(|ended| ended.code() == Some(REFUSED)) {
            // Somebody looks at each new disk for a moment, which then is in use.
            *child.borrow_mut() = begin();
            return false;
        }
        assert!(ended.is_none(), "it has ended: {ended:?}, {:?}", scene.ledger());
        let ledger = scene.ledger();
        ledger.entries().any(
            |entry| matches!(&entry.state, State::Wiping { cursor: Some(cursor), .. } if cursor.offset >= at_least),
        )
    });
    child.into_inner()
}

#[tokio::test]
async fn an_interrupted_wipe_goes_on_where_it_was() {
    // A size of its own: the check of who uses a disk asks each loop device of the same size,
    // and that of another test may be frozen.
    const SIZE: u64 = 61 * MIB;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let scene = scene(SIZE);
        let child = slow_wipe(&scene, 2 * MIB);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("process ids are small"));
        kill(pid, signal).expect("it has not been waited for");
        let output = child.wait_with_output().expect("it ends");
        if signal != Signal::SIGKILL {
            let said = said(&output);
            assert_eq!(code(&output), 130, "{said}");
            assert!(said.contains("run the same command again, it goes on where it was"), "{said}");
        }
        let entry = scene.entry();
        assert!(entry.state.is_wipe_by_hand(), "{:?}", entry.state);
        assert_eq!(mark_on(scene.device()), Some(MarkId(entry.id.0)), "it is no blank disk");
        assert!(first_not_zero(&scene.disk.backing).is_some());
        let before = bytes_written(scene.device());
        succeeds(scene.device(), &scene.with(&["--verify", "full"]));
        let written = bytes_written(scene.device()) - before;
        assert!(written <= SIZE - MIB, "{written} bytes are all of it again");
        assert_eq!(first_not_zero(&scene.disk.backing), None);
        assert_eq!((scene.entry().id, scene.entry().state), (entry.id, State::Clean));
    }
}

/// Runs the command until nobody else is at the volume: an agent looks into it by and by.
async fn wipe_beside_agent(node: &TestNode, path: &Path) {
    let state = node.state_dir();
    let arguments = ["--yes", "--state-dir", state.to_str().expect("it is text")];
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let output = wipe(path, &arguments);
        if code(&output) == 0 {
            return;
        }
        let said = said(&output);
        let is_at_it = said.contains("in use") || said.contains("another process");
        assert!(code(&output) == REFUSED && is_at_it, "{said}");
        assert!(std::time::Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_quarantined_volume_is_offered_anew_after_a_wipe_by_hand() {
    let node = TestNode::new(shared(), "by-hand").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::attach(full_of_secrets(node.dir(), 3 << 20));
    let (link, volume) = (disk.link(&disks, "disk"), disks.join("v"));
    disk::tmpfs(&volume, MIB);
    fs::write(volume.join("secret"), "x").expect("a file can be written");
    let agent = start(&node, &[(&class, &disks, "dirty: quarantine")]);
    wait_ready(&agent).await;
    for path in [&link, &volume] {
        node.wait_pv(path, |pv| phase(pv) == "Released", SOON).await;
        wipe_beside_agent(&node, path).await;
        node.wait_pv(path, |pv| phase(pv) == "Available", SOON).await;
        let ledger = ledger(&node.state_dir());
        let entry = ledger.entries().find(|entry| Path::new(&*entry.path) == path).expect("it is known");
        assert_eq!(entry.receipts.len(), 1, "the receipt is kept: {entry:?}");
    }
    assert_eq!(first_not_zero(&disk.backing), None);
    drop(agent);
}

#[tokio::test]
async fn a_retired_volume_is_offered_anew_after_a_wipe_by_hand() {
    let node = TestNode::new(shared(), "retired").await;
    let class = node.class("fast", "Retain").await;
    let disks = node.discovery_dir("disks");
    let volume = disks.join("v");
    disk::tmpfs(&volume, MIB);
    let agent = start(&node, &[(&class, &disks, "")]);
    let pv = node.wait_pv(&volume, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    fs::write(volume.join("secret"), "x").expect("a file can be written");
    // The volume of a claim is none to wipe.
    let state = node.state_dir();
    let arguments = ["--yes", "--state-dir", state.to_str().expect("it is text")];
    // The ledger has the claim a moment after the API server.
    eventually("the claim in the ledger", SOON, || refuses(&volume, &arguments, "local-pv-").contains(" has "));
    node.release(&claim).await;
    node.wait_pv(&volume, |pv| phase(pv) == "Released", SOON).await;
    let retire = Patch::Merge(json!({"metadata": {"annotations": {"mooring.dev/reclaim": "retire"}}}));
    let api: Api<k8s_openapi::api::core::v1::PersistentVolume> = Api::all(node.client());
    api.patch(&pv.name_any(), &PatchParams::default(), &retire).await.expect("it can be annotated");
    node.wait_gone(&pv, SOON).await;
    wait_verdict(&agent, &class, "v", "Dirty").await;
    wipe_beside_agent(&node, &volume).await;
    assert!(!volume.join("secret").exists());
    node.wait_pv(&volume, |again| phase(again) == "Available" && again.uid() != pv.uid(), SOON).await;
}

#[tokio::test]
async fn what_an_agent_is_about_to_offer_is_kept_from_others() {
    let scene = scene(3 * MIB);
    let dir = scene.scratch.path();
    scene.disk.link(dir, "disk");
    disk::tmpfs(&dir.join("v"), MIB);
    for entry in ["disk", "v"] {
        let target = target(dir, entry).await;
        let offerable = look(&target).expect("it is as it was seen");
        assert!(matches!(inspect(&target), Err(WipeError::Busy(_))), "{entry}");
        drop(offerable);
        eventually(&format!("{entry} is free again"), SOON, || inspect(&target).is_ok());
    }
    disk::umount(&dir.join("v"));
}

#[test]
fn the_page_about_it_names_every_flag() {
    let output = Command::new(launch::binary(None)).args(["wipe", "--help"]).output().expect("the program can be run");
    let help = said(&output);
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/wipe.md")).expect("there is one");
    let is_flag = |word: &&str| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic));
    let flags: Vec<_> = help.split_whitespace().filter(is_flag).collect();
    assert!(flags.len() > 8, "{help}");
    for flag in flags.iter().filter(|flag| **flag != "--help") {
        assert!(page.contains(&format!("`{flag}")), "docs/wipe.md does not name {flag}");
    }
}

#[tokio::test]
async fn a_wipe_by_hand_and_the_agents_never_meet() {
    let node = TestNode::new(shared(), "meet").await;
    let class = node.class("fast", "Delete").await;
    let disks = node.discovery_dir("disks");
    let disk = LoopDisk::new(node.dir(), 256 << 20);
    let link = disk.link(&disks, "disk");
    let agent = start(&node, &[(&class, &disks, "volumeMode: Block\nwipe: {bandwidth: 1Mi}")]);
    let pv = node.wait_pv(&link, |pv| phase(pv) == "Available", SOON).await;
    let claim = node.bind(&pv.name_any()).await;
    node.release(&claim).await;
    agent.wait_log("Wipe begins", SOON).await;
    let state = node.state_dir();
    let entry = ledger(&state).entries().next().expect("the volume is known").clone();
    assert!(matches!(entry.state, State::Wiping { .. }), "{:?}", entry.state);
    let (beside, _) = StateDir::open_beside_agent(&state).expect("it can be opened");
    assert!(matches!(beside.lock_entry(entry.id).await, Err(StateDirError::EntryBusy(_))));
    let state = state.to_str().expect("it is text");
    let digest = entry.identity.digest();
    refuses(&link, &["--yes", "--state-dir", state, "--force-identity", &digest], "refused, nothing was touched");
}
