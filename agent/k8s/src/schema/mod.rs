//! What an API server does to an object on admission: defaults, structural checks, CEL rules.
//!
//! The schema is data (`schema/gateway-api.json`, made from the CRDs of v1.6.1's experimental channel by
//! `schema/generate.py`); [`Schema::admit`] is the one walk over it. The CEL rules are functions in [`rules`], called by
//! the names that the data carries; a test holds the two lists together.

mod hints;
mod rules;

#[cfg(test)]
mod tests;

use crate::{
    path::{closest, push_index, push_key},
    problem::Report,
    yaml::Marks,
};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{LazyLock, OnceLock},
};

/// The schemas of all kinds.
#[derive(Debug, Deserialize)]
pub(crate) struct Schema {
    kinds: BTreeMap<String, usize>,
    nodes: Vec<Node>,
}

/// One place of a schema. Limits are those of OpenAPI v3.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    properties: BTreeMap<String, usize>,
    #[serde(default)]
    required: Vec<String>,
    items: Option<usize>,
    additional: Option<usize>,
    default: Option<Value>,
    #[serde(default, rename = "enum")]
    one_of: Vec<Value>,
    pattern: Option<String>,
    #[serde(skip)]
    regex: OnceLock<Option<Regex>>,
    min_length: Option<usize>,
    max_length: Option<usize>,
    minimum: Option<i64>,
    maximum: Option<i64>,
    min_items: Option<usize>,
    max_items: Option<usize>,
    max_properties: Option<usize>,
    /// `x-kubernetes-list-map-keys`: no two items may agree in all of them.
    #[serde(default)]
    keys: Vec<String>,
    /// `x-kubernetes-list-type: set`.
    #[serde(default)]
    set: bool,
    #[serde(default)]
    rules: Vec<String>,
}

/// One object on its way through the schema.
struct Walk<'a> {
    schema: &'a Schema,
    marks: Option<&'a Marks>,
    path: String,
    report: &'a mut Report,
}

/// Gateway API v1.6.1, experimental channel.
pub(crate) fn gateway_api() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        serde_json::from_str(include_str!("../../schema/gateway-api.json"))
            .expect("the embedded schema parses: a test loads it")
    });
    &SCHEMA
}

impl Schema {
    /// Fills defaults in, drops nulls and unknown fields, and reports what an API server would refuse.
    pub(crate) fn admit(&self, kind: &str, value: &mut Value, marks: Option<&Marks>, report: &mut Report) {
        if let Some(&root) = self.kinds.get(kind) {
            Walk { schema: self, marks, path: String::new(), report }.node(root, value);
        }
    }
}

