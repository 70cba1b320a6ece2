//! How a class's block devices are wiped, and how that is checked after. The four
//! scripts that the Go provisioner ships are known by their paths and done natively.

use std::fmt;
use std::time::Duration;

use crate::volume::Capacity;

/// The most passes that can be asked for: more is a slip of the pen.
pub const MAX_PASSES: u32 = 100;

/// Tells a cleaner command which device; the Go provisioner's name for it.
pub const DEVICE_VARIABLE: &str = "LOCAL_PV_BLKDEVICE";

/// How a block device is wiped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// What is fast and safe on any disk. This is [`Method::Zero`] today: the kernel
    /// hands zeroing to the disk where that can do it, and writes zeros where not, so
    /// it always ends in zeros. Discarding promises nothing, and several passes only
    /// wear a disk down.
    #[default]
    Auto,
    /// Zeros all over. One pass is left to the disk where it can do that by itself;
    /// several are written, each in full.
    Zero {
        /// From 1 to [`MAX_PASSES`].
        passes: u32,
    },
    /// Tells the disk that nothing on it is needed, then looks whether it reads zeros;
    /// if not, it is zeroed as well.
    Discard,
    /// Random data all over, `passes` times, then zeros.
    Overwrite {
        /// Of random data, from 1 to [`MAX_PASSES`].
        passes: u32,
    },
    /// Only what tells a filesystem, a partition table, RAID, LVM or LUKS is zeroed.
    /// **The data stays**, and the next tenant can read it.
    Signatures,
    /// A program of the admin's own, started without a shell. What it leaves on the
    /// disk is its own affair.
    Command(Vec<String>),
}

/// What is read back after a wipe that ends in zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Only the first and the last block.
    None,
    /// Both ends, and 4,096 blocks all over the disk; all of one of up to 256 MiB.
    #[default]
    Sample,
    /// Everything.
    Full,
}

/// All that is set about wiping a class's block devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WipeRules {
    /// How.
    pub method: Method,
    /// What is read back.
    pub verify: Verify,
    /// The most that is written to one disk, in bytes per second; `None`: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// How long a [`Method::Command`] may run.
    pub command_deadline: Duration,
}

impl Default for WipeRules {
    fn default() -> Self {
        Self {
            method: Method::Auto,
            verify: Verify::Sample,
            bandwidth: None,
            // Some passes of `shred` over a disk of tens of terabytes end within it.
            command_deadline: Duration::from_hours(7 * 24),
        }
    }
}

/// Why a method can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// There is no such word.
    #[error("{word:?} is no {what}; use one of {choices}")]
    Unknown {
        /// What was written.
        word: String,
        /// What was expected.
        what: &'static str,
        /// What may be written.
        choices: &'static str,
    },
    /// Too few or too many.
    #[error("{0:?} is no number of passes: use 1 to 100")]
    Passes(String),
    /// It is no number of bytes, or too few.
    #[error("{0:?}; expected bytes a second such as 200Mi, at least 1Mi")]
    Bandwidth(String),
    /// Something was set that the method has not.
    #[error("{0}")]
    Misfit(&'static str),
}

impl Method {
    /// Builds a method from its name and what was set with it. `passes` is for `zero`
    /// (1 when absent) and `overwrite` (3), `command` is what `command` runs.
    ///
    /// # Errors
    /// An unknown name, a number of passes out of range, or passes or a command where
    /// there are none.
    pub fn new(name: &str, passes: Option<u32>, command: Option<&[String]>) -> Result<Self, MethodError> {
        if let Some(passes) = passes.filter(|passes| !(1..=MAX_PASSES).contains(passes)) {
            return Err(MethodError::Passes(passes.to_string()));
        }
        let method = match name {
            "auto" => Self::Auto,
            "zero" => Self::Zero { passes: passes.unwrap_or(1) },
            "discard" => Self::Discard,
            "overwrite" => Self::Overwrite { passes: passes.unwrap_or(3) },
            "signatures" => Self::Signatures,
            "command" => match command {
                Some(command) if !command.is_empty() => Self::Command(command.to_vec()),
                _ => return Err(MethodError::Misfit("the method `command` needs a command to run")),
            },
            word => {
                return Err(MethodError::Unknown {
                    word: word.to_owned(),
                    what: "method",
                    choices: "auto, zero, discard, overwrite, signatures, command",
                });
            }
        };
        if passes.is_some() && !matches!(method, Self::Zero { .. } | Self::Overwrite { .. }) {
            return Err(MethodError::Misfit("only the methods `zero` and `overwrite` have passes"));
        }
        Ok(method)
    }

