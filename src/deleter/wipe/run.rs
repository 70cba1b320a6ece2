//! Goes over a range of a device in chunks: short enough to be stopped between (the
//! kernel can't be interrupted within one), no faster than the bandwidth allows, and
//! with a durable cursor in the journal about once a second.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::device::Device;
use super::throttle::Throttle;
use super::{Cursor, Journal};
use crate::deleter::{Control, WipeError};

/// A chunk should take about this long.
const CHUNK_TIME: Duration = Duration::from_millis(200);
const CHUNK_MIN: u64 = 64 << 10;
const CHUNK_START: u64 = 1 << 20;
/// The cursor is written down this often at most.
const CHECKPOINT: Duration = Duration::from_secs(1);

/// A wipe under way.
pub struct Run<'a> {
    /// What is being wiped.
    pub device: &'a Device<'a>,
    /// Who waits for it.
    pub control: &'a Control,
    journal: &'a mut dyn Journal,
    throttle: Throttle,
    began: Instant,
    checkpointed: Instant,
}

impl<'a> Run<'a> {
    /// Begins.
    pub fn new(
        device: &'a Device<'a>,
        bandwidth: Option<u64>,
        journal: &'a mut dyn Journal,
        control: &'a Control,
    ) -> Self {
        let now = Instant::now();
        Self { device, control, journal, throttle: Throttle::new(bandwidth), began: now, checkpointed: now }
    }

    /// Writes the cursor down, once everything before it is durable.
    pub fn checkpoint(&mut self, cursor: Cursor) -> Result<(), WipeError> {
        self.device.sync("making durable what was written")?;
        self.journal.checkpoint(cursor)?;
        self.checkpointed = Instant::now();
        Ok(())
    }

    /// Does the step for each chunk of the range, up to `most` bytes each, and writes
    /// down how far the pass is.
    pub fn pass(
        &mut self,
        pass: u32,
        range: Range<u64>,
        most: u64,
        mut step: impl FnMut(Range<u64>) -> Result<(), WipeError>,
    ) -> Result<(), WipeError> {
        self.go_over(range, most, |run, chunk| {
            let end = chunk.end;
            step(chunk)?;
            if run.checkpointed.elapsed() >= CHECKPOINT {
                run.checkpoint(Cursor { pass, offset: end })?;
            }
            Ok(())
        })?;
        self.checkpoint(Cursor { pass: pass + 1, offset: 0 })
    }

    /// Does the step for each chunk of the range, up to `most` bytes each.
    pub fn go_over(
        &mut self,
        range: Range<u64>,
        most: u64,
        mut step: impl FnMut(&mut Self, Range<u64>) -> Result<(), WipeError>,
    ) -> Result<(), WipeError> {
        let mut offset = range.start;
        let mut size = CHUNK_START;
        while offset < range.end {
            self.control.check()?;
            let chunk = self.throttle.chunk(size.min(most), self.device.block);
            // Chunks end where a multiple of their size does: disks like it.
            let end = (offset - offset % chunk + chunk).min(range.end);
            self.control.sleep(self.throttle.take(end - offset, self.began.elapsed()))?;
            let start = Instant::now();
            step(self, offset..end)?;
            size = next_size(size, start.elapsed()).min(most.max(CHUNK_MIN));
            self.control.advance(end - offset);
            offset = end;
        }
        Ok(())
    }
}

/// Twice or half the size when the last chunk was far from the time it should take.
fn next_size(size: u64, took: Duration) -> u64 {
    if took < CHUNK_TIME / 2 {
        size.saturating_mul(2)
    } else if took > CHUNK_TIME * 2 {
        (size / 2).max(CHUNK_MIN)
    } else {
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_approach_a_fifth_of_a_second() {
        let ms = Duration::from_millis;
        assert_eq!(next_size(16 << 20, ms(10)), 32 << 20);
        assert_eq!(next_size(16 << 20, ms(200)), 16 << 20);
        assert_eq!(next_size(16 << 20, ms(900)), 8 << 20);
        assert_eq!(next_size(CHUNK_MIN, ms(900)), CHUNK_MIN);
    }
}
