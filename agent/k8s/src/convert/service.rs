//! Service and EndpointSlice.

use super::{Cx, meta};
use crate::path;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use std::{collections::HashSet, net::IpAddr};
use weft_core::model::{
    EndpointSlice, Kind, ObjectKey, PlacementAddress, Service, ServicePort, ServiceType, SliceEndpoint,
    SlicePort, Str, TransportProtocol,
};

/// The label by which a slice belongs to a Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

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
    Some(Service {
        cluster_ips: cluster_ips(spec.cluster_ip, spec.cluster_ips, kind, cx),
        meta,
        kind,
        ports,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        traffic_distribution: spec.traffic_distribution.map(Str::from),
        ingress: ingress(object.status),
    })
}

/// What the load balancer answers at. A hostname counts only without an address: then it stands for it.
fn ingress(status: Option<core::ServiceStatus>) -> Vec<PlacementAddress> {
    let entries = status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
    let one = |e: core::LoadBalancerIngress| {
        let ip = e.ip.and_then(|ip| ip.parse().ok()).map(PlacementAddress::Ip);
        ip.or_else(|| e.hostname.filter(|h| !h.is_empty()).map(|h| PlacementAddress::Hostname(h.into())))
    };
    entries.into_iter().filter_map(one).collect()
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
    // discovery/v1: nil ready is true; nil serving follows ready.
    let ready = conditions.ready.unwrap_or(true);
    let pod = e.target_ref.filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| {
        let own = &cx.value["metadata"]["namespace"];
        let namespace = t.namespace.unwrap_or_else(|| own.as_str().unwrap_or("default").to_owned());
        Some(ObjectKey::new(namespace, t.name?))
    });
    SliceEndpoint {
        addresses,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: e.node_name.map(Str::from),
        zone: e.zone.map(Str::from),
        pod,
    }
}
