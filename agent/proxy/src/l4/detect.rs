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

/// Extensions of a ClientHello (RFC 6066 §3, RFC 7301 §3.1).
const SERVER_NAME: u16 = 0;
const APPLICATION_PROTOCOLS: u16 = 16;

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

/// Reads the server name out of the first TLS records (RFC 6066 §3).
#[must_use]
pub fn server_name(bytes: &[u8]) -> Sni {
    match client_hello(bytes) {
        Hello::NeedMore => Sni::NeedMore,
        Hello::Invalid => Sni::Invalid,
        Hello::Whole(hello) => name_of(&hello).unwrap_or(Sni::Invalid),
    }
}

/// Whether a ClientHello offers an application protocol (RFC 7301 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The ClientHello is not complete.
    NeedMore,
    /// It is among those offered.
    Yes,
    /// It is not; or this is no ClientHello.
    No,
}

/// Looks for an application protocol in the first TLS records.
#[must_use]
pub fn offers(bytes: &[u8], protocol: &[u8]) -> Offer {
    match client_hello(bytes) {
        Hello::NeedMore => Offer::NeedMore,
        Hello::Whole(hello) if names_protocol(&hello, protocol) == Some(true) => Offer::Yes,
        Hello::Whole(_) | Hello::Invalid => Offer::No,
    }
}

/// The first message of a TLS connection.
enum Hello {
    NeedMore,
    Invalid,
    /// Without its header.
    Whole(Vec<u8>),
}

/// Puts the ClientHello together (RFC 8446 §4.1.2, §5.1).
fn client_hello(bytes: &[u8]) -> Hello {
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        match handshake_length(&hello) {
            Some(length) if length > PEEK_MAX => return Hello::Invalid,
            Some(length) if hello.len() >= length => {
                hello.truncate(length);
                hello.drain(..4);
                return Hello::Whole(hello);
            }
            _ => {}
        }
        // A ClientHello may be split over several records.
        let [kind, major, minor, high, low, tail @ ..] = rest else {
            let start = [0x16, 3];
            let n = rest.len().min(2);
            return if rest[..n] == start[..n] { Hello::NeedMore } else { Hello::Invalid };
        };
        if (*kind, *major) != (0x16, 3) || *minor > 4 {
            return Hello::Invalid;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > PEEK_MAX + 2048 {
            return Hello::Invalid;
        }
        let have = length.min(tail.len());
        hello.extend_from_slice(&tail[..have]);
        if hello.first().is_some_and(|kind| *kind != 1) {
            return Hello::Invalid;
        }
        rest = &tail[have..];
        if have < length && handshake_length(&hello).is_none_or(|n| hello.len() < n) {
            return Hello::NeedMore;
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

/// The body of an extension, if it is there; `None` if the hello does not parse as far as that.
fn extension(hello: &[u8], wanted: u16) -> Option<Option<&[u8]>> {
    let mut reader = Reader(hello);
    reader.take(2 + 32)?; // version, random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    if reader.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = extensions.vector16()?;
        if kind == wanted {
            return Some(Some(body));
        }
    }
    Some(None)
}

/// `None` if it does not parse.
fn name_of(hello: &[u8]) -> Option<Sni> {
    let Some(body) = extension(hello, SERVER_NAME)? else {
        return Some(Sni::Absent);
    };
    let mut names = Reader(Reader(body).vector16()?);
    let kind = names.take(1)?[0];
    let name = std::str::from_utf8(names.vector16()?).ok()?;
    let plausible = kind == 0 && !name.is_empty() && name.len() <= 253 && name.is_ascii();
    plausible.then(|| Sni::Name(name.trim_end_matches('.').to_ascii_lowercase()))
}

/// `None` if it does not parse.
fn names_protocol(hello: &[u8], protocol: &[u8]) -> Option<bool> {
    let Some(body) = extension(hello, APPLICATION_PROTOCOLS)? else {
        return Some(false);
    };
    let mut names = Reader(Reader(body).vector16()?);
    while !names.0.is_empty() {
        if names.vector8()? == protocol {
            return Some(true);
        }
    }
    Some(false)
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
