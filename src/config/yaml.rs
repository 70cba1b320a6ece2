//! YAML text as a tree whose nodes know their place. Anchors and `<<` are resolved here;
//! what a scalar means is not known yet. The work is bounded: a ConfigMap holds 1 MiB at most,
//! and what its aliases repeat counts each time.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Span, Tag};

use super::problem::Place;

/// The most text that is read: no ConfigMap holds more.
pub const MAX_BYTES: usize = 1 << 20;
/// The most nodes, those that aliases repeat included.
const MAX_NODES: usize = 100_000;
/// The most text of scalars, that which aliases repeat included.
const MAX_TEXT: usize = 8 << 20;
/// How deep lists and maps may lie in each other.
const MAX_DEPTH: usize = 64;

/// A value, where it begins.
#[derive(Debug)]
pub struct Node {
    /// Its first character.
    pub place: Place,
    /// Its tag, such as `!!str`; any but those that YAML itself defines is `!`.
    pub tag: Option<String>,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(Debug)]
pub enum Kind {
    /// Text.
    Scalar {
        /// Its text, without quotes and escapes.
        text: String,
        /// How it is written.
        style: ScalarStyle,
    },
    /// A sequence.
    List(Vec<Rc<Node>>),
    /// A mapping, in the order of the text: keys may be there twice, or be `<<`.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// Why text is no YAML that can be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub text: String,
}

impl Node {
    /// What it is, in a message.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self.kind {
            Kind::Scalar { .. } => "a scalar",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }
}

/// The values of the documents in the text. An empty one is a scalar without text.
///
/// # Errors
/// The first fault of the text: after it nothing can be relied upon.
pub fn documents(text: &str) -> Result<Vec<Rc<Node>>, Fault> {
    if text.len() > MAX_BYTES {
        let place = Place { line: 1, column: 1 };
        return Err(Fault { place, text: format!("it has {} bytes; a ConfigMap holds 1 MiB at most", text.len()) });
    }
    let options = {
        let mut options = granit_parser::options! { block_nesting_limit: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH };
        options.set_emit_comments(false);
        options
    };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| Fault {
            place: place_of(error.marker().line(), error.marker().col()),
            text: match error.kind() {
                ErrorKind::RecursionLimitExceeded => too_deep(),
                _ => error.info(),
            },
        })?;
        builder.take(event, &span)?;
    }
    Ok(builder.documents)
}

/// A list or map that is not complete.
struct Open {
    place: Place,
    tag: Option<String>,
    anchor: usize,
    children: Vec<Rc<Node>>,
    is_map: bool,
    /// The deepest of its children, and what all of them cost.
    depth: usize,
    cost: Cost,
}

#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    text: usize,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.text += other.text;
    }
}

