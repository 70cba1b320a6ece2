//! What the ledger finds, and how it is written down.

use super::file::{FileError, read, write};
use super::*;
use crate::identity::{MountIdentity, Uuid};
use crate::testing::{disk, mount, owned_pv};

fn entry(id: u128, minor: u32, state: State) -> Entry {
    let identity = disk(minor, 1 << 20).identity;
    Entry { state, ..Entry::new(EntryId(id), "c", "/h/c/a", identity, Timestamp::UNIX_EPOCH) }
}

fn claim() -> Claim {
    Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() }
}

fn states() -> Vec<State> {
    let (pv, uid): (Box<str>, Box<str>) = ("pv".into(), "uid".into());
    let cursor = Some(Cursor { pass: 1, offset: 1 << 40 });
    vec![
        State::AsFound,
        State::Clean,
        State::Offered { pv: pv.clone(), uid: None, since: None },
        State::Offered { pv: pv.clone(), uid: Some(uid.clone()), since: Some(7) },
        State::Used { pv: pv.clone(), uid: uid.clone(), claim: None, since: None },
        State::Used { pv: pv.clone(), uid: uid.clone(), claim: Some(claim()), since: None },
        State::Wiping { pv, uid, claim: Some(claim()), method: "zero".into(), cursor },
        State::Quarantined { reason: "why".into(), pv: "pv".into(), claim: None },
        State::Retired { reason: "why".into() },
    ]
}

fn receipt(uid: &str) -> Receipt {
    Receipt {
        at: Timestamp::UNIX_EPOCH,
        method: "zero".into(),
        amount: 1,
        seconds: 0.5,
        verification: "sample".into(),
        identity: "digest".into(),
        claim: Some(claim()),
        pv: "pv".into(),
        uid: uid.into(),
    }
}

#[test]
fn an_entry_is_read_as_it_was_written() {
    for state in states() {
        let mut entry = entry(3, 1, state);
        entry.root = Some("{}".into());
        entry.sign(receipt("uid"));
        assert_eq!(read(&write(&entry)), Ok(entry.clone()));
        entry.identity = mount(2, 1).identity;
        assert_eq!(read(&write(&entry)), Ok(entry));
    }
}

#[test]
fn a_file_of_a_newer_program_is_refused_in_words_and_garbage_is_none() {
    let text = String::from_utf8(write(&entry(3, 1, State::Clean))).expect("JSON is text");
    let newer = text.replace("\"version\":1", "\"version\":2").replace("\"is\":\"clean\"", "\"is\":\"new\"");
    let error = read(newer.as_bytes()).expect_err("it is newer");
    assert_eq!(error, FileError::Newer(2));
    assert!(error.to_string().contains("newer mooring"), "{error}");
    let unknown_field = text.replace("\"class\"", "\"later\":1,\"class\"");
    assert!(read(unknown_field.as_bytes()).is_ok());
    for garbage in ["", "{", "null", "{}", "{\"version\":1}", &text[..text.len() / 2]] {
        assert!(matches!(read(garbage.as_bytes()), Err(FileError::Garbage(_))), "{garbage:?}");
    }
}

#[test]
fn a_volume_is_found_by_its_identity_and_the_least_clean_entry_counts() {
    let used = State::Used { pv: "pv".into(), uid: "uid".into(), claim: None, since: None };
    let ledger = Ledger::new([entry(1, 1, State::Clean), entry(2, 2, used.clone()), entry(3, 2, State::Clean)], 0);
    let found = |minor| match ledger.find(&disk(minor, 9).identity, "/h/c/b") {
        Found::One(entry) => Some(entry.id.0),
        _ => None,
    };
    assert_eq!((found(1), found(2), found(3)), (Some(1), Some(2), None));
    assert_eq!(ledger.of_pv("uid").map(|entry| entry.id.0), Some(2));
}

#[test]
fn an_entry_that_changes_is_found_by_its_new_keys_only() {
    let used = State::Used { pv: "pv".into(), uid: "uid".into(), claim: None, since: None };
    let mut ledger = Ledger::new([entry(1, 1, used)], 0);
    ledger.insert(entry(1, 2, State::Clean));
    assert_eq!(ledger.find(&disk(1, 1).identity, "/h/c/b"), Found::None);
    assert!(matches!(ledger.find(&disk(2, 1).identity, "/h/c/b"), Found::One(_)));
    assert_eq!((ledger.of_pv("uid"), ledger.entries().count()), (None, 1));
}

