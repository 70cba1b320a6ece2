//! `mooring check-config`, the real program: what it says of directories and manifests, and
//! what it ends with; and what the agent says of the same.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::common::{SOON, start_with, wait_ready};
use crate::harness::node::TestNode;
use crate::harness::{ConfigDir, Scratch, disk, is_root, launch, require_own_namespace, shared};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = launch::command_line(&launch::binary(None));
    command.arg("check-config").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be run");
    let mut stdin = child.stdin.take().expect("its input was asked for");
    // One that does not read its input may have closed it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// What it ends with, and the lines that it says.
fn check(arguments: &[&str], input: &str) -> (i32, Vec<String>) {
    let output = run(arguments, input);
    let code = output.status.code().unwrap_or_else(|| panic!("it was ended by a signal: {output:?}"));
    let said = String::from_utf8(output.stdout).expect("it says text");
    (code, said.lines().map(str::to_owned).collect())
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

fn starts(lines: &[String], expected: &[&str]) {
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\ndoes not begin with\n{expected}");
    }
}

const GOOD: &str = "fast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n  namePattern: nvme*\nraw:\n  hostDir: /mnt/raw\n  mountDir: /mnt/raw\n  volumeMode: Block\n  blockCleanerCommand: [/scripts/shred.sh, 2]\n";

#[test]
fn a_good_directory_is_told_in_one_line() {
    let scratch = Scratch::new("check-good");
    let dir = ConfigDir::new(scratch.path().join("config"), &[("storageClassMap", GOOD), ("useNodeNameOnly", "yes")]);
    let (code, lines) = check(&["--strict", path(dir.path())], "");
    let does = "good: 2 classes: fast (Filesystem from /mnt/fast/nvme*, devices wiped by auto), raw (Block from /mnt/raw, \
                devices wiped by overwrite x2)";
    assert_eq!((code, lines), (0, vec![format!("{}: {does}", path(dir.path()))]));
}

#[test]
fn a_bad_directorys_problems_have_their_files() {
    let scratch = Scratch::new("check-bad");
    let map = "fast:\n  hostDir: /mnt/fast\n  mountDir: /mnt/fast\n  volumeMode: block\n  fstype: xfs\n";
    let dir = ConfigDir::new(scratch.path().join("config"), &[("storageClassMap", map), ("setPVOwnerRefs", "true")]);
    let at = path(dir.path());
    let (code, lines) = check(&[at], "");
    let expected = [
        format!("{at}/setPVOwnerRefs: warning: setPVOwnerRefs: there is no such key, and it is ignored (did you mean"),
        format!("{at}/storageClassMap:4:15: error: storageClassMap.fast.volumeMode: \"block\" is unknown; expected"),
        format!("{at}/storageClassMap:5:3: warning: storageClassMap.fast.fstype: the key is spelled fsType"),
        format!("{at}: not usable: 1 error, 2 warnings"),
    ];
    starts(&lines, &expected.each_ref().map(String::as_str));
    assert_eq!(code, 1);
    // Without the error it is usable, but not for who is strict.
    dir.rewrite(&[("storageClassMap", &map.replace("block", "Block"))]);
    let (code, lines) = check(&[at], "");
    assert_eq!(code, 0);
    assert!(lines[1].contains(": usable, with 1 warning: 1 class: fast (Block from /mnt/fast"), "{lines:?}");
    assert_eq!(check(&[at, "--strict"], "").0, 1);
    // One key's file alone will do, and one that is no text is named.
    assert_eq!(check(&[&format!("{at}/storageClassMap")], "").0, 0);
    fs::write(dir.path().join("labelsForPV"), b"\xff").expect("a file can be written");
    let (code, lines) = check(&[at], "");
    assert!(code == 1 && lines[0].starts_with(&format!("{at}/labelsForPV: error: it can't be read")), "{lines:?}");
}

const MANIFEST: &str = r#"# A comment.
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {storageClass: local}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mooring}
data:
  storageClassMap: |-

      fast:
        hostDir: /mnt/fast
        mountDir: fast
  useNodeNameOnly: "maybe"
  withdrawAfter:   soon
  minResyncPeriod: '5'
  setPVOwnerRef: true
  maxParallelWipes: |
    # how many
    none
  labelsForPV: >-
    a:
    [b]
  dirty: "publish"
"#;

