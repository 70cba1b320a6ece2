//! The security profile `filesystem`: an agent without privileges does all that directories need.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use crate::harness::disk::run;
use crate::harness::helm;
use crate::harness::pods::PodSpec;
use crate::harness::site::container_id;
use crate::stage;

pub const CLASSES: &[(&str, &str)] = &[("profile", "{}")];

/// `CAP_CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `LINUX_IMMUTABLE` and `SETFCAP`.
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 31;

#[tokio::test]
async fn an_agent_without_privileges_publishes_and_wipes_directories() {
    let scene = stage::alone("profile").await;
    let node = scene.node(0);
    let only = json!({ "classes": [helm::class("profile", &json!({}))], "securityProfile": "filesystem" });
    scene.helm_upgrade(only).await;
    let agent = scene.agent_pod(0).await;
    let pid = node.container_pid(container_id(&agent).expect("the agent runs"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process has a status");
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.unwrap_or_else(|| panic!("{name} is not in {status}"))
    };
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(u64::from_str_radix(field(set), 16), Ok(CAPABILITIES), "{set}");
    }
    assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2", "1"), "it is confined, for good");
    scene.wait_metric(0, "mooring_limited{what=\"capabilities\"}", |value| value < 0.5).await;

    let (path, _disk) = node.mount_ext4("profile", "disk", 64 << 20);
    let pv = scene.wait_available("profile", 0, "disk").await;
    scene.claim("data", "profile", "1Mi");
    scene.run(&PodSpec::new("tenant").claim("data", "/data")).await;
    scene.sh(
        "tenant",
        "mkdir -p /data/closed/inner; echo secret > /data/closed/inner/file; chown -R 4711:4712 /data/closed; \
         chmod 000 /data/closed/inner/file /data/closed/inner /data/closed; chmod 777 /data; echo secret > /data/fixed",
    );
    node.on_host(|| run(Command::new("chattr").arg("+i").arg(path.join("fixed"))));
    scene.delete_pod("tenant").await;
    scene.delete_claim("data").await;
    scene.wait_anew("profile", 0, "disk", &pv).await;
    let (left, mode) = node.on_host(|| {
        let entries = fs::read_dir(&path).expect("the volume can be read").flatten();
        let left: Vec<_> = entries.map(|entry| entry.file_name()).filter(|name| name != "lost+found").collect();
        (left, fs::metadata(&path).expect("the volume is there").permissions().mode() & 0o7777)
    });
    assert_eq!((left, mode), (Vec::new(), 0o755));
    scene.helm_upgrade(json!({})).await;
}
