use super::*;
use crate::identity::{MountIdentity, PartitionIdentity, Uuid};
use crate::testing::{disk as a_disk, mount};

fn entry(id: u128, minor: u32, state: State) -> Entry {
    Entry { state, ..Entry::new(EntryId(id), "c", "/h/c/a", a_disk(minor, 1).identity, Timestamp::UNIX_EPOCH) }
}

fn request(identity: &Arc<Identity>) -> Request {
    Request { path: "/h/c/a".to_owned(), identity: identity.clone(), forced: None, expected: None }
}

fn check(entries: impl IntoIterator<Item = Entry>, request: &Request) -> Result<ByHand, Refusal> {
    ByHand::check(&Ledger::new(entries, 0), request)
}

fn forced(request: &Request) -> Request {
    Request { forced: Some(request.identity.digest()), ..request.clone() }
}

fn claim() -> Claim {
    Claim { namespace: "tenant".into(), name: "data".into(), uid: "claim-uid".into() }
}

#[test]
fn what_a_pv_offers_or_a_claim_has_takes_the_digest_typed_exactly() {
    let here = a_disk(1, 1).identity;
    let request = request(&here);
    let offered = State::Offered { pv: "p".into(), uid: Some("u".into()), since: None };
    let used = State::Used { pv: "p".into(), uid: "u".into(), claim: Some(claim()), since: None };
    for state in [offered, used] {
        let entries = || [entry(1, 1, state.clone())];
        assert!(matches!(check(entries(), &request), Err(Refusal::InUse { .. })), "{state:?}");
        let half = here.digest()[..8].to_owned();
        for typed in [String::new(), half, here.digest().to_uppercase() + " ", "0123456789abcdef".to_owned()] {
            let request = Request { forced: Some(typed), ..request.clone() };
            assert!(matches!(check(entries(), &request), Err(Refusal::Digest { .. })), "{request:?}");
        }
        let leave = check(entries(), &forced(&request)).expect("it is typed");
        // The PV may still be there, and be used after the wipe.
        let State::Used { pv, uid, claim, .. } = leave.begin(EntryId(9), "auto", Timestamp::UNIX_EPOCH).state else {
            panic!("{state:?} is not used")
        };
        assert_eq!((&*pv, &*uid, claim.as_ref()), ("p", "u", claim_of(&state)));
    }
}

#[test]
fn what_no_pv_offers_is_wiped_at_once() {
    let request = request(&a_disk(1, 1).identity);
    let wiping = |pv: &str, method: &str| State::Wiping {
        pv: pv.into(),
        uid: "".into(),
        claim: Some(claim()),
        method: method.into(),
        cursor: Some(crate::ledger::Cursor { pass: 0, offset: 7 }),
    };
    for (state, resumed) in [
        (State::Clean, false),
        (State::Retired { reason: "r".into() }, false),
        (State::Quarantined { reason: "r".into(), pv: "p".into(), claim: Some(claim()) }, false),
        (wiping("", "auto"), true),
        (wiping("p", "auto"), true),
        (wiping("", "zero x1"), false),
    ] {
        let leave = check([entry(1, 1, state.clone())], &request).expect("nobody has it");
        let begun = leave.begin(EntryId(9), "auto", Timestamp::UNIX_EPOCH);
        assert_eq!(begun.id, EntryId(1));
        let State::Wiping { claim, cursor, .. } = &begun.state else { panic!("{state:?}") };
        assert!(begun.state.is_wipe_by_hand());
        assert_eq!((claim.as_ref(), cursor.is_some()), (claim_of(&state), resumed), "{state:?}");
    }
    let new = check([], &request).expect("nothing is known of it").begin(EntryId(9), "auto", Timestamp::UNIX_EPOCH);
    assert_eq!((new.id, &*new.path, new.state.is_wipe_by_hand()), (EntryId(9), "/h/c/a", true));
}

