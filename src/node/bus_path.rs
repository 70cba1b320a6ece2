//! Where a disk is plugged in, from its path in sysfs. The kernel numbers hosts, ports
//! and buses in the order in which it meets them, another one at each boot: such a
//! number is replaced by its rank among its siblings, which the hardware determines.
//! As udev's `path_id` does it.

use std::fs;
use std::path::Path;

/// What the kernel numbers across the whole machine, by the prefix of its name.
const NUMBERED: [&str; 6] = ["host", "ata", "virtio", "usb", "nvme", "mmc"];
/// Remote or switched transports: their addresses move, and their disks have a WWID.
const MOVING: [&str; 5] = ["rport-", "session", "end_device-", "expander-", "vport-"];

/// The bus path of a whole disk, from its directory in sysfs without links; `None` for
/// a virtual device and where the path says too little to go by.
pub fn bus_path(disk: &Path) -> Option<String> {
    let text = disk.to_str()?;
    let (_, devices) = text.split_once("/devices/")?;
    if devices.starts_with("virtual/") {
        return None;
    }
    let mut place = text.get(..text.len() - devices.len())?.to_owned();
    let mut parts = Vec::new();
    for name in devices.split('/') {
        if MOVING.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        parts.push(stable(Path::new(&place), name));
        place = format!("{place}{name}/");
    }
    let leaf = parts.pop()?;
    // `sda` says nothing; the namespace of `nvme0n1` does.
    if let Some(namespace) = leaf.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) {
        parts.push(format!("n{}", namespace.1));
    }
    parts.retain(|part| part != "block");
    Some(parts.join("/"))
}

fn stable(parent: &Path, name: &str) -> String {
    for prefix in NUMBERED {
        if let Some(number) = numbered(name, prefix) {
            return format!("{prefix}{}", rank(parent, prefix, number));
        }
    }
    // `target2:0:1` and `2:0:1:0` begin with the number of the host; `1-2:1.0` with that
    // of the USB bus; `mmc0:0001` with that of the controller.
    if let Some((_, rest)) = name.strip_prefix("target").and_then(|rest| rest.split_once(':')) {
        return format!("target{rest}");
    }
    if let Some((first, rest)) = name.split_once(':')
        && rest.matches(':').count() == 2
        && is_number(first)
        && name.bytes().all(|byte| byte.is_ascii_digit() || byte == b':')
    {
        return rest.to_owned();
    }
    if let Some((bus, ports)) = name.split_once('-')
        && is_number(bus)
    {
        return ports.split_once(':').map_or(ports.to_owned(), |(_, interface)| interface.to_owned());
    }
    match name.split_once(':') {
        Some((controller, card)) if numbered(controller, "mmc").is_some() => card.to_owned(),
        _ => name.to_owned(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn numbered(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix).filter(|rest| is_number(rest))?.parse().ok()
}

/// How many siblings of the same kind have a smaller number.
fn rank(parent: &Path, prefix: &str, number: u64) -> usize {
    let siblings = fs::read_dir(parent).into_iter().flatten().flatten();
    siblings.filter_map(|entry| numbered(entry.file_name().to_str()?, prefix)).filter(|other| *other < number).count()
}
