//! Files to one world: duplicates, last good versions, generations.

use super::{
    FileProvider, World,
    parse::{Entry, Parsed, Piece, Shift},
};
use crate::{
    config::AgentConfig,
    convert::Object,
    path::closest,
    problem::{Problem, Severity},
};
use std::{
    collections::{BTreeMap, btree_map},
    path::{Path, PathBuf},
    sync::Arc,
};
use weft_core::{
    model::{GatewayConfig, Meta, MtlsMode, Node, ObjectKey, ObjectRef, Origin, Snapshot},
    sorted::Sorted,
};

/// An object in effect.
#[derive(Debug)]
pub(super) struct Kept {
    object: Object,
    /// The object as it came from its file, with generation 1.
    read: Object,
    file: PathBuf,
    spec: u64,
}

/// The world under construction.
struct Next {
    kept: BTreeMap<ObjectRef, Kept>,
    /// Where each object was met first, also one that was refused.
    met: BTreeMap<ObjectRef, Origin>,
    problems: Vec<Problem>,
}

impl FileProvider {
    /// Puts the files together and remembers what is in effect.
    pub(super) fn merge(&mut self, problems: Vec<Problem>) -> World {
        let mut before = std::mem::take(&mut self.kept);
        let mut next = Next { kept: BTreeMap::new(), met: BTreeMap::new(), problems };
        let files: Vec<(PathBuf, Arc<Parsed>)> =
            self.files.iter().map(|(path, file)| (path.clone(), file.parsed.clone())).collect();
        for (path, parsed) in &files {
            next.problems.extend(parsed.problem.iter().cloned());
            for (shift, piece) in &parsed.pieces {
                next.problems.extend(piece.problems.iter().map(|p| shift.problem(p)));
                for entry in &piece.entries {
                    next.entry(path, entry, *shift, &mut before);
                }
            }
        }
        for (path, _) in files.iter().filter(|(_, parsed)| parsed.partial) {
            next.keep_missing(path, &mut before);
        }
        let (agent, unknown_gateways) = agent(&files, &self.agent, &mut next.problems);
        self.agent = agent;
        let (configs, nodes) = (std::mem::take(&mut self.gateway_configs), std::mem::take(&mut self.nodes));
        self.gateway_configs = apart(&files, configs, |piece| {
            piece.gateway_configs.iter().map(|c| (c.meta.key.clone(), c)).collect()
        });
        self.nodes =
            apart(&files, nodes, |piece| piece.nodes.iter().map(|n| (n.meta.key.name.clone(), n)).collect());
        let mut snapshot = Snapshot {
            gateway_configs: self.gateway_configs.clone(),
            nodes: self.nodes.clone(),
            ..Snapshot::default()
        };
        for kept in next.kept.values() {
            kept.object.clone().insert(&mut snapshot);
        }
        let known: Vec<String> = snapshot.gateways.keys().map(ToString::to_string).collect();
        let unknown =
            unknown_gateways.into_iter().filter(|(gateway, _)| !snapshot.gateways.contains_key(gateway));
        next.problems.extend(unknown.map(|(gateway, problem)| {
            let meant = closest(&gateway.to_string(), known.iter().map(String::as_str));
            let remedy = meant.map_or_else(
                || "define it, or remove the entry".to_owned(),
                |m| format!("did you mean \"{m}\"?"),
            );
            Problem { remedy: remedy.into(), ..problem }
        }));
        self.kept = next.kept;
        next.problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        World { snapshot, problems: next.problems, agent: self.agent.clone(), uninstall: false, drain: None }
    }
}

impl Next {
    fn entry(&mut self, path: &Path, entry: &Entry, shift: Shift, before: &mut BTreeMap<ObjectRef, Kept>) {
        self.problems.extend(entry.converted.problems.iter().map(|p| shift.problem(p)));
        let origin = shift.origin(&entry.origin);
        let Some(id) = entry.converted.id.clone() else { return };
        match self.met.entry(id.clone()) {
            // A first one that was refused and never good stands in nobody's way.
            btree_map::Entry::Occupied(first) if self.kept.contains_key(&id) => {
                let first = first.get();
                let reason =
                    format!("is defined already in {}:{}, which stays in effect", first.file, first.line);
                self.problems.push(note(Severity::Error, &id, &origin, &reason, "keep one of the two"));
                return;
            }
            slot => drop(slot.insert_entry(origin.clone())),
        }
        let old = before.remove(&id);
        match (entry.converted.object.clone(), old) {
            (Some(object), old) => {
                self.kept.insert(id, renew(object, old, entry.spec, path));
            }
            (None, Some(old)) => {
                let reason = "the last good version stays in effect";
                self.problems.push(note(Severity::Warning, &id, &origin, reason, ""));
                self.kept.insert(id, Kept { file: path.to_owned(), ..old });
            }
            (None, None) => {}
        }
    }

