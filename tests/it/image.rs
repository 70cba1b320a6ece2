//! The container image: what `deploy/image/build` makes of the program, byte by byte, and
//! that the program runs with nothing beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::docs::text;
use crate::harness::{Scratch, launch};

const NAME: &str = "registry.example/storage/mooring:1.2.3";
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
/// The most that the image may take, as it is stored.
const MOST: u64 = 11_000_000;

/// Runs it, and what it says on its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it says text")
}

/// The program; the debug build without its symbols, which would take a minute to pack.
fn program(scratch: &Scratch) -> PathBuf {
    let binary = launch::binary(None);
    if is_release(&binary) {
        return binary;
    }
    let stripped = scratch.path().join("stripped");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(binary));
    stripped
}

fn is_release(binary: &Path) -> bool {
    binary.components().any(|part| part.as_os_str() == "release")
}

/// Has the image of the binaries written to that file.
fn build(file: &Path, umask: &str, zone: &str, binaries: &[&Path]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image/build");
    let mut command = Command::new("sh");
    command.args(["-c", "umask \"$1\"; shift; exec \"$@\"", "sh", umask]).arg(script);
    command.args([NAME, REVISION]).arg(file).args(binaries);
    // As far from the usual as a machine may be.
    command.env("SOURCE_DATE_EPOCH", "1700000000").env("TZ", zone).env("LC_ALL", "C.UTF-8");
    run(&mut command);
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image layout, unpacked.
struct Layout(PathBuf);

impl Layout {
    fn unpack(tar: &Path, to: PathBuf) -> Self {
        fs::create_dir(&to).expect("it is new");
        run(Command::new("tar").arg("--extract").arg("--file").arg(tar).arg("--directory").arg(&to));
        Self(to)
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.join(path)).expect(path)).expect("it is JSON")
    }

    /// The blob that a descriptor refers to, if it is the one that it describes.
    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        let path = self.0.join("blobs/sha256").join(digest.expect("it has one"));
        let bytes = fs::read(&path).expect("the blob is there");
        assert_eq!((Some(&*sha256(&bytes)), descriptor["size"].as_u64()), (digest, Some(bytes.len() as u64)));
        path
    }

    fn document(&self, descriptor: &Value, kind: &str) -> Value {
        assert_eq!(descriptor["mediaType"], format!("application/vnd.oci.image.{kind}+json"));
        serde_json::from_slice(&fs::read(self.blob(descriptor)).expect("it was there")).expect("it is JSON")
    }

    /// The index by which it is known.
    fn index(&self) -> Value {
        assert_eq!(self.json("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
        let entry = self.json("index.json");
        assert_eq!(entry["manifests"].as_array().map(Vec::len), Some(1), "{entry}");
        let names = json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "1.2.3"});
        assert_eq!(entry["manifests"][0]["annotations"], names);
        self.document(&entry["manifests"][0], "index.v1")
    }

    /// Config and layer of an image of the index.
    fn image(&self, descriptor: &Value) -> (Value, PathBuf) {
        let manifest = self.document(descriptor, "manifest.v1");
        assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1), "{manifest}");
        let config = self.document(&manifest["config"], "config.v1");
        for key in ["architecture", "os"] {
            assert_eq!(config[key], descriptor["platform"][key]);
        }
        assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
        (config, self.blob(&manifest["layers"][0]))
    }
}

#[test]
fn an_image_is_the_same_wherever_and_whenever_it_is_made() {
    let scratch = Scratch::new("image-twice");
    let at = |path: &str| scratch.path().join(path);
    let binary = program(&scratch);
    // Another file, mode and time of the same program.
    fs::create_dir(at("elsewhere")).expect("it is new");
    let copy = at("elsewhere/copy");
    fs::copy(&binary, &copy).expect("it can be copied");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).expect("it is ours");
    build(&at("one.tar"), "022", "UTC0", &[&binary]);
    build(&at("elsewhere/two.tar"), "077", "XXX-9", &[&copy]);
    let [one, two] = ["one.tar", "elsewhere/two.tar"].map(|tar| fs::read(at(tar)).expect("it was written"));
    assert!(one == two, "{} {}", sha256(&one), sha256(&two));
}

