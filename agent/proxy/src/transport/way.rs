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
/// After a handshake that failed there, 15008 is given this long before the application's port is asked once more.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// So long a pod is not asked again on a port of an application, when only 15008 answered as an agent does. What its agent
/// says of that has come to us by then.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Ports of pods that are remembered. Of more than that, some are asked again too early.
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
/// An agent that was replaced by one of the version before hands a tunnel to the application, or resets it, and nobody has
/// told us yet: 15008 is right. An agent that is being restarted lets go of what it has just accepted, or answers late, and
/// a policy may keep us from 15008: the same port is right, `again` if need be. So both are tried, and the first that stands
/// is taken. It is mutual TLS on both: whoever breaks the first has won nothing.
///
/// # Errors
/// That of the application's port.
pub async fn either<T>(
    own: impl Future<Output = Result<T, ProxyError>>,
    again: impl AsyncFnOnce() -> Result<T, ProxyError>,
    detour: impl AsyncFnOnce() -> Result<T, ProxyError>,
) -> Result<(T, bool), ProxyError> {
    let mut own = pin!(own);
    let failed = match tokio::time::timeout(DETOUR_AFTER, &mut own).await {
        Ok(Ok(done)) => return Ok((done, false)),
        Ok(Err(error)) if error.reason == Reason::NoCertificate => return Err(error),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    let mut own = pin!(async {
        let error = match failed {
            Some(error) => error,
            None => match own.await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            },
        };
        tokio::time::sleep(AGAIN_AFTER).await;
        again().await.map_err(|_| error)
    });
    let mut detour = pin!(detour());
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

/// Ports of pods that said they look for tunnels there, and did not: their agent has just been replaced by one of an older
/// version. Each port by itself: what a policy lets us in to says nothing of the pod's others, and to those that it closes
/// 15008 must not be the way around it.
#[derive(Debug, Default)]
pub struct Detours {
    until: RefCell<HashMap<SocketAddr, Instant>>,
}

impl Detours {
    /// Where this was wanted, only 15008 of its pod answered.
    pub fn note(&self, wanted: SocketAddr, now: Instant) {
        let mut until = self.until.borrow_mut();
        if until.len() >= REMEMBERED_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() < REMEMBERED_MAX {
            until.insert(wanted, now + REMEMBERED);
        }
    }

    /// 15008 of this pod takes no tunnels: its ports are asked again.
    pub fn forget(&self, pod: IpAddr) {
        self.until.borrow_mut().retain(|wanted, _| wanted.ip() != pod);
    }

    /// Whether to ask 15008 at once.
    #[must_use]
    pub fn has(&self, wanted: SocketAddr, now: Instant) -> bool {
        let mut until = self.until.borrow_mut();
        match until.get(&wanted) {
            Some(until) if *until > now => true,
            Some(_) => {
                until.remove(&wanted);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
