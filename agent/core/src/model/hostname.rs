//! Hostnames with an optional leading `*.` label: matching, intersection, specificity.

use super::Str;
use std::{cmp::Ordering, fmt};

/// A hostname as the API allows it: lower-case DNS name, or `*.` and a DNS name. Never empty, never an
/// IP address, never the bare `*` ("all hosts" is the absence of a hostname).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Str);

/// Why a string is no hostname.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a DNS name, optionally with a leading \"*.\"")]
pub struct InvalidHostname(pub String);

impl Hostname {
    /// Parses and lower-cases.
    ///
    /// # Errors
    /// When `s` is not what CRD pattern of `Hostname` allows, or is an IP address.
    pub fn parse(s: &str) -> Result<Self, InvalidHostname> {
        let err = || InvalidHostname(s.to_owned());
        let rest = s.strip_prefix("*.").unwrap_or(s);
        let label_ok = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        let is_ip = s.parse::<std::net::IpAddr>().is_ok();
        if s.len() > 253 || is_ip || !rest.split('.').all(label_ok) {
            return Err(err());
        }
        Ok(Self(s.to_ascii_lowercase().into()))
    }

    /// The text, `*.` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For `*.example.com`: `.example.com`.
    #[must_use]
    pub fn wildcard_suffix(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }

    /// Whether a concrete, lower-case host (no port) is covered. A wildcard covers one or more labels.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self.wildcard_suffix() {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => &*self.0 == host,
        }
    }

    /// The hostname that both cover, if any (route ∩ listener).
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self.wildcard_suffix(), other.wildcard_suffix()) {
            (None, None) => (self == other).then(|| self.clone()),
            (None, Some(_)) => other.matches(&self.0).then(|| self.clone()),
            (Some(_), None) => self.matches(&other.0).then(|| other.clone()),
            (Some(a), Some(b)) if a.ends_with(b) => Some(self.clone()),
            (Some(a), Some(b)) if b.ends_with(a) => Some(other.clone()),
            _ => None,
        }
    }

    /// Orders by specificity, the more specific **first**: exact before wildcard, then longer before shorter.
    #[must_use]
    pub fn cmp_specificity(&self, other: &Self) -> Ordering {
        let key = |h: &Self| (h.wildcard_suffix().is_some(), usize::MAX - h.0.len());
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
