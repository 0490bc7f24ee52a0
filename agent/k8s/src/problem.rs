//! What is wrong with what a user wrote: where, why, and what to do about it.

use std::fmt;
use weft_core::model::{Origin, Str};

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The object, or the part of it that is named, is not in effect.
    Error,
    /// It is in effect, but likely not what was meant.
    Warning,
    /// Not ours to read.
    Ignored,
}

/// One thing to tell the user, complete in itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// File and line of the field; none when the object came from a watch.
    pub origin: Option<Origin>,
    /// `HTTPRoute shop/cart`; empty when no object could be made out.
    pub object: Str,
    /// `spec.rules[0].filters[0].type`; empty for the whole object.
    pub path: Str,
    /// What is wrong.
    pub reason: Str,
    /// What to do; may be empty when the reason says it.
    pub remedy: Str,
}

/// The line of a problem of a whole file or directory.
pub(crate) const NO_LINE: u32 = 0;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            match origin.line {
                NO_LINE => write!(f, "{}: ", origin.file)?,
                line => write!(f, "{}:{line}: ", origin.file)?,
            }
        }
        match self.severity {
            Severity::Error => {}
            Severity::Warning => f.write_str("warning: ")?,
            Severity::Ignored => f.write_str("ignored: ")?,
        }
        for part in [&self.object, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// A problem of one object under conversion: the path is known, file and line are not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) path: String,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

/// Collects the findings of one object.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    rejections: usize,
}

impl Report {
    /// An API server would refuse the object: it is not loaded.
    pub(crate) fn reject(&mut self, path: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.rejections += 1;
        self.push(Severity::Error, path, reason.into(), remedy.into());
    }

    /// The object loads, without what is at `path`.
    pub(crate) fn unserved(&mut self, path: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Error, path, reason.into(), remedy.into());
    }

    /// The object loads as written.
    pub(crate) fn warn(&mut self, path: &str, reason: impl Into<String>, remedy: impl Into<String>) {
        self.push(Severity::Warning, path, reason.into(), remedy.into());
    }

    /// How often [`Report::reject`] was called.
    pub(crate) const fn rejections(&self) -> usize {
        self.rejections
    }

    pub(crate) fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    fn push(&mut self, severity: Severity, path: &str, reason: String, remedy: String) {
        // An object with thousands of faults is told about the first ones: a message nobody reads is no help, and
        // memory stays bounded.
        const MAX: usize = 100;
        if self.findings.len() < MAX {
            let [path, reason, remedy] = [path, &reason, &remedy].map(printable);
            self.findings.push(Finding { severity, path, reason, remedy });
        }
    }
}

/// Messages repeat what a user wrote and end in terminals and logs: no control characters, no endless text.
fn printable(text: &str) -> String {
    const MAX: usize = 600;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(MAX).map(clean).collect();
    if text.chars().nth(MAX).is_some() {
        out.push('…');
    }
    out
}