#[test]
fn an_image_holds_the_static_program_and_nothing_that_others_could_use() {
    let scratch = Scratch::new("image-content");
    let tar = scratch.path().join("image.tar");
    let binary = program(&scratch);
    build(&tar, "022", "UTC0", &[&binary]);
    let layout = Layout::unpack(&tar, scratch.path().join("layout"));
    let index = layout.index();
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1), "{index}");
    let (config, layer) = layout.image(&index["manifests"][0]);
    let blobs = fs::read_dir(layout.0.join("blobs/sha256")).expect("it can be listed");
    assert_eq!(blobs.count(), 4, "an index, a manifest, a config and a layer");

    let unzipped = Command::new("gzip").arg("-dc").arg(&layer).output().expect("gzip can be run");
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&unzipped.stdout))]));
    let list = run(Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--utc", "--file"]).arg(&layer));
    let listed: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let entries: Vec<[&str; 4]> = listed.iter().map(|words| [words[0], words[1], words[3], words[5]]).collect();
    let expected = [("drwxr-xr-x", "etc/"), ("-rw-r--r--", "etc/passwd"), ("-rwxr-xr-x", "mooring")];
    assert_eq!(entries, expected.map(|(mode, path)| [mode, "0/0", "2023-11-14", path]));

    let root = Layout::unpack(&layer, scratch.path().join("root")).0;
    let program = fs::read(root.join("mooring")).expect("it is in the layer");
    assert!(program == fs::read(&binary).expect("it is there"), "it is another program");
    let (kind, segments) = elf(&program);
    // ET_DYN without PT_INTERP: loads anywhere, and needs nothing to load it.
    assert!(kind == 3 && !segments.contains(&3), "type {kind}, segments {segments:?}");
    if is_release(&binary) {
        let size = fs::metadata(&tar).expect("it was written").len();
        assert!(size <= MOST, "{size} bytes");
    }
}

/// An ELF file's type, and the types of its segments.
fn elf(file: &[u8]) -> (u16, BTreeSet<u32>) {
    assert_eq!(file[..6], *b"\x7fELF\x02\x01", "64 bits, little-endian");
    let short = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let (start, size, count) = (word(32) as usize, short(54).into(), short(56).into());
    (short(16), (start..).step_by(size).take(count).map(word).collect())
}

