//! Which of a UDP listener's sessions yields when there is no room for another.
//!
//! A datagram's source proves nothing: whoever sends can write any. So a new source always gets a session, and it is an old
//! one that makes room, in this order: one that was never answered (a forged source never is), one that has had its one
//! question answered, then the one that has been quiet for longest. Sources of one network have a part of the room only,
//! within which they displace each other.

use crate::budget::{UDP_SESSIONS, UDP_SESSIONS_OF_NETWORK};
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// A session's place is looked at again when it is older than this, so that a busy one costs nothing.
const REFRESH: Duration = Duration::from_secs(1);

/// How a session has gone so far; in the order in which they yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nobody has answered.
    Unanswered,
    /// One question, and its answer.
    Brief,
    /// Question and answer, and more.
    Lasting,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stage: Stage,
    /// When it was last heard of, as far as its place shows.
    touched: Instant,
    questions: u64,
}

/// A session's place among those that yield: the least yields first.
type Place = (Stage, Instant, SocketAddr);

/// The sessions of one socket.
#[derive(Debug)]
pub struct Sessions {
    entries: HashMap<SocketAddr, Entry>,
    order: BTreeSet<Place>,
    networks: HashMap<IpAddr, BTreeSet<Place>>,
    max: usize,
    of_network_max: usize,
}

impl Default for Sessions {
    fn default() -> Self {
        Self::bounded(UDP_SESSIONS.size(), UDP_SESSIONS_OF_NETWORK.size())
    }
}

/// Who makes room for a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// The session that ends.
    pub client: SocketAddr,
    /// Because of its network's part, and not of the whole.
    pub of_network: bool,
}

impl Sessions {
    /// At most so many, and so many of one network.
    #[must_use]
    pub fn bounded(max: usize, of_network_max: usize) -> Self {
        let (entries, order, networks) = (HashMap::new(), BTreeSet::new(), HashMap::new());
        Self { entries, order, networks, max: max.max(1), of_network_max: of_network_max.max(1) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A session begins with a client's first datagram; whoever makes room for it is out, and must be ended.
    pub fn begin(&mut self, client: SocketAddr, now: Instant) -> Option<Displaced> {
        let of_network = self.networks.get(&network(client)).filter(|all| all.len() >= self.of_network_max);
        let full = self.entries.len() >= self.max;
        let displaced = match of_network {
            Some(all) => all.first().map(|place| Displaced { client: place.2, of_network: true }),
            None => self.order.first().filter(|_| full).map(|p| Displaced { client: p.2, of_network: false }),
        };
        if let Some(displaced) = displaced {
            self.end(displaced.client);
        }
        self.end(client);
        self.insert(client, Entry { stage: Stage::Unanswered, touched: now, questions: 1 });
        displaced
    }

    /// The client has sent another datagram.
    pub fn asked(&mut self, client: SocketAddr, now: Instant) {
        self.note(client, now, |entry| {
            entry.questions = entry.questions.saturating_add(1);
            if entry.stage == Stage::Brief {
                entry.stage = Stage::Lasting;
            }
        });
    }

    /// The client was sent a datagram.
    pub fn answered(&mut self, client: SocketAddr, now: Instant) {
        self.note(client, now, |entry| {
            if entry.stage == Stage::Unanswered {
                entry.stage = if entry.questions > 1 { Stage::Lasting } else { Stage::Brief };
            }
        });
    }

    /// It is over.
    pub fn end(&mut self, client: SocketAddr) {
        if let Some(entry) = self.entries.remove(&client) {
            self.leave(client, entry);
        }
    }

    fn note(&mut self, client: SocketAddr, now: Instant, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&client) else { return };
        let before = *entry;
        change(entry);
        if entry.stage != before.stage || now.saturating_duration_since(before.touched) >= REFRESH {
            entry.touched = now;
            let after = *entry;
            self.leave(client, before);
            self.insert(client, after);
        }
    }

    fn insert(&mut self, client: SocketAddr, entry: Entry) {
        let place = (entry.stage, entry.touched, client);
        self.entries.insert(client, entry);
        self.order.insert(place);
        self.networks.entry(network(client)).or_default().insert(place);
    }

    fn leave(&mut self, client: SocketAddr, entry: Entry) {
        let place = (entry.stage, entry.touched, client);
        self.order.remove(&place);
        let network = network(client);
        if let Some(all) = self.networks.get_mut(&network) {
            all.remove(&place);
            if all.is_empty() {
                self.networks.remove(&network);
            }
        }
    }
}

/// What one party is likely to hold addresses of: an IPv4 /24, an IPv6 /64.
fn network(client: SocketAddr) -> IpAddr {
    match client.ip().to_canonical() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) & !0xff).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
    }
}

