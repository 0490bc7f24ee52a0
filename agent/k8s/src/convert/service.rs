//! Service and EndpointSlice.

use super::{Cx, meta};
use crate::path;
use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use std::{collections::HashSet, net::IpAddr, time::Duration};
use weft_core::model::{
    EndpointSlice, IpFamily, Kind, ObjectKey, PlacementAddress, Service, ServicePort, ServiceType,
    SliceEndpoint, SlicePort, Str, TransportProtocol,
};

/// The label by which a slice belongs to a Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// `DefaultClientIPServiceAffinitySeconds` and `MaxClientIPServiceAffinitySeconds` of the core API.
const AFFINITY_SECONDS: i32 = 10_800;
const AFFINITY_SECONDS_MAX: i32 = 86_400;

pub(super) fn service(cx: &mut Cx<'_>) -> Option<Service> {
    let object: core::Service = cx.object()?;
    let meta = meta::of(Kind::Service, object.metadata, cx)?;
    let spec = object.spec.unwrap_or_default();
    let kind = service_type(&spec, cx);
    let written = spec.ports.unwrap_or_default();
    if written.is_empty() && !matches!(kind, ServiceType::ExternalName | ServiceType::Headless) {
        cx.report.reject("spec.ports", "is required", "a Service needs at least one port");
    }
    let ports = service_ports(written, cx);
    let cluster_ips = cluster_ips(spec.cluster_ip, spec.cluster_ips, kind, cx);
    let families = spec.ip_families.unwrap_or_default();
    let config = spec.session_affinity_config.and_then(|c| c.client_ip);
    let (ingress, vips) = ingress(object.status);
    Some(Service {
        meta,
        kind,
        ports,
        family: cluster_ips.first().map(|ip| IpFamily::of(*ip)).or_else(|| family(families.first()?)),
        cluster_ips,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        client_ip_affinity: (spec.session_affinity.as_deref() == Some("ClientIP"))
            .then(|| affinity(config.and_then(|c| c.timeout_seconds), cx)),
        external_ips: external_ips(spec.external_ips.unwrap_or_default(), cx),
        ingress,
        vips,
        source_ranges: source_ranges(spec.load_balancer_source_ranges.unwrap_or_default(), cx),
    })
}

fn family(text: &String) -> Option<IpFamily> {
    match text.as_str() {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        _ => None,
    }
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, three hours when left out.
fn affinity(seconds: Option<i32>, cx: &mut Cx<'_>) -> Duration {
    let seconds = seconds.unwrap_or(AFFINITY_SECONDS);
    if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) {
        let at = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let remedy = format!("it must be from 1 to {AFFINITY_SECONDS_MAX}");
        cx.report.reject(at, format!("{seconds} is out of range"), remedy);
    }
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Addresses that an API server would not let be external ones are no Service's.
fn external_ips(texts: Vec<String>, cx: &mut Cx<'_>) -> Vec<IpAddr> {
    let all = ips(texts.iter().map(String::as_str), "spec.externalIPs", cx);
    let special = |ip: &IpAddr| {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local
    };
    for ip in all.iter().filter(|ip| special(ip)) {
        let remedy = "write one that others can reach";
        cx.report.reject("spec.externalIPs", format!("{ip} is no address of the network"), remedy);
    }
    all.into_iter().filter(|ip| !special(ip)).collect()
}

fn source_ranges(texts: Vec<String>, cx: &mut Cx<'_>) -> Vec<IpNet> {
    let mut out = Vec::new();
    // The API server lets blanks around them pass.
    for text in texts.iter().map(|t| t.trim()) {
        match text.parse::<IpNet>() {
            Ok(range) => out.push(range.trunc()),
            Err(_) => {
                let reason = format!("\"{text}\" is no address range");
                cx.report.reject("spec.loadBalancerSourceRanges", reason, "write one like 192.0.2.0/24");
            }
        }
    }
    out
}

/// What the load balancer answers at, and which of it need not pass the load balancer. A hostname counts only without an
/// address: then it stands for it.
fn ingress(status: Option<core::ServiceStatus>) -> (Vec<PlacementAddress>, Vec<IpAddr>) {
    let entries = status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
    let (mut all, mut vips) = (Vec::new(), Vec::new());
    for e in entries {
        if let Some(ip) = e.ip.and_then(|ip| ip.parse().ok()) {
            all.push(PlacementAddress::Ip(ip));
            if e.ip_mode.as_deref() != Some("Proxy") {
                vips.push(ip);
            }
        } else if let Some(host) = e.hostname.filter(|h| !h.is_empty()) {
            all.push(PlacementAddress::Hostname(host.into()));
        }
    }
    (all, vips)
}

fn service_type(spec: &core::ServiceSpec, cx: &mut Cx<'_>) -> ServiceType {
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ExternalName" => ServiceType::ExternalName,
        "ClusterIP" if spec.cluster_ip.as_deref() == Some("None") => ServiceType::Headless,
        "ClusterIP" => ServiceType::ClusterIp,
        "NodePort" => ServiceType::NodePort,
        "LoadBalancer" => ServiceType::LoadBalancer,
        other => {
            let remedy = "write ClusterIP, NodePort, LoadBalancer or ExternalName";
            cx.report.reject("spec.type", format!("\"{other}\" is no type of Service"), remedy);
            ServiceType::ClusterIp
        }
    }
}

