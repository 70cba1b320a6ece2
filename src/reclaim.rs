//! The steps of one Released PV, from the fence to its end, as a pure function of
//! what the API server says *now*. Whoever carries out a step looks again after it,
//! so that a call whose outcome is unknown never counts as done.

use crate::pv::{OwnedPv, Phase, Seen, Word};
use crate::volume::ReclaimPolicy;

/// The next thing to do for a PV that is being reclaimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Check that the volume is the right one and free, then add our finalizer.
    Fence,
    /// Delete the PV; the finalizer keeps it, and no claim can bind it any more.
    Delete,
    /// Wipe the volume: no claim can ever get at it.
    Wipe(Fence),
    /// Wiped and verified: take the finalizer away, and with it the PV.
    Remove,
    /// The PV is not to be wiped any more, and nothing was: take the finalizer away.
    Unfence,
    /// The PV is gone, or another one has its name.
    Gone,
    /// It is somebody's again, or somebody else is deleting it.
    LeaveAlone,
}

/// Proof that a PV was seen with our finalizer, a deletion time, and no claim bound to
/// it: unless somebody edits its `claimRef`, no claim can bind it any more. Only
/// [`next_step`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pv: String,
    uid: String,
}

impl Fence {
    /// Name of the fenced PV.
    #[must_use]
    pub fn pv(&self) -> &str {
        &self.pv
    }

    /// UID of the fenced PV.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// Proof that a PV was seen Released from one claim, unfenced, and to be wiped. Nothing
/// keeps it so: it is what a wipe goes by without the right to patch PVs. Only
/// [`Release::of`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pv: Seen,
    claim: Box<str>,
}

impl Release {
    /// The PV, if it is to be wiped and can be removed by a deletion alone.
    #[must_use]
    pub fn of(pv: &OwnedPv) -> Option<Self> {
        // An admin's word could not be taken off: the next claim would inherit it.
        let free = !pv.hold && !pv.terminating && !pv.fenced && pv.word.is_none();
        let claim = pv.claim.as_ref().filter(|_| free && is_wanted(pv))?;
        Some(Self { pv: Seen::of(pv), claim: claim.uid.clone() })
    }

    /// The PV at that version.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.pv
    }

    /// Whether it was released by the claim with that UID.
    #[must_use]
    pub fn is_from(&self, claim: &str) -> bool {
        *self.claim == *claim
    }

    /// Whether both are about the same PV and claim, whatever else has changed on it.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.pv.uid == other.pv.uid && self.claim == other.claim
    }

    /// Whether the PV is no longer what it was: not to be wiped, or for another claim.
    #[must_use]
    pub fn is_over(&self, now: &OwnedPv) -> bool {
        !Self::of(now).is_some_and(|now| now.is_same(self))
    }

    /// The PV as it is now, if somebody has taken it from its wipe, and no claim has got it
    /// yet.
    #[must_use]
    pub fn taken_back(&self, now: &OwnedPv) -> Option<Unclaimed> {
        Unclaimed::half_wiped(now, &self.claim).filter(|_| now.uid == self.pv.uid)
    }
}

/// Proof that nobody had claimed a PV at one version of it: it may be removed as long as
/// that is its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclaimed(Seen);

impl Unclaimed {
    /// The PV, if it is ours, nobody has claimed it or has it reserved, and nobody is
    /// removing it.
    #[must_use]
    pub fn of(pv: &OwnedPv) -> Option<Self> {
        (pv.is_unclaimed() && !pv.former).then(|| Self(Seen::of(pv)))
    }

    /// The PV, if it is no longer Released from the claim whose data was being wiped, and is
    /// not bound to another either. It may be reserved: nobody must get it half wiped.
    #[must_use]
    pub fn half_wiped(pv: &OwnedPv, wiped_claim: &str) -> Option<Self> {
        let is_claim = pv.claim.as_ref().is_some_and(|claim| *claim.uid == *wiped_claim);
        let taken = !(pv.phase == Phase::Released && is_claim);
        let free = taken && pv.phase != Phase::Bound && !pv.terminating && !pv.fenced;
        free.then(|| Self(Seen::of(pv)))
    }