impl Walk<'_> {
    fn node(&mut self, id: usize, value: &mut Value) {
        let schema = self.schema;
        let node = &schema.nodes[id];
        let before = self.report.rejections();
        match node.kind.as_str() {
            "object" => self.object(node, value),
            "array" => self.array(node, value),
            "string" => self.string(node, value),
            "integer" => self.integer(node, value),
            "boolean" if !value.is_boolean() => self.wrong_type("true or false", value),
            _ => {}
        }
        // As in the API server, rules see only what is structurally sound.
        if self.report.rejections() == before {
            for rule in &node.rules {
                rules::check(rule, value, &self.path, self.report);
            }
        }
    }

    fn object(&mut self, node: &Node, value: &mut Value) {
        let Value::Object(map) = value else { return self.wrong_type("a mapping", value) };
        map.retain(|_, v| !v.is_null());
        if let Some(id) = node.additional {
            self.limit(map.len(), (None, node.max_properties), "entries");
            for (k, v) in map.iter_mut() {
                let old = push_key(&mut self.path, k);
                self.node(id, v);
                self.path.truncate(old);
            }
            return;
        }
        self.unknown_fields(node, map);
        for (name, &id) in &node.properties {
            if let (None, Some(default)) = (map.get(name), &self.schema.nodes[id].default) {
                map.insert(name.clone(), default.clone());
            }
            if let Some(v) = map.get_mut(name) {
                let old = push_key(&mut self.path, name);
                self.node(id, v);
                self.path.truncate(old);
            }
        }
        for name in node.required.iter().filter(|r| !map.contains_key(*r)) {
            let old = push_key(&mut self.path, name);
            self.report.reject(&self.path, "is required", hints::required(&self.path));
            self.path.truncate(old);
        }
    }

    fn unknown_fields(&mut self, node: &Node, map: &mut Map<String, Value>) {
        let root = self.path.is_empty();
        let known = |k: &str| node.properties.contains_key(k) || (root && hints::TOP_LEVEL.contains(&k));
        let in_spec = |k: &str| {
            root && node
                .properties
                .get("spec")
                .is_some_and(|s| self.schema.nodes[*s].properties.contains_key(k))
        };
        let unknown: Vec<String> = map.keys().filter(|k| !known(k)).cloned().collect();
        for name in unknown {
            map.remove(&name);
            let candidates = node.properties.keys().map(String::as_str).filter(|c| !map.contains_key(*c));
            let remedy = hints::unknown_field(&self.path, &name)
                .or_else(|| in_spec(&name).then_some("indent it below \"spec\""))
                .map(str::to_owned)
                .or_else(|| closest(&name, candidates).map(|c| format!("did you mean \"{c}\"?")))
                .unwrap_or_else(|| {
                    let all: Vec<&str> = node.properties.keys().map(String::as_str).collect();
                    format!("the fields here are {}", all.join(", "))
                });
            let old = push_key(&mut self.path, &name);
            self.report.warn(&self.path, "unknown field, it has no effect", remedy);
            self.path.truncate(old);
        }
    }

    fn array(&mut self, node: &Node, value: &mut Value) {
        let Value::Array(items) = value else { return self.wrong_type("a list", value) };
        self.limit(items.len(), (node.min_items, node.max_items), "entries");
        if let Some(id) = node.items {
            for (i, item) in items.iter_mut().enumerate() {
                let old = push_index(&mut self.path, i);
                self.node(id, item);
                self.path.truncate(old);
            }
        }
        let mut seen = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let (identity, what) = if node.set {
                (item.to_string(), item.to_string())
            } else if let Some(first) = node.keys.first() {
                let of = |k: &String| item.get(k).map(Value::to_string).unwrap_or_default();
                (node.keys.iter().map(of).collect::<Vec<_>>().join("\0"), format!("{first} {}", of(first)))
            } else {
                break;
            };
            if !seen.insert(identity) {
                let old = push_index(&mut self.path, i);
                self.report.reject(&self.path, format!("{what} is there already"), "each may be given once");
                self.path.truncate(old);
            }
        }
    }

    fn string(&mut self, node: &Node, value: &mut Value) {
        if value.is_boolean()
            && let Some(word) = self.marks.and_then(|m| m.word_at(&self.path))
        {
            let remedy = format!("write \"{word}\" with quotes: kubectl reads the bare word as a boolean");
            self.report.warn(&self.path, format!("{word} is taken for text here"), remedy);
            *value = Value::String(word.to_owned());
        }
        let Value::String(text) = &*value else { return self.wrong_type("text", value) };
        if !node.one_of.is_empty() && !node.one_of.contains(value) {
            let known: Vec<&str> = node.one_of.iter().filter_map(Value::as_str).collect();
            let (reason, remedy) = hints::unknown_value(&self.path, text, &known);
            return self.report.reject(&self.path, reason, remedy);
        }
        let length = text.chars().count();
        if node.min_length.is_some_and(|min| length < min) {
            return self.report.reject(&self.path, "may not be empty", hints::required(&self.path));
        }
        if let Some(max) = node.max_length.filter(|max| length > *max) {
            return self.report.reject(
                &self.path,
                format!("is {length} characters long"),
                format!("at most {max} are allowed"),
            );
        }
        if let Some(pattern) = &node.pattern {
            let regex = node.regex.get_or_init(|| Regex::new(pattern).ok());
            if regex.as_ref().is_some_and(|r| !r.is_match(text)) {
                let remedy = hints::pattern(pattern, text);
                self.report.reject(&self.path, format!("{value} is not allowed"), remedy);
            }
        }
    }

    fn integer(&mut self, node: &Node, value: &Value) {
        let Some(number) = value.as_i64() else { return self.wrong_type("a whole number", value) };
        let (min, max) = (node.minimum, node.maximum);
        if min.is_some_and(|m| number < m) || max.is_some_and(|m| number > m) {
            let remedy = match (min, max) {
                (Some(min), Some(max)) => format!("it must be from {min} to {max}"),
                (Some(min), None) => format!("it must be at least {min}"),
                (None, max) => format!("it must be at most {}", max.unwrap_or(i64::MAX)),
            };
            self.report.reject(&self.path, format!("{number} is out of range"), remedy);
        } else if !node.one_of.is_empty() && !node.one_of.contains(value) {
            let known: Vec<String> = node.one_of.iter().map(Value::to_string).collect();
            let remedy = format!("it must be one of {}", known.join(", "));
            self.report.reject(&self.path, format!("{number} is not allowed"), remedy);
        }
    }

    fn limit(&mut self, len: usize, (min, max): (Option<usize>, Option<usize>), what: &str) {
        if let Some(min) = min.filter(|min| len < *min) {
            let remedy = format!("give at least {min}, or leave the field out where the API allows it");
            self.report.reject(&self.path, format!("has {len} {what}"), remedy);
        }
        if let Some(max) = max.filter(|max| len > *max) {
            self.report.reject(&self.path, format!("has {len} {what}"), format!("at most {max} are allowed"));
        }
    }

    fn wrong_type(&mut self, expected: &str, found: &Value) {
        let remedy = match (expected, found) {
            ("text", Value::Bool(_) | Value::Number(_)) => "put it in quotes",
            ("a whole number", Value::String(s)) if s.parse::<i64>().is_ok() => "remove the quotes",
            ("a list", Value::Object(_)) => "start each entry with \"- \"",
            ("a mapping", Value::Array(_)) => "remove the \"- \": only one is allowed here",
            _ => "",
        };
        self.report.reject(&self.path, format!("expected {expected}, found {}", describe(found)), remedy);
    }
}

/// A value for a message: short, typed.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text \"{}\"", s.chars().take(64).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}
