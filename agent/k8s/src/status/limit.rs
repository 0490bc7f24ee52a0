//! How fast we may call.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A token bucket over all calls, which also stops them for as long as the API server asks.
#[derive(Debug)]
pub(crate) struct Limiter {
    interval: Duration,
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the next token would be there if no more were saved up than `burst`.
    next: Instant,
    pause: Option<Instant>,
}

impl Limiter {
    /// `qps` calls a second on average, `burst` at once.
    pub(crate) fn new(qps: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / qps.max(1);
        Self { interval, burst: burst.max(1), state: Mutex::new(State { next: Instant::now(), pause: None }) }
    }

    /// Waits for a token. Cancelling gives none back, which only makes us slower.
    pub(crate) async fn acquire(&self) {
        sleep_until(self.take(Instant::now())).await;
        // The pause may have begun while we waited.
        loop {
            let pause = self.state.lock().pause;
            match pause {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    /// Nobody calls for this long.
    pub(crate) fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut state = self.state.lock();
        state.pause = state.pause.max(Some(until));
    }

    /// When the token that is taken now may be used.
    fn take(&self, now: Instant) -> Instant {
        let mut state = self.state.lock();
        let saved = self.interval * (self.burst - 1);
        // Tokens saved up are as many as fit between `next` and now, at most the burst.
        let earliest = now.checked_sub(saved).unwrap_or(now);
        let at = state.next.max(earliest);
        state.next = at + self.interval;
        at.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let limiter = Limiter::new(10, 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        let start = Instant::now();
        let mut at = Vec::new();
        for _ in 0..8 {
            limiter.acquire().await;
            at.push(start.elapsed().as_millis());
        }
        assert_eq!(at[..5], [0; 5]);
        assert!(at[7] >= 300 && at[7] < 320, "{at:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_stops_all() {
        let limiter = Limiter::new(1000, 1000);
        limiter.pause(Duration::from_secs(7));
        let start = Instant::now();
        limiter.acquire().await;
        assert!(start.elapsed() >= Duration::from_secs(7));
    }
}
