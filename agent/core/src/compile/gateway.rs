//! One Gateway: its ports, with the listeners that serve.

use super::slot::{CompiledSlot, SlotTable};
use crate::{
    config::{GatewayConfig, HttpListener, HttpRule, L4Rule, PortConfig, TlsListener, Transport},
    matching::{HostMap, RouteTable},
    model::{Hostname, Protocol, SpiffeId, Str, TlsMode, gateway_object_name},
    resolve::{AttachPoint, ListenerId, ResolvedGateway, ResolvedListener},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

/// Compiles a Gateway from its slots; `None` when it is not accepted.
pub(crate) fn compile_gateway<'s>(
    gateway: &ResolvedGateway,
    trust_domain: &Str,
    slot: impl Fn(&ListenerId) -> Option<&'s CompiledSlot>,
) -> Option<GatewayConfig> {
    gateway.accepted.as_ref().ok()?;
    let key = &gateway.gateway.meta.key;
    let mut ports: BTreeMap<(u16, Transport), Port> = BTreeMap::new();
    for listener in gateway.listeners.iter().filter(|l| l.serves()) {
        let point = &listener.attach;
        let table = slot(&point.id).and_then(|s| s.table.as_ref());
        add(&mut ports, listener, table);
    }
    // What the controller has not given a place yet must not be bound under its own number meanwhile.
    if !gateway.place.bind.is_empty() && !gateway.place.ports.is_empty() {
        ports.retain(|at, _| gateway.place.ports.contains_key(at));
    }
    Some(GatewayConfig {
        key: key.clone(),
        identity: SpiffeId::new(trust_domain.clone(), key.namespace.clone(), gateway_object_name(&key.name)),
        addresses: gateway.place.bind.clone(),
        parameters: gateway.parameters.clone(),
        targets: gateway.place.ports.clone(),
        ports: ports.into_iter().map(|(at, port)| (at, port.build())).collect(),
        backend_client_certificate: gateway.client_certificate.clone(),
    })
}

/// A port that is being put together.
enum Port {
    Http(Vec<(Option<Hostname>, Arc<HttpListener>)>),
    Tls(Vec<(Option<Hostname>, Arc<TlsListener>)>),
    Tcp(Option<Arc<L4Rule>>),
    Udp(Option<Arc<L4Rule>>),
}

impl Port {
    fn build(self) -> PortConfig {
        match self {
            Self::Http(listeners) => PortConfig::Http(HostMap::build(listeners)),
            Self::Tls(listeners) => PortConfig::Tls(HostMap::build(listeners)),
            Self::Tcp(rule) => PortConfig::Tcp(rule),
            Self::Udp(rule) => PortConfig::Udp(rule),
        }
    }
}

fn add(ports: &mut BTreeMap<(u16, Transport), Port>, listener: &ResolvedListener, table: Option<&SlotTable>) {
    let point = &listener.attach;
    let l4 = || match table {
        Some(SlotTable::L4(rule)) => Some(rule.clone()),
        _ => None,
    };
    let (transport, port) = match point.protocol {
        Protocol::Http => {
            let entry = (point.hostname.clone(), Arc::new(http_listener(point, table)));
            (Transport::Tcp, Port::Http(vec![entry]))
        }
        Protocol::Https | Protocol::Tls => {
            let Some(tls) = tls_listener(listener, table) else { return };
            (Transport::Tcp, Port::Tls(vec![(point.hostname.clone(), Arc::new(tls))]))
        }
        Protocol::Tcp => (Transport::Tcp, Port::Tcp(l4())),
        Protocol::Udp => (Transport::Udp, Port::Udp(l4())),
        Protocol::Other(_) => return,
    };
    match (ports.entry((point.port, transport)), port) {
        (std::collections::btree_map::Entry::Vacant(vacant), port) => {
            vacant.insert(port);
        }
        (std::collections::btree_map::Entry::Occupied(mut there), port) => {
            match (there.get_mut(), port) {
                (Port::Http(all), Port::Http(one)) => all.extend(one),
                (Port::Tls(all), Port::Tls(one)) => all.extend(one),
                // Conflicting listeners do not serve, so no other pair shares a port.
                _ => {}
            }
        }
    }
}

/// The table of every listener without routes: one, so that it stays the same.
static EMPTY: LazyLock<Arc<RouteTable<Arc<HttpRule>>>> = LazyLock::new(Arc::default);

fn http_listener(point: &AttachPoint, table: Option<&SlotTable>) -> HttpListener {
    let table = match table {
        Some(SlotTable::Http(table)) => table.clone(),
        _ => EMPTY.clone(),
    };
    HttpListener {
        name: crate::resolve::listener_label(point).into(),
        hostname: point.hostname.clone(),
        table,
    }
}

fn tls_listener(listener: &ResolvedListener, table: Option<&SlotTable>) -> Option<TlsListener> {
    let routes = || match table {
        Some(SlotTable::Tls(routes)) => routes.clone(),
        _ => HostMap::default(),
    };
    Some(match (&listener.attach.protocol, listener.mode) {
        (Protocol::Tls, TlsMode::Passthrough) => TlsListener::Passthrough { routes: routes() },
        (Protocol::Tls, TlsMode::Terminate) => {
            TlsListener::Terminate { tls: listener.tls.clone()?, routes: routes() }
        }
        _ => TlsListener::Https {
            tls: listener.tls.clone()?,
            http: Arc::new(http_listener(&listener.attach, table)),
        },
    })
}
