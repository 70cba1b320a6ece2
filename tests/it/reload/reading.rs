//! Reading the config directory while it is being swapped.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

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
    let (is_over, last) = (AtomicBool::new(false), AtomicU32::new(0));
    let (mut seen, mut wrong) = (BTreeSet::new(), None);
    let deadline = Instant::now() + Duration::from_mins(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = 1..;
            while !is_over.load(Ordering::Acquire) {
                let number = numbers.next().expect("they have no end");
                dir.rewrite(&borrowed(&version(number)));
                last.store(number, Ordering::Release);
            }
        });
        // All that the one thread does may fall into a pause of the other.
        while wrong.is_none() && (seen.len() < 50 || last.load(Ordering::Acquire) < 300) && Instant::now() < deadline {
            match config_dir::read(dir.path()) {
                Ok(files) => {
                    let number = files["key0"].parse().expect("it is a number");
                    seen.insert(number);
                    wrong = (files != version(number).into_iter().collect::<Files>()).then(|| format!("{files:?}"));
                }
                Err(ConfigDirError::Restless(_)) => {}
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        is_over.store(true, Ordering::Release);
    });
    assert_eq!(wrong, None);
    let last = last.into_inner();
    assert!(seen.len() >= 50, "{} of {last} versions were read", seen.len());
    let files = config_dir::read(dir.path()).expect("nothing changes it any more");
    assert_eq!(files, version(last).into_iter().collect::<Files>());
}
