//! When to end a connection whose protocol nobody knows, so that no request breaks: in the last part of a drain, at a moment
//! when client and server seem to have nothing under way.
//!
//! | who spoke last | then |
//! |---|---|
//! | the client | a request may be under way: not ended |
//! | the server, and the client has not spoken after it yet | not ended: an answer may end with its connection (HTTP/1.0, FTP's data), and one that is cut must not look whole |
//! | the server, which the client has taken up before | ended once nothing has moved for a while |
//! | nobody | the same |
//!
//! The while is a fifth of that part at first (a second of five) and shrinks to 5 ms: whoever has long pauses ends in one of them, and who has only short
//! ones is ended in such a one rather than at the deadline, wherever it is then. What a client says while the end is on its
//! way to it is lost; so one that pauses again and again is ended early in a pause, long before its next word is due.

use std::time::{Duration, Instant};

/// The last part of a drain is a fifth of it, and not more than this.
const LAST_PART_MAX: Duration = Duration::from_secs(5);
const LAST_PART_OF: u32 = 5;
/// How long nothing has to move when the last part begins, as a part of that; it shrinks with the square of what is left…
const QUIET_OF: u32 = 5;
/// …to this. A server rarely stops for longer within an answer that is short.
const QUIET_MIN: Duration = Duration::from_millis(5);
/// A client's pause has begun for as long as not more than this part of it is over. The rest is for the end to arrive, on
/// nodes whose processors are busy.
const PAUSE_BEGINS: u32 = 3;

/// How long before the deadline of a drain of `grace` quiet moments are looked for.
#[must_use]
pub fn last_part(grace: Duration) -> Duration {
    LAST_PART_MAX.min(grace / LAST_PART_OF)
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who made it.
    Client,
    /// Who took it.
    Server,
}

/// Who has spoken on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    last: Option<Side>,
    /// The client has spoken after the server: it knew where the server's words end without an end of the connection.
    resumed: bool,
}

impl Talk {
    /// Bytes have come since the last call: from the client, from the server. From both, their order is not known; it
    /// counts as a request that is under way.
    pub fn heard(&mut self, client: bool, server: bool) {
        match (client, server) {
            (false, false) => {}
            (false, true) => self.last = Some(Side::Server),
            (true, both) => {
                self.resumed |= !both && self.last == Some(Side::Server);
                self.last = Some(Side::Client);
            }
        }
    }

    /// Whether nothing seems to be under way, if nothing comes for a while.
    #[must_use]
    pub fn is_at_rest(self) -> bool {
        match self.last {
            None => true,
            Some(Side::Server) => self.resumed,
            Some(Side::Client) => false,
        }
    }
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// End it in order.
    End,
    /// Look again after this time, or when something has moved.
    Wait(Duration),
    /// Look again when something has moved.
    Busy,
}

/// How long a client pauses before it speaks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Smoothed.
    pub usual: Duration,
    /// The longest of late ones.
    pub longest: Duration,
}

impl Rhythm {
    /// What is known after one more.
    #[must_use]
    pub fn after(known: Option<Self>, pause: Duration) -> Self {
        let Some(Self { usual, longest }) = known else { return Self { usual: pause, longest: pause } };
        Self { usual: (usual * 7 + pause) / 8, longest: pause.max(longest * 15 / 16) }
    }
}

/// Decides about a connection at rest on which nothing has moved for `quiet`. Of the last `part` of the drain so much is
/// `left`. `rhythm` is its client's, where that is known.
#[must_use]
pub fn judge(quiet: Duration, rhythm: Option<Rhythm>, (left, part): (Duration, Duration)) -> Verdict {
    let left = left.as_secs_f64() / part.max(QUIET_MIN).as_secs_f64();
    let mut wanted = (part / QUIET_OF).mul_f64(left.min(1.0).powi(2)).max(QUIET_MIN);
    if let Some(Rhythm { usual, longest }) = rhythm
        && wanted.max(quiet) > usual / PAUSE_BEGINS
    {
        // Its next word is due, or will be by then. Only one that does not come is waited for no more.
        wanted = wanted.max(longest * 2);
    }
    match wanted.saturating_sub(quiet) {
        Duration::ZERO => Verdict::End,
        rest => Verdict::Wait(rest),
    }
}

/// A connection during a drain: its pauses are learned from the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    talk: Talk,
    /// Since when nothing has moved.
    since: Instant,
    /// Whether that was seen: at first it is only when the drain began.
    seen: bool,
    rhythm: Option<Rhythm>,
}

impl Pauses {
    /// The drain begins `now`.
    #[must_use]
    pub const fn new(talk: Talk, now: Instant) -> Self {
        Self { talk, since: now, seen: false, rhythm: None }
    }

    /// Bytes have come or were passed on, not before `now`; `talk` is as it stands after that.
    pub fn moved(&mut self, talk: Talk, now: Instant) {
        if (self.talk.last, talk.last, self.seen) == (Some(Side::Server), Some(Side::Client), true) {
            let pause = now.saturating_duration_since(self.since);
            self.rhythm = Some(Rhythm::after(self.rhythm, pause));
        }
        (self.talk, self.since, self.seen) = (talk, now, true);
    }

    /// Decides, when so much is left of the last part. `is_open`: neither side has ended its direction, and nothing waits to
    /// be passed on.
    #[must_use]
    pub fn judge(&self, is_open: bool, now: Instant, (left, part): (Duration, Duration)) -> Verdict {
        if !is_open || !self.talk.is_at_rest() {
            return Verdict::Busy;
        }
        judge(now.saturating_duration_since(self.since), self.rhythm, (left, part))
    }
}
