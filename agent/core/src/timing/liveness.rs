//! Whether the other end of a tunnel lives: when to ask (HTTP/2 PING), and what its silence means.
//!
//! | nothing heard | while something waits for an answer | else |
//! |---|---|---|
//! | for 250 ms (500 ms when the wait is long; else 10 to 20 s) | PING | PING |
//! | and for half the patience more | the node's other tunnels are asked, too | the same |
//! | and for the patience (650 ms to 1.2 s) | *suspect*: nothing new is sent there | the same |
//! | and for 500 ms more | *lost*: who waits for an answer stops waiting | the same |
//! | and for 20 s more | *dead*: the tunnel is given up with all that it carries | the same |
//!
//! What comes in is noticed at the next look, which is 10 s away where nobody waits: to note the time of each packet would
//! cost more than to ask such a peer some seconds later.
//!
//! A peer that is merely slow answers PINGs, whatever its application does. One that answers PINGs late, because its
//! processor is busy, gets a patience that grows with what its answers took before. Anything heard takes all of it back.

use std::time::{Duration, Instant};

/// How long a tunnel that somebody waits on may be quiet before its peer is asked.
const QUIET: Duration = Duration::from_millis(250);
/// The same when nobody has begun to wait for [`LONG_WAIT`]: long polls.
const QUIET_LONG: Duration = Duration::from_millis(500);
const LONG_WAIT: Duration = Duration::from_secs(2);
/// The same for a tunnel that nobody waits on, counted from the look that noticed its last sign of life: idle tunnels cost
/// next to nothing.
const QUIET_IDLE: Duration = Duration::from_secs(10);
/// How often a tunnel that somebody waits on is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long an answer to PING may take before the peer is suspected; at least, and at most.
const PATIENCE_MIN: Duration = Duration::from_millis(650);
const PATIENCE_MAX: Duration = Duration::from_millis(1200);
/// How often a silent tunnel is looked at: what is said of its node holds only for a while.
const HOLD: Duration = Duration::from_millis(500);
/// From suspect to lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// From PING to dead. Opaque connections may have nothing to say for hours and cannot be made again behind the
/// application's back: they outlive a reboot of a switch.
const DEAD_AFTER: Duration = Duration::from_secs(20);

/// What the silence of a peer means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Silence {
    /// It answers, as far as is known.
    #[default]
    None,
    /// It may be gone: its node's other tunnels should be asked.
    Doubted,
    /// Nothing new should be sent there.
    Suspect,
    /// Nobody should go on waiting for an answer.
    Lost,
    /// Nothing will come any more.
    Dead,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Send a PING (unless one is under way already).
    pub ping: bool,
    /// What its silence means.
    pub silence: Silence,
    /// Something came in since the last look.
    pub heard: bool,
    /// Since when nothing came in that had been asked for.
    pub quiet_since: Instant,
    /// When to look again, at the latest.
    pub next: Duration,
}

/// What is known of one tunnel's other end.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    heard: u64,
    /// When a look noticed the last sign of life, which may have come any time since the look before.
    heard_at: Instant,
    waiting_since: Option<Instant>,
    /// How many waits had begun, and when the last one was seen.
    begun: (u64, Instant),
    pinged: Option<Instant>,
    /// When the next look was due.
    due: Instant,
    /// How long answers to PING take: smoothed, and how much that varies (RFC 6298).
    rtt: Option<(Duration, Duration)>,
}

impl Liveness {
    /// When to look for the first time.
    pub const FIRST_LOOK: Duration = QUIET_IDLE;

    /// A tunnel that has just been set up.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            heard: 0,
            heard_at: now,
            waiting_since: None,
            begun: (0, now),
            pinged: None,
            due: now + QUIET_IDLE,
            rtt: None,
        }
    }

    /// Looks. `heard` counts up with whatever comes in; `waits` with whoever begins to wait for an answer, and is `None`
    /// while nobody does; `asked`: another tunnel to the same node has its doubts.
    pub fn check(&mut self, now: Instant, heard: u64, waits: Option<u64>, asked: bool) -> Check {
        // We were away ourselves (stopped, starved): what came meanwhile may not have been read yet.
        let late = now.saturating_duration_since(self.due);
        if late > TICK {
            self.pinged = self.pinged.map(|at| at + late);
            self.waiting_since = self.waiting_since.map(|at| at + late);
        }
        let came = heard != self.heard;
        self.heard = heard;
        if came {
            self.heard_at = now;
            self.pinged = None;
        }
        self.waiting_since = waits.map(|_| self.waiting_since.unwrap_or(now));
        if let Some(begun) = waits.filter(|begun| *begun != self.begun.0) {
            self.begun = (begun, now);
        }
        let quiet_since = self.waiting_since.map_or(self.heard_at, |since| since.max(self.heard_at));
        let quiet = match waits {
            Some(_) if now.saturating_duration_since(self.begun.1) < LONG_WAIT => QUIET,
            Some(_) => QUIET_LONG,
            None => QUIET_IDLE,
        };
        let ping = self.pinged.is_none() && (asked || now >= quiet_since + quiet);
        if ping {
            self.pinged = Some(now);
        }
        let (silence, next) = match self.pinged {
            None => (Silence::None, (quiet_since + quiet).saturating_duration_since(now)),
            Some(at) => self.silence(now.saturating_duration_since(at)),
        };
        let next = match silence {
            _ if waits.is_some() || late > TICK => next.min(TICK),
            Silence::None => next,
            _ => next.min(HOLD),
        };
        self.due = now + next;
        Check { ping, silence, heard: came, quiet_since: self.pinged.unwrap_or(quiet_since), next }
    }

    /// The answer to a PING came after `took`. One that comes after an outage says nothing of how busy the peer is.
    pub fn answered(&mut self, took: Duration) {
        if took > PATIENCE_MAX + LOST_AFTER {
            return;
        }
        self.rtt = Some(match self.rtt {
            None => (took, took / 2),
            Some((mean, spread)) => ((mean * 7 + took) / 8, (spread * 3 + mean.abs_diff(took)) / 4),
        });
    }

    /// What it means that nothing has been heard for so long since a PING, and when it will mean more.
    fn silence(&self, silent: Duration) -> (Silence, Duration) {
        let patience = self.rtt.map_or(PATIENCE_MIN, |(mean, spread)| (mean + spread * 4) * 2);
        let patience = patience.clamp(PATIENCE_MIN, PATIENCE_MAX);
        let steps = [
            (patience / 2, Silence::None),
            (patience, Silence::Doubted),
            (patience + LOST_AFTER, Silence::Suspect),
            (DEAD_AFTER, Silence::Lost),
        ];
        let step = steps.into_iter().find(|(until, _)| silent < *until);
        step.map_or((Silence::Dead, Duration::ZERO), |(until, silence)| (silence, until - silent))
    }
}
