//! Looks at a volume before it is offered, and while it is quarantined. Nothing on it is
//! changed, but that the root of an empty directory gets its owner and mode back.

use super::claim::{Intent, Opened, open};
use super::{Control, MarkId, OpenVolume, WipeError, root, tree, verify, wipe};
use crate::plan::Target;
use crate::pv::Seen;
use crate::root::RootFacts;

/// What is to be known of a volume before it is offered.
#[derive(Debug)]
pub struct Offerable {
    /// Of a directory: what its root is like. `None` when the kernel does not tell.
    pub root: Option<RootFacts>,
    /// Of a device: the mark of a wipe that has not ended.
    pub mark: Option<MarkId>,
    /// As long as this lives, nobody else claims the volume.
    _volume: OpenVolume,
}

/// Looks at a volume that is about to be offered.
///
/// # Errors
/// It is another one by now, or the ends of a device can't be read.
pub fn look(target: &Target) -> Result<Offerable, WipeError> {
    let volume = open(target, Intent::Look)?.volume;
    let (root, mark) = match &volume {
        OpenVolume::Directory(directory) => (root::read(directory).ok(), None),
        OpenVolume::Device { fd, bytes } => {
            (None, wipe::read_mark(fd, *bytes).map_err(WipeError::io("reading the ends of the device"))?)
        }
    };
    Ok(Offerable { root, mark, _volume: volume })
}

/// Proof that nothing was on a quarantined volume while its PV was like this. Only
/// [`blank`] makes one. As long as it lives, nobody else claims the volume.
#[derive(Debug)]
pub struct Blank {
    pv: Seen,
    is_the_recorded_one: bool,
    _volume: OpenVolume,
}

impl Blank {
    /// The PV at that version.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.pv
    }

    /// Whether it is the volume that was recorded, or one in its place.
    #[must_use]
    pub fn is_the_recorded_one(&self) -> bool {
        self.is_the_recorded_one
    }
}

/// Makes sure that nothing is on the volume: no entry in a directory, nothing but zeros on
/// all of a device.
///
/// # Errors
/// [`WipeError::NotBlank`] with what is there, or why it couldn't be read.
pub fn blank(target: &Target, pv: Seen, control: &Control) -> Result<Blank, WipeError> {
    let Opened { volume, is_the_recorded_one, .. } = open(target, Intent::Inspect)?;
    match &volume {
        OpenVolume::Directory(directory) => {
            if let Some(name) = tree::first_entry(directory)? {
                return Err(WipeError::NotBlank(format!("{name} is in it")));
            }
            if let Some(facts) = target.record.root.as_deref().and_then(|text| serde_json::from_str(text).ok()) {
                root::restore(directory, &facts)?;
            }
        }
        OpenVolume::Device { fd, bytes } => {
            let device = wipe::Device::new(fd, *bytes)?;
            match verify::is_zero(&device, control) {
                Err(WipeError::NotClean(what)) => return Err(WipeError::NotBlank(what)),
                other => other?,
            }
        }
    }
    Ok(Blank { pv, is_the_recorded_one, _volume: volume })
}
