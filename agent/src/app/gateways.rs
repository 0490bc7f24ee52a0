//! Gateways of this agent: their listeners, in the holder if there is one.

use super::pods::InNamespace;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use weft_certs::IdentityStore;
use weft_core::{
    config::{Config, Transport},
    engine::Feedback,
};
use weft_inpod::{ManagerHandle, PodSockets, holder};
use weft_proxy::{
    gateway::{Bind, DirectBind, GatewayListeners, Place, is_any_v6, is_missing},
    pods::DataPlane,
};

/// What could not be bound is tried again after this time…
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// …and after twice as long each time, up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long a holder is waited for, to hear what an earlier agent opened.
const HOLDER_PATIENCE: Duration = Duration::from_secs(2);

/// The listeners, and when to try again those that could not be opened.
pub(super) struct Gateways {
    listeners: GatewayListeners,
    /// The way to the holder, and whether what an earlier agent left there has been looked through.
    held: Option<(Arc<ManagerHandle>, bool)>,
    last: Feedback,
    delay: Duration,
    retry_at: Option<Instant>,
}

impl Gateways {
    pub(super) fn new(
        plane: Arc<DataPlane>,
        identities: Option<IdentityStore>,
        manager: Option<Arc<ManagerHandle>>,
    ) -> Self {
        let bind: Arc<dyn Bind> = match &manager {
            Some(manager) => Arc::new(HeldBind(manager.clone())),
            None => Arc::new(DirectBind),
        };
        let sockets = Arc::new(InNamespace(PodSockets::host()));
        let identity = Box::new(move |id: &weft_core::model::SpiffeId| {
            identities.as_ref().map(|all| all.acquire(id.clone()))
        });
        Self {
            listeners: GatewayListeners::new(plane, bind, sockets, identity),
            held: manager.map(|manager| (manager, false)),
            last: Feedback::default(),
            delay: RETRY_FIRST,
            retry_at: None,
        }
    }

    /// Opens and closes listeners as the Config says; tells what could not be opened.
    pub(super) async fn sync(&mut self, config: &Arc<Config>) -> Feedback {
        self.listeners.set_succeeds(self.succeeds().await);
        let feedback = self.listeners.sync(config).await;
        self.delay = if feedback == self.last { (self.delay * 2).min(RETRY_MAX) } else { RETRY_FIRST };
        self.retry_at = (!feedback.unbound.is_empty()).then(|| Instant::now() + self.delay);
        self.last = feedback.clone();
        self.sweep().await;
        feedback
    }

    /// Whether an earlier agent opened listeners, and none of ours is open yet.
    async fn succeeds(&self) -> bool {
        let Some((manager, false)) = &self.held else { return false };
        let mut counts = manager.counts();
        // Without a holder nothing can be opened either.
        let connected = tokio::time::timeout(HOLDER_PATIENCE, counts.wait_for(|counts| counts.holder)).await;
        connected.is_ok_and(|counts| counts.is_ok()) && !manager.groups().is_empty()
    }

    /// Completes when something that could not be opened should be tried again; never while all is well.
    pub(super) async fn retry(&self) {
        let due = async {
            match self.retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let holder_came = async {
            if let Some((manager, false)) = &self.held
                && manager.counts().wait_for(|c| c.holder).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = due => {}
            () = holder_came => {}
        }
    }

    /// Closes sockets that an earlier agent left in the holder and that no Gateway wants any more: clients would
    /// connect to them and wait for ever.
    async fn sweep(&mut self) {
        let Some((manager, swept)) = &mut self.held else { return };
        *swept = manager.counts().borrow().holder;
        let wanted: BTreeSet<_> = self.listeners.places().flat_map(|(place, _)| group_keys(*place)).collect();
        // What could not be had this time may still be what an earlier agent opened.
        let failed = |key: &holder::GroupKey| {
            let mut unbound = self.last.unbound.keys();
            unbound.any(|(_, port, transport)| {
                *port == key.address.port() && of_group(*transport) == key.transport
            })
        };
        for key in manager.groups() {
            if wanted.contains(&key) || failed(&key) {
                continue;
            }
            tracing::info!("closing {}, which an earlier agent left open", key.address);
            if let Err(error) = manager.close_group(key).await {
                tracing::warn!(%error, "the holder could not close it");
            }
        }
    }

    /// Whether any listener is open.
    pub(super) fn any_open(&self) -> bool {
        self.listeners.places().next().is_some()
    }

    /// Leaves new connections to the next agent; the holder keeps the sockets.
    pub(super) async fn stop_accepting(&mut self) {
        self.listeners.stop_accepting().await;
    }
}

/// Sockets that the holder owns, so that they outlive this agent.
#[derive(Debug)]
struct HeldBind(Arc<ManagerHandle>);

impl Bind for HeldBind {
    fn listen(&self, place: Place, members: usize) -> BoxFuture<'_, io::Result<Vec<OwnedFd>>> {
        Box::pin(async move {
            match self.group(place, members).await {
                // A machine without IPv6: every address is every IPv4 address.
                Err(error) if is_any_v6(place.address) && is_missing(&error) => {
                    self.group(in_v4(place), members).await
                }
                opened => opened,
            }
        })
    }

    fn close(&self, place: Place) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let open = self.0.groups();
            for key in group_keys(place).into_iter().filter(|key| open.contains(key)) {
                if let Err(error) = self.0.close_group(key).await {
                    tracing::warn!(%error, "{place}: the holder could not close it");
                }
            }
        })
    }
}

impl HeldBind {
    async fn group(&self, place: Place, members: usize) -> io::Result<Vec<OwnedFd>> {
        self.0.listen_group(group_key(place), members).await.map_err(|error| os_error(&error.to_string()))
    }
}

fn in_v4(place: Place) -> Place {
    Place { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), place.address.port()), ..place }
}

fn group_key(place: Place) -> holder::GroupKey {
    holder::GroupKey { address: place.address, transport: of_group(place.transport) }
}

/// The groups that may serve a place.
fn group_keys(place: Place) -> Vec<holder::GroupKey> {
    let fallback = is_any_v6(place.address).then(|| in_v4(place));
    [place].into_iter().chain(fallback).map(group_key).collect()
}

const fn of_group(transport: Transport) -> holder::Transport {
    match transport {
        Transport::Tcp => holder::Transport::Tcp,
        Transport::Udp => holder::Transport::Udp,
    }
}

/// The holder's answer is text, with the operating system's number at its end.
fn os_error(text: &str) -> io::Error {
    let number = text.rsplit_once("(os error ").and_then(|(_, n)| n.trim_end_matches(')').parse().ok());
    match number {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holders_words_keep_their_number() {
        let check = |text: &str, number| assert_eq!(os_error(text).raw_os_error(), number, "{text}");
        check("10.9.9.9:80: Cannot assign requested address (os error 99)", Some(99));
        check("the holder is away", None);
    }
}
