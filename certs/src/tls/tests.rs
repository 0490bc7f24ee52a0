//! Handshakes in memory between configs made of certificates of every wrong kind.

use std::io;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, SanType};
use rustls::{HandshakeKind, NamedGroup, version::TLS12};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_core::model::SpiffeId;

use super::*;
use crate::{Ca, HandshakeFailure, key::SecretKey, verify::peer_identity};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[derive(Debug)]
struct Fixed(Timestamp);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        self.0
    }
}

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn settings() -> TlsSettings {
    TlsSettings { trust_domain: "cluster.local".into(), clock: Arc::new(Fixed(now())), client_configs: 2 }
}

/// A certificate that a careless CA might sign.
struct Forged<'a> {
    ca: &'a Ca,
    uris: &'a [&'a str],
    /// Validity in seconds from now.
    from: i64,
    to: i64,
}

impl Forged<'_> {
    fn credentials(&self, bundle: &TrustBundle) -> Credentials {
        let key = SecretKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            self.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let second = |s: i64| {
            let at = now() + SignedDuration::from_secs(s);
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(at.as_second().unsigned_abs())
        };
        (params.not_before, params.not_after) = (second(self.from), second(self.to));
        let issuer = Issuer::from_ca_cert_der(&self.ca.bundle().roots()[0], self.ca.key().pair()).unwrap();
        let leaf = params.signed_by(key.pair(), &issuer).unwrap().der().clone();
        let facts = LeafFacts::read(&leaf).unwrap();
        let key = Arc::new(CertifiedKey::new(vec![leaf], key.tls_key().unwrap()));
        Credentials::build(&settings(), Material { key, facts }, bundle.clone(), None).unwrap()
    }
}

/// What one side saw: the peer's identity, or why not.
type Seen = Result<SpiffeId, HandshakeFailure>;

fn seen(certificates: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Seen {
    Ok(peer_identity(certificates.unwrap()).unwrap())
}

/// The server sends a byte after the handshake: a TLS 1.3 client learns only afterwards that it was refused.
async fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (Seen, Seen, Option<HandshakeKind>) {
    let (near, far) = duplex(1 << 16);
    let fail = |e: io::Error| HandshakeFailure::from_io(&e);
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await.map_err(fail)?;
        stream.write_all(b"x").await.map_err(fail)?;
        assert_eq!(stream.get_ref().1.server_name(), None, "no SNI is sent");
        seen(stream.get_ref().1.peer_certificates())
    };
    let connect = async {
        let name = ServerName::try_from("10.0.0.1").unwrap();
        let offered = client.alpn_protocols.first().cloned();
        let mut stream = TlsConnector::from(client).connect(name, near).await.map_err(fail)?;
        stream.read_u8().await.map_err(fail)?;
        let tls = stream.get_ref().1;
        assert_eq!(tls.alpn_protocol(), offered.as_deref(), "the server takes what is offered");
        if tls.handshake_kind() == Some(HandshakeKind::Full) {
            assert_eq!(tls.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        }
        seen(tls.peer_certificates()).map(|id| (id, tls.handshake_kind()))
    };
    let (server, client) = tokio::join!(accept, connect);
    match client {
        Ok((id, kind)) => (server, Ok(id), kind),
        Err(e) => (server, Err(e), None),
    }
}

fn id(uri: &str) -> SpiffeId {
    SpiffeId::parse(uri).unwrap()
}

fn reason(seen: &Seen) -> &'static str {
    seen.as_ref().map_or_else(HandshakeFailure::reason, |_| "ok")
}

