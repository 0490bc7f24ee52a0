//! What a client speaks, from its first bytes. Pure.

/// Enough bytes to decide anything; beyond this a client has had its chance.
pub const PEEK_MAX: usize = 16 * 1024;

/// What the bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 preface: prior knowledge, so also gRPC.
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Anything else.
    Opaque,
    /// Could still become one of the others.
    NeedMore,
}

/// Start of the HTTP/2 connection preface (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Methods whose requests are routed. CONNECT is left out: a tunnel through a Service passes untouched. A method that
/// is not in the list passes untouched too.
const METHODS: [&[u8]; 15] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"REPORT ",
    b"SEARCH ",
];

/// Recognises the protocol. More bytes never change an answer other than [`Detected::NeedMore`].
#[must_use]
pub fn detect(bytes: &[u8]) -> Detected {
    let begins = |whole: &[u8]| {
        let n = whole.len().min(bytes.len());
        whole[..n] == bytes[..n]
    };
    if begins(PREFACE) {
        return if bytes.len() >= PREFACE.len() { Detected::Http2 } else { Detected::NeedMore };
    }
    // Record type handshake, version 3.x, two bytes of length, then handshake type client_hello.
    if bytes.first() == Some(&0x16) {
        return match bytes {
            [_, 3, 0..=4, _, _, 1, ..] => Detected::Tls,
            [_] | [_, 3] | [_, 3, 0..=4] | [_, 3, 0..=4, _] | [_, 3, 0..=4, _, _] => Detected::NeedMore,
            _ => Detected::Opaque,
        };
    }
    match METHODS.iter().find(|m| begins(m)) {
        None => Detected::Opaque,
        Some(method) => match bytes.get(method.len()) {
            // RTSP and SIP have the same methods, but targets of their own scheme.
            Some(b'/' | b'*' | b'h' | b'H') => Detected::Http1,
            Some(_) => Detected::Opaque,
            None => Detected::NeedMore,
        },
    }
}

/// The server name of a ClientHello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// The ClientHello is not complete.
    NeedMore,
    /// No ClientHello, or one that does not parse.
    Invalid,
    /// Complete, without a name.
    Absent,
    /// Lower case.
    Name(String),
}

/// Reads the server name out of the first TLS records (RFC 8446 §4.1.2, RFC 6066 §3).
#[must_use]
pub fn server_name(bytes: &[u8]) -> Sni {
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        match handshake_length(&hello) {
            Some(length) if length > PEEK_MAX => return Sni::Invalid,
            Some(length) if hello.len() >= length => {
                return name_of(&hello[4..length]).unwrap_or(Sni::Invalid);
            }
            _ => {}
        }
        // A ClientHello may be split over several records.
        let [kind, major, minor, high, low, tail @ ..] = rest else {
            let start = [0x16, 3];
            let n = rest.len().min(2);
            return if rest[..n] == start[..n] { Sni::NeedMore } else { Sni::Invalid };
        };
        if (*kind, *major) != (0x16, 3) || *minor > 4 {
            return Sni::Invalid;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > PEEK_MAX + 2048 {
            return Sni::Invalid;
        }
        let have = length.min(tail.len());
        hello.extend_from_slice(&tail[..have]);
        if hello.first().is_some_and(|kind| *kind != 1) {
            return Sni::Invalid;
        }
        rest = &tail[have..];
        if have < length && handshake_length(&hello).is_none_or(|n| hello.len() < n) {
            return Sni::NeedMore;
        }
    }
}

/// Of the handshake message with its header, once that is there.
fn handshake_length(hello: &[u8]) -> Option<usize> {
    match hello {
        [_, a, b, c, ..] => Some(4 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c))),
        _ => None,
    }
}

/// `None` if it does not parse.
fn name_of(hello: &[u8]) -> Option<Sni> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?; // version, random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    if reader.0.is_empty() {
        return Some(Sni::Absent);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = extensions.vector16()?;
        if kind == 0 {
            let mut names = Reader(Reader(body).vector16()?);
            let kind = names.take(1)?[0];
            let name = std::str::from_utf8(names.vector16()?).ok()?;
            let plausible = kind == 0 && !name.is_empty() && name.len() <= 253 && name.is_ascii();
            return plausible.then(|| Sni::Name(name.trim_end_matches('.').to_ascii_lowercase()));
        }
    }
    Some(Sni::Absent)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let n = self.take(1)?[0];
        self.take(usize::from(n))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
mod tests;