#[test]
fn another_volume_than_the_ledger_knows_at_the_path_takes_its_digest() {
    let request = request(&a_disk(2, 1).identity);
    let entries = || [entry(1, 1, State::Clean)];
    let Err(Refusal::Another { digest, .. }) = check(entries(), &request) else { panic!("it is another") };
    assert_eq!(digest, request.identity.digest());
    let leave = check(entries(), &forced(&request)).expect("it is typed");
    assert_eq!(leave.begin(EntryId(9), "auto", Timestamp::UNIX_EPOCH).id, EntryId(9), "the other keeps its own");
    let known = [entry(1, 1, State::Clean), entry(2, 2, State::Clean)];
    assert_eq!(check(known, &request).expect("it is known itself").known().map(|entry| entry.id), Some(EntryId(2)));
    let elsewhere = Request { path: "/h/c/b".to_owned(), ..request };
    check(entries(), &elsewhere).expect("nothing is known at that path");
}

#[test]
fn a_volume_that_may_be_known_takes_its_digest_and_leaves_the_others_entry_alone() {
    let Identity::Mount(now) = (*mount(9, 1).identity).clone() else { unreachable!("it is a mount") };
    let request = request(&Arc::new(Identity::Mount(MountIdentity { boot: Some(Uuid(2)), ..now })));
    let before = || Entry { identity: mount(3, 1).identity, ..entry(1, 1, State::Clean) };
    assert!(matches!(check([before()], &request), Err(Refusal::Unsure { .. })));
    let leave = check([before()], &forced(&request)).expect("it is typed");
    assert_eq!(leave.begin(EntryId(9), "auto", Timestamp::UNIX_EPOCH).id, EntryId(9));
    // So does any volume that may be one of the entries that can't be read.
    assert!(matches!(ByHand::check(&Ledger::new([], 1), &request), Err(Refusal::Unsure { .. })));
    ByHand::check(&Ledger::new([], 1), &forced(&request)).expect("it is typed");
}

#[test]
fn an_expected_digest_must_be_the_one_that_is_there() {
    let request = request(&a_disk(1, 1).identity);
    let expecting = |digest: &str| Request { expected: Some(digest.to_owned()), ..request.clone() };
    check([], &expecting(&request.identity.digest())).expect("it is as expected");
    assert!(matches!(check([], &expecting("0123456789abcdef")), Err(Refusal::Digest { .. })));
    // It overrules nothing.
    let used = State::Used { pv: "p".into(), uid: "u".into(), claim: None, since: None };
    assert!(check([entry(1, 1, used)], &expecting(&request.identity.digest())).is_err());
}

#[test]
fn a_disk_is_kept_for_what_is_offered_on_a_part_of_it() {
    let device = |minor, partition: Option<u64>| DeviceIdentity {
        boot: Some(Uuid(1)),
        number: format!("7:{minor}").try_into().expect("a number"),
        sequence: Some(5),
        partition: partition.map(|start| PartitionIdentity { start, uuid: None }),
        ..DeviceIdentity::default()
    };
    let disk = |minor, partition| Identity::Device(device(minor, partition));
    let filesystem = |root: &str, partition| {
        let (boot, root) = (Some(Uuid(1)), Some(root.into()));
        let disk = Some(Box::new(DeviceIdentity { boot: None, ..device(1, partition) }));
        Identity::Mount(MountIdentity { boot, root, disk, ..MountIdentity::default() })
    };
    let other = Identity::Device(DeviceIdentity { sequence: Some(6), ..device(1, None) });
    for (one, two, expected) in [
        (disk(0, None), disk(1, Some(4096)), true),
        (disk(1, Some(4096)), disk(2, Some(8192)), false),
        (disk(1, Some(4096)), filesystem("/", Some(4096)), true),
        (disk(0, None), filesystem("/a", Some(4096)), true),
        (disk(2, Some(8192)), filesystem("/", Some(4096)), false),
        (filesystem("/a", None), filesystem("/b", None), false),
        (disk(1, Some(4096)), other, false),
    ] {
        assert_eq!(shares_disk(&one, &two), expected, "{one:?} {two:?}");
        assert_eq!(shares_disk(&two, &one), expected, "{two:?} {one:?}");
        let used = State::Used { pv: "p".into(), uid: "u".into(), claim: None, since: None };
        let elsewhere = Entry { identity: Arc::new(one), path: "/h/c/b".into(), ..entry(1, 1, used) };
        assert_eq!(check([elsewhere], &request(&Arc::new(two.clone()))).is_err(), expected, "{two:?}");
    }
}