    /// What a `blockCleanerCommand` of the Go provisioner means here: its own scripts,
    /// by their exact paths, are done natively, anything else is run as it is.
    ///
    /// # Errors
    /// A script's argument that the script would refuse too, or with which it would
    /// clean nothing.
    pub fn from_cleaner_command(command: &[String]) -> Result<Self, MethodError> {
        let script = command.first().map_or("", String::as_str);
        let argument = command.get(1).map(String::as_str);
        let passes = |default: u32| match argument {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .filter(|passes| *passes <= MAX_PASSES)
                .ok_or_else(|| MethodError::Passes(text.to_owned())),
        };
        // What else the scripts are given, they ignore.
        match script {
            "" => Err(MethodError::Misfit("an empty command cleans nothing")),
            "/scripts/shred.sh" => Ok(match passes(3)? {
                0 => Self::Zero { passes: 1 },
                passes => Self::Overwrite { passes },
            }),
            "/scripts/dd_zero.sh" => match passes(1)? {
                0 => Err(MethodError::Misfit("/scripts/dd_zero.sh with 0 passes cleans nothing")),
                passes => Ok(Self::Zero { passes }),
            },
            "/scripts/blkdiscard.sh" | "/scripts/quick_reset.sh" if argument == Some("-h") => {
                Err(MethodError::Misfit("a cleaner script with -h only prints its usage"))
            }
            "/scripts/blkdiscard.sh" => Ok(Self::Discard),
            "/scripts/quick_reset.sh" => Ok(Self::Signatures),
            _ => Ok(Self::Command(command.to_vec())),
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Zero { .. } => "zero",
            Self::Discard => "discard",
            Self::Overwrite { .. } => "overwrite",
            Self::Signatures => "signatures",
            Self::Command(_) => "command",
        }
    }

    /// Whether the whole device reads zeros after it; only then is it looked for them.
    #[must_use]
    pub fn ends_in_zeros(&self) -> bool {
        !matches!(self, Self::Signatures | Self::Command(_))
    }

    /// Whether the last tenant's data is still on the device after it.
    #[must_use]
    pub fn keeps_data(&self) -> bool {
        matches!(self, Self::Signatures)
    }
}

/// The method with its passes, or its command's program. Two that read the same work
/// the same: a wipe may be taken up where the other was left.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::Zero { passes } | Self::Overwrite { passes } => write!(f, " x{passes}"),
            Self::Command(command) => write!(f, " {}", command.join(" ")),
            _ => Ok(()),
        }
    }
}

/// A slower wipe would hardly ever end.
const LEAST_BANDWIDTH: u64 = 1 << 20;

/// Reads a bandwidth, in bytes per second: a quantity such as `200Mi`.
///
/// # Errors
/// It is none, or less than `1Mi`.
pub fn bandwidth(text: &str) -> Result<u64, MethodError> {
    let bytes = Capacity::parse(text).map(Capacity::bytes).filter(|bytes| *bytes >= LEAST_BANDWIDTH);
    bytes.ok_or_else(|| MethodError::Bandwidth(text.to_owned()))
}

