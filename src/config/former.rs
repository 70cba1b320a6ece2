//! Classes that were configured and are no more, or no more with these directories. While
//! PVs of theirs are there, those are reclaimed by the rules that held last. They are kept
//! as the text that they were configured by: every version of this program reads that.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Class, Config};

/// The version of the text that [`Config::remembered`] returns.
const VERSION: u32 = 1;

/// A class that is configured no more.
#[derive(Clone, Debug, PartialEq)]
pub struct Former {
    /// The class as it was at last.
    pub class: Class,
    /// The `storageClassMap` that it was in.
    map: Arc<str>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    version: u32,
    maps: Vec<Map>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Map {
    storage_class_map: Arc<str>,
    classes: Vec<String>,
}

impl Config {
    /// Remembers the classes of the config `before` that this one does not have, and those
    /// that were former ones by then.
    pub fn succeed(&mut self, before: &Self) {
        let last = before.classes.iter().map(|class| Former { class: class.clone(), map: Arc::clone(&before.map.0) });
        self.add_former(last.chain(before.former.iter().cloned()));
        self.shown.clone_from(&before.shown);
        for class in before.classes.iter().filter(|class| !before.shown.contains_key(&class.mount_dir)) {
            self.shown.entry(class.mount_dir.clone()).or_default().insert(class.host_dir.clone());
        }
    }

    /// Whether the class's `mountDir` shows another `hostDir`: what is mounted where in the
    /// pod stays as it is until the pod is made again.
    #[must_use]
    pub fn shows_another_directory(&self, class: &Class) -> bool {
        self.shown.get(&class.mount_dir).is_some_and(|shown| !shown.contains(&class.host_dir))
    }

    /// The latest comes first; where two are about the same place, it counts.
    fn add_former(&mut self, classes: impl Iterator<Item = Former>) {
        for former in classes {
            let place = |class: &Class| (class.name.clone(), class.host_dir.clone(), class.mount_dir.clone());
            if !self.present_and_former().any(|known| place(known) == place(&former.class)) {
                self.former.push(former);
            }
        }
    }

    /// Forgets the former classes that are not needed beside those of now; says whether
    /// there were any.
    pub fn retain_former(&mut self, is_needed: impl Fn(&[Class], &Class) -> bool) -> bool {
        let (before, now) = (self.former.len(), &self.classes);
        self.former.retain(|former| is_needed(now, &former.class));
        before != self.former.len()
    }

    /// The classes of now, then the former ones, the latest first.
    pub fn present_and_former(&self) -> impl Iterator<Item = &Class> {
        self.classes.iter().chain(self.former.iter().map(|former| &former.class))
    }

    /// The class whose rules hold for a PV of a class and path, and the name of its entry:
    /// the path is exactly a first-level entry of a directory of that class, of now or of before.
    #[must_use]
    pub fn class_of<'p>(&self, class: &str, path: &'p str) -> Option<(&Class, &'p str)> {
        let of_that_name = self.present_and_former().filter(|known| known.name == class);
        of_that_name.into_iter().find_map(|known| Some((known, known.entry_of(path)?)))
    }

    /// All classes as text, for [`Config::recall`].
    #[must_use]
    pub fn remembered(&self) -> Vec<u8> {
        let present = self.classes.iter().map(|class| class.name.clone()).collect();
        let mut maps = vec![Map { storage_class_map: Arc::clone(&self.map.0), classes: present }];
        for Former { class, map } in &self.former {
            match maps.iter_mut().find(|known| known.storage_class_map == *map) {
                Some(known) => known.classes.push(class.name.clone()),
                None => maps.push(Map { storage_class_map: Arc::clone(map), classes: vec![class.name.clone()] }),
            }
        }
        serde_json::to_vec(&Remembered { version: VERSION, maps }).expect("it is plain data")
    }

