//! Bytes that a share's copied connections have read and could not write yet.
//!
//! A connection reads again only when everything was written, so what it holds is one read. That is up to 256 KiB for a
//! fast one; ten thousand readers that stand still would hold gigabytes. So the share has a budget, and beyond it reads
//! are small ([`crate::l4::pipe::READ_MIN`]). Nobody waits for the budget: one whose peers do not read at all must not
//! stop its other connections.

use super::memory::Account;
use std::{cell::Cell, rc::Rc, sync::Arc};

/// The budget of one share.
#[derive(Debug)]
pub struct Buffers {
    max: usize,
    held: Cell<usize>,
    /// Of the workload; none in tests of a connection alone.
    account: Option<Arc<Account>>,
    peak: Cell<usize>,
    squeezed: Cell<u64>,
}

impl Buffers {
    /// A budget of `max` bytes, which count in the workload's `account`.
    #[must_use]
    pub fn new(max: usize, account: Option<Arc<Account>>) -> Rc<Self> {
        Rc::new(Self { max, held: Cell::new(0), account, peak: Cell::new(0), squeezed: Cell::new(0) })
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// Most bytes ever held at once.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak.get()
    }

    /// Reads that were small because the budget was spent.
    #[must_use]
    pub fn squeezed(&self) -> u64 {
        self.squeezed.get()
    }

    /// Whether reads must be small; counted.
    fn is_spent(&self) -> bool {
        let spent = self.held.get() >= self.max;
        self.squeezed.set(self.squeezed.get() + u64::from(spent));
        spent
    }
}

/// What one direction of a connection holds of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    buffers: Rc<Buffers>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub(crate) fn of(buffers: &Rc<Buffers>) -> Self {
        Self { buffers: buffers.clone(), bytes: 0 }
    }

    /// It holds `bytes` from now on.
    pub(crate) fn set(&mut self, bytes: usize) {
        let Self { buffers, bytes: before } = self;
        if bytes == *before {
            return;
        }
        if let Some(account) = &buffers.account {
            account.take(bytes as u64);
            account.give(*before as u64);
        }
        let held = buffers.held.get() - *before + bytes;
        buffers.held.set(held);
        buffers.peak.set(buffers.peak.get().max(held));
        *before = bytes;
    }

    /// Whether reads must be small.
    pub(crate) fn is_spent(&self) -> bool {
        self.buffers.is_spent()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests;
