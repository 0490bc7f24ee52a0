//! Gateways: listeners that follow the Config, and the connections that come to them.
//!
//! [`GatewayListeners`] lives on the control runtime and is told each new Config: it opens and closes sockets, and reports
//! ports that it could not bind. What is behind a port (listeners, certificates, routes) is looked up in the Config by
//! each connection and request, so most edits touch no socket at all.

mod accept;
mod bind;
mod tls;
mod udp;

pub use bind::{Bind, DirectBind};

use crate::{
    context::{ShareKey, Sockets, Source},
    worker::{Worker, WorkerGone, Workers},
};
use accept::Port;
use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tls::TlsConfigs;
use tokio_util::sync::CancellationToken;
use weft_certs::IdentityHandle;
use weft_core::{
    config::{Config, GatewayConfig, PortConfig, TlsListener, Transport},
    engine::Feedback,
    model::{MtlsMode, ObjectKey, SpiffeId, Workload},
};

/// What Gateways need of the process.
#[derive(Clone)]
pub struct GatewayEnv {
    /// Listening sockets.
    pub bind: Arc<dyn Bind>,
    /// Client sockets, in the namespace of the process.
    pub sockets: Arc<dyn Sockets>,
    /// The keys of a Gateway's identity; `None` without a mesh.
    pub identities: Arc<dyn Fn(&SpiffeId) -> Option<IdentityHandle> + Send + Sync>,
    /// How long the connections of a Gateway that goes away may take to end.
    pub grace: Duration,
}

/// One socket group: a Gateway's port on one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    addr: SocketAddr,
    transport: Transport,
}

/// Opens and closes listeners as Configs come.
pub struct GatewayListeners {
    env: GatewayEnv,
    tls: Arc<TlsConfigs>,
    open: BTreeMap<Slot, Open>,
    /// Gateways that the workers serve.
    served: BTreeMap<ObjectKey, SpiffeId>,
}

/// A slot that is being served.
struct Open {
    gateway: ObjectKey,
    stop: CancellationToken,
}

enum Group {
    Tcp(Vec<TcpListener>),
    Udp(Vec<UdpSocket>),
}

impl GatewayListeners {
    /// None are open.
    #[must_use]
    pub fn new(env: GatewayEnv) -> Self {
        Self { env, tls: Arc::default(), open: BTreeMap::new(), served: BTreeMap::new() }
    }

    /// Brings the listeners in line with `config`, which the workers must serve already. Returns what could not be bound;
    /// that is tried again with the next call.
    ///
    /// # Errors
    /// When the process is ending.
    pub async fn apply(&mut self, config: &Config, workers: &Workers) -> Result<Feedback, WorkerGone> {
        self.build_tls(config);
        let (wanted, mut feedback) = wanted(config);
        let gone: Vec<Slot> = self
            .open
            .iter()
            .filter(|(slot, open)| {
                let kept = |g: &Arc<GatewayConfig>| {
                    g.key == open.gateway && self.served.get(&g.key) == Some(&g.identity)
                };
                !wanted.get(slot).is_some_and(kept)
            })
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in gone {
            self.close(&slot);
        }
        self.retire(config, workers).await?;
        for (slot, gateway) in wanted {
            if self.open.contains_key(&slot) {
                continue;
            }
            if let Err(error) = self.serve(&slot, &gateway, workers).await? {
                let why = format!("{}: {error}", slot.addr);
                feedback.unbound.insert((gateway.key.clone(), slot.addr.port(), slot.transport), why.into());
            }
        }
        Ok(feedback)
    }

    /// Addresses that are served now.
    pub fn addresses(&self) -> impl Iterator<Item = (SocketAddr, Transport)> {
        self.open.keys().map(|s| (s.addr, s.transport))
    }

    fn close(&mut self, slot: &Slot) {
        if let Some(open) = self.open.remove(slot) {
            open.stop.cancel();
            self.env.bind.release(slot.addr, slot.transport == Transport::Udp);
        }
    }

    /// Ends Gateways that are gone, or whose identity is another now.
    async fn retire(&mut self, config: &Config, workers: &Workers) -> Result<(), WorkerGone> {
        let stays =
            |key: &ObjectKey, id: &SpiffeId| config.gateways.get(key).is_some_and(|g| g.identity == *id);
        let gone: Vec<ObjectKey> =
            self.served.iter().filter(|(k, id)| !stays(k, id)).map(|(k, _)| k.clone()).collect();
        for key in gone {
            self.served.remove(&key);
            let grace = self.env.grace;
            let key = ShareKey::Gateway(key);
            // Not waited for: other Gateways' changes must not be late because a client here is slow.
            let retire = move |worker: Rc<Worker>| async move {
                tokio::task::spawn_local(async move { worker.retire(&key, grace).await });
            };
            workers.run_all(retire).await?;
        }
        Ok(())
    }

