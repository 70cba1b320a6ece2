//! Makes a whole block device read as zeros, in chunks short enough to be stopped
//! between: the kernel can't be interrupted within one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Control, WipeError};
use crate::node::ioctl;

/// A chunk should take about this long.
const CHUNK_TIME: Duration = Duration::from_millis(200);
const CHUNK_MIN: u64 = 1 << 20;
const CHUNK_START: u64 = 16 << 20;
const CHUNK_MAX: u64 = 1 << 30;
/// Size of one direct write, and its alignment in memory.
const WRITE: usize = 4 << 20;
const ALIGNMENT: usize = 4096;

/// Zeroes `bytes` bytes: by BLKZEROOUT (offloaded where the device can), else by
/// direct writes; then makes them durable.
pub fn zero(device: &OwnedFd, bytes: u64, control: &Control) -> Result<(), WipeError> {
    let mut offset = 0;
    let mut chunk = CHUNK_START;
    while offset < bytes {
        control.check()?;
        let length = chunk.min(bytes - offset);
        let start = Instant::now();
        match ioctl::zero_out(device, offset, length) {
            Ok(()) => {}
            Err(error) if is_unsupported(&error) => {
                write_zeros(device, offset, bytes, control)?;
                break;
            }
            Err(source) => return Err(WipeError::Io { step: "zeroing the device", source }),
        }
        offset += length;
        control.advance(length);
        chunk = next_chunk(chunk, start.elapsed());
    }
    rustix::fs::fsync(device).map_err(|errno| WipeError::io("making the zeros durable")(errno.into()))
}

fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Twice or half the chunk when the last one was far from the time it should take.
fn next_chunk(chunk: u64, took: Duration) -> u64 {
    if took < CHUNK_TIME / 2 {
        (chunk * 2).min(CHUNK_MAX)
    } else if took > CHUNK_TIME * 2 {
        (chunk / 2).max(CHUNK_MIN)
    } else {
        chunk
    }
}

/// Zeroes the rest of the device past the page cache, so that what was written is on
/// the disk, not in memory.
fn write_zeros(device: &OwnedFd, from: u64, to: u64, control: &Control) -> Result<(), WipeError> {
    set_direct(device)?;
    let memory = vec![0_u8; WRITE + ALIGNMENT];
    let buffer = aligned(&memory, WRITE);
    let mut offset = from;
    while offset < to {
        control.check()?;
        let length = usize::try_from(to - offset).map_or(WRITE, |left| left.min(WRITE));
        let written = rustix::io::pwrite(device, &buffer[..length], offset)
            .map_err(|errno| WipeError::io("writing zeros to the device")(errno.into()))?;
        if written == 0 {
            return Err(WipeError::NotClean(format!("the device takes no data at byte {offset}")));
        }
        offset += written as u64;
        control.advance(written as u64);
    }
    Ok(())
}

/// Makes reads and writes of the open device go past the page cache.
pub fn set_direct(device: impl AsFd) -> Result<(), WipeError> {
    let flags = rustix::fs::fcntl_getfl(&device)? | rustix::fs::OFlags::DIRECT;
    rustix::fs::fcntl_setfl(&device, flags).map_err(|errno| WipeError::io("asking for direct I/O")(errno.into()))
}

/// A part of the memory that starts where direct I/O can take it.
fn aligned(memory: &[u8], length: usize) -> &[u8] {
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    &memory[start..start + length]
}

/// As [`aligned`], to read into.
pub fn aligned_mut(memory: &mut [u8], length: usize) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    &mut memory[start..start + length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_approach_a_fifth_of_a_second() {
        let ms = Duration::from_millis;
        assert_eq!(next_chunk(16 << 20, ms(10)), 32 << 20);
        assert_eq!(next_chunk(16 << 20, ms(200)), 16 << 20);
        assert_eq!(next_chunk(16 << 20, ms(900)), 8 << 20);
        assert_eq!(next_chunk(CHUNK_MIN, ms(900)), CHUNK_MIN);
        assert_eq!(next_chunk(CHUNK_MAX, ms(1)), CHUNK_MAX);
    }

    /// A file knows no BLKZEROOUT, as a device without it would.
    #[test]
    fn without_blkzeroout_zeros_are_written() {
        use std::os::unix::fs::FileExt as _;
        let size = (9 << 20) + 4096;
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.as_file().write_all_at(&vec![7_u8; size], 0).expect("it can be written");
        let control = Control::default();
        let device = OwnedFd::from(file.reopen().expect("it can be opened again"));
        zero(&device, size as u64, &control).expect("it can be zeroed");
        let mut content = vec![7_u8; size];
        file.as_file().read_exact_at(&mut content, 0).expect("it can be read");
        assert!(content.iter().all(|byte| *byte == 0));
        assert_eq!(control.progress().0, size as u64);
    }

    #[test]
    fn a_cancelled_wipe_does_nothing_more() {
        let device = OwnedFd::from(tempfile::tempfile().expect("a file can be made"));
        let control = Control::default();
        control.cancel();
        assert!(matches!(zero(&device, 1 << 20, &control), Err(WipeError::Cancelled)));
    }

    #[test]
    fn buffers_for_direct_io_are_aligned() {
        let memory = vec![0_u8; WRITE + ALIGNMENT];
        assert_eq!(aligned(&memory[1..], WRITE - 1).as_ptr() as usize % ALIGNMENT, 0);
    }
}
