//! The ioctls on block devices (`linux/fs.h`), and one call into the C library. The
//! only file with `unsafe` in it: each ioctl hands the kernel a pointer to a local
//! value of exactly the type that the request asks for, and an fd that is borrowed,
//! hence open.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

mod raw {
    use nix::{ioctl_read, request_code_none};
    // BLKGETSIZE64 is declared with size_t in the header, though it writes a u64.
    ioctl_read!(size64, 0x12, 114, usize);
    // BLKGETDISKSEQ, Linux 5.15.
    ioctl_read!(diskseq, 0x12, 128, u64);
    // BLKZEROOUT takes a range, though its request code says that it takes nothing.
    nix::ioctl_write_ptr_bad!(zeroout, request_code_none!(0x12, 127), [u64; 2]);
}

/// Size of a block device in bytes (BLKGETSIZE64).
///
/// # Errors
/// The kernel's answer, such as ENOTTY when it is no block device.
pub fn device_size(device: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0_usize;
    // SAFETY: the fd is open, and the kernel writes 8 bytes, the size of `bytes`
    // on the 64-bit targets that this program is built for.
    unsafe { raw::size64(device.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u64::try_from(bytes).map_err(io::Error::other)
}

/// Sequence number of the disk (BLKGETDISKSEQ): new at each attachment, unique
/// until the next boot. `None` on kernels before 5.15.
///
/// # Errors
/// The kernel's answer, such as ENOTTY when it is no block device.
pub fn disk_sequence(device: impl AsFd) -> io::Result<Option<u64>> {
    let mut sequence = 0_u64;
    // SAFETY: the fd is open, and the kernel writes a u64.
    match unsafe { raw::diskseq(device.as_fd().as_raw_fd(), &raw mut sequence) } {
        Ok(_) => Ok(Some(sequence)),
        Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EINVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a range of a block device read as zeros (BLKZEROOUT), by offload where the
/// device can, else the kernel writes zero pages. `offset` and `length` are in bytes
/// and multiples of the logical block size. Can't be interrupted while it runs.
///
/// # Errors
/// The kernel's answer, such as EIO.
pub fn zero_out(device: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the fd is open, and the kernel reads two u64 from `range`.
    unsafe { raw::zeroout(device.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Gives the memory back that a burst of work has left free in the heap (`malloc_trim`).
/// The allocator alone keeps it.
#[cfg(target_env = "gnu")]
pub fn release_free_memory() {
    // SAFETY: takes no pointer; the allocator's own locks order it with other threads.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub fn release_free_memory() {}

const _: () = assert!(size_of::<usize>() == 8, "mooring is built for 64-bit targets");
