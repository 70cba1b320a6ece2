//! What the tests of wipes share: a disk full of a tenant's data, and a wipe of it with
//! a journal that the test can look into, and act by.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mooring::deleter::{Control, Cursor, Job, Journal, MarkId, Receipt, WipeError, read_mark, wipe_device};
use mooring::method::{Method, Verify, WipeRules};
use mooring::node::ioctl;
use nix::fcntl::OFlag;

use crate::common::SOON;
use crate::harness::scratch::unique;

pub const MARK: MarkId = MarkId(0x6d6f_6f72_696e_6721_0001_0203_0405_0607);
pub const SECRET: &[u8] = b"the tenant's secret";

/// A file of so many bytes that is full of secrets, up to its last byte.
pub fn full_of_secrets(dir: &Path, bytes: usize) -> PathBuf {
    let path = dir.join(format!("secrets-{}.img", unique()));
    let content: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
    fs::write(&path, content).expect("a backing file can be written");
    path
}

/// The device as the agent opens it: exclusively. Who looks for a free loop device may have
/// it for a moment.
pub fn open(device: &Path) -> (OwnedFd, u64) {
    let flags = OFlag::O_EXCL.bits();
    let deadline = Instant::now() + SOON;
    let file = loop {
        match OpenOptions::new().read(true).write(true).custom_flags(flags).open(device) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => break opened.expect("the device is free"),
        }
    };
    let bytes = ioctl::device_size(&file).expect("it has a size");
    (file.into(), bytes)
}

/// The mark on the device, as discovery looks for it: reading only.
pub fn mark_on(device: &Path) -> Option<MarkId> {
    let file = File::open(device).expect("the device can be opened");
    let bytes = ioctl::device_size(&file).expect("it has a size");
    read_mark(&file, bytes).expect("both ends can be read")
}

pub fn rules(method: Method) -> WipeRules {
    WipeRules { method, verify: Verify::Full, ..WipeRules::default() }
}

/// A journal in memory. Each checkpoint is told to the test, which may end the wipe.
pub struct Notes<'a> {
    pub cursors: Vec<Cursor>,
    each: Box<dyn FnMut(Cursor) -> Result<(), WipeError> + 'a>,
}

impl<'a> Notes<'a> {
    pub fn new() -> Self {
        Self::telling(|_| Ok(()))
    }

    pub fn telling(each: impl FnMut(Cursor) -> Result<(), WipeError> + 'a) -> Self {
        Self { cursors: Vec::new(), each: Box::new(each) }
    }

    pub fn last(&self) -> Cursor {
        *self.cursors.last().expect("a wipe begins with a checkpoint")
    }
}

impl Journal for Notes<'_> {
    fn checkpoint(&mut self, cursor: Cursor) -> Result<(), WipeError> {
        self.cursors.push(cursor);
        (self.each)(cursor)
    }
}

/// Wipes the device from the start.
pub fn wipe(device: &Path, rules: &WipeRules) -> Result<Receipt, WipeError> {
    wipe_from(device, rules, None, &mut Notes::new(), &Control::default())
}

/// Wipes the device, or goes on with it.
pub fn wipe_from(
    device: &Path,
    rules: &WipeRules,
    from: Option<Cursor>,
    journal: &mut Notes<'_>,
    control: &Control,
) -> Result<Receipt, WipeError> {
    let (fd, bytes) = open(device);
    let node = device.to_str().expect("a node has a plain name");
    wipe_device(&fd, bytes, Job { rules, mark: MARK, from, node, root: None, journal }, control)
}

/// The place of the first byte that is not zero, if there is one.
pub fn first_not_zero(path: &Path) -> Option<u64> {
    let mut file = File::open(path).expect("it can be opened");
    let (mut buffer, mut offset) = (vec![0; 1 << 20], 0);
    let zeros = vec![0; buffer.len()];
    loop {
        let count = file.read(&mut buffer).expect("it can be read");
        if count == 0 {
            return None;
        }
        if buffer[..count] != zeros[..count] {
            let at = buffer.iter().position(|byte| *byte != 0).expect("they differ");
            return Some(offset + at as u64);
        }
        offset += count as u64;
    }
}

/// Writes through the device past a holder: the bytes have reached it when this returns.
pub fn write_at(device: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).custom_flags(OFlag::O_DSYNC.bits()).open(device);
    file.expect("the device can be opened").write_all_at(bytes, offset).expect("the device takes writes");
}

/// Bytes that were written to the device since it was attached.
pub fn bytes_written(device: &Path) -> u64 {
    let name = device.file_name().expect("a node has a name");
    let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat")).expect("it is a disk");
    let sectors: u64 = stat.split_whitespace().nth(6).and_then(|field| field.parse().ok()).expect("sectors written");
    sectors * 512
}
