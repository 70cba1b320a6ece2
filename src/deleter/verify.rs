//! Reads a wiped volume back, and takes the marks off a device. The only way to a
//! [`Verified`].

use std::ops::Range;

use super::wipe::{self, Buffer, Cursor, Device, Job, TRANSFER};
use super::{Control, OpenVolume, Phase, Receipt, Verified, WipeError, Wiped, tree};
use crate::method::{Method, Verify};

const PAGE: u64 = 4096;
const ZEROS: [u8; 4096] = [0; 4096];
/// How much of each end of the data is read in full.
const END: u64 = 1 << 20;
/// Up to here all of the data is read: that takes no longer than so many single blocks.
const SMALL: u64 = 256 << 20;
/// How many blocks between the ends are read: one at random in each of as many equal
/// parts.
const SAMPLES: u64 = 4096;

/// Looks whether anything is left: any entry of a directory, or anything but zeros on a
/// device whose wipe ends in zeros, as thoroughly as the rules say. Then a device's
/// marks are zeroed, and its ends read back.
///
/// # Errors
/// What was found, or why it couldn't be read.
pub fn verify<L>(wiped: Wiped<L>, job: &mut Job<'_>, control: &Control) -> Result<Verified<L>, WipeError> {
    let Wiped { claimed, began } = wiped;
    let (bytes, verification, method) = match &claimed.volume {
        OpenVolume::Directory(root) => {
            if let Some(name) = tree::first_entry(root)? {
                return Err(WipeError::NotClean(format!("{name} is there")));
            }
            (0, Verify::Full, "remove")
        }
        OpenVolume::Device { fd, bytes } => {
            let verification = device(&Device::new(fd, *bytes)?, job, control)?;
            (*bytes, verification, job.rules.method.as_str())
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    Ok(Verified { claimed, receipt: Receipt { method, bytes, seconds, verification: verification.as_str() } })
}

/// The part of it for a device. Returns what was read back.
///
/// # Errors
/// As [`verify`].
pub fn device(device: &Device<'_>, job: &mut Job<'_>, control: &Control) -> Result<Verify, WipeError> {
    let ends_in_zeros = job.rules.method.ends_in_zeros();
    let verification = if ends_in_zeros { job.rules.verify } else { Verify::None };
    if let Err(error) = data_is_zero(device, verification, control) {
        if matches!(error, WipeError::NotClean(_)) {
            // What is left lies before the cursor: the next wipe must not begin there.
            if let Err(problem) = job.journal.checkpoint(Cursor::START) {
                tracing::warn!(%problem, "The journal still has the cursor of a wipe that left something");
            }
        }
        return Err(error);
    }
    wipe::unmark(device, job.rules, control)?;
    if ends_in_zeros {
        device.check_rest()?;
    }
    if !matches!(job.rules.method, Method::Command(_)) {
        for end in [device.head(), device.tail()] {
            all_zero(device, end, &mut Buffer::zeros(TRANSFER), control)?;
        }
    }
    Ok(verification)
}

/// Looks for anything but zeros between a device's ends.
///
/// # Errors
/// [`WipeError::NotClean`] with the place of the first byte that is not zero.
pub fn data_is_zero(device: &Device<'_>, how: Verify, control: &Control) -> Result<(), WipeError> {
    control.enter(Phase::Verifying);
    let data = device.data();
    match how {
        Verify::None => Ok(()),
        Verify::Full => {
            let mut buffer = Buffer::zeros(TRANSFER);
            let mut offset = data.start;
            while offset < data.end {
                let end = data.end.min(offset + TRANSFER as u64);
                all_zero(device, offset..end, &mut buffer, control)?;
                control.advance(end - offset);
                offset = end;
            }
            Ok(())
        }
        Verify::Sample => {
            let block = device.block.max(PAGE);
            let mut buffer = Buffer::zeros(TRANSFER.min(usize::try_from(END.max(block)).unwrap_or(TRANSFER)));
            sample(data, block, || fastrand::u64(..))
                .try_for_each(|range| all_zero(device, range, &mut buffer, control))
        }
    }
}

/// Looks for anything but zeros on all of a device, where it is most likely first.
///
/// # Errors
/// As [`data_is_zero`].
pub fn is_zero(device: &Device<'_>, control: &Control) -> Result<(), WipeError> {
    for end in [device.head(), device.tail()] {
        all_zero(device, end, &mut Buffer::zeros(TRANSFER), control)?;
    }
    data_is_zero(device, Verify::Sample, control)?;
    device.check_rest()?;
    data_is_zero(device, Verify::Full, control)
}

/// Reads a range, and finds the first byte in it that is not zero.
fn all_zero(device: &Device<'_>, range: Range<u64>, buffer: &mut Buffer, control: &Control) -> Result<(), WipeError> {
    let mut offset = range.start;
    while offset < range.end {
        control.check()?;
        let part = buffer.part_mut(range.end - offset);
        device.read(part, offset, "reading the device back")?;
        for (block, place) in part.chunks(ZEROS.len()).zip((offset..).step_by(ZEROS.len())) {
            if block != &ZEROS[..block.len()] {
                let at = block.iter().position(|byte| *byte != 0).unwrap_or(0);
                return Err(WipeError::NotClean(format!("byte {} is not zero", place + at as u64)));
            }
        }
        offset += part.len() as u64;
    }
    Ok(())
}

/// What to read of the data: all of a little, else both ends, and between them a random
/// block of each part, in order, so that a rotating disk need not go back.
fn sample(data: Range<u64>, block: u64, mut random: impl FnMut() -> u64) -> impl Iterator<Item = Range<u64>> {
    let size = data.end - data.start;
    let end = if size <= SMALL { size } else { END }.next_multiple_of(block);
    let middle = (data.start + end).min(data.end)..data.end.saturating_sub(end).max((data.start + end).min(data.end));
    let blocks = (middle.end - middle.start) / block;
    let parts = blocks.min(SAMPLES);
    let between = (0..parts).map({
        let start = middle.start;
        move |part| {
            // The product fits: less than 2^64 / 4096 blocks, and 4096 parts.
            let (from, to) = (blocks * part / parts, blocks * (part + 1) / parts);
            let chosen = from + random() % (to - from);
            start + chosen * block..start + (chosen + 1) * block
        }
    });
    let head = data.start..middle.start;
    let tail = middle.start + blocks * block..data.end;
    [head].into_iter().chain(between).chain([tail])
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    #[test]
    fn both_ends_and_a_spread_of_the_middle_are_read() {
        let data: Range<u64> = 4096..(10 << 30) - 4096;
        let ranges: Vec<_> = sample(data.clone(), PAGE, || 12_345_678_901_234_567).collect();
        assert!(ranges.is_sorted_by(|a, b| a.end <= b.start));
        assert_eq!(ranges.len() as u64, SAMPLES + 2);
        assert_eq!((ranges[0].clone(), ranges[1].end - ranges[1].start), (4096..4096 + END, PAGE));
        let last = ranges.last().expect("there is one");
        assert!(last.start <= data.end - END && last.end == data.end, "{last:?}");
        let widest = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).max();
        assert!(widest <= Some(2 * (data.end / SAMPLES)), "{widest:?}");
        let others: Vec<_> = sample(data, PAGE, || 7).collect();
        assert_ne!(ranges, others, "which blocks are read is random");
    }

    #[test]
    fn a_small_device_is_read_in_full() {
        for bytes in [0, 512, 4096, 10_240, 1 << 20, (1 << 20) + 512, 3 << 20, 100 << 20, SMALL] {
            let mut next = 4096;
            for range in sample(4096..4096 + bytes, PAGE, || 0) {
                assert_eq!(range.start, next, "{bytes}");
                next = range.end;
            }
            assert_eq!(next, 4096 + bytes);
        }
    }

    /// A file stands in for the device: what is read and compared is the same.
    fn file(bytes: usize, secret_at: Option<usize>) -> OwnedFd {
        let file = tempfile::tempfile().expect("a file can be made");
        let mut content = vec![0_u8; bytes];
        if let Some(at) = secret_at {
            content[at] = 1;
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).expect("it can be written");
        file.into()
    }

    fn look(file: &OwnedFd, bytes: usize, how: Verify) -> Result<(), WipeError> {
        data_is_zero(&Device::with_block(file.as_fd(), bytes as u64, 512), how, &Control::default())
    }

    #[test]
    fn a_byte_that_is_left_is_found_and_its_place_is_named() {
        let size = 9 << 20;
        for how in [Verify::None, Verify::Sample, Verify::Full] {
            look(&file(size, None), size, how).expect("it is all zeros");
        }
        for at in [4096, 8191, 8192, (4 << 20) + 4096, (5 << 20) + 77, size - (1 << 20), size - 4097] {
            for how in [Verify::Sample, Verify::Full] {
                let error = look(&file(size, Some(at)), size, how).expect_err("a byte is left");
                assert!(
                    matches!(&error, WipeError::NotClean(text) if text.contains(&format!("byte {at} "))),
                    "{error}"
                );
            }
            look(&file(size, Some(at)), size, Verify::None).expect("nothing is read");
        }
    }

    #[test]
    fn a_device_that_ends_too_early_is_not_clean() {
        for how in [Verify::Sample, Verify::Full] {
            let error = look(&file(64 << 10, None), 128 << 10, how).expect_err("the end is missing");
            assert!(matches!(&error, WipeError::NotClean(text) if text.contains("ends at byte 65536")), "{error}");
        }
    }
}
