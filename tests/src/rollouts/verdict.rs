//! What may fail: nothing with a server that finishes; with one that exits only what it had taken, and no more than outside.

use super::{Backend, Way};
use std::collections::HashSet;
use weft::call::Tally;

/// What one load counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Of whom it asked.
    pub backend: Backend,
    /// How it went there.
    pub way: Way,
    /// What its requests' numbers begin with.
    pub prefix: String,
    /// The counts.
    pub tally: Tally,
}

impl Counted {
    /// Requests that failed without having reached a server.
    fn not_taken(&self, taken: &HashSet<String>) -> Vec<u64> {
        let unknown = |number: &&u64| !taken.contains(&format!("{}-{number}", self.prefix));
        self.tally.lost.iter().filter(unknown).copied().collect()
    }
}

/// Less says nothing.
const AT_LEAST: u64 = 100;

/// What is wrong; empty when all is well.
#[must_use]
pub fn verdict(counted: &[Counted], taken: &HashSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for load in counted {
        let (bad, good, name) = (load.tally.bad(), load.tally.good(), &load.prefix);
        // To compare with, and no doing of ours: kube-proxy leads to servers that are gone for a moment, where a call may hang
        // for half a minute.
        if load.way == Way::Outside {
            continue;
        }
        if good < AT_LEAST {
            wrong.push(format!("{name}: only {good} requests succeeded"));
        }
        if load.backend != Backend::Exits {
            if bad > 0 {
                wrong.push(format!("{name}: {bad} failed: {:?} {:?}", load.tally.failures, load.tally.codes));
            }
            continue;
        }
        let unproved = load.not_taken(taken);
        let untold = bad.saturating_sub(load.tally.lost.len() as u64);
        if !unproved.is_empty() || untold > 0 {
            wrong.push(format!(
                "{name}: {} of {bad} failed without having reached a server, {untold} are not told: {unproved:?} {:?} {:?}",
                unproved.len(),
                load.tally.failures,
                load.tally.codes
            ));
        }
    }
    let outside = sum(counted, Backend::Exits, Way::Outside).bad();
    for way in [Way::Mesh, Way::Gateway] {
        let ours = sum(counted, Backend::Exits, way).bad();
        if beyond_chance(ours, outside) {
            wrong.push(format!("exits: {ours} failed by {}, {outside} outside the mesh", way.name()));
        }
    }
    wrong
}

/// All loads of a kind and way.
#[must_use]
pub fn sum(counted: &[Counted], backend: Backend, way: Way) -> Tally {
    let mut all = Tally::default();
    counted.iter().filter(|c| c.backend == backend && c.way == way).for_each(|c| all.add(&c.tally));
    all
}

/// Both are counts of rare events: three standard deviations of their difference.
fn beyond_chance(ours: u64, theirs: u64) -> bool {
    let (ours, theirs) = (ours as f64, theirs as f64);
    ours - theirs > 3.0 * (ours + theirs).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(backend: Backend, way: Way, good: u64, lost: &[u64]) -> Counted {
        let mut tally = Tally::default();
        tally.lost = lost.to_vec();
        tally.codes.insert(200, good);
        if !lost.is_empty() {
            tally.failures.insert("reset".into(), lost.len() as u64);
        }
        Counted { backend, way, prefix: way.name().into(), tally }
    }

    fn check(loads: &[Counted], wrong: &[&str]) {
        let taken = (0..50).map(|n| format!("mesh-{n}")).collect();
        let said = verdict(loads, &taken);
        assert_eq!(said.len(), wrong.len(), "{said:?}");
        wrong.iter().zip(&said).for_each(|(part, line)| assert!(line.contains(part), "{line}"));
    }

    #[test]
    fn what_may_fail_is_what_a_server_that_exits_had_taken() {
        use Backend::{Exits, Finishes, Late, PreStop};
        use Way::{Gateway, Mesh, Outside};
        check(&[load(Finishes, Mesh, 500, &[]), load(PreStop, Gateway, 500, &[])], &[]);
        check(&[load(Finishes, Mesh, 500, &[3])], &["mesh: 1 failed"]);
        check(&[load(PreStop, Gateway, 7, &[])], &["only 7"]);
        check(&[load(Late, Outside, 500, &[]), load(Late, Mesh, 500, &[1, 2])], &["mesh: 2 failed"]);
        let outside = load(Exits, Outside, 500, &[1, 2, 3]);
        check(&[load(Exits, Mesh, 500, &[1, 49]), outside.clone()], &[]);
        check(&[load(Exits, Mesh, 500, &[1, 50]), outside.clone()], &["1 of 2 failed without"]);
        let many: Vec<u64> = (0..40).collect();
        check(&[load(Exits, Mesh, 500, &many), outside], &["exits: 40 failed by mesh, 3 outside"]);
    }

    #[test]
    fn a_failure_whose_number_is_not_told_is_not_excused() {
        let mut load = load(Backend::Exits, Way::Mesh, 500, &[1]);
        load.tally.failures.insert("reset".into(), 2);
        check(&[load], &["1 are not told"]);
    }
}
