//! The border between HTTP (and L4) and the transport: "connect me to this endpoint on behalf of this source".

use crate::{context::Source, error::ProxyError};
use std::{net::SocketAddr, rc::Rc};
use weft_core::{config::Endpoint, model::SpiffeId};

/// An established way to an endpoint: plain TCP, TLS to the backend, or a stream of an HBONE tunnel.
pub struct Upstream<S> {
    /// Bytes.
    pub io: S,
    /// What is known about it.
    pub info: UpstreamInfo,
}

/// What is known about an upstream connection.
#[derive(Clone, Debug)]
pub struct UpstreamInfo {
    /// The endpoint.
    pub addr: SocketAddr,
    /// Who answered, verified; `None` for plaintext.
    pub identity: Option<Rc<SpiffeId>>,
}

/// Opens connections to endpoints. HBONE for enrolled endpoints (never plaintext to them), else plain TCP from the
/// source's own address.
pub trait Dial: 'static {
    /// What it gives.
    type Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static;

    /// Connects within the deadline of [`crate::context::Limits`]. `bulk` asks for a tunnel of its own (opaque
    /// streams that may carry much).
    fn dial(
        &self,
        source: &Rc<Source>,
        endpoint: &Endpoint,
        bulk: bool,
    ) -> impl Future<Output = Result<Upstream<Self::Io>, ProxyError>>;
}
