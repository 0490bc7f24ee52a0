//! Who speaks to permissive pods in clear: what `strict` would refuse, for `weft status`.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};
use weft_core::model::ObjectKey;

/// Pairs of caller and pod that are kept.
const PAIRS_MAX: usize = 1024;
/// So long a pod is expected to speak in clear again. One that has joined the mesh meanwhile does not any more.
const LATELY: Duration = Duration::from_secs(600);

/// One caller of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextCaller {
    /// `namespace/pod`, or the address of whoever is no pod that is known.
    pub from: String,
    /// The pod that was called.
    pub to: ObjectKey,
    /// Connections since the process's start, as long as the pair was not forgotten in between.
    pub connections: u64,
    /// When the last one was accepted.
    pub last: Instant,
}

/// Callers in clear, bounded: of more than [`PAIRS_MAX`] pairs, the one that was not seen for longest is forgotten and
/// counted. One lock a connection, held for a map's lookup: plaintext from outside is not the path that has to be fast.
#[derive(Debug, Default)]
pub struct PlaintextCallers(Mutex<Pairs>);

#[derive(Debug, Default)]
struct Pairs {
    seen: HashMap<(Caller, ObjectKey), (u64, Instant)>,
    forgotten: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Pod(ObjectKey),
    Address(IpAddr),
}

impl PlaintextCallers {
    /// A connection in clear was accepted for a pod.
    pub(crate) fn saw(&self, address: IpAddr, pod: Option<&ObjectKey>, to: &ObjectKey) {
        let from = pod.map_or(Caller::Address(address), |pod| Caller::Pod(pod.clone()));
        let (pair, now) = ((from, to.clone()), Instant::now());
        let mut pairs = self.0.lock();
        if pairs.seen.len() >= PAIRS_MAX && !pairs.seen.contains_key(&pair) {
            let oldest = pairs.seen.iter().min_by_key(|(_, (_, last))| *last).map(|(pair, _)| pair.clone());
            if let Some(oldest) = oldest {
                pairs.seen.remove(&oldest);
                pairs.forgotten += 1;
            }
        }
        let entry = pairs.seen.entry(pair).or_insert((0, now));
        *entry = (entry.0 + 1, now);
    }

    /// Whether this pod has called that one in clear within the last [`LATELY`].
    pub(crate) fn speaks_clear(&self, pod: &ObjectKey, to: &ObjectKey, now: Instant) -> bool {
        let pair = (Caller::Pod(pod.clone()), to.clone());
        let last = self.0.lock().seen.get(&pair).map(|(_, last)| *last);
        last.is_some_and(|last| now.saturating_duration_since(last) < LATELY)
    }

    /// All of them, by pod and caller.
    #[must_use]
    pub fn list(&self) -> Vec<PlaintextCaller> {
        let mut list: Vec<_> = self
            .0
            .lock()
            .seen
            .iter()
            .map(|((from, to), (connections, last))| {
                let from = match from {
                    Caller::Pod(pod) => pod.to_string(),
                    Caller::Address(address) => address.to_string(),
                };
                PlaintextCaller { from, to: to.clone(), connections: *connections, last: *last }
            })
            .collect();
        list.sort_by(|a, b| (&a.to, &a.from).cmp(&(&b.to, &b.from)));
        list
    }

    /// Pairs that were forgotten for want of room.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.0.lock().forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_counted_and_bounded() {
        let callers = PlaintextCallers::default();
        let (to, pod) = (ObjectKey::new("shop", "cart"), ObjectKey::new("out", "a"));
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        callers.saw(address(1), Some(&pod), &to);
        let now = Instant::now();
        assert!(callers.speaks_clear(&pod, &to, now) && !callers.speaks_clear(&to, &pod, now));
        assert!(!callers.speaks_clear(&pod, &to, now + LATELY));
        callers.saw(address(2), None, &to);
        callers.saw(address(2), None, &to);
        let shown: Vec<_> = callers.list().into_iter().map(|c| (c.from, c.connections)).collect();
        assert_eq!(shown, [("0.0.0.2".to_owned(), 2), ("out/a".to_owned(), 1)]);
        let many = u32::try_from(PAIRS_MAX).unwrap_or(u32::MAX);
        (10..10 + many).for_each(|n| callers.saw(address(n), None, &to));
        assert_eq!((callers.list().len(), callers.forgotten()), (PAIRS_MAX, 2));
    }
}
