//! To which port of a pod a tunnel goes: the application's own, where NetworkPolicies decide as without a mesh, or 15008.

use crate::{
    context::{ShareKey, Source},
    error::{ProxyError, Reason},
};
use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::{Duration, Instant},
};
use weft_certs::Alpn;
use weft_core::{config::Config, model::Workload};

/// What listens on the application's port has this long to answer as an agent does; then 15008 is asked too.
const DETOUR_AFTER: Duration = Duration::from_secs(1);
/// So long a pod is not asked again on its applications' ports, when only 15008 answered as an agent does. What its agent
/// says of that has come to us by then.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Pods that are remembered. Of more than that, some are asked again too early.
const REMEMBERED_MAX: usize = 1024;

/// Where tunnels for a stream go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// To this port of the application.
    Application(u16),
    /// To 15008.
    Hbone,
}

impl Way {
    /// What its ClientHello offers.
    #[must_use]
    pub const fn alpn(self) -> Alpn {
        match self {
            Self::Application(_) => Alpn::Weft,
            Self::Hbone => Alpn::H2,
        }
    }
}

/// Decides, for a stream of `source` to `to`, which is in the pod `workload`.
#[must_use]
pub fn way(config: &Config, source: &Source, workload: &Workload, to: SocketAddr) -> Way {
    if !workload.tunnel.is_application(to.port()) {
        return Way::Hbone;
    }
    // Agents look for tunnels only where they may come from, see `crate::arrival`.
    let is_expected = match source.share {
        ShareKey::Gateway(_) => !config.nodes.is_empty(),
        // A pod that leaves has told already that it does.
        ShareKey::Pod(_) => source.bind_ip(to.is_ipv6()).is_some_and(|from| {
            config.workloads.get(&from).is_some_and(|own| own.enrolled && own.pod == source.workload.pod)
        }),
    };
    // A pod's call to itself stays inside it and is not captured: on its own port it would meet the application.
    let is_itself = source.workload.ips.contains(&to.ip());
    if is_expected && !is_itself { Way::Application(to.port()) } else { Way::Hbone }
}

/// The handshake on the application's port; on 15008 if that fails, or as well if it takes long. The second value is whether
/// it came by 15008.
///
/// An agent that was replaced by one of the version before hands a tunnel to the application, and nobody has told us yet. As
/// well, not instead: an agent that is being restarted answers late, and a policy may keep us from 15008. It is mutual TLS
/// on both, so whoever breaks the first has won nothing.
///
/// # Errors
/// That of the application's port.
pub async fn either<T>(
    own: impl Future<Output = Result<T, ProxyError>>,
    detour: impl AsyncFnOnce() -> Result<T, ProxyError>,
) -> Result<(T, bool), ProxyError> {
    let mut own = pin!(own);
    let failed = match tokio::time::timeout(DETOUR_AFTER, &mut own).await {
        Ok(Ok(done)) => return Ok((done, false)),
        Ok(Err(error)) if error.reason == Reason::NoCertificate => return Err(error),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    let mut detour = pin!(detour());
    if let Some(error) = failed {
        return detour.await.map(|done| (done, true)).map_err(|_| error);
    }
    tokio::select! {
        done = &mut own => match done {
            Ok(done) => Ok((done, false)),
            Err(error) => detour.await.map(|done| (done, true)).map_err(|_| error),
        },
        done = &mut detour => match done {
            Ok(done) => Ok((done, true)),
            Err(_) => own.await.map(|done| (done, false)),
        },
    }
}

/// Pods that said they look for tunnels on their applications' ports, and did not: their agent has just been replaced by one
/// of an older version.
#[derive(Debug, Default)]
pub struct Detours {
    until: RefCell<HashMap<IpAddr, Instant>>,
}

impl Detours {
    /// Only 15008 of this pod answered.
    pub fn note(&self, pod: IpAddr, now: Instant) {
        let mut until = self.until.borrow_mut();
        if until.len() >= REMEMBERED_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() < REMEMBERED_MAX {
            until.insert(pod, now + REMEMBERED);
        }
    }

    /// Whether to ask 15008 at once.
    #[must_use]
    pub fn has(&self, pod: IpAddr, now: Instant) -> bool {
        let mut until = self.until.borrow_mut();
        match until.get(&pod) {
            Some(until) if *until > now => true,
            Some(_) => {
                until.remove(&pod);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
