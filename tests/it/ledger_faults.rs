//! The ledger's directory removed, emptied, full, read-only or damaged: nothing wrong is
//! offered, nothing is wiped without a record, and the agent goes on when it is mended.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::ResourceExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::{SOON, wait_saying, wait_verdict};
use crate::harness::disk::{self, LoopDisk};
use crate::harness::eventually;
use crate::harness::volumes::{path_of, phase};
use crate::tenancy::{SECRET, Scene, Store};

const CANT: &str = "The ledger can't be written";

type Used = Vec<(PersistentVolume, PersistentVolumeClaim)>;

/// The files of the ledger's entries.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).expect("the state directory can be read").flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|end| end == "json")).collect()
}

/// A small filesystem in memory that only the agent's user may write to.
fn private_tmpfs(path: &Path) {
    disk::tmpfs(path, 1 << 20);
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("its mode can be set");
}

/// Removes the directory in one step, whatever the agent is writing into it.
fn remove(dir: &Path) {
    let away = dir.with_extension("removed");
    fs::rename(dir, &away).expect("it can be moved");
    remove_busy(&away);
}

fn remove_busy(dir: &Path) {
    // Its user may still make a file in it.
    eventually("the directory removed", SOON, || fs::remove_dir_all(dir).is_ok());
}

async fn wiped_and_offered(scene: &Scene, used: &Used) {
    for (store, (before, _)) in scene.stores.iter().zip(used) {
        store.wait_anew(&scene.node, "Available", before).await;
        assert!(store.is_blank());
    }
}

/// Each claim and its PV are gone before the agent knows.
async fn delete_all(scene: &Scene, used: &Used) {
    for (pv, claim) in used {
        scene.node.release(claim).await;
        scene.node.force_delete_pv(pv).await;
        scene.node.wait_gone(pv, SOON).await;
    }
}

async fn all_quarantined(scene: &Scene, used: &Used) {
    let steps = async {
        for (store, (before, _)) in scene.stores.iter().zip(used) {
            let pv = store.wait_anew(&scene.node, "Released", before).await;
            let policy = pv.spec.and_then(|spec| spec.persistent_volume_reclaim_policy);
            assert_eq!(policy.as_deref(), Some("Retain"));
            assert!(store.has_secret());
        }
    };
    scene.never_offered(steps).await;
}

#[tokio::test]
async fn a_state_directory_that_is_removed_is_made_and_filled_again() {
    let mut scene = Scene::new("removed", "Delete").await;
    scene.begin();
    scene.wait_ledger("offered").await;
    remove(&scene.node.state_dir());
    let used = scene.use_all().await;
    let line = scene.agent().wait_log(CANT, SOON).await;
    assert!(line.contains(&scene.node.state_dir().display().to_string()), "{line}");
    scene.node.wait_event(scene.node.name(), "LedgerNotWritable", "was removed", SOON).await;
    scene.agent().wait_log("The ledger can be written again", SOON).await;
    scene.wait_ledger("used").await;
    // It is as good as the first one.
    scene.kill().await;
    delete_all(&scene, &used).await;
    scene.begin();
    all_quarantined(&scene, &used).await;
    scene.end().await;
}

/// A directory that can't be written, in three ways.
enum Fault {
    /// A file is in its place.
    File,
    /// Its filesystem is full.
    Full,
    /// Its filesystem was made read-only by the kernel, after an error.
    ReadOnly { failed: LoopDisk },
}

impl Fault {
    /// Before the agent starts: the filesystem that the directory is to be on.
    fn prepare(&self, scene: &Scene) {
        let (at, place) = (scene.node.state_dir(), scene.node.root().join("state"));
        match self {
            Self::File => return,
            Self::Full => private_tmpfs(&place),
            Self::ReadOnly { failed } => {
                failed.format_ext4();
                disk::run(Command::new("tune2fs").args(["-e", "remount-ro"]).arg(&failed.device));
                failed.mount_ext4(&place);
            }
        }
        // The agent sees what is mounted below the node's root later.
        std::os::unix::fs::symlink(place, at).expect("a link can be made");
    }

