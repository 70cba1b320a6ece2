//! Images without a registry: one layer of a directory, as an OCI layout in a tar file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::disk::run;
use super::launch;
use super::scratch::Scratch;

/// The image of test pods: busybox, with the name of each of its commands.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";
/// What holds a pod's namespaces.
pub const PAUSE: &str = "docker.io/library/pause:test";

/// The version that the agent's image is tagged with.
pub const AGENT_TAG: &str = env!("CARGO_PKG_VERSION");

/// Makes `tar`, an image of that full name, of what is in `root`. `config` is the image's:
/// `Entrypoint`, `Cmd`, `Env`, … Root owns all of its files.
pub fn build(tar: &Path, name: &str, root: &Path, config: &Value) {
    let scratch = Scratch::new("image");
    let layout = scratch.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory can be made in a new one");
    let layer_file = scratch.path().join("layer.tar");
    pack(root, &layer_file);
    let layer = fs::read(&layer_file).expect("the layer was just made");
    let add = |kind: &str, content: &[u8]| {
        let sum: String = digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&sum), content).expect("a blob can be written");
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": format!("sha256:{sum}"), "size": content.len() })
    };
    let layer = add("layer.v1.tar", &layer);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = add("config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer] });
    let mut manifest = add("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("a file can be written");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file can be written");
    pack(&layout, tar);
}

fn pack(root: &Path, tar: &Path) {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    run(command.arg("--file").arg(tar).arg("--directory").arg(root).arg("."));
}

/// Makes the image of test pods and that of their sandboxes in `dir`.
pub fn busybox(dir: &Path) -> Vec<PathBuf> {
    let scratch = Scratch::new("busybox");
    let root = scratch.path().join("root");
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("a directory can be made in a new one");
    }
    let program = Path::new("/bin/busybox");
    let copied = fs::copy(program, root.join("bin/busybox"));
    copied.expect("Debian's package busybox-static is installed (`make setup`)");
    for name in run(Command::new(program).arg("--list")).lines().filter(|&name| name != "busybox") {
        symlink("busybox", root.join("bin").join(name)).expect("a link can be made");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file can be written");
    let images = [(BUSYBOX, json!(["/bin/sh"])), (PAUSE, json!(["/bin/sleep", "2147483647"]))];
    let build_one = |(name, command): (&str, Value)| {
        let tar = dir.join(format!("{}.tar", name.rsplit(['/', ':']).nth(1).unwrap_or(name)));
        build(&tar, name, &root, &json!({ "Entrypoint": command, "Env": ["PATH=/bin"] }));
        tar
    };
    images.into_iter().map(build_one).collect()
}

/// The agent's image: the file that `MOORING_IMAGE` names (`make image` makes it), else one made
/// in `dir` of the binary that tests run.
pub fn agent(dir: &Path) -> PathBuf {
    if let Some(path) = std::env::var_os("MOORING_IMAGE") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        assert!(path.exists(), "{} is missing; run `make image`", path.display());
        return path;
    }
    let tar = dir.join("mooring.tar");
    let name = format!("docker.io/library/mooring:{AGENT_TAG}");
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/image/build"));
    run(build.args([&name, "test"]).arg(&tar).arg(launch::binary(None)).env("SOURCE_DATE_EPOCH", "0"));
    tar
}
