//! TCP connections in the source's network namespace.

use crate::{
    context::{Limits, Sockets},
    error::{Blame, ProxyError, Reason, Retryable},
};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpStream;

/// The odd ones of these ports are for connections to the application in its client's name, see [`to_application`]. They are
/// above those that Linux clients take by themselves (32768 to 60999), and applications do not listen there. Odd, because a
/// client whose range was made wider (`net.ipv4.ip_local_port_range`) takes ports as even or odd as its lower end first.
const CLIENT_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;
/// From one choice to the next. It has no divisor in common with their number, 2268: each port comes once in a round, and
/// ports of connections that live long do not lie side by side.
const STRIDE: u32 = 1009;
/// Ports that are tried before the kernel may choose any.
const PORTS_TRIED: usize = 8;
/// How long one port is tried. The way is within a pod and takes microseconds; only a port that the client itself has in
/// use gets no answer, and an application whose accept queue is full (which is then asked again).
const PORT_PATIENCE: Duration = Duration::from_millis(250);

/// Not from 0: an agent before this one may have connections that live.
static NEXT_PORT: LazyLock<AtomicU32> = LazyLock::new(|| {
    let draw = RandomState::new().hash_one(0) >> 32;
    AtomicU32::new(u32::try_from(draw).unwrap_or_default())
});

/// Connects to `to`, from `from` if given (a pod's own address).
///
/// # Errors
/// `ConnectFailed` or `ConnectTimeout`, both safe to retry elsewhere: no byte was sent.
pub async fn tcp(
    sockets: &dyn Sockets,
    from: Option<IpAddr>,
    to: SocketAddr,
    limits: &Limits,
) -> Result<TcpStream, ProxyError> {
    unless_reset(to, tcp_unless_reset(sockets, from, to, limits).await?)
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
    let from = from.map(|ip| SocketAddr::new(ip, 0));
    in_time(to, limits, Reason::ConnectFailed, async { established(begin(sockets, from, to)?).await }).await
}

fn unless_reset(to: SocketAddr, connected: Option<TcpStream>) -> Result<TcpStream, ProxyError> {
    let reset = || failed(Reason::ConnectFailed, format!("connect to {to}: accepted, and reset at once"));
    connected.ok_or_else(reset)
}

/// Connects to the application at `to` in its client's name: from the address `client`.
///
/// The client's own connection, captured as it is, has the same addresses and the application's port too, and both live in
/// one namespace: with the client's port as well, the two would be one to the kernel, which does not see such a conflict
/// when it chooses a port, and the connection hangs. Nor may the client, later, choose a port that is used here. So the ports
/// are those that clients rarely take. To one that a connection in this client's name has, the kernel says so; to one that
/// the client itself has, the pod's rules say nothing, to nobody's harm. Then the next is tried.
///
/// # Errors
/// As [`tcp`]; `NotListening` where the pod's kernel refuses.
pub async fn to_application(
    sockets: &dyn Sockets,
    client: IpAddr,
    to: SocketAddr,
    limits: &Limits,
) -> Result<TcpStream, ProxyError> {
    let begin = |port| begin(sockets, Some(SocketAddr::new(client, port)), to);
    // Within a pod a handshake is nearly always over when connect returns. Timers, of which most would be the worker's next,
    // would each wake it once more.
    let mut first = Some(match begin(next_port()) {
        Ok(Begun::Established(stream)) => return Ok(stream),
        other => other,
    });
    let connecting = async {
        for _ in 0..PORTS_TRIED {
            let begun = first.take().unwrap_or_else(|| begin(next_port()));
            let trying = async { established(begun?).await };
            match tokio::time::timeout(PORT_PATIENCE, trying).await {
                Err(_) => {}
                Ok(Err(e))
                    if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
                Ok(connected) => return connected,
            }
        }
        established(begin(0)?).await
    };
    // Nobody but the application's own kernel can have refused.
    unless_reset(to, in_time(to, limits, Reason::NotListening, connecting).await?)
}

fn next_port() -> u16 {
    port(NEXT_PORT.fetch_add(STRIDE, Ordering::Relaxed))
}

fn port(draw: u32) -> u16 {
    let (first, last) = (u32::from(*CLIENT_PORTS.start()), u32::from(*CLIENT_PORTS.end()));
    let odd = last.div_ceil(2) - first.div_ceil(2);
    let port = (first | 1) + 2 * (draw % odd);
    u16::try_from(port).unwrap_or(*CLIENT_PORTS.end())
}