impl Verify {
    /// Reads its name in the configuration.
    ///
    /// # Errors
    /// It is none of the three.
    pub fn parse(name: &str) -> Result<Self, MethodError> {
        match name {
            "none" => Ok(Self::None),
            "sample" => Ok(Self::Sample),
            "full" => Ok(Self::Full),
            word => Err(MethodError::Unknown {
                word: word.to_owned(),
                what: "way to verify",
                choices: "none, sample, full",
            }),
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sample => "sample",
            Self::Full => "full",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_scripts_of_the_go_provisioner_are_done_natively() {
        let method = |text| Method::from_cleaner_command(&words(text)).expect("it is a good command");
        assert_eq!(method("/scripts/shred.sh"), Method::Overwrite { passes: 3 });
        assert_eq!(method("/scripts/shred.sh 2"), Method::Overwrite { passes: 2 });
        // `shred -z -n 0` only writes the zeros.
        assert_eq!(method("/scripts/shred.sh 0"), Method::Zero { passes: 1 });
        assert_eq!(method("/scripts/dd_zero.sh"), Method::Zero { passes: 1 });
        assert_eq!(method("/scripts/dd_zero.sh 2 more"), Method::Zero { passes: 2 });
        assert_eq!(method("/scripts/blkdiscard.sh"), Method::Discard);
        assert_eq!(method("/scripts/quick_reset.sh"), Method::Signatures);
        for own in ["/scripts/../scripts/shred.sh", "shred.sh 3", "/bin/sh -c true", "/scripts/mine.sh"] {
            assert_eq!(method(own), Method::Command(words(own)));
        }
    }

    #[test]
    fn a_script_that_would_clean_nothing_is_refused_in_words() {
        let error = |text| Method::from_cleaner_command(&words(text)).expect_err("it is a bad command").to_string();
        assert!(error("/scripts/shred.sh three").contains("\"three\" is no number of passes"));
        assert!(error("/scripts/shred.sh -h").contains("-h"));
        assert!(error("/scripts/shred.sh 101").contains("1 to 100"));
        assert!(error("/scripts/dd_zero.sh -1").contains("\"-1\""));
        assert!(error("/scripts/dd_zero.sh 0").contains("cleans nothing"));
        assert!(error("/scripts/quick_reset.sh -h").contains("usage"));
        assert!(error("").contains("cleans nothing"));
    }

    #[test]
    fn methods_are_named_as_in_the_configuration() {
        for name in ["auto", "zero", "discard", "overwrite", "signatures"] {
            assert_eq!(Method::new(name, None, None).expect("it is a method").as_str(), name);
        }
        let command = words("/bin/wipe now");
        let method = Method::new("command", None, Some(&command)).expect("it is a method");
        assert_eq!(method.to_string(), "command /bin/wipe now");
        assert_eq!(Method::new("zero", None, None), Ok(Method::Zero { passes: 1 }));
        assert_eq!(Method::new("overwrite", None, None), Ok(Method::Overwrite { passes: 3 }));
        assert_eq!(Method::new("overwrite", Some(7), None).expect("it is a method").to_string(), "overwrite x7");
        for (name, passes) in
            [("zero", Some(0)), ("zero", Some(101)), ("auto", Some(1)), ("command", None), ("x", None)]
        {
            assert!(Method::new(name, passes, None).is_err(), "{name} {passes:?}");
        }
        for name in ["none", "sample", "full"] {
            assert_eq!(Verify::parse(name).expect("it is a way to verify").as_str(), name);
        }
        let error = Verify::parse("maybe").expect_err("there is no such way");
        assert_eq!(error.to_string(), "\"maybe\" is no way to verify; use one of none, sample, full");
    }

    #[test]
    fn only_methods_that_end_in_zeros_are_checked_for_them() {
        let command = Method::Command(words("/bin/true"));
        let all = [Method::Auto, Method::Zero { passes: 1 }, Method::Discard, Method::Overwrite { passes: 1 }];
        assert!(all.iter().all(|method| method.ends_in_zeros() && !method.keeps_data()));
        assert!(!Method::Signatures.ends_in_zeros() && Method::Signatures.keeps_data());
        assert!(!command.ends_in_zeros() && !command.keeps_data());
    }
}
