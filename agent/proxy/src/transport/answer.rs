//! The word with which an agent says, in its answer to a CONNECT, why there is no connection to the application.
//!
//! It is another agent's word, so it is one of a few or none at all: what is told to people is our own, about the address
//! that we asked for. ztunnel says no word, and neither do agents of older versions.

use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    http::REASON_HEADER,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use std::net::{IpAddr, SocketAddr};
use weft_core::model::ObjectKey;

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nothing listens on the port.
    NotListening,
    /// What listens on the port does so on loopback addresses only.
    LoopbackOnly,
    /// The application could not be reached for another reason.
    ConnectFailed,
    /// The application did not take the connection in time.
    ConnectTimeout,
    /// The pod's budget of connections is used up.
    Limit,
}

/// All of them, as they are written.
const WORDS: [(Word, &str); 5] = [
    (Word::NotListening, "not_listening"),
    (Word::LoopbackOnly, "loopback_only"),
    (Word::ConnectFailed, "connect_failed"),
    (Word::ConnectTimeout, "connect_timeout"),
    (Word::Limit, "limit"),
];

impl Word {
    /// What to say of an application that could not be reached. `listening`: where it listens on that port, if that is known.
    pub(super) fn of(error: &ProxyError, listening: Option<&[IpAddr]>) -> Option<Self> {
        match (error.reason, listening) {
            (Reason::NotListening, Some(at)) if !at.is_empty() && at.iter().all(IpAddr::is_loopback) => {
                Some(Self::LoopbackOnly)
            }
            (Reason::NotListening, _) => Some(Self::NotListening),
            (Reason::ConnectFailed, _) => Some(Self::ConnectFailed),
            (Reason::ConnectTimeout, _) => Some(Self::ConnectTimeout),
            _ => None,
        }
    }

    /// As it is written.
    fn as_str(self) -> &'static str {
        WORDS.iter().find(|(word, _)| *word == self).map_or("", |(_, text)| text)
    }

    /// Writes it.
    pub(super) fn put(self, headers: &mut HeaderMap) {
        headers.insert(REASON_HEADER, HeaderValue::from_static(self.as_str()));
    }

    /// Reads it; `None` for anything else, and for more than one.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut said = headers.get_all(REASON_HEADER).iter();
        let word = said.next().filter(|_| said.next().is_none())?;
        WORDS.iter().find(|(_, text)| word.as_bytes() == text.as_bytes()).map(|(word, _)| *word)
    }
}

/// What the answer of the agent of `pod` to a CONNECT to `to` means.
#[must_use]
pub fn refused(status: StatusCode, word: Option<Word>, to: SocketAddr, pod: &ObjectKey) -> ProxyError {
    let nothing = || format!("nothing listens on {to} in pod {pod}");
    let (reason, detail) = match (status.as_u16(), word) {
        // By policy: every endpoint of the workload would say so.
        (status @ (401 | 403), _) => {
            (Reason::Denied, format!("the agent of {to} answered CONNECT with {status}"))
        }
        (503, Some(Word::NotListening)) => (Reason::NotListening, nothing()),
        (503, Some(Word::LoopbackOnly)) => {
            let loopback = if to.is_ipv6() { "[::1]" } else { "127.0.0.1" };
            (Reason::NotListening, format!("{}: it listens on {loopback}:{} only", nothing(), to.port()))
        }
        (503, Some(Word::ConnectFailed)) => {
            (Reason::ConnectFailed, format!("the agent of {to} could not connect to the application"))
        }
        (503, Some(Word::ConnectTimeout)) => {
            (Reason::ConnectTimeout, format!("the application at {to} did not take the connection in time"))
        }
        (503, Some(Word::Limit)) => {
            (Reason::TunnelRefused, format!("pod {pod} of {to} has as many connections as it may have"))
        }
        // The application was not reached, or the pod has gone and its address belongs to another.
        (status, _) => (Reason::TunnelRefused, format!("the agent of {to} answered CONNECT with {status}")),
    };
    let retry = if reason == Reason::Denied { Retryable::No } else { Retryable::Yes };
    ProxyError { reason, blame: Blame::Upstream, retry, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E7: "the endpoint's agent refused" was said of an application that had crashed, or listened on 127.0.0.1.
    #[test]
    fn an_answer_says_why_in_our_own_words() {
        let pod = ObjectKey::new("shop", "lo");
        let check = |status: u16, words: &[&'static str], reason: Reason, detail: &str| {
            let mut headers = HeaderMap::new();
            for word in words {
                headers.append(REASON_HEADER, HeaderValue::from_static(word));
            }
            let status = StatusCode::from_u16(status).unwrap();
            let error = refused(status, Word::read(&headers), "10.91.1.9:8080".parse().unwrap(), &pod);
            assert_eq!((error.reason, error.detail.as_str()), (reason, detail), "{status} {words:?}");
            assert_eq!(error.retry == Retryable::No, reason == Reason::Denied);
        };
        let nothing = "nothing listens on 10.91.1.9:8080 in pod shop/lo";
        check(503, &["not_listening"], Reason::NotListening, nothing);
        let only = format!("{nothing}: it listens on 127.0.0.1:8080 only");
        check(503, &["loopback_only"], Reason::NotListening, &only);
        let other = "the agent of 10.91.1.9:8080 could not connect to the application";
        check(503, &["connect_failed"], Reason::ConnectFailed, other);
        let full = "pod shop/lo of 10.91.1.9:8080 has as many connections as it may have";
        check(503, &["limit"], Reason::TunnelRefused, full);
        // ztunnel's, an older agent's, and what is none of the words.
        let plain = "the agent of 10.91.1.9:8080 answered CONNECT with 503";
        check(503, &[], Reason::TunnelRefused, plain);
        check(503, &["<script>"], Reason::TunnelRefused, plain);
        check(503, &["not_listening", "not_listening"], Reason::TunnelRefused, plain);
        // A word does not make another answer of it.
        check(
            401,
            &["not_listening"],
            Reason::Denied,
            "the agent of 10.91.1.9:8080 answered CONNECT with 401",
        );
        check(
            400,
            &["limit"],
            Reason::TunnelRefused,
            "the agent of 10.91.1.9:8080 answered CONNECT with 400",
        );
    }

    #[test]
    fn where_the_application_listens_decides_about_the_word() {
        let check = |reason: Reason, listening: Option<&[&str]>, expected: Option<Word>| {
            let error =
                ProxyError { reason, blame: Blame::Upstream, retry: Retryable::Yes, detail: String::new() };
            let at: Option<Vec<IpAddr>> =
                listening.map(|at| at.iter().map(|ip| ip.parse().unwrap()).collect());
            assert_eq!(Word::of(&error, at.as_deref()), expected, "{reason:?} {listening:?}");
        };
        check(Reason::NotListening, None, Some(Word::NotListening));
        check(Reason::NotListening, Some(&[]), Some(Word::NotListening));
        check(Reason::NotListening, Some(&["127.0.0.1"]), Some(Word::LoopbackOnly));
        check(Reason::NotListening, Some(&["127.0.0.2", "::1"]), Some(Word::LoopbackOnly));
        // It listens by now.
        check(Reason::NotListening, Some(&["127.0.0.1", "0.0.0.0"]), Some(Word::NotListening));
        check(Reason::ConnectTimeout, Some(&["127.0.0.1"]), Some(Word::ConnectTimeout));
        check(Reason::NoCertificate, None, None);
    }
}
