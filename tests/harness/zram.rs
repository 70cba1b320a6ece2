//! Disks in memory with blocks of 4 KiB. They do not vanish by themselves: each is noted
//! in a locked file, and what a dead run left is removed when the next one is made. A
//! note whose disk sequence number is not the device's any more is about another disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A zram device, removed with this value.
pub struct Zram {
    /// Its node, such as `/dev/zram3`.
    pub device: PathBuf,
    note: PathBuf,
    _lock: File,
}

impl Zram {
    /// A new disk of that size, of zeros.
    pub fn new(bytes: u64) -> Self {
        let notes = std::env::temp_dir().join("mooring-tests-zram");
        fs::create_dir_all(&notes).expect("a directory for notes can be made");
        let gate = File::create(notes.join(".gate")).expect("the gate file can be made");
        gate.lock().expect("the gate file can be locked");
        sweep(&notes);
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").expect("the kernel has zram");
        let number = number.trim();
        let note = notes.join(number);
        let mut lock = File::create(&note).expect("a note can be made");
        lock.lock().expect("a new note can be locked");
        lock.write_all(sequence(number).as_bytes()).expect("a note can be written");
        fs::write(format!("/sys/block/zram{number}/disksize"), bytes.to_string()).expect("it takes a size");
        Self { device: PathBuf::from(format!("/dev/zram{number}")), note, _lock: lock }
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        remove(&self.note);
    }
}

fn sweep(notes: &Path) {
    for note in fs::read_dir(notes).expect("the notes can be read").flatten().map(|entry| entry.path()) {
        let is_dead = File::open(&note).is_ok_and(|lock| lock.try_lock().is_ok());
        if is_dead && !note.ends_with(".gate") {
            remove(&note);
        }
    }
}

fn remove(note: &Path) {
    let number = note.file_name().expect("a note has a name").to_string_lossy();
    if fs::read_to_string(note).is_ok_and(|noted| !noted.is_empty() && noted == sequence(&number)) {
        // One that is in use stays, and so does its note, until the next sweep.
        let removed = fs::write(format!("/sys/block/zram{number}/reset"), "1")
            .and_then(|()| fs::write("/sys/class/zram-control/hot_remove", &*number));
        if removed.is_err() {
            return;
        }
    }
    let _ = fs::remove_file(note);
}

fn sequence(number: &str) -> String {
    fs::read_to_string(format!("/sys/block/zram{number}/diskseq")).unwrap_or_default()
}
