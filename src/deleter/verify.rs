//! Reads a wiped volume back. The only way to a [`Verified`].

use std::os::fd::OwnedFd;

use super::block::{aligned_mut, set_direct};
use super::{Control, OpenVolume, Verified, WipeError, Wiped, tree};

const BLOCK: usize = 4096;
/// How much of each end of a device is read in full.
const END: u64 = 1 << 20;
/// How many blocks between the ends are read, at even distances from a random start.
const SAMPLES: u64 = 1024;

/// Looks whether anything is left: any entry of a directory, or anything but zeros at
/// both ends of a device and in a sample of the blocks between.
///
/// # Errors
/// What was found, or why it couldn't be read.
pub fn verify(wiped: Wiped, control: &Control) -> Result<Verified, WipeError> {
    match &wiped.0.volume {
        OpenVolume::Directory(root) => {
            if let Some(name) = tree::first_entry(root)? {
                return Err(WipeError::NotClean(format!("{name} is there")));
            }
        }
        OpenVolume::Device { fd, bytes } => reads_zeros(fd, *bytes, control)?,
    }
    Ok(Verified(wiped.0))
}

fn reads_zeros(device: &OwnedFd, bytes: u64, control: &Control) -> Result<(), WipeError> {
    set_direct(device)?;
    let mut memory = vec![0_u8; 2 * BLOCK];
    let buffer = aligned_mut(&mut memory, BLOCK);
    for offset in sample(bytes, fastrand::u64(..)) {
        control.check()?;
        let length = usize::try_from(bytes - offset).map_or(BLOCK, |left| left.min(BLOCK));
        let read = rustix::io::pread(device, &mut buffer[..length], offset)
            .map_err(|errno| WipeError::io("reading the device back")(errno.into()))?;
        if read == 0 {
            return Err(WipeError::NotClean(format!("the device can't be read at byte {offset}")));
        }
        if let Some(at) = buffer[..read].iter().position(|byte| *byte != 0) {
            return Err(WipeError::NotClean(format!("byte {} is not zero", offset + at as u64)));
        }
    }
    Ok(())
}

/// Offsets of the blocks to read, aligned, in order.
fn sample(bytes: u64, seed: u64) -> impl Iterator<Item = u64> {
    let block = BLOCK as u64;
    let blocks = bytes.div_ceil(block);
    let end = END / block;
    let middle = end..blocks.saturating_sub(end).max(end);
    let step = ((middle.end - middle.start) / SAMPLES).max(1);
    let between = (middle.start + seed % step..middle.end).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    let tail = blocks.saturating_sub(end).max(end)..blocks;
    (0..end.min(blocks)).chain(between).chain(tail).map(move |index| index * block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_and_a_spread_of_the_middle_are_read() {
        let bytes: u64 = 10 << 30;
        let offsets: Vec<u64> = sample(bytes, 12_345).collect();
        assert!(offsets.is_sorted_by(|a, b| a < b));
        assert_eq!((offsets[0], offsets[offsets.len() - 1]), (0, bytes - 4096));
        assert!(offsets.len() >= 1024 + 512 && offsets.len() < 1600, "{}", offsets.len());
        let widest = offsets.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(widest <= Some(2 * (bytes / 1024)), "{widest:?}");
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

    #[test]
    fn a_byte_that_is_left_is_found_and_its_place_is_named() {
        let size = 8 << 20;
        let control = Control::default();
        reads_zeros(&file(size, None), size as u64, &control).expect("it is all zeros");
        for at in [0, 4095, (1 << 20) - 1, size - (1 << 20), size - 1] {
            let error = reads_zeros(&file(size, Some(at)), size as u64, &control).expect_err("a byte is left");
            assert!(matches!(&error, WipeError::NotClean(text) if text.contains(&format!("byte {at} "))), "{error}");
        }
        let error = reads_zeros(&file(4096, None), 8192, &control).expect_err("the end is missing");
        assert!(matches!(error, WipeError::NotClean(_)), "{error}");
    }

    #[test]
    fn a_small_device_is_read_in_full() {
        for bytes in [0, 512, 4096, 10_000, 1 << 20, (1 << 20) + 512, 3 << 20] {
            let offsets: Vec<u64> = sample(bytes, 7).collect();
            let all: Vec<u64> = (0..bytes.div_ceil(4096)).map(|block| block * 4096).collect();
            assert_eq!(offsets, all, "{bytes}");
        }
    }
}
