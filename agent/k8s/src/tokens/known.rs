//! Answers about tokens, remembered for a while.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Answers, so many for so long. Tokens themselves are not kept: a fingerprint of 128 bits under two keys of this process, at
/// which nobody outside can aim.
pub(super) struct Known<T> {
    most: usize,
    life: Duration,
    keys: (RandomState, RandomState),
    answers: Mutex<HashMap<(u64, u64), (Instant, T)>>,
}

impl<T: Clone> Known<T> {
    pub(super) fn new(most: usize, life: Duration) -> Self {
        Self { most, life, keys: Default::default(), answers: Mutex::default() }
    }

    fn print(&self, token: impl Hash) -> (u64, u64) {
        (self.keys.0.hash_one(&token), self.keys.1.hash_one(&token))
    }

    /// What was heard about a token less than its life ago, and how long ago.
    pub(super) fn recall(&self, token: impl Hash, now: Instant) -> Option<(Duration, T)> {
        let answers = self.answers.lock();
        let (since, answer) = answers.get(&self.print(token))?;
        let age = now.duration_since(*since);
        (age < self.life).then(|| (age, answer.clone()))
    }

    /// Remembers an answer to what was asked at `asked`.
    pub(super) fn remember(&self, token: impl Hash, asked: Instant, answer: T) {
        let print = self.print(token);
        let mut answers = self.answers.lock();
        if answers.len() >= self.most {
            answers.retain(|_, (since, _)| asked.duration_since(*since) < self.life);
        }
        // Still full: this one is asked about again.
        if answers.len() < self.most || answers.contains_key(&print) {
            answers.insert(print, (asked, answer));
        }
    }

    /// What is no longer so.
    pub(super) fn forget(&self, token: impl Hash) {
        self.answers.lock().remove(&self.print(token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_answers_for_a_while_and_not_too_many() {
        const LIFE: Duration = Duration::from_secs(60);
        let known = Known::new(100, LIFE);
        let start = Instant::now();
        assert_eq!(known.recall("t", start), None);
        known.remember("t", start, 'a');
        assert_eq!(known.recall("t", start + LIFE / 2), Some((LIFE / 2, 'a')));
        assert_eq!(known.recall("t2", start), None);
        assert_eq!(known.recall("t", start + LIFE), None);
        for i in 0..1000 {
            known.remember(i.to_string(), start, 'b');
        }
        assert_eq!(known.answers.lock().len(), 100);
        known.remember("t", start, 'c');
        assert_eq!(known.recall("t", start), Some((Duration::ZERO, 'c')), "what is known is renewed");
        known.remember("later", start + LIFE, 'd');
        assert_eq!(known.answers.lock().len(), 1, "who is too old makes room");
        known.forget("later");
        assert_eq!(known.recall("later", start + LIFE), None);
    }
}