/// How long a session may carry nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Once it was answered (RFC 4787 REQ-5).
    pub answered: Duration,
    /// The port is one of those where a question has one answer, such as DNS's (RFC 4787 REQ-5 c): 0 to 1023.
    pub well_known: bool,
}

/// One question, and no more of it.
const BRIEF: Duration = Duration::from_secs(5);
/// More than one datagram, and no answer: logs, metrics.
const ONE_WAY: Duration = Duration::from_secs(60);

impl Patience {
    /// After so many datagrams of the client and to it.
    #[must_use]
    pub fn of(self, questions: u64, answers: u64) -> Duration {
        match (questions > 1, answers > 0) {
            (false, false) => BRIEF.min(self.answered),
            (false, true) if self.well_known => BRIEF.min(self.answered),
            (true, false) => ONE_WAY.min(self.answered),
            (_, true) => self.answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// Plays events (`+` begins, `?` asks, `!` is answered, `-` ends) a second apart; who was displaced, in order.
    fn check(bounds: (usize, usize), events: &str, wanted: &[&str]) {
        let mut sessions = Sessions::bounded(bounds.0, bounds.1);
        let mut now = Instant::now();
        let mut out = Vec::new();
        for event in events.split_whitespace() {
            now += Duration::from_secs(1);
            let who = client(&event[1..]);
            match &event[..1] {
                "+" => out.extend(sessions.begin(who, now).map(|d| d.client.to_string())),
                "?" => sessions.asked(who, now),
                "!" => sessions.answered(who, now),
                _ => sessions.end(who),
            }
            assert!(sessions.len() <= bounds.0);
            assert_eq!(sessions.order.len(), sessions.len());
            assert_eq!(sessions.networks.values().map(BTreeSet::len).sum::<usize>(), sessions.len());
        }
        assert_eq!(out, wanted, "{events}");
    }

    #[test]
    fn who_was_never_answered_yields_first_then_the_oldest() {
        check((2, 9), "+10.0.0.1:1 +10.0.1.1:1 +10.0.2.1:1", &["10.0.0.1:1"]);
        check((2, 9), "+10.0.0.1:1 !10.0.0.1:1 +10.0.1.1:1 +10.0.2.1:1", &["10.0.1.1:1"]);
        // One question and its answer yields before a conversation, however old that is.
        check(
            (2, 9),
            "+10.0.0.1:1 !10.0.0.1:1 ?10.0.0.1:1 +10.0.1.1:1 !10.0.1.1:1 +10.0.2.1:1 !10.0.2.1:1 +10.0.3.1:1",
            &["10.0.1.1:1", "10.0.2.1:1"],
        );
        // Of conversations, the one that has been quiet for longest.
        check(
            (2, 9),
            "+10.0.0.1:1 ?10.0.0.1:1 !10.0.0.1:1 +10.0.1.1:1 ?10.0.1.1:1 !10.0.1.1:1 ?10.0.0.1:1 +10.0.2.1:1",
            &["10.0.1.1:1"],
        );
        check((2, 9), "+10.0.0.1:1 +10.0.1.1:1 -10.0.0.1:1 +10.0.2.1:1", &[]);
    }

    #[test]
    fn sources_of_one_network_displace_each_other() {
        check(
            (9, 2),
            "+10.0.0.1:1 +10.0.1.1:1 +10.0.1.2:1 +10.0.1.3:1 +10.0.1.3:2",
            &["10.0.1.1:1", "10.0.1.2:1"],
        );
        check((9, 2), "+[fd00::1]:1 +[fd00::2]:1 +[fd00::3]:1 +[fd00:0:0:1::1]:1", &["[fd00::1]:1"]);
    }

    #[test]
    fn a_session_that_was_answered_lives_two_minutes() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (questions, answers, well_known, wanted) in [
            (1, 0, false, BRIEF),
            (5, 0, false, ONE_WAY),
            (1, 1, false, minutes(2)),
            (1, 1, true, BRIEF),
            (2, 1, true, minutes(2)),
        ] {
            let patience = Patience { answered: minutes(2), well_known };
            assert_eq!(patience.of(questions, answers), wanted, "{questions} {answers} {well_known}");
        }
        assert_eq!(
            Patience { answered: Duration::from_secs(1), well_known: false }.of(9, 0),
            Duration::from_secs(1)
        );
    }
}
