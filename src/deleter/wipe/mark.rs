//! The mark: what stands at both ends of a device while it is being wiped, so that a
//! half-wiped disk never looks like a blank one, wherever it turns up. It only forbids
//! to offer the disk: anybody who can write to the disk can forge one.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use super::buffer::Buffer;
use super::device::{Device, set_direct};
use crate::deleter::WipeError;
use crate::method::Method;
use crate::node::ioctl;

const MAGIC: &[u8; 16] = b"mooring: wiping\n";
const VERSION: u32 = 1;
/// Where things are in the block, all in its first 512 bytes, which a disk writes as one.
const VERSION_AT: Range<usize> = 16..20;
const ID_AT: Range<usize> = 24..40;
const SIZE_AT: Range<usize> = 40..48;
/// The method in words: a wipe by another one can't go on where this one was.
const METHOD_AT: Range<usize> = 48..80;
const TEXT_AT: usize = 80;
/// For the admin who looks at the disk with a hex viewer.
const TEXT: &[u8] = b"This disk was being wiped when it was taken away from the agent. It is not blank: \
    the data of its last user may be on it still. Give it back to the agent, which will go on, \
    or wipe all of it.\n";
/// The least that tells a mark.
const HEADER: usize = 512;

/// Which wipe left a mark: the random id of the ledger's entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MarkId(pub u128);

impl MarkId {
    /// One that nobody else has.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::u128(..))
    }
}

impl fmt::Display for MarkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MarkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Looks for a mark at either end of an open block device of that size; reading is all
/// it needs, and it does not believe the page cache.
///
/// # Errors
/// The kernel's answer when an end can't be read and the other has no mark: whether
/// there is one is not known then.
pub fn read_mark(device: impl AsFd, bytes: u64) -> io::Result<Option<MarkId>> {
    let fd = device.as_fd();
    let block = ioctl::block_size(fd)?;
    let was_direct = set_direct(fd, true)?;
    let ends = ends(fd, bytes, block).map(|end| end.map(|block| decode(&block)));
    set_direct(fd, was_direct)?;
    match ends {
        [Ok(Some(id)), _] | [_, Ok(Some(id))] => Ok(Some(id)),
        [Err(error), _] | [_, Err(error)] => Err(error),
        [Ok(None), Ok(None)] => Ok(None),
    }
}

/// Whether the wipe that marked a device, open for direct I/O, was this one: of the same
/// id, by the same method, when the device had the same size.
pub fn is_marked(device: &Device<'_>, id: MarkId, method: &Method) -> bool {
    let mut expected = [0; HEADER];
    encode(&mut expected, id, method, device.bytes);
    ends(device.fd(), device.bytes, device.block).iter().flatten().any(|end| end.starts_with(&expected))
}

/// Whether there is any mark in a range, which is one of the ends.
pub fn has_mark(device: &Device<'_>, end: &Range<u64>) -> Result<bool, WipeError> {
    let mut buffer = Buffer::zeros(usize::try_from(end.end - end.start).expect("an end is some blocks"));
    device.read(buffer.bytes_mut(), end.start, "looking for a mark")?;
    Ok(decode(buffer.bytes()).is_some())
}

/// Writes the mark to an end, and makes it durable.
pub fn write(device: &Device<'_>, end: Range<u64>, id: MarkId, method: &Method) -> Result<(), WipeError> {
    if end.is_empty() {
        return Ok(());
    }
    let mut buffer = Buffer::zeros(usize::try_from(end.end - end.start).expect("an end is some blocks"));
    encode(buffer.bytes_mut(), id, method, device.bytes);
    device.write(buffer.bytes(), end.start, "marking the device")?;
    device.sync("making the mark durable")
}

/// What is at the first and at the last place where a mark can be.
fn ends(fd: BorrowedFd<'_>, bytes: u64, block: u64) -> [io::Result<Vec<u8>>; 2] {
    let geometry = Device::with_block(fd, bytes, block);
    [geometry.head(), geometry.tail()].map(|end| {
        let length = usize::try_from(end.end - end.start).expect("an end is some blocks");
        let mut buffer = Buffer::zeros(length);
        let read = rustix::io::pread(fd, buffer.bytes_mut(), end.start)?;
        Ok(buffer.bytes()[..read].to_vec())
    })
}

fn encode(block: &mut [u8], id: MarkId, method: &Method, bytes: u64) {
    block[..MAGIC.len()].copy_from_slice(MAGIC);
    block[VERSION_AT].copy_from_slice(&VERSION.to_le_bytes());
    block[ID_AT].copy_from_slice(&id.0.to_le_bytes());
    block[SIZE_AT].copy_from_slice(&bytes.to_le_bytes());
    for (place, byte) in block[METHOD_AT].iter_mut().zip(method.to_string().bytes()) {
        *place = byte;
    }
    block[TEXT_AT..TEXT_AT + TEXT.len()].copy_from_slice(TEXT);
}

/// A mark of any version: the id stays where it is.
fn decode(block: &[u8]) -> Option<MarkId> {
    if block.len() < HEADER || !block.starts_with(MAGIC) {
        return None;
    }
    let id = block[ID_AT].try_into().expect("the range has 16 bytes");
    Some(MarkId(u128::from_le_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_was_written_is_read_and_nothing_else_is_one() {
        let id = MarkId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let mut block = vec![0; HEADER];
        assert_eq!(decode(&block), None);
        encode(&mut block, id, &Method::Zero { passes: 2 }, 1 << 40);
        assert!(block[METHOD_AT].starts_with(b"zero x2\0"));
        assert_eq!(decode(&block), Some(id));
        assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef");
        assert_eq!(decode(&block[..HEADER - 1]), None);
        block[VERSION_AT].copy_from_slice(&9_u32.to_le_bytes());
        assert_eq!(decode(&block), Some(id), "a later version forbids as well");
        block[0] = 0;
        assert_eq!(decode(&block), None);
    }
}
