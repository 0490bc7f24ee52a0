//! Who wrote what how often, by the API server's audit log.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
};

/// Weft's service accounts.
const OURS: &str = "system:serviceaccount:weft-system:";

/// A place in the audit log.
pub(super) struct Mark {
    log: PathBuf,
    at: u64,
}

/// Successful writes by Weft: resource (`httproutes/status`), object, how often.
pub(super) type Writes = BTreeMap<(String, String), u64>;

impl Mark {
    /// The end of the log as it is now.
    pub(super) fn now(log: PathBuf) -> Result<Self> {
        let at = std::fs::metadata(&log).with_context(|| log.display().to_string())?.len();
        Ok(Self { log, at })
    }

    /// What Weft has written since.
    pub(super) fn writes(&self) -> Result<Writes> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.at))?;
        let mut out = Writes::new();
        for line in BufReader::new(file).lines() {
            let line = line?;
            // Most lines are others': they are not worth parsing.
            if !line.contains(OURS) {
                continue;
            }
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if let Some(written) = written(&event) {
                *out.entry(written).or_default() += 1;
            }
        }
        Ok(out)
    }
}

fn written(event: &Value) -> Option<(String, String)> {
    let ours = event["user"]["username"].as_str()?.starts_with(OURS);
    let success = event["responseStatus"]["code"].as_u64().is_some_and(|code| (200..300).contains(&code));
    let write = !matches!(event["verb"].as_str()?, "get" | "list" | "watch");
    if !(ours && success && write && event["stage"] == "ResponseComplete") {
        return None;
    }
    let text = |field: &str| event["objectRef"][field].as_str().unwrap_or_default();
    let resource = match text("subresource") {
        "" => text("resource").to_owned(),
        sub => format!("{}/{sub}", text("resource")),
    };
    Some((resource, format!("{}/{}", text("namespace"), text("name"))))
}

/// How many objects of a resource were written, how often in all, and the most that one was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) objects: u64,
    pub(super) writes: u64,
    pub(super) most: u64,
}

/// The count of each `…/status`.
pub(super) fn statuses(writes: &Writes) -> BTreeMap<String, Count> {
    let mut out: BTreeMap<String, Count> = BTreeMap::new();
    for ((resource, _), count) in writes.iter().filter(|((resource, _), _)| resource.ends_with("/status")) {
        let entry = out.entry(resource.clone()).or_default();
        entry.objects += 1;
        entry.writes += count;
        entry.most = entry.most.max(*count);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write as _;

    #[test]
    fn our_successful_writes_since_the_mark() {
        let event = |user: &str, verb: &str, name: &str, code: u32| {
            let object =
                json!({"resource": "httproutes", "subresource": "status", "namespace": "a", "name": name});
            json!({
                "stage": "ResponseComplete", "verb": verb, "user": {"username": user}, "objectRef": object,
                "responseStatus": {"code": code},
            })
        };
        let (ours, other) = (format!("{OURS}weft-controller"), "system:admin");
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "{}", event(&ours, "patch", "before", 200)).unwrap();
        let mark = Mark::now(log.path().to_owned()).unwrap();
        for (user, verb, name, code) in [
            (ours.as_str(), "patch", "r1", 200),
            (&ours, "patch", "r2", 200),
            (&ours, "patch", "r2", 200),
            (&ours, "patch", "r3", 409),
            (&ours, "get", "r4", 200),
            (other, "patch", "r5", 200),
        ] {
            writeln!(log, "{}", event(user, verb, name, code)).unwrap();
        }
        write!(log, "{{\"half\": \"{OURS}").unwrap();
        let counts = statuses(&mark.writes().unwrap());
        let expected = Count { objects: 2, writes: 3, most: 2 };
        assert_eq!(counts, [("httproutes/status".to_owned(), expected)].into());
    }
}
