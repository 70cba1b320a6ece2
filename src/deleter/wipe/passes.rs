//! The passes over all of a device: zeros, random data, and discarding.

use std::io;
use std::ops::Range;

use rustix::io::Errno;

use super::buffer::Buffer;
use super::device::{Device, TRANSFER};
use super::random::RandomStream;
use super::run::Run;
use crate::deleter::{Phase, WipeError};
use crate::node::ioctl;

/// The most that the kernel is told to zero or discard at once; a disk that needs long
/// for it is asked for less.
const COMMAND_MAX: u64 = 1 << 30;
/// The most zeros that it is told to write: more at once is not faster, and can't be stopped.
const KERNEL_WRITE_MAX: u64 = 16 << 20;
const WRITE_MAX: u64 = TRANSFER as u64;

/// Zeroes the range. With `offload`, by the kernel's BLKZEROOUT: a disk that can does it by
/// itself, to another the kernel writes zeros, many at a time. Else by writing every block.
pub fn zero(run: &mut Run<'_>, pass: u32, range: Range<u64>, offload: bool) -> Result<(), WipeError> {
    run.control.enter(Phase::Zeroing);
    let device = run.device;
    let most = match offload {
        true if device.queue("write_zeroes_max_bytes") > 0 => COMMAND_MAX,
        true => KERNEL_WRITE_MAX,
        false => WRITE_MAX,
    };
    let (mut offload, zeros) = (offload, Buffer::zeros(TRANSFER));
    run.pass(pass, range, most, |chunk| {
        if offload {
            match ioctl::zero_out(device.fd(), chunk.start, chunk.end - chunk.start) {
                Err(error) if is_unsupported(&error) => offload = false,
                done => return done.map_err(WipeError::at("zeroing", chunk)),
            }
        }
        device.write_zeros(chunk, &zeros, "writing zeros")
    })
}

/// Writes random data all over the range.
pub fn overwrite(run: &mut Run<'_>, pass: u32, range: Range<u64>) -> Result<(), WipeError> {
    run.control.enter(Phase::Overwriting);
    let device = run.device;
    let mut stream = RandomStream::new()?;
    let mut buffer = Buffer::zeros(TRANSFER);
    run.pass(pass, range, WRITE_MAX, |chunk| {
        let part = buffer.part_mut(chunk.end - chunk.start);
        stream.fill(part);
        device.write(part, chunk.start, "overwriting")
    })
}

/// Tells the disk that the range is not needed. `false` when it can't be told.
pub fn discard(run: &mut Run<'_>, pass: u32, range: Range<u64>, from: u64) -> Result<bool, WipeError> {
    run.control.enter(Phase::Discarding);
    let device = run.device;
    let mut supported = device.queue("discard_max_bytes") > 0;
    let unit = device.queue("discard_granularity").max(device.block).next_multiple_of(device.block);
    if supported {
        let zeros = Buffer::zeros(TRANSFER);
        for edge in edges(&range, unit) {
            run.control.expect_more(edge.end - edge.start);
            run.go_over(edge, WRITE_MAX, |_, chunk| device.write_zeros(chunk, &zeros, "zeroing the edges"))?;
        }
        run.pass(pass, range.start.max(from)..range.end, COMMAND_MAX, |chunk| {
            let whole = reach_back(&chunk, &range, unit);
            if supported {
                match ioctl::discard(device.fd(), whole.start, whole.end - whole.start) {
                    Err(error) if is_unsupported(&error) => supported = false,
                    done => done.map_err(WipeError::at("discarding", chunk))?,
                }
            }
            Ok(())
        })?;
    }
    Ok(supported)
}

/// A disk may leave what is no whole unit of its own as it is (`discard_granularity`), and
/// with partitions nobody knows where its units begin: so a unit at both ends is written.
fn edges(range: &Range<u64>, unit: u64) -> [Range<u64>; 2] {
    [
        range.start..range.start.saturating_add(unit).min(range.end),
        range.end.saturating_sub(unit).max(range.start)..range.end,
    ]
}

/// For the same reason each chunk begins a unit before the end of the last one.
fn reach_back(chunk: &Range<u64>, range: &Range<u64>, unit: u64) -> Range<u64> {
    chunk.start.saturating_sub(unit).max(range.start)..chunk.end
}

/// Overwrites one of the ends as often as the rest was, in the same ways, and leaves it
/// zeroed and durable.
pub fn erase_end(device: &Device<'_>, end: Range<u64>, random_passes: u32) -> Result<(), WipeError> {
    const STEP: &str = "taking the mark off";
    let mut buffer = Buffer::zeros(usize::try_from(end.end - end.start).expect("an end is some blocks"));
    for _ in 0..random_passes {
        RandomStream::new()?.fill(buffer.bytes_mut());
        device.write(buffer.bytes(), end.start, STEP)?;
        device.sync(STEP)?;
    }
    buffer.bytes_mut().fill(0);
    device.write(buffer.bytes(), end.start, STEP)?;
    device.sync(STEP)
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that discards whole units only, which begin at any block.
    #[test]
    fn every_block_is_in_a_whole_discarded_unit_or_is_written() {
        let range = 8..200;
        for unit in [1, 2, 7, 16, 64, 300] {
            for begin in 0..unit {
                let chunks = (range.start..range.end).step_by(32).map(|at| at..(at + 32).min(range.end));
                let discards: Vec<_> = chunks.map(|chunk| reach_back(&chunk, &range, unit)).collect();
                for block in range.clone() {
                    // The unit that the block is in; the first may begin before the disk.
                    let end = begin + (block + unit - begin) / unit * unit;
                    let start = end.checked_sub(unit);
                    let discarded = discards.iter().any(|it| start >= Some(it.start) && end <= it.end);
                    let written = edges(&range, unit).iter().any(|edge| edge.contains(&block));
                    assert!(discarded || written, "block {block}, unit {unit} from {begin}");
                }
            }
        }
    }
}
