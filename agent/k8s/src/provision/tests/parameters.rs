//! `WeftGatewayConfig` in both forms.

use super::super::parameters::read_text;
use crate::{convert, yaml};
use std::time::Duration;
use weft_core::{
    message::PathAction,
    model::{GatewayParameters, GatewaySettings, ProxyProtocol},
};

/// The settings as text, or what is wrong.
fn line(settings: &Result<GatewaySettings, weft_core::model::Str>) -> String {
    match settings {
        Err(why) => format!("error: {why}"),
        Ok(s) => {
            let pool = s.pool.as_ref().map(|p| {
                p.iter().map(|r| format!("{}-{}", r.first(), r.last())).collect::<Vec<_>>().join(" ")
            });
            let class = s.load_balancer_class.as_deref();
            let sources = s.source_ranges.as_ref().map(Vec::len);
            format!(
                "{:?} {pool:?} {:?} {class:?} {sources:?} {:?}",
                s.mode,
                s.traffic_policy,
                s.node_selector.as_ref().map(|n| n.len())
            )
        }
    }
}

fn check(spec: &str, want: &str) {
    assert_eq!(line(&read_text(spec)), want.replace("config: ", "config.yaml: "), "ConfigMap {spec}");
    let object = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: WeftGatewayConfig\nmetadata: {{name: a, namespace: b}}\nspec: {spec}\n"
    );
    assert_eq!(line(&read_text(&object)), want.replace("config: ", "config.yaml: "), "whole {spec}");
    let (documents, _) = yaml::read(&object);
    let (config, problems) =
        convert::convert_gateway_config(&documents[0].value, &convert::Source::default()).expect("the kind");
    let settings = config.expect("metadata is right").settings;
    assert_eq!(line(&settings), want.replace("config: ", ""), "{spec}");
    assert_eq!(settings.is_err(), !problems.is_empty(), "{problems:?}");
}

#[test]
fn fields_are_read() {
    check("{}", "None None None None None None");
    check(
        "{addressMode: AddressPool, addressPool: {cidrs: [192.0.2.0/30, fd00::7], ranges: [192.0.2.9 - 192.0.2.11]}}",
        "Some(AddressPool) Some(\"192.0.2.1-192.0.2.2 fd00::7-fd00::7 192.0.2.9-192.0.2.11\") None None None None",
    );
    check(
        "{externalTrafficPolicy: Cluster, loadBalancerClass: a.example/lb, sourceRanges: [192.0.2.0/24], nodeSelector: {a: b}}",
        "None None Some(Cluster) Some(\"a.example/lb\") Some(1) Some(1)",
    );
}

#[test]
fn settings_for_clients_are_read() {
    let spec = "{paths: {repeatedSlashes: Normalize, escapedSlashes: Reject}, streamIdleTimeout: 0s, udpSessionTimeout: 90s, \
                clients: {trustedProxies: [192.0.2.0/24, 198.51.100.7], proxyProtocol: Required, traceContext: Trust}}";
    let settings = read_text(spec).expect("right");
    let paths = settings.paths.expect("paths");
    assert_eq!((paths.repeated_slashes, paths.escaped_slashes), (PathAction::Normalize, PathAction::Reject));
    assert_eq!((paths.backslashes, paths.parameters), (PathAction::Keep, PathAction::Keep));
    assert_eq!(settings.stream_idle, Some(Duration::ZERO));
    assert_eq!(settings.udp_session, Some(Duration::from_secs(90)));
    let clients = settings.clients.as_ref().expect("clients");
    assert_eq!((clients.proxy_protocol, clients.trust_trace), (ProxyProtocol::Required, true));
    for (peer, trusted) in
        [("192.0.2.9", true), ("198.51.100.7", true), ("198.51.100.8", false), ("::ffff:192.0.2.1", true)]
    {
        assert_eq!(clients.trusts(peer.parse().expect("an address")), trusted, "{peer}");
    }
    let all = GatewayParameters::new(None, Some(&settings)).expect("complete");
    assert_eq!((all.stream_idle, all.udp_session), (None, Duration::from_secs(90)));
}

#[test]
fn faults_name_the_field() {
    for (spec, want) in [
        (
            "{paths: {backslashes: Drop}}",
            "paths.backslashes: \"Drop\" is no action; write Keep, Normalize or Reject",
        ),
        (
            "{streamIdleTimeout: 5 minutes}",
            "streamIdleTimeout: \"5 minutes\" is no duration; write one such as 30s, 5m or 1h30m",
        ),
        (
            "{udpSessionTimeout: 0s}",
            "udpSessionTimeout: \"0s\" is no time to live; write a duration of a second or more such as 2m",
        ),
        (
            "{clients: {trustedProxies: [lb], proxyProtocol: Maybe, traceContext: Always}}",
            "clients.proxyProtocol: \"Maybe\" is no such choice; write Off or Required. clients.traceContext: \"Always\" is \
             no such choice; write Sample or Trust. clients.trustedProxies[0]: \"lb\" is no network; write a CIDR such as \
             192.0.2.0/24",
        ),
        (
            "{addressMode: Nowhere}",
            "addressMode: \"Nowhere\" is no mode; write LoadBalancer, AddressPool or HostPort",
        ),
        (
            "{adressMode: HostPort}",
            "adressMode: unknown field, it has no effect; did you mean \"addressMode\"?",
        ),
        ("{addressMode: 3}", "addressMode: expected text, found integer 3; put it in quotes"),
        (
            "{addressPool: {cidrs: [x], ranges: [192.0.2.9-192.0.2.1]}}",
            "addressPool.cidrs[0]: \"x\" is no network; write a CIDR such as 192.0.2.0/28. addressPool.ranges[0]: \
             \"192.0.2.9-192.0.2.1\" is no range of addresses; write the first and the last such as \
             192.0.2.10-192.0.2.20",
        ),
        ("{addressPool: {}}", "addressPool: has no addresses; give cidrs or ranges"),
        (
            "{sourceRanges: [all]}",
            "sourceRanges[0]: \"all\" is no network; write a CIDR such as 192.0.2.0/24",
        ),
        (
            "{externalTrafficPolicy: Any}",
            "externalTrafficPolicy: \"Any\" is no traffic policy; write Local or Cluster",
        ),
        ("{loadBalancerClass: \"\"}", "loadBalancerClass: is empty; leave it out for the cluster's default"),
    ] {
        check(spec, &format!("error: config: {want}"));
    }
    assert_eq!(line(&read_text("")), "error: config.yaml: has 0 YAML documents; write one");
    assert!(
        line(&read_text("a: [")).starts_with("error: config.yaml: line "),
        "{}",
        line(&read_text("a: ["))
    );
}
