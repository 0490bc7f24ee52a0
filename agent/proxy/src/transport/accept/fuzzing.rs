//! What a tunnel's client asks for, for the fuzz target `hbone`.

use super::{answer, destination, http2};
use bytes::Bytes;
use http::StatusCode;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};

/// The pod's address.
pub const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
/// Room in each pipe.
const PIPE: usize = 64 * 1024;
/// The clock stands still while anything can go on.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream, and where it would be let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// As the client wrote it.
    pub method: String,
    /// As the client wrote it, if there is one.
    pub authority: Option<String>,
    /// Where to.
    pub to: Result<SocketAddr, StatusCode>,
}

/// Accepts the streams of a tunnel that sends `bytes`, to [`LOCAL`], and on an application's own port only there. Run it
/// on a runtime whose clock is paused.
pub async fn connects(bytes: &[u8], only: Option<u16>) -> Vec<Connect> {
    let (mut client, io) = duplex(PIPE);
    let mut seen = Vec::new();
    let serving = async {
        let Ok(mut connection) = http2().handshake::<_, Bytes>(io).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let to = destination(&request, LOCAL, only);
            let authority = request.uri().authority().map(ToString::to_string);
            seen.push(Connect { method: request.method().to_string(), authority, to });
            answer(&mut respond, to.err().unwrap_or(StatusCode::OK), None);
        }
    };
    let sending = async {
        // The server may have hung up.
        let _ = client.write_all(bytes).await;
        let mut answers = Vec::new();
        while let Ok(Ok(1..)) = timeout(PATIENCE, client.read_buf(&mut answers)).await {}
        drop(client);
    };
    let both = async { tokio::join!(serving, sending) };
    timeout(10 * PATIENCE, both).await.expect("the tunnel hangs");
    seen
}
