//! One question to the agent, with a deadline on each step.

use crate::protocol::{self, FrameError, Request, Response};
use nix::sys::{
    socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt,
        socket, sockopt,
    },
    time::TimeVal,
};
use std::{
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

/// Why the agent did not answer: in every case the pod's fate is then decided by the table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("cannot reach the agent at {0}: {1}")]
    Connect(String, io::Error),
    #[error("the agent did not answer: {0}")]
    Io(#[from] io::Error),
    #[error("the agent answered nonsense: {0}")]
    Frame(#[from] FrameError),
}

/// Sends one request (with at most one descriptor) and waits for its answer.
pub(crate) fn ask(
    socket_path: &Path,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<Response, AskError> {
    let deadline = Instant::now() + patience;
    let mut stream =
        open(socket_path, patience).map_err(|e| AskError::Connect(socket_path.display().to_string(), e))?;
    send(&mut stream, &protocol::encode(request)?, fd)?;
    let mut prefix = [0; protocol::HEADER_BYTES];
    read_exact(&mut stream, &mut prefix, deadline)?;
    let mut body = vec![0; protocol::body_length(prefix)?];
    read_exact(&mut stream, &mut body, deadline)?;
    Ok(protocol::decode(&body)?)
}

/// Connects. A full accept queue would block without end: the send timeout bounds `connect` too (unix(7)).
fn open(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(i64::try_from(patience.as_secs()).unwrap_or(i64::MAX), 0);
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn send(stream: &mut UnixStream, frame: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let iov = [IoSlice::new(frame)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&frame[sent..])
}

/// Reads exactly `buf`, never longer than until `deadline`: a timeout per read alone would let a peer that
/// sends a byte at a time hold the container runtime.
fn read_exact(stream: &mut UnixStream, mut buf: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buf.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
