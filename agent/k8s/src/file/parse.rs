//! One file to objects, document by document. Documents that have not changed are not read again.

use crate::{
    config::{self, Reading},
    convert::{self, Converted, Source},
    problem::{Problem, Report, Severity},
    yaml::{self, Document},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};
use weft_core::model::{GatewayConfig, Node, ObjectKey, Origin, Str};

/// What stands in one file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The pieces between `---`, each with how many lines it has moved since it was read.
    pub(super) pieces: Vec<(Shift, Arc<Piece>)>,
    /// What is wrong with the file as a whole.
    pub(super) problem: Option<Problem>,
    /// Some of it could not be read, so that objects may be missing.
    pub(super) partial: bool,
}

/// A piece of a file, most often one object. Lines are those of the time when it was read.
#[derive(Debug, Default)]
pub(super) struct Piece {
    text: u64,
    first_line: u32,
    pub(super) entries: Vec<Entry>,
    pub(super) agent: Vec<Settings>,
    pub(super) gateway_configs: Vec<GatewayConfig>,
    pub(super) nodes: Vec<Node>,
    pub(super) problems: Vec<Problem>,
    partial: bool,
}

/// An `AgentConfig` of a file.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) origin: Origin,
    /// `None`: refused as a whole.
    pub(super) reading: Option<Reading>,
    /// What to say of each Gateway in `gatewayAddresses` when there is none of that name.
    pub(super) unknown_gateways: Vec<(ObjectKey, Problem)>,
}

/// One object of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) converted: Converted,
    /// Where it starts.
    pub(super) origin: Origin,
    /// Hash of all but metadata and status: what `metadata.generation` counts.
    pub(super) spec: u64,
}

impl Parsed {
    /// Whether there is an object or a problem in it.
    pub(super) fn says_something(&self) -> bool {
        self.problem.is_some() || self.pieces.iter().any(|(_, piece)| !piece.is_empty())
    }
}

/// Lines that a piece has moved down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift(i32);

impl Shift {
    pub(super) fn origin(self, origin: &Origin) -> Origin {
        Origin { file: origin.file.clone(), line: origin.line.saturating_add_signed(self.0) }
    }

    pub(super) fn problem(self, problem: &Problem) -> Problem {
        Problem { origin: problem.origin.as_ref().map(|o| self.origin(o)), ..problem.clone() }
    }
}

/// Reads a file, with the help of what was in it before.
pub(super) fn read(path: &Path, before: Option<&Parsed>) -> Parsed {
    let whole = |problem| Parsed { partial: true, problem: Some(problem), pieces: Vec::new() };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let remedy = "what was read of it before stays in effect";
            return whole(file_problem(path, 1, &error.to_string(), remedy));
        }
    };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            return whole(file_problem(path, line, "not UTF-8 text", "save it as UTF-8"));
        }
    };
    if let Some(error) = yaml::too_long(text, &yaml::FILE) {
        return whole(file_problem(path, error.line, &error.reason, &error.remedy));
    }
    let known: HashMap<u64, &Arc<Piece>> =
        before.into_iter().flat_map(|b| &b.pieces).map(|(_, piece)| (piece.text, piece)).collect();
    let mut parsed = Parsed::default();
    for (first_line, chunk) in yaml::chunks(text) {
        let hash = hash(chunk);
        let piece = known.get(&hash).map_or_else(
            || Arc::new(Piece { text: hash, first_line, ..piece(path, first_line, chunk) }),
            |piece| (*piece).clone(),
        );
        let moved = i64::from(first_line) - i64::from(piece.first_line);
        parsed.partial |= piece.partial;
        parsed.pieces.push((Shift(i32::try_from(moved).unwrap_or(0)), piece));
    }
    // An editor or shell truncates a file before it writes it: nothing at all is "not written yet".
    parsed.partial |= text.is_empty();
    parsed
}

fn piece(path: &Path, first_line: u32, chunk: &str) -> Piece {
    let file: Str = path.to_string_lossy().into();
    let (documents, error) = yaml::read_piece(first_line, chunk, &yaml::FILE);
    let mut piece = Piece { partial: error.is_some(), ..Piece::default() };
    piece.problems.extend(error.map(|e| file_problem(path, e.line, &e.reason, &e.remedy)));
    for document in documents {
        piece.add(document, &file);
    }
    piece
}

impl Piece {
    fn is_empty(&self) -> bool {
        let objects = self.entries.len() + self.agent.len() + self.gateway_configs.len() + self.nodes.len();
        objects + self.problems.len() == 0
    }

    fn add(&mut self, document: Document, file: &Str) {
        for (value, marks) in convert::unroll(document.value, document.marks) {
            let origin = Origin { file: file.clone(), line: marks.line() };
            let source = Source { origin: Some(&origin), marks: Some(&marks), admitted: false };
            if config::is_agent_config(&value) {
                self.add_settings(&value, &source);
                continue;
            }
            if let Some((config, problems)) = convert::convert_gateway_config(&value, &source) {
                self.problems.extend(problems);
                self.gateway_configs.extend(config);
                continue;
            }
            if value["apiVersion"] == "v1" && value["kind"] == "Node" {
                let (node, problems) = convert::convert_node(&value, &source);
                self.problems.extend(problems);
                self.nodes.extend(node);
                continue;
            }
            let spec = spec_hash(&value);
            let mut converted = convert::convert(value, &source);
            if let Some(object) = &mut converted.object {
                // What the file says is another world's count.
                object.meta_mut().generation = 1;
            }
            self.entries.push(Entry { converted, origin, spec });
        }
    }

    fn add_settings(&mut self, value: &Value, source: &Source<'_>) {
        let (Some(origin), Some(marks)) = (source.origin, source.marks) else { return };
        let mut report = Report::default();
        let reading = config::read(value, marks, &mut report);
        self.problems.extend(convert::problems(report, "AgentConfig", source));
        let unknown_gateways = reading.iter().flat_map(Reading::addressed).flat_map(|gateway| {
            let mut report = Report::default();
            let reason = format!("no file defines Gateway {gateway}: its addresses have no effect");
            report.warn(&config::addresses_path(gateway), reason, "");
            let problems = convert::problems(report, "AgentConfig", source);
            problems.into_iter().map(|p| (gateway.clone(), p))
        });
        let unknown_gateways = unknown_gateways.collect();
        self.agent.push(Settings { origin: origin.clone(), reading, unknown_gateways });
    }
}

fn spec_hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (key, part) in value.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "metadata" | "status" | "apiVersion") {
            (key, part.to_string()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// A problem of a file rather than of an object.
pub(super) fn file_problem(path: &Path, line: u32, reason: &str, remedy: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        origin: Some(Origin { file: path.to_string_lossy().into(), line }),
        object: "".into(),
        path: "".into(),
        reason: reason.into(),
        remedy: remedy.into(),
    }
}
