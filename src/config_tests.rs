//! Tests of the config's reading: what a ConfigMap means, and what is said of a bad one.

use super::*;

fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
}

fn one_class(entry: &str) -> Result<Config, ConfigError> {
    Config::parse(&files(&[("storageClassMap", &format!("fast: {entry}"))]))
}

#[test]
fn a_full_configmap_is_read() {
    let config = Config::parse(&files(&[
        (
            "storageClassMap",
            "ssd:\n   hostDir: /mnt/ssd/\n   mountDir: /in//pod/./ssd\n   blockCleanerCommand:\n     - /scripts/shred.sh\n     - \"2\"\n   volumeMode: Block\n   accessMode: ReadWriteOncePod\n   fsType: xfs\n   namePattern: nvme*,sd?\nhdd: {hostDir: /mnt/hdd, mountDir: /mnt/hdd}\n",
        ),
        ("nodeLabelsForPV", "- zone\n- rack\n"),
        ("labelsForPV", "env: prod\n"),
        ("useNodeNameOnly", "yes"),
        ("setPVOwnerRef", "\"true\""),
        ("minResyncPeriod", "\"7m30s\"\n"),
        ("somethingElse", "{{{"),
    ]))
    .expect("the ConfigMap is valid");
    assert_eq!(config.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["hdd", "ssd"]);
    let ssd = config.class("ssd").expect("the class is there");
    assert_eq!((ssd.host_dir.as_str(), ssd.mount_dir.as_str()), ("/mnt/ssd", "/in/pod/ssd"));
    assert_eq!((ssd.mode, ssd.access_mode), (VolumeMode::Block, AccessMode::ReadWriteOncePod));
    assert!(ssd.pattern.matches("sda") && !ssd.pattern.matches("sda1"));
    assert_eq!(config.node_labels, ["zone", "rack"]);
    assert!(config.use_node_name_only && config.set_pv_owner_ref);
    assert_eq!(config.resync, Duration::from_secs(450));
}

#[test]
fn what_is_empty_null_or_given_twice_is_read_as_in_go() {
    let config = Config::parse(&files(&[
        ("storageClassMap", "a: {hostDir: /a, mountDir: /a}\na: {hostDir: /b, mountDir: /b, fsType: null}\n"),
        ("useNodeNameOnly", "# not set\n"),
        ("setPVOwnerRef", "null"),
        ("labelsForPV", "a:\nb: x\n"),
        ("nodeLabelsForPV", "[]"),
        ("minResyncPeriod", "# not set"),
    ]))
    .expect("the ConfigMap is valid");
    assert_eq!((config.classes.len(), config.classes[0].host_dir.as_str()), (1, "/b"));
    assert!(!config.use_node_name_only && !config.set_pv_owner_ref);
    assert_eq!((config.labels["a"].as_str(), config.labels["b"].as_str()), ("", "x"));
    assert_eq!(config.resync, Duration::from_secs(300));
}

#[test]
fn a_period_is_a_positive_duration() {
    let resync = |text: &str| {
        let map = "a: {hostDir: /a, mountDir: /a}";
        Config::read(&files(&[("storageClassMap", map), ("minResyncPeriod", text)]))
    };
    for (text, seconds) in [("5m", 300), ("1h30m", 5_400), ("5m0s", 300), ("90s", 90)] {
        let parsed = resync(text).expect(text);
        assert_eq!((parsed.config.resync.as_secs(), parsed.warnings.len()), (seconds, 0), "{text}");
    }
    // With these the Go provisioner runs: so does the agent, but not with them.
    for text in ["0s", "-5m", "0"] {
        let parsed = resync(text).expect(text);
        assert_eq!((parsed.config.resync.as_secs(), parsed.warnings.len()), (300, 1), "{text}");
    }
    for text in ["5m-10m", "5", "99999999999999999h", "soon"] {
        assert!(resync(text).is_err(), "{text}");
    }
}

#[test]
fn a_bad_value_is_named_with_its_place() {
    for (entry, words) in [
        ("{mountDir: /a}", "storageClassMap.fast.hostDir: is missing"),
        ("{hostDir: a, mountDir: /a}", "no absolute path"),
        ("{hostDir: /a/../etc, mountDir: /a}", "must not contain"),
        ("{hostDir: /, mountDir: /a}", "root directory"),
        ("{hostDir: /a, mountDir: /a, volumeMode: block}", "expected Filesystem or Block"),
        ("{hostDir: /a, mountDir: /a, accessMode: RWO}", "expected ReadWriteOnce"),
        ("{hostDir: /a, mountDir: /a, namePattern: \"[\"}", "is not closed"),
        ("{hostDir: /a, mountDir: /a, blockCleanerCommand: []}", "cleans nothing"),
        ("[1]", "storageClassMap.fast: a list can't be used; expected a map with hostDir"),
    ] {
        let error = one_class(entry).expect_err(entry).to_string();
        assert!(error.contains(words), "{entry}: {error}");
    }
    let error = Config::parse(&files(&[])).expect_err("there is no class").to_string();
    assert!(error.contains("storageClassMap is missing"), "{error}");
}

