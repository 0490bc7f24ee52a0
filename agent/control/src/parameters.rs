//! `WeftGatewayConfig` out of a ConfigMap, as it travels to agents. (Those of the kind itself agents watch.)

use crate::{
    delta::Malformed,
    wire::{Clients, Parameters, Texts},
};
use std::time::Duration;
use weft_core::{
    message::{PathAction, PathRules},
    model::{AddressMode, ClientRules, GatewaySettings, IpRange, Labels, ProxyProtocol, Str, TrafficPolicy},
};

/// What was read of a ConfigMap's `config.yaml`, or what is wrong with it.
pub(crate) type Read = Result<GatewaySettings, Str>;

/// For the wire.
pub(crate) fn to_wire(read: &Read) -> Parameters {
    let settings = match read {
        Ok(settings) => settings,
        Err(why) => return Parameters { invalid: Some(why.to_string()), ..Parameters::default() },
    };
    let ends = |range: &IpRange| [range.first().to_string(), range.last().to_string()];
    let label = |(name, value): (&Str, &Str)| [name.to_string(), value.to_string()];
    let list = |texts: Vec<String>| Texts { texts };
    Parameters {
        invalid: None,
        mode: settings.mode.map(|mode| mode.as_str().to_owned()),
        pool: settings.pool.as_ref().map(|pool| list(pool.iter().flat_map(ends).collect())),
        any_node: settings.traffic_policy.map(|policy| policy == TrafficPolicy::Cluster),
        load_balancer_class: settings.load_balancer_class.as_deref().map(ToOwned::to_owned),
        source_ranges: settings
            .source_ranges
            .as_ref()
            .map(|ranges| list(ranges.iter().map(ToString::to_string).collect())),
        node_selector: settings
            .node_selector
            .as_ref()
            .map(|labels| list(labels.iter().flat_map(label).collect())),
        paths: settings.paths.map(|paths| {
            let PathRules { repeated_slashes, escaped_slashes, backslashes, parameters } = paths;
            let all = [repeated_slashes, escaped_slashes, backslashes, parameters];
            list(all.into_iter().map(|action| action.as_str().to_owned()).collect())
        }),
        stream_idle_ms: settings.stream_idle.map(millis),
        udp_session_ms: settings.udp_session.map(millis),
        clients: settings.clients.as_ref().map(|clients| Clients {
            proxy_protocol: clients.proxy_protocol.as_str().to_owned(),
            trusted: clients.trusted.iter().map(ToString::to_string).collect(),
            trust_trace: clients.trust_trace,
        }),
    }
}

/// Durations are read from text that knows nothing finer.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Back from the wire.
pub(crate) fn from_wire(parameters: Parameters) -> Result<Read, Malformed> {
    if let Some(why) = parameters.invalid {
        return Ok(Err(why.into()));
    }
    let mode = |text: String| AddressMode::parse(&text).ok_or(Malformed::Part { what: "an address mode" });
    let policy = |any_node| if any_node { TrafficPolicy::Cluster } else { TrafficPolicy::Local };
    let networks = |list: Texts| -> Result<_, Malformed> {
        let network = |text: String| text.parse().map_err(|_| Malformed::Part { what: "a network" });
        list.texts.into_iter().map(network).collect()
    };
    Ok(Ok(GatewaySettings {
        mode: parameters.mode.map(mode).transpose()?,
        pool: parameters.pool.map(ranges).transpose()?,
        traffic_policy: parameters.any_node.map(policy),
        load_balancer_class: parameters.load_balancer_class.map(Into::into),
        source_ranges: parameters.source_ranges.map(networks).transpose()?,
        node_selector: parameters.node_selector.map(labels).transpose()?,
        paths: parameters.paths.map(paths).transpose()?,
        stream_idle: parameters.stream_idle_ms.map(Duration::from_millis),
        udp_session: parameters.udp_session_ms.map(Duration::from_millis),
        clients: parameters.clients.map(clients).transpose()?,
    }))
}

fn paths(list: Texts) -> Result<PathRules, Malformed> {
    const MALFORMED: Malformed = Malformed::Part { what: "what to do with paths" };
    let actions: Option<Vec<_>> = list.texts.iter().map(|text| PathAction::parse(text)).collect();
    let [repeated_slashes, escaped_slashes, backslashes, parameters] =
        *actions.as_deref().ok_or(MALFORMED)?
    else {
        return Err(MALFORMED);
    };
    Ok(PathRules { repeated_slashes, escaped_slashes, backslashes, parameters })
}

fn clients(wire: Clients) -> Result<ClientRules, Malformed> {
    let network = |text: String| text.parse().map_err(|_| Malformed::Part { what: "a network" });
    Ok(ClientRules {
        proxy_protocol: ProxyProtocol::parse(&wire.proxy_protocol)
            .ok_or(Malformed::Part { what: "a use of the PROXY protocol" })?,
        trusted: wire.trusted.into_iter().map(network).collect::<Result<_, _>>()?,
        trust_trace: wire.trust_trace,
    })
}

fn ranges(list: Texts) -> Result<Vec<IpRange>, Malformed> {
    const MALFORMED: Malformed = Malformed::Part { what: "a range of addresses" };
    let range = |(first, last): (String, String)| {
        let (first, last) = (first.parse().map_err(|_| MALFORMED)?, last.parse().map_err(|_| MALFORMED)?);
        IpRange::new(first, last).ok_or(MALFORMED)
    };
    pairs(list)?.map(range).collect()
}

fn labels(list: Texts) -> Result<Labels, Malformed> {
    Ok(pairs(list)?.map(|(name, value)| (name.into(), value.into())).collect())
}

/// Entries that come one after the other, two by two.
fn pairs(list: Texts) -> Result<impl Iterator<Item = (String, String)>, Malformed> {
    if !list.texts.len().is_multiple_of(2) {
        return Err(Malformed::Part { what: "a list of pairs" });
    }
    let mut texts = list.texts.into_iter();
    Ok(std::iter::from_fn(move || texts.next().zip(texts.next())))
}
