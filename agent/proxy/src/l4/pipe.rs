//! One side of a copied connection: where bytes come from and go to, with as few copies as its kind allows.

use super::chunks::{Chunks, SLICES_MAX};
use crate::{
    dial::UpstreamIo,
    share::turn,
    transport::{connect::reset_on_close, stream::TunnelStream},
};
use bytes::BytesMut;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// First read of a flow, and of one that has become slow again.
pub const READ_MIN: usize = 16 * 1024;
/// Read of a flow that fills its buffers: few, large system calls (`baselines.md`, bulk).
pub const READ_MAX: usize = 256 * 1024;

/// A side.
pub trait Pipe {
    /// Takes what has come in, about `size` bytes at once; waits until there is something. 0 is the end.
    /// No memory is held while waiting.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>>;

    /// As [`Pipe::poll_fill`], while what came before is still waiting to be written: only for sides where leaving
    /// bytes unread costs more than taking them. What is taken is bounded by the side's own window.
    fn poll_fill_ahead(&mut self, _: &mut Context<'_>, _: &mut Chunks) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    /// `n` bytes that this side gave were written: it may let the other end send more.
    fn consumed(&mut self, _n: usize) {}

    /// Writes until `from` is empty. `last`: nothing comes after it, and a side that [joins](Self::joins_end) its end to its
    /// last bytes does so.
    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks, last: bool) -> Poll<io::Result<()>>;

    /// Whether an end that goes with the last bytes is cheaper than one that comes after them.
    fn joins_end(&self) -> bool {
        false
    }

    /// Ends our direction, with everything written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Makes the coming drop look like a reset to the other end.
    fn abort(&mut self);
}

/// How much to read at once: grows while reads come back full, shrinks when they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(READ_MIN)
    }
}

impl ReadSize {
    /// Bytes.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }

    /// Learns from a read of `n` bytes.
    pub fn learn(&mut self, n: usize) {
        if n >= self.0 {
            self.0 = (self.0 * 4).min(READ_MAX);
        } else if n < self.0 / 4 {
            self.0 = (self.0 / 2).max(READ_MIN);
        }
    }

    /// A buffer of this size, or of what is left of the turn. From a read that the turn cut short, nothing is learned.
    fn buffer(self, cx: &Context<'_>) -> Poll<BytesMut> {
        let left = ready!(turn::poll(cx));
        Poll::Ready(BytesMut::with_capacity(self.0.min(left)))
    }

    fn took(&mut self, n: usize, asked: usize) {
        turn::spend(n);
        if n < asked || asked >= self.0 {
            self.learn(n);
        }
    }
}

impl Pipe for TcpStream {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        // The buffer is taken only once there is something to read.
        ready!(self.poll_read_ready(cx))?;
        let mut buffer = ready!(size.buffer(cx));
        let asked = buffer.capacity();
        // Not `try_read`: tokio's own read knows after a short one that the socket is empty, and saves the call (and
        // the buffer) that would say so.
        let n = ready!(tokio_util::io::poll_read_buf(Pin::new(self), cx, &mut buffer))?;
        size.took(n, asked);
        into.push(buffer.freeze());
        Poll::Ready(Ok(n))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks, _: bool) -> Poll<io::Result<()>> {
        poll_write_all(self, cx, from)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        finish(self, cx)
    }

    fn abort(&mut self) {
        reset_on_close(self);
    }
}

impl Pipe for TunnelStream {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        _: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        let first = ready!(self.poll_frame(cx))?;
        let mut taken = first.len();
        into.join(first);
        // What else is there goes into the same write.
        while taken > 0 && taken < READ_MAX {
            match self.poll_frame(cx) {
                Poll::Ready(Ok(frame)) if !frame.is_empty() => {
                    taken += frame.len();
                    into.join(frame);
                }
                // An end or an error is found again by the next call.
                Poll::Ready(_) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// Small frames left inside h2 count against the budget of the whole tunnel; here they are joined. The window is
    /// not released for them, so the other end still stops at 4 MiB.
    fn poll_fill_ahead(&mut self, cx: &mut Context<'_>, into: &mut Chunks) -> Poll<io::Result<usize>> {
        self.poll_fill(cx, into, &mut ReadSize::default())
    }

    fn consumed(&mut self, n: usize) {
        self.release(n);
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks, last: bool) -> Poll<io::Result<()>> {
        loop {
            let all = from.len();
            let Some(piece) = from.first() else { return Poll::Ready(Ok(())) };
            let before = piece.len();
            let sent = self.poll_send(piece, last && before == all, cx);
            let n = before - piece.len();
            from.sent(n);
            ready!(sent)?;
        }
    }

    /// One record and one packet less for each connection.
    fn joins_end(&self) -> bool {
        true
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }

    fn abort(&mut self) {
        self.reset();
    }
}

impl Pipe for UpstreamIo {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(io) => io.poll_fill(cx, into, size),
            Self::Tunnel(io) => io.poll_fill(cx, into, size),
        }
    }

    fn poll_fill_ahead(&mut self, cx: &mut Context<'_>, into: &mut Chunks) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(_) => Poll::Pending,
            Self::Tunnel(io) => io.poll_fill_ahead(cx, into),
        }
    }

    fn consumed(&mut self, n: usize) {
        match self {
            Self::Tcp(_) => {}
            Self::Tunnel(io) => io.consumed(n),
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks, last: bool) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(io) => io.poll_drain(cx, from, last),
            Self::Tunnel(io) => io.poll_drain(cx, from, last),
        }
    }

    fn joins_end(&self) -> bool {
        match self {
            Self::Tcp(io) => io.joins_end(),
            Self::Tunnel(io) => io.joins_end(),
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(io) => io.poll_finish(cx),
            Self::Tunnel(io) => io.poll_finish(cx),
        }
    }

    fn abort(&mut self) {
        match self {
            Self::Tcp(io) => io.abort(),
            Self::Tunnel(io) => io.abort(),
        }
    }
}

/// Any other byte stream (TLS that we ended): costs a copy into a buffer that is taken for each poll.
#[derive(Debug)]
pub struct Plain<Io>(pub Io);

impl<Io: AsyncRead + AsyncWrite + Unpin> Pipe for Plain<Io> {
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ready!(size.buffer(cx));
        let asked = buffer.capacity();
        let n = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut self.0), cx, &mut buffer))?;
        size.took(n, asked);
        into.push(buffer.freeze());
        Poll::Ready(Ok(n))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, from: &mut Chunks, _: bool) -> Poll<io::Result<()>> {
        ready!(poll_write_all(&mut self.0, cx, from))?;
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        finish(&mut self.0, cx)
    }

    fn abort(&mut self) {
        // Dropping a TLS stream sends no close_notify: the other end sees a truncation.
    }
}

fn poll_write_all<Io: AsyncWrite + Unpin>(
    io: &mut Io,
    cx: &mut Context<'_>,
    from: &mut Chunks,
) -> Poll<io::Result<()>> {
    while !from.is_empty() {
        let left = ready!(turn::poll(cx));
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = from.slices(&mut slices, left);
        let n = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        from.advance(n);
        turn::spend(n);
    }
    Poll::Ready(Ok(()))
}

fn finish<Io: AsyncWrite + Unpin>(io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    Pin::new(io).poll_shutdown(cx).map(|done| match done {
        // The other end has closed both directions already.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    })
}
