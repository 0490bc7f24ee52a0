//! Doors for the fuzz targets (`fuzz/`): what reads the bytes of a stranger here and is private. Only in their build.

pub use crate::cni_server::fuzzing::{Asked, cni_calls};
pub use crate::holder::fuzzing::{Conversation, converse};

use crate::netns::Netns;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::{
    fs::File,
    io::IoSlice,
    net::TcpListener,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::LazyLock,
};

/// What a peer sends at once, with descriptors on its first byte.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// A whole frame's body, or bytes as they are.
    pub bytes: &'a [u8],
    /// Whether the length is to be put before it.
    pub framed: bool,
    /// How many descriptors come with it.
    pub descriptors: usize,
    /// Whether the first of them is a network namespace; the others are sockets.
    pub netns: bool,
}

struct Descriptors {
    netns: OwnedFd,
    file: OwnedFd,
    socket: OwnedFd,
}

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| Descriptors {
    netns: File::open("/proc/thread-self/ns/net").expect("the own namespace").into(),
    file: File::open("/dev/null").expect("/dev/null").into(),
    socket: TcpListener::bind("0.0.0.0:0").expect("a socket").into(),
});

/// Sends without waiting; false when no more goes in.
pub(crate) fn send(to: BorrowedFd<'_>, sent: &Sent<'_>) -> bool {
    let mut bytes = Vec::new();
    if sent.framed {
        bytes.extend(u32::try_from(sent.bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    }
    bytes.extend_from_slice(sent.bytes);
    let first = if sent.netns { &DESCRIPTORS.netns } else { &DESCRIPTORS.file };
    let raw: Vec<RawFd> = std::iter::once(first)
        .chain(std::iter::repeat(&DESCRIPTORS.socket))
        .take(sent.descriptors)
        .map(AsRawFd::as_raw_fd)
        .collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let done = sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None);
    done.is_ok_and(|n| n == bytes.len())
}

/// The namespace that [`Sent::netns`] sends.
pub(crate) fn is_ours(netns: &Netns) -> bool {
    Netns::current().is_ok_and(|own| own.inode() == netns.inode())
}
