//! What the controller makes of the ends of its tasks: what is known now, or what failed
//! and is to be waited out.

use std::time::Instant;

use tracing::{debug, info, warn};

use super::Controller;
use super::act::{Done, Ended};
use crate::cluster::ApiError;
use crate::deleter::WipeError;
use crate::verdict::{Reason, Verdict};

impl Controller {
    /// Takes over all that have ended by now.
    pub(super) fn take_results(&mut self, first: Result<Done, tokio::task::JoinError>) {
        let mut next = Some(first);
        while let Some(result) = next {
            match result {
                Ok(done) => self.take_result(done),
                Err(error) => panic!("a task of the controller ended without a result: {error}"),
            }
            next = self.work.try_join_next();
        }
    }

    fn take_result(&mut self, Done { pv, ended, wiped }: Done) {
        self.reclaiming.remove(&pv);
        self.dirty = true;
        let name_only = self.config.use_node_name_only;
        if !matches!(ended, Ended::Api(ApiError::Unknown(_))) && self.memory.api_answered() {
            info!("The API server answers again");
        }
        if wiped {
            let released_at = self.cache.owned().get(&pv).and_then(|owned| owned.since);
            self.memory.note_reclaimed(&pv, released_at.unwrap_or_else(|| jiff::Timestamp::now().as_second()));
        }
        match ended {
            Ended::Is(object) => match self.cache.learn(&object, name_only) {
                Some(_) => {
                    self.memory.saw(&pv);
                    self.memory.succeeded(&pv);
                }
                None => {
                    let detail = format!("the name {pv} is taken by a PV that is not ours; delete or rename it");
                    self.fail(&pv, Verdict::new(Reason::Refused, detail));
                }
            },
            Ended::NameTaken(object) => {
                self.cache.learn(&object, name_only);
                self.memory.name_is_taken(&pv);
            }
            Ended::IsGone => {
                let last = self.cache.owned().get(&pv);
                self.books.note_gone(last, &self.tools.scribe);
                self.cache.remove(&pv);
                self.memory.succeeded(&pv);
            }
            Ended::Api(ApiError::Unknown(error)) => {
                let verdict = Verdict::new(Reason::Pending, "the API server has not answered");
                self.memory.unanswered(&pv, verdict, Instant::now(), fastrand::f64());
                if self.memory.api_is_silent(Instant::now(), fastrand::f64()) {
                    warn!(error, "The API server does not answer; trying again");
                }
                // What has not begun yet is decided on anew.
                for action in self.queue.drain(..) {
                    self.memory.look_again(action.pv());
                }
            }
            Ended::Api(error) => {
                self.note_refusal(&error);
                self.fail(&pv, Verdict::new(Reason::Refused, format!("its PV can't be written: {error}")));
            }
            Ended::Ledger(error) => {
                self.memory.look_again(&pv);
                self.books.complain(&error.to_string());
            }
            Ended::NotWiped(WipeError::Ledger(problem)) => {
                self.memory.look_again(&pv);
                self.books.complain(&problem);
            }
            Ended::NotOffered(error) => {
                self.fail_with(&pv, error.verdict_of_look(), matches!(error, WipeError::Busy(_)));
            }
            Ended::NotWiped(WipeError::Cancelled) | Ended::Stopped => self.memory.look_again(&pv),
            Ended::NotWiped(error) => {
                let is_device = || self.cache.owned().get(&pv)?.identity.as_ref().map(|identity| identity.is_device());
                let cheap = match &error {
                    WipeError::Busy(_) => true,
                    // All of a device may have been read.
                    WipeError::NotBlank(_) => is_device() == Some(false),
                    _ => false,
                };
                self.fail_with(&pv, error.verdict(), cheap);
            }
        }
    }

    fn fail(&mut self, pv: &str, verdict: Verdict) {
        self.fail_with(pv, verdict, false);
    }

    fn fail_with(&mut self, pv: &str, verdict: Verdict, cheap: bool) {
        debug!(pv, %verdict, "Work failed; waiting before it is tried again");
        self.memory.failed(pv, verdict, cheap, Instant::now(), fastrand::f64());
    }
}
