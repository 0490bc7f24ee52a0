//! Byte streams: one that may be TLS, and one with bytes that were read too early.

use bytes::{Buf, Bytes, BytesMut};
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

/// A way to an endpoint, with TLS of the backend's own on top when a BackendTLSPolicy asks for it.
pub(crate) enum MaybeTls<Io> {
    /// As dialled.
    Plain(Io),
    /// TLS to the backend. Boxed: its state is large and plain connections are the rule.
    Tls(Box<TlsStream<Io>>),
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain($io) => {
                let $io = Pin::new($io);
                $call
            }
            Self::Tls($io) => {
                let $io = Pin::new(&mut **$io);
                $call
            }
        }
    };
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for MaybeTls<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeTls<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}

/// A stream whose first bytes have been read already.
pub struct Prefixed<Io> {
    prefix: Bytes,
    io: Io,
}

impl<Io> Prefixed<Io> {
    /// `prefix` is read before anything of `io`.
    pub const fn new(prefix: Bytes, io: Io) -> Self {
        Self { prefix, io }
    }

    /// The stream.
    pub const fn get_ref(&self) -> &Io {
        &self.io
    }

    /// The same.
    pub const fn get_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// What of the prefix is still unread, and the stream.
    pub fn into_parts(self) -> (Bytes, Io) {
        (self.prefix, self.io)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Prefixed<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let n = this.prefix.len().min(buf.remaining());
        buf.put_slice(&this.prefix[..n]);
        this.prefix.advance(n);
        if this.prefix.is_empty() {
            this.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Prefixed<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Bytes of a client's that may be read before anybody has asked for them, while one looks whether it is still there.
const AHEAD_MAX: usize = 64;

/// A client's stream under HTTP/1.1. It counts reads and writes, so that a watchdog can tell a slow request head from an
/// idle connection; and it can be looked at while hyper, which has a whole request, reads nothing: [`Watch`].
pub(crate) struct Watched<Io> {
    stream: Rc<RefCell<Ahead<Io>>>,
    reads: Rc<Cell<u64>>,
    writes: Rc<Cell<u64>>,
}

/// Looks at a [`Watched`] stream from outside.
pub(crate) struct Watch<Io>(Rc<RefCell<Ahead<Io>>>);

/// A stream, and what was read of it too early.
struct Ahead<Io> {
    io: Io,
    read: BytesMut,
    ended: bool,
}

/// What became of a client that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// It is there, as far as is known.
    There,
    /// It has said that it sends nothing more. It may well read (RFC 9112 §9.6), or be gone: TCP has one word for both.
    HalfClosed,
    /// Its connection is broken.
    Gone,
}

impl<Io> Watched<Io> {
    /// Counts reads and writes.
    pub(crate) fn new(io: Io, reads: Rc<Cell<u64>>, writes: Rc<Cell<u64>>) -> (Self, Watch<Io>) {
        let stream = Rc::new(RefCell::new(Ahead { io, read: BytesMut::new(), ended: false }));
        (Self { stream: Rc::clone(&stream), reads, writes }, Watch(stream))
    }
}

impl<Io> Watch<Io> {
    /// The stream, and what was read of it but not asked for. `None` while the [`Watched`] lives.
    pub(crate) fn into_parts(self) -> Option<(Bytes, Io)> {
        let Ahead { io, read, .. } = Rc::into_inner(self.0)?.into_inner();
        Some((read.freeze(), io))
    }
}

impl<Io: AsyncRead + Unpin> Watch<Io> {
    /// Looks whether the client is still there, and registers for its going. What it sends meanwhile is kept, up to
    /// [`AHEAD_MAX`] bytes; beyond that nothing is known until somebody reads.
    pub(crate) fn look(&self, cx: &mut Context<'_>) -> Client {
        let mut ahead = self.0.borrow_mut();
        while !ahead.ended && ahead.read.is_empty() {
            let mut space = [0; AHEAD_MAX];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut ahead.io).poll_read(cx, &mut buf) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => return Client::Gone,
                Poll::Ready(Ok(())) => {
                    ahead.ended = buf.filled().is_empty();
                    ahead.read.extend_from_slice(buf.filled());
                    // Whoever waits for a request's body has been overtaken, and must look again.
                    cx.waker().wake_by_ref();
                }
            }
        }
        if ahead.ended { Client::HalfClosed } else { Client::There }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut ahead = self.stream.borrow_mut();
        let read = if !ahead.read.is_empty() {
            let n = ahead.read.len().min(buf.remaining());
            buf.put_slice(&ahead.read.split_to(n));
            Poll::Ready(Ok(()))
        } else if ahead.ended {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut ahead.io).poll_read(cx, buf)
        };
        if read.is_ready() {
            self.reads.set(self.reads.get() + 1);
        }
        read
    }
}

impl<Io: AsyncWrite + Unpin> Watched<Io> {
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.writes.set(self.writes.get() + 1);
        }
        written
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream.borrow_mut().io).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.borrow_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.borrow_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream.borrow_mut().io).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.borrow().io.is_write_vectored()
    }
}