    /// Binds a slot and starts serving it on every worker.
    async fn serve(
        &mut self,
        slot: &Slot,
        gateway: &GatewayConfig,
        workers: &Workers,
    ) -> Result<io::Result<()>, WorkerGone> {
        let (bind, addr, count) = (Arc::clone(&self.env.bind), slot.addr, workers.count());
        let group = match slot.transport {
            Transport::Tcp => bind.tcp(addr, count).map(Group::Tcp),
            Transport::Udp => bind.udp(addr, count).map(Group::Udp),
        };
        let group = match group {
            Ok(group) => group,
            Err(error) => return Ok(Err(error)),
        };
        let stop = CancellationToken::new();
        let source = self.source(gateway);
        let start = || Start {
            source: source.clone(),
            gateway: gateway.key.clone(),
            port: addr.port(),
            tls: Arc::clone(&self.tls),
            stop: stop.clone(),
        };
        match group {
            Group::Tcp(sockets) => {
                for (i, socket) in sockets.into_iter().enumerate() {
                    let start = start();
                    let started = move |w| async move { accept::start(start.port_on(&w), socket) };
                    if let Err(error) = workers.run(i % count, started).await? {
                        return Ok(Err(error));
                    }
                }
            }
            Group::Udp(sockets) => {
                for (i, socket) in sockets.into_iter().enumerate() {
                    let start = start();
                    let started = move |w| async move { udp::start(start.port_on(&w), socket) };
                    if let Err(error) = workers.run(i % count, started).await? {
                        return Ok(Err(error));
                    }
                }
            }
        }
        self.served.insert(gateway.key.clone(), gateway.identity.clone());
        self.open.insert(slot.clone(), Open { gateway: gateway.key.clone(), stop });
        Ok(Ok(()))
    }

    /// The Gateway as a source of traffic: a made-up workload with the Gateway's own identity.
    fn source(&self, gateway: &GatewayConfig) -> Source {
        let workload = Workload {
            pod: gateway.key.clone(),
            ips: Vec::new(),
            identity: gateway.identity.clone(),
            node: None,
            enrolled: true,
            mode: MtlsMode::Strict,
            app: gateway.key.name.clone(),
        };
        Source {
            share: ShareKey::Gateway(gateway.key.clone()),
            workload: Arc::new(workload),
            identity: (self.env.identities)(&gateway.identity),
            sockets: Arc::clone(&self.env.sockets),
        }
    }

    /// Builds TLS configs before the first handshake needs them.
    fn build_tls(&self, config: &Config) {
        for gateway in config.gateways.values() {
            for port in gateway.ports.values() {
                let PortConfig::Tls(hosts) = port else { continue };
                for (_, listener) in hosts.iter() {
                    if let TlsListener::Https { tls, .. } | TlsListener::Terminate { tls, .. } = &**listener
                        && let Err(why) = self.tls.get(tls)
                    {
                        tracing::error!(gateway = %gateway.key, why, "a listener's certificates cannot be served");
                    }
                }
            }
        }
        self.tls.prune();
    }
}

/// What [`Port`] is made of on a worker.
struct Start {
    source: Source,
    gateway: ObjectKey,
    port: u16,
    tls: Arc<TlsConfigs>,
    stop: CancellationToken,
}

impl Start {
    fn port_on(self, worker: &Rc<Worker>) -> Rc<Port> {
        Rc::new(Port {
            worker: Rc::clone(worker),
            share: worker.share(&self.source.share),
            source: Rc::new(self.source),
            gateway: self.gateway,
            port: self.port,
            tls: self.tls,
            stop: self.stop,
        })
    }
}

/// The slots that a Config asks for. Of two Gateways that want the same, the first by name has it.
fn wanted(config: &Config) -> (BTreeMap<Slot, Arc<GatewayConfig>>, Feedback) {
    let mut slots: BTreeMap<Slot, Arc<GatewayConfig>> = BTreeMap::new();
    let mut feedback = Feedback::default();
    for gateway in config.gateways.values() {
        for (&(port, transport), _) in &gateway.ports {
            for ip in &gateway.addresses {
                let slot = Slot { addr: SocketAddr::new(*ip, port), transport };
                if let Some(owner) = slots.get(&slot) {
                    let why = format!("{}: taken by Gateway {}", slot.addr, owner.key);
                    feedback.unbound.insert((gateway.key.clone(), port, transport), why.into());
                } else {
                    slots.insert(slot, Arc::clone(gateway));
                }
            }
        }
    }
    (slots, feedback)
}

#[cfg(test)]
mod tests;
