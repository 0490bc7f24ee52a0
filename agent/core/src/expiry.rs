//! What is to be said of the certificates that listeners show: they have ended, end soon, begin later, or are for other names.
//! Nobody is refused for it here: a client decides what it trusts, and the condition of the listener stays what it is.

use crate::{
    config::{Config, PortConfig, TlsListener, TlsTermination},
    model::{Hostname, KeyPair, ObjectKey, Str, Validity},
};
use jiff::Timestamp;
use std::{collections::BTreeSet, fmt, sync::Arc};

/// It is told that a certificate ends when a fifth of its life is left, but not earlier than this, in seconds: whoever renews
/// does so with a third left, so that what comes so near was forgotten.
const SOON_MAX: i64 = 21 * 24 * 60 * 60;

/// A certificate that a listener shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerCertificate {
    /// The Secret that holds it.
    pub secret: ObjectKey,
    /// The certificate, and its key.
    pub pair: Arc<KeyPair>,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Its last moment is over.
    Ended,
    /// None of the listener's certificates has a name that covers its hostname.
    OtherNames,
    /// Its first moment is still to come.
    NotYet,
    /// It ends before long.
    EndsSoon,
}

impl Fault {
    /// An Event's reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Ended => "CertificateExpired",
            Self::OtherNames => "CertificateNameMismatch",
            Self::NotYet => "CertificateNotYetValid",
            Self::EndsSoon => "CertificateExpiresSoon",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Ended | Self::EndsSoon => {
                "renew the certificate in the Secret, or look at why its issuer does not (kubectl get certificates, with cert-manager)"
            }
            Self::OtherNames => {
                "put a certificate for the hostname into the Secret, or correct the listener's hostname"
            }
            Self::NotYet => "look at the clocks of the certificate's issuer and of the nodes",
        }
    }

    /// Whether clients are refused by it now.
    #[must_use]
    pub const fn is_now(self) -> bool {
        !matches!(self, Self::EndsSoon)
    }
}

/// Something to say of a listener's certificate. Words and order are the same as long as nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateRemark {
    /// What it is.
    pub fault: Fault,
    /// The Secret, of several the first.
    pub secret: ObjectKey,
    /// In a sentence without its end: which certificate, what, since or until when.
    pub message: String,
}

/// A moment as RFC 3339 writes it, in Unix seconds.
struct Moment(i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_second(self.0) {
            Ok(moment) => write!(f, "{moment}"),
            // Beyond the year 9999, as "never ends" is written (RFC 5280 §4.1.2.5).
            Err(_) => f.write_str("the end of time"),
        }
    }
}

impl Validity {
    /// What is to be said at this moment (Unix seconds).
    #[must_use]
    pub fn fault(self, now: i64) -> Option<Fault> {
        if !self.is_known() {
            return None;
        }
        let life = self.not_after.saturating_sub(self.not_before);
        let left = self.not_after.saturating_sub(now);
        if left < 0 {
            Some(Fault::Ended)
        } else if now < self.not_before {
            Some(Fault::NotYet)
        } else {
            (left < (life / 5).min(SOON_MAX)).then_some(Fault::EndsSoon)
        }
    }
}

impl TlsTermination {
    /// What is to be said of its certificates at this moment (Unix seconds), where clients come for `hostname`.
    #[must_use]
    pub fn remarks(&self, hostname: Option<&Hostname>, now: i64) -> Vec<CertificateRemark> {
        let mut remarks: Vec<CertificateRemark> = self
            .certificates
            .iter()
            .filter_map(|ListenerCertificate { secret, pair }| {
                let validity = pair.validity;
                let fault = validity.fault(now)?;
                let message = match fault {
                    Fault::Ended => format!("ended at {}", Moment(validity.not_after)),
                    Fault::NotYet => format!("begins at {} only", Moment(validity.not_before)),
                    _ => format!("ends at {}", Moment(validity.not_after)),
                };
                let message = format!("the certificate of Secret {secret} {message}");
                Some(CertificateRemark { fault, secret: secret.clone(), message })
            })
            .collect();
        remarks.extend(hostname.and_then(|hostname| self.other_names(hostname)));
        remarks.sort();
        remarks
    }

    /// That none of its certificates is for `hostname`.
    fn other_names(&self, hostname: &Hostname) -> Option<CertificateRemark> {
        let first = self.certificates.first()?;
        let mut names = self.certificates.iter().flat_map(|c| &*c.pair.names);
        if names.any(|name| covers(name, hostname)) {
            return None;
        }
        const SHOWN: usize = 5;
        let all: Vec<&Str> = self.certificates.iter().flat_map(|c| &*c.pair.names).collect();
        let list: Vec<&str> = all.iter().take(SHOWN).map(|name| &***name).collect();
        let more = if all.len() > SHOWN { " and others" } else { "" };
        let list = if list.is_empty() { "no name".to_owned() } else { format!("{}{more}", list.join(", ")) };
        let secret = first.secret.clone();
        let message = format!("the certificate of Secret {secret} is not for {hostname} (it has {list})");
        Some(CertificateRemark { fault: Fault::OtherNames, secret, message })
    }

    /// Sentences for the listener's condition: what is so whatever the time is, since nobody writes a condition again for
    /// the time's sake. Empty where nothing is known.
    pub(crate) fn told(&self, hostname: Option<&Hostname>) -> String {
        let known = self.certificates.iter().filter(|c| c.pair.validity.is_known());
        let end = |c: &ListenerCertificate| {
            format!(
                " The certificate of Secret {} is valid until {}.",
                c.secret,
                Moment(c.pair.validity.not_after)
            )
        };
        let other = hostname.and_then(|hostname| self.other_names(hostname));
        known.map(end).chain(other.map(|remark| format!(" But {}.", remark.message))).collect()
    }
}

