//! Wipes a block device through one open file that is held exclusively.
//!
//! The order makes a half-wiped disk recognizable at any moment, also after a kill -9
//! or a pulled plug: first the journal says that the wipe begins; then a mark goes to
//! both ends of the disk; then come the passes over all between, and the journal learns
//! how far they are, after that is durable; [`super::verify`] reads back, and takes the
//! marks off last of all. Nothing is tidied up on failure: the mark stays, and the next
//! wipe goes on at the journal's cursor, or from the start when in doubt.

mod buffer;
mod command;
mod device;
mod mark;
mod passes;
mod run;
mod signatures;
mod throttle;
mod random;

use std::ops::Range;

use super::{Control, Phase, WipeError, verify};
use crate::method::{Method, Verify, WipeRules};
use crate::root::RootFacts;

pub use crate::ledger::Cursor;

pub use buffer::Buffer;
pub use device::{Device, TRANSFER};
pub use mark::{MarkId, read_mark};
pub use run::Run;

/// Remembers, durably and not on the device, that a wipe is under way and how far it is.
pub trait Journal {
    /// Called before anything is destroyed, then about once a second and after each
    /// pass, always after everything before the cursor is durable on the device.
    ///
    /// # Errors
    /// It can't be remembered; the wipe stops.
    fn checkpoint(&mut self, cursor: Cursor) -> Result<(), WipeError>;
}

/// Keeps no journal, for an agent that has no directory for its state: a wipe that is
/// interrupted begins anew.
#[derive(Debug)]
pub struct Unrecorded;

impl Journal for Unrecorded {
    fn checkpoint(&mut self, _: Cursor) -> Result<(), WipeError> {
        Ok(())
    }
}

/// What a wipe of a device is to do.
pub struct Job<'a> {
    /// How.
    pub rules: &'a WipeRules,
    /// The mark for the disk: the id of the ledger's entry.
    pub mark: MarkId,
    /// Where the journal says that an earlier wipe was left. It is believed when the disk
    /// has this very mark, made by the same method when the disk had the same size.
    pub from: Option<Cursor>,
    /// The device's node, for a cleaner command only.
    pub node: &'a str,
    /// What a directory's root is to be like again.
    pub root: Option<&'a RootFacts>,
    /// Where the cursor is written down.
    pub journal: &'a mut dyn Journal,
}

/// Makes a device recognizable as half wiped before another process wipes it: the journal
/// first, then the mark at both ends. Not for a command, which may need what is there;
/// and not where [`signatures`] looks for what it is to erase.
///
/// # Errors
/// The journal or the device can't be written.
pub fn announce(device: &Device<'_>, job: &mut Job<'_>, control: &Control) -> Result<(), WipeError> {
    control.enter(Phase::Marking);
    Run::new(device, None, job.journal, control).checkpoint(Cursor::START)?;
    for end in announced(device, &job.rules.method) {
        mark::write(device, end, job.mark, &job.rules.method)?;
    }
    Ok(())
}

/// Makes sure that what [`announce`] wrote is gone, and so that this very device was wiped.
///
/// # Errors
/// [`WipeError::NotClean`] when it is still there.
pub fn announcement_is_gone(device: &Device<'_>, method: &Method) -> Result<(), WipeError> {
    for end in announced(device, method) {
        if mark::has_mark(device, &end)? {
            return Err(WipeError::NotClean(format!("the mark of the wipe is still there, at byte {}", end.start)));
        }
    }
    Ok(())
}

fn announced(device: &Device<'_>, method: &Method) -> Vec<Range<u64>> {
    match method {
        Method::Command(_) => Vec::new(),
        Method::Signatures => vec![device.tail()],
        _ => vec![device.head(), device.tail()],
    }
}

#[derive(Clone, Copy)]
enum Pass {
    Discard,
    Random,
    Zero { offload: bool },
}

