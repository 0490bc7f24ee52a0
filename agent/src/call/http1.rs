//! HTTP/1.1.

use super::{Answer, CallArgs, Failed};
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// A connection, and whether the server has said that it closes it.
pub(super) struct Http1 {
    sender: SendRequest<Empty<Bytes>>,
    told: bool,
}

impl Http1 {
    pub(super) async fn connect(target: SocketAddr) -> Result<Self> {
        Ok(Self { sender: connect(target).await?, told: false })
    }

    /// Whether the next request needs another connection: `Some(true)` when nobody had said so.
    pub(super) fn is_over(&self) -> Option<bool> {
        (self.told || self.sender.is_closed()).then_some(!self.told)
    }

    pub(super) async fn request(
        &mut self,
        args: &CallArgs,
        target: SocketAddr,
        number: u64,
    ) -> Result<Answer, Failed> {
        let request = request(args, target, number).map_err(Failed::broken)?;
        self.sender.ready().await.map_err(Failed::broken)?;
        let response = self.sender.send_request(request).await.map_err(Failed::broken)?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        self.told = header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        let service = header("x-service").unwrap_or("-").to_owned();
        let code = response.status().as_u16();
        response.into_body().collect().await.map_err(Failed::broken)?;
        Ok(Answer::Http { code, service })
    }
}

fn request(args: &CallArgs, target: SocketAddr, number: u64) -> Result<Request<Empty<Bytes>>> {
    let mut request = Request::get(args.path())
        .header("host", args.host.clone().unwrap_or_else(|| target.to_string()))
        .header("user-agent", "weft-call");
    for (name, value) in args.headers()? {
        request = request.header(name, value);
    }
    if let Some(prefix) = &args.number {
        request = request.header(crate::echo::NUMBER, format!("{prefix}-{number}"));
    }
    Ok(request.body(Empty::new())?)
}

pub(crate) async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