fn cluster_ips(
    one: Option<String>,
    all: Option<Vec<String>>,
    kind: ServiceType,
    cx: &mut Cx<'_>,
) -> Vec<IpAddr> {
    if matches!(kind, ServiceType::Headless | ServiceType::ExternalName) {
        return Vec::new();
    }
    let listed = all.filter(|a| !a.is_empty());
    let at = if listed.is_some() { "spec.clusterIPs" } else { "spec.clusterIP" };
    let written = listed.unwrap_or_else(|| one.into_iter().filter(|ip| !ip.is_empty()).collect());
    ips(written.iter().map(String::as_str), at, cx)
}

fn ips<'a>(texts: impl Iterator<Item = &'a str>, at: &str, cx: &mut Cx<'_>) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(ip) => out.push(ip),
            Err(_) => {
                cx.report.reject(at, format!("\"{text}\" is no IP address"), "write an IPv4 or IPv6 address")
            }
        }
    }
    out
}

fn service_ports(ports: Vec<core::ServicePort>, cx: &mut Cx<'_>) -> Vec<ServicePort> {
    let (many, mut names, mut numbers) = (ports.len() > 1, HashSet::new(), HashSet::new());
    let mut out = Vec::new();
    for (i, p) in ports.into_iter().enumerate() {
        let at = path::index("spec.ports", i);
        let name = p.name.unwrap_or_default();
        if many && name.is_empty() {
            cx.report.reject(
                &path::key(&at, "name"),
                "is required",
                "name each port when there is more than one",
            );
        } else if many && !names.insert(name.clone()) {
            let reason = format!("another port is named \"{name}\"");
            cx.report.reject(&path::key(&at, "name"), reason, "give each port a name of its own");
        }
        let protocol = protocol(p.protocol.as_deref(), &at, cx);
        let Some(port) = port(p.port, &at, cx) else { continue };
        if !numbers.insert((port, protocol)) {
            cx.report.reject(
                &path::key(&at, "port"),
                format!("{port} is there already"),
                "remove one of the two",
            );
        }
        let app_protocol = p.app_protocol.filter(|a| !a.is_empty()).map(Str::from);
        out.push(ServicePort { name: name.into(), port, protocol, app_protocol });
    }
    out
}

fn port(number: i32, at: &str, cx: &mut Cx<'_>) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|p| *p > 0);
    if port.is_none() {
        // A missing number reads as 0.
        let reason = if number == 0 { "is required".to_owned() } else { format!("{number} is out of range") };
        cx.report.reject(&path::key(at, "port"), reason, "it must be from 1 to 65535");
    }
    port
}