/// Destroys what is on the device, but leaves it marked, and for the rest to be verified.
///
/// # Errors
/// Where it failed, or that it was stopped. What was done up to the last checkpoint
/// need not be done again.
pub fn destroy(device: &Device<'_>, job: &mut Job<'_>, control: &Control) -> Result<(), WipeError> {
    let method = &job.rules.method;
    let mut run = Run::new(device, job.rules.bandwidth, job.journal, control);
    // Without ever having been marked, the disk may have been used since.
    let from = job.from.filter(|from| *from > Cursor::START && mark::is_marked(device, job.mark, method));
    control.enter(Phase::Marking);
    if from.is_none() {
        run.checkpoint(Cursor::START)?;
    }
    let passes = match method {
        Method::Command(command) => {
            return command::run(device, command, job.node, job.rules.command_deadline, control);
        }
        Method::Signatures => return signatures::erase(&mut run, job.mark, method),
        Method::Auto => vec![Pass::Zero { offload: true }],
        Method::Zero { passes } => vec![Pass::Zero { offload: *passes == 1 }; usize::try_from(*passes).unwrap_or(1)],
        Method::Discard => vec![Pass::Discard, Pass::Zero { offload: true }],
        Method::Overwrite { passes } => {
            let random = vec![Pass::Random; usize::try_from(*passes).unwrap_or(1)];
            [random, vec![Pass::Zero { offload: true }]].concat()
        }
    };
    for end in [device.head(), device.tail()] {
        mark::write(device, end, job.mark, method)?;
    }
    go_through(&mut run, &passes, from.unwrap_or_default(), job.rules.verify)
}

fn go_through(run: &mut Run<'_>, passes: &[Pass], from: Cursor, verify: Verify) -> Result<(), WipeError> {
    let data = run.device.data();
    let size = data.end - data.start;
    // None that this wipe can have had: a damaged journal.
    let from = if from.pass as usize > passes.len() { Cursor::START } else { from };
    let in_all = if matches!(passes[0], Pass::Discard) { 1 } else { passes.len() as u64 };
    let done = u64::from(from.pass) * size + from.offset.clamp(data.start, data.end) - data.start;
    let read_back = if verify == Verify::Full { size } else { 0 };
    run.control.set_progress(done.min(in_all * size), in_all * size + read_back);
    for (pass, kind) in (0_u32..).zip(passes).skip_while(|(pass, _)| *pass < from.pass) {
        let rest = if pass == from.pass { rest_of(&data, from.offset) } else { data.clone() };
        match kind {
            Pass::Zero { offload } => passes::zero(run, pass, rest, *offload)?,
            Pass::Random => passes::overwrite(run, pass, rest)?,
            Pass::Discard => {
                if passes::discard(run, pass, data.clone(), rest.start)? && reads_zeros(run, size, verify)? {
                    return Ok(());
                }
                tracing::info!("Discarding the disk's content does not leave zeros; it is zeroed");
                run.control.expect_more(size);
            }
        }
    }
    Ok(())
}

/// Whether a discard was as good as zeroing. What is found out here is found out again
/// when the wipe is verified: nothing else leads to a verified volume.
fn reads_zeros(run: &Run<'_>, size: u64, verify: Verify) -> Result<bool, WipeError> {
    let thorough = if verify == Verify::Full { Verify::Full } else { Verify::Sample };
    if thorough == Verify::Full {
        run.control.expect_more(size);
    }
    match verify::data_is_zero(run.device, thorough, run.control) {
        Ok(()) => Ok(true),
        Err(WipeError::NotClean(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn rest_of(data: &Range<u64>, offset: u64) -> Range<u64> {
    // The journal may be of the time when the disk was larger, or damaged.
    if offset <= data.end { offset.max(data.start)..data.end } else { data.clone() }
}

/// Takes the marks off: the last thing that is written. What a command left at the ends
/// stays; a mark there is of an earlier wipe by another method.
pub fn unmark(device: &Device<'_>, rules: &WipeRules, control: &Control) -> Result<(), WipeError> {
    control.enter(Phase::Unmarking);
    let random_passes = if let Method::Overwrite { passes } = rules.method { passes } else { 0 };
    let is_command = matches!(rules.method, Method::Command(_));
    for end in [device.tail(), device.head()] {
        if !is_command || mark::has_mark(device, &end)? {
            passes::erase_end(device, end, random_passes)?;
        }
    }
    Ok(())
}