/// Whether a client that asks for `hostname` may be content with a certificate of this name (RFC 9525 §6.3). For a wildcard
/// that may come for names below it, one of which the certificate has.
fn covers(name: &str, hostname: &Hostname) -> bool {
    let name = name.to_ascii_lowercase();
    match hostname.wildcard_suffix() {
        // With its dot: `*.a.example` is for one label more than `.a.example` has, and the hostname for one or more.
        Some(suffix) => name.strip_prefix('*').unwrap_or(&name).ends_with(suffix),
        None if name == hostname.as_str() => true,
        None => match (name.strip_prefix("*."), hostname.as_str().split_once('.')) {
            (Some(domain), Some((_, rest))) => domain == rest,
            _ => false,
        },
    }
}

/// A listener's TLS in a [`Config`]: of which Gateway, for which hostname.
pub type Served<'a> = (&'a ObjectKey, Option<&'a Hostname>, &'a Arc<TlsTermination>);

impl Config {
    /// Every listener that terminates TLS.
    pub fn terminations(&self) -> impl Iterator<Item = Served<'_>> {
        let ports =
            self.gateways.iter().flat_map(|(key, gateway)| gateway.ports.values().map(move |p| (key, p)));
        let listeners = ports.filter_map(|(key, port)| match port {
            PortConfig::Tls(hosts) => {
                Some(hosts.iter().map(move |(host, listener)| (key, host, &**listener)))
            }
            _ => None,
        });
        listeners.flatten().filter_map(|(key, host, listener)| match listener {
            TlsListener::Https { tls, .. } | TlsListener::Terminate { tls, .. } => Some((key, host, tls)),
            TlsListener::Passthrough { .. } => None,
        })
    }
}

/// When a certificate of a Gateway ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ending {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// The Secret.
    pub secret: ObjectKey,
    /// Unix seconds.
    pub end: i64,
}

impl Config {
    /// When the certificates that Gateways show here end.
    #[must_use]
    pub fn certificate_ends(&self) -> BTreeSet<Ending> {
        let all = self
            .terminations()
            .flat_map(|(gateway, _, tls)| tls.certificates.iter().map(move |c| (gateway, c)));
        all.filter(|(_, c)| c.pair.validity.is_known())
            .map(|(gateway, c)| Ending {
                gateway: gateway.clone(),
                secret: c.secret.clone(),
                end: c.pair.validity.not_after,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PrivateKey, TlsSettings};

    const DAY: i64 = 86_400;

    fn termination(names: &[&[&str]], validity: Validity) -> TlsTermination {
        let one = |names: &&[&str]| ListenerCertificate {
            secret: ObjectKey::new("shop", "cert"),
            pair: Arc::new(KeyPair {
                chain: Vec::new(),
                key: PrivateKey::new(Vec::new()),
                names: names.iter().map(|n| (*n).into()).collect(),
                validity,
            }),
        };
        TlsTermination {
            certificates: names.iter().map(one).collect(),
            client_ca: None,
            alpn: Vec::new(),
            settings: TlsSettings::default(),
        }
    }

    /// E10: an expired certificate was on no screen.
    #[test]
    fn a_certificate_says_when_it_ends() {
        let of = |days: i64| Validity { not_before: 100 * DAY, not_after: (100 + days) * DAY };
        for (validity, day, wanted) in [
            // Renewed with a third left, as issuers do: nothing to say.
            (of(90), 100, None),
            (of(90), 160, None),
            (of(90), 172, None),
            (of(90), 173, Some(Fault::EndsSoon)),
            (of(90), 190, Some(Fault::EndsSoon)),
            (of(90), 191, Some(Fault::Ended)),
            (of(90), 99, Some(Fault::NotYet)),
            // Three weeks are enough for anybody.
            (of(3650), 100 + 3650 - 22, None),
            (of(3650), 100 + 3650 - 20, Some(Fault::EndsSoon)),
            (of(5), 103, None),
            (of(5), 105, Some(Fault::EndsSoon)),
            (Validity::default(), 105, None),
        ] {
            assert_eq!(validity.fault(day * DAY), wanted, "{validity:?} at day {day}");
        }
        let said = termination(&[&["a.example"]], of(90)).remarks(None, 191 * DAY);
        assert_eq!(said[0].message, "the certificate of Secret shop/cert ended at 1970-07-10T00:00:00Z");
    }

    /// E10: nor was one for other names.
    #[test]
    fn a_certificate_for_other_names_is_named() {
        for (names, hostname, fine) in [
            (&[&["a.example"][..]][..], "a.example", true),
            (&[&["A.Example"]], "a.example", true),
            (&[&["b.example"]], "a.example", false),
            (&[&["b.example"], &["a.example"]], "a.example", true),
            (&[&["*.example"]], "a.example", true),
            (&[&["*.example"]], "b.a.example", false),
            (&[&["*.a.example"]], "*.a.example", true),
            (&[&["b.a.example"]], "*.a.example", true),
            (&[&["a.example"]], "*.a.example", false),
            (&[&["*.example"]], "*.a.example", false),
            (&[&[]], "a.example", false),
        ] {
            let tls = termination(names, Validity::default());
            let said = tls.remarks(Some(&Hostname::parse(hostname).unwrap()), 0);
            assert_eq!(said.is_empty(), fine, "{names:?} {hostname}: {said:?}");
        }
        let tls = termination(&[&["b.example"]], Validity::default());
        let said = tls.remarks(Some(&Hostname::parse("a.example").unwrap()), 0);
        assert_eq!(
            said[0].message,
            "the certificate of Secret shop/cert is not for a.example (it has b.example)"
        );
    }
}
