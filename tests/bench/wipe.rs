//! How fast a block device is wiped, next to the programs that other provisioners'
//! scripts call, on one and the same device in one run.
//!
//! So that nobody gains by what is cached: before each wipe the device is filled with
//! data anew, that is made durable, and the kernel forgets what it has cached of the
//! device. A wipe ends when all of it is durable; then zeros are looked for.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mooring::deleter::{Control, Cursor, Job, Journal, MarkId, WipeError, wipe_device};
use mooring::method::{Method, Verify, WipeRules};
use mooring::node::ioctl;
use nix::fcntl::OFlag;

use crate::harness::disk::{self, run};
use crate::harness::{LoopDisk, Scratch, require_own_namespace};
use crate::table::{Samples, Table, progress};

const SIZE: u64 = 1 << 30;
const SMALL: u64 = 64 << 20;
const LARGE: u64 = 64 << 30;
const ROUNDS: usize = 5;
/// Of the slow ones: one takes ten seconds.
const SLOW_ROUNDS: usize = 3;
const PIECE: usize = 4 << 20;
const VERIFY_LIMIT_MS: f64 = 1000.0;

/// One way to wipe.
struct Wiper {
    name: &'static str,
    rounds: usize,
    wipe: fn(&Path),
}

const WIPERS: [Wiper; 6] = [
    Wiper { name: "by ours, zero", rounds: ROUNDS, wipe: |device| _ = wipe(device, Method::Auto, Verify::None) },
    Wiper {
        name: "by ours, zero, and a sample read back",
        rounds: ROUNDS,
        wipe: |device| _ = wipe(device, Method::Auto, Verify::Sample),
    },
    Wiper {
        name: "by blkdiscard -z",
        rounds: ROUNDS,
        wipe: |device| _ = run(Command::new("blkdiscard").arg("-z").arg(device)),
    },
    Wiper { name: "by dd oflag=direct bs=4M", rounds: ROUNDS, wipe: |device| dd(device, &["bs=4M", "oflag=direct"]) },
    Wiper {
        name: "by shred -z -n 3",
        rounds: SLOW_ROUNDS,
        wipe: |device| _ = run(Command::new("shred").args(["-z", "-n", "3"]).arg(device)),
    },
    Wiper { name: "by dd bs=8096", rounds: SLOW_ROUNDS, wipe: |device| dd(device, &["bs=8096"]) },
];

/// Measures on a disk that can zero by itself, and on one to which zeros must be written.
pub fn measure(table: &mut Table) {
    require_own_namespace();
    let scratch = Scratch::new("bench-wipe");
    let able = LoopDisk::new(scratch.path(), SIZE);
    compare(table, "a disk that zeroes by itself", &able.device, Some(20.0));
    drop(able);
    // No holes can be punched in a ramfs' files, so a disk on one can't zero by itself.
    let memory = scratch.path().join("memory");
    disk::ramfs(&memory);
    let plain = LoopDisk::new(&memory, SIZE);
    // It is in memory, where small writes cost less than on any disk.
    compare(table, "a disk that is written to", &plain.device, None);
    drop(plain);
    disk::detach_all(&memory);
    verification(table, scratch.path());
}

fn compare(table: &mut Table, which: &str, device: &Path, dd_limit: Option<f64>) {
    let mut times: [Samples; WIPERS.len()] = Default::default();
    for round in 0..ROUNDS {
        // Each begins a round in its turn.
        for number in (0..WIPERS.len()).map(|turn| (turn + round) % WIPERS.len()) {
            if round < WIPERS[number].rounds {
                times[number].push_time(timed(device, &WIPERS[number]));
            }
        }
    }
    for (wiper, times) in WIPERS.iter().zip(&times) {
        table.samples(&format!("wipe of {} MiB, {which}, {}", SIZE >> 20, wiper.name), "ms", times, None);
    }
    let [ours, _, blkdiscard, direct, shred, odd] = times.map(|times| times.median());
    table.at_least(
        "  ours, against the best of blkdiscard -z and dd direct",
        "×",
        blkdiscard.min(direct) / ours,
        Some(0.95),
    );
    table.at_least("  ours, against shred", "×", shred / ours, Some(10.0));
    table.at_least("  ours, against dd bs=8096", "×", odd / ours, dd_limit);
}