#[test]
fn only_first_level_entries_belong_to_a_class() {
    let config = one_class("{hostDir: /mnt/disks/, mountDir: /x}").expect("the class is valid");
    let class = &config.classes[0];
    assert_eq!(class.entry_of(&class.host_path("a b")), Some("a b"));
    for path in ["/mnt/disks", "/mnt/disks/", "/mnt/disks/a/b", "/mnt/disks2/a", "/mnt/disks/..", "/mnt/disks/.", "a"] {
        assert_eq!(class.entry_of(path), None, "{path}");
    }
}

fn problems(files: &[(&str, &str)]) -> Vec<String> {
    let files = self::files(files);
    let problems = Config::read(&files).map_or_else(|error| error.problems, |parsed| parsed.warnings);
    problems.iter().map(ToString::to_string).collect()
}

/// The classes, and nothing else of the ConfigMap.
fn class_problems(map: &str) -> Vec<String> {
    problems(&[("storageClassMap", map)])
}

#[test]
fn every_problem_is_told_in_one_run_with_its_place() {
    let map = "fast:\n  hostDir: /mnt/fast\n  mountDir: mnt/fast\n  volumeMode: block\n  fsTyp: xfs\nslow:\n  mountDir: /mnt/slow\n  namePattern: '['\n  wipe: {method: zero, passes: 0, verify: ful}\n  wipeAfter: 5\n";
    let keys = [
        ("storageClassMap", map),
        ("useAlphaAPI", "# old\ntrue\n"),
        ("setPVOwnerRef", "maybe"),
        ("nodeLabelsForPv", "- zone"),
        ("labelsForPV", "a: b\nc: [d\n"),
        ("maxParallelWipes", "0"),
        ("jobTolerations", "- key: [k]\n"),
        ("reclaimPolicy", "Delete"),
    ];
    let found = problems(&keys);
    let expected = [
        "jobTolerations:1:8: error: jobTolerations[0].key: a list can't be used; expected text",
        "labelsForPV:2:4: error: labelsForPV: ",
        "maxParallelWipes:1:1: error: maxParallelWipes: with 0, nothing would ever be wiped",
        "nodeLabelsForPv: warning: nodeLabelsForPv: the key is spelled nodeLabelsForPV",
        "reclaimPolicy: warning: reclaimPolicy: there is no such key, and it is ignored",
        "setPVOwnerRef:1:1: error: setPVOwnerRef: \"maybe\" can't be used; expected true or false",
        "storageClassMap:3:13: error: storageClassMap.fast.mountDir: \"mnt/fast\" is no absolute path",
        "storageClassMap:4:15: error: storageClassMap.fast.volumeMode: \"block\" is unknown; expected Filesystem or Block (did you mean Block?)",
        "storageClassMap:5:3: warning: storageClassMap.fast.fsTyp: there is no such key, and it is ignored (did you mean fsType?)",
        "storageClassMap:6:1: error: storageClassMap.slow.hostDir: is missing; name an absolute path",
        "storageClassMap:8:16: error: storageClassMap.slow.namePattern: ",
        "storageClassMap:9:32: error: storageClassMap.slow.wipe.passes: \"0\" is no number of passes",
        "storageClassMap:10:14: error: storageClassMap.slow.wipeAfter: \"5\" lacks a unit",
        "useAlphaAPI:2:1: error: useAlphaAPI: the alpha form of node affinity",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nis not\n{expected}");
    }
}

#[test]
fn what_may_not_be_meant_is_warned_of() {
    let class = "{hostDir: /a, mountDir: /a}";
    assert_eq!(class_problems(&format!("a: {class}")), Vec::<String>::new());
    for (map, words) in [
        (
            "a: {hostDir: /a, mountDir: /a, volumemode: Block}",
            "1:32: warning: storageClassMap.a.volumemode: the key is spelled volumeMode",
        ),
        ("a: {hostDir: /a, mountDir: /a, FSTYPE: a, fsType: b}", "storageClassMap.a.fsType is there in two spellings"),
        (
            "a: {hostDir: /a,\n  hostDir: /b, mountDir: /b}",
            "2:3: warning: storageClassMap.a.hostDir: is in line 1 as well; the last one counts",
        ),
        ("1.20: {hostDir: /a, mountDir: /a}", "the key 1.20 is read as 1.2"),
        ("a: {hostDir: /a, mountDir: /a, fsType: yes}", "storageClassMap.a.fsType: yes is read as true; quote it"),
        ("a b: {hostDir: /a, mountDir: /a}", "no StorageClass can have this name"),
        (
            "a: {hostDir: /a, mountDir: /a, blockCleanerCommand: [/scripts/quick_reset.sh]}",
            "all data stays, and the next tenant can read it",
        ),
        ("a: {hostDir: /a, mountDir: /a, wipe: {method: signatures}}", "all data stays"),
        ("a: {hostDir: /a, mountDir: /a, wipe: {methods: zero}}", "(did you mean method?)"),
        ("a: {hostDir: /a, mountDir: /a, selector: [{matchExpression: []}]}", "(did you mean matchExpressions?)"),
    ] {
        let found = class_problems(map);
        assert!(found.iter().any(|text| text.contains(words) && text.contains("warning")), "{map}: {found:?}");
        assert!(Config::parse(&files(&[("storageClassMap", map)])).is_ok(), "{map}");
    }
    // The data of a script's wipe does not matter when another method wipes.
    let map = "a: {hostDir: /a, mountDir: /a, blockCleanerCommand: [/scripts/quick_reset.sh], wipe: {method: zero}}";
    assert_eq!(class_problems(map), Vec::<String>::new());
    let a = format!("a: {class}");
    for (key, text, words) in [
        ("labelsForPV", "v: 1.20", "labelsForPV:1:4: warning: labelsForPV.v: 1.20 is read as 1.2"),
        ("nodeLabelsForPV", "[a b]", "no Node has it"),
        ("removeNodeNotReadyTaint", "true", "no taint is removed"),
        ("minResyncPeriod", "0s", "5m is used"),
    ] {
        let found = problems(&[("storageClassMap", &a), (key, text)]);
        assert!(found.len() == 1 && found[0].contains(words) && found[0].contains("warning"), "{found:?}");
    }
}

