//! Fits YAML to the forms that are expected, as sigs.k8s.io/yaml and encoding/json do
//! for the Go provisioner: text may be written as a number, keys in another case, twice,
//! or be unknown. What is odd is told, what does not fit is an error, and the rest is read on.

use std::collections::BTreeMap;
use std::rc::Rc;

use granit_parser::ScalarStyle;
use serde::de::DeserializeOwned;

use super::keys::{Key, Shape};
use super::problem::{Place, Problem, suggestion};
use super::scalar::{self, Scalar};
use super::yaml::{Kind, Node};

/// After so many problems, no more warnings are added; after twice as many, no errors.
const ENOUGH: usize = 200;

/// A value of the expected form. `null` counts as absent: there is no such value.
#[derive(Debug)]
pub struct Value {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub data: Data,
}

/// What a value is.
#[derive(Debug)]
pub enum Data {
    /// Of [`Shape::Bool`].
    Bool(bool),
    /// Of [`Shape::Int`].
    Int(i64),
    /// Of [`Shape::Text`].
    Text(String),
    /// Of [`Shape::List`].
    List(Vec<Value>),
    /// Of [`Shape::Map`] and [`Shape::Object`]: by key, with the key's place.
    Map(BTreeMap<String, (Place, Value)>),
}

/// Collects what is wrong with the texts, and fits their values.
#[derive(Debug, Default)]
pub struct Fitter {
    /// The key whose text is read.
    pub key: String,
    /// What was found.
    pub problems: Vec<Problem>,
}

impl Fitter {
    /// Notes an error, unless there is more of that than anybody reads.
    pub fn error(&mut self, place: Option<Place>, text: String) {
        if self.problems.len() < 2 * ENOUGH {
            self.problems.push(Problem::error(&self.key, place, text));
        }
    }

