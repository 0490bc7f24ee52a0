//! What the fuzz targets share. [`planted`] is how each shows that it would find a bug; the other modules are readers and
//! writers of their own, so that nothing of ours is compared with itself.

pub mod frames;
pub mod loopback;
pub mod origin;
pub mod paths;
pub mod sockets;

use nix::sys::resource::{UsageWho, getrusage};
use std::sync::LazyLock;

static PLANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("WEFT_FUZZ_PLANTED").is_some());

/// A bug that is there only under `WEFT_FUZZ_PLANTED`: panics when `reached`, which no seed is and which takes the fuzzer
/// several steps in the parser's *result*. `./dev fuzz` fails for a target that does not find it.
pub fn planted(reached: bool, what: &str) {
    assert!(!(reached && *PLANTED), "planted bug: {what}");
}

/// Runs `work`, and panics when the process had to grow by more than `bound` bytes for it.
pub fn within_memory<T>(bound: u64, work: impl FnOnce() -> T) -> T {
    let before = high_water();
    let value = work();
    let grown = high_water().saturating_sub(before);
    assert!(grown <= bound, "the process grew by {grown} bytes, more than {bound}");
    value
}

/// The most memory that the process has had so far, in bytes.
fn high_water() -> u64 {
    let kib = getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| usage.max_rss());
    u64::try_from(kib).unwrap_or(0) << 10
}

/// Takes bytes off the front of an input, as the targets read theirs: what is missing is zero or empty.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// As many as there are, at most `n`.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// A piece with its length in two bytes before it (little endian).
    pub fn piece(&mut self) -> &'a [u8] {
        let length = u16::from_le_bytes([self.byte(), self.byte()]);
        self.take(usize::from(length))
    }

    /// What stands before the next `ff 00`, which goes too: so one message more or less leaves the others as they are.
    pub fn message(&mut self) -> &'a [u8] {
        let end = self.0.windows(2).position(|two| two == [0xff, 0]);
        let message = self.take(end.unwrap_or(self.0.len()));
        self.take(2);
        message
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Ends of prefixes of a text of `length` bytes: all of a short one, some of a long one.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(length.div_ceil(48).max(1))
}