#[derive(Default)]
struct Builder {
    documents: Vec<Rc<Node>>,
    open: Vec<Open>,
    /// What each anchor names, how deep that is, and what repeating it costs.
    anchors: HashMap<usize, (Rc<Node>, usize, Cost)>,
    total: Cost,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let place = place_of(span.start.line(), span.start.col());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let cost = Cost { nodes: 1, text: text.len() };
                self.total.add(cost);
                let kind = Kind::Scalar { text: text.into_owned(), style };
                let node = Rc::new(Node { place, tag: tag.map(|tag| tag_name(&tag)), kind });
                self.complete(node, anchor, 0, cost)
            }
            Event::SequenceStart(_, anchor, tag) => self.begin(place, tag.map(|tag| tag_name(&tag)), anchor, false),
            Event::MappingStart(_, anchor, tag) => self.begin(place, tag.map(|tag| tag_name(&tag)), anchor, true),
            Event::SequenceEnd | Event::MappingEnd => {
                let Open { place, tag, anchor, children, is_map, depth, cost } =
                    self.open.pop().expect("the parser ends only what it began");
                let kind = if is_map {
                    let mut children = children.into_iter();
                    Kind::Map(std::iter::from_fn(|| Some((children.next()?, children.next()?))).collect())
                } else {
                    Kind::List(children)
                };
                self.complete(Rc::new(Node { place, tag, kind }), anchor, depth + 1, cost)
            }
            Event::Alias(anchor) => {
                let Some((node, depth, cost)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Fault { place, text: "the alias stands for a value that contains it".to_owned() });
                };
                self.total.add(cost);
                self.complete(node, 0, depth, cost).map_err(|fault| Fault { place, ..fault })
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, place: Place, tag: Option<String>, anchor: usize, is_map: bool) -> Result<(), Fault> {
        let cost = Cost { nodes: 1, text: 0 };
        self.total.add(cost);
        self.open.push(Open { place, tag, anchor, children: Vec::new(), is_map, depth: 0, cost });
        self.check(place, 0)
    }

    fn complete(&mut self, node: Rc<Node>, anchor: usize, depth: usize, cost: Cost) -> Result<(), Fault> {
        self.check(node.place, depth)?;
        if anchor != 0 {
            self.anchors.insert(anchor, (Rc::clone(&node), depth, cost));
        }
        if let Some(open) = self.open.last_mut() {
            open.depth = open.depth.max(depth);
            open.cost.add(cost);
            open.children.push(node);
        } else {
            self.documents.push(node);
        }
        Ok(())
    }

    /// Holds the limits, with a value that is `depth` deep at the place.
    fn check(&self, place: Place, depth: usize) -> Result<(), Fault> {
        if self.total.nodes > MAX_NODES || self.total.text > MAX_TEXT {
            let text = format!("it has more than {MAX_NODES} values, or its aliases repeat too much");
            return Err(Fault { place, text });
        }
        if self.open.len() + depth > MAX_DEPTH {
            return Err(Fault { place, text: too_deep() });
        }
        Ok(())
    }
}

fn too_deep() -> String {
    format!("lists and maps lie more than {MAX_DEPTH} deep in each other")
}

fn place_of(line: usize, column: usize) -> Place {
    Place { line: line.max(1), column: column + 1 }
}

fn tag_name(tag: &Tag) -> String {
    match tag.suffix_in_namespace("tag:yaml.org,2002:") {
        Some(name) => format!("!!{name}"),
        None => "!".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        // Without the tree: one that is not refused may be too much to be printed.
        documents(text).map(|_| ()).expect_err("the text can't be used").text
    }

    #[test]
    fn what_aliases_repeat_is_counted_each_time() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let last = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{last}]\n");
        }
        assert!(fault(&text).contains("aliases repeat too much"));
        let long = "x".repeat(200_000);
        assert!(fault(&format!("a: &a {long}\nb: [{}]\n", "*a, ".repeat(1_000))).contains("aliases repeat too much"));
        assert!(fault(&"[],".repeat(MAX_NODES + 1).replacen("[]", "[[]", 1)).contains("values"));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        assert!(documents(&format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH))).is_ok());
        for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000), "? ".repeat(100_000)] {
            assert!(fault(&text).contains("deep in each other"), "{}", &text[..4]);
        }
        let mut text = "a0: &a0 [x]\n".to_owned();
        for level in 1..=MAX_DEPTH {
            text += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(fault(&text).contains("deep in each other"));
        assert!(fault(&"x".repeat(MAX_BYTES + 1)).contains("1 MiB at most"));
        assert!(fault("a: &a [*a]").contains("contains it"));
    }

    #[test]
    fn a_fault_has_its_place() {
        let fault = documents("a: b\nc: [d\ne: f\n").expect_err("the bracket is not closed");
        assert!(fault.place.line >= 2 && !fault.text.is_empty(), "{fault:?}");
        let nodes = documents("a:\n  b: c\n").expect("it is YAML");
        let Kind::Map(outer) = &nodes[0].kind else { panic!("it is a map") };
        let Kind::Map(inner) = &outer[0].1.kind else { panic!("it is a map") };
        assert_eq!(inner[0].1.place, Place { line: 2, column: 6 });
    }
}
