//! What a client counts.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How many failures are told one by one.
pub const LOST: usize = 10_000;

/// What came back. Printed as one JSON document.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// When it was taken, in milliseconds since 1970. Only with `--report`: then it is what happened since the one before.
    #[serde(default)]
    pub at_ms: u64,
    /// Answers by status code.
    pub codes: BTreeMap<u16, u64>,
    /// Messages of streams that were echoed.
    #[serde(default)]
    pub messages: u64,
    /// Answers by the `x-service` header of the echo servers.
    pub services: BTreeMap<String, u64>,
    /// The same in tenths of a second since the start.
    pub timeline: BTreeMap<u64, BTreeMap<String, u64>>,
    /// Requests and messages without an answer, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Numbers of the first requests and messages that failed, [`LOST`] at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u64>,
    /// Connections that were opened, or tried to.
    #[serde(default)]
    pub opened: u64,
    /// Connections and streams that had stood and were ended by the other side without a word before: an answer's
    /// `Connection: close` is such a word.
    #[serde(default)]
    pub resets: u64,
    /// The longest time without an answer, in milliseconds; that since the last one too.
    #[serde(default)]
    pub gap_ms: u64,
    /// Latencies in microseconds: median and 99th percentile.
    pub p50_us: u64,
    /// See `p50_us`.
    pub p99_us: u64,
    /// The longest latency, in microseconds.
    #[serde(default)]
    pub max_us: u64,
    #[serde(skip)]
    latencies: Vec<u64>,
    #[serde(skip)]
    last_answer: Option<Instant>,
    /// Who was told to answer.
    #[serde(skip)]
    told: Option<String>,
}

impl Tally {
    /// Answers with a status below 500, and echoed messages.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.messages + self.codes.iter().filter(|(code, _)| **code < 500).map(|(_, n)| n).sum::<u64>()
    }

    /// Everything else.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.failures.values().sum::<u64>()
            + self.codes.iter().filter(|(c, _)| **c >= 500).map(|(_, n)| n).sum::<u64>()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        fn sum<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            from.iter().for_each(|(key, n)| *into.entry(key.clone()).or_default() += n);
        }
        sum(&mut self.codes, &other.codes);
        sum(&mut self.services, &other.services);
        sum(&mut self.failures, &other.failures);
        self.lost.extend(&other.lost);
        self.lost.truncate(LOST);
        self.messages += other.messages;
        self.opened += other.opened;
        self.resets += other.resets;
        self.gap_ms = self.gap_ms.max(other.gap_ms);
    }

    pub(super) fn lose(&mut self, number: u64) {
        if self.lost.len() < LOST {
            self.lost.push(number);
        }
    }

    pub(super) fn answered(&mut self, latency: Duration) {
        self.latencies.push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.note_gap();
        self.last_answer = Some(Instant::now());
    }

    /// Says so when another service answers than before.
    pub(super) fn tell_change(&mut self, service: &str) {
        if self.told.as_deref() != Some(service) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            eprintln!("changed {} {service}", now.as_micros());
            self.told = Some(service.to_owned());
        }
    }

    /// Whether nothing was answered yet.
    pub(super) const fn is_fresh(&self) -> bool {
        self.last_answer.is_none()
    }

    fn note_gap(&mut self) {
        let gap = self.last_answer.map_or(Duration::ZERO, |at| at.elapsed());
        self.gap_ms = self.gap_ms.max(u64::try_from(gap.as_millis()).unwrap_or(u64::MAX));
    }

    /// Works out what is worked out once.
    pub(super) fn finish(&mut self) {
        self.note_gap();
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let index = (self.latencies.len() as f64 * share) as usize;
            let index = index.min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).copied().unwrap_or(0)
        };
        (self.p50_us, self.p99_us, self.max_us) = (at(0.5), at(0.99), at(1.0));
    }

    /// What was counted so far; counting begins anew.
    pub(super) fn take(&mut self) -> Self {
        let next = Self { last_answer: self.last_answer, told: self.told.take(), ..Self::default() };
        let mut taken = std::mem::replace(self, next);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        taken.at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        taken.finish();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_lasts_counts_in_every_report() {
        let mut tally = Tally::default();
        assert!(tally.is_fresh());
        tally.answered(Duration::from_micros(7));
        tally.codes.insert(200, 1);
        tally.last_answer = Instant::now().checked_sub(Duration::from_secs(5));
        let first = tally.take();
        assert_eq!((first.good(), first.p50_us), (1, 7));
        assert!(first.gap_ms >= 5000, "{}", first.gap_ms);
        let second = tally.take();
        assert_eq!((second.good(), second.p50_us), (0, 0));
        assert!(second.gap_ms >= 5000 && second.at_ms >= first.at_ms, "{second:?}");
        let mut sum = first.clone();
        sum.add(&Tally { failures: [("gone".to_owned(), 2)].into(), messages: 3, ..second });
        assert_eq!((sum.good(), sum.bad()), (4, 2));
    }
}
