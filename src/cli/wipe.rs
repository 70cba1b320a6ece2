//! `mooring wipe`: the deleter's work on one volume by an admin's hand, without a PV and
//! without a cluster. What the agent refuses is refused here too; the ledger is asked in
//! the place of the API server, and its entry is locked for as long as the wipe lasts.

mod progress;
mod volume;
mod work;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::by_hand::ByHand;
use crate::deleter::{self, Control, WipeError};
use crate::ledger::{EntryId, Ledger};
use crate::method::WipeRules;
use crate::state_dir::StateDir;
use progress::Progress;
use volume::{Found, describe};
use work::{Done, Work};

/// The state directory when none is named, if it is there.
pub const STATE_DIR: &str = "/var/lib/mooring";
/// How often the progress is drawn.
const TICK: Duration = Duration::from_millis(100);
/// How long a wipe that was told to end is waited for; it mostly takes 0.2 s.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device, or the mount point of a directory.
    pub path: PathBuf,
    /// How it is wiped.
    pub rules: WipeRules,
    /// Whether it is only said what would be done.
    pub dry_run: bool,
    /// Whether nothing is asked.
    pub yes: bool,
    /// The state directory; none: [`STATE_DIR`], if it is there.
    pub state_dir: Option<PathBuf>,
    /// The digest of a volume that is wiped in spite of the ledger.
    pub forced: Option<String>,
    /// The digest that the volume must have.
    pub expected: Option<String>,
}

/// Why the volume is not wiped and verified. Says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing was touched.
    #[error("refused, nothing was touched: {0}")]
    Refused(String),
    /// It may be half wiped.
    #[error("the wipe failed: {0}")]
    Failed(String),
    /// It was told to end, and is half wiped.
    #[error("interrupted: {0}")]
    Interrupted(String),
}

impl Problem {
    #[allow(clippy::needless_pass_by_value, reason = "for map_err, which gives the error away")]
    fn refused(why: impl ToString) -> Self {
        Self::Refused(why.to_string())
    }

    /// What the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 3,
            Self::Interrupted(_) => 130,
        }
    }
}

/// Wipes the volume, or says what it would do.
///
/// # Errors
/// Why not.
pub fn run(options: &Options) -> Result<(), Problem> {
    let found = volume::find(options)?;
    let (state, ledger) = open_state(options.state_dir.as_deref())?;
    let leave = ByHand::check(&ledger, &found.request).map_err(Problem::refused)?;
    deleter::inspect(&found.target).map_err(|error| with_hint(&error))?;
    let description = describe(&found, leave.known(), options, state.is_some());
    if options.dry_run {
        if let Some((state, known)) = state.as_ref().zip(leave.known()) {
            drop(state.lock_entry(known.id).wait().map_err(Problem::refused)?);
        }
        return say(&format!("{description}\nDry run: nothing was changed; without --dry-run this would be wiped"));
    }
    eprintln!("{description}");
    confirm(&found, options)?;
    let id = leave.known().map_or_else(|| EntryId(fastrand::u128(..)), |entry| entry.id);
    let work = Work { state, id, leave, found: found.clone(), rules: options.rules.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Problem::refused)?.block_on(watch_over(work))?;
    say(&done.receipt(&found))
}

/// What is known of volumes. Beside a running agent, whose memory is then not the only one.
fn open_state(named: Option<&Path>) -> Result<(Option<StateDir>, Ledger), Problem> {
    let directory = named.unwrap_or(Path::new(STATE_DIR));
    if named.is_none() && !directory.is_dir() {
        return Ok((None, Ledger::default()));
    }
    let (state, ledger) = StateDir::open_beside_agent(directory).map_err(Problem::refused)?;
    Ok((Some(state), ledger))
}

/// Waits for an admin's yes.
fn confirm(found: &Found, options: &Options) -> Result<(), Problem> {
    if options.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Problem::refused("there is no terminal to ask on; add --yes to wipe without a question"));
    }
    eprint!("This destroys all data on {}. Type yes to go on: ", found.request.path);
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Problem::refused)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Problem::refused("the answer was not yes")) }
}

/// Lets a thread do the work, shows how far it is, and tells it to end at a signal.
async fn watch_over(work: Work) -> Result<Done, Problem> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Problem::refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Problem::refused)?;
    let is_device = work.found.is_device();
    let resume = work.resume_hint();
    let control = Arc::new(Control::default());
    let mut thread = deleter::spawn("wipe", &control, move |control| Ok(work.run(control)));
    let mut progress = Progress::new(is_device);
    let mut give_up_at: Option<Instant> = None;
    loop {
        tokio::select! {
            result = &mut thread => {
                progress.end();
                return match result {
                    Ok(Ok(result)) => result,
                    Ok(Err(error)) => Err(Problem::Failed(error.to_string())),
                    Err(_) => Err(Problem::refused("no thread is to be had for the work")),
                };
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(TICK) => {
                progress.show(&control);
                if give_up_at.is_some_and(|at| Instant::now() >= at) {
                    progress.end();
                    let held = "the kernel holds the wipe and does not let it end; look after the disk";
                    return Err(Problem::Interrupted(format!("{held}. {resume}")));
                }
                continue;
            }
        }
        // A second signal does not wait.
        if give_up_at.replace(Instant::now() + PATIENCE).is_some() {
            give_up_at = Some(Instant::now());
        }
        control.cancel();
    }
}

/// What stands against a wipe before it begins; with the way on, where there is one.
fn with_hint(error: &WipeError) -> Problem {
    let hint = match error {
        WipeError::IdentityUnknown(_) => "; if this one is meant, type that digest after --force-identity",
        _ => "",
    };
    Problem::Refused(format!("{error}{hint}"))
}

fn say(text: &str) -> Result<(), Problem> {
    writeln!(io::stdout(), "{text}").map_err(|error| Problem::Failed(format!("the output can't be written: {error}")))
}
