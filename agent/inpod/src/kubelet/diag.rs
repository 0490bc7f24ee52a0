//! The kernel's account of TCP sockets in one network namespace: `NETLINK_SOCK_DIAG` (sock_diag(7)).

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt,
        socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};
use parking_lot::Mutex;
use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`, and with it `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const DUMP: u16 = 0x301;
/// Types of answers: `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `struct nlmsghdr`, `struct inet_diag_req_v2`, `struct inet_diag_msg`.
const HEADER: usize = 16;
const ASKED: usize = 56;
const ANSWER: usize = 72;
/// States of `net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// The kernel answers before `sendto` returns; what does not come by then never will.
const PATIENCE_S: i64 = 1;
/// Messages of one dump are packed into reads of at most this size.
const READ_MAX: usize = 32 * 1024;
/// Listeners on one port that are looked at: there are two in a usual cluster.
const LISTENERS_MAX: usize = 64;

/// A socket as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    /// The number in `socket:[…]` of /proc/PID/fd; 0 once no process holds it.
    pub(super) inode: u64,
    /// Who made it, as our user namespace numbers users.
    pub(super) uid: u32,
    state: u8,
    pub(crate) local: SocketAddr,
    remote: SocketAddr,
}

/// A netlink socket. It speaks of the namespace that it was made in, whoever uses it.
#[derive(Debug)]
pub(crate) struct Diag(Mutex<Open>);

#[derive(Debug)]
struct Open {
    socket: OwnedFd,
    sequence: u32,
    /// For answers.
    buffer: Vec<u8>,
}

