//! One TLS connection as one channel: when it ends, the channel ends with it, so that the next one may reach another
//! replica.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use weft_certs::{ALPN_H2, HandshakeFailure, TrustBundle, crypto_provider};
use zeroize::Zeroizing;

/// The largest token: they are 1–2 KB.
const TOKEN_MAX: u64 = 64 * 1024;

/// Why there is no connection, or no call. All are worth a retry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("{address}: no answer within {within:?}")]
    Late { address: SocketAddr, within: Duration },
    #[error("{address}: {failure}")]
    Handshake { address: SocketAddr, failure: HandshakeFailure },
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    #[error("{address}: HTTP/2: {reason}")]
    Http { address: SocketAddr, reason: String },
    #[error("the token in {path}: {reason}")]
    Token { path: String, reason: String },
}

/// How long one SYN is waited for. A controller's Service leads to a replica that has just gone for a moment, where nobody
/// answers, and to the other one with the next connection.
const SYN_PATIENCE: Duration = Duration::from_secs(1);

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    loop {
        if let Ok(connected) = timeout(SYN_PATIENCE, TcpStream::connect(address)).await {
            return connected;
        }
    }
}

pub(crate) async fn connect(
    address: SocketAddr,
    roots: &TrustBundle,
    server_name: &str,
    within: Duration,
) -> Result<Channel, ConnectError> {
    let stream = timeout(within, dial(address)).await.map_err(|_| ConnectError::Late { address, within })?;
    let stream = stream.map_err(|source| ConnectError::Tcp { address, source })?;
    over((stream, address), roots, server_name, within).await
}

/// TLS and HTTP/2 over a connection to `address`.
pub(crate) async fn over(
    (stream, address): (TcpStream, SocketAddr),
    roots: &TrustBundle,
    server_name: &str,
    within: Duration,
) -> Result<Channel, ConnectError> {
    let late = |_| ConnectError::Late { address, within };
    let tls = TlsConnector::from(tls_config(roots)?);
    let name = ServerName::try_from(server_name.to_owned()).map_err(|e| ConnectError::Tls(e.to_string()))?;
    // Only makes small messages faster.
    let _ = stream.set_nodelay(true);
    let stream = timeout(within, tls.connect(name, stream)).await.map_err(late)?;
    let stream =
        stream.map_err(|e| ConnectError::Handshake { address, failure: HandshakeFailure::from_io(&e) })?;
    let http = |reason: &dyn std::fmt::Display| ConnectError::Http { address, reason: reason.to_string() };
    // The scheme says http because TLS is made here: tonic is built without its own.
    let endpoint = Endpoint::from_shared(format!("http://{server_name}")).map_err(|e| http(&e))?;
    let origin = format!("https://{server_name}").parse().map_err(|e| http(&e))?;
    let endpoint = endpoint
        .origin(origin)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().take();
        async move {
            stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended"))
        }
    });
    let channel = timeout(within, endpoint.connect_with_connector(connector)).await.map_err(late)?;
    channel.map_err(|e| http(&e))
}

fn tls_config(roots: &TrustBundle) -> Result<Arc<ClientConfig>, ConnectError> {
    let mut store = RootCertStore::empty();
    // Every root of a bundle has been read before, so none is skipped.
    store.add_parsable_certificates(roots.roots().iter().cloned());
    let builder = ClientConfig::builder_with_provider(crypto_provider()).with_protocol_versions(&[&TLS13]);
    let mut config = builder
        .map_err(|e| ConnectError::Tls(e.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The `authorization` header, from the token's file as it is now: the kubelet replaces it.
pub(super) async fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, ConnectError> {
    let bad = |reason: String| ConnectError::Token { path: path.display().to_string(), reason };
    let size = tokio::fs::metadata(path).await.map_err(|e| bad(e.to_string()))?.len();
    if size > TOKEN_MAX {
        return Err(bad(format!("it has {size} bytes, which is no token")));
    }
    let token = tokio::fs::read_to_string(path).await.map_err(|e| bad(e.to_string()))?;
    let token = Zeroizing::new(token);
    let header = Zeroizing::new(format!("Bearer {}", token.trim()));
    let mut value: MetadataValue<Ascii> =
        header.parse().map_err(|_| bad("it holds characters that no token has".to_owned()))?;
    // Never printed, never put into the table that HTTP/2 keeps.
    value.set_sensitive(true);
    Ok(value)
}
