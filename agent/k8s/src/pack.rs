//! Members to numbered slices so that a change of one rewrites one slice.

use std::collections::{BTreeMap, BTreeSet};

/// Who is in which slice.
pub(crate) type Packed<K> = BTreeMap<u32, BTreeSet<K>>;

/// Keeps everybody in the slice where they are, as far as `capacity` allows; puts the rest into the first slice with
/// room, or a new one with the lowest free number. Slices that nobody is left in are not in the result.
pub(crate) fn pack<K: Ord + Clone>(wanted: &BTreeSet<K>, existing: &Packed<K>, capacity: usize) -> Packed<K> {
    let mut rest = wanted.clone();
    let mut out = Packed::new();
    for (number, members) in existing {
        let stay: BTreeSet<K> = members.iter().filter(|m| rest.contains(m)).take(capacity).cloned().collect();
        rest.retain(|m| !stay.contains(m));
        if !stay.is_empty() {
            out.insert(*number, stay);
        }
    }
    let mut rest = rest.into_iter();
    let mut number = 0;
    while rest.len() > 0 {
        let slice = out.entry(number).or_default();
        let room = capacity.max(1).saturating_sub(slice.len());
        slice.extend(rest.by_ref().take(room));
        number += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_is_stable(steps in prop::collection::vec(prop::collection::btree_set(0u8..60, 0..50), 1..12), capacity in 1usize..9) {
            let mut packed = Packed::new();
            for wanted in steps {
                let next = pack(&wanted, &packed, capacity);
                let all: Vec<u8> = next.values().flatten().copied().collect();
                prop_assert_eq!(all.len(), wanted.len(), "nobody twice");
                prop_assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), wanted.clone());
                prop_assert!(next.values().all(|s| !s.is_empty() && s.len() <= capacity));
                for (number, members) in &packed {
                    for member in members.intersection(&wanted) {
                        prop_assert!(next[number].contains(member), "{member} stays in {number}");
                    }
                }
                prop_assert_eq!(&pack(&wanted, &next, capacity), &next, "nothing to do is nothing done");
                packed = next;
            }
        }
    }

    #[test]
    fn what_is_over_is_moved() {
        let existing = Packed::from([(3, (0..5).collect()), (4, BTreeSet::from([4, 9]))]);
        let packed = pack(&(0..6).collect(), &existing, 3);
        assert_eq!(
            packed,
            Packed::from([
                (0, BTreeSet::from([3, 5])),
                (3, BTreeSet::from([0, 1, 2])),
                (4, BTreeSet::from([4]))
            ])
        );
    }
}