/// One handshake; `expected` is what the server and the client see.
async fn check(what: &str, ca: &Ca, [client, server]: [&Forged<'_>; 2], expected: (&str, &str)) {
    let (client, server) = (client.credentials(ca.bundle()), server.credentials(ca.bundle()));
    let peers = PeerSet::one(id(CART));
    for alpn in [Alpn::H2, Alpn::Weft] {
        let client = client.client(&peers, alpn).unwrap();
        let (by_server, by_client, _) = shake(server.server.clone(), client).await;
        assert_eq!((reason(&by_server), reason(&by_client)), expected, "{what}: {by_server:?} {by_client:?}");
        if expected == ("ok", "ok") {
            assert_eq!((by_server.unwrap(), by_client.unwrap()), (id(WEB), id(CART)));
        }
    }
}

#[tokio::test]
async fn each_side_accepts_the_right_peer_only() {
    let ours = Ca::create("cluster.local", now()).unwrap();
    let theirs = Ca::create("cluster.local", now()).unwrap();
    let good = |uris| Forged { ca: &ours, uris, from: -60, to: 3600 };
    let foreign = ["spiffe://other/ns/shop/sa/cart"];
    check("right", &ours, [&good(&[WEB]), &good(&[CART])], ("ok", "ok")).await;

    // (what is wrong, on either side, what the other side sees)
    let table = [
        ("trust domain", good(&foreign), "tls_wrong_identity"),
        ("two URIs", good(&[CART, WEB]), "tls_wrong_identity"),
        ("no name", good(&[]), "tls_wrong_identity"),
        ("no SPIFFE ID", good(&["https://cluster.local/ns/shop/sa/cart"]), "tls_wrong_identity"),
        ("run out", Forged { to: -1, ..good(&[CART]) }, "tls_expired_certificate"),
        ("not yet valid", Forged { from: 60, ..good(&[CART]) }, "tls_certificate_not_yet_valid"),
        ("another CA", Forged { ca: &theirs, ..good(&[CART]) }, "tls_unknown_issuer"),
    ];
    for (what, wrong, sees) in &table {
        check(what, &ours, [wrong, &good(&[CART])], (sees, "tls_refused_by_peer")).await;
        check(what, &ours, [&good(&[WEB]), wrong], ("tls_refused_by_peer", sees)).await;
    }
    let someone_else = good(&[WEB]);
    check(
        "not who was called",
        &ours,
        [&good(&[WEB]), &someone_else],
        ("tls_refused_by_peer", "tls_wrong_identity"),
    )
    .await;
}

#[tokio::test]
async fn a_set_of_peers_is_exact() {
    let ca = Ca::create("cluster.local", now()).unwrap();
    let party = |uris| Forged { ca: &ca, uris, from: -60, to: 3600 }.credentials(ca.bundle());
    let (client, server) = (party(&[WEB]), party(&[CART]));
    let other = "spiffe://cluster.local/ns/shop/sa/cart2";
    let table =
        [(vec![CART, other], "ok"), (vec![other], "tls_wrong_identity"), (vec![], "tls_wrong_identity")];
    for (peers, sees) in table {
        let peers = PeerSet::new(peers.into_iter().map(id));
        let (_, by_client, _) = shake(server.server.clone(), client.client(&peers, Alpn::H2).unwrap()).await;
        assert_eq!(reason(&by_client), sees, "{peers}");
    }
}

#[tokio::test]
async fn strangers_are_told_why() {
    let ca = Ca::create("cluster.local", now()).unwrap();
    let party = |uris| Forged { ca: &ca, uris, from: -60, to: 3600 }.credentials(ca.bundle());
    let server = party(&[CART]);
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = crypto_provider().kx_groups.clone();
    let provider = Arc::new(provider);
    let time = || Arc::new(TlsTime(Arc::new(Fixed(now()))));
    let verifier =
        || Arc::new(MeshVerifier::new(server.roots.clone(), Accept::Peers(PeerSet::one(id(CART)))).unwrap());

    let no_certificate = ClientConfig::builder_with_details(provider.clone(), time())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier())
        .with_no_client_auth();
    let mut no_certificate = no_certificate;
    no_certificate.enable_sni = false;
    let (by_server, _, _) = shake(server.server.clone(), Arc::new(no_certificate)).await;
    assert_eq!(by_server, Err(HandshakeFailure::NoCertificate));

    let old_client = ClientConfig::builder_with_details(provider.clone(), time())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier())
        .with_no_client_auth();
    let (by_server, by_client, _) = shake(server.server.clone(), Arc::new(old_client)).await;
    assert_eq!((by_server, by_client), (Err(HandshakeFailure::OldTls), Err(HandshakeFailure::OldTls)));

    let old_server = ServerConfig::builder_with_details(provider, time())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(server.material.key.clone())));
    let client = party(&[WEB]).client(&PeerSet::one(id(CART)), Alpn::H2).unwrap();
    let (_, by_client, _) = shake(Arc::new(old_server), client).await;
    assert_eq!(by_client, Err(HandshakeFailure::OldTls));

    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let error = TlsAcceptor::from(server.server.clone()).accept(far).await.unwrap_err();
    assert_eq!(HandshakeFailure::from_io(&error).reason(), "tls_not_tls", "{error}");
    let (near, far) = duplex(1 << 16);
    drop(near);
    let error = TlsAcceptor::from(server.server.clone()).accept(far).await.unwrap_err();
    assert_eq!(HandshakeFailure::from_io(&error).reason(), "tls_connection_broken", "{error}");
}

