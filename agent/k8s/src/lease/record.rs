//! What a Lease says, and what follows from it. No clock: `now` is an argument.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use std::time::Duration;
use tokio::time::Instant;

/// A Lease as it was read last, and since when it reads like that.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) lease: Lease,
    /// When this record was seen first, by our own clock.
    since: Instant,
}

/// What a candidate does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write ourselves into the Lease.
    Take,
    /// Look again at this time.
    Wait(Instant),
}

impl Seen {
    /// What was seen before goes on standing only when the holder's record is the same.
    pub(super) fn new(lease: Lease, before: Option<Self>, now: Instant) -> Self {
        let same = before.filter(|b| same_record(&b.lease, &lease));
        Self { since: same.map_or(now, |b| b.since), lease }
    }

    pub(super) fn holder(&self) -> Option<&str> {
        spec(&self.lease)?.holder_identity.as_deref().filter(|h| !h.is_empty())
    }

    fn transitions(&self) -> i32 {
        spec(&self.lease).and_then(|s| s.lease_transitions).unwrap_or(0)
    }

    /// `ours` where the Lease does not say how long it lasts.
    fn expires(&self, ours: Duration) -> Instant {
        let seconds = spec(&self.lease).and_then(|s| s.lease_duration_seconds);
        let stated = seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        self.since + stated.map_or(ours, Duration::from_secs)
    }

    /// Free, ours already (our process was restarted), or not renewed for as long as it lasts: take it. Else look
    /// again after `retry`, or when it would expire.
    pub(super) fn step(&self, me: &str, (ours, retry): (Duration, Duration), now: Instant) -> Step {
        let expires = self.expires(ours);
        match self.holder() {
            None => Step::Take,
            Some(holder) if holder == me => Step::Take,
            Some(_) if now >= expires => Step::Take,
            Some(_) => Step::Wait(expires.min(now + retry)),
        }
    }

    /// The Lease with us as its holder.
    pub(super) fn taken(&self, me: &str, duration: Duration, at: Timestamp) -> Lease {
        let change = i32::from(self.holder() != Some(me));
        let acquired = spec(&self.lease).and_then(|s| s.acquire_time.clone()).filter(|_| change == 0);
        let mut lease = self.lease.clone();
        lease.spec = Some(LeaseSpec {
            acquire_time: Some(acquired.unwrap_or(MicroTime(at))),
            lease_transitions: Some(self.transitions().saturating_add(change)),
            ..held(me, duration, at, spec(&self.lease))
        });
        lease
    }
}

/// A Lease that did not exist before, with us as its holder.
pub(super) fn first(name: &str, me: &str, duration: Duration, at: Timestamp) -> Lease {
    let mut lease = Lease::default();
    lease.metadata.name = Some(name.to_owned());
    lease.spec = Some(LeaseSpec {
        acquire_time: Some(MicroTime(at)),
        lease_transitions: Some(0),
        ..held(me, duration, at, None)
    });
    lease
}

/// The Lease with nobody as its holder. The transitions stay: the next holder counts on.
pub(super) fn released(mut lease: Lease, at: Timestamp) -> Lease {
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(at));
        // As client-go does: whoever reads the duration need not wait either.
        spec.lease_duration_seconds = Some(1);
    }
    lease
}

/// How often the holder has changed.
pub(super) fn transitions(lease: &Lease) -> i32 {
    spec(lease).and_then(|s| s.lease_transitions).unwrap_or(0)
}

fn held(me: &str, duration: Duration, at: Timestamp, before: Option<&LeaseSpec>) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1)),
        renew_time: Some(MicroTime(at)),
        ..before.cloned().unwrap_or_default()
    }
}

fn spec(lease: &Lease) -> Option<&LeaseSpec> {
    lease.spec.as_ref()
}

/// Whether two records are of the same renewal; labels and annotations are not part of it.
fn same_record(one: &Lease, other: &Lease) -> bool {
    let record = |lease: &Lease| {
        let spec = spec(lease)?;
        Some((
            spec.holder_identity.clone(),
            spec.acquire_time.clone(),
            spec.renew_time.clone(),
            spec.lease_transitions,
        ))
    };
    record(one) == record(other)
}
