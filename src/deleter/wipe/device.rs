//! A block device that is open for a wipe: reads and writes past the page cache, so
//! that what was written is on the disk and what is read comes from there, and the
//! division of its bytes into the marks at both ends and the data between.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::buffer::Buffer;
use crate::deleter::WipeError;
use crate::node::identity::stat_fd;
use crate::node::ioctl;

/// Size of one direct read or write.
pub const TRANSFER: usize = 4 << 20;
/// The unit in which the ends are marked: a page, as long as the device's blocks are
/// no larger.
const PAGE: u64 = 4096;

/// An open device and its geometry.
#[derive(Debug)]
pub struct Device<'a> {
    fd: BorrowedFd<'a>,
    /// Its size as the kernel tells it.
    pub bytes: u64,
    /// Size of a logical block: what all offsets and lengths are multiples of.
    pub block: u64,
}

impl<'a> Device<'a> {
    /// Asks for its block size and turns direct I/O on.
    pub fn new(fd: &'a OwnedFd, bytes: u64) -> Result<Self, WipeError> {
        let block = ioctl::block_size(fd).map_err(WipeError::io("asking for the device's block size"))?;
        let device = Self::with_block(fd.as_fd(), bytes, block);
        if device.reach() == 0 {
            return Err(WipeError::Refused(format!("the device has {bytes} bytes, and blocks of {block}")));
        }
        device.set_direct(true)?;
        Ok(device)
    }

    /// One of which size and blocks are known.
    pub fn with_block(fd: BorrowedFd<'a>, bytes: u64, block: u64) -> Self {
        Self { fd, bytes, block }
    }

