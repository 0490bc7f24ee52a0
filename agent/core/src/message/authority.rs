//! The grammar of `Host` and `:authority`.

use std::net::Ipv6Addr;

/// Which bytes a name may be made of (RFC 3986 §3.2.2): unreserved characters and sub-delimiters. A percent sign counts,
/// and is looked at once more.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=%";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

/// Whether this is `host [":" port]` with a host that is not empty (RFC 9110 §4.2.1, §7.2; RFC 3986 §3.2): no userinfo, no
/// port beyond 65535, an IPv6 address only in brackets.
#[must_use]
pub fn is_authority(text: &[u8]) -> bool {
    if let Some(rest) = text.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
        let address = std::str::from_utf8(&rest[..end]).ok().and_then(|a| a.parse::<Ipv6Addr>().ok());
        return address.is_some() && is_port(&rest[end + 1..]);
    }
    let end = text.iter().position(|b| !NAME[usize::from(*b)]).unwrap_or(text.len());
    let (host, port) = text.split_at(end);
    !host.is_empty() && is_encoded(host) && is_port(port)
}

/// Nothing, or a colon and a number; the number may be left out (RFC 3986 §3.2.3).
fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0')) <= u32::from(u16::MAX)
        }
        _ => false,
    }
}

/// Whether each percent sign has its two digits.
fn is_encoded(host: &[u8]) -> bool {
    let mut rest = host;
    while let Some(at) = rest.iter().position(|b| *b == b'%') {
        match rest[at + 1..] {
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest = &rest[at + 3..],
            _ => return false,
        }
    }
    true
}
