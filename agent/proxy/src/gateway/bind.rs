//! Listening sockets of Gateways.

use nix::sys::socket::{setsockopt, sockopt::ReusePort};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
};

/// Connections that may wait to be accepted, per socket.
const BACKLOG: i32 = 4096;

/// Where listening sockets come from: the holder, which keeps them over restarts, or the process itself.
///
/// Each call may take as long as a round trip over a Unix socket; it is made on the control runtime.
pub trait Bind: Send + Sync + std::fmt::Debug {
    /// `count` sockets of one SO_REUSEPORT group, listening on `addr` alone (an IPv6 address is not also IPv4's).
    ///
    /// # Errors
    /// The kernel's: the address is in use or not ours, or a low port needs a capability.
    fn tcp(&self, addr: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>>;

    /// As [`Bind::tcp`], for UDP. The kernel gives all datagrams of one client to one socket.
    ///
    /// # Errors
    /// As [`Bind::tcp`].
    fn udp(&self, addr: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>>;

    /// Nobody serves `addr` any more: whoever keeps duplicates of its sockets closes them.
    fn release(&self, addr: SocketAddr, udp: bool) {
        let _ = (addr, udp);
    }
}

/// Binds in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct DirectBind;

impl Bind for DirectBind {
    fn tcp(&self, addr: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
        let open = |socket: Socket| {
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        };
        group(addr, count, Type::STREAM, open)
    }

    fn udp(&self, addr: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
        group(addr, count, Type::DGRAM, |socket| Ok(socket.into()))
    }
}

fn group<T>(
    addr: SocketAddr,
    count: usize,
    kind: Type,
    open: impl Fn(Socket) -> io::Result<T>,
) -> io::Result<Vec<T>> {
    // SO_REUSEPORT would let us join the group of another process of the same user, and each would get a part of the
    // traffic: a bind without it fails where anybody is.
    drop(bound(addr, kind, false)?);
    (0..count.max(1)).map(|_| open(bound(addr, kind, true)?)).collect()
}

fn bound(addr: SocketAddr, kind: Type, shared: bool) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if kind == Type::STREAM {
        // Connections of a listener before, in TIME_WAIT, are no hindrance.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it.
        socket.set_tcp_nodelay(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        setsockopt(&socket.as_fd(), ReusePort, &true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}