    fn strike(&self, scene: &Scene) {
        let at = scene.node.state_dir();
        match self {
            Self::File => {
                // In one step, or the agent might make the directory again.
                let away = at.with_extension("removed");
                File::create(&away).expect("a file can be made");
                renameat_with(CWD, &away, CWD, &at, RenameFlags::EXCHANGE).expect("they can be exchanged");
                remove_busy(&away);
            }
            Self::Full => {
                let mut filler = File::create(at.join("filler")).expect("a file can be made");
                while filler.write_all(&[1; 512]).is_ok() {}
            }
            Self::ReadOnly { failed } => {
                let name = failed.device.file_name().expect("a device has a name").to_string_lossy();
                let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
                fs::write(trigger, "by a test").expect("ext4 can be told of an error");
            }
        }
    }

    fn mend(&self, scene: &Scene) {
        let at = scene.node.state_dir();
        match self {
            Self::File => fs::remove_file(&at).expect("a file can be removed"),
            Self::Full => fs::remove_file(at.join("filler")).expect("a file can be removed"),
            // The admin mounts another disk there, and it is empty.
            Self::ReadOnly { .. } => {
                let place = scene.node.root().join("state");
                umount2(&place, MntFlags::MNT_DETACH).expect("it can be detached");
                private_tmpfs(&place);
            }
        }
    }
}

/// Whatever is wrong with the directory, the agent does nothing that it could not know of
/// later, and makes up for it when the directory is mended.
async fn nothing_happens_without_a_record(tag: &str, fault: impl Fn(&Scene) -> Fault) {
    let mut scene = Scene::new(tag, "Delete").await;
    let fault = fault(&scene);
    fault.prepare(&scene);
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    fault.strike(&scene);
    let later = scene.stores[0].dir.join("later");
    disk::tmpfs(&later, 1 << 20);
    scene.agent().wait_log(CANT, SOON).await;
    let place = scene.node.state_dir().display().to_string();
    scene.node.wait_event(scene.node.name(), "LedgerNotWritable", &place, SOON).await;
    scene.agent().wait_metric("mooring_ledger_not_writable", |value| value > 0.5, SOON).await;
    wait_saying(scene.agent(), &scene.stores[0].class, "later", "Pending", "not before the ledger can be written")
        .await;
    let steps = async {
        for (store, (_, claim)) in scene.stores.iter().zip(&used) {
            scene.node.release(claim).await;
            let words = "not wiped before the ledger can be written";
            wait_saying(scene.agent(), &store.class, "vol", "Pending", words).await;
            assert!(store.has_secret());
            assert!(!store.disk.read_all().starts_with(b"mooring"), "it is not even marked");
        }
        let offered = |pv: &PersistentVolume| Path::new(path_of(pv)) == later;
        assert!(!scene.node.pvs().await.iter().any(offered), "it is not offered");
        let mark = scene.agent().mark();
        fault.mend(&scene);
        scene.agent().wait_log_after(mark, "The ledger can be written again", SOON).await;
        wiped_and_offered(&scene, &used).await;
        scene.node.wait_pv(&later, |pv| phase(pv) == "Available", SOON).await;
    };
    scene.never_offered(steps).await;
    scene.wait_ledger("offered").await;
    scene.agent().wait_metric("mooring_ledger_not_writable", |value| value < 0.5, SOON).await;
    scene.end().await;
}

#[tokio::test]
async fn with_a_file_in_the_place_of_the_directory_nothing_is_offered_or_wiped() {
    nothing_happens_without_a_record("file", |_| Fault::File).await;
}

#[tokio::test]
async fn on_a_full_filesystem_nothing_is_offered_or_wiped() {
    nothing_happens_without_a_record("full", |_| Fault::Full).await;
}

#[tokio::test]
async fn on_a_filesystem_that_failed_nothing_is_offered_or_wiped() {
    let fault = |scene: &Scene| Fault::ReadOnly { failed: LoopDisk::new(scene.node.dir(), 8 << 20) };
    nothing_happens_without_a_record("readonly", fault).await;
}

