//! Sockets inside pods. All made here are non-blocking and close-on-exec.

use crate::{
    netns::{Netns, NetnsError},
    ruleset::{AGENT_MARK, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

/// The kernel caps it at net.core.somaxconn. Long, because it is where SYNs wait while an agent restarts.
const BACKLOG: i32 = 4096;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 5;

/// Address family of a client socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address. An IPv4 address in IPv6 clothes is IPv4.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn of_socket(local: SocketAddr) -> Self {
        if local.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// The three listening sockets of a captured pod. Accepted sockets inherit TCP_NODELAY and keepalive.
#[derive(Debug)]
pub struct Listeners {
    /// Port 15001: what the pod sends. [`original_dst`] tells where to. Transparent, as is the next: they accept connections
    /// to other addresses and ports.
    pub outbound: TcpListener,
    /// Port 15006: plaintext (or TLS that is not ours) for the pod.
    pub inbound: TcpListener,
    /// Port 15008: HBONE. Must not be transparent: the rules count on that (chain `from_agent`).
    pub hbone: TcpListener,
}

impl Listeners {
    /// The descriptors in the order of the ports.
    #[must_use]
    pub fn into_fds(self) -> [OwnedFd; 3] {
        [self.outbound.into(), self.inbound.into(), self.hbone.into()]
    }

    /// The reverse of [`Self::into_fds`].
    #[must_use]
    pub fn from_fds([outbound, inbound, hbone]: [OwnedFd; 3]) -> Self {
        Self { outbound: outbound.into(), inbound: inbound.into(), hbone: hbone.into() }
    }

    /// Makes them ready for `tproxy`: those that an agent of the version that redirected opened are not. Without effect on
    /// those that are; from any namespace.
    ///
    /// # Errors
    /// When the process lacks CAP_NET_ADMIN.
    pub fn make_transparent(&self) -> io::Result<()> {
        // One bit in the kernel for both families; the option of the socket's own family sets it.
        for listener in [&self.outbound, &self.inbound] {
            let socket = SockRef::from(listener);
            match Family::of_socket(listener.local_addr()?) {
                Family::V4 => socket.set_ip_transparent_v4(true)?,
                Family::V6 => socket.set_ip_transparent_v6(true)?,
            }
        }
        Ok(())
    }

    /// Further handles of the same sockets: one accept queue each, however many handles.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            outbound: self.outbound.try_clone()?,
            inbound: self.inbound.try_clone()?,
            hbone: self.hbone.try_clone()?,
        })
    }
}

/// Whether the calling thread's namespace has IPv6. Pods often have the module but `disable_ipv6`.
#[must_use]
pub fn ipv6_enabled() -> bool {
    // /proc/sys/net shows the namespace of the thread that opens it. `lo` decides: ::1 is where REDIRECT leads.
    std::fs::read("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|v| v.first() == Some(&b'0'))
}

/// Opens the three listeners inside a pod, dual-stack when it has IPv6.
///
/// # Errors
/// When the namespace cannot be entered, or a port is taken by the application.
pub fn open_listeners(netns: &Netns) -> Result<Listeners, OpenError> {
    netns.run(|| {
        let any: IpAddr =
            if ipv6_enabled() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let open = |port| {
            listen(SocketAddr::new(any, port), false).map_err(|source| OpenError::Listen { port, source })
        };
        let listeners = Listeners {
            outbound: open(OUTBOUND_PORT)?,
            inbound: open(INBOUND_PORT)?,
            hbone: open(HBONE_PORT)?,
        };
        listeners.make_transparent().map_err(OpenError::Transparent)?;
        Ok(listeners)
    })?
}

/// Listeners could not be opened in a pod.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The namespace is gone or cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Most likely the application listens on one of our ports.
    #[error("cannot listen on port {port} in the pod: {source}")]
    Listen {
        /// 15001, 15006 or 15008.
        port: u16,
        /// The cause.
        source: io::Error,
    },
    /// They cannot be made transparent.
    #[error("cannot make the pod's listeners transparent: {0}")]
    Transparent(io::Error),
}

/// A TCP listener in the current namespace, as captured pods and Gateways have it. `[::]` also takes IPv4.
/// `reuse_port` for a member of a group.
///
/// # Errors
/// When the address is not there or is taken.
pub fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = new_socket(Domain::for_address(address), Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?; // connections in TIME_WAIT do not hold the port
    bind(&socket, address, reuse_port)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    // On the listener, so that accepted sockets inherit them: two system calls less per connection.
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_nodelay(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether the address can be bound, and is nobody else's: with SO_REUSEPORT alone, a foreign process of the same user
/// would silently share it with us.
///
/// # Errors
/// When the address is not there or is taken.
pub(crate) fn bindable(address: SocketAddr, tcp: bool) -> io::Result<()> {
    let (kind, protocol) = if tcp { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
    let socket = new_socket(Domain::for_address(address), kind, protocol)?;
    socket.set_reuse_address(tcp)?; // connections in TIME_WAIT do not hold the port
    bind(&socket, address, false)
}

/// A bound UDP socket in the current namespace, for Gateways.
///
/// # Errors
/// When the address is not there or is taken.
pub fn bind_udp(address: SocketAddr, reuse_port: bool) -> io::Result<UdpSocket> {
    let socket = new_socket(Domain::for_address(address), Type::DGRAM, Protocol::UDP)?;
    bind(&socket, address, reuse_port)?;
    Ok(socket.into())
}

/// A client socket of a pod, in the current namespace: packets carry the agent's mark, and it may bind to an
/// address that is not the pod's own (the client's, towards the application).
pub(crate) fn marked_client(family: Family) -> io::Result<OwnedFd> {
    let socket = new_socket(family.domain(), Type::STREAM, Protocol::TCP)?;
    socket.set_mark(AGENT_MARK)?;
    match family {
        // IP_TRANSPARENT implies binding to foreign addresses; FREEBIND covers one that is still tentative.
        Family::V4 => {
            socket.set_ip_transparent_v4(true)?;
            socket.set_freebind_v4(true)?;
        }
        Family::V6 => {
            socket.set_ip_transparent_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// A client socket of the host: no mark, no privilege needed.
pub(crate) fn plain_client(family: Family) -> io::Result<OwnedFd> {
    let socket = new_socket(family.domain(), Type::STREAM, Protocol::TCP)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Where a captured connection was going: the socket's own address, unless that has one of our ports. Then it was
/// redirected there, and conntrack remembers (SO_ORIGINAL_DST); it also knows one that went to such a port elsewhere.
/// IPv4 over a dual-stack listener comes out as IPv4.
///
/// # Errors
/// When the socket is not connected, or conntrack knows nothing of it: the connection was made to the listener itself.
pub fn original_dst(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    let not_ip = || io::Error::new(io::ErrorKind::InvalidInput, "not an IP socket");
    let local = canonical(socket.local_addr()?.as_socket().ok_or_else(not_ip)?);
    if ![OUTBOUND_PORT, INBOUND_PORT].contains(&local.port()) {
        return Ok(local);
    }
    let found = if local.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    found.as_socket().map(canonical).ok_or_else(not_ip)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn new_socket(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
}

fn bind(socket: &Socket, address: SocketAddr, reuse_port: bool) -> io::Result<()> {
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())
}
