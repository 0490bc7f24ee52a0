//! The runtime's configuration folder: which file counts, and what has to be written for our entry to be in it.
//!
//! [`plan`] only reads, [`carry_out`] only writes.

use super::{
    Way,
    conflist::{self, Network, PLUGIN, Unusable},
    files::{self, Read},
};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What runtimes load, by the end of the name (go-cni: `loadFromConfDir`).
const LOADED: [&str; 3] = [".conf", ".conflist", ".json"];
/// Our drop-in in the folder of the network. The number: behind those of others, who may make interfaces.
const DROP_IN: &str = "90-weft.conf";
/// Part of the name of a list of ours that goes before another's file.
const DERIVED: &str = "-weft-";

/// Why our entry is not in effect.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotYet {
    /// Carries what is to be cleared away.
    #[error("no network configuration is there yet")]
    Nothing(Vec<Step>),
    #[error("{0}: {1}")]
    Unusable(String, Unusable),
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

/// How our entry gets, or is, into effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) way: Way,
    /// The file that names us.
    pub(super) file: PathBuf,
    /// Empty: all is as it should be.
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write a file; only if it is still the one that was read, when that is said.
    Write { path: PathBuf, text: String, was: Option<files::Stamp> },
    /// Delete a file of ours.
    Delete(PathBuf),
    /// A folder below changed, which the runtime does not see by itself.
    Nudge,
}

/// What should be in the folder.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) entry: &'a Value,
    /// Use the drop-in folder where the file allows it.
    pub(super) drop_in: bool,
    /// Replace an entry of ours that differs. Otherwise it is left: an agent that is about to be replaced must not fight
    /// with its successor over details.
    pub(super) exact: bool,
}

/// Looks at the folder and says what is to be done.
pub(super) fn plan(dir: &Path, wish: &Wish<'_>) -> Result<Plan, NotYet> {
    let names = names(dir)?;
    let derived: Vec<&String> = names.iter().filter(|n| is_derived(dir, n)).collect();
    let Some(primary) = names.iter().find(|n| is_loaded(n) && !derived.contains(n)) else {
        // What was derived from a file that is gone would bring back a network that nobody wants any more. A drop-in has no
        // effect by itself, and stands already when the network comes back.
        return Err(NotYet::Nothing(derived.iter().map(|n| Step::Delete(dir.join(n))).collect()));
    };
    let mut plan = for_primary(dir, primary, wish)?;
    let below = drop_ins(dir).into_iter().filter(|p| *p != plan.file).map(Step::Delete);
    let above = derived.iter().map(|n| dir.join(n)).filter(|p| *p != plan.file).map(Step::Delete);
    let (below, above): (Vec<Step>, Vec<Step>) = (below.collect(), above.collect());
    let unseen = !below.is_empty() || (plan.way == Way::DropIn && !plan.steps.is_empty());
    plan.steps.extend(below.into_iter().chain(above));
    if unseen {
        plan.steps.push(Step::Nudge);
    }
    Ok(plan)
}

fn for_primary(dir: &Path, name: &str, wish: &Wish<'_>) -> Result<Plan, NotYet> {
    let path = dir.join(name);
    let unusable = |e| NotYet::Unusable(name.to_owned(), e);
    let read = files::read(&path).map_err(|e| NotYet::Io(name.to_owned(), e))?;
    if !name.ends_with(".conflist") {
        let text = conflist::derive_from_single(&read.text, name, wish.entry).map_err(unusable)?;
        return Ok(derived_plan(dir, name, text));
    }
    let network = conflist::network(&read.text).map_err(unusable)?;
    let linked = fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink());
    if takes_drop_ins(&network) && (wish.drop_in || !network.has_plugins) {
        return Ok(drop_in_plan(dir, &path, &read, &network, wish));
    }
    if linked {
        // A rename would put a file in the place of the link, whose target somebody else maintains.
        let text = conflist::derive_from_list(&read.text, name, wish.entry).map_err(unusable)?;
        return Ok(derived_plan(dir, name, text));
    }
    let text = conflist::insert(&read.text, wish.entry, wish.exact).map_err(unusable)?;
    let steps = write_if_differs(path.clone(), text, Some(&read));
    Ok(Plan { way: Way::Edited, file: path, steps })
}

