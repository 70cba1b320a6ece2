//! Another config, without a restart. It comes into force together with the first look
//! into all of its directories, so that nothing is concluded from what was not looked at.
//! One that can't be used changes nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::{error, info};

use super::{Controller, next_resync};
use crate::config::{Class, Config};
use crate::config_dir::{Loaded, Reading};
use crate::discovery::Snapshot;
use crate::events::{self, About};
use crate::ledger::{Entry, Ledger, State};

impl Controller {
    /// Takes over what was read in the config directory after it had changed.
    pub(super) fn take_reading(&mut self, reading: Reading) {
        self.tools.metrics.config_reload(reading.is_ok());
        match reading {
            Ok(mut next) if next.hash != self.config_hash => {
                next.config.succeed(&self.config);
                self.scanner.look_in(next.config.mount_dirs());
                self.next_config = Some(next);
                self.change_config();
            }
            Ok(_) => {
                // One that was on its way is taken back.
                self.next_config = None;
                self.scanner.look_in(self.config.mount_dirs());
                info!("The config is again the one in force");
            }
            Err(problem) => {
                error!(problem, "The config was changed and can't be used; the last good one stays in force");
                let about = About::Node(self.node_name.clone());
                let note =
                    format!("{problem}. The config that was in force before stays so. To do: correct the ConfigMap");
                self.tools.events.send(events::Event::warning(about, events::CONFIG_REJECTED, note));
            }
        }
    }

    /// Puts the config in force that waits for it, if all of its directories have been
    /// looked at.
    pub(super) fn change_config(&mut self) {
        let Some(snapshot) = &self.snapshot else { return };
        let Some(next) = self.next_config.take_if(|next| covers(snapshot, &next.config)) else { return };
        let Loaded { config, hash } = next;
        let before = std::mem::replace(&mut self.config, config);
        self.config_hash = hash;
        self.tools.metrics.config_hash.set(hash.cast_signed());
        tell(&before, &self.config);
        self.books.note_classes(self.config.remembered(), &self.tools.scribe);
        self.turns.set_wipes(self.config.max_parallel_wipes);
        if self.config.resync != before.resync {
            self.resync_at = Instant::now() + next_resync(&self.config);
        }
        // What was decided by the former config and has not begun is decided on anew, and
        // what failed under it may succeed. To look whether a volume is empty costs a lot.
        for action in self.queue.drain(..) {
            self.memory.look_again(action.pv());
        }
        let owned = self.cache.owned();
        self.memory.forget_setbacks_but(|pv| owned.get(pv).is_some_and(|owned| owned.quarantined));
        self.judge_snapshot();
        self.feed_pvs();
    }

    /// Whether a snapshot shows all that the config asks for. One that was taken while
    /// another config was on its way, which was taken back, may not.
    pub(super) fn is_of_config(&self, snapshot: &Snapshot) -> bool {
        covers(snapshot, &self.config)
    }

    /// Forgets the former classes that have no PVs any more.
    pub(super) fn forget_former_classes(&mut self) {
        // A PV that is being made is not known yet.
        let is_making = self.work.len() > self.reclaiming.len() || !self.queue.is_empty();
        if self.config.former.is_empty() || self.next_config.is_some() || is_making {
            return;
        }
        let (owned, ledger, unseen) = (self.cache.owned(), self.books.ledger(), &self.unseen);
        let is_read = |class: &Class| !unseen.contains_key(&class.mount_dir);
        let is_needed = |present: &[Class], class: &Class| {
            let mut same_place = present.iter().filter(|now| now.host_dir == class.host_dir);
            let mut owned = owned.values().filter(|owned| owned.class == class.name);
            if owned.any(|owned| class.entry_of(&owned.path).is_some()) || may_have_unknown_pv(ledger, class) {
                let is_replaced = same_place.any(|now| now.name == class.name && is_read(now));
                return is_read(class) || !is_replaced;
            }
            // What is mounted there is nobody's use of what the class of now has.
            is_read(class) && same_place.any(|now| now.mount_dir != class.mount_dir)
        };
        if self.config.retain_former(is_needed) {
            self.scanner.look_in(self.config.mount_dirs());
            self.books.note_classes(self.config.remembered(), &self.tools.scribe);
        }
    }
}

/// Whether a PV of the class was asked for and never seen: the call had no answer.
fn may_have_unknown_pv(ledger: &Ledger, class: &Class) -> bool {
    let of_class = |entry: &&Entry| *entry.class == *class.name && class.entry_of(&entry.path).is_some();
    ledger.entries().filter(of_class).any(|entry| matches!(entry.state, State::Offered { uid: None, .. }))
}

/// Whether all directories of the config have been looked at.
fn covers(snapshot: &Snapshot, config: &Config) -> bool {
    config.mount_dirs().iter().all(|directory| snapshot.directories.contains_key(directory))
}

/// One line that says what has changed.
fn tell(before: &Config, now: &Config) {
    let names =
        |config: &Config| -> BTreeSet<String> { config.classes.iter().map(|class| class.name.clone()).collect() };
    let list = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(", ");
    let (old, new) = (names(before), names(now));
    let is_other = |name: &&String| before.class(name) != now.class(name);
    info!(
        added = list(&mut new.difference(&old)),
        removed = list(&mut old.difference(&new)),
        changed = list(&mut old.intersection(&new).filter(is_other)),
        "Config is changed"
    );
}