    /// The PV at that version.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.0
    }
}

/// Whether the volume of a PV is to be wiped: its claim is gone, and its policy says so,
/// or an admin does, or did so for this claim before a restart.
///
/// The controller-manager shows a PV as Released only with the UID of a claim that is gone.
/// Without one, an admin has taken `claimRef` away or reserved the PV for another claim,
/// and the phase is about to change.
#[must_use]
pub fn is_wanted(pv: &OwnedPv) -> bool {
    let claim = pv.claim.as_ref().map(|claim| claim.uid.as_ref()).filter(|uid| !uid.is_empty());
    let decided = is_decided(pv);
    let asked = pv.word == Some(Word::Wipe);
    let by_policy = pv.reclaim_policy == ReclaimPolicy::Delete && pv.word.is_none();
    pv.phase == Phase::Released && !pv.former && claim.is_some() && (by_policy || asked || decided)
}

/// Whether the fence on the PV was put there for the claim that it names.
fn is_decided(pv: &OwnedPv) -> bool {
    pv.reclaiming.is_some() && pv.reclaiming.as_deref() == pv.claim.as_ref().map(|claim| claim.uid.as_ref())
}

/// What a reclaim was begun for.
#[derive(Clone, Copy, Debug)]
pub struct Begun<'a> {
    /// UID of the PV.
    pub uid: &'a str,
    /// UID of the claim whose data is to be wiped.
    pub claim: &'a str,
}

