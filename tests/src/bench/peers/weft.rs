//! Weft: `weft run` on a directory of YAML, as a person would without a cluster.

use super::{BACKEND, Ports, Setup, Who};
use crate::bench::place::argv;
use anyhow::{Context as _, Result};
use std::{fmt::Write as _, fs};

/// The most rules that the HTTPRoute CRD allows.
const RULES: usize = 16;

pub(super) fn prepare(setup: &Setup<'_>) -> Result<Vec<String>> {
    let config = setup.dir.join("config");
    fs::create_dir_all(&config)?;
    fs::write(config.join("gateway.yaml"), gateway(setup)?)?;
    fs::write(config.join("routes.yaml"), routes(setup))?;
    let base = Ports::of(Who::Weft).http;
    let at = |offset: u16| format!("127.0.0.1:{}", base + offset);
    let (weft, ca, access) = (setup.weft, setup.dir.join("ca"), setup.dir.join("access.log"));
    let access = if setup.log { access.to_str().context("path")? } else { "off" };
    Ok(argv(&[
        weft.to_str().context("path")?,
        "run",
        "--config",
        config.to_str().context("path")?,
        "--ca-dir",
        ca.to_str().context("path")?,
        "--workers",
        &setup.workers.to_string(),
        "--access-log",
        access,
        "--admin",
        &at(10),
        "--metrics",
        &at(11),
    ]))
}

fn gateway(setup: &Setup<'_>) -> Result<String> {
    let ports = Ports::of(Who::Weft);
    let indent = |path| -> Result<String> {
        Ok(fs::read_to_string(path)?.lines().map(|l| format!("    {l}\n")).collect())
    };
    let (certificate, key) = (indent(setup.certificate.0)?, indent(setup.certificate.1)?);
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: weft}}\n\
         spec: {{controllerName: weft.dev/gateway-controller}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: bench, name: edge}}\n\
         spec:\n  gatewayClassName: weft\n  listeners:\n  - {{name: http, port: {}, protocol: HTTP}}\n  \
         - {{name: https, port: {}, protocol: HTTPS, tls: {{certificateRefs: [{{name: edge}}]}}}}\n  \
         - {{name: h2c, port: {}, protocol: HTTP}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{namespace: bench, name: edge}}\ntype: kubernetes.io/tls\n\
         stringData:\n  tls.crt: |\n{certificate}  tls.key: |\n{key}",
        ports.http, ports.https, ports.h2c
    );
    for (name, port, protocol) in
        [("web", BACKEND.http, ""), ("grpc", BACKEND.h2c, ", appProtocol: kubernetes.io/h2c")]
    {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: bench, name: {name}}}\n\
             spec: {{clusterIP: None, ports: [{{port: 80{protocol}}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{namespace: bench, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n"
        );
    }
    Ok(text)
}

fn routes(setup: &Setup<'_>) -> String {
    let mut text = route("grpc", &["h2c"], None, "grpc", &["/".into()]);
    let all = setup.routes.all();
    // All routes of a host stand together, so cutting at a change of host keeps the order.
    for (host_number, host) in all.chunk_by(|a, b| a.0 == b.0).enumerate() {
        let paths: Vec<String> = host.iter().map(|(_, path)| path.clone()).collect();
        for (number, rules) in paths.chunks(RULES).enumerate() {
            let name = format!("web-{host_number}-{number}");
            let host = host.first().and_then(|(host, _)| host.as_deref());
            text.push_str("---\n");
            text.push_str(&route(&name, &["http", "https"], host, "web", rules));
        }
    }
    text
}

fn route(name: &str, listeners: &[&str], host: Option<&str>, backend: &str, paths: &[String]) -> String {
    let parents: String = listeners.iter().map(|l| format!("{{name: edge, sectionName: {l}}}, ")).collect();
    let host = host.map(|h| format!("  hostnames: [{h}]\n")).unwrap_or_default();
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: bench, name: {name}}}\n\
         spec:\n  parentRefs: [{parents}]\n{host}  rules:\n"
    );
    for path in paths {
        let _ = writeln!(
            text,
            "  - {{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], backendRefs: [{{name: {backend}, port: 80}}]}}"
        );
    }
    text
}
