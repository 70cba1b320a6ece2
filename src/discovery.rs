//! Discovery: what was seen in the discovery directories, judged by the config.
//! Pure: a [`Snapshot`] goes in (taken by `node::scan`), a [`Finding`] for each
//! class and entry comes out.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{Class, Config, Former};
use crate::identity::{DeviceNumber, Identity, is_within};
use crate::verdict::{Reason, Verdict};
use crate::volume::{Capacity, VolumeMode};

/// What the discovery directories held at one moment, by their path in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// One listing for each configured directory.
    pub directories: BTreeMap<String, Listing>,
    /// When the look at them began.
    pub began: Option<Instant>,
}

/// One discovery directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Its first level, in the order of names.
    Entries(Vec<Entry>),
    /// It could not be read: why.
    Failed(String),
    /// The kernel did not answer in time.
    Unresponsive,
}

/// One name in a discovery directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as the filesystem has it, any bytes.
    pub name: OsString,
    /// What it is.
    pub observed: Observed,
}

/// What an entry of a discovery directory is, symbolic links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A directory that is itself a mount point; its size is that of the filesystem.
    MountPoint(Sighting),
    /// A directory that is no mount point.
    PlainDirectory,
    /// A symbolic link to a directory.
    LinkToDirectory,
    /// A block device or a link to one.
    Device(Sighting),
    /// Neither: `"a FIFO"`, `"a regular file"`, …
    Other(&'static str),
    /// A symbolic link to nothing.
    DanglingLink,
    /// It could not be looked at: why.
    Failed(String),
    /// The kernel did not answer in time.
    Unresponsive,
}

/// A volume as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which one it is.
    pub identity: Arc<Identity>,
    /// Its size in bytes.
    pub bytes: u64,
    /// The devices that it lies on, all the way down: the disk of a partition, the
    /// members of a RAID or of a device-mapper device. Not itself, but with the devices
    /// of a filesystem that spans some under a number of its own (btrfs).
    pub below: Box<[DeviceNumber]>,
}

impl Sighting {
    /// A volume that lies on nothing else, as far as is known.
    #[must_use]
    pub fn new(identity: Identity, bytes: u64) -> Self {
        Self { identity: Arc::new(identity), bytes, below: Box::default() }
    }

    /// Whether both hold some of the same data: they are the same, one lies on the
    /// other, or one is a directory within the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        if let (Identity::Mount(one), Identity::Mount(two)) = (&*self.identity, &*other.identity)
            && one.is_same_filesystem(two)
        {
            return one.is_nested(two);
        }
        let (one, two) = (self.identity.device(), other.identity.device());
        one == two || self.below.contains(&two) || other.below.contains(&one)
    }
}

/// What a class can make of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the class.
    pub class: String,
    /// The entry's name; bytes that are no UTF-8 replaced.
    pub entry: String,
    /// The path that its PV carries.
    pub host_path: String,
    /// Whether the class's `namePattern` takes the entry.
    pub selected: bool,
    /// A volume that the class can use, or why it is none. Says nothing of the
    /// pattern: a volume that has a PV is reclaimed whatever the pattern says now.
    pub outcome: Result<Candidate, Verdict>,
    /// A directory in which the class was looked for before, as this process sees it, when
    /// the entry is there and not where the class is now: nothing new is offered from there.
    pub former: Option<Arc<str>>,
}

/// A volume that a PV can be made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What was seen when it was last looked at.
    pub sighting: Sighting,
    /// Rounded size.
    pub capacity: Capacity,
}

