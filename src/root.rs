//! What the root directory of a volume was when the volume was first offered: its
//! owner, mode, access lists and other attributes. A tenant may change all of it, and
//! emptying the directory leaves it; a wipe puts it back. Kept as text (JSON).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// SELinux' label. Whoever runs containers sets it anew for each one, and a policy may
/// forbid to set it here: it is put back where that can be, and no wipe fails over it.
pub const SELINUX_LABEL: &str = "security.selinux";

/// The attributes of a directory, without times and contents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootFacts {
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Permissions with setuid, setgid and sticky: the lower 12 bits of `st_mode`.
    pub mode: u32,
    /// Extended attributes by their full names, POSIX access lists
    /// (`system.posix_acl_*`) among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Bytes>,
    /// The project whose quota it counts for; absent when the filesystem knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<u32>,
    /// What `chattr` can change of it (`FS_*_FL` of `linux/fs.h`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flags: u32,
}

impl RootFacts {
    /// What is not as recorded here, in words; `None` when all is. SELinux' label does
    /// not count, and a project only when one is recorded.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, then: String, now: String| {
            if then != now {
                differences.push(format!("{what} is {now}, was {then}"));
            }
        };
        compare("owner", self.uid.to_string(), now.uid.to_string());
        compare("group", self.gid.to_string(), now.gid.to_string());
        compare("mode", format!("{:04o}", self.mode), format!("{:04o}", now.mode));
        if self.project.is_some() {
            compare("project", words(self.project), words(now.project));
        }
        compare("flags", format!("{:#x}", self.flags), format!("{:#x}", now.flags));
        let names = self.xattrs.keys().chain(now.xattrs.keys().filter(|name| !self.xattrs.contains_key(*name)));
        for name in names.filter(|name| *name != SELINUX_LABEL) {
            if self.xattrs.get(name) != now.xattrs.get(name) {
                differences.push(format!("attribute {name} is another"));
            }
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

fn words(project: Option<u32>) -> String {
    project.map_or_else(|| "unknown".to_owned(), |project| project.to_string())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(flags: &u32) -> bool {
    *flags == 0
}

/// Any bytes; hexadecimal as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.as_bytes();
        let wrong = || format!("{text:?} is not hexadecimal");
        let byte = |pair: &[u8]| {
            let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
            Some(value(*pair.first()?)? << 4 | value(*pair.get(1)?)?)
        };
        let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
        bytes.map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> RootFacts {
        RootFacts {
            uid: 1000,
            gid: 2000,
            mode: 0o2775,
            xattrs: [("user.note".to_owned(), Bytes(vec![0, 1, 0xfe, 0xff]))].into(),
            project: Some(7),
            flags: 0x2000_0000,
        }
    }

    #[test]
    fn facts_survive_as_text() {
        let text = serde_json::to_string(&facts()).expect("facts can be written as JSON");
        assert!(text.contains(r#""user.note":"0001feff""#), "{text}");
        assert_eq!(serde_json::from_str::<RootFacts>(&text).expect("it is what was written"), facts());
        let plain = RootFacts { mode: 0o755, ..RootFacts::default() };
        assert_eq!(serde_json::to_string(&plain).expect("facts"), r#"{"uid":0,"gid":0,"mode":493}"#);
    }

    #[test]
    fn text_that_is_not_hexadecimal_is_refused() {
        for text in ["0", "0g", "+1", "é", "00 0"] {
            assert!(Bytes::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(Bytes::try_from("00fF".to_owned()), Ok(Bytes(vec![0, 255])));
        assert_eq!(Bytes::try_from(String::new()), Ok(Bytes(Vec::new())));
    }

    #[test]
    fn each_difference_is_named_and_the_label_is_none() {
        assert_eq!(facts().difference(&facts()), None);
        let mut now = facts();
        now.xattrs.insert(SELINUX_LABEL.to_owned(), Bytes(b"label".to_vec()));
        assert_eq!(facts().difference(&now), None);
        assert_eq!(RootFacts { project: None, ..facts() }.difference(&now), None);
        type Change = fn(&mut RootFacts);
        let changes: [(&str, Change); 6] = [
            ("owner is 0, was 1000", |now| now.uid = 0),
            ("group is 0, was 2000", |now| now.gid = 0),
            ("mode is 0775, was 2775", |now| now.mode = 0o775),
            ("project is unknown, was 7", |now| now.project = None),
            ("flags is 0x0, was 0x20000000", |now| now.flags = 0),
            ("attribute user.note is another", |now| now.xattrs.clear()),
        ];
        for (words, change) in changes {
            let mut now = facts();
            change(&mut now);
            assert_eq!(facts().difference(&now).as_deref(), Some(words));
        }
        now.xattrs.insert("user.other".to_owned(), Bytes::default());
        assert_eq!(facts().difference(&now).as_deref(), Some("attribute user.other is another"));
    }
}