#[test]
fn the_program_runs_in_a_root_that_holds_only_the_image() {
    if !crate::harness::is_root() {
        eprintln!("Left out: chroot takes root");
        return;
    }
    let scratch = Scratch::new("image-root");
    let tar = scratch.path().join("image.tar");
    build(&tar, "022", "UTC0", &[&program(&scratch)]);
    let layout = Layout::unpack(&tar, scratch.path().join("layout"));
    let (config, layer) = layout.image(&layout.index()["manifests"][0]);
    let root = Layout::unpack(&layer, scratch.path().join("root")).0;
    fs::write(root.join("configmap.yaml"), text("config/configmap.yaml")).expect("it can be written");
    let entrypoint = config["config"]["Entrypoint"][0].as_str().expect("it has one");
    let inside = |arguments: &[&str]| {
        let mut command = launch::command_line(Path::new("chroot"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        run(command.arg(&root).arg(entrypoint).args(arguments))
    };
    assert_eq!(inside(&["--version"]), format!("mooring {}\n", env!("CARGO_PKG_VERSION")));
    let said = inside(&["check-config", "/configmap.yaml"]);
    assert!(said.starts_with("/configmap.yaml: good: "), "{said}");
}

#[test]
fn an_image_of_two_platforms_names_each_by_its_program() {
    let scratch = Scratch::new("image-platforms");
    let at = |path: &str| scratch.path().join(path);
    for (name, machine) in [("amd64", 62), ("arm64", 183), ("riscv64", 243)] {
        let mut header = [0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = machine;
        fs::write(at(name), header).expect("it can be written");
    }
    build(&at("image.tar"), "022", "UTC0", &[&at("amd64"), &at("arm64")]);
    let layout = Layout::unpack(&at("image.tar"), at("layout"));
    let index = layout.index();
    let of = |image: &Value| {
        layout.image(image);
        image["platform"].clone()
    };
    let platforms: Vec<Value> = index["manifests"].as_array().expect("it has images").iter().map(of).collect();
    assert_eq!(platforms, ["amd64", "arm64"].map(|name| json!({"architecture": name, "os": "linux"})));

    let mut unknown = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image/build"));
    let output = unknown.args([NAME, REVISION]).arg(at("none.tar")).arg(at("riscv64")).output().expect("it runs");
    assert!(!output.status.success() && !at("none.tar").exists(), "{output:?}");
}

/// The instructions of a Containerfile's last stage, and the image that its first is from.
fn instructions(containerfile: &str) -> (String, Vec<(String, String)>) {
    let joined = containerfile.replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<(String, String)> = lines
        .map(|line| line.split_once(' ').expect("an instruction has arguments"))
        .map(|(word, rest)| (word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let last = all.iter().rposition(|(word, _)| word == "FROM").expect("it has stages");
    assert_eq!(all[last].1, "scratch");
    (all[0].1.clone(), all[last + 1..].to_vec())
}

#[test]
fn the_containerfile_makes_the_same_image() {
    let scratch = Scratch::new("image-containerfile");
    let tar = scratch.path().join("image.tar");
    build(&tar, "022", "UTC0", &[&program(&scratch)]);
    let layout = Layout::unpack(&tar, scratch.path().join("layout"));
    let (config, layer) = layout.image(&layout.index()["manifests"][0]);

    let (from, stage) = instructions(&text("deploy/image/Containerfile"));
    let mut expected = json!({});
    let mut files = BTreeMap::new();
    for (word, rest) in stage {
        match &*word {
            "ARG" => {}
            "USER" => expected["User"] = rest.into(),
            "ENV" => expected["Env"] = json!([rest]),
            "ENTRYPOINT" => expected["Entrypoint"] = serde_json::from_str(&rest).expect("it is JSON"),
            "LABEL" => {
                for pair in rest.split_terminator('"').collect::<Vec<_>>().chunks(2) {
                    let [key, value] = pair else { panic!("{rest}") };
                    let value = value.replace("$REVISION", REVISION).replace("$CREATED", "2023-11-14T22:13:20Z");
                    expected["Labels"][key.trim().trim_end_matches('=')] = value.into();
                }
            }
            "COPY" => {
                let words: Vec<&str> = rest.split(' ').collect();
                let mode = words.iter().find_map(|word| word.strip_prefix("--chmod=")).expect("it has a mode");
                let [.., source, path] = words[..] else { panic!("{rest}") };
                files.insert(path.trim_start_matches('/').to_owned(), (mode.to_owned(), source.to_owned()));
            }
            _ => panic!("{word} is not in the image that `make image` writes"),
        }
    }
    assert_eq!(config["config"], expected);
    assert_eq!(expected["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));

    let root = Layout::unpack(&layer, scratch.path().join("root")).0;
    let mode = |path: &str| {
        let mode = fs::metadata(root.join(path)).expect(path).permissions().mode() & 0o7777;
        format!("{mode:o}")
    };
    let named: Vec<(&str, String)> = files.iter().map(|(path, (mode, _))| (&**path, mode.clone())).collect();
    assert_eq!(named, ["etc/passwd", "mooring"].map(|path| (path, mode(path))));
    assert_eq!(text(&files["etc/passwd"].1), fs::read_to_string(root.join("etc/passwd")).expect("it is there"));
    // By the compiler that everything else is built by.
    let toolchain = text("rust-toolchain.toml");
    let channel = toolchain.split('"').nth(1).expect("it names one");
    assert_eq!(from, format!("docker.io/library/rust:{channel}-bookworm AS build"));
}

#[test]
fn make_names_the_image_by_the_version_unless_told_otherwise() {
    let would = |arguments: &[&str]| {
        let mut command = Command::new("make");
        // Not what `make test` was told.
        command.env_remove("MAKEFLAGS").args(["--dry-run", "--no-print-directory", "image"]).args(arguments);
        run(&mut command)
    };
    let version = env!("CARGO_PKG_VERSION");
    assert!(would(&[]).contains(&format!(" 'docker.io/library/mooring:{version}' ")), "{}", would(&[]));
    assert!(would(&["IMAGE=registry.example/m:1"]).contains(" 'registry.example/m:1' "));
}

#[test]
fn manifests_and_pages_name_the_image_of_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (page, times) in [
        ("deploy/manifests/daemonset.yaml", 1),
        ("deploy/manifests/components/jobs/kustomization.yaml", 1),
        ("deploy/manifests/shadow.yaml", 1),
        ("docs/migration.md", 1),
        ("docs/image.md", 1),
    ] {
        let text = text(page);
        let tags = text.split("mooring:").skip(1).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let tags: Vec<&str> =
            tags.filter_map(|rest| rest.split(['"', ' ', '\n']).next()).filter(|tag| tag.contains('.')).collect();
        assert_eq!(tags, vec![version; times], "{page}");
    }
}
