//! Keeps a wipe to a bandwidth: a token bucket that holds one chunk, so that the
//! writes come evenly and a cancel is seen between two of them.

use std::time::Duration;

/// A throttled chunk is what may be written in about this long.
const CHUNK_TIME_PER_SECOND: u64 = 5;

/// The pace of one wipe. It has no clock: it is told the time since its start.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes per second; `None` is as fast as it goes.
    bandwidth: Option<u64>,
    /// When all that was taken so far is paid for.
    free_at: Duration,
}

impl Throttle {
    /// A bandwidth of 0 counts as 1 byte per second: slow, not unlimited.
    pub fn new(bandwidth: Option<u64>) -> Self {
        Self { bandwidth: bandwidth.map(|bytes| bytes.max(1)), free_at: Duration::ZERO }
    }

    /// The most to be written at once: `most`, or the power of two that takes up to a
    /// fifth of a second; never less than `least`, a block.
    pub fn chunk(&self, most: u64, least: u64) -> u64 {
        let Some(bandwidth) = self.bandwidth else { return most };
        let share = (bandwidth / CHUNK_TIME_PER_SECOND).max(1);
        most.min(1 << share.ilog2()).max(least)
    }

    /// How long to wait, from `now` on, before so many bytes may be written.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let Some(bandwidth) = self.bandwidth else { return Duration::ZERO };
        // What was not used is lost: time spent waiting for a disk makes no burst.
        let start = self.free_at.max(now);
        self.free_at = start + cost(bytes, bandwidth);
        start - now
    }
}

fn cost(bytes: u64, bandwidth: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bandwidth);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn without_a_bandwidth_nothing_waits() {
        let mut throttle = Throttle::new(None);
        assert_eq!(throttle.chunk(1 << 30, 512), 1 << 30);
        assert_eq!(throttle.take(u64::MAX, MS(0)), MS(0));
        assert_eq!(throttle.take(u64::MAX, MS(0)), MS(0));
    }

    #[test]
    fn each_chunk_waits_until_the_ones_before_are_paid_for() {
        let mut throttle = Throttle::new(Some(1000));
        assert_eq!(throttle.take(200, MS(0)), MS(0), "the first goes at once");
        assert_eq!(throttle.take(100, MS(0)), MS(200));
        assert_eq!(throttle.take(100, MS(250)), MS(50));
        assert_eq!(throttle.take(100, MS(400)), MS(0));
    }

    #[test]
    fn a_slow_disk_saves_nothing_up() {
        let mut throttle = Throttle::new(Some(1000));
        throttle.take(100, MS(0));
        assert_eq!(throttle.take(100, MS(60_000)), MS(0));
        assert_eq!(throttle.take(100, MS(60_000)), MS(100));
    }

    #[test]
    fn chunks_take_a_fifth_of_a_second_at_most_and_are_whole_blocks() {
        assert_eq!(Throttle::new(Some(100 << 20)).chunk(1 << 30, 512), 16 << 20);
        assert_eq!(Throttle::new(Some(100 << 20)).chunk(1 << 20, 512), 1 << 20);
        assert_eq!(Throttle::new(Some(1)).chunk(1 << 20, 4096), 4096);
        assert_eq!(Throttle::new(Some(0)).take(3, MS(0)), MS(0));
        assert_eq!(Throttle::new(Some(u64::MAX)).chunk(1 << 30, 512), 1 << 30);
    }
}