/// The directory fails before the agent notices: with the very record that a wipe begins.
async fn not_wiped_without_its_record(tag: &str, other: usize) {
    let mut scene = Scene::new(tag, "Delete").await;
    scene.stores.remove(other);
    // On a full filesystem the entry can still be locked: its record is what fails.
    Fault::Full.prepare(&scene);
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    Fault::Full.strike(&scene);
    let steps = async {
        let store = &scene.stores[0];
        scene.node.release(&used[0].1).await;
        let place = scene.node.state_dir().display().to_string();
        scene.node.wait_event(scene.node.name(), "LedgerNotWritable", &place, SOON).await;
        wait_verdict(scene.agent(), &store.class, "vol", "Pending").await;
        // The fence is up: no claim can get at it.
        let is_fenced = |pv: &PersistentVolume| pv.metadata.deletion_timestamp.is_some();
        scene.node.wait_pv(&store.path(), is_fenced, SOON).await;
        assert!(store.has_secret());
        assert!(!store.disk.read_all().starts_with(b"mooring"), "it is not even marked");
        Fault::Full.mend(&scene);
        wiped_and_offered(&scene, &used).await;
    };
    scene.never_offered(steps).await;
    scene.end().await;
}

#[tokio::test]
async fn a_directory_is_not_emptied_when_the_record_of_that_fails() {
    not_wiped_without_its_record("firstfs", 1).await;
}

#[tokio::test]
async fn a_device_is_not_overwritten_when_the_record_of_that_fails() {
    not_wiped_without_its_record("firstraw", 0).await;
}

#[tokio::test]
async fn a_wipe_that_cant_note_how_far_it_is_stops_and_goes_on_later() {
    let mut scene = Scene::new("midway", "Delete").await;
    scene.stores.remove(0);
    scene.fields = "wipe: { method: zero, bandwidth: 1Mi }";
    scene.begin();
    let used = scene.use_all().await;
    scene.node.release(&used[0].1).await;
    scene.wait_ledger_text("\"cursor\":").await;
    Fault::File.strike(&scene);
    scene.node.wait_event(&used[0].0.name_any(), "VolumeFailedDelete", "state directory", SOON).await;
    assert!(scene.stores[0].disk.backing_contains(SECRET), "it was in its middle");
    scene.agent().wait_log(CANT, SOON).await;
    let mark = scene.agent().mark();
    scene.fields = "wipe: { method: zero }";
    scene.reload();
    scene.agent().wait_log_after(mark, "Config is changed", SOON).await;
    Fault::File.mend(&scene);
    scene.agent().wait_log_after(mark, "The ledger can be written again", SOON).await;
    let line = scene.agent().wait_log_after(mark, "Wipe begins", SOON).await;
    assert!(line.contains("\"resumed\":true"), "{line}");
    wiped_and_offered(&scene, &used).await;
    scene.end().await;
}