/// Decides the next step of what was begun. `verified`: the volume has been wiped and
/// verified under the fence.
#[must_use]
pub fn next_step(now: Option<&OwnedPv>, begun: Begun<'_>, verified: bool) -> Step {
    let Some(pv) = now.filter(|pv| pv.uid == begun.uid) else { return Step::Gone };
    if pv.former {
        return Step::LeaveAlone;
    }
    // A `claimRef` that names another claim since is about to make the PV Bound.
    let wanted = is_wanted(pv) && pv.claim.as_ref().is_some_and(|claim| *claim.uid == *begun.claim);
    match (pv.fenced, pv.terminating) {
        (true, true) if verified => Step::Remove,
        // An admin holds it; nothing is begun, and nothing goes on.
        _ if pv.hold => Step::LeaveAlone,
        // A claim that names the PV can be bound to it even now, by whoever edits claimRef.
        (true, true) if pv.phase == Phase::Bound => Step::LeaveAlone,
        (true, true) => Step::Wipe(Fence { pv: pv.name.clone(), uid: pv.uid.clone() }),
        (true, false) if wanted && is_decided(pv) => Step::Delete,
        (true, false) => Step::Unfence,
        (false, false) if wanted => Step::Fence,
        (false, _) => Step::LeaveAlone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pv::Claim;
    use crate::testing::owned_pv;

    fn pv(phase: Phase, fenced: bool, terminating: bool) -> OwnedPv {
        let reclaiming = fenced.then(|| "claim-uid".into());
        OwnedPv { phase, fenced, terminating, reclaiming, claim: claim("claim-uid"), ..owned_pv("a", "c") }
    }

    fn begun(uid: &str) -> Begun<'_> {
        Begun { uid, claim: "claim-uid" }
    }

    fn claim(uid: &str) -> Option<Box<Claim>> {
        Some(Box::new(Claim { namespace: "tenant".into(), name: "data".into(), uid: uid.into() }))
    }

    #[test]
    fn a_released_pv_goes_from_fence_to_removal() {
        for (now, verified, step) in [
            (pv(Phase::Released, false, false), false, Step::Fence),
            (pv(Phase::Released, true, false), false, Step::Delete),
            (pv(Phase::Released, true, true), true, Step::Remove),
        ] {
            assert_eq!(next_step(Some(&now), begun(&now.uid), verified), step);
        }
        let now = pv(Phase::Released, true, true);
        assert!(matches!(next_step(Some(&now), begun(&now.uid), false), Step::Wipe(fence) if fence.uid() == now.uid));
    }

    #[test]
    fn nothing_is_wiped_unless_fenced_and_terminating() {
        for phase in [Phase::Pending, Phase::Available, Phase::Bound, Phase::Released, Phase::Failed] {
            for fenced in [false, true] {
                for terminating in [false, true] {
                    let now = pv(phase, fenced, terminating);
                    let step = next_step(Some(&now), begun(&now.uid), false);
                    let expected = fenced && terminating && phase != Phase::Bound;
                    assert_eq!(matches!(step, Step::Wipe(_)), expected, "{now:?}");
                    assert_ne!(step, Step::Remove);
                }
            }
        }
    }

    #[test]
    fn a_pv_that_was_taken_back_is_let_go() {
        for phase in [Phase::Available, Phase::Bound] {
            let now = pv(phase, true, false);
            assert_eq!(next_step(Some(&now), begun(&now.uid), false), Step::Unfence);
            let now = pv(phase, false, false);
            assert_eq!(next_step(Some(&now), begun(&now.uid), false), Step::LeaveAlone);
        }
    }

    #[test]
    fn a_pv_that_was_taken_back_a_moment_ago_and_still_looks_released_is_let_go() {
        for claim in [None, claim("")] {
            let now = OwnedPv { claim: claim.clone(), ..pv(Phase::Released, true, false) };
            assert_eq!(next_step(Some(&now), begun(&now.uid), false), Step::Unfence);
            let now = OwnedPv { claim, word: Some(Word::Wipe), ..pv(Phase::Released, false, false) };
            assert_eq!(next_step(Some(&now), begun(&now.uid), false), Step::LeaveAlone);
        }
    }

    #[test]
    fn a_pv_that_was_given_to_another_claim_and_still_looks_released_is_let_go() {
        for (fenced, step) in [(false, Step::LeaveAlone), (true, Step::Unfence)] {
            let now = OwnedPv { claim: claim("another"), ..pv(Phase::Released, fenced, false) };
            assert_eq!(next_step(Some(&now), begun(&now.uid), false), step);
        }
    }

    #[test]
    fn a_pv_with_another_uid_or_policy_is_not_ours_to_wipe() {
        let now = pv(Phase::Released, true, true);
        assert_eq!(next_step(Some(&now), begun("another"), false), Step::Gone);
        assert_eq!(next_step(None, begun(&now.uid), true), Step::Gone);
        let mut retained = pv(Phase::Released, false, false);
        retained.reclaim_policy = ReclaimPolicy::Retain;
        assert_eq!(next_step(Some(&retained), begun(&retained.uid), false), Step::LeaveAlone);
    }

    #[test]
    fn a_pv_of_a_former_node_is_neither_wiped_nor_removed() {
        for (fenced, terminating, verified) in [(false, false, false), (true, false, false), (true, true, true)] {
            let former = OwnedPv { former: true, ..pv(Phase::Released, fenced, terminating) };
            assert!(!is_wanted(&former));
            assert_eq!(next_step(Some(&former), begun(&former.uid), verified), Step::LeaveAlone);
        }
        let free = OwnedPv { claim: None, ..pv(Phase::Available, false, false) };
        assert!(Unclaimed::of(&free).is_some());
        assert_eq!(Unclaimed::of(&OwnedPv { former: true, ..free }), None);
    }

    #[test]
    fn a_pv_whose_claim_was_taken_off_is_not_wiped_even_if_it_still_shows_as_released() {
        let mut kept = pv(Phase::Released, false, false);
        kept.claim = None;
        assert!(!is_wanted(&kept));
        let mut reserved = pv(Phase::Released, false, false);
        reserved.claim.as_mut().expect("it has one").uid = "".into();
        assert!(!is_wanted(&reserved));
        assert_eq!(next_step(Some(&kept), begun(&kept.uid), false), Step::LeaveAlone);
    }

    #[test]
    fn nothing_is_begun_or_goes_on_while_it_is_held_but_what_is_done_is_ended() {
        for (fenced, terminating) in [(false, false), (true, false), (true, true)] {
            let held = OwnedPv { hold: true, ..pv(Phase::Released, fenced, terminating) };
            assert_eq!(next_step(Some(&held), begun(&held.uid), false), Step::LeaveAlone);
        }
        let held = OwnedPv { hold: true, ..pv(Phase::Released, true, true) };
        assert_eq!(next_step(Some(&held), begun(&held.uid), true), Step::Remove);
    }

    #[test]
    fn without_a_fence_only_a_released_pv_is_wiped_and_only_for_its_claim() {
        let released = pv(Phase::Released, false, false);
        let release = Release::of(&released).expect("it is Released");
        assert!(release.is_from("claim-uid") && !release.is_from("another"));
        for phase in [Phase::Pending, Phase::Available, Phase::Bound, Phase::Failed] {
            assert_eq!(Release::of(&pv(phase, false, false)), None, "{phase:?}");
        }
        for other in [
            OwnedPv { hold: true, ..released.clone() },
            OwnedPv { word: Some(Word::Wipe), ..released.clone() },
            OwnedPv { reclaim_policy: ReclaimPolicy::Retain, ..released.clone() },
            OwnedPv { claim: claim(""), ..released.clone() },
            OwnedPv { claim: None, ..released.clone() },
            pv(Phase::Released, true, false),
            pv(Phase::Released, false, true),
        ] {
            assert_eq!(Release::of(&other), None, "{other:?}");
        }
        let annotated = OwnedPv { resource_version: "2".into(), ..released.clone() };
        assert!(Release::of(&annotated).expect("it still is").is_same(&release));
        let another = OwnedPv { claim: claim("another"), ..released };
        assert!(!Release::of(&another).expect("it is Released").is_same(&release));
    }

    #[test]
    fn a_pv_that_is_taken_from_its_wipe_is_withdrawn_unless_a_claim_has_it() {
        let released = pv(Phase::Released, false, false);
        let release = Release::of(&released).expect("it is Released");
        assert_eq!(release.taken_back(&released), None);
        assert_eq!(release.taken_back(&OwnedPv { reclaim_policy: ReclaimPolicy::Retain, ..released.clone() }), None);
        for (phase, claim, taken) in [
            (Phase::Released, None, true),
            (Phase::Released, claim("another"), true),
            (Phase::Available, None, true),
            (Phase::Available, claim(""), true),
            (Phase::Available, claim("another"), true),
            (Phase::Bound, claim("another"), false),
            (Phase::Bound, claim("claim-uid"), false),
        ] {
            let now = OwnedPv { claim, ..pv(phase, false, false) };
            assert_eq!(release.taken_back(&now).is_some(), taken, "{now:?}");
        }
        let free = OwnedPv { claim: None, ..pv(Phase::Available, false, false) };
        assert_eq!(release.taken_back(&OwnedPv { uid: "another".into(), ..free.clone() }), None);
        assert_eq!(release.taken_back(&OwnedPv { terminating: true, ..free }), None);
    }

    #[test]
    fn what_was_decided_for_one_claim_does_not_hold_for_the_next() {
        let mut retained = pv(Phase::Released, true, false);
        retained.reclaim_policy = ReclaimPolicy::Retain;
        retained.reclaiming = Some("claim-uid".into());
        assert_eq!(next_step(Some(&retained), begun(&retained.uid), false), Step::Delete);
        retained.reclaiming = Some("another".into());
        assert_eq!(next_step(Some(&retained), begun(&retained.uid), false), Step::Unfence);
    }
}