#[test]
fn only_what_nobody_can_have_used_is_free() {
    for state in states() {
        let entry = entry(1, 1, state.clone());
        let certainly = standing(Found::One(&entry), false);
        assert_eq!(certainly == Standing::Free, state == State::Clean, "{state:?}");
        // A volume that is not certainly the one is not offered for it, nor wiped for it.
        let perhaps = standing(Found::Unsure(&entry, "why"), false);
        assert!(!matches!(perhaps, Standing::Free | Standing::HalfWiped), "{state:?}");
        assert_eq!(perhaps == Standing::NeverSeen, matches!(state, State::Clean | State::AsFound), "{state:?}");
    }
    assert_eq!(standing(Found::None, false), Standing::NeverSeen);
    assert!(matches!(standing(Found::None, true), Standing::Dirty { .. }), "it may be one of those that are lost");
}

#[test]
fn an_entry_for_the_path_may_be_about_a_volume_that_can_not_be_told_apart() {
    let used = State::Used { pv: "pv".into(), uid: "uid".into(), claim: None, since: None };
    let mut before_the_boot = entry(1, 1, used);
    before_the_boot.identity = mount(3, 1).identity;
    let ledger = Ledger::new([before_the_boot], 0);
    let now = |boot| {
        let Identity::Mount(mount) = (*mount(9, 1).identity).clone() else { unreachable!("it is a mount") };
        Identity::Mount(MountIdentity { boot: Some(Uuid(boot)), ..mount })
    };
    assert!(matches!(ledger.find(&now(2), "/h/c/a"), Found::Unsure(..)));
    assert_eq!(ledger.find(&now(2), "/h/c/b"), Found::None, "another path");
    assert_eq!(ledger.find(&now(1), "/h/c/a"), Found::None, "in the same boot it is certainly another");
}

#[test]
fn a_wipe_goes_on_where_the_ledger_says_and_only_by_the_same_method() {
    let rules = WipeRules::default();
    let wiping = |method: &str| State::Wiping {
        pv: "pv".into(),
        uid: "before".into(),
        claim: None,
        method: method.into(),
        cursor: Some(Cursor { pass: 0, offset: 4096 }),
    };
    let resume = |state: State| entry(1, 1, state).resume_point(&rules);
    assert_eq!(resume(wiping(&rules.method.to_string())), Some(Cursor { pass: 0, offset: 4096 }));
    assert_eq!(resume(wiping("another")), None);
    assert_eq!(resume(State::Clean), None);
}

#[test]
fn the_last_five_receipts_are_kept() {
    let mut entry = entry(1, 1, State::Clean);
    for number in 0..7 {
        entry.sign(receipt(&number.to_string()));
    }
    let uids: Vec<&str> = entry.receipts.iter().map(|receipt| &*receipt.uid).collect();
    assert_eq!(uids, ["2", "3", "4", "5", "6"]);
}

#[test]
fn only_the_very_same_identity_is_shared() {
    let mut ledger = Ledger::new([entry(3, 1, State::Clean), entry(4, 2, State::Clean)], 0);
    let (seen, grown) = (disk(1, 1 << 20).identity, {
        let Identity::Device(device) = &*disk(2, 1 << 20).identity else { panic!("it is a device") };
        Arc::new(Identity::Device(crate::identity::DeviceIdentity { bytes: 7, ..device.clone() }))
    });
    ledger.share(&seen);
    ledger.share(&grown);
    let of = |id| &ledger.get(EntryId(id)).expect("it is there").identity;
    assert!(Arc::ptr_eq(of(3), &seen));
    assert_eq!(*of(4), disk(2, 1 << 20).identity, "the same disk, but not all is as it was");
    assert!(matches!(ledger.find(&seen, "/h/c/b"), Found::One(found) if found.id == EntryId(3)));
}

#[test]
fn a_pv_is_lent_the_identity_of_its_entry_if_it_is_the_very_same() {
    let ledger = Ledger::new([entry(1, 1, State::Clean), entry(2, 2, State::Clean)], 0);
    let own = disk(1, 1 << 20).identity;
    for (id, is_lent) in [(1, true), (2, false), (3, false)] {
        let mut owned = owned_pv("a", "c");
        (owned.entry, owned.identity) = (Some(id), Some(Arc::clone(&own)));
        let before = owned.clone();
        ledger.lend(&mut owned);
        assert_eq!(owned, before);
        assert_eq!(owned.identity.is_some_and(|identity| Arc::ptr_eq(&identity, &own)), !is_lent, "{id}");
    }
}
