//! A byte stream that stops when the turn of its share is over.

use crate::share::turn;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Slices of one vectored write: as many as rustls gives.
const SLICES_MAX: usize = 64;

/// Moves no more than the turn may, then answers "not ready" and lets the task be run again.
///
/// TLS has two: what it takes to encrypt is bounded by the one outside, what it writes to the socket (which may have
/// been full before) by the one inside.
#[derive(Debug)]
pub struct Metered<Io>(pub Io);

impl<Io: AsyncRead + Unpin> AsyncRead for Metered<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(turn::poll(cx));
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        turn::spend(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Metered<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let left = ready!(turn::poll(cx));
        let n = ready!(Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(left)]))?;
        turn::spend(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut left = ready!(turn::poll(cx));
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slot, buf) in slices.iter_mut().zip(bufs) {
            if left == 0 {
                break;
            }
            *slot = IoSlice::new(&buf[..buf.len().min(left)]);
            left -= slot.len();
            count += 1;
        }
        let n = ready!(Pin::new(&mut self.0).poll_write_vectored(cx, &slices[..count]))?;
        turn::spend(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