/// Does the steps, one after the other; the first that fails ends it.
pub(super) fn carry_out(dir: &Path, steps: &[Step]) -> io::Result<()> {
    for step in steps {
        match step {
            Step::Write { path, text, was } => {
                if let Some(parent) = path.parent().filter(|p| *p != dir) {
                    fs::create_dir_all(parent)?;
                }
                files::replace_text(path, text, *was)?;
            }
            Step::Delete(path) => {
                files::delete(path)?;
                if let Some(parent) = path.parent().filter(|p| *p != dir) {
                    let _ = fs::remove_dir(parent); // somebody else's drop-ins keep it
                }
            }
            Step::Nudge => files::nudge(dir)?,
        }
    }
    Ok(())
}

/// Takes our entry out of every file of the folder, those too that are not in effect: a CNI that is removed puts its
/// backups back. Goes on after a failure.
pub(super) fn take_out(dir: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    let mut note = |what: &str, result: io::Result<()>| {
        failures.extend(result.err().map(|e| format!("{what}: {e}")));
    };
    let names = match names(dir) {
        Ok(names) => names,
        Err(NotYet::Io(_, e)) if e.kind() == io::ErrorKind::NotFound => return failures,
        Err(e) => return vec![e.to_string()],
    };
    let mut steps: Vec<Step> = drop_ins(dir).into_iter().map(Step::Delete).collect();
    for name in &names {
        let path = dir.join(name);
        if is_derived(dir, name) {
            steps.push(Step::Delete(path));
            continue;
        }
        // Files that are no text or no JSON do not name us.
        if let Some((text, was)) =
            files::read(&path).ok().and_then(|r| Some((conflist::remove(&r.text)?, r.stamp)))
        {
            steps.push(Step::Write { path, text, was: Some(was) });
        }
    }
    if steps.is_empty() {
        return failures;
    }
    for step in steps {
        let what = match &step {
            Step::Write { path, .. } | Step::Delete(path) => path.display().to_string(),
            Step::Nudge => String::new(),
        };
        note(&what, carry_out(dir, &[step]));
    }
    note("telling the runtime", carry_out(dir, &[Step::Nudge]));
    failures
}

fn drop_in_plan(dir: &Path, path: &Path, read: &Read, network: &Network, wish: &Wish<'_>) -> Plan {
    let file = dir.join(&network.name).join(DROP_IN);
    let text = format!("{:#}\n", wish.entry);
    let old = files::read(&file).ok();
    let stands = old.as_ref().is_some_and(|old| !wish.exact && old.text.contains(PLUGIN));
    let mut steps = if stands { Vec::new() } else { write_if_differs(file.clone(), text, old.as_ref()) };
    // Not both: we would be called twice for each pod.
    if let Some(without) = conflist::remove(&read.text).filter(|_| network.ours > 0) {
        steps.push(Step::Write { path: path.to_owned(), text: without, was: Some(read.stamp) });
    }
    Plan { way: Way::DropIn, file, steps }
}

fn derived_plan(dir: &Path, name: &str, text: String) -> Plan {
    let file = dir.join(name_before(name));
    let old = files::read(&file).ok();
    let steps = write_if_differs(file.clone(), text, old.as_ref());
    Plan { way: Way::Derived, file, steps }
}

fn write_if_differs(path: PathBuf, text: String, old: Option<&Read>) -> Vec<Step> {
    if old.is_some_and(|old| old.text == text) {
        return Vec::new();
    }
    vec![Step::Write { path, text, was: old.map(|old| old.stamp) }]
}

/// The names in the folder, in the order in which runtimes take them.
fn names(dir: &Path) -> Result<Vec<String>, NotYet> {
    let io = |e| NotYet::Io(dir.display().to_string(), e);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_loaded(name: &str) -> bool {
    LOADED.iter().any(|end| name.ends_with(end))
}

fn is_derived(dir: &Path, name: &str) -> bool {
    let read = || files::read(&dir.join(name)).ok();
    name.contains(DERIVED)
        && read().and_then(|r| conflist::network(&r.text).ok()).is_some_and(|n| n.derived_from.is_some())
}

/// A name for a list that is taken instead of the file `name`.
fn name_before(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let candidates = ["00", "0", ""].map(|first| format!("{first}{DERIVED}{stem}.conflist"));
    let before = candidates.iter().find(|candidate| candidate.as_str() < name);
    // A name that starts lower still: '!' is the lowest character that anybody types.
    before.cloned().unwrap_or_else(|| format!("!{DERIVED}{stem}.conflist"))
}

/// Our drop-ins, whatever the network.
fn drop_ins(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| e.path().join(DROP_IN)).filter(|p| p.exists()).collect()
}

/// The file lets drop-ins in, and its network's name is one that can be a folder's (libcni's rule for names).
fn takes_drop_ins(network: &Network) -> bool {
    let name = &network.name;
    !network.inlined_only
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests;