fn protocol(text: Option<&str>, at: &str, cx: &mut Cx<'_>) -> TransportProtocol {
    match text.unwrap_or("TCP") {
        "TCP" | "" => TransportProtocol::Tcp,
        "UDP" => TransportProtocol::Udp,
        "SCTP" => TransportProtocol::Sctp,
        other => {
            let remedy = "write TCP, UDP or SCTP; HTTP and the like go into appProtocol";
            cx.report.reject(&path::key(at, "protocol"), format!("\"{other}\" is no protocol"), remedy);
            TransportProtocol::Tcp
        }
    }
}

pub(super) fn endpoint_slice(cx: &mut Cx<'_>) -> Option<EndpointSlice> {
    let object: discovery::EndpointSlice = cx.object()?;
    let meta = meta::of(Kind::EndpointSlice, object.metadata, cx)?;
    let v6 = match object.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        "FQDN" => {
            let remedy = "list IP addresses instead (addressType IPv4 or IPv6)";
            cx.report.reject("addressType", "slices of names (FQDN) are not served", remedy);
            return None;
        }
        other => {
            let reason =
                if other.is_empty() { "is required".to_owned() } else { format!("\"{other}\" is not known") };
            cx.report.reject("addressType", reason, "write IPv4 or IPv6");
            return None;
        }
    };
    let Some(service) = meta.labels.get(SERVICE_NAME) else {
        let remedy = format!("add the label \"{SERVICE_NAME}: SERVICE\"");
        cx.report.warn("metadata.labels", "the slice belongs to no Service and is left out", remedy);
        return None;
    };
    let service = ObjectKey::new(meta.key.namespace.clone(), service.clone());
    let ports = slice_ports(object.ports.unwrap_or_default(), cx);
    let mut endpoints = Vec::new();
    for (i, e) in object.endpoints.into_iter().flatten().enumerate() {
        endpoints.push(endpoint(e, v6, &path::index("endpoints", i), cx));
    }
    Some(EndpointSlice { meta, service, endpoints, ports })
}

fn slice_ports(ports: Vec<discovery::EndpointPort>, cx: &mut Cx<'_>) -> Vec<SlicePort> {
    let mut out = Vec::new();
    for (i, p) in ports.into_iter().enumerate() {
        let at = path::index("ports", i);
        let protocol = protocol(p.protocol.as_deref(), &at, cx);
        // "If this is not specified, the context of the specific consumer decides": nothing to connect to here.
        let Some(number) = p.port else { continue };
        let Some(port) = port(number, &at, cx) else { continue };
        let app_protocol = p.app_protocol.filter(|a| !a.is_empty()).map(Str::from);
        out.push(SlicePort { name: p.name.unwrap_or_default().into(), port, protocol, app_protocol });
    }
    out
}

fn endpoint(e: discovery::Endpoint, v6: bool, at: &str, cx: &mut Cx<'_>) -> SliceEndpoint {
    let at_addresses = path::key(at, "addresses");
    let addresses = ips(e.addresses.iter().map(String::as_str), &at_addresses, cx);
    if e.addresses.is_empty() {
        cx.report.reject(&at_addresses, "is empty", "give at least one address");
    }
    if let Some(odd) = addresses.iter().find(|a| a.is_ipv6() != v6) {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let remedy = "put each family into a slice of its own";
        cx.report.reject(&at_addresses, format!("{odd} is in a slice of addressType {family}"), remedy);
    }
    let conditions = e.conditions.unwrap_or_default();
    let hints = e.hints.unwrap_or_default();
    let for_zones = hints.for_zones.into_iter().flatten().map(|z| z.name.into()).collect();
    let for_nodes = hints.for_nodes.into_iter().flatten().map(|n| n.name.into()).collect();
    let pod = e.target_ref.filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| {
        let own = &cx.value["metadata"]["namespace"];
        let namespace = t.namespace.unwrap_or_else(|| own.as_str().unwrap_or("default").to_owned());
        Some(ObjectKey::new(namespace, t.name?))
    });
    SliceEndpoint {
        addresses,
        // discovery/v1: nil is true of both.
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: e.node_name.map(Str::from),
        zone: e.zone.map(Str::from),
        for_zones,
        for_nodes,
        pod,
    }
}
