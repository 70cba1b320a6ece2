//! The deleter's part of a wipe by a Job: the device is claimed and marked before, and let
//! go, for the Job claims it by itself; and after, it is claimed again and verified. What
//! the Job says is only what makes it worth looking.

use std::time::Instant;

use super::wipe::{self, Device, Job};
use super::{Claimed, Control, OpenVolume, Verified, WipeError, Wiped, verify};
use crate::cleanup_job::Succeeded;

/// Writes down, and on the device, that its wipe begins, and lets go of it. Returns the
/// digest of the device, which the Job is to wipe.
///
/// # Errors
/// It can't be written, or it is a directory.
pub fn leave_to_job(claimed: Claimed, mut job: Job<'_>, control: &Control) -> Result<String, WipeError> {
    control.check()?;
    let (fd, bytes) = device(&claimed)?;
    wipe::announce(&Device::new(fd, bytes)?, &mut job, control)?;
    Ok(claimed.digest)
}

/// Verifies a claimed device that a Job says that it has wiped: it must be the very device
/// that was let go for it, attached all the time, and nothing must be left of the mark.
///
/// # Errors
/// [`WipeError::NotClean`] when the Job has not done what it says, or on another device.
pub fn verify_job(
    claimed: Claimed,
    done: &Succeeded,
    mut job: Job<'_>,
    control: &Control,
) -> Result<Verified, WipeError> {
    let began = Instant::now();
    control.check()?;
    if done.uid() != claimed.leave.uid() {
        return Err(WipeError::Refused("its Job was made for another PV".to_owned()));
    }
    if done.digest() != claimed.digest {
        return Err(WipeError::NotClean(format!(
            "its Job was to wipe what had the digest {}; what is there now has {}, and may have been attached since",
            done.digest(),
            claimed.digest
        )));
    }
    let (fd, bytes) = device(&claimed)?;
    wipe::announcement_is_gone(&Device::new(fd, bytes)?, &job.rules.method)?;
    verify::verify(Wiped { claimed, began }, &mut job, control)
}

fn device(claimed: &Claimed) -> Result<(&std::os::fd::OwnedFd, u64), WipeError> {
    match &claimed.volume {
        OpenVolume::Device { fd, bytes } => Ok((fd, *bytes)),
        OpenVolume::Directory(_) => Err(WipeError::Refused("a directory is not wiped by a Job".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cleanup_job::{self, Found, Order, Progress};
    use crate::deleter::Unrecorded;
    use crate::method::{Method, WipeRules};
    use crate::plan::{ByJob, Target};
    use crate::pv::{OwnedPv, Phase};
    use crate::reclaim::{Begun, Step, next_step};
    use crate::testing;

    fn succeeded(target: &Target, digest: &str) -> Succeeded {
        let by = ByJob { host_dir: "/h/c".to_owned(), tolerations: Vec::new() };
        let (namespace, image, hostname, now) = ("ns", "image", "n1", jiff::Timestamp::UNIX_EPOCH);
        let mut job = Order { target, by: &by, namespace, image, hostname, digest, now }.encode();
        let complete = serde_json::json!({ "conditions": [{ "type": "Complete", "status": "True" }] });
        job.status = Some(serde_json::from_value(complete).expect("it is a status"));
        let target = Target { job: Some(by), ..target.clone() };
        match cleanup_job::judge(&job, &target) {
            Found::Ours(Progress::Succeeded(done)) => done,
            other => panic!("it has succeeded: {other:?}"),
        }
    }

    /// A disk that was away meanwhile may have been another one when the Job ran.
    #[test]
    fn a_jobs_word_is_good_for_the_very_device_that_was_let_go_for_it() {
        let rules = WipeRules { method: Method::Command(vec!["/bin/own".to_owned()]), ..WipeRules::default() };
        let target = Target { rules, ..testing::target("a", 1) };
        let owned = OwnedPv { phase: Phase::Released, fenced: true, terminating: true, ..testing::owned_pv("a", "c") };
        let verify = |done: &Succeeded| {
            let Step::Wipe(leave) = next_step(Some(&owned), Begun { uid: &owned.uid, claim: "" }, false) else {
                panic!("it is fenced")
            };
            let volume = OpenVolume::Device { fd: tempfile::tempfile().expect("a file").into(), bytes: 4096 };
            let claimed = Claimed { leave, volume, is_the_recorded_one: true, digest: "now".to_owned() };
            let (rules, mark) = (&target.rules, wipe::MarkId(1));
            let job = Job { rules, mark, from: None, node: "", root: None, journal: &mut Unrecorded };
            verify_job(claimed, done, job, &Control::default())
        };
        assert!(matches!(verify(&succeeded(&target, "before")), Err(WipeError::NotClean(_))));
        let another = Target { uid: "another".to_owned(), ..target.clone() };
        assert!(matches!(verify(&succeeded(&another, "now")), Err(WipeError::Refused(_))));
        // As far as the device: a file is none.
        assert!(matches!(verify(&succeeded(&target, "now")), Err(WipeError::Io { .. })));
    }
}
