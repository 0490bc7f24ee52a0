//! The access log: one JSON object a line, encoded straight into a buffer. Every byte that a client chose is escaped;
//! what is not UTF-8 becomes U+FFFD, so that any line can be parsed.

use super::{
    attributes::version_text,
    record::{ConnectionRecord, RequestRecord},
};
use jiff::Timestamp;
use std::{
    fmt::{self, Display, Write},
    time::{Duration, SystemTime},
};
use weft_core::model::{SpiffeId, Workload};

/// Appends the line of a request. `now` is its end.
pub(super) fn request(out: &mut Vec<u8>, record: &RequestRecord<'_>, now: SystemTime, query: bool) {
    let mut line = Line::open(out, now);
    line.text("kind", "request");
    line.text("direction", record.direction.as_str());
    line.display("source", record.client.unwrap_or(record.peer));
    line.display("peer", record.peer);
    line.side("source", record.client_identity(), record.source.map(|w| &**w));
    let destination = record.endpoint.and_then(|e| e.workload.as_deref());
    line.side("destination", record.destination_identity, destination);
    if let Some(head) = record.head {
        line.text("method", head.method.as_str());
        line.text("scheme", if head.https { "https" } else { "http" });
        line.bytes("authority", head.authority());
        let path = head.uri.path_and_query().filter(|_| query).map_or(head.uri.path(), |p| p.as_str());
        line.text("path", path);
        if let Some(agent) = &head.user_agent {
            line.bytes("user_agent", agent.as_bytes());
        }
        line.text("protocol", if head.grpc { "grpc" } else { "http" });
        line.text("version", version_text(head.version));
    }
    line.number("code", record.code.into());
    if let Some(status) = record.grpc_status {
        line.number("grpc_status", status.into());
    }
    line.number("bytes_in", record.request_bytes);
    line.number("bytes_out", record.response_bytes);
    line.duration(record.duration);
    if let Some(parent) = record.parent {
        line.display("parent", parent);
    }
    if let Some(rule) = record.rule {
        line.rule(&rule.id);
    }
    if let Some(backend) = record.backend {
        line.display("backend", format_args!("{}:{}", backend.key.service, backend.key.port));
    }
    if let Some(endpoint) = record.endpoint {
        line.display("endpoint", endpoint.addr);
    }
    line.display("trace_id", record.trace.trace_id);
    line.display("span_id", record.trace.span_id);
    line.number("tries", record.tries.into());
    if let Some(reason) = record.reason {
        line.text("reason", reason.as_str());
    }
    line.close();
}

/// Appends the line of a connection. `now` is its end.
pub(super) fn connection(out: &mut Vec<u8>, record: &ConnectionRecord<'_>, now: SystemTime) {
    let mut line = Line::open(out, now);
    line.text("kind", "connection");
    line.text("direction", record.direction.as_str());
    line.display("source", record.peer);
    line.display("peer", record.peer);
    line.side("source", record.client_identity(), record.source.map(|w| &**w));
    line.side("destination", record.destination_identity, record.destination.map(|w| &**w));
    line.text("protocol", record.protocol);
    line.number("bytes_in", record.received_bytes);
    line.number("bytes_out", record.sent_bytes);
    line.duration(record.duration);
    if let Some(parent) = record.parent {
        line.display("parent", parent);
    }
    if let Some(rule) = record.rule {
        line.rule(rule);
    }
    if let Some(backend) = record.backend {
        line.display("backend", format_args!("{}:{}", backend.service, backend.port));
    }
    if let Some(endpoint) = record.endpoint {
        line.display("endpoint", endpoint);
    }
    if let Some(trace) = record.trace {
        line.display("trace_id", trace.trace_id);
        line.display("span_id", trace.span_id);
    }
    if let Some(reason) = record.reason {
        line.text("reason", reason.as_str());
    }
    if let Some(detail) = record.detail {
        line.text("detail", detail);
    }
    line.close();
}

/// An object under way. Names are our own and need no escape.
struct Line<'a>(&'a mut Vec<u8>);

impl<'a> Line<'a> {
    fn open(out: &'a mut Vec<u8>, now: SystemTime) -> Self {
        out.push(b'{');
        let mut line = Self(out);
        let time = Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH);
        line.display("time", format_args!("{time:.6}"));
        line
    }

    fn close(self) {
        self.0.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push(b'"');
        escape(self.0, value);
        self.0.push(b'"');
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        for chunk in value.utf8_chunks() {
            escape(self.0, chunk.valid());
            if !chunk.invalid().is_empty() {
                escape(self.0, "\u{fffd}");
            }
        }
        self.0.push(b'"');
    }

    fn display(&mut self, name: &str, value: impl Display) {
        self.name(name);
        self.0.push(b'"');
        // Never fails: the buffer grows.
        let _ = write!(Escaped(self.0), "{value}");
        self.0.push(b'"');
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        let _ = write!(Escaped(self.0), "{value}");
    }

    fn duration(&mut self, value: Duration) {
        self.name("duration_ms");
        let micros = value.as_micros();
        let _ = write!(Escaped(self.0), "{}.{:03}", micros / 1000, micros % 1000);
    }

    fn rule(&mut self, id: &weft_core::config::RuleId) {
        self.text("route_kind", id.kind.kind().as_str());
        self.display("route", &id.route);
        match &id.name {
            Some(name) => self.text("rule", name),
            None => self.display("rule", id.index),
        }
    }

    /// Identity, namespace, pod and workload of one side.
    fn side(&mut self, side: &'static str, identity: Option<&SpiffeId>, workload: Option<&Workload>) {
        let names = if side == "source" {
            ["source_identity", "source_namespace", "source_pod", "source_workload"]
        } else {
            ["destination_identity", "destination_namespace", "destination_pod", "destination_workload"]
        };
        if let Some(identity) = identity {
            self.display(names[0], identity);
        }
        let Some(workload) = workload else { return };
        if side == "source" && identity.is_none() {
            // Nobody proved it: another field, so that no query takes it for who it was.
            self.display("source_by_address", &workload.pod);
        } else {
            self.text(names[1], &workload.pod.namespace);
            self.text(names[2], &workload.pod.name);
            self.text(names[3], &workload.app);
        }
    }
}

/// Formats straight into a JSON string.
struct Escaped<'a>(&'a mut Vec<u8>);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

/// RFC 8259 §7. Runs without anything to escape are copied whole.
fn escape(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..at]);
        from = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
}

#[cfg(test)]
mod tests;
