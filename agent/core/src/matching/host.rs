//! Host (or SNI) to value, most specific first.

use crate::model::Hostname;

/// Values by hostname. `None` as a hostname covers every host, and a request without one.
#[derive(Clone, Debug)]
pub struct HostMap<T> {
    /// Most specific first.
    entries: Vec<(Option<Hostname>, T)>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> HostMap<T> {
    /// Builds; of equal hostnames the first wins.
    #[must_use]
    pub fn build(entries: impl IntoIterator<Item = (Option<Hostname>, T)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| match (a, b) {
            (Some(a), Some(b)) => a.cmp_specificity(b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        });
        Self { entries }
    }

    /// The value of the most specific hostname that covers `host` (lower case, no port).
    #[must_use]
    pub fn get(&self, host: Option<&str>) -> Option<&T> {
        let covers = |h: &Option<Hostname>| match (h, host) {
            (None, _) => true,
            (Some(h), Some(host)) => h.matches(host),
            (Some(_), None) => false,
        };
        self.entries.iter().find(|(h, _)| covers(h)).map(|(_, v)| v)
    }

    /// All, most specific first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&Hostname>, &T)> {
        self.entries.iter().map(|(h, v)| (h.as_ref(), v))
    }
}
