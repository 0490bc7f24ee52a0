//! Laws of hostnames, and the host map against a linear search.

use crate::{matching::HostMap, model::Hostname};
use proptest::prelude::*;

/// Few labels, so that names collide.
pub(super) fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "com"]), 1..4)
        .prop_map(|labels| labels.join("."))
}

pub(super) fn hostname() -> impl Strategy<Value = Hostname> {
    (any::<bool>(), name())
        .prop_map(|(wild, name)| Hostname::parse(&if wild { format!("*.{name}") } else { name }).unwrap())
}

/// Concrete hosts, malformed ones included.
pub(super) fn host() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec!["", ".", "..", ".a.com", "a..com", "a.com..", "*.com", "[::1]"]);
    prop_oneof![8 => name(), 1 => odd.prop_map(str::to_owned)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn intersection(a in hostname(), b in hostname(), h in host()) {
        let both = a.intersect(&b);
        prop_assert_eq!(&both, &b.intersect(&a), "commutative");
        prop_assert_eq!(a.intersect(&a), Some(a.clone()), "idempotent");
        let covered = both.as_ref().is_some_and(|i| i.matches(&h));
        prop_assert_eq!(a.matches(&h) && b.matches(&h), covered, "{} and {} on {}", a, b, h);
        if let Some(both) = both {
            prop_assert_eq!(both.intersect(&a), Some(both.clone()), "absorbing");
        }
    }

    #[test]
    fn host_map_is_the_most_specific(names in prop::collection::vec(prop::option::of(hostname()), 0..8), h in prop::option::of(host())) {
        let map = HostMap::build(names.iter().cloned().zip(0..));
        let covers = |n: &Option<Hostname>| match (n, &h) {
            (None, _) => true,
            (Some(n), Some(h)) => n.matches(h),
            (Some(_), None) => false,
        };
        let rank = |n: &Option<Hostname>| match n {
            None => (2, 0),
            Some(n) => (i32::from(n.wildcard_suffix().is_some()), usize::MAX - n.as_str().len()),
        };
        let wanted = (0..names.len()).filter(|i| covers(&names[*i])).min_by_key(|i| (rank(&names[*i]), *i));
        prop_assert_eq!(map.get(h.as_deref()).copied(), wanted);
        let count = map.candidates(h.as_deref()).count();
        let mut distinct: Vec<_> = names.iter().filter(|n| covers(n)).collect();
        distinct.sort();
        distinct.dedup();
        prop_assert_eq!(count, distinct.len());
        prop_assert!(map.iter().count() <= names.len());
    }
}
