//! Bytes to HTTP/2 frames: bytes alone hardly ever make a header block that decodes.

use crate::Bytes;

/// What an HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Names that something looks at.
const NAMES: [&str; 32] = [
    ":method",
    ":path",
    ":scheme",
    ":authority",
    ":protocol",
    ":status",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "cookie",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "traceparent",
    "baggage",
    "x-weft-reason",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "content-type",
    "grpc-timeout",
    "origin",
    "x-a",
    "X-A",
    "x a",
    "",
];

/// Values that something looks at.
const VALUES: [&str; 40] = [
    "GET",
    "POST",
    "HEAD",
    "OPTIONS",
    "CONNECT",
    "/",
    "/admin",
    "/admin/x",
    "/exact",
    "/public/../admin",
    "/%61dmin",
    "/old/a?b=c",
    "*",
    "http",
    "https",
    "shop.example",
    "a.b:80",
    "a@b",
    "",
    "0",
    "3",
    "03",
    "3, 3",
    "chunked",
    "gzip, chunked",
    "close",
    "trailers",
    "websocket",
    "100-continue",
    "application/grpc",
    "10.0.0.1:80",
    "10.0.0.1:15008",
    "[::1]:80",
    "10.0.0.2:80",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "a=b; c",
    "x\r\ny",
    "#x",
    "//x",
    "a b",
];

/// The client's half of a connection, as `input` says.
#[must_use]
pub fn connection(input: &[u8]) -> Vec<u8> {
    let mut input = Bytes(input);
    let mut out = PREFACE.to_vec();
    frame(&mut out, 4, 0, 0, &[]);
    let mut next = 1;
    while !input.is_empty() {
        step(&mut input, &mut out, &mut next);
    }
    out
}

fn step(input: &mut Bytes<'_>, out: &mut Vec<u8>, next: &mut u32) {
    let (kind, stream) = (input.byte() % 11, input.byte());
    // Streams begin in order; what belongs to one counts back from the last, or names it.
    let stream = match stream {
        _ if kind == 1 => std::mem::replace(next, *next + 2),
        back @ ..8 => next.saturating_sub(u32::from(back) * 2 + 2) | 1,
        named => u32::from(named % 16) * 2 + 1,
    };
    match kind {
        0 => {
            let flags = input.byte();
            let block = fields(input);
            // Without PADDED and PRIORITY: those are for raw frames.
            frame(out, 1, flags & 0x5, stream, &block);
        }
        1 => {
            let block = request(input);
            let flags = 4 | (input.byte() & 1);
            frame(out, 1, flags, stream, &block);
        }
        2 => {
            let (flags, length) = (input.byte() & 1, usize::from(input.byte()));
            frame(out, 0, flags, stream, input.take(length));
        }
        3 => frame(out, 3, 0, stream, &[0, 0, 0, input.byte() % 16]),
        4 => {
            let stream = if input.byte() & 1 == 0 { 0 } else { stream };
            let by: [u8; 4] = std::array::from_fn(|_| input.byte());
            frame(out, 8, 0, stream, &by);
        }
        5 => {
            let entries = usize::from(input.byte() % 4) * 6;
            frame(out, 4, 0, 0, input.take(entries));
        }
        6 => frame(out, 6, input.byte() & 1, 0, &[1, 2, 3, 4, 5, 6, 7, 8]),
        7 => {
            let flags = input.byte() & 4;
            let block = fields(input);
            frame(out, 9, flags, stream, &block);
        }
        8 => {
            let (kind, flags, length) = (input.byte(), input.byte(), usize::from(input.byte()));
            let stream = if input.byte() & 1 == 0 { 0 } else { stream };
            frame(out, kind, flags, stream, input.take(length));
        }
        9 => {
            let length = usize::from(input.byte());
            out.extend_from_slice(input.take(length));
        }
        // Trailers.
        _ => {
            let block = fields(input);
            frame(out, 1, 5, stream, &block);
        }
    }
}

/// A header block that is a request, with some fields more.
fn request(input: &mut Bytes<'_>) -> Vec<u8> {
    let pick = |input: &mut Bytes<'_>, from: &[&'static str]| from[usize::from(input.byte()) % from.len()];
    let mut block = Vec::new();
    let method = pick(input, &["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PUT"]);
    literal(&mut block, b":method", method.as_bytes());
    // 0: as CONNECT has it (RFC 9113 §8.5).
    if method != "CONNECT" || input.byte() & 1 == 1 {
        literal(&mut block, b":scheme", pick(input, &["http", "https"]).as_bytes());
        let path = pick(input, &["/", "/admin", "/exact", "/old/x", "/public/../admin", "/a?b", "*", ""]);
        if path.is_empty() {
            let length = usize::from(input.byte() % 32);
            literal(&mut block, b":path", input.take(length));
        } else {
            literal(&mut block, b":path", path.as_bytes());
        }
    }
    let to =
        pick(input, &["shop.example", "10.0.0.1:80", "10.0.0.1:15008", "[::1]:8080", "10.0.0.1:443", ""]);
    if to.is_empty() {
        let length = usize::from(input.byte() % 32);
        literal(&mut block, b":authority", input.take(length));
    } else {
        literal(&mut block, b":authority", to.as_bytes());
    }
    block.extend(fields(input));
    block
}

/// Up to seven fields.
fn fields(input: &mut Bytes<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for _ in 0..input.byte() % 8 {
        let (name, value) = (input.byte(), input.byte());
        let name = match NAMES.get(usize::from(name)) {
            Some(name) => name.as_bytes(),
            None => input.take(usize::from(name % 12)),
        };
        let value = match VALUES.get(usize::from(value)) {
            Some(value) => value.as_bytes(),
            None => input.take(usize::from(value % 24)),
        };
        literal(&mut block, name, value);
    }
    block
}

/// A literal field without indexing (RFC 7541 §6.2.2); both parts are shorter than 127 bytes.
fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).unwrap_or(0) & 0x7f);
        block.extend_from_slice(text);
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend([kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}
