//! Which of the capabilities that wiping a directory may take does this process lack? A
//! tenant decides which a wipe takes, by what it leaves.

use rustix::thread::{CapabilitySet, capabilities};

/// Each with its name; `docs/rights.md` says what for.
const OF_A_WIPE: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "CAP_FOWNER"),
    (CapabilitySet::FSETID, "CAP_FSETID"),
    (CapabilitySet::LINUX_IMMUTABLE, "CAP_LINUX_IMMUTABLE"),
    (CapabilitySet::SETFCAP, "CAP_SETFCAP"),
];

/// Those that this thread lacks, with commas between them; `None` when it has all.
#[must_use]
pub fn missing() -> Option<String> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> =
        OF_A_WIPE.iter().filter(|(one, _)| !effective.contains(*one)).map(|(_, name)| *name).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// To be put after what the kernel refused: what would permit it, if that is missing.
#[must_use]
pub fn remedy() -> String {
    missing().map_or_else(String::new, |names| {
        format!("; this process lacks {names}, which a wipe may take: add them to its securityContext (docs/rights.md)")
    })
}
