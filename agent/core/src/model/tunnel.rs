//! Where tunnels to a pod arrive.

use super::{Labels, Str};
use std::{net::IpAddr, sync::Arc};

/// Annotation of a pod in files: with `15008`, tunnels come to that port only. For pods behind an agent that is not ours.
/// In a cluster the pod's agent says where they may come, and the annotation has no meaning.
pub const TUNNEL_PORT_ANNOTATION: &str = "weft.dev/tunnel-port";
/// Begins the annotations that leave a part of a pod's inbound traffic alone.
const EXCLUDE_INBOUND: &str = "weft.dev/exclude-inbound-";

/// More excluded ports than this are not told of: every agent keeps them for every pod.
const EXCEPT_MAX: usize = 64;

/// A pod's capture, as its node's agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// The pod's `metadata.uid`.
    pub uid: Str,
    /// Where tunnels to it may come.
    pub tunnel: TunnelPort,
    /// The addresses that the agent read inside the pod's network namespace. Empty: it has not said (an agent of the
    /// version before, or one that has just started).
    pub addresses: Vec<IpAddr>,
}

/// Where tunnels to a captured pod may come.
///
/// On the application's own port a NetworkPolicy decides about a tunnel as it would about the application's connection. A
/// pod's agent must look for them there: ztunnel does not, and neither do agents that do not say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TunnelPort {
    /// To 15008 only.
    #[default]
    Hbone,
    /// To the port that the application is called on.
    Application {
        /// But for these, sorted: the pod's rules leave them alone, so that a tunnel would meet the application itself.
        except: Arc<[u16]>,
    },
}

impl TunnelPort {
    /// On the application's own port, but for these; with more than 64 of them, [`TunnelPort::Hbone`].
    #[must_use]
    pub fn application(except: impl IntoIterator<Item = u16>) -> Self {
        let mut except: Vec<u16> = except.into_iter().collect();
        except.sort_unstable();
        except.dedup();
        if except.len() > EXCEPT_MAX { Self::Hbone } else { Self::Application { except: except.into() } }
    }

    /// Of a pod in files, where no agent says: as pods of ours are, unless an annotation tells otherwise. What is excluded
    /// is not looked at closely, as its agent does: files know no NetworkPolicies, and 15008 is right for every port.
    #[must_use]
    pub fn in_files(annotations: &Labels) -> Self {
        let only_hbone = |(name, value): (&Str, &Str)| {
            (&**name == TUNNEL_PORT_ANNOTATION && value.trim() == "15008")
                || name.starts_with(EXCLUDE_INBOUND)
        };
        if annotations.iter().any(only_hbone) { Self::Hbone } else { Self::application([]) }
    }

    /// Whether a tunnel for this port of the application may come to that port itself.
    #[must_use]
    pub fn is_application(&self, port: u16) -> bool {
        match self {
            Self::Hbone => false,
            Self::Application { except } => except.binary_search(&port).is_err(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_come_to_the_applications_port_where_they_are_looked_for() {
        let check = |tunnel: TunnelPort, port: u16, expected: bool| {
            assert_eq!(tunnel.is_application(port), expected, "{tunnel:?} {port}");
        };
        check(TunnelPort::default(), 8080, false);
        check(TunnelPort::application([]), 8080, true);
        check(TunnelPort::application([9100, 22]), 8080, true);
        check(TunnelPort::application([9100, 22]), 22, false);
        check(TunnelPort::application([9100, 22]), 9100, false);
        check(TunnelPort::application(1..=64), 8080, true);
        check(TunnelPort::application(1..=65), 8080, false);
    }

    #[test]
    fn in_files_annotations_decide() {
        let check = |annotations: &[(&str, &str)], expected: TunnelPort| {
            let annotations: Labels = annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            assert_eq!(TunnelPort::in_files(&annotations), expected, "{annotations:?}");
        };
        check(&[], TunnelPort::application([]));
        check(&[("weft.dev/tunnel-port", "15008")], TunnelPort::Hbone);
        check(&[("weft.dev/tunnel-port", "8080")], TunnelPort::application([]));
        check(&[("weft.dev/exclude-inbound-ports", "9100")], TunnelPort::Hbone);
        check(&[("weft.dev/exclude-inbound-cidrs", "10.0.0.0/8")], TunnelPort::Hbone);
        check(&[("weft.dev/exclude-outbound-ports", "5432")], TunnelPort::application([]));
    }
}
