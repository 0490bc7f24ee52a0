//! Bytes on their way from one side to the other.

use bytes::{Buf, Bytes, BytesMut};
use std::{collections::VecDeque, io::IoSlice};

/// Shorter pieces are joined: an `Bytes` costs more than copying them.
const JOIN_BELOW: usize = 2048;
/// A joined piece ends when it has grown to this.
const JOINED_MAX: usize = 64 * 1024;
/// Pieces given to one vectored write.
pub const SLICES_MAX: usize = 32;

/// A queue of pieces. Empty, it holds no memory worth naming.
#[derive(Debug, Default)]
pub struct Chunks {
    queue: VecDeque<Bytes>,
    /// Short pieces, joined; they come after the queue.
    tail: BytesMut,
    len: usize,
}

impl Chunks {
    /// Bytes held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; short pieces are copied together.
    pub fn join(&mut self, piece: Bytes) {
        if piece.len() >= JOIN_BELOW {
            self.push(piece);
            return;
        }
        self.len += piece.len();
        self.tail.extend_from_slice(&piece);
        if self.tail.len() >= JOINED_MAX {
            self.seal();
        }
    }

    /// Appends without a copy.
    pub fn push(&mut self, piece: Bytes) {
        self.seal();
        self.len += piece.len();
        if !piece.is_empty() {
            self.queue.push_back(piece);
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The first pieces, for a vectored write of at most `limit` bytes.
    pub fn slices<'a>(&'a mut self, out: &mut [IoSlice<'a>; SLICES_MAX], mut limit: usize) -> usize {
        self.seal();
        let mut n = 0;
        for (slot, piece) in out.iter_mut().zip(&self.queue) {
            if limit == 0 {
                break;
            }
            let taken = &piece[..piece.len().min(limit)];
            *slot = IoSlice::new(taken);
            limit -= taken.len();
            n += 1;
        }
        n
    }

    /// Drops the first `n` bytes: they were written.
    pub fn advance(&mut self, mut n: usize) {
        self.len -= n;
        while let Some(first) = self.queue.front_mut().filter(|_| n > 0) {
            let step = n.min(first.len());
            first.advance(step);
            n -= step;
            if first.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// The first piece, to be sent in part or whole; what is left of it must be accounted for by [`Self::sent`].
    pub fn first(&mut self) -> Option<&mut Bytes> {
        if self.queue.is_empty() {
            self.seal();
        }
        self.queue.front_mut()
    }

    /// After the first piece was shortened by `n`.
    pub fn sent(&mut self, n: usize) {
        self.len -= n;
        if self.queue.front().is_some_and(Bytes::is_empty) {
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
