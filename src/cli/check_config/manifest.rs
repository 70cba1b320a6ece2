//! ConfigMaps in a manifest: the texts of their keys, and where in the file they are.

use std::rc::Rc;

use granit_parser::ScalarStyle;

use super::Finding;
use super::input::{Input, Source};
use crate::config::Place;
use crate::config::is_text;
use crate::config::yaml::{self, Fault, Kind, Node};

/// A key's text, and where in its file that is.
#[derive(Debug)]
pub struct Text {
    /// The text.
    pub value: String,
    within: Within,
}

/// How places in the text become places in the file.
#[derive(Debug)]
enum Within {
    /// The text is all of the file.
    All,
    /// Each of its lines is one of the file's, from this one on, behind so many blanks.
    Lines { first: usize, blanks: usize },
    /// It is in one line, and begins here.
    Line(Place),
    /// It is put together from lines that begin here: more is not known.
    Folded(Place),
}

impl Text {
    /// A text that is all of its file.
    pub fn whole(value: String) -> Self {
        Self { value, within: Within::All }
    }

    /// The place in the file.
    pub fn place(&self, place: Option<Place>) -> Option<Place> {
        match (&self.within, place) {
            (Within::All, place) => place,
            (Within::Lines { first, blanks }, Some(Place { line, column })) => {
                Some(Place { line: first + line - 1, column: blanks + column })
            }
            (Within::Lines { first, blanks }, None) => Some(Place { line: *first, column: blanks + 1 }),
            (Within::Line(start), Some(Place { line: 1, column })) => {
                Some(Place { line: start.line, column: start.column + column - 1 })
            }
            (Within::Line(start) | Within::Folded(start), _) => Some(*start),
        }
    }
}

/// The ConfigMaps of a manifest with keys of the agent's; if there is only one ConfigMap, that.
/// Without any, an input that says so.
pub fn read(name: &str, text: &str) -> Vec<Input> {
    let nothing = |place, problem| {
        let findings = vec![Finding::error(name, place, problem)];
        vec![Input { name: name.to_owned(), findings, ..Input::default() }]
    };
    let documents = match yaml::documents(text) {
        Ok(documents) => documents,
        Err(Fault { place, text }) => return nothing(Some(place), text),
    };
    let lines: Vec<&str> = text.lines().collect();
    let objects = documents.iter().flat_map(|document| match field(document, "items").map(|items| &items.kind) {
        Some(Kind::List(items)) => items.clone(),
        _ => vec![Rc::clone(document)],
    });
    let is_map = |object: &Rc<Node>| field(object, "kind").and_then(text_of) == Some("ConfigMap");
    let maps: Vec<Rc<Node>> = objects.filter(is_map).collect();
    let has_classes = |map: &&Rc<Node>| field(map, "data").and_then(|data| field(data, "storageClassMap")).is_some();
    let ours: Vec<&Rc<Node>> = maps.iter().filter(has_classes).collect();
    match (ours.as_slice(), maps.as_slice()) {
        ([], []) => nothing(None, "there is no ConfigMap in it".to_owned()),
        ([], [only]) => vec![keys(name, only, &lines)],
        ([], _) => nothing(None, "none of its ConfigMaps has the key storageClassMap".to_owned()),
        _ => ours.into_iter().map(|map| keys(name, map, &lines)).collect(),
    }
}

fn keys(name: &str, map: &Node, lines: &[&str]) -> Input {
    let mut input = Input { name: name.to_owned(), ..Input::default() };
    let pairs: &[(Rc<Node>, Rc<Node>)] = match field(map, "data").map(|data| &data.kind) {
        Some(Kind::Map(pairs)) => pairs,
        _ => &[],
    };
    for (key, value) in pairs {
        let Some(key) = text_of(key) else { continue };
        let Some(text) = string(value, lines) else {
            let problem = format!("{key}: the API server takes text only; quote it, or write it as a block (|)");
            input.findings.push(Finding::error(name, Some(value.place), problem));
            continue;
        };
        input.keys.insert(key.to_owned(), Source { file: name.to_owned(), text });
    }
    input
}

/// The text of a value, if it is what YAML takes for text.
fn string(node: &Node, lines: &[&str]) -> Option<Text> {
    let Kind::Scalar { text, style } = &node.kind else { return None };
    let place = node.place;
    let is_whole = !text.trim_end_matches('\n').contains('\n');
    let within = match style {
        ScalarStyle::Literal if !text.trim().is_empty() => {
            // The node begins at its first line that has something. Its lines are as far in as that.
            let blank = text.chars().take_while(|c| *c == '\n').count();
            let first = place.line.saturating_sub(blank).max(1);
            let full = lines.iter().skip(place.line - 1).find(|line| !line.trim().is_empty());
            let blanks = full.map_or(0, |line| line.len() - line.trim_start_matches(' ').len());
            Within::Lines { first, blanks }
        }
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted if is_whole => {
            Within::Line(Place { column: place.column + 1, ..place })
        }
        ScalarStyle::Plain if is_whole => Within::Line(place),
        _ => Within::Folded(place),
    };
    // Nothing counts as an empty text.
    let is_text =
        *style != ScalarStyle::Plain || node.tag.as_deref() == Some("!!str") || text.is_empty() || is_text(text);
    is_text.then(|| Text { value: text.clone(), within })
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Rc<Node>> {
    let Kind::Map(pairs) = &node.kind else { return None };
    pairs.iter().rfind(|(key, _)| text_of(key) == Some(name)).map(|(_, value)| value)
}

fn text_of(node: &Rc<Node>) -> Option<&str> {
    if let Kind::Scalar { text, .. } = &node.kind { Some(text) } else { None }
}
