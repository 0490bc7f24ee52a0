//! What a span says, by OpenTelemetry's HTTP and RPC conventions (semconv 1.44), as pure functions.

use super::{
    record::{RequestHead, RequestRecord},
    span::TryRecord,
};
use http::{HeaderValue, Method, Version};
use opentelemetry::{Key, KeyValue, StringValue, Value, trace::Status};
use std::borrow::Cow;
use weft_core::model::{Str, Workload};

/// Private attributes that name the workload of a span for the exporter, which strips them.
pub(super) const PRIVATE: [&str; 4] =
    ["weft.private.namespace", "weft.private.pod", "weft.private.app", "weft.private.node"];

/// See [`PRIVATE`]. No text is copied.
pub(super) fn private(workload: &Workload) -> [KeyValue; 4] {
    let node = workload.node.clone().unwrap_or_else(|| "".into());
    let values = [&workload.pod.namespace, &workload.pod.name, &workload.app, &node].map(text);
    let mut values = values.into_iter();
    PRIVATE.map(|key| KeyValue::new(key, values.next().unwrap_or(Value::Bool(false))))
}

fn text(value: &Str) -> Value {
    Value::String(StringValue::from(value.clone()))
}

/// Methods of RFC 9110 and PATCH (RFC 5789). Any other is `_OTHER`: a client may not make names.
pub(super) fn method(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH") => {
            known
        }
        _ => "_OTHER",
    }
}

/// `{method} {route}`: never the raw path. An unknown method is shown as `HTTP` in names.
pub(super) fn name(record: &RequestRecord<'_>) -> String {
    let method = record.head.map_or("_OTHER", |head| method(&head.method));
    let method = if method == "_OTHER" { "HTTP" } else { method };
    match record.rule {
        Some(rule) if !rule.label.is_empty() => format!("{method} {}", rule.label),
        _ => method.to_owned(),
    }
}

/// The attributes of a SERVER span.
pub(super) fn server(record: &RequestRecord<'_>) -> Vec<KeyValue> {
    let mut out = Vec::with_capacity(32);
    if let Some(head) = record.head {
        push(&mut out, "url.path", head.uri.path().to_owned());
        push(&mut out, "url.scheme", scheme(head.https));
        address(&mut out, "server", &head.authority_text(), if head.https { 443 } else { 80 });
        if let Some(agent) = &head.user_agent {
            push(&mut out, "user_agent.original", lossy(agent));
        }
        protocol(&mut out, head.version);
    }
    push(&mut out, "network.peer.address", record.peer.ip().to_string());
    push(&mut out, "network.peer.port", i64::from(record.peer.port()));
    push(&mut out, "client.address", record.client.unwrap_or(record.peer).ip().to_string());
    common(&mut out, record);
    response(&mut out, record.code, server_error(record));
    rpc(&mut out, record.head, record.grpc_status);
    if let Some(identity) = record.client_identity() {
        push(&mut out, "weft.source.identity", identity.to_string());
    }
    if let Some(identity) = record.destination_identity {
        push(&mut out, "weft.destination.identity", identity.to_string());
    }
    if let Some(reason) = record.reason {
        push(&mut out, "weft.reason", reason.as_str());
    }
    out
}

/// The attributes of a CLIENT span.
pub(super) fn client(record: &RequestRecord<'_>, outcome: &TryRecord<'_>) -> Vec<KeyValue> {
    let mut out = Vec::with_capacity(24);
    if let Some(head) = record.head {
        let tls = record.backend.is_some_and(|b| b.tls.is_some());
        let authority = head.authority_text();
        // Without the query: it may hold secrets.
        push(&mut out, "url.full", format!("{}://{authority}{}", scheme(tls), head.uri.path()));
    }
    push(&mut out, "server.address", outcome.endpoint.ip().to_string());
    push(&mut out, "server.port", i64::from(outcome.endpoint.port()));
    push(&mut out, "network.peer.address", outcome.endpoint.ip().to_string());
    push(&mut out, "network.peer.port", i64::from(outcome.endpoint.port()));
    if outcome.resend > 0 {
        push(&mut out, "http.request.resend_count", i64::from(outcome.resend));
    }
    common(&mut out, record);
    response(&mut out, outcome.code.unwrap_or(0), client_error(outcome));
    rpc(&mut out, record.head, outcome.grpc_status);
    if let Some(identity) = record.client_identity() {
        push(&mut out, "weft.source.identity", identity.to_string());
    }
    if let Some(identity) = outcome.identity {
        push(&mut out, "weft.destination.identity", identity.to_string());
    }
    if let Some(reason) = outcome.reason {
        push(&mut out, "weft.reason", reason.as_str());
    }
    out
}

