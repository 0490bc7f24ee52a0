//! The system calls that have no safe wrapper here.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// Takes ownership of a descriptor that has just come by SCM_RIGHTS.
pub(crate) fn own_received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us by SCM_RIGHTS; nobody else in the process
    // knows its number, and it is wrapped exactly once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Raises the soft limit of open files to the hard one: a node's pods need more than the usual 1024. Gives the limit that
/// holds now, as far as it is known.
pub fn raise_open_files_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the duration of both calls; the calls touch nothing else.
    let (known, raised) = unsafe {
        let known = (libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0).then_some(limit.rlim_cur);
        limit.rlim_cur = limit.rlim_max;
        (known, known.is_some() && libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0)
    };
    if !raised {
        tracing::warn!(error = %io::Error::last_os_error(), "cannot raise the open-files limit");
        return known;
    }
    Some(limit.rlim_max)
}

/// Nanoseconds since the node booted: the same clock for every process on it, and never set back.
pub(crate) fn since_boot_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the duration of the call. CLOCK_BOOTTIME exists since Linux 2.6.39,
    // so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Every neighbour on an interface, for a packet socket.
pub(crate) fn ethernet_broadcast(protocol: u16, interface: u32) -> io::Result<socket2::SockAddr> {
    // SAFETY: the closure fills the whole address, of the kind and length that it says.
    let ((), address) = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let address = libc::sockaddr_ll {
                sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
                sll_protocol: protocol.to_be(),
                sll_ifindex: i32::try_from(interface).unwrap_or_default(),
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 6,
                sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
            };
            storage.cast::<libc::sockaddr_ll>().write(address);
            *len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
            Ok(())
        })?
    };
    Ok(address)
}