/// Fills the device, wipes it, and looks whether it is wiped.
fn timed(device: &Path, wiper: &Wiper) -> Duration {
    fill(device);
    let begun = Instant::now();
    (wiper.wipe)(device);
    let file = File::open(device).expect("the device can be opened");
    file.sync_all().expect("what was written can be made durable");
    let time = begun.elapsed();
    forget(device);
    let mut block = [1; 4096];
    for offset in (0..SIZE).step_by(8 << 20).chain([SIZE - 4096]) {
        file.read_exact_at(&mut block, offset).expect("the device can be read");
        assert!(block.iter().all(|byte| *byte == 0), "not wiped at {offset}: {}", wiper.name);
    }
    progress(&format!("wiped {} after {time:?}", wiper.name));
    time
}

fn fill(device: &Path) {
    let file = OpenOptions::new().write(true).open(device).expect("the device can be opened");
    let data: Vec<u8> = (0..PIECE).map(|_| fastrand::u8(1..)).collect();
    for offset in (0..SIZE).step_by(PIECE) {
        file.write_all_at(&data, offset).expect("the device takes data");
    }
    file.sync_all().expect("what was written can be made durable");
    drop(file);
    forget(device);
}

/// Empties the page cache of the device.
fn forget(device: &Path) {
    run(Command::new("blockdev").arg("--flushbufs").arg(device));
}

fn dd(device: &Path, arguments: &[&str]) {
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "conv=fsync", "iflag=count_bytes,fullblock", "status=none"]).args(arguments);
    run(dd.arg(format!("count={SIZE}")).arg(format!("of={}", device.display())));
}

/// When a wipe was told last how far it is: at the end of its passes.
struct LastWord(Instant);

impl Journal for LastWord {
    fn checkpoint(&mut self, _: Cursor) -> Result<(), WipeError> {
        self.0 = Instant::now();
        Ok(())
    }
}

/// Wipes the device as the agent does. Returns how long it took from the end of the
/// passes on: to read back, and to take the marks off.
pub fn wipe(device: &Path, method: Method, verify: Verify) -> Duration {
    let flags = OFlag::O_EXCL.bits();
    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(device)
        .expect("the device can be opened")
        .into();
    let bytes = ioctl::device_size(&fd).expect("it has a size");
    let rules = WipeRules { method, verify, ..WipeRules::default() };
    let mut journal = LastWord(Instant::now());
    let job = Job { rules: &rules, mark: MarkId::random(), from: None, node: "", root: None, journal: &mut journal };
    wipe_device(&fd, bytes, job, &Control::default()).expect("the device can be wiped");
    journal.0.elapsed()
}

fn verification(table: &mut Table, dir: &Path) {
    let mut measure = |figure: &str, bytes: u64, method: &Method| {
        let mut times = Samples::default();
        let disk = LoopDisk::new(dir, bytes);
        for _ in 0..SLOW_ROUNDS {
            times.push_time(wipe(&disk.device, method.clone(), Verify::Sample));
        }
        table.samples(figure, "ms", &times, Some(VERIFY_LIMIT_MS));
    };
    measure("verification by sample of 64 MiB", SMALL, &Method::Auto);
    // Two passes: written, and not handed to the disk, so that there is something to read.
    measure("verification by sample of 1 GiB that was written", SIZE, &Method::Zero { passes: 2 });
    // Zeroing would take up room for all of it.
    measure("verification by sample of 64 GiB, sparse, twice over", LARGE, &Method::Discard);
}
