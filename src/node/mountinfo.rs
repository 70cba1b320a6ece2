//! The kernel's mount table, `/proc/self/mountinfo` (proc(5)), by mount id.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use procfs::process::MountInfo;

/// The part of a mount that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The path that it is mounted on, as bytes.
    pub mount_point: Vec<u8>,
    /// The path within its filesystem that forms its root.
    pub root: Vec<u8>,
    /// `major:minor` of the filesystem.
    pub device: String,
    /// Type of the filesystem.
    pub fs_type: String,
    /// What was mounted.
    pub source: Option<String>,
}

/// Mounts of this process's namespace, by mount id.
#[derive(Clone, Debug, Default)]
pub struct MountTable(HashMap<u64, Mount>);

impl MountTable {
    /// Reads the table of this process's mount namespace.
    ///
    /// # Errors
    /// When the file can't be read. A line that can't be parsed is left out.
    pub fn read() -> io::Result<Self> {
        let mut bytes = Vec::new();
        std::fs::File::open("/proc/self/mountinfo")?.read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    /// As [`MountTable::read`]. Threads that ask at the same time share a table that was
    /// begun to be read after all of them had asked, and after a read comes a rest: with a
    /// thousand mounts it takes the kernel milliseconds, and holds up mount(2).
    ///
    /// # Errors
    /// As [`MountTable::read`].
    pub fn read_shared() -> io::Result<Arc<Self>> {
        static SHARED: Shared = Shared::new();
        SHARED.read_since(Instant::now())
    }

    /// Parses the text of a mountinfo file. Mount points may hold any bytes, while
    /// the parser takes text: bytes that are not ASCII are escaped before, and all
    /// are unescaped after, each once.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut mounts = HashMap::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(info) = MountInfo::from_line(&to_ascii(line)) else { continue };
            let Ok(id) = u64::try_from(info.mnt_id) else { continue };
            mounts.insert(
                id,
                Mount {
                    mount_point: unescape(info.mount_point.as_os_str().as_encoded_bytes()),
                    root: unescape(info.root.as_bytes()),
                    device: info.majmin,
                    fs_type: info.fs_type,
                    source: info.mount_source,
                },
            );
        }
        Self(mounts)
    }

    /// The mount with that id.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Mount> {
        self.0.get(&id)
    }

    /// All mounts with their ids, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Mount)> {
        self.0.iter().map(|(id, mount)| (*id, mount))
    }
}

/// The rest after a read, as a multiple of the time that it took, and its limit.
const REST: (u32, Duration) = (10, Duration::from_millis(20));

/// What threads share of their reads.
struct Shared {
    last: Mutex<Last>,
    /// How many threads have asked and have no table yet.
    waiting: AtomicUsize,
}

/// The last read.
struct Last {
    begun: Option<Instant>,
    rest_until: Option<Instant>,
    /// Kept for those who wait only.
    table: Option<Arc<MountTable>>,
}

impl Shared {
    const fn new() -> Self {
        Self { last: Mutex::new(Last { begun: None, rest_until: None, table: None }), waiting: AtomicUsize::new(0) }
    }

    /// A table that was begun to be read after that time.
    fn read_since(&self, asked: Instant) -> io::Result<Arc<MountTable>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let table = loop {
            if let Some(table) = last.read_since(asked) {
                break Ok(table);
            }
            let rest = last.rest_until.and_then(|until| until.checked_duration_since(Instant::now()));
            let Some(rest) = rest.filter(|rest| !rest.is_zero()) else { break last.read() };
            // Not with the lock: those who have asked before the last read need not rest.
            drop(last);
            thread::sleep(rest);
            last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        };
        if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            last.table = None;
        }
        table
    }
}

impl Last {
    fn read_since(&self, asked: Instant) -> Option<Arc<MountTable>> {
        self.table.clone().filter(|_| self.begun.is_some_and(|begun| begun >= asked))
    }

    fn read(&mut self) -> io::Result<Arc<MountTable>> {
        let begun = Instant::now();
        let table = Arc::new(MountTable::read()?);
        let ended = Instant::now();
        self.begun = Some(begun);
        self.rest_until = Some(ended + ((ended - begun) * REST.0).min(REST.1));
        self.table = Some(Arc::clone(&table));
        Ok(table)
    }
}

fn to_ascii(line: &[u8]) -> String {
    use std::fmt::Write as _;
    line.iter().fold(String::with_capacity(line.len()), |mut text, byte| {
        if byte.is_ascii() {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "\\{byte:03o}");
        }
        text
    })
}

/// Undoes the kernel's octal escapes (`\040` for a blank).
#[must_use]
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *byte == b'\\') {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_any_bytes_are_read_once_unescaped() {
        let text: &[u8] = b"29 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
            57 29 0:40 / /mnt/a\\040b\\134040c\\012d rw shared:1 - tmpfs none rw,size=64k\n\
            58 29 0:41 /sub /mnt/\xff\xfe rw - tmpfs none rw\n\
            not a line\n";
        let table = MountTable::parse(text);
        assert_eq!(table.get(57).expect("is there").mount_point, b"/mnt/a b\\040c\nd");
        let odd = table.get(58).expect("is there");
        assert_eq!((odd.mount_point.as_slice(), odd.root.as_slice()), (&b"/mnt/\xff\xfe"[..], &b"/sub"[..]));
        assert_eq!(table.get(29).expect("is there").source.as_deref(), Some("/dev/root"));
        assert!(table.get(1).is_none());
    }

    #[test]
    fn a_shared_table_is_never_older_than_the_question() {
        let shared = Shared::new();
        // One who never gets its table: it is kept for that one.
        shared.waiting.store(1, Ordering::Relaxed);
        let before = Instant::now();
        let first = shared.read_since(before).expect("mountinfo is readable");
        let again = shared.read_since(before).expect("mountinfo is readable");
        assert!(Arc::ptr_eq(&first, &again), "both had asked before it was read");
        let later = shared.read_since(Instant::now()).expect("mountinfo is readable");
        assert!(!Arc::ptr_eq(&first, &later), "it was asked for after the first was read");
    }

    #[test]
    fn who_asked_before_a_read_is_not_overtaken_by_who_asks_after_it() {
        let shared = Shared::new();
        shared.waiting.store(1, Ordering::Relaxed);
        let before = Instant::now();
        let first = shared.read_since(before).expect("mountinfo is readable");
        shared.last.lock().expect("nobody has panicked").rest_until = Some(Instant::now() + Duration::from_secs(1));
        thread::scope(|scope| {
            let late = scope.spawn(|| shared.read_since(Instant::now()).expect("mountinfo is readable"));
            while shared.waiting.load(Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
            // Let it get to its rest.
            thread::sleep(Duration::from_millis(50));
            let early = shared.read_since(before).expect("mountinfo is readable");
            assert!(Arc::ptr_eq(&first, &early) && !late.is_finished(), "it has waited for another's rest");
        });
    }

    #[test]
    fn the_own_table_has_a_root() {
        let table = MountTable::read().expect("mountinfo is readable");
        assert!(table.0.values().any(|mount| mount.mount_point == b"/"));
    }
}