    /// Remembers the classes of a text that [`Config::remembered`] returned, perhaps in
    /// another version of this program. Returns what of it can't be used, for people to read.
    pub fn recall(&mut self, text: &[u8]) -> Vec<String> {
        let read = match serde_json::from_slice::<Remembered>(text) {
            Ok(read) if read.version > VERSION => Err(format!("a newer mooring wrote it (version {})", read.version)),
            Ok(read) => Ok(read),
            Err(error) => Err(error.to_string()),
        };
        let maps = match read {
            Ok(read) => read.maps,
            Err(problem) => return vec![problem],
        };
        let mut problems = Vec::new();
        for Map { storage_class_map: map, classes } in maps {
            match Self::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_string())])) {
                Ok(config) => {
                    let named = config.classes.into_iter().filter(|class| classes.contains(&class.name));
                    self.add_former(named.map(|class| Former { class, map: Arc::clone(&map) }));
                }
                Err(error) => problems.push(format!("{}: {error}", classes.join(", "))),
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(map: &str) -> Config {
        Config::parse(&BTreeMap::from([("storageClassMap".to_owned(), map.to_owned())])).expect("the config is valid")
    }

    fn names(config: &Config) -> Vec<(&str, &str)> {
        config.former.iter().map(|former| (former.class.name.as_str(), former.class.host_dir.as_str())).collect()
    }

    const TWO: &str = "{a: {hostDir: /a, mountDir: /a}, b: {hostDir: /b, mountDir: /b, wipeAfter: 1m}}";

    #[test]
    fn a_class_that_goes_or_moves_is_remembered_and_one_that_comes_back_is_not() {
        let first = config(TWO);
        let mut second = config("a: {hostDir: /a2, mountDir: /a}");
        second.succeed(&first);
        assert_eq!(names(&second), [("a", "/a"), ("b", "/b")]);
        let mut third = config("b: {hostDir: /b, mountDir: /b}");
        third.succeed(&second);
        assert_eq!(names(&third), [("a", "/a2"), ("a", "/a")], "the latest first");
        assert!(third.retain_former(|_, class| class.host_dir == "/a") && !third.retain_former(|_, _| true));
        assert_eq!(names(&third), [("a", "/a")]);
    }

    #[test]
    fn the_present_rules_of_a_class_hold_where_it_is_and_the_former_where_it_was() {
        let first = config("a: {hostDir: /a, mountDir: /a, wipeAfter: 1m}");
        let mut moved = config("{a: {hostDir: /x, mountDir: /x}, b: {hostDir: /a, mountDir: /a}}");
        moved.succeed(&first);
        let rules = |config: &Config, path| config.class_of("a", path).map(|(class, _)| class.wipe_after.as_secs());
        assert_eq!((rules(&moved, "/x/v"), rules(&moved, "/a/v")), (Some(0), Some(60)));
        assert_eq!((rules(&moved, "/a/v/w"), rules(&moved, "/b/v")), (None, None));
        let mut mounted_elsewhere = config("a: {hostDir: /a, mountDir: /y}");
        mounted_elsewhere.succeed(&first);
        assert_eq!(rules(&mounted_elsewhere, "/a/v"), Some(0));
        assert_eq!(names(&mounted_elsewhere), [("a", "/a")], "it may still be seen there only");
    }

    #[test]
    fn what_is_remembered_is_recalled_as_it_was() {
        let (first, mut second) = (config(TWO), config("{c: {hostDir: /c, mountDir: /c}}"));
        second.succeed(&first);
        let text = second.remembered();
        let mut after_restart = config("{c: {hostDir: /c, mountDir: /c}}");
        assert_eq!(after_restart.recall(&text), [""; 0]);
        assert!(second.shown.contains_key("/a") && after_restart.shown.is_empty(), "another pod has other mounts");
        second.shown.clear();
        assert_eq!(after_restart, second);
        // Changed while no agent ran.
        let mut changed = config("{d: {hostDir: /d, mountDir: /d}}");
        assert_eq!(changed.recall(&text), [""; 0]);
        assert_eq!(names(&changed), [("c", "/c"), ("a", "/a"), ("b", "/b")]);
        assert_eq!(changed.former[2].class, first.classes[1], "with all its rules");
    }

    #[test]
    fn what_cant_be_recalled_is_said_and_the_rest_is() {
        let whole = r#"{"version":1,"maps":[{"storageClassMap":"a: [","classes":["a"]},
            {"storageClassMap":"b: {hostDir: /b, mountDir: /b}","classes":["b"]}]}"#;
        for (text, words, former) in [
            ("", "EOF", &[][..]),
            (r#"{"version":2,"maps":[]}"#, "newer", &[]),
            (whole, "a: storageClassMap:1:4", &[("b", "/b")]),
        ] {
            let mut config = config("c: {hostDir: /c, mountDir: /c}");
            let problems = config.recall(text.as_bytes());
            assert!(problems.len() == 1 && problems[0].contains(words), "{problems:?}");
            assert_eq!(names(&config), former);
        }
    }
}