#[test]
fn a_manifests_problems_have_their_places_in_the_manifest() {
    let expected = [
        "F:15:19: error: storageClassMap.fast.mountDir: \"fast\" is no absolute path",
        "F:16:21: error: useNodeNameOnly: \"maybe\" can't be used; expected true or false",
        "F:17:20: error: withdrawAfter: \"soon\" is no duration",
        "F:18:21: error: minResyncPeriod: \"5\" lacks a unit",
        "F:19:18: error: setPVOwnerRef: the API server takes text only; quote it",
        "F:22:5: error: maxParallelWipes: \"none\" can't be used; expected a whole number",
        // Of a folded text only the beginning is known.
        "F:24:5: error: labelsForPV.a: a list can't be used; expected text",
        "F:26:11: warning: dirty: there is no such key, and it is ignored",
        "F: not usable: 7 errors, 1 warning",
    ];
    let scratch = Scratch::new("check-manifest");
    let file = scratch.path().join("configmap.yaml");
    fs::write(&file, MANIFEST).expect("a file can be written");
    let in_file = |name: &str| expected.map(|line| line.replacen('F', name, 1));
    let (code, lines) = check(&[path(&file)], "");
    starts(&lines, &in_file(path(&file)).each_ref().map(String::as_str));
    assert_eq!(code, 1);
    let (code, lines) = check(&["-"], MANIFEST);
    starts(&lines, &in_file("<stdin>").each_ref().map(String::as_str));
    assert_eq!(code, 1);
}

#[test]
fn manifests_come_in_lists_and_json_too() {
    let map = serde_json::json!({ "kind": "ConfigMap", "data": { "storageClassMap": GOOD } });
    let list = serde_json::json!({ "kind": "List", "items": [{ "kind": "Service" }, map] });
    for manifest in [map.to_string(), list.to_string(), serde_json::to_string_pretty(&list).expect("it is JSON")] {
        let (code, lines) = check(&["-", "--strict"], &manifest);
        assert!(
            code == 0 && lines.len() == 1 && lines[0].starts_with("<stdin>: good: 2 classes"),
            "{manifest}: {lines:?}"
        );
    }
}

#[test]
fn what_holds_no_configmap_is_said() {
    for (manifest, problem) in [
        ("kind: Service\n", "error: there is no ConfigMap in it"),
        ("just words\n", "error: there is no ConfigMap in it"),
        ("", "error: there is no ConfigMap in it"),
        (
            "kind: ConfigMap\ndata: {a: b}\n---\nkind: ConfigMap\n",
            "error: none of its ConfigMaps has the key storageClassMap",
        ),
        ("kind: ConfigMap\n", "error: the key storageClassMap is missing or empty"),
        ("kind: ConfigMap\ndata: [\n", "error: "),
    ] {
        let (code, lines) = check(&["-"], manifest);
        assert!(code == 1 && lines.iter().any(|line| line.contains(problem)), "{manifest:?}: {code} {lines:?}");
    }
    for arguments in [&["/no/such/file"] as &[&str], &[], &["--no-such-flag", "/"], &["a", "b"]] {
        let output = run(arguments, "");
        assert!(output.status.code() == Some(2) && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_disk_that_is_mounted_at_the_discovery_directory_is_found() {
    require_own_namespace();
    if !is_root() {
        return;
    }
    let scratch = Scratch::new("check-dirs");
    let disks = scratch.path().join("disks");
    let map = format!("a: {{hostDir: {0}, mountDir: {0}}}", path(&disks));
    let dir = ConfigDir::new(scratch.path().join("config"), &[("storageClassMap", &map)]);
    let look = || check(&[path(dir.path()), "--directories"], "");
    let missing = look();
    assert!(
        missing.0 == 0 && missing.1[0].contains("warning: class a can't look into its mountDir here"),
        "{missing:?}"
    );
    fs::create_dir(&disks).expect("a directory can be made");
    assert_eq!(look().1.len(), 1, "an empty directory is nothing odd");
    disk::tmpfs(&disks, 1 << 20);
    let (code, lines) = look();
    let odd =
        format!("{}: warning: class a has no volume here, and the directory is itself a mount point", path(&disks));
    assert!(code == 0 && lines[0].starts_with(&odd), "{lines:?}");
    // Nothing of it is looked at without the flag.
    assert_eq!(check(&[path(dir.path()), "--strict"], "").0, 0);
    disk::tmpfs(&disks.join("disk1"), 1 << 20);
    assert_eq!(look().1.len(), 1, "a volume is mounted below it");
}

#[tokio::test]
async fn the_agent_warns_of_what_may_not_be_meant_and_runs() {
    let node = TestNode::new(shared(), "config-odd").await;
    let disks = node.dir().join("disks");
    fs::create_dir(&disks).expect("a directory can be made");
    let class = format!("class-{}", node.name());
    let agent = start_with(&node, &[(&class, &disks, "fstype: xfs")], &[("nodeLabelForPV", "[zone]")]);
    wait_ready(&agent).await;
    for words in [
        "nodeLabelForPV: there is no such key, and it is ignored (did you mean nodeLabelsForPV?)",
        "the key is spelled fsType",
    ] {
        agent.wait_log(words, SOON).await;
        let said = agent.logs().iter().filter(|line| line.contains(words)).count();
        assert_eq!(said, 1, "{words}");
    }
}