/// `None` if it was accepted, and reset at once. `refusal`: what a RST in answer to the SYN means.
async fn in_time(
    to: SocketAddr,
    limits: &Limits,
    refusal: Reason,
    connecting: impl Future<Output = io::Result<TcpStream>>,
) -> Result<Option<TcpStream>, ProxyError> {
    let deadline = Duration::from_millis(limits.connect_timeout_ms);
    let (reason, why) = match tokio::time::timeout(deadline, connecting).await {
        Ok(Ok(stream)) => return Ok(Some(stream)),
        Ok(Err(error)) => match error.kind() {
            // A RST in answer to the SYN would be ConnectionRefused.
            io::ErrorKind::ConnectionReset => return Ok(None),
            io::ErrorKind::ConnectionRefused => (refusal, "refused, nothing listens there".to_owned()),
            _ => (Reason::ConnectFailed, error.to_string()),
        },
        Err(_) => (Reason::ConnectTimeout, format!("no answer within {deadline:?}")),
    };
    Err(failed(reason, format!("connect to {to}: {why}")))
}

/// A connection whose SYN is sent.
enum Begun {
    /// Answered already.
    Established(TcpStream),
    /// Or refused, which [`established`] tells.
    Awaited(TcpStream),
}

fn begin(sockets: &dyn Sockets, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<Begun> {
    let socket = prepare(sockets, from, to)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let answered = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    Ok(if answered { Begun::Established(stream) } else { Begun::Awaited(stream) })
}

async fn established(begun: Begun) -> io::Result<TcpStream> {
    match begun {
        Begun::Established(stream) => Ok(stream),
        Begun::Awaited(stream) => {
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(stream), Err)
        }
    }
}

fn prepare(sockets: &dyn Sockets, from: Option<SocketAddr>, to: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::from(sockets.tcp(to.is_ipv6())?);
    if let Some(from) = from {
        if from.port() == 0 {
            // The port is chosen by connect, per 4-tuple: bind alone would take one of the 28,000 ephemeral ports of
            // the address for itself.
            setsockopt(&socket.as_fd(), IpBindAddressNoPort, &true)?;
        } else {
            // The same for a port that we choose: with this, bind shares it among connections to other destinations (and
            // with a listener of the application's), and connect says whether the 4-tuple is free.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&from.into())?;
    }
    Ok(socket)
}

fn failed(reason: Reason, detail: String) -> ProxyError {
    ProxyError { reason, blame: Blame::Upstream, retry: Retryable::Yes, detail }
}

/// A connection that leaves the mesh is asked for a sign of life after this silence…
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
/// …and so often after it,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// until so many were not answered.
const KEEPALIVE_PROBES: u32 = 5;

/// Has the kernel look after a connection that no tunnel looks after. The application's own keepalive reaches no further
/// than our end of its connection, so what it is there for is ours to do: a peer that vanished is noticed, and NAT on the
/// way does not forget a connection that is quiet (the shortest usual patience is four minutes).
pub(crate) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::TestSockets;
    use std::{collections::BTreeSet, task::Poll};

    #[test]
    fn each_odd_port_comes_once_in_a_round() {
        let all: BTreeSet<u16> = CLIENT_PORTS.filter(|port| port % 2 == 1).collect();
        let round = (0_u32..).step_by(STRIDE as usize).take(all.len());
        assert_eq!(round.map(port).collect::<BTreeSet<u16>>(), all);
    }

    /// Two timers, and a wake-up of the worker for them, were a part of every new connection's cost.
    #[tokio::test]
    async fn an_application_that_listens_is_reached_without_waiting_and_one_that_does_not_is_told_of() {
        let (sockets, limits) = (TestSockets::default(), Limits::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let client = to.ip();
        // Now and then the kernel leaves a handshake to another thread of its own: not every time.
        let mut at_once = None;
        for _ in 0..100 {
            let connecting = std::pin::pin!(to_application(&sockets, client, to, &limits));
            if let Poll::Ready(connected) = futures_util::poll!(connecting) {
                at_once = Some(connected.unwrap());
                break;
            }
        }
        let stream = at_once.expect("it always waits");
        assert!(stream.nodelay().unwrap() && CLIENT_PORTS.contains(&stream.local_addr().unwrap().port()));
        let own = stream.local_addr().unwrap();
        let accepted =
            listener.incoming().find(|a| a.as_ref().is_ok_and(|a| a.peer_addr().ok() == Some(own)));
        let mut accepted = accepted.unwrap().unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"x").unwrap();
        std::io::Read::read_exact(&mut accepted, &mut [0]).unwrap();
        drop((listener, accepted));
        let error = to_application(&sockets, client, to, &limits).await.unwrap_err();
        assert_eq!((error.reason, error.retry), (Reason::NotListening, Retryable::Yes), "{error}");
    }
}
