//! A bound on how many issues run at once, urgent ones first.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The slots. Waiters are bounded by the number of identities: each waits at most once.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    urgent: VecDeque<oneshot::Sender<Slot>>,
    ordinary: VecDeque<oneshot::Sender<Slot>>,
}

/// One slot, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot(Option<Arc<Slots>>);

impl Slots {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        let state = State { free: count.max(1), urgent: VecDeque::new(), ordinary: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for a slot. Cancelling gives up the place in the queue.
    pub(crate) async fn acquire(self: &Arc<Self>, urgent: bool) -> Slot {
        loop {
            let waiting = {
                let mut state = self.state.lock();
                if state.free > 0 {
                    state.free -= 1;
                    return Slot(Some(self.clone()));
                }
                let queue = if urgent { &mut state.urgent } else { &mut state.ordinary };
                queue.retain(|waiter| !waiter.is_closed());
                let (sender, receiver) = oneshot::channel();
                queue.push_back(sender);
                receiver
            };
            // A sender is dropped only after sending; if that changed, ask anew rather than fail.
            if let Ok(slot) = waiting.await {
                return slot;
            }
        }
    }

    /// Passes a slot on to the first waiter that is still there.
    fn release(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let Some(next) = state.urgent.pop_front().or_else(|| state.ordinary.pop_front()) else {
                    state.free += 1;
                    return;
                };
                next
            };
            match next.send(Slot(Some(self.clone()))) {
                Ok(()) => return,
                // The waiter is gone: take the slot back without releasing it a second time.
                Err(mut slot) => slot.0 = None,
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.0.take() {
            slots.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls the futures once, so that they queue in this order.
    async fn queue(futures: &mut [std::pin::Pin<Box<dyn Future<Output = Slot> + '_>>]) {
        for future in futures {
            assert!(
                std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending()))
                    .await
            );
        }
    }

    #[tokio::test]
    async fn urgent_goes_first_and_cancelled_is_skipped() {
        let slots = Slots::new(1);
        let held = slots.acquire(false).await;
        let mut waiting: Vec<std::pin::Pin<Box<dyn Future<Output = Slot>>>> = vec![
            Box::pin(slots.acquire(false)),
            Box::pin(slots.acquire(true)),
            Box::pin(slots.acquire(true)),
        ];
        queue(&mut waiting).await;
        let third = waiting.pop().unwrap();
        drop(waiting.pop()); // the first urgent one gives up
        drop(held);
        let held = third.await;
        assert_eq!(slots.state.lock().free, 0);
        drop(held);
        drop(waiting.pop().unwrap().await);
        assert_eq!(slots.state.lock().free, 1);
    }

    #[tokio::test]
    async fn a_slot_on_its_way_to_a_cancelled_waiter_is_not_lost() {
        let slots = Slots::new(1);
        let held = slots.acquire(false).await;
        let mut waiting: Vec<std::pin::Pin<Box<dyn Future<Output = Slot>>>> =
            vec![Box::pin(slots.acquire(false))];
        queue(&mut waiting).await;
        drop(held); // now in the channel
        drop(waiting);
        assert_eq!(slots.state.lock().free, 1);
    }
}