    /// Whether something is wrong with the key's text.
    pub fn has_error(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.is_error() && problem.key.eq_ignore_ascii_case(key))
    }

    /// Notes something odd, unless there is more of that than anybody reads.
    pub fn warn(&mut self, place: Option<Place>, text: String) {
        if self.problems.len() < ENOUGH {
            self.problems.push(Problem::warning(&self.key, place, text));
        }
    }

    /// Fits a node. `path` names it in messages.
    pub fn fit(&mut self, node: &Node, shape: &Shape, path: &str) -> Option<Value> {
        let place = node.place;
        if let Kind::Scalar { text, style } = &node.kind {
            return match scalar::resolve(node.tag.as_deref(), text, *style == ScalarStyle::Plain) {
                Ok(scalar) => self.fit_scalar(scalar, text, shape, place, path),
                Err(problem) => {
                    self.error(Some(place), format!("{path}: {problem}"));
                    None
                }
            };
        }
        let data = match (&node.kind, shape) {
            (Kind::List(nodes), Shape::List(inner)) => Data::List(self.list(nodes, inner, path)),
            (Kind::Map(_), Shape::Map(inner)) => {
                let entries = self.entries(node, path);
                let fitted = entries.into_iter().filter_map(|(name, (at, node))| {
                    let path = format!("{path}.{}", shorten(&name));
                    let value = self.fit(&node, inner, &path).or_else(|| self.empty(&node, inner))?;
                    Some((name, (at, value)))
                });
                Data::Map(fitted.collect())
            }
            (Kind::Map(_), Shape::Object(keys)) => Data::Map(self.object(node, keys, path)),
            (_, expected) => {
                self.error(Some(place), format!("{path}: {} can't be used; expected {}", node.what(), form(expected)));
                return None;
            }
        };
        Some(Value { place, data })
    }

    fn fit_scalar(&mut self, scalar: Scalar, source: &str, shape: &Shape, place: Place, path: &str) -> Option<Value> {
        let data = match (shape, scalar) {
            (_, Scalar::Null) => return None,
            (Shape::Bool, Scalar::Bool(value)) => Data::Bool(value),
            (Shape::Int, Scalar::Int(number)) => Data::Int(number),
            (Shape::Int, Scalar::Float(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
                let number = number as i64;
                Data::Int(number)
            }
            // With quotes the Go provisioner would not start; what is meant is plain.
            (Shape::Bool | Shape::Int, Scalar::Text(text)) => match (shape, scalar::resolve(None, text.trim(), true)) {
                (Shape::Bool, Ok(Scalar::Bool(value))) => Data::Bool(value),
                (Shape::Int, Ok(Scalar::Int(number))) => Data::Int(number),
                _ => return self.misfit(source, shape, place, path),
            },
            (Shape::Text, scalar) => {
                let is_text = matches!(scalar, Scalar::Text(_));
                let text = scalar.into_text();
                if !is_text && text != source {
                    self.warn(
                        Some(place),
                        format!("{path}: {source} is read as {text}; quote it if that is not meant"),
                    );
                }
                Data::Text(text)
            }
            _ => return self.misfit(source, shape, place, path),
        };
        Some(Value { place, data })
    }

    fn misfit(&mut self, source: &str, shape: &Shape, place: Place, path: &str) -> Option<Value> {
        let source = shorten(source);
        self.error(Some(place), format!("{path}: {source:?} can't be used; expected {}", form(shape)));
        None
    }

    fn list(&mut self, nodes: &[Rc<Node>], inner: &Shape, path: &str) -> Vec<Value> {
        let fitted = nodes.iter().enumerate().filter_map(|(index, node)| {
            let path = format!("{path}[{index}]");
            self.fit(node, inner, &path).or_else(|| self.empty(node, inner))
        });
        fitted.collect()
    }

    /// What `null` means as an element of a list or the value of a name: the empty value.
    /// What did not fit is no value.
    fn empty(&self, node: &Node, shape: &Shape) -> Option<Value> {
        let Kind::Scalar { text, style } = &node.kind else { return None };
        let resolved = scalar::resolve(node.tag.as_deref(), text, *style == ScalarStyle::Plain);
        let data = match shape {
            _ if resolved != Ok(Scalar::Null) => return None,
            Shape::Text => Data::Text(String::new()),
            Shape::List(_) => Data::List(Vec::new()),
            Shape::Map(_) | Shape::Object(_) => Data::Map(BTreeMap::new()),
            Shape::Bool => Data::Bool(false),
            Shape::Int => Data::Int(0),
        };
        Some(Value { place: node.place, data })
    }

    fn object(&mut self, node: &Node, keys: &[Key], path: &str) -> BTreeMap<String, (Place, Value)> {
        let mut fitted: BTreeMap<String, (Place, Value)> = BTreeMap::new();
        // In the order of their bytes, as Go: where one is there in two spellings, the last counts.
        for (name, (at, node)) in self.entries(node, path) {
            let same = keys.iter().find(|key| key.name == name);
            let Some(key) = same.or_else(|| keys.iter().find(|key| key.name.eq_ignore_ascii_case(&name))) else {
                let suggestion = suggestion(&name, keys.iter().map(|key| key.name));
                let name = shorten(&name);
                self.warn(Some(at), format!("{path}.{name}: there is no such key, and it is ignored{suggestion}"));
                continue;
            };
            if key.name != name {
                self.warn(Some(at), format!("{path}.{name}: the key is spelled {}", key.name));
            }
            let path = format!("{path}.{}", key.name);
            if let Some(value) = self.fit(&node, &key.shape, &path)
                && fitted.insert(key.name.to_owned(), (at, value)).is_some()
            {
                self.warn(Some(at), format!("{path} is there in two spellings; this one counts"));
            }
        }
        fitted
    }

    /// A map's entries by key. `<<` puts in those of other maps; of a key that is there
    /// twice, the last one counts.
    fn entries(&mut self, node: &Node, path: &str) -> BTreeMap<String, (Place, Rc<Node>)> {
        let mut entries = BTreeMap::new();
        self.gather(node, path, &mut entries);
        entries
    }

    fn gather(&mut self, node: &Node, path: &str, entries: &mut BTreeMap<String, (Place, Rc<Node>)>) {
        let Kind::Map(pairs) = &node.kind else {
            return self.error(Some(node.place), format!("{path}: << takes a map, or a list of maps"));
        };
        let mut own = BTreeMap::new();
        for (key, value) in pairs {
            let Kind::Scalar { text, style } = &key.kind else {
                self.error(Some(key.place), format!("{path}: {} can't be a key", key.what()));
                continue;
            };
            let plain = *style == ScalarStyle::Plain;
            if text == "<<" && plain && key.tag.is_none() {
                match &value.kind {
                    Kind::List(maps) => maps.iter().rev().for_each(|map| self.gather(map, path, entries)),
                    _ => self.gather(value, path, entries),
                }
                continue;
            }
            let name = scalar::resolve(key.tag.as_deref(), text, plain).ok().and_then(Scalar::into_key);
            let Some(name) = name else {
                self.error(Some(key.place), format!("{path}: {text:?} can't be a key; quote it"));
                continue;
            };
            if plain && name != *text {
                let text = format!("{path}: the key {text} is read as {name}; quote it if that is not meant");
                self.warn(Some(key.place), text);
            }
            if let Some(first) = own.insert(name.clone(), key.place) {
                let name = shorten(&name);
                let text = format!("{path}.{name}: is in line {} as well; the last one counts", first.line);
                self.warn(Some(key.place), text);
            }
            entries.insert(name, (key.place, Rc::clone(value)));
        }
    }
}

