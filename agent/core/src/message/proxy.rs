//! The header of the PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`), by which a load balancer says for whom
//! it speaks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header of version 2 begins with (§2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// `PROXY UNKNOWN` and its end: shorter than any header of version 2.
const V1_MIN: usize = 15;
/// The longest header of version 1 (§2.1).
const V1_MAX: usize = 107;
/// The longest header of version 2 that is read: addresses and some hundred bytes of extensions.
const V2_MAX: usize = 16 + 1024;

/// What was found at a connection's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// It is not whole: this many bytes more belong to it at least. Reading so many never reads what follows it.
    NeedMore(usize),
    /// It is whole. The client; `None` where the proxy speaks for itself (a health check), or does not know.
    Whole(Option<SocketAddr>),
    /// No such header.
    Invalid,
}

/// Reads the header from the bytes that have come, which must be no more than it was asked for.
#[must_use]
pub fn read(bytes: &[u8]) -> Header {
    let begins = |whole: &[u8]| {
        let n = whole.len().min(bytes.len());
        whole[..n] == bytes[..n]
    };
    if bytes.is_empty() {
        // Of either version: not a byte of what may follow the shortest.
        return Header::NeedMore(V1_MIN);
    }
    if begins(&SIGNATURE) {
        return version2(bytes);
    }
    if begins(b"PROXY ") { version1(bytes) } else { Header::Invalid }
}

fn version1(bytes: &[u8]) -> Header {
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        return match bytes.len() {
            V1_MAX.. => Header::Invalid,
            n @ ..V1_MIN => Header::NeedMore(V1_MIN - n),
            _ => Header::NeedMore(1),
        };
    };
    let Ok(line) = std::str::from_utf8(line) else { return Header::Invalid };
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Header::Whole(None),
        ["PROXY", family, from, to, from_port, to_port] => {
            let address = |text: &str| match family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
                "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                _ => None,
            };
            let port = |text: &str| text.parse::<u16>().ok();
            match (address(from), port(from_port), address(to), port(to_port)) {
                (Some(ip), Some(port), Some(_), Some(_)) => Header::Whole(Some(SocketAddr::new(ip, port))),
                _ => Header::Invalid,
            }
        }
        _ => Header::Invalid,
    }
}

fn version2(bytes: &[u8]) -> Header {
    let [head @ .., high, low] = bytes.get(..16).unwrap_or_default() else {
        return Header::NeedMore(16 - bytes.len());
    };
    let whole = 16 + usize::from(u16::from_be_bytes([*high, *low]));
    if whole > V2_MAX {
        return Header::Invalid;
    }
    if bytes.len() < whole {
        return Header::NeedMore(whole - bytes.len());
    }
    let body = &bytes[16..whole];
    match (head[12], head[13] >> 4) {
        // LOCAL, or a family that is not the Internet's.
        (0x20, _) | (0x21, 0 | 3) => Header::Whole(None),
        (0x21, 1) => match body {
            [a, b, c, d, _, _, _, _, high, low, ..] => {
                client(Ipv4Addr::new(*a, *b, *c, *d).into(), [*high, *low])
            }
            _ => Header::Invalid,
        },
        (0x21, 2) => match (body.first_chunk::<16>(), body.get(32..34)) {
            (Some(ip), Some([high, low])) => client(Ipv6Addr::from(*ip).into(), [*high, *low]),
            _ => Header::Invalid,
        },
        _ => Header::Invalid,
    }
}

fn client(ip: IpAddr, port: [u8; 2]) -> Header {
    Header::Whole(Some(SocketAddr::new(ip, u16::from_be_bytes(port))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
        header.extend(body);
        header
    }

    /// Reads as a connection does: never more than was asked for.
    fn check(header: &[u8], wanted: Header) {
        let mut stream = header.to_vec();
        stream.extend(b"GET / HTTP/1.1\r\n");
        let mut read_so_far = 0;
        let found = loop {
            match read(&stream[..read_so_far]) {
                Header::NeedMore(n) => read_so_far += n,
                found => break found,
            }
        };
        assert_eq!(found, wanted, "{}", String::from_utf8_lossy(header));
        if let Header::Whole(_) = wanted {
            assert_eq!(read_so_far, header.len(), "not a byte of what follows");
        }
    }

    #[test]
    fn headers_of_both_versions() {
        let whole = |text: &str| Header::Whole(Some(text.parse().expect("an address")));
        check(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", whole("192.0.2.1:56324"));
        check(b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", whole("[2001:db8::1]:1"));
        check(b"PROXY UNKNOWN\r\n", Header::Whole(None));
        check(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Header::Whole(None));
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        check(&v2(0x21, 0x11, &four), whole("192.0.2.1:56324"));
        check(&v2(0x21, 0x11, &[&four[..], b"\x03\0\x04abcd"].concat()), whole("192.0.2.1:56324"));
        check(&v2(0x20, 0x00, &[]), Header::Whole(None));
        let mut six = [0; 36];
        (six[0], six[1], six[15], six[33]) = (0x20, 1, 7, 80);
        check(&v2(0x21, 0x21, &six), whole("[2001::7]:80"));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 99999 1\r\n",
            b"PROXY  TCP4 192.0.2.1 198.51.100.1 1 1\r\n",
            &[b"PROXY TCP4 ", &[b'1'; 120][..]].concat(),
            &v2(0x31, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 4]),
            &v2(0x21, 0x11, &[0; 2000]),
        ] {
            check(bad, Header::Invalid);
        }
    }
}