    /// The open file.
    pub fn fd(&self) -> BorrowedFd<'a> {
        self.fd
    }

    /// How many of its bytes can be read and written: whole blocks. A loop device on a
    /// file of any size can have a rest.
    pub fn reach(&self) -> u64 {
        self.bytes / self.block * self.block
    }

    /// Where the first mark is.
    pub fn head(&self) -> Range<u64> {
        0..self.mark_size()
    }

    /// Where the other mark is; empty on a device that has room for one only.
    pub fn tail(&self) -> Range<u64> {
        let reach = self.reach();
        if reach < 2 * self.mark_size() { reach..reach } else { reach - self.mark_size()..reach }
    }

    /// All between the marks.
    pub fn data(&self) -> Range<u64> {
        self.head().end..self.tail().start
    }

    fn mark_size(&self) -> u64 {
        let size = self.block.max(PAGE);
        // With less than two, the one is all there is.
        if self.reach() < 2 * size { self.reach() } else { size }
    }

    /// Writes all of the buffer.
    pub fn write(&self, buffer: &[u8], offset: u64, step: &'static str) -> Result<(), WipeError> {
        let mut written = 0;
        while written < buffer.len() {
            let at = offset + written as u64;
            let failed = || WipeError::at(step, at..offset + buffer.len() as u64);
            match rustix::io::pwrite(self.fd, &buffer[written..], at) {
                Ok(0) => return Err(failed()(rustix::io::Errno::NOSPC.into())),
                Ok(count) => written += count,
                Err(errno) => return Err(failed()(errno.into())),
            }
        }
        Ok(())
    }

    /// Fills all of the buffer.
    pub fn read(&self, buffer: &mut [u8], offset: u64, step: &'static str) -> Result<(), WipeError> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let end = offset + buffer.len() as u64;
            match rustix::io::pread(self.fd, &mut buffer[done..], at) {
                Ok(0) => return Err(WipeError::NotClean(format!("the device ends at byte {at}, before its size"))),
                Ok(count) => done += count,
                Err(errno) => return Err(WipeError::at(step, at..end)(errno.into())),
            }
        }
        Ok(())
    }

    /// Zeroes a range by direct writes.
    pub fn write_zeros(&self, range: Range<u64>, zeros: &Buffer, step: &'static str) -> Result<(), WipeError> {
        let mut offset = range.start;
        while offset < range.end {
            let part = zeros.part(range.end - offset);
            self.write(part, offset, step)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&self, step: &'static str) -> Result<(), WipeError> {
        rustix::fs::fdatasync(self.fd).map_err(|errno| WipeError::io(step)(errno.into()))
    }

    /// Makes sure that nothing can be read behind the last whole block. Linux 6.18 fails
    /// such reads; what can't be read, can't leak.
    pub fn check_rest(&self) -> Result<(), WipeError> {
        let rest = self.reach()..self.bytes;
        if rest.is_empty() {
            return Ok(());
        }
        self.set_direct(false)?;
        let mut buffer = vec![0; usize::try_from(rest.end - rest.start).expect("it is less than a block")];
        let read = rustix::io::pread(self.fd, &mut buffer, rest.start);
        self.set_direct(true)?;
        if read.is_ok_and(|count| buffer[..count].iter().any(|byte| *byte != 0)) {
            return Err(WipeError::NotClean(format!(
                "bytes {} to {} can be read but not written: they are no whole block",
                rest.start, rest.end
            )));
        }
        Ok(())
    }

    /// A number from the queue's directory in sysfs (`Documentation/ABI/stable/sysfs-block`),
    /// found by the device's number; 0 when there is none. A partition has its disk's queue.
    pub fn queue(&self, attribute: &str) -> u64 {
        let Ok(stat) = stat_fd(self.fd) else { return 0 };
        let directory = format!("/sys/dev/block/{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor);
        let read = |path: String| fs::read_to_string(path).ok()?.trim().parse().ok();
        read(format!("{directory}/queue/{attribute}"))
            .or_else(|| read(format!("{directory}/../queue/{attribute}")))
            .unwrap_or(0)
    }

    fn set_direct(&self, direct: bool) -> Result<(), WipeError> {
        set_direct(self.fd, direct).map(drop).map_err(WipeError::io("asking for direct I/O"))
    }
}

/// Makes reads and writes of the open file go past the page cache, or not. Returns
/// what it was before.
pub fn set_direct(fd: BorrowedFd<'_>, direct: bool) -> std::io::Result<bool> {
    let mut flags = rustix::fs::fcntl_getfl(fd)?;
    let before = flags.contains(OFlags::DIRECT);
    flags.set(OFlags::DIRECT, direct);
    rustix::fs::fcntl_setfl(fd, flags)?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: u64, block: u64) -> (Range<u64>, Range<u64>, Range<u64>) {
        let fd: OwnedFd = tempfile::tempfile().expect("a file can be made").into();
        let device = Device { fd: fd.as_fd(), bytes, block };
        (device.head(), device.data(), device.tail())
    }

    #[test]
    fn marks_and_data_are_all_of_the_device_and_do_not_overlap() {
        for block in [512, 4096, 16384] {
            for bytes in (1..40).map(|sectors| sectors * 512).chain([1 << 20, (1 << 20) + 512, 1 << 40]) {
                let (head, data, tail) = layout(bytes, block);
                let reach = bytes / block * block;
                assert_eq!((head.start, tail.end), (0, reach), "{bytes} of {block}");
                assert_eq!((head.end, data.end), (data.start, tail.start), "{bytes} of {block}");
                assert!(head.start <= head.end && data.start <= data.end && tail.start <= tail.end);
                assert!([head.end, tail.start].iter().all(|place| place % block == 0), "{bytes} of {block}");
                assert_eq!(head.is_empty(), reach == 0);
            }
        }
    }

    #[test]
    fn each_end_of_a_usual_disk_has_a_page_for_the_mark() {
        assert_eq!(layout(1 << 30, 512), (0..4096, 4096..(1 << 30) - 4096, (1 << 30) - 4096..1 << 30));
        assert_eq!(layout(8192, 512), (0..4096, 4096..4096, 4096..8192));
        assert_eq!(layout(7680, 512), (0..7680, 7680..7680, 7680..7680));
        assert_eq!(layout(4096 + 512, 4096), (0..4096, 4096..4096, 4096..4096));
    }
}
