//! TLS to backends (BackendTLSPolicy): who is trusted, under which name, and what we show.

use super::support::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as Key};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use weft_core::{
    config::{AppProtocol, BackendTls},
    model::{CaBundle, Hostname, KeyPair, PrivateKey, SubjectAltName, TlsSettings, TlsVersion, Validity},
};

struct TestCa {
    issuer: Issuer<'static, Key>,
    der: CertificateDer<'static>,
}

impl TestCa {
    fn new() -> Self {
        let key = Key::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn pair(&self, names: &[&str]) -> Arc<KeyPair> {
        let key = Key::generate().unwrap();
        let params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Arc::new(KeyPair {
            chain: vec![certificate.der().to_vec()],
            key: PrivateKey::new(key.serialize_der()),
            names: names.iter().map(|n| (*n).into()).collect(),
            validity: Validity::default(),
        })
    }

    fn bundle(&self) -> CaBundle {
        CaBundle(Arc::new(vec![self.der.to_vec()]))
    }
}

/// A TLS backend; with `clients`, it demands a certificate of theirs.
async fn tls_app(pair: &KeyPair, clients: Option<&TestCa>, inner: SocketAddr) -> SocketAddr {
    tls_app_of(rustls::ALL_VERSIONS, pair, clients, inner).await
}

async fn tls_app_of(
    versions: &[&'static rustls::SupportedProtocolVersion],
    pair: &KeyPair,
    clients: Option<&TestCa>,
    inner: SocketAddr,
) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der.clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let chain = pair.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(pair.key.expose().to_vec()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((io, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                let Ok(mut io) = acceptor.accept(io).await else { return };
                let mut app = TcpStream::connect(inner).await.unwrap();
                // Either side may reset.
                let _ = tokio::io::copy_bidirectional(&mut io, &mut app).await;
            });
        }
    });
    addr
}

#[test]
fn backends_over_tls_are_verified_as_their_policy_says() {
    run(async {
        let app = App::named("app").await;
        let (ca, other, gateways) = (TestCa::new(), TestCa::new(), TestCa::new());
        let pair = ca.pair(&["inner.example"]);
        let open = tls_app(&pair, None, app.addr).await;
        let strict = tls_app(&pair, Some(&gateways), app.addr).await;
        let dns = |name: &str| SubjectAltName::Hostname(Hostname::parse(name).unwrap());
        let uri = SubjectAltName::Uri("spiffe://cluster.local/ns/a/sa/b".into());
        // endpoint, roots, hostname, SANs, the Gateway's certificate, protocol, code
        let certificate = Some(gateways.pair(&["edge"]));
        let cases = [
            (open, ca.bundle(), "inner.example", vec![], None, AppProtocol::Http, 200),
            (open, ca.bundle(), "inner.example", vec![], None, AppProtocol::H2c, 200),
            (open, ca.bundle(), "wrong.example", vec![], None, AppProtocol::Http, 503),
            (open, other.bundle(), "inner.example", vec![], None, AppProtocol::Http, 503),
            (open, ca.bundle(), "sni.example", vec![dns("inner.example")], None, AppProtocol::Http, 200),
            (open, ca.bundle(), "inner.example", vec![uri], None, AppProtocol::Http, 503),
            (open, CaBundle::default(), "inner.example", vec![], None, AppProtocol::Http, 500),
            (strict, ca.bundle(), "inner.example", vec![], certificate, AppProtocol::Http, 200),
            (strict, ca.bundle(), "inner.example", vec![], None, AppProtocol::Http, 502),
        ];
        for (endpoint, roots, hostname, subject_alt_names, certificate, protocol, code) in cases {
            let mut world = World::default();
            let hostname = Hostname::parse(hostname).unwrap();
            let policy = BackendTls {
                hostname,
                roots: Some(roots),
                subject_alt_names,
                settings: TlsSettings::default(),
            };
            let tls = Some(Arc::new(policy));
            let backend = weft_core::config::Backend { tls, ..backend("app", protocol) };
            let to_app = world.service(backend, &[endpoint]);
            let mut config = world.gateway(vec![(None, vec![(prefix("/"), rule(to(&to_app)))])]);
            let mut all = (*config.gateways).clone();
            for gateway in all.values_mut() {
                Arc::make_mut(gateway).backend_client_certificate.clone_from(&certificate);
            }
            config.gateways = Arc::new(all);
            let gateway = Bed::new(config).gateway().await;
            let case = format!("{hostname:?} {protocol:?}", hostname = to_app.tls);
            assert_eq!(get(gateway, "/").await.0, code, "{case}");
        }
    });
}

/// B11: a policy's options were read by nobody.
#[test]
fn a_backend_is_spoken_to_by_no_less_than_the_policys_options_say() {
    run(async {
        let (app, ca) = (App::named("app").await, TestCa::new());
        let pair = ca.pair(&["inner.example"]);
        let old = tls_app_of(&[&rustls::version::TLS12], &pair, None, app.addr).await;
        let new = tls_app_of(&[&rustls::version::TLS13], &pair, None, app.addr).await;
        for (endpoint, min_version, code) in [
            (old, TlsVersion::V12, 200),
            (new, TlsVersion::V12, 200),
            (old, TlsVersion::V13, 503),
            (new, TlsVersion::V13, 200),
        ] {
            let policy = BackendTls {
                hostname: Hostname::parse("inner.example").unwrap(),
                roots: Some(ca.bundle()),
                subject_alt_names: Vec::new(),
                settings: TlsSettings { min_version, ..TlsSettings::default() },
            };
            let mut world = World::default();
            let tls = Some(Arc::new(policy));
            let backend = weft_core::config::Backend { tls, ..backend("app", AppProtocol::Http) };
            let to_app = world.service(backend, &[endpoint]);
            let config = world.gateway(vec![(None, vec![(prefix("/"), rule(to(&to_app)))])]);
            let gateway = Bed::new(config).gateway().await;
            assert_eq!(get(gateway, "/").await.0, code, "{min_version:?}");
        }
    });
}
