//! How much a turn may move. Time bounds a turn only between two polls; whatever moves bytes in a loop within one poll
//! asks here, and yields when the turn's bytes are spent. Bytes and not a clock: it costs a thread-local read, and is
//! the same on every machine.
//!
//! A byte counts once for each time that it is touched: read from the kernel, encrypted or decrypted, written to it.
//! That takes about 0.3 to 1 µs a KiB.

use std::{
    cell::Cell,
    task::{Context, Poll},
};

/// What a turn may move while other shares are served too: about as long as its slice.
pub(super) const CROWDED: usize = 64 * 1024;
/// What it may move while nobody else is: few, large system calls.
pub(super) const ALONE: usize = 512 * 1024;
/// Less than this is not worth a call: one TLS record.
pub(crate) const PIECE_MIN: usize = 16 * 1024;

thread_local! {
    /// Outside of turns nothing is bounded.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A turn begins; it may move `bytes`.
pub(crate) fn begin(bytes: usize) {
    LEFT.set(bytes);
}

/// No turn is under way.
pub(crate) fn end() {
    LEFT.set(usize::MAX);
}

/// Whether the turn has moved all that it may.
pub(super) fn is_spent() -> bool {
    LEFT.get() == 0
}

/// How much may be moved at once; not ready, and woken again, when the turn is over.
pub(crate) fn poll(cx: &Context<'_>) -> Poll<usize> {
    match LEFT.get() {
        0 => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        left => Poll::Ready(left.max(PIECE_MIN)),
    }
}

/// This much was moved.
pub(crate) fn spend(bytes: usize) {
    LEFT.set(LEFT.get().saturating_sub(bytes));
}
