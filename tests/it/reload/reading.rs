//! Reading the config directory while it is being swapped.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use mooring::config_dir::{self, ConfigDirError, Files};

use crate::harness::{ConfigDir, Scratch};

/// All keys say which version it is; the odd ones have one more.
fn version(number: u32) -> Vec<(String, String)> {
    let keys = if number.is_multiple_of(2) { 4 } else { 5 };
    (0..keys).map(|key| (format!("key{key}"), number.to_string())).collect()
}

#[test]
fn a_reading_never_has_keys_of_two_versions() {
    let scratch = Scratch::new("versions");
    let borrowed = |files: &[(String, String)]| -> Vec<(&'static str, &'static str)> {
        files.iter().map(|(key, text)| (&*key.clone().leak(), &*text.clone().leak())).collect()
    };
    let dir = ConfigDir::new(scratch.path().join("config"), &borrowed(&version(0)));
    let ended = AtomicBool::new(false);
    let (mut whole, mut seen) = (0, BTreeSet::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=600 {
                dir.rewrite(&borrowed(&version(number)));
            }
            ended.store(true, Ordering::Release);
        });
        while !ended.load(Ordering::Acquire) {
            match config_dir::read(dir.path()) {
                Ok(files) => {
                    let number = files["key0"].parse().expect("it is a number");
                    assert_eq!(files, version(number).into_iter().collect::<Files>());
                    seen.insert(number);
                    whole += 1;
                }
                Err(error) => assert_eq!(error, ConfigDirError::Restless(dir.path().to_owned())),
            }
        }
    });
    assert!(whole > 0 && seen.len() > 1, "{whole} readings of {} versions", seen.len());
    let files = config_dir::read(dir.path()).expect("nothing changes it any more");
    assert_eq!(files, version(600).into_iter().collect::<Files>());
}