#[test]
fn classes_that_meet_are_warned_of() {
    let two = |first: &str, second: &str| class_problems(&format!("a: {{{first}}}\nb: {{{second}}}\n"));
    let disks = "hostDir: /mnt/disks, mountDir: /mnt/disks";
    let none = Vec::<String>::new();
    for (first, second, words) in [
        ("", "", "takes the same entries (*); each is published by a only"),
        (", namePattern: nvme*", "", "can take the same entries (nvme* and *)"),
        (", namePattern: 'nvme*'", ", namePattern: '*1'", "can take the same entries"),
    ] {
        let found = two(&format!("{disks}{first}"), &format!("{disks}{second}"));
        assert!(
            found.len() == 1 && found[0].starts_with("storageClassMap:2:1: warning") && found[0].contains(words),
            "{found:?}"
        );
    }
    assert_eq!(two(&format!("{disks}, namePattern: nvme*"), &format!("{disks}, namePattern: sd*")), none);
    assert_eq!(two(disks, "hostDir: /mnt/disks2, mountDir: /mnt/disks2"), none);
    let found = two(disks, "hostDir: /mnt/other, mountDir: /mnt/disks");
    assert!(found.iter().any(|text| text.contains("with another hostDir")), "{found:?}");
    let below = "hostDir: /mnt/disks/ssd/x, mountDir: /mnt/disks/ssd/x";
    for (found, place) in [(two(disks, below), "1:1"), (two(below, disks), "2:1")] {
        assert!(
            found.len() == 1 && found[0].contains(place) && found[0].contains("when /mnt/disks/ssd is a mount"),
            "{found:?}"
        );
    }
    assert_eq!(two(&format!("{disks}, namePattern: nvme*"), below), none);
}

#[test]
fn more_problems_than_anybody_reads_are_left_out() {
    let many = (0..5_000).fold(String::new(), |map, index| map + &format!("c{index}: {{hostDi: x}}\n"));
    let error = Config::parse(&files(&[("storageClassMap", &many)])).expect_err("no class has a directory");
    assert!(error.problems.len() <= 400, "{}", error.problems.len());
    assert!(error.to_string().ends_with(" more"), "{error}");
}

/// Text of which much is YAML of some kind.
fn yamlish() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let pieces = [
        "hostDir",
        "mountDir",
        "volumeMode",
        "wipe",
        "selector",
        "matchExpressions",
        "key",
        "values",
        "<<",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "!!str ",
        "!!int ",
        "!x ",
        "'",
        "\"",
        "| \n",
        ">-\n",
        "#",
        "\t",
        "---\n",
        "...\n",
        "%",
        "? ",
        "~",
        "null",
        "yes",
        "1.20",
        "0x1F",
        "-0b1",
        "1e400",
        ".inf",
        "/mnt",
        "zero",
        "5m",
        "\\",
        "\u{feff}",
        "\r\n",
        "\0",
        "é",
        "\u{2028}",
        " ",
        "a",
        "=",
        "@",
    ];
    let piece = prop_oneof![9 => prop::sample::select(pieces.to_vec()).prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 2_000, ..Default::default() })]

    #[test]
    fn whatever_a_key_holds_it_is_read_or_refused(index in 0..keys::KEYS.len(), text in yamlish(), inside in proptest::bool::ANY) {
        let text = if inside { format!("c:\n  hostDir: /h\n  mountDir: /m\n  {text}") } else { text };
        let classes = "c: {hostDir: /h, mountDir: /m}";
        let mut all = files(&[("storageClassMap", classes)]);
        let key = if inside { CLASSES } else { keys::KEYS[index].name };
        all.insert(key.to_owned(), text);
        match Config::read(&all) {
            Ok(parsed) => assert!(!parsed.warnings.iter().any(Problem::is_error)),
            Err(error) => assert!(error.problems.iter().any(Problem::is_error)),
        }
    }
}
