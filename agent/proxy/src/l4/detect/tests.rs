use super::*;
use proptest::prelude::*;

#[test]
fn protocols_are_recognised() {
    use Detected::{Http1, Http2, NeedMore, Opaque, Tls};
    let check = |bytes: &[u8], expected: Detected| {
        assert_eq!(detect(bytes), expected, "{}", String::from_utf8_lossy(bytes));
    };
    check(b"", NeedMore);
    check(b"G", NeedMore);
    check(b"GET ", NeedMore);
    check(b"GET / HTTP/1.1\r\n", Http1);
    check(b"OPTIONS * HTTP/1.1\r\n", Http1);
    check(b"GET http://shop/ HTTP/1.1\r\n", Http1);
    check(b"OPTIONS rtsp://cam/ RTSP/1.0\r\n", Opaque);
    check(b"get /", Opaque);
    check(b"CONNECT shop:443 HTTP/1.1\r\n", Opaque);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n", NeedMore);
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0", Http2);
    check(b"PRI * HTTP/3", Opaque);
    check(b"P", NeedMore);
    check(b"PING\r\n", Opaque);
    check(b"EHLO shop\r\n", Opaque);
    check(b"*1\r\n$4\r\nPING\r\n", Opaque);
    check(b"\x16", NeedMore);
    check(b"\x16\x03\x01\x02\x00\x01", Tls);
    check(b"\x16\x03\x01\x02\x00\x02", Opaque);
    check(b"\x16\x16", Opaque);
    // MySQL, PostgreSQL's SSLRequest.
    check(b"\x4a\0\0\0\x0a8.0", Opaque);
    check(b"\0\0\0\x08\x04\xd2\x16\x2f", Opaque);
}

/// A ClientHello of rustls for `name`.
fn hello(name: &'static str) -> Vec<u8> {
    hello_with(name, &[])
}

/// The same with these application protocols.
fn hello_with(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let name = rustls_pki_types::ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

/// The same message in records of `size` bytes.
fn split(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for part in hello[5..].chunks(size) {
        out.extend_from_slice(&[0x16, 3, 1]);
        out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[test]
fn server_names_are_read() {
    let whole = hello("shop.example.com");
    let named = Sni::Name("shop.example.com".to_owned());
    assert_eq!(detect(&whole), Detected::Tls);
    assert_eq!(server_name(&whole), named);
    assert_eq!(server_name(&[&whole[..], b"more"].concat()), named);
    for size in [1, 7, 100] {
        assert_eq!(server_name(&split(&whole, size)), named, "records of {size} bytes");
    }
    assert_eq!(server_name(&hello("127.0.0.1")), Sni::Absent);
    for n in 0..whole.len() {
        assert_eq!(server_name(&whole[..n]), Sni::NeedMore, "{n} bytes");
    }
    assert_eq!(server_name(b"GET / HTTP/1.1\r\n"), Sni::Invalid);
}

#[test]
fn offered_protocols_are_found_in_split_hellos() {
    let ours = weft_certs::ALPN_WEFT;
    let check = |bytes: &[u8], expected: Offer| {
        assert_eq!(offers(bytes, ours), expected, "{} bytes", bytes.len());
    };
    let whole = hello_with("127.0.0.1", &[ours]);
    assert!(whole.len() > 1216, "with a post-quantum key share: {} bytes", whole.len());
    for n in 0..whole.len() {
        check(&whole[..n], Offer::NeedMore);
    }
    check(&whole, Offer::Yes);
    check(&[&whole[..], b"more"].concat(), Offer::Yes);
    for size in [1, 7, 512] {
        let records = split(&whole, size);
        check(&records[..records.len() - 1], Offer::NeedMore);
        check(&records, Offer::Yes);
    }
    check(&hello_with("shop.example.com", &[b"h2", ours]), Offer::Yes);
    check(&hello_with("shop.example.com", &[b"h2", b"http/1.1"]), Offer::No);
    check(&hello_with("shop.example.com", &[b"weft-hbone/10", b"weft-hbone"]), Offer::No);
    check(&hello("shop.example.com"), Offer::No);
    for other in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02\x00\x02", b"weft-hbone/1"] {
        check(other, Offer::No);
    }
}

proptest! {
    #[test]
    fn more_bytes_never_change_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0_usize..64) {
        let cut = cut.min(bytes.len());
        let early = detect(&bytes[..cut]);
        if early != Detected::NeedMore {
            prop_assert_eq!(early, detect(&bytes));
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = (server_name(&bytes), offers(&bytes, b"h2"));
        let record = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 190], &bytes[..]].concat();
        let _ = (server_name(&record), offers(&record, b"h2"));
    }

    #[test]
    fn a_damaged_hello_does_no_harm(at in 0_usize..400, value in any::<u8>()) {
        let mut bytes = hello("shop.example.com");
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = (server_name(&bytes), offers(&bytes, b"h2"));
    }
}
