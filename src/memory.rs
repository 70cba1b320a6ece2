//! What the controller remembers between two plans: what is under way, and what
//! went wrong and when to try again. Lost at a restart without harm.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::brake::Brake;
use crate::verdict::Verdict;

/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The same after a look that costs little, and that is to be repeated soon: whether a
/// volume is still in use, or still not empty.
const CHEAP: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How many of the last reclaims are remembered, for the brake on mass release.
const RECLAIMED: usize = 256;
/// First and longest wait while the API server does not answer: nothing that is to be
/// done for one volume can be done for another then.
const SILENCE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// The controller's memory, by name of the PV.
#[derive(Debug, Default)]
pub struct Memory {
    /// Work under way; nothing else is begun for these.
    pub in_flight: HashSet<String>,
    /// PVs that were asked for and have not been seen yet, with when their volumes were found.
    offering: HashMap<String, Instant>,
    /// When the first look began upon which nothing was decided yet.
    looked_at: Option<Instant>,
    /// Names that other PVs were found to have.
    taken: HashSet<String>,
    setbacks: HashMap<String, Setback>,
    missing: HashMap<String, Instant>,
    wanted: HashMap<String, Instant>,
    braking: Option<(Brake, Instant)>,
    reclaimed: VecDeque<(String, i64)>,
    silence: Option<Silence>,
}

/// The API server does not answer.
#[derive(Clone, Copy, Debug)]
struct Silence {
    until: Instant,
    failures: u32,
}

/// How long to wait after so many `failures` in a row before this one: the first wait of
/// the `bounds`, doubled with each up to the longest, and of that a part between half and
/// all of it, by `jitter` in `[0, 1)`, so that the agents of a cluster do not all come
/// back at the same moment.
#[must_use]
pub fn backoff(bounds: (Duration, Duration), failures: u32, jitter: f64) -> Duration {
    let (first, longest) = bounds;
    (first * 2_u32.saturating_pow(failures.min(16))).min(longest).mul_f64(0.5 + jitter / 2.0)
}

/// A failure that is waited out.
#[derive(Clone, Debug, PartialEq)]
pub struct Setback {
    /// Shown as the volume's verdict meanwhile.
    pub verdict: Verdict,
    /// When to try again.
    pub retry_at: Instant,
    failures: u32,
}

impl Memory {
    /// Work for the PV has begun.
    pub fn begin(&mut self, pv: &str) {
        self.in_flight.insert(pv.to_owned());
    }

    /// The PV is about to be made, for a volume that was found at that time.
    pub fn begin_offering(&mut self, pv: &str, found_at: Instant) {
        self.offering.insert(pv.to_owned(), found_at);
    }

    /// When the volume was found for which the PV is to be made: the last look that brought
    /// something new, or the one before something went wrong with the PV.
    #[must_use]
    pub fn found_at(&self, pv: &str) -> Option<Instant> {
        let first = self.offering.get(pv).copied().filter(|_| self.setbacks.contains_key(pv));
        first.or(self.looked_at)
    }

    /// A look that began at that time has brought something new.
    pub fn note_look(&mut self, began: Option<Instant>) {
        self.looked_at = self.looked_at.or(began);
    }

    /// What the look has brought is decided upon. In a silence nothing is begun for it.
    pub fn decided(&mut self) {
        self.looked_at = self.looked_at.filter(|_| self.is_silent());
    }

    /// Whether this process has asked for the PV, and has not seen it since.
    #[must_use]
    pub fn is_offering(&self, pv: &str) -> bool {
        self.offering.contains_key(pv)
    }

    /// The PV was seen.
    pub fn saw(&mut self, pv: &str) {
        self.offering.remove(pv);
    }

    /// A PV was not made, for another one has that name.
    pub fn name_is_taken(&mut self, pv: &str) {
        self.saw(pv);
        self.succeeded(pv);
        self.taken.insert(pv.to_owned());
    }

    /// Whether another PV was found to have that name.
    #[must_use]
    pub fn is_taken(&self, pv: &str) -> bool {
        self.taken.contains(pv)
    }

    /// Work for the PV ended well: nothing of the past counts any more.
    pub fn succeeded(&mut self, pv: &str) {
        self.in_flight.remove(pv);
        self.setbacks.remove(pv);
    }

    /// Work for the PV ended, and is to be decided on anew at once.
    pub fn look_again(&mut self, pv: &str) {
        self.in_flight.remove(pv);
    }

    /// Work for the PV failed; it waits longer with each failure in a row (see [`backoff`]),
    /// but never long when it was only a look, `cheap` to repeat.
    pub fn failed(&mut self, pv: &str, verdict: Verdict, cheap: bool, now: Instant, jitter: f64) {
        let failures = self.failures(pv);
        let wait = backoff(if cheap { CHEAP } else { BACKOFF }, failures, jitter);
        self.set_back(pv, Setback { verdict, retry_at: now + wait, failures: failures.saturating_add(1) });
    }

    /// A call for the PV had no answer. It waits a little, so that others are tried first:
    /// else one call that always fails would keep all others.
    pub fn unanswered(&mut self, pv: &str, verdict: Verdict, now: Instant, jitter: f64) {
        let wait = backoff((SILENCE.1, SILENCE.1), 0, jitter);
        self.set_back(pv, Setback { verdict, retry_at: now + wait, failures: self.failures(pv) });
    }

