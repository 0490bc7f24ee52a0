//! TCP connections in the source's network namespace.

use crate::{
    context::{Limits, Sockets},
    error::{Blame, ProxyError, Reason, Retryable},
};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream};

/// Connects to `to`, from `from` if given (a pod's own address, or the client's for inbound traffic).
///
/// # Errors
/// `ConnectFailed` or `ConnectTimeout`, both safe to retry elsewhere: no byte was sent.
pub async fn tcp(
    sockets: &dyn Sockets,
    from: Option<IpAddr>,
    to: SocketAddr,
    limits: &Limits,
) -> Result<TcpStream, ProxyError> {
    let reset = || failed(Reason::ConnectFailed, format!("connect to {to}: accepted, and reset at once"));
    tcp_unless_reset(sockets, from, to, limits).await?.ok_or_else(reset)
}

/// The same, which tells a connection that was refused (an error) from one that was accepted and reset before we had a look
/// at it (`None`): somebody is there, and does not want to talk to us like this.
///
/// # Errors
/// As [`tcp`].
pub async fn tcp_unless_reset(
    sockets: &dyn Sockets,
    from: Option<IpAddr>,
    to: SocketAddr,
    limits: &Limits,
) -> Result<Option<TcpStream>, ProxyError> {
    let deadline = Duration::from_millis(limits.connect_timeout_ms);
    let connecting = async { prepare(sockets, from, to)?.connect(to).await };
    let (reason, why) = match tokio::time::timeout(deadline, connecting).await {
        Ok(Ok(stream)) => return Ok(Some(stream)),
        Ok(Err(error)) => match error.kind() {
            // A RST in answer to the SYN would be ConnectionRefused.
            io::ErrorKind::ConnectionReset => return Ok(None),
            io::ErrorKind::ConnectionRefused => {
                (Reason::ConnectFailed, "refused, nothing listens there".to_owned())
            }
            _ => (Reason::ConnectFailed, error.to_string()),
        },
        Err(_) => (Reason::ConnectTimeout, format!("no answer within {deadline:?}")),
    };
    Err(failed(reason, format!("connect to {to}: {why}")))
}

fn prepare(sockets: &dyn Sockets, from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpSocket> {
    let socket = socket2::Socket::from(sockets.tcp(to.is_ipv6())?);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(ip) = from {
        // The port is chosen by connect, per 4-tuple: bind alone would take one of the 28,000 ephemeral ports of
        // the address for itself.
        setsockopt(&socket.as_fd(), IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(ip, 0).into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn failed(reason: Reason, detail: String) -> ProxyError {
    ProxyError { reason, blame: Blame::Upstream, retry: Retryable::Yes, detail }
}

/// Makes a close of `stream` an RST, so that a refused connection looks refused and not ended.
pub fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is already gone.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// IPv4 addresses as such, also when a dual-stack socket shows them as v4-mapped.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
