//! Route hostnames ∩ listener hostname.

use crate::model::Hostname;

/// What a route's hostnames leave on a listener. `None` in the result covers every host.
pub(super) fn intersect(route: &[Hostname], listener: Option<&Hostname>) -> Vec<Option<Hostname>> {
    match (route, listener) {
        ([], listener) => vec![listener.cloned()],
        (route, None) => route.iter().cloned().map(Some).collect(),
        (route, Some(listener)) => {
            let mut out: Vec<_> = route.iter().filter_map(|r| r.intersect(listener)).map(Some).collect();
            // Two hostnames of a route may shrink to the same one: `*.a.b` and `x.a.b` on listener `x.a.b`.
            out.sort();
            out.dedup();
            out
        }
    }
}

/// The hostnames of a route that no listener in `listeners` covers.
pub(super) fn ignored<'a>(route: &'a [Hostname], listeners: &[Option<&Hostname>]) -> Vec<&'a Hostname> {
    let covered = |h: &Hostname| listeners.iter().any(|l| l.is_none_or(|l| l.intersect(h).is_some()));
    route.iter().filter(|h| !covered(h)).collect()
}
