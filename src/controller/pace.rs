//! How far apart decisions are. Each goes through all entries, and during a burst there is
//! a reason for one with each answer and each event of a watch.

use std::time::{Duration, Instant};

/// A decision is followed by a rest of so many times as long as it took, but no longer.
const REST: (u32, Duration) = (9, Duration::from_millis(100));
/// The least rest while PVs are being made or changed.
const BUSY: Duration = Duration::from_millis(10);

/// When the next decision may be.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the last one began, and the rest from then on.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// A decision that was begun at that time has taken so long.
    pub fn decided(&mut self, began: Instant, took: Duration) {
        self.last = Some((began, (took * REST.0).min(REST.1)));
    }

    /// The earliest time for the next: after a silence, a time that has passed.
    pub fn next(&self, busy: bool) -> Option<Instant> {
        self.last.map(|(began, rest)| began + if busy { rest.max(BUSY) } else { rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_take_a_tenth_of_the_time_at_most_but_never_wait_long() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        assert_eq!(pace.next(true), None, "the first is at once");
        let ms = Duration::from_millis;
        for (took, busy, rest) in [
            (ms(0), false, ms(0)),
            (ms(0), true, ms(10)),
            (ms(5), false, ms(45)),
            (ms(5), true, ms(45)),
            (ms(400), false, ms(100)),
        ] {
            pace.decided(began, took);
            assert_eq!(pace.next(busy), Some(began + rest), "{took:?} {busy}");
        }
    }
}
