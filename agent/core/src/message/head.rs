//! Whether the first bytes of a connection are a request that HTTP's reader takes, on a port where nobody has said what is
//! spoken. What it would refuse is none of ours to answer: it goes on as bytes, and whoever listens there decides.

use super::is_authority;
use http::{Method, Uri};

/// What is known of the first head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has not come to its end.
    NeedMore,
    /// HTTP/1, to be read as such.
    Http,
    /// Nothing that HTTP's reader would take without a word of its own.
    Bytes,
}

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes, with the empty line.
    pub bytes: usize,
    /// Header fields.
    pub fields: usize,
}

/// Judges the beginning of a connection (RFC 9112 §2–§3, §5–§6). More bytes never change an answer other than
/// [`Admission::NeedMore`]. It is stricter than HTTP need be: a bare line feed, a folded line or a blank too many is no
/// fault to whom it is passed on as bytes.
#[must_use]
pub fn admits(bytes: &[u8], limits: HeadLimits) -> Admission {
    let mut lines = Lines(bytes);
    let version = match lines.next() {
        Line::More if bytes.len() < limits.bytes => return Admission::NeedMore,
        Line::Whole(line) => request_line(line),
        _ => return Admission::Bytes,
    };
    let Some(minor) = version else { return Admission::Bytes };
    let (mut fields, mut told) = (0, Told::default());
    loop {
        match lines.next() {
            Line::More if bytes.len() < limits.bytes => return Admission::NeedMore,
            Line::Whole([]) => {
                let fits = bytes.len() - lines.0.len() <= limits.bytes;
                return if fits && told.is_whole(minor) { Admission::Http } else { Admission::Bytes };
            }
            Line::Whole(line) if fields < limits.fields && told.field(line) => fields += 1,
            _ => return Admission::Bytes,
        }
    }
}

struct Lines<'a>(&'a [u8]);

enum Line<'a> {
    Whole(&'a [u8]),
    /// Its end is not here.
    More,
    /// A line feed, or a carriage return, by itself.
    Broken,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Line<'a> {
        match self.0.iter().position(|b| matches!(*b, b'\r' | b'\n')) {
            None => Line::More,
            Some(at) => match &self.0[at..] {
                [b'\r', b'\n', rest @ ..] => {
                    let line = &self.0[..at];
                    self.0 = rest;
                    Line::Whole(line)
                }
                [b'\r'] => Line::More,
                _ => Line::Broken,
            },
        }
    }
}

/// The minor version, if this is a request line with a target that can be passed on as it is.
fn request_line(line: &[u8]) -> Option<u8> {
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let minor = match (version, words.next()) {
        (b"HTTP/1.0", None) => 0,
        (b"HTTP/1.1", None) => 1,
        _ => return None,
    };
    let method = Method::from_bytes(method).ok().filter(|m| *m != Method::CONNECT)?;
    // A fragment would be cut off silently.
    if target.contains(&b'#') {
        return None;
    }
    let target = Uri::try_from(target).ok()?;
    let (mut parts, ()) = http::Request::new(()).into_parts();
    (parts.method, parts.uri) = (method, target);
    super::check(&parts).is_ok().then_some(minor)
}

/// What the fields have told.
#[derive(Default)]
struct Told {
    host: bool,
    length: bool,
    chunked: bool,
}

impl Told {
    /// Whether the field is well-formed, and fits to what was told before.
    fn field(&mut self, line: &[u8]) -> bool {
        let Some(colon) = line.iter().position(|b| *b == b':') else { return false };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) || !value.iter().all(|b| is_text(*b)) {
            return false;
        }
        if name.eq_ignore_ascii_case(b"host") {
            return !std::mem::replace(&mut self.host, true) && is_authority(value);
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            return !std::mem::replace(&mut self.length, true) && super::request::is_canonical(value);
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return !std::mem::replace(&mut self.chunked, true) && value.eq_ignore_ascii_case(b"chunked");
        }
        true
    }

    fn is_whole(&self, minor: u8) -> bool {
        match minor {
            // Nobody knows how HTTP/1.0 means a transfer coding (RFC 9112 §6.1).
            0 => !self.chunked,
            _ => self.host && !(self.chunked && self.length),
        }
    }
}

/// RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// RFC 9110 §5.5: a tab, a blank, or what can be seen.
const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