/// Judges every entry for every class. Classes come in the order of their names,
/// entries in the order of theirs; then those of former classes that are nowhere else.
#[must_use]
pub fn discover(config: &Config, snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    for class in &config.classes {
        findings.extend(look_in(config, class, snapshot));
    }
    if config.former.is_empty() {
        return findings;
    }
    let key = |finding: &Finding| (finding.class.clone(), finding.host_path.clone());
    let mut found: HashSet<_> = findings.iter().map(key).collect();
    for Former { class, .. } in &config.former {
        let place: Arc<str> = class.mount_dir.as_str().into();
        for finding in look_in(config, class, snapshot) {
            if found.insert(key(&finding)) {
                findings.push(Finding { selected: false, former: Some(Arc::clone(&place)), ..finding });
            }
        }
    }
    findings
}

/// Judges the entries of a class's directory; there are none if it could not be read.
fn look_in<'a>(config: &'a Config, class: &'a Class, snapshot: &'a Snapshot) -> impl Iterator<Item = Finding> + 'a {
    let entries = match snapshot.directories.get(&class.mount_dir) {
        Some(Listing::Entries(entries)) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|entry| {
        let name = entry.name.to_string_lossy();
        let host_path = class.host_path(&name);
        let outcome = if entry.name.to_str().is_some() {
            judge(class, &name, &entry.observed)
        } else {
            unsupported("its name is not valid UTF-8, which a PersistentVolume's path must be")
        };
        Finding {
            class: class.name.clone(),
            selected: class.pattern.matches(&name),
            outcome: outcome.and_then(|candidate| match class_within(config, &host_path) {
                _ if config.shows_another_directory(class) => Err(elsewhere(class)),
                Some(inner) => Err(refused(inner)),
                None => Ok(candidate),
            }),
            host_path,
            former: None,
            entry: name.into_owned(),
        }
    })
}

/// The class whose discovery directory is the path or lies below it: to wipe what is there
/// would be to wipe that class's volumes.
fn class_within<'a>(config: &'a Config, host_path: &str) -> Option<&'a Class> {
    let mut classes = config.present_and_former();
    classes.find(|class| is_within(class.host_dir.as_bytes(), host_path.as_bytes()))
}

fn elsewhere(class: &Class) -> Verdict {
    let Class { host_dir, mount_dir, .. } = class;
    let detail = format!(
        "hostDir was changed to {host_dir}, and mountDir was not: until the agent's pod is made again, with that mounted \
         at {mount_dir}, it sees the former directory there"
    );
    Verdict::new(Reason::Refused, detail)
}

fn refused(inner: &Class) -> Verdict {
    let Class { name, host_dir, .. } = inner;
    Verdict::new(Reason::Refused, format!("{host_dir}, the directory of class {name}, is in it: move one of the two"))
}

/// The directories, as this process sees them, that could not be looked at, with the
/// verdict that holds for all that is in them. Nothing may be concluded from what they do
/// not show.
#[must_use]
pub fn unseen(config: &Config, snapshot: &Snapshot) -> BTreeMap<String, Verdict> {
    let verdict = |directory: &str| match snapshot.directories.get(directory) {
        Some(Listing::Entries(_)) => None,
        Some(Listing::Failed(error)) => {
            Some(Verdict::new(Reason::DirectoryUnreadable, format!("{directory} can't be read: {error}")))
        }
        Some(Listing::Unresponsive) | None => {
            Some(Verdict::new(Reason::Unresponsive, format!("{directory} does not answer")))
        }
    };
    config.mount_dirs().into_iter().filter_map(|directory| verdict(&directory).map(|why| (directory, why))).collect()
}

fn unsupported(detail: impl Into<String>) -> Result<Candidate, Verdict> {
    Err(Verdict::new(Reason::Unsupported, detail))
}

