//! Frames with file descriptors over a Unix stream socket (the framing is `weft_cni::protocol`'s).
//!
//! Descriptors are attached to the first byte of a frame, so a reader knows whose they are.

use crate::sys::own_received;
use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};
use weft_cni::protocol::{FrameError, HEADER_BYTES, body_length, decode, encode};

/// SCM_MAX_FD of the kernel: the most descriptors in one message.
pub(crate) const MAX_FDS: usize = 253;
/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The conversation cannot go on: close the connection.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed, timed out, or the peer went away in the middle of a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer sent no frame of ours.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The kernel dropped descriptors (the process has too many open).
    #[error("descriptors were lost on the way: raise the open-files limit")]
    Truncated,
    /// Descriptors came that do not belong to the message.
    #[error("want {wanted} descriptors with this message, found {found}")]
    Descriptors {
        /// As many as the message says.
        wanted: usize,
        /// As many as came.
        found: usize,
    },
}

/// A received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Frame {
    /// The message in the frame.
    pub(crate) fn message<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        decode(&self.body)
    }

    /// Exactly `N` descriptors.
    pub(crate) fn take_fds<const N: usize>(&mut self) -> Result<[OwnedFd; N], WireError> {
        let fds = std::mem::take(&mut self.fds);
        fds.try_into().map_err(|fds: Vec<OwnedFd>| WireError::Descriptors { wanted: N, found: fds.len() })
    }
}

/// Reads one frame in as many steps as the socket needs; for blocking and non-blocking sockets alike.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Step {
    /// A whole frame; the reader is ready for the next.
    Done(Frame),
    /// More must be read.
    More,
    /// The peer closed between frames.
    Closed,
}

impl FrameReader {
    /// One `recvmsg`. On a non-blocking socket it fails with `WouldBlock` when there is nothing to read.
    pub(crate) fn step(&mut self, socket: BorrowedFd<'_>) -> Result<Step, WireError> {
        let wanted = self.wanted()?;
        if wanted == 0 {
            return Ok(Step::Done(self.finish()));
        }
        let start = self.bytes.len();
        self.bytes.resize(start + wanted, 0);
        let received = receive(socket, &mut self.bytes[start..]);
        let count = received.as_ref().map_or(0, |(count, _)| *count);
        self.bytes.truncate(start + count);
        let (count, fds) = received?;
        self.fds.extend(fds);
        if self.fds.len() > MAX_FDS {
            return Err(WireError::Descriptors { wanted: MAX_FDS, found: self.fds.len() });
        }
        if count == 0 {
            return if start == 0 { Ok(Step::Closed) } else { Err(closed_early()) };
        }
        if self.wanted()? == 0 { Ok(Step::Done(self.finish())) } else { Ok(Step::More) }
    }

    /// Bytes that this frame still lacks, at most a chunk: a peer must send before we allocate.
    fn wanted(&self) -> Result<usize, FrameError> {
        let Some(prefix) = self.bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(HEADER_BYTES - self.bytes.len());
        };
        let body = self.bytes.len() - HEADER_BYTES;
        Ok(body_length(*prefix)?.saturating_sub(body).min(CHUNK_BYTES))
    }

    fn finish(&mut self) -> Frame {
        let mut body = std::mem::take(&mut self.bytes);
        body.drain(..HEADER_BYTES);
        Frame { body, fds: std::mem::take(&mut self.fds) }
    }
}

/// Reads one frame from a blocking socket (which should have a receive timeout). `None`: closed.
pub(crate) fn read_frame(socket: BorrowedFd<'_>) -> Result<Option<Frame>, WireError> {
    let mut reader = FrameReader::default();
    loop {
        match reader.step(socket) {
            Ok(Step::Done(frame)) => return Ok(Some(frame)),
            Ok(Step::Closed) => return Ok(None),
            Ok(Step::More) => {}
            Err(WireError::Io(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Sends one message on a blocking socket (which should have a send timeout).
pub(crate) fn send_message<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    if fds.len() > MAX_FDS {
        return Err(WireError::Descriptors { wanted: MAX_FDS, found: fds.len() });
    }
    let frame = encode(message)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut sent = 0;
    while sent < frame.len() {
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if sent == 0 && !raw.is_empty() { &rights[..] } else { &[] };
        let iov = [IoSlice::new(&frame[sent..])];
        match sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(count) => sent += count,
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
    Ok(())
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), WireError> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    for control in message.cmsgs().map_err(io::Error::from)? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            fds.extend(raw.into_iter().map(own_received));
        }
    }
    // After they are owned, so that none of those that did come is leaked.
    if truncated { Err(WireError::Truncated) } else { Ok((message.bytes, fds)) }
}

fn closed_early() -> WireError {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

#[cfg(test)]
#[path = "wire/tests.rs"]
mod tests;
