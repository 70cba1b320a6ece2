use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Cache, Event};
use crate::pv::{self, Decoded, ForeignPath, OwnedPv, Phase};
use crate::testing;
use crate::volume::ReclaimPolicy;

fn at_version(entry: &str, version: u64) -> OwnedPv {
    OwnedPv { resource_version: version.to_string(), ..testing::owned_pv(entry, "c") }
}

fn seen(pv: OwnedPv) -> Event {
    Event::Pv(Decoded::Owned(Box::new(pv)))
}

fn left(pv: &OwnedPv) -> Event {
    Event::PvLeft { name: pv.name.clone(), uid: pv.uid.clone(), last: Decoded::Elsewhere }
}

#[test]
fn nothing_is_complete_before_every_list_was_read() {
    let mut cache = Cache::default();
    let events = [
        (Event::Node(Ok(testing::node())), "the storage classes"),
        (Event::Class("c".to_owned(), testing::storage_class(ReclaimPolicy::Delete)), "the storage classes"),
        (Event::ClassesListed(["c".to_owned()].into()), "the list of persistent volumes"),
        (Event::PvsListed(BTreeSet::new()), "the list of persistent volumes"),
        (Event::SweepDone(BTreeSet::new()), ""),
    ];
    assert_eq!(cache.missing(), "the Node");
    for (event, missing) in events {
        assert!(!cache.is_complete());
        cache.apply(event);
        assert_eq!(cache.missing(), missing);
    }
    assert!(cache.is_complete());
    cache.apply(Event::Node(Err("it is gone".to_owned())));
    assert!(!cache.is_complete());
}

#[test]
fn old_news_does_not_undo_the_answer_of_a_write() {
    let mut cache = Cache::default();
    let (old, new) = (at_version("a", 9), OwnedPv { phase: Phase::Bound, ..at_version("a", 10) });
    assert!(cache.apply(seen(new.clone())));
    assert!(!cache.apply(seen(old)), "versions are numbers: 9 is older than 10");
    assert!(!cache.apply(seen(new.clone())), "the same again is no news");
    assert_eq!(cache.owned()[&new.name].phase, Phase::Bound);
}

#[test]
fn a_pv_that_leaves_the_watch_is_suspect_until_it_was_looked_at() {
    let mut cache = Cache::default();
    let pv = at_version("a", 1);
    cache.apply(seen(pv.clone()));
    let another = OwnedPv { uid: "of a former PV of that name".to_owned(), ..pv.clone() };
    assert!(!cache.apply(left(&another)) && cache.suspects().is_empty());
    assert!(cache.apply(left(&pv)));
    assert!(cache.owned().contains_key(&pv.name) && cache.suspects().contains(&pv.name));
    cache.apply(seen(at_version("a", 2)));
    assert!(cache.suspects().is_empty(), "it is there after all");
    let foreign = ForeignPath { pv: "theirs".to_owned(), path: "/h/c/theirs".to_owned() };
    cache.apply(Event::Pv(Decoded::Foreign(foreign)));
    assert!(cache.apply(Event::PvLeft { name: "theirs".to_owned(), uid: String::new(), last: Decoded::Elsewhere }));
    assert!(cache.foreign().is_empty());
}

#[test]
fn a_late_page_of_a_sweep_is_not_believed_without_a_look() {
    let mut cache = Cache::default();
    let (early, late) = (at_version("a", 1), at_version("b", 1));
    let swept = |pv: &OwnedPv| Event::Swept(Decoded::Owned(Box::new(pv.clone())));
    cache.apply(swept(&early));
    cache.apply(Event::PvsListed([early.name.clone()].into()));
    cache.apply(swept(&early));
    assert!(cache.suspects().is_empty());
    cache.apply(swept(&late));
    assert_eq!(*cache.suspects(), BTreeSet::from([late.name]));
    let unlabelled = OwnedPv { labelled: false, ..at_version("c", 1) };
    cache.apply(swept(&unlabelled));
    assert_eq!(cache.suspects().len(), 1, "no watch ever showed it");
    cache.suspect_unlabelled();
    assert!(cache.suspects().contains(&unlabelled.name));
}

