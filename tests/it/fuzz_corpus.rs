//! The inputs that fuzzing has found worth keeping, put through the same functions.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let inputs: Vec<_> = std::fs::read_dir(&corpus).expect("the corpus is there").flatten().collect();
    assert!(inputs.len() > 10, "the corpus of {target} is gone");
    for input in inputs {
        let data = std::fs::read(input.path()).expect("an input can be read");
        let outcome = std::panic::catch_unwind(|| run(&data));
        assert!(outcome.is_ok(), "{} panics", input.path().display());
    }
}

#[test]
fn no_kept_config_panics() {
    replay("config", targets::config);
}

#[test]
fn no_kept_identity_panics() {
    replay("identity", targets::identity);
}

#[test]
fn no_kept_ledger_entry_panics() {
    replay("ledger", targets::ledger);
}

#[test]
fn no_kept_pv_panics() {
    replay("pv", targets::pv);
}
