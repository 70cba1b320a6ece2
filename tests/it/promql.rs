//! The names in a `PromQL` expression, as far as it takes to hold them to what the agent
//! really tells. Whether it is one, Prometheus says.

use std::collections::BTreeSet;

/// A label, and the values that are asked for.
pub type Matcher = (String, Vec<String>);

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Metrics, each with its matchers.
    pub selectors: Vec<(String, Vec<Matcher>)>,
    /// Labels by which is grouped or joined.
    pub labels: BTreeSet<String>,
}

const OPERATORS: [&str; 8] = ["and", "or", "unless", "bool", "offset", "inf", "nan", "atan2"];
const OF_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Reads the names. Values of regular expressions are alternatives of plain words.
pub fn names(expression: &str) -> Names {
    let (mut names, mut rest) = (Names::default(), expression);
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            rest = string(rest).1;
        } else if first == '[' {
            rest = rest.split_once(']').expect("a range ends").1;
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if is_word(first) {
            let (word, after) = word(rest);
            rest = after.trim_start();
            if OF_LABELS.contains(&word) {
                let list = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
                let (list, after) = list.expect("labels are in parentheses");
                names.labels.extend(list.split(',').map(|label| label.trim().to_owned()));
                rest = after;
            } else if let Some(inner) = rest.strip_prefix('{') {
                let (matchers, after) = matchers(inner);
                names.selectors.push((word.to_owned(), matchers));
                rest = after;
            } else if !rest.starts_with('(')
                && !OPERATORS.contains(&word)
                && !OF_LABELS.iter().any(|of| rest.starts_with(of))
            {
                names.selectors.push((word.to_owned(), Vec::new()));
            }
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()))
}

/// A quoted string and what is after it. Ours have no escapes.
fn string(text: &str) -> (&str, &str) {
    text[1..].split_once('"').expect("a string ends")
}

fn matchers(mut rest: &str) -> (Vec<Matcher>, &str) {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\n']);
        if let Some(after) = rest.strip_prefix('}') {
            return (found, after);
        }
        let (label, after) = word(rest);
        let (value, after) = string(after.trim_start_matches(['=', '~', '!', ' ']));
        found.push((label.to_owned(), value.split('|').map(ToOwned::to_owned).collect()));
        rest = after;
    }
}

#[test]
fn every_name_of_an_expression_is_read() {
    let names = names(
        "sum by (le, verb) (rate(a_bucket{x=~\"b|c\", y!=\"(d)\"}[5m])) > 0.5 * group(e) without (z) \
         unless on (node) f offset 5m == 5e6 or max by (n) (g)",
    );
    let metrics: Vec<&str> = names.selectors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(metrics, ["a_bucket", "e", "f", "g"]);
    assert_eq!(names.labels.iter().map(String::as_str).collect::<Vec<_>>(), ["le", "n", "node", "verb", "z"]);
    let x = ("x".to_owned(), vec!["b".to_owned(), "c".to_owned()]);
    assert_eq!(names.selectors[0].1, [x, ("y".to_owned(), vec!["(d)".to_owned()])]);
}