#[tokio::test]
async fn a_directory_emptied_between_two_runs_is_filled_again_from_the_pvs() {
    let mut scene = Scene::new("emptied", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    for round in ["used", "wiped"] {
        scene.kill().await;
        fs::remove_dir_all(scene.node.state_dir()).expect("it can be removed");
        if round == "wiped" {
            for (_, claim) in &used {
                scene.node.release(claim).await;
            }
        }
        scene.begin();
        if round == "used" {
            scene.wait_ledger("used").await;
        } else {
            scene.never_offered(wiped_and_offered(&scene, &used)).await;
        }
    }
    // The PVs' story is the ledger's again, also when they are lost next.
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    fs::remove_dir_all(scene.node.state_dir()).expect("it can be removed");
    scene.begin();
    scene.wait_ledger("used").await;
    scene.kill().await;
    delete_all(&scene, &used).await;
    scene.begin();
    all_quarantined(&scene, &used).await;
    scene.end().await;
}

#[tokio::test]
async fn what_a_damaged_entry_may_be_about_is_not_offered() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("empty", |file| drop(File::create(file).expect("it can be truncated"))),
        ("half", |file| {
            let file = fs::OpenOptions::new().write(true).open(file).expect("it can be opened");
            file.set_len(100).expect("it can be truncated");
        }),
        ("garbage", |file| fs::write(file, [0xff; 4096]).expect("it can be written")),
        ("misnamed", |file| {
            fs::rename(file, file.with_file_name("0123456789abcdef0123456789abcdef.json")).expect("it can be moved");
        }),
    ];
    for (tag, damage) in damages {
        let mut scene = Scene::new(tag, "Delete").await;
        scene.begin();
        let used = scene.use_all().await;
        scene.wait_ledger("used").await;
        scene.kill().await;
        delete_all(&scene, &used).await;
        entries(&scene.node.state_dir()).iter().for_each(|file| damage(file));
        let before = entries(&scene.node.state_dir());
        scene.begin();
        let line = scene.agent().wait_log("A file of the ledger can't be read", SOON).await;
        assert!(before.iter().any(|file| line.contains(&*file.file_name().expect("it has one").to_string_lossy())));
        all_quarantined(&scene, &used).await;
        let message = scene.node.wait_event(scene.node.name(), "Dirty", "can't be read", SOON).await;
        assert!(message.contains("ledger"), "{message}");
        let now = entries(&scene.node.state_dir());
        assert!(before.iter().all(|file| now.contains(file)), "what can't be read is left for an admin");
        scene.end().await;
    }
}

#[tokio::test]
async fn an_entry_by_a_newer_agent_is_waited_for() {
    let mut scene = Scene::new("newer", "Delete").await;
    scene.begin();
    let used = scene.use_all().await;
    scene.wait_ledger("used").await;
    scene.kill().await;
    let file = entries(&scene.node.state_dir()).remove(0);
    let text = fs::read_to_string(&file).expect("it can be read");
    fs::write(&file, text.replacen("\"version\":1", "\"version\":99", 1)).expect("it can be written");
    for (_, claim) in &used {
        scene.node.release(claim).await;
    }
    scene.begin();
    let line = scene.agent().wait_log("made by a newer mooring", SOON).await;
    assert!(line.contains(&*file.file_name().expect("it has a name").to_string_lossy()), "{line}");
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let (status, body) = scene.agent().get("/ready").await;
        assert!(status != 200 && std::time::Instant::now() < deadline, "{status}: {body}");
        if body.contains("newer mooring") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(scene.agent().get("/healthz").await.0, 200, "to restart it would not help");
    for store in &scene.stores {
        store.wait(&scene.node, "Released").await;
        assert!(store.has_secret());
    }
    fs::write(&file, text).expect("it can be written");
    scene.never_offered(wiped_and_offered(&scene, &used)).await;
    scene.end().await;
}

#[tokio::test]
async fn a_state_directory_that_is_read_only_at_the_start_is_waited_for() {
    let mut scene = Scene::new("rostart", "Delete").await;
    // Of the two mounts, only the filesystem below them is made read-only: that is seen in
    // the agent's namespace, too.
    let (below, at) = (scene.node.dir().join("below"), scene.node.state_dir());
    private_tmpfs(&below);
    disk::bind_mount(&below, &at);
    let remount = |flags: MsFlags| {
        let done = mount(None::<&str>, &below, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>);
        done.expect("it can be remounted");
    };
    remount(MsFlags::MS_RDONLY);
    scene.begin();
    let line = scene.agent().wait_log("The state directory can't be used; waiting for it", SOON).await;
    assert!(line.contains("Read-only"), "{line}");
    assert_ne!(scene.agent().get("/ready").await.0, 200);
    assert_eq!(scene.node.pvs().await.len(), 0);
    remount(MsFlags::empty());
    for store in &scene.stores {
        store.wait(&scene.node, "Available").await;
    }
    scene.wait_ledger("offered").await;
    scene.kill().await;
    disk::umount(&at);
    disk::umount(&below);
    assert!(scene.stores.iter().all(Store::is_blank));
    scene.end().await;
}