#[tokio::test]
async fn sessions_resume_until_the_roots_change() {
    let ca = Ca::create("cluster.local", now()).unwrap();
    let other = Ca::create("cluster.local", now()).unwrap();
    let party = |uris| Forged { ca: &ca, uris, from: -60, to: 3600 }.credentials(ca.bundle());
    let (client, server) = (party(&[WEB]), party(&[CART]));
    let config = client.client(&PeerSet::one(id(CART)), Alpn::H2).unwrap();
    let rotated =
        Credentials::build(&settings(), server.material.clone(), ca.bundle().clone(), Some(&server)).unwrap();
    let both = ca.bundle().with(other.bundle());
    let rerooted = Credentials::build(&settings(), server.material.clone(), both, Some(&rotated)).unwrap();
    let table = [
        (&server, HandshakeKind::Full),
        (&server, HandshakeKind::Resumed),
        (&rotated, HandshakeKind::Resumed),
        (&rerooted, HandshakeKind::Full),
    ];
    for (server, expected) in table {
        let (by_server, by_client, kind) = shake(server.server.clone(), config.clone()).await;
        assert_eq!((by_server, by_client, kind), (Ok(id(WEB)), Ok(id(CART)), Some(expected)));
    }
}

#[test]
fn client_configs_are_cached_up_to_a_bound() {
    let ca = Ca::create("cluster.local", now()).unwrap();
    let party = Forged { ca: &ca, uris: &[WEB], from: -60, to: 3600 }.credentials(ca.bundle());
    let peers = |n: u32| PeerSet::one(SpiffeId::new("cluster.local", "shop", format!("s{n}")));
    let first = party.client(&peers(1), Alpn::H2).unwrap();
    let second = party.client(&peers(2), Alpn::H2).unwrap();
    assert!(Arc::ptr_eq(&first, &party.client(&peers(1), Alpn::H2).unwrap()));
    party.client(&peers(3), Alpn::H2).unwrap(); // the bound is 2: the least recently used, 2, goes
    assert!(Arc::ptr_eq(&first, &party.client(&peers(1), Alpn::H2).unwrap()));
    assert!(!Arc::ptr_eq(&second, &party.client(&peers(2), Alpn::H2).unwrap()));
    assert_eq!(party.clients.lock().configs.len(), 2);
    let weft = party.client(&peers(1), Alpn::Weft).unwrap();
    assert_eq!((&first.alpn_protocols[0][..], &weft.alpn_protocols[0][..]), (ALPN_H2, ALPN_WEFT));
}

/// B5: a session ticket outlived its certificate by hours.
#[test]
fn a_ticket_is_good_as_long_as_the_certificate() {
    #[derive(Debug)]
    struct Set(Mutex<Timestamp>);
    impl Clock for Set {
        fn now(&self) -> Timestamp {
            *self.0.lock()
        }
    }
    let clock = Arc::new(Set(Mutex::new(now())));
    let until = now() + SignedDuration::from_secs(600);
    let tickets = Bounded { tickets: ticketer().unwrap(), clock: clock.clone(), until };
    assert!(tickets.enabled());
    assert_eq!(tickets.lifetime(), 600);
    let ticket = tickets.encrypt(b"a session").unwrap();
    *clock.0.lock() = until;
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"a session"[..]));
    *clock.0.lock() = until + SignedDuration::from_secs(1);
    assert_eq!((tickets.decrypt(&ticket), tickets.lifetime()), (None, 0));
    // Another certificate's, of the same keys, is another matter.
    let renewed =
        Bounded { until: until + SignedDuration::from_hours(24), tickets: tickets.tickets.clone(), clock };
    assert_eq!(renewed.decrypt(&ticket), None);
    assert_eq!(renewed.lifetime(), tickets.tickets.lifetime());
    assert_eq!(tickets.decrypt(b"garbage"), None);
}