impl Value {
    /// The value of a key, if it is there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.data {
            Data::Map(entries) => entries.get(key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The truth value.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Data::Bool(value) = self.data { Some(value) } else { None }
    }

    /// The number.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Data::Int(number) = self.data { Some(number) } else { None }
    }

    /// The text. An empty one means the same as none, as in the Go provisioner.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        if let Data::Text(text) = &self.data {
            Some(text).filter(|text| !text.is_empty()).map(String::as_str)
        } else {
            None
        }
    }

    /// The elements; of what is no list, none.
    #[must_use]
    pub fn elements(&self) -> &[Self] {
        if let Data::List(values) = &self.data { values } else { &[] }
    }

    /// The texts of a list, also the empty ones.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.elements().iter().map(|value| value.as_text().unwrap_or_default().to_owned()).collect()
    }

    fn json(&self) -> serde_json::Value {
        match &self.data {
            Data::Bool(value) => (*value).into(),
            Data::Int(number) => (*number).into(),
            Data::Text(text) => text.clone().into(),
            Data::List(values) => values.iter().map(Self::json).collect(),
            Data::Map(entries) => entries.iter().map(|(key, (_, value))| (key.clone(), value.json())).collect(),
        }
    }

    /// The value as one of Kubernetes' own types.
    ///
    /// # Panics
    /// The shape that it was fitted to is not the type's.
    #[must_use]
    pub fn decode<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.json()).expect("its shape is the type's")
    }
}

/// What is expected, in a message.
fn form(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "true or false".to_owned(),
        Shape::Int => "a whole number".to_owned(),
        Shape::Text => "text".to_owned(),
        Shape::List(Shape::Text) => "a list of texts".to_owned(),
        Shape::List(_) => "a list of maps".to_owned(),
        Shape::Map(Shape::Text) => "a map of texts".to_owned(),
        Shape::Map(_) => "a map".to_owned(),
        Shape::Object(keys) => {
            let names: Vec<&str> = keys.iter().take(4).map(|key| key.name).collect();
            format!("a map with {}{}", names.join(", "), if keys.len() > 4 { ", ..." } else { "" })
        }
    }
}

/// Text from the ConfigMap, short enough for a message.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short += "...";
    }
    short
}
