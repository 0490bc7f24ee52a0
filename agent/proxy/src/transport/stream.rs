//! One stream of an HBONE tunnel as a byte stream, on either side.
//!
//! The receive window is released only for bytes that the reader took, so a slow reader slows the writer at the
//! other end of the tunnel, and nothing is buffered beyond the window.

use super::tunnel::StreamGuard;
use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most that one write puts into one DATA frame.
const WRITE_MAX: usize = 256 * 1024;

/// A byte stream over HTTP/2 CONNECT. Dropped before its end, it resets the stream.
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received, not yet read.
    head: Bytes,
    /// Our direction has ended.
    ended: bool,
    /// Keeps the tunnel's count of streams; `None` on the server side.
    _guard: Option<StreamGuard>,
}

impl TunnelStream {
    /// Joins the two halves of an accepted CONNECT.
    #[must_use]
    pub const fn new(send: SendStream<Bytes>, recv: RecvStream, guard: Option<StreamGuard>) -> Self {
        Self { send, recv, head: Bytes::new(), ended: false, _guard: guard }
    }

    /// Ends the stream with RST_STREAM: the application's connection was reset.
    pub fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// The next received bytes without a copy; empty at the end of the stream. Their window stays taken until
    /// [`Self::release`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.head.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.head)));
        }
        self.poll_data(cx)
    }

    /// Waits until something has come in, and keeps it for the next read; false at the end.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.head.is_empty() {
            // An error is found again by the next read.
            self.head = ready!(self.poll_data(cx)).unwrap_or_default();
        }
        Poll::Ready(!self.head.is_empty())
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(frame)) if frame.is_empty() => {}
                Some(Ok(frame)) => return Poll::Ready(Ok(frame)),
                // A peer that has answered completely may stop reading with NO_ERROR (RFC 9113 §8.1): an end.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => {
                    return Poll::Ready(Ok(Bytes::new()));
                }
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Ok(Bytes::new())),
            }
        }
    }

    /// The reader has done with `n` bytes: the other end may send as many more.
    pub fn release(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        // Fails only for a stream that is gone.
        let _ = self.recv.flow_control().release_capacity(n);
    }

    /// How much of `want` may be sent now; waits until it is more than nothing.
    fn poll_capacity(&mut self, want: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let have = self.send.capacity();
            if have > 0 {
                return Poll::Ready(Ok(have.min(want)));
            }
            self.send.reserve_capacity(want);
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }

    /// Sends as much of `data` as the windows allow, without a copy. `last`: our direction ends with it.
    pub fn poll_send(&mut self, data: &mut Bytes, last: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while data.has_remaining() {
            let n = ready!(self.poll_capacity(data.len(), cx))?;
            let end = last && n == data.len();
            self.send.send_data(data.split_to(n), end).map_err(to_io)?;
            self.ended |= end;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends our direction, unless it has ended with its last bytes.
    ///
    /// # Errors
    /// When the stream was reset before.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.ended {
            self.send.send_data(Bytes::new(), true).map_err(to_io)?;
            self.ended = true;
        }
        Ok(())
    }

    /// Waits until the other side resets the stream or the tunnel ends.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.poll_reset(cx).map(drop)
    }

    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => io::Error::new(io::ErrorKind::ConnectionReset, reason.description()),
            Poll::Ready(Err(error)) => to_io(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.head.is_empty() {
            this.head = ready!(this.poll_frame(cx))?;
        }
        // Small frames are read together: one wake-up of the reader, not one per frame.
        loop {
            let n = this.head.len().min(buf.remaining());
            buf.put_slice(&this.head[..n]);
            this.head.advance(n);
            this.release(n);
            if buf.remaining() == 0 || !this.head.is_empty() || n == 0 {
                return Poll::Ready(Ok(()));
            }
            match this.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => this.head = frame,
                // An end or an error is found again by the next read.
                Poll::Ready(Err(_)) | Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(this.poll_capacity(buf.len().min(WRITE_MAX), cx))?;
        this.send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(to_io)?;
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let total = bufs.iter().map(|b| b.len()).sum::<usize>().min(WRITE_MAX);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let n = ready!(this.poll_capacity(total, cx))?;
        // Head and body in one frame.
        let mut data = BytesMut::with_capacity(n);
        for buf in bufs {
            let take = buf.len().min(n - data.len());
            data.extend_from_slice(&buf[..take]);
        }
        this.send.send_data(data.freeze(), false).map_err(to_io)?;
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's own task writes what is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl std::fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TunnelStream").field("id", &self.recv.stream_id()).finish_non_exhaustive()
    }
}

fn to_io(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else if error.is_go_away() {
        io::ErrorKind::ConnectionAborted
    } else {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests;
