//! A serde deserializer over JSON values that reports fields no one asked for.
//!
//! `k8s-openapi`'s types skip unknown fields silently; what `kubectl` warns of (`unknown field "spec.prots"`) comes from
//! here: every struct names its fields when it is read, so a typo is compared with the real ones.

use crate::{
    path::{closest, push_index, push_key},
    problem::Report,
    yaml::Marks,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Error, Map, Value};
use std::cell::RefCell;

/// Reads a `T`. Unknown fields are warnings; a value of the wrong type rejects the object and gives `None`.
pub(crate) fn read<'de, T: Deserialize<'de>>(
    value: &'de Value,
    marks: Option<&Marks>,
    report: &mut Report,
) -> Option<T> {
    let shared = Shared { marks, report: RefCell::new(std::mem::take(report)) };
    let tracked = Tracked { value, at: At::Root, shared: &shared };
    let result = serde_path_to_error::deserialize(tracked);
    *report = shared.report.into_inner();
    result
        .map_err(|e| {
            let path = e.path().to_string();
            let (reason, remedy) = in_words(&e.into_inner().to_string());
            report.reject(if path == "." { "" } else { &path }, reason, remedy);
        })
        .ok()
}

/// serde's message as we speak.
fn in_words(message: &str) -> (String, &'static str) {
    // The base64 decoder's errors; serde's start with a small letter.
    if message.starts_with("Invalid ") {
        return ("is not base64".to_owned(), "write plain text into \"stringData\" instead of \"data\"");
    }
    let parts = message.strip_prefix("invalid type: ").and_then(|m| m.split_once(", expected "));
    let Some((found, expected)) = parts else { return (message.to_owned(), "") };
    let expected = match expected {
        "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number",
        "a string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        e if e == "a map" || e.starts_with("struct ") || e.chars().next().is_some_and(char::is_uppercase) => {
            "a mapping"
        }
        other => other,
    };
    let found = match found {
        "map" => "a mapping",
        "sequence" => "a list",
        "null" => "nothing",
        other => other,
    };
    let remedy = match (expected, found) {
        ("a whole number", f) if f.starts_with("string") => "remove the quotes",
        ("text", f) if f.starts_with("integer") || f.starts_with("boolean") || f.starts_with("floating") => {
            "put it in quotes"
        }
        ("a list", "a mapping") => "start each entry with \"- \"",
        _ => "",
    };
    (format!("expected {expected}, found {}", found.replace('`', "")), remedy)
}

struct Shared<'a> {
    marks: Option<&'a Marks>,
    report: RefCell<Report>,
}

/// The way from the root: rendered only when there is something to say.
#[derive(Clone, Copy)]
enum At<'a> {
    Root,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl At<'_> {
    fn render(&self, out: &mut String) {
        match self {
            Self::Root => {}
            Self::Key(parent, key) => {
                parent.render(out);
                push_key(out, key);
            }
            Self::Index(parent, index) => {
                parent.render(out);
                push_index(out, *index);
            }
        }
    }
}

struct Tracked<'de, 'a> {
    value: &'de Value,
    at: At<'a>,
    shared: &'a Shared<'a>,
}

impl Tracked<'_, '_> {
    fn path(&self) -> String {
        let mut out = String::new();
        self.at.render(&mut out);
        out
    }

    fn unknown_fields(&self, map: &Map<String, Value>, fields: &[&'static str]) {
        for key in map.keys().filter(|k| !fields.contains(&k.as_str())) {
            let mut path = self.path();
            push_key(&mut path, key);
            let free = fields.iter().copied().filter(|f| !map.contains_key(*f));
            let remedy = closest(key, free).map(|c| format!("did you mean \"{c}\"?")).unwrap_or_default();
            self.shared.report.borrow_mut().warn(&path, "unknown field, it has no effect", remedy);
        }
    }

    /// `yes` and the like, where text is wanted.
    fn word(&self) -> Option<String> {
        let word = self.value.is_boolean().then(|| self.shared.marks?.word_at(&self.path()))??;
        let remedy = format!("write \"{word}\" with quotes: kubectl reads the bare word as a boolean");
        let reason = format!("{word} is taken for text here");
        self.shared.report.borrow_mut().warn(&self.path(), reason, remedy);
        Some(word.to_owned())
    }
}

impl<'de> Deserializer<'de> for Tracked<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                at: &self.at,
                shared: self.shared,
            }),
            Value::Object(map) => visitor.visit_map(Entries {
                entries: map.iter(),
                at: &self.at,
                shared: self.shared,
                next: None,
            }),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(map) = self.value {
            self.unknown_fields(map, fields);
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.word() {
            Some(word) => visitor.visit_string(word),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct Items<'de, 'a> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    at: &'a At<'a>,
    shared: &'a Shared<'a>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((i, value)) = self.items.next() else { return Ok(None) };
        seed.deserialize(Tracked { value, at: At::Index(self.at, i), shared: self.shared }).map(Some)
    }
}

struct Entries<'de, 'a> {
    entries: serde_json::map::Iter<'de>,
    at: &'a At<'a>,
    shared: &'a Shared<'a>,
    next: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.next = Some((key, value));
        seed.deserialize(serde::de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, value) = self.next.take().unwrap_or(("", &Value::Null));
        seed.deserialize(Tracked { value, at: At::Key(self.at, key), shared: self.shared })
    }
}
