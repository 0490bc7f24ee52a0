//! TLS of HTTPS probes, at both ends. The agent has to see what is asked, so it is the server to the kubelet, which verifies
//! no certificate, and asks the application anew as a kubelet does: without verifying its certificate, and without one of its
//! own.

use super::{Line, Probing, denied};
use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    http::Prefixed,
    transport::{
        handshakes::{Moves, Socket},
        metered::Metered,
        tls::timed,
    },
};
use bytes::Bytes;
use rustls::{AlertDescription, ClientConfig, Error, InvalidMessage, ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;
use std::{
    io,
    sync::{Arc, OnceLock},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use weft_certs::{anonymous_client, anonymous_server};

/// All that is offered: requests are read and judged as HTTP/1.1. Kubelets' probes offer HTTP/2 as well, and take this.
const ALPN: &[u8] = b"http/1.1";

/// From a kubelet.
pub(super) type Downstream = server::TlsStream<Prefixed<Metered<Socket>>>;
/// To an application.
pub(super) type Application = client::TlsStream<Metered<Socket>>;

impl Moves for Downstream {
    fn socket(&mut self) -> &mut Socket {
        &mut self.get_mut().0.get_mut().0
    }
}

impl Line for Downstream {
    fn reset_on_close(&self) {
        self.get_ref().0.get_ref().0.reset_on_close();
    }
}

/// Settings for both ends, of the whole agent.
struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Made with a key of their own when the first HTTPS probe comes.
fn configs() -> Result<&'static Configs, ProxyError> {
    static CONFIGS: OnceLock<Configs> = OnceLock::new();
    if let Some(made) = CONFIGS.get() {
        return Ok(made);
    }
    let made = make().map_err(|detail| ProxyError {
        reason: Reason::NoCertificate,
        blame: Blame::Agent,
        retry: Retryable::No,
        detail: format!("TLS for HTTPS probes: {detail}"),
    })?;
    // Two workers may have made some at once: the first are kept.
    Ok(CONFIGS.get_or_init(|| made))
}

fn make() -> Result<Configs, String> {
    let server = anonymous_server(&[ALPN]).map_err(|error| error.to_string())?;
    // Not the mesh's own: applications may have TLS 1.2 only. A kubelet asks an address, and so names nobody.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = anonymous_client(provider, &[ALPN]).map_err(|error| error.to_string())?;
    Ok(Configs { server: Arc::new(server), client: Arc::new(client) })
}

/// Does the handshake with the kubelet, whose first bytes have been read.
pub(super) async fn accept(
    probing: &Probing<'_>,
    io: TcpStream,
    early: Bytes,
) -> Result<Downstream, ProxyError> {
    let server = configs()?.server.clone();
    let (worker, share) = (probing.worker, &probing.local.share);
    let accepting = async {
        let permit = share.handshake().await;
        let handshake = move |io| TlsAcceptor::from(server).accept(Prefixed::new(early, io));
        permit.during(worker.peers.handshakes.run(share.key().clone(), io, handshake)).await
    };
    let accepted = timed(accepting, &worker.shared.limits).await.map_err(|late| denied(late.detail))?;
    accepted.map_err(|error| match cause(&error) {
        Some(_) => denied(format!("no TLS that a kubelet speaks: {error}")),
        None => ProxyError {
            reason: Reason::ClientGone,
            blame: Blame::Downstream,
            retry: Retryable::No,
            detail: format!("gone during its TLS handshake: {error}"),
        },
    })
}

/// Does the handshake with the application. `None`: it answers with something other than TLS.
pub(super) async fn connect(probing: &Probing<'_>, io: TcpStream) -> Result<Option<Application>, ProxyError> {
    let client = configs()?.client.clone();
    let name = ServerName::IpAddress(probing.to.ip().into());
    let handshake = move |io| TlsConnector::from(client).connect(name, io);
    let handshakes = &probing.worker.peers.handshakes;
    let connecting = handshakes.run(probing.local.share.key().clone(), io, handshake);
    match timed(connecting, &probing.worker.shared.limits).await? {
        Ok(application) => Ok(Some(application)),
        Err(error) if is_no_tls(&error) => Ok(None),
        Err(error) => {
            Err(refusal(&error).unwrap_or_else(|| failed(format!("the application's TLS: {error}"))))
        }
    }
}

/// Why the application's TLS has failed, also after the handshake: by TLS 1.3 a client is done before its certificate, or
/// that it has none, is looked at. `None` if only the connection broke.
pub(super) fn refusal(error: &io::Error) -> Option<ProxyError> {
    cause(error).map(|why| match why {
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            failed("the application demands a client's certificate, and kubelets have none".to_owned())
        }
        why => failed(format!("the application's TLS: {why}")),
    })
}

/// A probe of an application that cannot be asked by TLS.
pub(super) fn failed(detail: String) -> ProxyError {
    ProxyError { reason: Reason::PeerIdentity, blame: Blame::Upstream, retry: Retryable::No, detail }
}

fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn is_no_tls(error: &io::Error) -> bool {
    let why = cause(error);
    matches!(
        why,
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
        ))
    )
}
