//! An HTTP/1.1 server that reads strictly by RFC 9112 and forgives nothing: what the agent sends it must be exactly one
//! request after the other, so anything that it cannot read is a panic.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// To which endpoint.
    pub to: SocketAddr,
    /// As written.
    pub method: String,
    /// As written.
    pub target: String,
    /// In order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// As far as it came.
    pub body: Vec<u8>,
    /// Whether all of the body came.
    pub whole: bool,
}

/// What all connections have seen.
pub type Log = Rc<RefCell<Vec<Seen>>>;

/// Serves a connection to its end.
pub async fn serve(to: SocketAddr, io: DuplexStream, log: Log) {
    let mut reader = Reader { io, bytes: Vec::new() };
    while let Some(head) = reader.head().await {
        let (mut seen, framing) = parse(to, &head);
        let index = log.borrow().len();
        log.borrow_mut().push(seen.clone());
        seen.whole = reader.body(framing, &mut seen.body).await;
        let (whole, is_head) = (seen.whole, seen.method == "HEAD");
        log.borrow_mut()[index] = seen;
        if !whole {
            return;
        }
        let body = if is_head { "" } else { "ok" };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-number: {index}\r\n\r\n{body}");
        if reader.io.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

fn parse(to: SocketAddr, head: &[u8]) -> (Seen, Framing) {
    let head = std::str::from_utf8(head).map_or_else(|_| latin1(head), ToOwned::to_owned);
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { panic!("no request line: {line:?}") };
    assert!(!method.is_empty() && method.bytes().all(is_token), "no method: {line:?}");
    assert!(
        target.starts_with('/') || (target == "*" && method == "OPTIONS"),
        "neither a path nor an asterisk: {line:?}"
    );
    assert!(target.bytes().all(|b| b > b' ' && b != 0x7f), "blanks or control characters: {line:?}");
    let headers: Vec<(String, String)> = lines.map(field).collect();
    let all =
        |name: &str| headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    assert!(all("host").len() <= 1, "several hosts: {head:?}");
    let framing = match (&all("transfer-encoding")[..], &all("content-length")[..]) {
        ([], []) => Framing::Length(0),
        (["chunked"], []) => Framing::Chunked,
        ([], [length]) if length.bytes().all(|b| b.is_ascii_digit()) => {
            Framing::Length(length.parse().unwrap_or_else(|_| panic!("no length: {head:?}")))
        }
        _ => panic!("the length can be read in several ways: {head:?}"),
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    (Seen { to, method, target, headers, body: Vec::new(), whole: false }, framing)
}

fn field(line: &str) -> (String, String) {
    let Some((name, value)) = line.split_once(':') else { panic!("no field: {line:?}") };
    assert!(!name.is_empty() && name.bytes().all(is_token), "no field name: {line:?}");
    assert!(value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)), "control characters: {line:?}");
    (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned())
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

struct Reader {
    io: DuplexStream,
    bytes: Vec<u8>,
}

impl Reader {
    async fn more(&mut self) -> bool {
        self.io.read_buf(&mut self.bytes).await.is_ok_and(|n| n > 0)
    }

    /// `None` at the end, which may come in the middle of a head: the client has gone.
    async fn head(&mut self) -> Option<Vec<u8>> {
        self.until(b"\r\n\r\n").await
    }

    /// What stands before `mark`.
    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(mark.len()).position(|w| w == mark) {
                let mut taken: Vec<u8> = self.bytes.drain(..at + mark.len()).collect();
                taken.truncate(at);
                return Some(taken);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, n: usize, into: &mut Vec<u8>) -> bool {
        while self.bytes.len() < n {
            if !self.more().await {
                return false;
            }
        }
        into.extend(self.bytes.drain(..n));
        true
    }

    /// Whether all of it came.
    async fn body(&mut self, framing: Framing, into: &mut Vec<u8>) -> bool {
        if let Framing::Length(n) = framing {
            return self.exactly(n, into).await;
        }
        loop {
            let Some(size) = self.until(b"\r\n").await else { return false };
            let size = std::str::from_utf8(&size).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
            let size = size.expect("a chunk's size");
            if size == 0 {
                // Trailers.
                loop {
                    match self.until(b"\r\n").await {
                        None => return false,
                        Some(line) if line.is_empty() => return true,
                        Some(line) => drop(field(&latin1(&line))),
                    }
                }
            }
            if !self.exactly(size, into).await {
                return false;
            }
            let mut end = Vec::new();
            if !self.exactly(2, &mut end).await {
                return false;
            }
            assert_eq!(end, b"\r\n", "a chunk's end");
        }
    }
}