    /// What stood in a file that can now be read in part only, and is nowhere else.
    fn keep_missing(&mut self, path: &Path, before: &mut BTreeMap<ObjectRef, Kept>) {
        let missing: Vec<ObjectRef> =
            before.iter().filter(|(_, k)| k.file == path).map(|(id, _)| id.clone()).collect();
        let file = path.to_string_lossy();
        let fault = self.problems.iter().filter(|p| p.object.is_empty()).filter_map(|p| p.origin.as_ref());
        let line = fault.filter(|o| *o.file == *file).map(|o| o.line).min().unwrap_or(1);
        let origin = Origin { file: file.into(), line };
        for id in missing {
            let Some(kept) = before.remove(&id) else { continue };
            let reason = "the last good version stays in effect";
            let remedy = "correct the file, or delete it to remove the object";
            self.problems.push(note(Severity::Warning, &id, &origin, reason, remedy));
            self.kept.insert(id, kept);
        }
    }
}

/// The object with its generation counted; the old `Arc` when nothing has changed.
fn renew(read: Object, old: Option<Kept>, spec: u64, path: &Path) -> Kept {
    let file = path.to_owned();
    let mut object = read.clone();
    let Some(old) = old else {
        return Kept { object, read, file, spec };
    };
    if old.read.is_same(&read) {
        return Kept { file, ..old };
    }
    let meta = object.meta_mut();
    meta.generation = old.object.meta().generation + i64::from(spec != old.spec);
    // A line added above moves every object below it: they have not changed for that, so the place is left out of the
    // comparison (and an unchanged object names the line where it stood when it last changed).
    let origin = std::mem::replace(&mut meta.origin, old.object.meta().origin.clone());
    if object == old.object {
        return Kept { object: old.object, read, file, spec };
    }
    object.meta_mut().origin = origin;
    Kept { object, read, file, spec }
}

/// Objects of a kind that has no status: of one key the first counts. While some file can be read in part only, none of
/// them goes.
fn apart<K: Ord + Clone, T: Apart>(
    files: &[(PathBuf, Arc<Parsed>)],
    mut before: Sorted<K, Arc<T>>,
    of: impl Fn(&Piece) -> Vec<(K, &T)>,
) -> Sorted<K, Arc<T>> {
    let mut next = Sorted::default();
    for (key, object) in files.iter().flat_map(|(_, p)| &p.pieces).flat_map(|(_, piece)| of(piece)) {
        let kept = before.remove(&key).filter(|old| old.is_same(object));
        let kept = kept.unwrap_or_else(|| Arc::new(object.clone()));
        if !next.contains_key(&key) {
            next.insert(key, kept);
        }
    }
    if files.iter().any(|(_, parsed)| parsed.partial) {
        next.extend(before.iter().map(|(key, object)| (key.clone(), object.clone())));
    }
    next
}

/// An object that is kept when only its place in the file is another.
trait Apart: Clone + PartialEq {
    fn meta_mut(&mut self) -> &mut Meta;

    fn is_same(&self, read: &Self) -> bool {
        let (mut was, mut is) = (self.clone(), read.clone());
        (was.meta_mut().origin, is.meta_mut().origin) = (None, None);
        was == is
    }
}

impl Apart for GatewayConfig {
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

impl Apart for Node {
    fn meta_mut(&mut self) -> &mut Meta {
        &mut self.meta
    }
}

/// The settings: the first document counts, and the last good value for what is broken in it. Beside them, what to say of
/// Gateways that are not there.
fn agent(
    files: &[(PathBuf, Arc<Parsed>)],
    last: &AgentConfig,
    problems: &mut Vec<Problem>,
) -> (AgentConfig, Vec<(ObjectKey, Problem)>) {
    let pieces = files.iter().flat_map(|(_, parsed)| &parsed.pieces);
    let mut all = pieces.flat_map(|(shift, piece)| piece.agent.iter().map(|agent| (*shift, agent)));
    let first = all.next();
    for (shift, agent) in all {
        problems.push(Problem {
            severity: Severity::Error,
            origin: Some(shift.origin(&agent.origin)),
            object: "AgentConfig".into(),
            path: "".into(),
            reason: "a second AgentConfig: the first stays in effect".into(),
            remedy: "keep one of the two".into(),
        });
    }
    let Some((shift, first)) = first else {
        let partial = files.iter().any(|(_, p)| p.partial);
        return (if partial { last.clone() } else { AgentConfig::default() }, Vec::new());
    };
    let unknown = first.unknown_gateways.iter().map(|(key, p)| (key.clone(), shift.problem(p))).collect();
    // A document of another version, say: where nothing was read before, nobody knows whether it says strict.
    let unread = || match *last == AgentConfig::default() {
        true => AgentConfig { mtls: MtlsMode::Strict, ..last.clone() },
        false => last.clone(),
    };
    (first.reading.as_ref().map_or_else(unread, |r| r.over(last)), unknown)
}

fn note(severity: Severity, id: &ObjectRef, origin: &Origin, reason: &str, remedy: &str) -> Problem {
    Problem {
        severity,
        origin: Some(origin.clone()),
        object: id.to_string().into(),
        path: "".into(),
        reason: reason.into(),
        remedy: remedy.into(),
    }
}