    fn set_back(&mut self, pv: &str, setback: Setback) {
        self.look_again(pv);
        self.setbacks.insert(pv.to_owned(), setback);
    }

    /// A call had no answer. Calls that fail together count as one failure; returns
    /// whether this was the first.
    pub fn api_is_silent(&mut self, now: Instant, jitter: f64) -> bool {
        let failures = match self.silence {
            Some(silence) if now < silence.until => return false,
            Some(silence) => silence.failures,
            None => 0,
        };
        let until = now + backoff(SILENCE, failures, jitter);
        self.silence = Some(Silence { until, failures: failures.saturating_add(1) });
        failures == 0
    }

    /// A call was answered; returns whether that ends a silence.
    pub fn api_answered(&mut self) -> bool {
        self.silence.take().is_some()
    }

    /// Whether the last call had no answer.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// When to try again, while the API server does not answer.
    #[must_use]
    pub fn silent_until(&self, now: Instant) -> Option<Instant> {
        self.silence.map(|silence| silence.until).filter(|until| now < *until)
    }

    /// Remembers since when the volumes of PVs are not there: `missing` are those of now.
    pub fn note_missing(&mut self, missing: BTreeSet<String>, now: Instant) {
        self.missing.retain(|pv, _| missing.contains(pv));
        for pv in missing {
            self.missing.entry(pv).or_insert(now);
        }
    }

    /// Since when the PV's volume is not there.
    #[must_use]
    pub fn missing_since(&self, pv: &str) -> Option<Instant> {
        self.missing.get(pv).copied()
    }

    /// Remembers since when PVs are to be wiped: `wanted` are those of now.
    pub fn note_wanted(&mut self, wanted: BTreeSet<String>, now: Instant) {
        self.wanted.retain(|pv, _| wanted.contains(pv));
        for pv in wanted {
            self.wanted.entry(pv).or_insert(now);
        }
    }

    /// Since when this process knows that the PV is to be wiped.
    #[must_use]
    pub fn wanted_since(&self, pv: &str) -> Option<Instant> {
        self.wanted.get(pv).copied()
    }

    /// Remembers since when there is a mass release.
    pub fn note_mass_release(&mut self, brake: Option<Brake>, now: Instant) {
        let before = self.braking;
        self.braking = brake.map(|brake| {
            // It may have grown meanwhile.
            let same = before.filter(|(other, _)| other.holds(brake.from) || brake.holds(other.from));
            (brake, same.map_or(now, |(_, since)| since))
        });
    }

    /// Since when this process knows of the mass release.
    #[must_use]
    pub fn braking_since(&self, brake: &Brake) -> Option<Instant> {
        self.braking.filter(|(known, _)| known.holds(brake.from) || brake.holds(known.from)).map(|(_, since)| since)
    }

    /// The PV's volume, which was released at that second (since 1970), was reclaimed. Of
    /// one PV, the last time counts.
    pub fn note_reclaimed(&mut self, pv: &str, released_at: i64) {
        self.reclaimed.retain(|(other, _)| other != pv);
        if self.reclaimed.len() == RECLAIMED {
            self.reclaimed.pop_front();
        }
        self.reclaimed.push_back((pv.to_owned(), released_at));
    }

    /// The PVs whose volumes were reclaimed lately, and when they had been released.
    pub fn reclaimed(&self) -> impl Iterator<Item = (&str, i64)> {
        self.reclaimed.iter().map(|(pv, released_at)| (pv.as_str(), *released_at))
    }

    /// The failure that is being waited out for the PV, if any.
    #[must_use]
    pub fn setback(&self, pv: &str) -> Option<&Setback> {
        self.setbacks.get(pv)
    }

    /// Forgets what went wrong with the PV.
    pub fn forget_setback(&mut self, pv: &str) {
        self.setbacks.remove(pv);
    }

    /// Forgets what went wrong with all of them.
    pub fn forget_setbacks(&mut self) {
        self.setbacks.clear();
    }

    /// Forgets what went wrong with all PVs but those.
    pub fn forget_setbacks_but(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.setbacks.retain(|pv, _| is_kept(pv));
    }

    /// How often in a row work for the PV has failed.
    #[must_use]
    pub fn failures(&self, pv: &str) -> u32 {
        self.setbacks.get(pv).map_or(0, |setback| setback.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Reason;

    #[test]
    fn waits_double_up_to_five_minutes_and_end_with_success() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..12 {
            memory.begin("pv");
            memory.failed("pv", Verdict::new(Reason::Refused, ""), false, now, 0.999_999);
            assert!(memory.in_flight.is_empty());
            waits.push((memory.setback("pv").expect("just failed").retry_at - now).as_secs_f64().round());
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0]);
        memory.succeeded("pv");
        assert_eq!(memory.setback("pv"), None);
        assert_eq!(memory.failures("pv"), 0);
    }

    #[test]
    fn calls_that_fail_together_are_one_silence() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        assert!(memory.api_is_silent(now, 0.999_999));
        assert!(!memory.api_is_silent(now, 0.999_999));
        let until = memory.silent_until(now).expect("it is silent");
        assert!(until - now <= Duration::from_millis(500));
        assert!(!memory.api_is_silent(until, 0.999_999));
        assert!(memory.silent_until(until).expect("it still is") - until > Duration::from_millis(900));
        assert!(memory.api_answered() && !memory.api_answered());
        assert_eq!(memory.silent_until(until), None);
    }
}