fn judge(class: &Class, name: &str, observed: &Observed) -> Result<Candidate, Verdict> {
    if name.chars().any(char::is_control) {
        return unsupported("its name has a control character, such as a newline");
    }
    match observed {
        Observed::MountPoint(sighting) => {
            if class.mode == VolumeMode::Block {
                return Err(Verdict::new(Reason::ModeMismatch, "a directory, but the class has volumeMode Block"));
            }
            if matches!(&*sighting.identity, Identity::Mount(mount) if mount.root.is_none()) {
                // Offered like this, it would soon look like another volume.
                return Err(Verdict::new(Reason::Pending, "it was just mounted, and the mount table did not show it"));
            }
            candidate(sighting)
        }
        // The kubelet formats a device that is published as Filesystem.
        Observed::Device(sighting) => candidate(sighting),
        Observed::PlainDirectory | Observed::LinkToDirectory if class.mode == VolumeMode::Block => {
            Err(Verdict::new(Reason::ModeMismatch, "a directory, but the class has volumeMode Block"))
        }
        Observed::PlainDirectory => Err(Verdict::new(Reason::NotAMountPoint, "a directory that nothing is mounted on")),
        Observed::LinkToDirectory => Err(Verdict::new(Reason::NotAMountPoint, "a symbolic link to a directory")),
        Observed::Other(what) => unsupported(*what),
        Observed::DanglingLink => {
            unsupported("a symbolic link to nothing that is to be seen from here: is the host's /dev mounted?")
        }
        Observed::Failed(why) => unsupported(why.clone()),
        Observed::Unresponsive => Err(Verdict::new(Reason::Unresponsive, "the kernel did not answer in time")),
    }
}

