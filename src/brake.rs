//! The brake on mass release. When most of a node's claims vanish within a minute, it
//! is more likely that the API server's data was restored from a backup than that all
//! the tenants left at once, and wiping them would turn a mistake into a loss.

use std::time::Duration;

/// So many must be released at once, at least.
const LEAST: usize = 10;
/// "At once": within this time, in seconds.
const WINDOW: i64 = 60;
/// How long nothing of it is wiped.
pub const HOLD: Duration = Duration::from_secs(300);

/// So many at the same time may be the first of a mass release.
const FEW: usize = 3;
/// "At the same time": so many seconds apart.
const MOMENT: i64 = 2;
/// How long they wait for more to follow.
pub const PAUSE: Duration = Duration::from_secs(2);

/// Since which second volumes were released that may be the first of a mass release. Nobody tells
/// the agent of all at once, and it would wipe up to half of them before it knows. The arguments are
/// those of [`Brake::find`].
#[must_use]
pub fn may_begin(bound: usize, released: &[i64]) -> Option<i64> {
    let from = released.iter().max()? - MOMENT;
    let count = released.iter().filter(|at| **at >= from).count();
    (count >= FEW && bound + count >= LEAST).then_some(from)
}

/// A mass release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brake {
    /// When the first of its volumes was released, in seconds since 1970.
    pub from: i64,
    /// When the last of them was.
    pub to: i64,
    /// How many there are.
    pub released: usize,
    /// How many volumes were bound before.
    pub of: usize,
}

impl Brake {
    /// Finds the last time when at least ten, and more than half, of the bound volumes were
    /// released within a minute. `released` are the times of all releases that are known,
    /// in seconds since 1970; `bound` volumes are bound now.
    #[must_use]
    pub fn find(bound: usize, mut released: Vec<i64>) -> Option<Self> {
        if released.len() < LEAST {
            return None;
        }
        released.sort_unstable();
        let mut found = None;
        let mut start = 0;
        for (end, to) in released.iter().copied().enumerate() {
            while released[start] < to - WINDOW {
                start += 1;
            }
            let count = end + 1 - start;
            // What was released after this was bound then.
            let of = bound + released.len() - start;
            if count >= LEAST && count * 2 > of {
                found = Some(Self { from: released[start], to, released: count, of });
            }
        }
        found
    }

    /// Until when its volumes are not wiped: seconds since 1970.
    #[must_use]
    pub fn until(&self) -> i64 {
        self.to + i64::try_from(HOLD.as_secs()).expect("a few minutes")
    }

    /// Whether a volume that was released at that second belongs to it.
    #[must_use]
    pub fn holds(&self, since: i64) -> bool {
        (self.from..=self.to).contains(&since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_volumes_released_within_a_minute_are_held() {
        let releases = |count: i64| (0..count).map(|number| 1_000 + number * 5).collect::<Vec<_>>();
        let brake = Brake::find(5, releases(12)).expect("12 of 17 within a minute");
        assert_eq!((brake.released, brake.of), (12, 17));
        assert_eq!(brake.until(), 1_355);
        assert!(brake.holds(1_055) && brake.holds(1_000) && !brake.holds(999) && !brake.holds(1_056));
        for (bound, releases, why) in [
            (0, releases(9), "fewer than ten"),
            (12, releases(12), "no more than half"),
            (0, (0..30).map(|number| number * 10).collect(), "one each ten seconds"),
            (1_000, Vec::new(), "none"),
        ] {
            assert_eq!(Brake::find(bound, releases), None, "{why}");
        }
    }

    #[test]
    fn a_few_volumes_released_at_the_same_time_may_be_the_first_of_most() {
        assert_eq!(may_begin(9, &[5, 1_000, 1_001, 1_002]), Some(1_000));
        for (bound, released, why) in [
            (9, &[1_000, 1_003, 1_006][..], "one after the other"),
            (9, &[1_000, 1_000], "two"),
            (6, &[1_000, 1_000, 1_000], "there are nine in all"),
            (100, &[], "none"),
        ] {
            assert_eq!(may_begin(bound, released), None, "{why}");
        }
    }

    #[test]
    fn volumes_released_long_before_do_not_count() {
        let mut releases: Vec<i64> = (0..8).collect();
        releases.extend([1_000; 5]);
        assert_eq!(Brake::find(0, releases), None);
    }
}
