//! What the runtime keeps of each pod's attachment to the network: libcni's cache, `/var/lib/cni/results`.
//!
//! libcni writes there, for each ADD, the configuration that it ran. containerd tears a pod down by the configuration that it
//! has loaded; CRI-O by the one in the cache, so that a pod which was made while our entry stood asks for our program when it
//! ends, whatever the folder says by then. Without the program that deletion fails, for ever (istio.io#16748). So our entry
//! is taken out of the cache too before the program goes: as in the folder by an edit of the text, with everything else of
//! the attachment left as the runtime wrote it. A program that stays behind for old pods would never be removed by anybody.

use super::{conflist, files};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use std::{fs, io, path::Path};

/// The folder in the cache's directory.
const RESULTS: &str = "results";
/// `kind` of an attachment that keeps its configuration: libcni 0.8 and later. Older ones keep the result only.
const KIND: &str = "cniCacheV1";
/// How often an attachment is read anew when the runtime writes it at the same time.
const TRIES: u32 = 5;

/// Takes our entry out of every attachment below `dir`. Goes on after a failure, and says what could not be changed.
pub(super) fn take_out(dir: &Path) -> Vec<String> {
    let results = dir.join(RESULTS);
    let entries = match fs::read_dir(&results) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => return vec![format!("{}: {e}", results.display())],
    };
    let files = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
    files
        .filter_map(|e| rewrite(&e.path()).err().map(|why| format!("{}: {why}", e.path().display())))
        .collect()
}

/// An attachment that ends meanwhile is gone, which is as good.
fn rewrite(path: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        let read = match files::read(path) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // No text: no attachment of libcni's.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(()),
            Err(e) => return Err(e),
        };
        let Some(text) = without_us(&read.text) else { return Ok(()) };
        match files::replace_text(path, &text, Some(read.stamp)) {
            Err(e) if e.kind() == io::ErrorKind::StaleNetworkFileHandle => {}
            other => return other,
        }
    }
    Err(io::Error::other("the runtime never stops writing it"))
}

/// The attachment's text without our entry in its configuration; `None` where that does not name us.
fn without_us(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    if value.get("kind").and_then(Value::as_str) != Some(KIND) {
        return None;
    }
    let config = STANDARD.decode(value.get("config")?.as_str()?).ok()?;
    let config = conflist::remove(std::str::from_utf8(&config).ok()?)?;
    let at = conflist::member(text, "config")?;
    Some(format!("{}\"{}\"{}", &text[..at.start], STANDARD.encode(config), &text[at.end..]))
}

#[cfg(test)]
mod tests;
