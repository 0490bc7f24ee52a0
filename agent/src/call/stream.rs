//! Streams of numbered messages that are echoed one by one: over TCP as they are, and as gRPC sends them.

use super::{CallArgs, Failed};
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{Method, Request, StatusCode, Version};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// One connection; each message is its number in eight bytes.
pub(super) struct Tcp(TcpStream);

impl Tcp {
    pub(super) async fn connect(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    pub(super) async fn message(&mut self, number: u64) -> Result<(), Failed> {
        self.0.write_all(&number.to_be_bytes()).await.map_err(Failed::broken)?;
        let mut echo = [0; 8];
        self.0.read_exact(&mut echo).await.map_err(Failed::broken)?;
        same(number, &echo).map_err(Failed::broken)
    }
}

/// One bidirectional call on a connection of its own, HTTP/2 with prior knowledge.
pub(super) struct Grpc {
    send: SendStream<Bytes>,
    receive: RecvStream,
    read: BytesMut,
}

/// A message's head: not compressed, and how long it is.
const PREFIX: usize = 5;

impl Grpc {
    /// Opens the call. The server answers at once, or with the first message.
    pub(super) async fn open(args: &CallArgs, target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let (answer, send) = sender.ready().await?.send_request(request(args, target)?, false)?;
        let (head, receive) = answer.await?.into_parts();
        ensure!(head.status == StatusCode::OK, "the call was answered with {}", head.status);
        if let Some(status) = head.headers.get("grpc-status") {
            bail!("the call ended at once with gRPC status {status:?}");
        }
        Ok(Self { send, receive, read: BytesMut::new() })
    }

    pub(super) async fn message(&mut self, number: u64) -> Result<(), Failed> {
        let mut message = BytesMut::with_capacity(PREFIX + 8);
        message.put_u8(0);
        message.put_u32(8);
        message.put_u64(number);
        // Small, and answered before the next one: no window to wait for.
        self.send.send_data(message.freeze(), false).map_err(Failed::broken)?;
        while self.read.len() < PREFIX + 8 {
            let Some(data) = self.receive.data().await else {
                let trailers = self.receive.trailers().await.map_err(Failed::broken)?.unwrap_or_default();
                let status = trailers.get("grpc-status");
                return Err(Failed::broken(anyhow!("the call ended with gRPC status {status:?}")));
            };
            let data = data.map_err(Failed::broken)?;
            // What cannot be given back belongs to a stream that has ended.
            let _ = self.receive.flow_control().release_capacity(data.len());
            self.read.extend_from_slice(&data);
        }
        let echo = self.read.split_to(PREFIX + 8);
        same(number, &echo[PREFIX..]).map_err(Failed::broken)
    }
}

fn request(args: &CallArgs, target: SocketAddr) -> Result<Request<()>> {
    let authority = args.host.clone().unwrap_or_else(|| target.to_string());
    let mut request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{authority}{}", args.path()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "weft-call");
    for (name, value) in args.headers()? {
        request = request.header(name, value);
    }
    Ok(request.body(())?)
}

fn same(number: u64, echo: &[u8]) -> Result<()> {
    ensure!(echo == number.to_be_bytes(), "message {number} came back as {echo:?}");
    Ok(())
}
