//! Carries out what [`super::record`] decides.

use super::{
    Leadership, LeaseConfig, Term,
    record::{self, Seen, Step},
};
use crate::call::{CallError, call_json, jittered};
use k8s_openapi::{api::coordination::v1::Lease, jiff::Timestamp};
use kube::{api::PostParams, core::Request};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use weft_core::model::Str;

pub(super) struct Elector {
    client: kube::Client,
    config: LeaseConfig,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
    /// When a failure was last said.
    said: Option<Instant>,
}

/// A failure is said once in this time.
const QUIET: Duration = Duration::from_secs(60);

impl Elector {
    pub(super) fn new(
        client: kube::Client,
        config: LeaseConfig,
        leadership: watch::Sender<Leadership>,
        stop: CancellationToken,
    ) -> Self {
        Self { client, config, leadership, stop, said: None }
    }

    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let Some((lease, sent)) = stop.run_until_cancelled(self.acquire()).await else { return };
            let term = Arc::new(Term::new(record::transitions(&lease), Some(sent + self.config.stands())));
            info!(lease = self.config.name, term = term.number(), "leading");
            self.leadership.send_replace(Leadership::Leader { term: term.clone() });
            let mut held = lease;
            stop.run_until_cancelled(self.hold(&mut held, &term)).await;
            // Nobody may write from here on, and only then may the Lease be given back.
            term.end();
            info!(lease = self.config.name, term = term.number(), "not leading any more");
            self.leadership.send_replace(Leadership::none());
            if stop.is_cancelled() {
                return self.give_back(held).await;
            }
        }
    }

    /// Waits until the Lease is ours. Also gives the moment at which the request that took it was sent.
    async fn acquire(&mut self) -> (Lease, Instant) {
        let mut seen: Option<Seen> = None;
        loop {
            let pause = jittered(self.config.retry);
            let again = match self.look(&mut seen, pause).await {
                Ok(Step::Take) => match self.take(seen.as_ref()).await {
                    Ok(taken) => return taken,
                    // Another was faster.
                    Err(CallError::Conflict(_)) => Instant::now() + pause,
                    Err(e) => self.failed("take", &e, pause),
                },
                Ok(Step::Wait(until)) => until,
                Err(e) => self.failed("read", &e, pause),
            };
            sleep_until(again).await;
        }
    }

    async fn look(&mut self, seen: &mut Option<Seen>, pause: Duration) -> Result<Step, CallError> {
        let lease = match self.get().await {
            Ok(lease) => lease,
            Err(CallError::Gone) => {
                *seen = None;
                return Ok(Step::Take);
            }
            Err(e) => return Err(e),
        };
        let now = Instant::now();
        let next = Seen::new(lease, seen.take(), now);
        self.follow(next.holder().filter(|h| *h != self.config.identity));
        let step = next.step(&self.config.identity, (self.config.duration, pause), now);
        *seen = Some(next);
        Ok(step)
    }

    fn follow(&self, holder: Option<&str>) {
        self.leadership.send_if_modified(|leadership| {
            let same = matches!(leadership, Leadership::Follower { holder: h } if h.as_deref() == holder);
            if !same {
                *leadership = Leadership::Follower { holder: holder.map(Str::from) };
            }
            !same
        });
    }

    async fn take(&self, seen: Option<&Seen>) -> Result<(Lease, Instant), CallError> {
        let LeaseConfig { identity, duration, name, .. } = &self.config;
        let sent = Instant::now();
        let lease = match seen {
            Some(seen) => self.put(&seen.taken(identity, *duration, Timestamp::now())).await?,
            None => self.create(&record::first(name, identity, *duration, Timestamp::now())).await?,
        };
        // An answer that took so long proves nothing any more.
        if sent.elapsed() >= self.config.stands() {
            return Err(CallError::Conflict("the answer came too late".to_owned()));
        }
        Ok((lease, sent))
    }

    /// Renews until that has failed for too long or another holds the Lease.
    async fn hold(&mut self, lease: &mut Lease, term: &Term) {
        let mut until = term.until.lock().unwrap_or_else(Instant::now);
        let mut next = Instant::now() + jittered(self.config.renew);
        loop {
            sleep_until(next.min(until)).await;
            if Instant::now() >= until {
                warn!(lease = self.config.name, "the Lease could not be renewed in time");
                return;
            }
            let sent = Instant::now();
            // A third of the whole, so that one call that hangs does not cost the term.
            let deadline = until.min(sent + self.config.duration * 3 / 10);
            match timeout_at(deadline, self.renew(lease)).await {
                Ok(Ok(true)) => {
                    until = sent + self.config.stands();
                    term.renewed(until);
                    next = sent + jittered(self.config.renew);
                }
                Ok(Ok(false)) => return,
                Ok(Err(e)) => next = self.failed("renew", &e, self.config.retry / 4),
                Err(_) => next = Instant::now(),
            }
        }
    }

    /// False when the Lease is another's now.
    async fn renew(&self, lease: &mut Lease) -> Result<bool, CallError> {
        let me = &self.config.identity;
        for _ in 0..2 {
            let seen = Seen::new(lease.clone(), None, Instant::now());
            match self.put(&seen.taken(me, self.config.duration, Timestamp::now())).await {
                Ok(renewed) => {
                    *lease = renewed;
                    return Ok(true);
                }
                // Somebody edited it, or the answer to our last renewal was lost.
                Err(CallError::Conflict(_)) => {}
                Err(CallError::Gone) => return Ok(false),
                Err(e) => return Err(e),
            }
            match self.get().await {
                Ok(current) => *lease = current,
                Err(CallError::Gone) => return Ok(false),
                Err(e) => return Err(e),
            }
            if Seen::new(lease.clone(), None, Instant::now()).holder() != Some(me) {
                return Ok(false);
            }
        }
        Err(CallError::Conflict("the Lease changes faster than it can be renewed".to_owned()))
    }

    async fn give_back(&self, lease: Lease) {
        let mut given = self.put(&record::released(lease, Timestamp::now())).await.map(|_| ());
        // The renewal that was cancelled may have arrived.
        if let Err(CallError::Conflict(_)) = given {
            given = self.give_back_current().await;
        }
        if let Err(e) = given {
            info!(lease = self.config.name, error = %e, "the Lease was not given back; it will expire");
        }
    }

    async fn give_back_current(&self) -> Result<(), CallError> {
        let current = Seen::new(self.get().await?, None, Instant::now());
        if current.holder() == Some(&self.config.identity) {
            self.put(&record::released(current.lease, Timestamp::now())).await?;
        }
        Ok(())
    }

    /// Says a failure, not too often, and when to try again.
    fn failed(&mut self, verb: &str, error: &CallError, pause: Duration) -> Instant {
        let now = Instant::now();
        if self.said.is_none_or(|at| now - at >= QUIET) {
            self.said = Some(now);
            let LeaseConfig { namespace, name, .. } = &self.config;
            warn!(%error, "cannot {verb} Lease {namespace}/{name} (needs get, create, update on leases)");
        }
        now + if let CallError::Throttled(wait) = error { *wait } else { pause }
    }

    fn requests(&self) -> Request {
        Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.config.namespace))
    }

    async fn get(&self) -> Result<Lease, CallError> {
        call_json(&self.client, built(self.requests().get(&self.config.name, &Default::default()))?).await
    }

    async fn put(&self, lease: &Lease) -> Result<Lease, CallError> {
        let request = self.requests().replace(&self.config.name, &PostParams::default(), body(lease)?);
        call_json(&self.client, built(request)?).await
    }

    async fn create(&self, lease: &Lease) -> Result<Lease, CallError> {
        call_json(&self.client, built(self.requests().create(&PostParams::default(), body(lease)?))?).await
    }
}

fn body(lease: &Lease) -> Result<Vec<u8>, CallError> {
    serde_json::to_vec(lease).map_err(|e| CallError::Refused { code: 0, message: e.to_string() })
}

fn built<T>(request: Result<T, kube::core::request::Error>) -> Result<T, CallError> {
    request.map_err(|e| CallError::Refused { code: 0, message: e.to_string() })
}
