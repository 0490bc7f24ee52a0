//! Mutual TLS handshakes with mesh identities.

use super::{handshakes::Socket, metered::Metered};
use crate::{
    context::{Limits, Source},
    error::{Blame, ProxyError, Reason, Retryable},
    share::Share,
    worker::Worker,
};
use rustls_pki_types::ServerName;
use std::{net::IpAddr, rc::Rc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use weft_certs::{Alpn, Bond, HandshakeFailure, IdentityHandle, PeerSet, Unbound, peer_identity};
use weft_core::model::SpiffeId;

/// What TLS may hold unsent: large enough that one write of the tunnel becomes one batch of records.
const TLS_BUFFER: usize = 1 << 20;

/// Whom a handshake must find.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Who must answer.
    pub identity: &'a SpiffeId,
    /// Where; keys session resumption only.
    pub ip: IpAddr,
    /// What is to be spoken.
    pub alpn: Alpn,
}

/// Connects as `source` to whoever is `expected`, and nobody else. The hostname is not compared and no SNI is
/// sent: the listener is the pod.
///
/// # Errors
/// `NoCertificate` without one of our own, `PeerIdentity` when the other side is somebody else, `ConnectTimeout`.
pub async fn connect(
    worker: &Worker,
    source: &Source,
    expected: Expected<'_>,
    io: TcpStream,
) -> Result<(client::TlsStream<Metered<Socket>>, Bond), ProxyError> {
    let peers = PeerSet::one(expected.identity.clone());
    let config = source.identity.as_ref().and_then(|identity| identity.client_config(&peers, expected.alpn));
    let config = config.ok_or_else(|| no_certificate(&source.workload.identity))?;
    let name = ServerName::IpAddress(expected.ip.into());
    let handshake = move |io| TlsConnector::from(config).connect(name, io);
    let handshake = worker.peers.handshakes.run(source.share.clone(), io, handshake);
    let mut stream =
        timed(handshake, &worker.shared.limits).await?.map_err(|error| failed(Blame::Upstream, &error))?;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let identity = source.identity.as_ref().ok_or_else(|| no_certificate(&source.workload.identity))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let bond = identity.bond(chain).map_err(|error| ended(Blame::Upstream, &error))?;
    Ok((stream, bond))
}

/// Accepts as `identity`; gives the connection and who is at the other end.
///
/// # Errors
/// As [`connect`]; a client without an acceptable certificate is `PeerIdentity`.
pub async fn accept(
    worker: &Worker,
    identity: &IdentityHandle,
    io: TcpStream,
    share: &Rc<Share>,
) -> Result<(server::TlsStream<Metered<Socket>>, Rc<SpiffeId>, Bond), ProxyError> {
    let config = identity.server_config().ok_or_else(|| no_certificate(identity.identity()))?;
    let accepting = async {
        // A connection that says nothing needs no turn.
        io.readable().await?;
        let permit = share.handshake().await;
        let handshake = move |io| TlsAcceptor::from(config).accept(io);
        permit.during(worker.peers.handshakes.run(share.key().clone(), io, handshake)).await
    };
    let mut stream =
        timed(accepting, &worker.shared.limits).await?.map_err(|error| failed(Blame::Downstream, &error))?;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let peer =
        stream.get_ref().1.peer_certificates().and_then(|chain| peer_identity(chain)).ok_or_else(|| {
            ProxyError {
                reason: Reason::PeerIdentity,
                blame: Blame::Downstream,
                retry: Retryable::No,
                detail: "the client's certificate carries no SPIFFE identity".to_owned(),
            }
        })?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let bond = identity.bond(chain).map_err(|error| ended(Blame::Downstream, &error))?;
    Ok((stream, Rc::new(peer), bond))
}

/// Bounds a handshake.
///
/// # Errors
/// `ConnectTimeout`.
pub(crate) async fn timed<F: Future>(handshake: F, limits: &Limits) -> Result<F::Output, ProxyError> {
    let deadline = Duration::from_millis(limits.handshake_timeout_ms);
    tokio::time::timeout(deadline, handshake).await.map_err(|_| ProxyError {
        reason: Reason::ConnectTimeout,
        blame: Blame::Upstream,
        retry: Retryable::Yes,
        detail: format!("TLS handshake not done within {deadline:?}"),
    })
}

fn failed(blame: Blame, error: &std::io::Error) -> ProxyError {
    // A peer that dropped the connection may be restarting: another endpoint may do. One that is somebody else
    // will stay somebody else, but another endpoint of the same Service may be who it should be.
    ProxyError {
        reason: Reason::PeerIdentity,
        blame,
        retry: Retryable::Yes,
        detail: HandshakeFailure::from_io(error).to_string(),
    }
}

/// A handshake that resumed a session of certificates that are not good any more. The next one resumes nothing.
fn ended(blame: Blame, error: &Unbound) -> ProxyError {
    ProxyError { reason: Reason::PeerIdentity, blame, retry: Retryable::Yes, detail: error.to_string() }
}

/// The identity that was needed has no certificate yet.
pub(crate) fn no_certificate(of: &SpiffeId) -> ProxyError {
    ProxyError {
        reason: Reason::NoCertificate,
        blame: Blame::Agent,
        retry: Retryable::No,
        detail: format!("{of} has no certificate yet"),
    }
}
