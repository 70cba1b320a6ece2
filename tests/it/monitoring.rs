//! The alerts and the dashboard of `deploy/monitoring`: that they are what Prometheus and
//! Grafana read, that each alert fires when it should and else does not, and that they
//! name what the agent really tells.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mooring::limit::Limit;
use mooring::verdict::Reason;
use serde_json::Value;

use crate::common::SOON;
use crate::docs::{rows, text};
use crate::harness::eventually;
use crate::harness::prometheus::Prometheus;
use crate::metrics::{Scene, SlowWipe, labels, scene, scrape, slow_wipe};
use crate::promql::{Names, names};

const FOLDER: &str = "deploy/monitoring";
/// Labels of targets, which the scrape config gives.
const OF_TARGETS: [&str; 3] = ["job", "instance", "node"];

/// The alerts by name.
fn alerts() -> BTreeMap<String, Value> {
    let rules: Value = serde_saphyr::from_str(&text(&format!("{FOLDER}/alerts.yaml"))).expect("it is YAML");
    let groups = rules["groups"].as_array().expect("Prometheus reads it directly");
    let all = groups.iter().flat_map(|group| group["rules"].as_array().expect("a group has rules").clone());
    let named: Vec<(String, Value)> = all.map(|rule| (string(&rule["alert"]), rule)).collect();
    let count = named.len();
    let alerts: BTreeMap<_, _> = named.into_iter().collect();
    assert_eq!(alerts.len(), count, "two alerts have one name");
    alerts
}

fn dashboard() -> Value {
    serde_json::from_str(&text(&format!("{FOLDER}/dashboard.json"))).expect("it is JSON")
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// The expressions of the dashboard by panel, with its variables as "All" has them.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("it has panels").iter();
    let targets = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().expect("a panel has targets").iter();
        targets.map(|target| (string(&panel["title"]), string(&target["expr"])))
    });
    let plain = |text: String| text.replace("$node", ".*").replace("$class", ".*").replace("$__rate_interval", "10s");
    targets.map(|(title, expression)| (title, plain(expression))).collect()
}

/// What is wrong with the names in an expression, by what agents tell.
fn misnomers(Names { selectors, labels: grouped }: &Names, told: &str) -> Vec<String> {
    let by_family = labels(told);
    let samples: BTreeSet<&str> =
        told.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let outcomes = text("docs/metrics.md");
    let outcomes = rows(&outcomes).into_iter().find(|(name, _)| name == "mooring_api_requests_total").expect("a row").1;
    let mut wrong = Vec::new();
    let mut known: BTreeSet<&str> = OF_TARGETS.into();
    for (metric, matchers) in selectors {
        // Prometheus' own.
        if metric == "up" {
            continue;
        }
        if !samples.contains(metric.as_str()) {
            wrong.push(format!("no agent tells {metric}"));
            continue;
        }
        let family = metric.strip_suffix("_bucket").inspect(|_| known.extend(["le"])).unwrap_or(metric);
        known.extend(by_family[family].iter());
        for (label, values) in matchers {
            if !by_family[family].contains(label.as_str()) && !OF_TARGETS.contains(&label.as_str()) {
                wrong.push(format!("{metric} has no label {label}"));
            }
            for value in values {
                let is_known = match label.as_str() {
                    "verdict" => Reason::ALL.iter().any(|reason| reason.as_str() == value),
                    "what" => Limit::ALL.iter().any(|limit| limit.as_str() == value),
                    "outcome" => outcomes.contains(&format!("`{value}`")),
                    _ => value.is_empty() || value == ".*",
                };
                if !is_known {
                    wrong.push(format!("{metric} has no {label} {value}"));
                }
            }
        }
    }
    let strange = grouped.iter().filter(|label| !known.contains(label.as_str()));
    wrong.extend(strange.map(|label| format!("no metric of it has the label {label}")));
    wrong
}

fn promtool(arguments: &[&str]) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER));
    let output = command.output().expect("promtool can be run (make setup)");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn every_alert_fires_when_it_should_and_else_does_not() {
    promtool(&["check", "rules", "alerts.yaml"]);
    promtool(&["test", "rules", "alerts_test.yaml"]);
    let tests: Value = serde_saphyr::from_str(&text(&format!("{FOLDER}/alerts_test.yaml"))).expect("it is YAML");
    let (mut fires, mut stays_quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().expect("it has tests") {
        for check in test["alert_rule_test"].as_array().expect("a test has checks") {
            let expected = check["exp_alerts"].as_array().expect("it says what is expected");
            (if expected.is_empty() { &mut stays_quiet } else { &mut fires }).insert(string(&check["alertname"]));
        }
    }
    let all: BTreeSet<String> = alerts().into_keys().collect();
    assert_eq!((&fires, &stays_quiet), (&all, &all));
}

/// The anchors of a page, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix('#'));
    let of_heading = |heading: &str| {
        let plain = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        plain.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    let written = page.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned);
    headings.map(of_heading).chain(written).collect()
}

#[test]
fn every_alert_says_what_it_is_about_and_where_to_read_on() {
    let page = text("docs/monitoring.md");
    let documented: BTreeSet<String> =
        rows(&page).into_iter().map(|(name, _)| name).filter(|name| name.starts_with("Mooring")).collect();
    let alerts = alerts();
    assert_eq!(documented, alerts.keys().cloned().collect());
    for (name, rule) in alerts {
        assert!(["critical", "warning"].contains(&string(&rule["labels"]["severity"]).as_str()), "{name}");
        for annotation in ["summary", "description"] {
            assert!(!string(&rule["annotations"][annotation]).is_empty(), "{name} has no {annotation}");
        }
        let runbook = string(&rule["annotations"]["runbook"]);
        let (page, anchor) = runbook.split_once('#').unwrap_or((&runbook, ""));
        assert!(anchor.is_empty() || anchors(&text(page)).contains(anchor), "{name} names {runbook}");
    }
}

