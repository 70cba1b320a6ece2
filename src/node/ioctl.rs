//! The ioctls on block devices and filesystems (`linux/fs.h`, `linux/loop.h`,
//! `linux/btrfs.h`), and two calls into the C library. The
//! only file with `unsafe` in it: each ioctl hands the kernel a pointer to a local
//! value of exactly the type that the request asks for, and an fd that is borrowed,
//! hence open.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

mod raw {
    use nix::{ioctl_read, request_code_none};
    // BLKGETSIZE64 is declared with size_t in the header, though it writes a u64.
    ioctl_read!(size64, 0x12, 114, usize);
    // BLKGETDISKSEQ, Linux 5.15.
    ioctl_read!(diskseq, 0x12, 128, u64);
    // BLKZEROOUT takes a range, though its request code says that it takes nothing.
    nix::ioctl_write_ptr_bad!(zeroout, request_code_none!(0x12, 127), [u64; 2]);
    // LOOP_GET_STATUS64 fills a `struct loop_info64`, though its request code says nothing.
    nix::ioctl_read_bad!(loop_status, 0x4c05, [u64; 29]);
    // FS_IOC_GETFSUUID, Linux 6.9: `struct fsuuid2`, a length and 16 bytes.
    ioctl_read!(fs_uuid, 0x15, 0, [u8; 17]);
    // BTRFS_IOC_FS_INFO: `struct btrfs_ioctl_fs_info_args`.
    ioctl_read!(btrfs_info, 0x94, 31, [u64; 128]);
    // So does BLKDISCARD.
    nix::ioctl_write_ptr_bad!(discard, request_code_none!(0x12, 119), [u64; 2]);
    // BLKSSZGET gives an int, though its request code says that it gives nothing.
    nix::ioctl_read_bad!(sector_size, request_code_none!(0x12, 104), nix::libc::c_int);
    // FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR.
    ioctl_read!(get_attributes, b'X', 31, super::FileAttributes);
    nix::ioctl_write_ptr!(set_attributes, b'X', 32, super::FileAttributes);
}

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
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

/// The device number of what a loop device is on (`lo_rdevice` of `LOOP_GET_STATUS64`), as
/// stat(2) packs it; 0 for a file.
///
/// # Errors
/// The kernel's answer, such as ENXIO when it is on nothing.
pub fn loop_backing(device: impl AsFd) -> io::Result<u64> {
    let mut status = [0_u64; 29];
    // SAFETY: the fd is open, and the kernel writes the 232 bytes of a `loop_info64`.
    unsafe { raw::loop_status(device.as_fd().as_raw_fd(), &raw mut status) }?;
    Ok(status[2])
}

/// The UUID of the filesystem that an open file is in (`FS_IOC_GETFSUUID`); `None` when it
/// has none of 16 bytes.
///
/// # Errors
/// The kernel's answer, such as ENOTTY before Linux 6.9 and of filesystems without.
pub fn filesystem_uuid(file: impl AsFd) -> io::Result<Option<u128>> {
    let mut answer = [0_u8; 17];
    // SAFETY: the fd is open, and the kernel writes the 17 bytes of a `fsuuid2`.
    unsafe { raw::fs_uuid(file.as_fd().as_raw_fd(), &raw mut answer) }?;
    let [length, uuid @ ..] = answer;
    Ok((length == 16).then_some(u128::from_be_bytes(uuid)))
}

/// The UUID of the btrfs that an open file is in (`BTRFS_IOC_FS_INFO`): Linux up to at
/// least 6.18 does not tell it by [`filesystem_uuid`].
///
/// # Errors
/// The kernel's answer, such as ENOTTY of other filesystems.
pub fn btrfs_uuid(file: impl AsFd) -> io::Result<u128> {
    let mut info = [0_u64; 128];
    // SAFETY: the fd is open, and the kernel reads and writes the 1024 bytes of a
    // `btrfs_ioctl_fs_info_args`.
    unsafe { raw::btrfs_info(file.as_fd().as_raw_fd(), &raw mut info) }?;
    let [high, low] = [info[2], info[3]].map(|word| u128::from(u64::from_be_bytes(word.to_ne_bytes())));
    Ok(high << 64 | low)
}

/// Tells a block device that a range is not needed any more (BLKDISCARD). What it reads
/// after is the device's choice. `offset` and `length` as for [`zero_out`].
///
/// # Errors
/// The kernel's answer, such as EOPNOTSUPP.
pub fn discard(device: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the fd is open, and the kernel reads two u64 from `range`.
    unsafe { raw::discard(device.as_fd().as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Size of a block device's logical blocks in bytes (BLKSSZGET): the least that can be
/// written past the page cache.
///
/// # Errors
/// The kernel's answer, such as ENOTTY when it is no block device.
pub fn block_size(device: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the fd is open, and the kernel writes an int.
    unsafe { raw::sector_size(device.as_fd().as_raw_fd(), &raw mut bytes) }?;
    u64::try_from(bytes).map_err(io::Error::other)
}

/// Lets a command that is about to be started, and all that it starts, have the open
/// file too. The file must be open still when the command is started.
pub fn inherit(command: &mut Command, file: &impl AsRawFd) {
    let file = file.as_raw_fd();
    let keep_open = move || match unsafe { nix::libc::fcntl(file, nix::libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec only fcntl is called, which is allowed there.
    unsafe { command.pre_exec(keep_open) };
}

/// The project whose quota a file or directory counts for (`FS_IOC_FSGETXATTR`).
///
/// # Errors
/// The kernel's answer, such as ENOTTY or EOPNOTSUPP where the filesystem knows none.
pub fn project(file: impl AsFd) -> io::Result<u32> {
    Ok(attributes(file.as_fd())?.project)
}

/// Sets the project, and leaves the other attributes (`FS_IOC_FSSETXATTR`).
///
/// # Errors
/// The kernel's answer, such as EOPNOTSUPP where the filesystem knows none.
pub fn set_project(file: impl AsFd, project: u32) -> io::Result<()> {
    let file = file.as_fd();
    let attributes = FileAttributes { project, ..attributes(file)? };
    // SAFETY: the fd is open, and the kernel reads a `struct fsxattr`.
    unsafe { raw::set_attributes(file.as_raw_fd(), &raw const attributes) }?;
    Ok(())
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<FileAttributes> {
    let mut attributes = FileAttributes::default();
    // SAFETY: the fd is open, and the kernel writes a `struct fsxattr`.
    unsafe { raw::get_attributes(file.as_raw_fd(), &raw mut attributes) }?;
    Ok(attributes)
}

/// Keeps the heap in one piece. The allocator makes one for nearly each thread, and the
/// many short ones of a burst leave all of theirs behind.
#[cfg(target_env = "gnu")]
pub fn keep_heap_small() {
    // SAFETY: takes no pointer; called before there is another thread.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
pub fn keep_heap_small() {}

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

const _: () = assert!(size_of::<FileAttributes>() == 28, "the size of `struct fsxattr`");
const _: () = assert!(size_of::<usize>() == 8, "mooring is built for 64-bit targets");