impl Diag {
    /// Of the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0))?;
        let diag = Self(Mutex::new(Open { socket, sequence: 0, buffer: vec![0; READ_MAX] }));
        // A kernel without `tcp_diag` knows of no connection, and says no more; of a list it says so.
        diag.listeners(0)?;
        Ok(diag)
    }

    /// The established socket of this connection that is held by a process.
    pub(super) fn connection(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Told>> {
        let mut found = Vec::new();
        let request = request(local.is_ipv4(), REQUEST, !0, (local, remote));
        self.0.lock().ask(request, |told| found.push(told))?;
        // Where no such connection is, the kernel tells of a listener on that port instead.
        let same = |told: &Told| (told.state, told.local, told.remote) == (ESTABLISHED, local, remote);
        Ok(found.into_iter().find(|told| same(told) && told.inode != 0))
    }

    /// Every listener on a port, at whatever address. Sorted.
    pub(crate) fn listeners(&self, port: u16) -> io::Result<Vec<Told>> {
        let mut found = Vec::new();
        let mut open = self.0.lock();
        for (v4, any) in [(true, IpAddr::from([0; 4])), (false, Ipv6Addr::UNSPECIFIED.into())] {
            let ends = (SocketAddr::new(any, port), SocketAddr::new(any, 0));
            open.ask(request(v4, DUMP, 1 << LISTEN, ends), |told| {
                if told.state == LISTEN && told.local.port() == port && found.len() < LISTENERS_MAX {
                    found.push(told);
                }
            })?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

impl Open {
    fn ask(&mut self, mut request: [u8; HEADER + ASKED], mut tell: impl FnMut(Told)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        request[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        let (fd, kernel) = (self.socket.as_raw_fd(), NetlinkAddr::new(0, 0));
        sendto(fd, &request, &kernel, MsgFlags::empty())?;
        let dump = u16::from_ne_bytes([request[6], request[7]]) == DUMP;
        loop {
            let n = recv(fd, &mut self.buffer, MsgFlags::empty())?;
            if read(&self.buffer[..n], self.sequence, dump, &mut tell)? {
                return Ok(());
            }
        }
    }
}

fn request(v4: bool, flags: u16, states: u32, ends: (SocketAddr, SocketAddr)) -> [u8; HEADER + ASKED] {
    let mut out = [0; HEADER + ASKED];
    let length = u32::try_from(out.len()).unwrap_or_default();
    out[0..4].copy_from_slice(&length.to_ne_bytes());
    out[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    out[16] = u8::try_from(family).unwrap_or_default();
    out[17] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    out[20..24].copy_from_slice(&states.to_ne_bytes());
    let (local, remote) = ends;
    out[24..26].copy_from_slice(&local.port().to_be_bytes());
    out[26..28].copy_from_slice(&remote.port().to_be_bytes());
    put_ip(&mut out[28..44], local.ip());
    put_ip(&mut out[44..60], remote.ip());
    out[64..72].fill(0xff); // INET_DIAG_NOCOOKIE: whichever socket it is
    out
}

fn put_ip(out: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.copy_from_slice(&ip.octets()),
    }
}

/// Reads the messages of one datagram; `true` once nothing more comes.
fn read(mut rest: &[u8], sequence: u32, dump: bool, tell: &mut impl FnMut(Told)) -> io::Result<bool> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag: a message that is cut short");
    let mut ended = false;
    while rest.len() >= HEADER {
        let length = usize::try_from(u32_at(rest, 0).ok_or_else(broken)?).map_err(io::Error::other)?;
        let message = rest.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(broken)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if u32_at(message, 8) != Some(sequence) {
            continue; // of a question that was given up
        }
        match u16::from_ne_bytes([message[4], message[5]]) {
            // A list that fails ends with the error's number, too.
            DONE | ERROR => {
                let number = u32_at(message, HEADER).unwrap_or(0).cast_signed();
                return match number.wrapping_neg() {
                    0 => Ok(true),
                    libc::ENOENT if !dump => Ok(true),
                    number => Err(io::Error::from_raw_os_error(number)),
                };
            }
            BY_FAMILY => {
                tell(told(&message[HEADER..]).ok_or_else(broken)?);
                ended = !dump;
            }
            _ => {}
        }
    }
    Ok(ended)
}

/// `struct inet_diag_msg`.
fn told(body: &[u8]) -> Option<Told> {
    let body = body.get(..ANSWER)?;
    let v4 = i32::from(body[0]) == libc::AF_INET;
    let end = |port: usize, ip: usize| {
        let port = u16::from_be_bytes([body[port], body[port + 1]]);
        let mut octets = [0; 16];
        octets.copy_from_slice(&body[ip..ip + 16]);
        let [a, b, c, d, ..] = octets;
        let ip = if v4 { IpAddr::from([a, b, c, d]) } else { IpAddr::from(octets) };
        // A dual-stack socket holds IPv4 connections as v4-mapped ones.
        SocketAddr::new(ip.to_canonical(), port)
    };
    Some(Told {
        state: body[1],
        local: end(4, 8),
        remote: end(6, 24),
        uid: u32_at(body, 64)?,
        inode: u64::from(u32_at(body, 68)?),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_and_its_listener_are_found_by_their_addresses() {
        let diag = Diag::open().unwrap();
        for any in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let mut to = listener.local_addr().unwrap();
            if to.ip().is_unspecified() {
                to.set_ip([127, 0, 0, 1].into()); // dual-stack, reached by IPv4
            }
            let client = TcpStream::connect(to).unwrap();
            let from = client.local_addr().unwrap();
            let found = diag.connection(from, to).unwrap().unwrap();
            assert_eq!(found.inode, inode_of(&client), "{any}");
            let (server, _) = listener.accept().unwrap();
            assert_eq!(diag.connection(to, from).unwrap().unwrap().inode, inode_of(&server), "{any}");
            let listeners = diag.listeners(to.port()).unwrap();
            assert!(listeners.iter().any(|l| l.inode == inode_of(&listener)), "{any} {listeners:?}");
            // Nobody's: not the listener's either.
            let other = SocketAddr::new(from.ip(), 1);
            assert_eq!(diag.connection(to, other).unwrap(), None, "{any}");
            assert_eq!(diag.connection(other, to).unwrap(), None, "{any}");
            drop(client);
            assert_eq!(diag.connection(from, to).unwrap(), None, "{any}: closed");
        }
    }

    fn inode_of(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        super::super::process::socket_inode(&link).unwrap()
    }

    #[test]
    fn what_the_kernel_says_is_read_with_care() {
        let mut message = request(true, REQUEST, 0, (([1, 2, 3, 4], 5).into(), ([6, 7, 8, 9], 10).into()));
        message[8..12].copy_from_slice(&7_u32.to_ne_bytes());
        let mut count = 0;
        let mut all = |bytes: &[u8], sequence| read(bytes, sequence, false, &mut |_| count += 1);
        assert!(all(&message, 7).is_err(), "an answer is longer than a question");
        assert!(!all(&message, 8).unwrap(), "another question's");
        assert!(!all(&[], 7).unwrap());
        message[0..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert!(all(&message, 7).is_err(), "shorter than its head");
        message[0..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(all(&message, 7).is_err(), "longer than what came");
        message[0..4].copy_from_slice(&20_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        for (error, ended) in
            [(0, Some(true)), (-libc::ENOENT, Some(true)), (-libc::EPERM, None), (i32::MIN, None)]
        {
            message[16..20].copy_from_slice(&error.to_ne_bytes());
            assert_eq!(all(&message[..20], 7).ok(), ended, "{error}");
        }
        assert_eq!(count, 0);
        message[4..6].copy_from_slice(&DONE.to_ne_bytes());
        message[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        let listed = |bytes: &[u8]| read(bytes, 7, true, &mut |_| {}).map_err(|e| e.raw_os_error());
        assert_eq!(listed(&message[..20]), Err(Some(libc::ENOENT)), "a kernel without tcp_diag");
        message[16..20].fill(0);
        assert_eq!(listed(&message[..20]), Ok(true));
    }
}