#[test]
fn the_panels_of_the_dashboard_are_whole_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut last = (0, 0);
    for panel in dashboard["panels"].as_array().expect("it has panels") {
        let title = string(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().expect("a panel has an id")), "{title}");
        assert!(!title.is_empty() && !string(&panel["description"]).is_empty(), "{title}");
        assert!(!string(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{title}");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{title} has no {name}"));
        let (x, y) = (side("x"), side("y"));
        assert!(x + side("w") <= 24, "{title} is beyond the edge");
        for column in x..x + side("w") {
            for row in y..y + side("h") {
                assert!(taken.insert((column, row)), "{title} overlaps another");
            }
        }
        assert!((y, x) >= last, "{title} is not in the order of reading");
        last = (y, x);
        let sources = panel["targets"].as_array().expect("it has targets").iter().chain([panel]);
        for source in sources {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let variables: Vec<String> = dashboard["templating"]["list"]
        .as_array()
        .expect("it has variables")
        .iter()
        .map(|variable| string(&variable["name"]))
        .collect();
    assert_eq!(variables, ["datasource", "node", "class"]);
}

/// Waits until Prometheus has scraped both agents often enough to tell a rate, and has gone
/// through all rules.
fn wait_scraped(prometheus: &Prometheus) {
    let deadline = Instant::now() + SOON;
    loop {
        let scraped = prometheus.query("count_over_time(mooring_build_info[1m]) >= 4").map(|series| series.len());
        let rules = prometheus.api("/api/v1/rules").expect("it answers");
        let groups = rules["groups"].as_array().expect("there are groups");
        let all_rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("it has rules"));
        let all_done = all_rules.clone().count() > 0 && all_rules.clone().all(|rule| rule["health"] != "unknown");
        if scraped == Ok(2) && all_done {
            return;
        }
        assert!(Instant::now() < deadline, "{scraped:?} {rules}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The alerts that are pending or firing.
fn active(prometheus: &Prometheus) -> BTreeSet<String> {
    let rules = prometheus.api("/api/v1/rules").expect("it answers");
    let groups = rules["groups"].as_array().into_iter().flatten();
    let all = groups.filter_map(|group| group["rules"].as_array()).flatten();
    all.inspect(|rule| assert_eq!(rule["health"], "ok", "{rule}"))
        .filter(|rule| rule["state"] != "inactive")
        .map(|rule| string(&rule["name"]))
        .collect()
}

#[tokio::test]
async fn alerts_and_dashboard_name_what_the_agent_tells_and_prometheus_answers_them() {
    let (Scene { node, agent, _disks, .. }, slow) = tokio::join!(scene("monitored"), slow_wipe("slowly"));
    let SlowWipe { node: slow_node, agent: slow_agent, disk: slow_disk, .. } = slow;
    let targets = [(node.name(), &*agent.address().await), (slow_node.name(), &*slow_agent.address().await)];
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join("alerts.yaml");
    let prometheus = Prometheus::start(node.dir(), &rules, &targets);

    let told = scrape(&agent, "").await.1 + &scrape(&slow_agent, "").await.1;
    let dashboard = expressions(&dashboard());
    let of_alerts = alerts().into_iter().map(|(name, rule)| (name, string(&rule["expr"])));
    for (place, expression) in of_alerts.chain(dashboard.iter().cloned()) {
        assert_eq!(misnomers(&names(&expression), &told), Vec::<String>::new(), "{place}: {expression}");
    }
    // It would find each kind of slip.
    for slip in [
        "mooring_volume > 0",
        "mooring_volumes{verdikt=\"Busy\"}",
        "mooring_volumes{verdict=~\"Busy|Vanishd\"}",
        "mooring_limited{what=\"patches\"}",
        "mooring_api_requests_total{outcome=\"denied\"}",
        "sum by (klass) (mooring_volumes)",
        "mooring_wipe_duration_seconds_buckets",
    ] {
        assert_ne!(misnomers(&names(slip), &told), Vec::<String>::new(), "{slip}");
    }

    wait_scraped(&prometheus);
    for (panel, expression) in dashboard {
        // Of the last seconds there may be too little, if it had to wait for the machine.
        eventually(&format!("{panel}: something is shown for {expression}"), SOON, || {
            let series = prometheus.query(&expression).unwrap_or_else(|error| panic!("{panel}: {expression}: {error}"));
            !series.is_empty()
        });
    }
    // A wipe fails and its PV needs a person, another one is made slow, and the kubelet's
    // directory is not shown; else all is as it should be.
    let expected = ["MooringLimited", "MooringVolumeNeedsDecision", "MooringWipeFailing", "MooringWipeSlow"];
    let deadline = Instant::now() + SOON;
    loop {
        let active = active(&prometheus);
        if active == expected.map(ToOwned::to_owned).into() {
            break;
        }
        assert!(Instant::now() < deadline, "{active:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop((prometheus, agent, slow_agent, slow_disk, _disks));
    node.clean_up().await;
    slow_node.clean_up().await;
}
