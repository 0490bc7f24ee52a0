//! Where listening sockets come from: the binary's holder, which keeps them when the agent ends, or the kernel.

use futures_util::future::BoxFuture;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};
use weft_core::config::Transport;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// What is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        };
        write!(f, "{transport} {}", self.address)
    }
}

/// Opens and closes groups of listening sockets.
pub trait Bind: Send + Sync + fmt::Debug {
    /// Sockets that share the place (SO_REUSEPORT), `members` of them; fewer or more when the group was open already
    /// (a group's size cannot change without losing connections).
    ///
    /// # Errors
    /// In the operating system's words: the address is in use, is not of this machine, is not permitted.
    fn listen(&self, place: Place, members: usize) -> BoxFuture<'_, io::Result<Vec<OwnedFd>>>;

    /// Closes a group for good. Sockets that [`Bind::listen`] gave have been dropped before.
    fn close(&self, place: Place) -> BoxFuture<'_, ()>;
}

/// Sockets of this process, which end with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectBind;

impl Bind for DirectBind {
    fn listen(&self, place: Place, members: usize) -> BoxFuture<'_, io::Result<Vec<OwnedFd>>> {
        Box::pin(std::future::ready(open(place, members)))
    }

    fn close(&self, _: Place) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn open(place: Place, members: usize) -> io::Result<Vec<OwnedFd>> {
    let opened = open_group(place, members);
    match opened {
        // A machine without IPv6: every address is every IPv4 address.
        Err(error) if is_any_v6(place.address) && is_missing(&error) => {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), place.address.port());
            open_group(Place { address, ..place }, members)
        }
        opened => opened,
    }
}

/// Whether `address` is `[::]`.
#[must_use]
pub fn is_any_v6(address: SocketAddr) -> bool {
    address.is_ipv6() && address.ip().is_unspecified()
}

/// Whether the machine does not have the address (or no IPv6 at all).
#[must_use]
pub fn is_missing(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

fn open_group(place: Place, members: usize) -> io::Result<Vec<OwnedFd>> {
    // With SO_REUSEPORT alone, a foreign process of the same user would silently share the port with us.
    drop(bound(place, false)?);
    let mut sockets = Vec::with_capacity(members);
    for _ in 0..members {
        let socket = bound(place, true)?;
        if place.transport == Transport::Tcp {
            socket.listen(BACKLOG)?;
        }
        sockets.push(socket.into());
    }
    Ok(sockets)
}

fn bound(Place { address, transport }: Place, reuse_port: bool) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if transport == Transport::Tcp {
        // Connections in TIME_WAIT do not hold the port.
        socket.set_reuse_address(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        // On the listener, so that accepted sockets inherit them.
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_nodelay(true)?;
    }
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