/// A server's status: only its own failures are errors.
pub(super) fn server_status(record: &RequestRecord<'_>) -> Status {
    match server_error(record) {
        Some(why) => Status::error(why),
        None => Status::Unset,
    }
}

/// A client's status: 4xx and 5xx alike, and every gRPC status but OK.
pub(super) fn client_status(outcome: &TryRecord<'_>) -> Status {
    match client_error(outcome) {
        Some(why) => Status::error(why),
        None => Status::Unset,
    }
}

/// `error.type` of a SERVER span: the reason of the agent if it is to blame for a 5xx, else the code.
fn server_error(record: &RequestRecord<'_>) -> Option<Cow<'static, str>> {
    if let Some(status) = record.grpc_status {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: the server's own failures.
        return matches!(status, 2 | 4 | 12 | 13 | 14 | 15).then(|| grpc_code(status).into());
    }
    match (record.code, record.reason) {
        (0 | 500.., Some(reason)) => Some(reason.as_str().into()),
        (500.., None) => Some(record.code.to_string().into()),
        _ => None,
    }
}

fn client_error(outcome: &TryRecord<'_>) -> Option<Cow<'static, str>> {
    if let Some(reason) = outcome.reason {
        return Some(reason.as_str().into());
    }
    match (outcome.grpc_status, outcome.code) {
        (Some(0), _) => None,
        (Some(status), _) => Some(grpc_code(status).into()),
        (None, Some(code @ 400..)) => Some(code.to_string().into()),
        _ => None,
    }
}

fn common(out: &mut Vec<KeyValue>, record: &RequestRecord<'_>) {
    if let Some(head) = record.head {
        let known = method(&head.method);
        push(out, "http.request.method", known.to_owned());
        if known == "_OTHER" {
            push(out, "http.request.method_original", head.method.as_str().to_owned());
        }
    }
    if let Some(rule) = record.rule {
        push(out, "http.route", text(&rule.label));
        push(out, "weft.route", rule.id.route.to_string());
        push(out, "weft.rule", rule.id.name.as_ref().map_or(Value::I64(i64::from(rule.id.index)), text));
    }
    if let Some(backend) = record.backend {
        push(out, "weft.backend", format!("{}:{}", backend.key.service, backend.key.port));
    }
}

fn response(out: &mut Vec<KeyValue>, code: u16, error: Option<Cow<'static, str>>) {
    if code != 0 {
        push(out, "http.response.status_code", i64::from(code));
    }
    if let Some(why) = error {
        push(out, "error.type", why);
    }
}

fn rpc(out: &mut Vec<KeyValue>, head: Option<&RequestHead>, status: Option<u16>) {
    let Some(head) = head.filter(|h| h.grpc) else { return };
    push(out, "rpc.system.name", "grpc");
    push(out, "rpc.method", head.uri.path().trim_start_matches('/').to_owned());
    if let Some(status) = status {
        push(out, "rpc.response.status_code", grpc_code(status));
    }
}

fn protocol(out: &mut Vec<KeyValue>, version: Version) {
    push(out, "network.protocol.version", version_text(version));
}

/// `1.1`, `2`: as `network.protocol.version` wants it.
pub(super) fn version_text(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// The name of a gRPC status code; one that does not exist is `UNKNOWN`, as clients treat it.
pub(super) fn grpc_code(status: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(status)).unwrap_or(&"UNKNOWN")
}

/// `host[:port]` split; IPv6 without its brackets.
fn address(out: &mut Vec<KeyValue>, side: &str, authority: &str, default_port: u16) {
    if authority.is_empty() {
        return;
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    push(out, format!("{side}.address"), host.to_owned());
    push(out, format!("{side}.port"), i64::from(port.unwrap_or(default_port)));
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

fn lossy(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn push(out: &mut Vec<KeyValue>, key: impl Into<Key>, value: impl Into<Value>) {
    out.push(KeyValue::new(key, value));
}

impl RequestHead {
    fn authority_text(&self) -> Cow<'_, str> {
        // `user:password@` never reaches a span.
        let authority = self.authority();
        let host = authority.iter().rposition(|b| *b == b'@').map_or(authority, |at| &authority[at + 1..]);
        String::from_utf8_lossy(host)
    }
}

#[cfg(test)]
mod tests;
