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
            if good == 0 {
                wrong.push(format!(
                    "{name}: nobody answered outside the mesh: there is nothing to compare with"
                ));
            }
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
    let outside = sum(counted, Backend::Exits, Way::Outside);
    for way in [Way::Mesh, Way::Gateway] {
        let ours = sum(counted, Backend::Exits, way);
        if made(&ours) > 0 && made(&outside) == 0 {
            wrong.push(format!("exits: nothing outside the mesh to compare {} with", way.name()));
        } else if beyond_chance(&ours, &outside) {
            wrong.push(format!(
                "exits: {} of {} failed by {}, {} of {} outside the mesh",
                ours.bad(),
                made(&ours),
                way.name(),
                outside.bad(),
                made(&outside)
            ));
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

fn made(tally: &Tally) -> u64 {
    tally.good() + tally.bad()
}

/// Whether more of ours failed than of theirs. Both are shares of rare events: three standard deviations of their difference.
fn beyond_chance(ours: &Tally, theirs: &Tally) -> bool {
    let share = |tally: &Tally| (tally.bad() as f64, made(tally).max(1) as f64);
    let ((our_bad, ours), (their_bad, theirs)) = (share(ours), share(theirs));
    let deviation = (our_bad / (ours * ours) + their_bad / (theirs * theirs)).sqrt();
    our_bad / ours - their_bad / theirs > 3.0 * deviation
}

/// What is wrong with a load on `connections` kept connections of which each may be cut by agents that are replaced; `None`
/// when nothing is. A cut fails the request that it meets, if any, and the connection is opened anew.
#[must_use]
pub fn beyond_cuts(tally: &Tally, connections: u64) -> Option<String> {
    let anew = tally.opened.saturating_sub(connections);
    let is_cut = |reason: &str| {
        let reason = reason.to_lowercase();
        ["reset", "closed", "broken pipe"].iter().any(|word| reason.contains(word))
    };
    let strange: Vec<&String> = tally.failures.keys().filter(|reason| !is_cut(reason)).collect();
    let failed = tally.failures.values().sum::<u64>();
    if !strange.is_empty() || tally.bad() > failed {
        return Some(format!("failed by no cut: {strange:?} {:?}", tally.codes));
    }
    (failed > anew).then(|| format!("{failed} failed, and only {anew} connections were opened anew"))
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
        check(
            &[load(Exits, Mesh, 500, &many), outside],
            &["exits: 40 of 540 failed by mesh, 3 of 503 outside"],
        );
    }

    /// Of the review: an outside load that was never answered compared with 0, and counts with each other whatever was made.
    #[test]
    fn what_is_outside_must_be_answered_and_is_compared_by_its_share() {
        use Backend::{Exits, Late};
        use Way::{Mesh, Outside};
        let nothing = "nobody answered outside the mesh";
        check(&[load(Late, Mesh, 500, &[]), load(Late, Outside, 0, &[])], &[nothing]);
        check(
            &[load(Exits, Mesh, 500, &[1, 2]), load(Exits, Outside, 0, &[])],
            &[nothing, "nothing outside"],
        );
        check(&[load(Exits, Mesh, 500, &[1, 2])], &["nothing outside the mesh to compare mesh with"]);
        let taken: Vec<u64> = (0..20).collect();
        // As many of far more.
        let outside = load(Exits, Outside, 50_000, &taken);
        check(&[load(Exits, Mesh, 500, &taken), outside.clone()], &["exits: 20 of 520 failed by mesh"]);
        check(&[load(Exits, Mesh, 50_000, &taken), outside], &[]);
    }

    #[test]
    fn what_a_cut_may_fail_is_a_request_of_a_connection_that_is_opened_anew() {
        let check = |opened: u64, failures: &[(&str, u64)], code: u16, wrong: Option<&str>| {
            let mut tally = Tally::default();
            tally.opened = opened;
            tally.failures = failures.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
            tally.codes.insert(code, 500);
            let said = beyond_cuts(&tally, 4);
            assert_eq!(said.is_some(), wrong.is_some(), "{said:?}");
            assert!(said.unwrap_or_default().contains(wrong.unwrap_or_default()));
        };
        let (reset, closed) =
            ("Connection reset by peer (os error 104)", "connection closed before message completed");
        check(4, &[], 200, None);
        check(8, &[], 200, None);
        check(6, &[(reset, 1), (closed, 1)], 200, None);
        check(5, &[(reset, 1), (closed, 1)], 200, Some("2 failed, and only 1 connections"));
        check(12, &[("no answer in 10s", 1)], 200, Some("no answer"));
        check(12, &[], 503, Some("503"));
    }

    #[test]
    fn a_failure_whose_number_is_not_told_is_not_excused() {
        let mut ours = load(Backend::Exits, Way::Mesh, 500, &[1]);
        ours.tally.failures.insert("reset".into(), 2);
        let outside = load(Backend::Exits, Way::Outside, 500, &[1, 2]);
        check(&[ours, outside], &["1 are not told"]);
    }
}
