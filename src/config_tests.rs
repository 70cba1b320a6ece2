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