#[test]
fn a_list_without_a_pv_makes_it_suspect_and_one_that_has_no_label_is_not_expected_there() {
    let mut cache = Cache::default();
    let (labelled, mut bare) = (at_version("a", 1), at_version("b", 1));
    bare.labelled = false;
    cache.apply(seen(labelled.clone()));
    cache.apply(Event::Swept(Decoded::Owned(Box::new(bare.clone()))));
    cache.apply(Event::PvsListed(BTreeSet::new()));
    assert_eq!(*cache.suspects(), BTreeSet::from([labelled.name.clone()]));
    cache.remove(&labelled.name);
    assert_eq!(cache.owned().keys().collect::<Vec<_>>(), [&bare.name]);
    assert!(cache.suspects().is_empty());
}

#[test]
fn a_sweep_forgets_paths_that_nobody_names_any_more() {
    let mut cache = Cache::default();
    for name in ["x", "y"] {
        let foreign = ForeignPath { pv: name.to_owned(), path: format!("/h/c/{name}") };
        assert!(cache.apply(Event::Swept(Decoded::Foreign(foreign.clone()))));
        assert!(!cache.apply(Event::Swept(Decoded::Foreign(foreign))));
    }
    cache.apply(Event::SweepDone(["y".to_owned()].into()));
    assert_eq!(cache.foreign().values().flatten().collect::<Vec<_>>(), ["y"]);
}

#[test]
fn a_path_that_several_others_name_is_theirs_until_the_last_is_gone() {
    let foreign = |name: &str| Decoded::Foreign(ForeignPath { pv: name.to_owned(), path: "/h/c/both".to_owned() });
    let gone = |name: &str| Event::PvLeft { name: name.to_owned(), uid: String::new(), last: Decoded::Elsewhere };
    let names = |cache: &Cache| cache.foreign().values().flatten().cloned().collect::<Vec<_>>();
    for (first, second) in [("x", "y"), ("y", "x")] {
        let mut cache = Cache::default();
        assert!(cache.apply(Event::PvListed(foreign("x"))) && cache.apply(Event::PvListed(foreign("y"))));
        assert!(!cache.apply(Event::Pv(foreign("y"))));
        assert_eq!(names(&cache), ["x", "y"]);
        assert!(cache.apply(gone(first)) && !cache.apply(gone(first)));
        assert_eq!(names(&cache), [second]);
        cache.apply(gone(second));
        assert!(cache.foreign().is_empty());
    }
    // Nor does one of them that becomes ours make the path free of the other.
    let mut cache = Cache::default();
    let owned = at_version("a", 1);
    for name in [owned.name.as_str(), "z"] {
        let foreign = ForeignPath { pv: name.to_owned(), path: owned.path.clone() };
        cache.apply(Event::Swept(Decoded::Foreign(foreign)));
    }
    cache.apply(seen(owned));
    assert_eq!(names(&cache), ["z"]);
}

#[test]
fn answers_are_learned_from() {
    let mut cache = Cache::default();
    cache.apply(Event::Node(Ok(testing::node())));
    let owned = at_version("a", 1);
    let mut object = pv::encode(&testing::volume("a", "c"));
    (object.metadata.uid, object.metadata.resource_version) = (Some("u".to_owned()), Some("5".to_owned()));
    assert!(cache.learn(&object, false).is_some());
    assert_eq!(cache.owned()[&owned.name].uid, "u");
    // Without a finalizer, what is to be deleted is deleted.
    object.metadata.resource_version = Some("6".to_owned());
    object.metadata.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").ok();
    object.metadata.finalizers = Some(vec!["kubernetes.io/pv-protection".to_owned()]);
    assert!(object.metadata.deletion_timestamp.is_some() && cache.learn(&object, false).is_some());
    assert!(cache.owned()[&owned.name].terminating);
    (object.metadata.resource_version, object.metadata.finalizers) = (Some("7".to_owned()), None);
    cache.learn(&object, false);
    assert!(cache.owned().is_empty());
    // Somebody else's PV of the name that ours would have.
    object.metadata.annotations = None;
    object.metadata.deletion_timestamp = None;
    assert!(cache.learn(&object, false).is_none());
    assert_eq!(cache.foreign()["/h/c/a"], [owned.name].into());
}