fn candidate(sighting: &Sighting) -> Result<Candidate, Verdict> {
    if sighting.bytes == 0 {
        return Err(Verdict::new(Reason::ZeroCapacity, "its size is 0"));
    }
    Ok(Candidate { sighting: sighting.clone(), capacity: Capacity::rounded_down(sighting.bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{DeviceIdentity, MountIdentity};
    use crate::testing;
    use std::os::unix::ffi::OsStringExt;

    fn mounted(bytes: u64) -> Observed {
        Observed::MountPoint(testing::mount(40, bytes))
    }

    fn just_mounted() -> Observed {
        Observed::MountPoint(Sighting::new(Identity::Mount(MountIdentity::default()), 4096))
    }

    fn disk(bytes: u64) -> Observed {
        Observed::Device(testing::disk(0, bytes))
    }

    fn judged(mode: &str, name: &[u8], observed: Observed) -> Finding {
        let map = format!("c: {{hostDir: /h, mountDir: /m, volumeMode: {mode}, namePattern: \"[^x]*\"}}");
        let config =
            Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map)])).expect("the config is valid");
        let entry = Entry { name: OsString::from_vec(name.to_vec()), observed };
        let snapshot =
            Snapshot { directories: BTreeMap::from([("/m".to_owned(), Listing::Entries(vec![entry]))]), began: None };
        let mut findings = discover(&config, &snapshot);
        assert_eq!(findings.len(), 1);
        findings.remove(0)
    }

    #[test]
    fn every_kind_of_entry_has_its_verdict() {
        for (mode, name, observed, expected) in [
            ("Filesystem", &b"a"[..], mounted(4096), None),
            ("Filesystem", b"a b\\c", mounted(4096), None),
            ("Filesystem", b"a", disk(4096), None),
            ("Block", b"a", disk(4096), None),
            ("Block", b"a", mounted(4096), Some(Reason::ModeMismatch)),
            ("Block", b"a", Observed::PlainDirectory, Some(Reason::ModeMismatch)),
            ("Filesystem", b"a", mounted(0), Some(Reason::ZeroCapacity)),
            ("Filesystem", b"a\n", mounted(4096), Some(Reason::Unsupported)),
            ("Filesystem", b"a\xff", mounted(4096), Some(Reason::Unsupported)),
            ("Filesystem", b"a", Observed::PlainDirectory, Some(Reason::NotAMountPoint)),
            ("Filesystem", b"a", Observed::LinkToDirectory, Some(Reason::NotAMountPoint)),
            ("Filesystem", b"a", Observed::DanglingLink, Some(Reason::Unsupported)),
            ("Filesystem", b"a", Observed::Other("a FIFO"), Some(Reason::Unsupported)),
            ("Filesystem", b"a", Observed::Unresponsive, Some(Reason::Unresponsive)),
            ("Filesystem", b"a", just_mounted(), Some(Reason::Pending)),
        ] {
            let reason = judged(mode, name, observed.clone()).outcome.err().map(|verdict| verdict.reason);
            assert_eq!(reason, expected, "{mode} {name:?} {observed:?}");
        }
    }

    #[test]
    fn the_pattern_selects_but_does_not_judge() {
        assert!(judged("Filesystem", b"a", mounted(4096)).selected);
        let excluded = judged("Filesystem", b"xa", mounted(4096));
        assert!(!excluded.selected && excluded.outcome.is_ok());
    }

    #[test]
    fn a_former_directory_shows_only_what_is_not_where_the_class_is_now() {
        let parse = |map: &str| Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())]));
        let before = parse("{c: {hostDir: /h, mountDir: /m}, d: {hostDir: /d, mountDir: /d}}").expect("it is valid");
        let mut config = parse("c: {hostDir: /h, mountDir: /n}").expect("it is valid");
        config.succeed(&before);
        let listing = |names: &[&str]| {
            let entry = |name: &&str| Entry { name: name.into(), observed: mounted(4096) };
            Listing::Entries(names.iter().map(entry).collect())
        };
        let listings = [("/n", listing(&["a"])), ("/m", listing(&["a", "b"])), ("/d", listing(&["a"]))];
        let directories = listings.map(|(path, listing)| (path.to_owned(), listing)).into();
        let snapshot = Snapshot { directories, began: None };
        let found = discover(&config, &snapshot);
        let seen: Vec<_> =
            found.iter().map(|one| (one.host_path.as_str(), one.former.as_deref(), one.selected)).collect();
        assert_eq!(seen, [("/h/a", None, true), ("/h/b", Some("/m"), false), ("/d/a", Some("/d"), false)]);
        assert!(unseen(&config, &snapshot).is_empty());
        let nothing = unseen(&config, &Snapshot::default());
        assert_eq!(nothing.keys().collect::<Vec<_>>(), ["/d", "/m", "/n"]);
    }

    fn number(text: &str) -> DeviceNumber {
        text.to_owned().try_into().expect("a device number")
    }

    fn on(identity: Identity, below: &[&str]) -> Sighting {
        Sighting { below: below.iter().map(|text| number(text)).collect(), ..Sighting::new(identity, 1) }
    }

    fn disk_on(own: &str, below: &[&str]) -> Sighting {
        on(Identity::Device(DeviceIdentity { number: number(own), ..DeviceIdentity::default() }), below)
    }

    fn mount_on(own: &str, root: &str, below: &[&str]) -> Sighting {
        let root = (!root.is_empty()).then(|| root.into());
        let uuid = Some("u".into()); // as of copies of one image
        on(Identity::Mount(MountIdentity { device: number(own), root, uuid, ..MountIdentity::default() }), below)
    }

    #[test]
    fn what_holds_the_directory_of_a_class_is_no_volume() {
        let map =
            "{c: {hostDir: /h, mountDir: /m}, d: {hostDir: /h/a/b, mountDir: /n}, e: {hostDir: /h/f, mountDir: /o}}";
        let config = Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())]));
        let entries = ["a", "ab", "f"].map(|name| Entry { name: name.into(), observed: mounted(4096) });
        let directories = BTreeMap::from([("/m".to_owned(), Listing::Entries(entries.into()))]);
        let findings = discover(&config.expect("it is valid"), &Snapshot { directories, began: None });
        let reasons = findings.into_iter().map(|finding| finding.outcome.err().map(|verdict| verdict.reason));
        assert_eq!(reasons.collect::<Vec<_>>(), [Some(Reason::Refused), None, Some(Reason::Refused)]);
    }

    #[test]
    fn what_a_mount_dir_shows_is_not_taken_for_another_host_dir() {
        let parse = |map: &str| {
            Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())])).expect("it is valid")
        };
        let first = parse("c: {hostDir: /h, mountDir: /m}");
        let entries = vec![Entry { name: "a".into(), observed: mounted(4096) }];
        let snapshot =
            Snapshot { directories: BTreeMap::from([("/m".to_owned(), Listing::Entries(entries))]), began: None };
        let paths = |config: &Config| {
            let usable = |finding: Finding| (finding.host_path, finding.outcome.is_ok());
            discover(config, &snapshot).into_iter().map(usable).collect::<Vec<_>>()
        };
        let mut moved = parse("c: {hostDir: /h2, mountDir: /m}");
        moved.succeed(&first);
        assert_eq!(paths(&moved), [("/h2/a".to_owned(), false), ("/h/a".to_owned(), true)]);
        // Still so after another edit; back again, it is as it was.
        let mut again = parse("c: {hostDir: /h2, mountDir: /m, namePattern: 'a*'}");
        again.succeed(&moved);
        assert!(!paths(&again)[0].1);
        let mut back = parse("c: {hostDir: /h, mountDir: /m}");
        back.succeed(&again);
        assert_eq!(paths(&back)[0], ("/h/a".to_owned(), true));
    }

    #[test]
    fn what_holds_the_same_data_overlaps() {
        for (one, other, expected, why) in [
            (disk_on("8:0", &[]), disk_on("8:0", &[]), true, "two links to one disk"),
            (disk_on("8:0", &[]), disk_on("8:16", &[]), false, "two disks"),
            (disk_on("8:1", &["8:0"]), disk_on("8:0", &[]), true, "a partition and its disk"),
            (disk_on("8:1", &["8:0"]), disk_on("8:2", &["8:0"]), false, "two partitions of one disk"),
            (disk_on("253:0", &["8:0", "8:16"]), disk_on("8:16", &[]), true, "multipath and a member"),
            (
                disk_on("253:0", &["8:1", "8:0"]),
                disk_on("8:0", &[]),
                true,
                "a logical volume and the disk of its group",
            ),
            (disk_on("253:0", &["8:0"]), disk_on("253:1", &["8:0"]), false, "two logical volumes of one group"),
            (mount_on("8:0", "/", &[]), disk_on("8:0", &[]), true, "a filesystem and its device"),
            (mount_on("8:1", "/", &["8:0"]), disk_on("8:0", &[]), true, "a filesystem on a partition, and the disk"),
            (mount_on("8:1", "/", &["8:0"]), disk_on("8:2", &["8:0"]), false, "a filesystem and the partition beside"),
            (mount_on("8:0", "/", &[]), mount_on("8:16", "/", &[]), false, "copies of one image"),
            (mount_on("8:0", "/a", &[]), mount_on("8:0", "/a", &[]), true, "one directory twice"),
            (mount_on("8:0", "/a", &[]), mount_on("8:0", "/a/b", &[]), true, "a directory and one in it"),
            (mount_on("8:0", "/", &[]), mount_on("8:0", "/a", &[]), true, "a filesystem and a directory in it"),
            (mount_on("8:0", "/a", &[]), mount_on("8:0", "/ab", &[]), false, "directories side by side"),
            (mount_on("8:0", "/a", &[]), mount_on("8:0", "", &[]), true, "a directory that is not known"),
            (mount_on("0:40", "/a", &["8:0"]), mount_on("0:41", "/b", &["8:0"]), false, "subvolumes side by side"),
            (mount_on("0:40", "/a", &["8:0"]), mount_on("0:41", "/a/b", &["8:0"]), true, "a subvolume and one in it"),
            (
                mount_on("0:40", "/a", &["8:0"]),
                disk_on("8:0", &[]),
                true,
                "a subvolume and the device of its filesystem",
            ),
        ] {
            assert_eq!(one.overlaps(&other), expected, "{why}");
            assert_eq!(other.overlaps(&one), expected, "{why}, the other way round");
        }
    }
}