/// The answer of a delete may come after the watch has told of the end.
#[test]
fn an_answer_that_the_watch_has_overtaken_does_not_bring_a_pv_back() {
    let mut cache = Cache::default();
    cache.apply(Event::Node(Ok(testing::node())));
    let object = |version: &str, finalizers: Option<Vec<String>>| {
        let mut object = pv::encode(&testing::volume("a", "c"));
        object.metadata.uid = Some("uid".to_owned());
        object.metadata.resource_version = Some(version.to_owned());
        object.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        object.metadata.finalizers = finalizers;
        object
    };
    let answer = object("5", Some(vec!["kubernetes.io/pv-protection".to_owned()]));
    let seen = object("4", Some(vec!["kubernetes.io/pv-protection".to_owned()]));
    let name = seen.metadata.name.clone().expect("it has a name");
    cache.learn(&seen, false);
    let last = pv::sort(&object("6", None), &testing::node(), false);
    cache.apply(Event::PvLeft { name: name.clone(), uid: "uid".to_owned(), last });
    assert!(cache.suspects().contains(&name));
    cache.learn(&answer, false);
    assert!(cache.suspects().contains(&name), "it is still to be looked at");
}

#[test]
fn where_all_pvs_are_watched_one_without_label_is_missed_and_never_suspect_by_itself() {
    let mut cache = Cache::default();
    assert!(cache.apply(Event::MayPatch(false)) && !cache.apply(Event::MayPatch(false)));
    let legacy = OwnedPv { labelled: false, ..at_version("a", 1) };
    cache.apply(seen(legacy.clone()));
    cache.suspect_unlabelled();
    assert!(cache.suspects().is_empty(), "the watch shows it");
    cache.apply(Event::PvsListed([legacy.name.clone()].into()));
    assert!(cache.suspects().is_empty());
    cache.apply(Event::PvsListed(BTreeSet::new()));
    assert!(cache.suspects().contains(&legacy.name), "a list of all PVs lacks it");
    // By its label, it is in no list.
    let mut cache = Cache::default();
    cache.apply(Event::MayPatch(true));
    cache.apply(seen(legacy.clone()));
    cache.apply(Event::PvsListed(BTreeSet::new()));
    assert!(cache.suspects().is_empty());
    cache.suspect_unlabelled();
    assert!(cache.suspects().contains(&legacy.name));
    // What may be done is not forgotten with the PVs.
    cache.forget_pvs();
    assert_eq!(cache.may_patch(), Some(true));
}

#[test]
fn a_node_is_watched_or_read_and_only_a_change_of_that_is_one() {
    let mut cache = Cache::default();
    assert!(!cache.apply(Event::NodeWatched(true)) && !cache.node_is_read());
    assert!(cache.apply(Event::NodeWatched(false)) && cache.node_is_read());
    assert!(!cache.apply(Event::NodeWatched(false)));
    assert!(cache.apply(Event::NodeWatched(true)) && !cache.node_is_read());
}

#[test]
fn labels_that_many_pvs_have_are_kept_once() {
    let mut cache = Cache::default();
    cache.apply(seen(at_version("a", 1)));
    cache.apply(seen(at_version("b", 1)));
    let labels: Vec<_> = cache.owned().values().map(|owned| &owned.labels).collect();
    assert!(Arc::ptr_eq(labels[0], labels[1]));
}

#[test]
fn a_pv_that_becomes_ours_is_not_in_its_own_way() {
    let mut cache = Cache::default();
    let owned = at_version("a", 1);
    let foreign = ForeignPath { pv: owned.name.clone(), path: owned.path.clone() };
    cache.apply(Event::Swept(Decoded::Foreign(foreign)));
    assert_eq!(cache.foreign().len(), 1);
    cache.apply(seen(owned));
    assert_eq!(cache.foreign().len(), 0);
}
