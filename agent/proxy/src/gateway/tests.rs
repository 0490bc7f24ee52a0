//! Listeners on loopback, with real workers.

use super::{DirectBind, GatewayEnv, GatewayListeners};
use crate::{
    context::{Limits, Shared},
    fixtures::TestSockets,
    http::tests::support::{App, LocalExec, World, backend, body, get, prefix, rule, run, to},
    telemetry::{AccessLogConfig, AccessLogOutput, Telemetry, TelemetryConfig},
    worker::Workers,
};
use http::{Request, Version};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair as Key};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_core::{
    balance::Weighted,
    config::{
        AppProtocol, BackendKey, BackendTls, ClientValidation, Config, GatewayConfig, HttpListener, L4Rule,
        PortConfig, RuleId, TlsListener, TlsTermination, Transport,
    },
    engine::Feedback,
    matching::{Entry, HostMap, Order, RouteTable},
    model::{CaBundle, Hostname, KeyPair, ObjectKey, PrivateKey, RouteKind, SpiffeId, SubjectAltName},
};

/// A loopback address of this test alone, so that ports never collide.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let [a, b] = (std::process::id() as u16).to_be_bytes();
    Ipv4Addr::new(127, 100 + (n % 100) as u8, a, b.max(1))
}

struct Edge {
    workers: Workers,
    shared: Arc<Shared>,
    listeners: GatewayListeners,
    version: u64,
}

impl Edge {
    fn start() -> Self {
        let telemetry = Telemetry::detached(TelemetryConfig {
            access_log: AccessLogConfig { output: AccessLogOutput::Off, ..Default::default() },
            ..TelemetryConfig::default()
        });
        let shared = Arc::new(Shared::new(Limits::default(), telemetry.unwrap()));
        let workers = Workers::start(2, Arc::clone(&shared)).unwrap();
        let listeners = GatewayListeners::new(GatewayEnv {
            bind: Arc::new(DirectBind),
            sockets: Arc::new(TestSockets::default()),
            identities: Arc::new(|_| None),
            grace: Duration::from_secs(1),
        });
        Self { workers, shared, listeners, version: 0 }
    }

    async fn apply(&mut self, mut config: Config) -> Feedback {
        self.version += 1;
        config.version = self.version;
        let config = Arc::new(config);
        self.shared.config.store(Arc::clone(&config));
        self.listeners.apply(&config, &self.workers).await.unwrap()
    }
}

/// Adds a Gateway to a Config.
fn gateway(config: &mut Config, name: &str, ip: Ipv4Addr, ports: Vec<(u16, PortConfig)>) {
    let key = ObjectKey::new("infra", name);
    let transport =
        |p: &PortConfig| if matches!(p, PortConfig::Udp(_)) { Transport::Udp } else { Transport::Tcp };
    let gateway = GatewayConfig {
        key: key.clone(),
        identity: SpiffeId::new("cluster.local", "infra", format!("{name}-weft")),
        addresses: vec![ip.into()],
        ports: ports.into_iter().map(|(n, p)| ((n, transport(&p)), p)).collect(),
        backend_client_certificate: None,
    };
    let mut all: BTreeMap<_, _> = (*config.gateways).clone();
    all.insert(key, Arc::new(gateway));
    config.gateways = Arc::new(all);
}

fn listener(name: &str, backend: &Arc<weft_core::config::Backend>) -> Arc<HttpListener> {
    let entry = Entry {
        hostname: None,
        matcher: prefix("/"),
        order: Order { created: 0, route: ObjectKey::new("shop", name), rule: 0, matched: 0 },
        policy: Arc::new(rule(to(backend))),
    };
    Arc::new(HttpListener {
        name: name.into(),
        hostname: None,
        table: Arc::new(RouteTable::build(vec![entry])),
    })
}

fn http(backend: &Arc<weft_core::config::Backend>) -> PortConfig {
    PortConfig::Http(HostMap::build([(None, listener("http", backend))]))
}

fn l4(backend: &Arc<weft_core::config::Backend>, kind: RouteKind) -> Arc<L4Rule> {
    Arc::new(L4Rule {
        id: RuleId { kind, route: ObjectKey::new("shop", "l4"), index: 0, name: None },
        backends: Weighted::build([(1, Ok(Arc::clone(backend)))]),
    })
}

#[test]
fn listeners_follow_the_config_and_leave_the_others_alone() {
    run(async {
        let app = App::named("app").await;
        let ip = own_ip();
        let mut edge = Edge::start();
        let config = |ports: &[u16]| {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            let mut config = world.0;
            gateway(&mut config, "edge", ip, ports.iter().map(|p| (*p, http(&only))).collect());
            config
        };
        let at = |port: u16| SocketAddr::from((ip, port));
        assert_eq!(edge.apply(config(&[8001])).await, Feedback::default());
        // A connection that stays open through all changes of other ports.
        let mut kept = crate::http::tests::support::h1_client(at(8001)).await;
        let many: Vec<u16> = (8001..8101).collect();
        assert_eq!(edge.apply(config(&many)).await, Feedback::default());
        for port in [8001, 8050, 8100] {
            assert_eq!(get(at(port), "/").await, (200, "app".into()), "{port}");
        }
        edge.apply(config(&[8001])).await;
        for _ in 0..3 {
            kept.ready().await.unwrap();
            let request = Request::get("/").header("host", "a").body(body("")).unwrap();
            assert_eq!(kept.send_request(request).await.unwrap().status(), 200);
        }
        // The socket closes when the worker gets to it.
        while TcpStream::connect(at(8050)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        edge.apply(Config::default()).await;
        while TcpStream::connect(at(8001)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        edge.workers.stop();
    });
}

#[test]
fn ports_that_cannot_be_bound_are_reported_and_tried_again() {
    run(async {
        let app = App::named("app").await;
        let ip = own_ip();
        let mut edge = Edge::start();
        let config = || {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            let mut config = world.0;
            gateway(&mut config, "a", ip, vec![(8001, http(&only)), (8002, http(&only))]);
            gateway(&mut config, "b", ip, vec![(8002, http(&only)), (8003, http(&only))]);
            config
        };
        let squatter = TcpListener::bind((ip, 8001)).unwrap();
        let feedback = edge.apply(config()).await;
        let why: Vec<_> =
            feedback.unbound.iter().map(|((g, p, _), why)| (g.to_string(), *p, &**why)).collect();
        assert!(why[0].2.contains("in use"), "{why:?}");
        assert_eq!((why[0].0.as_str(), why[0].1), ("infra/a", 8001));
        assert_eq!(why[1], ("infra/b".into(), 8002, format!("{ip}:8002: taken by Gateway infra/a").as_str()));
        assert_eq!(get((ip, 8003).into(), "/").await.0, 200);
        drop(squatter);
        assert_eq!(edge.apply(config()).await.unbound.len(), 1);
        assert_eq!(get((ip, 8001).into(), "/").await.0, 200);
        edge.workers.stop();
    });
}

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
        })
    }

    fn bundle(&self) -> CaBundle {
        CaBundle(Arc::new(vec![self.der.to_vec()]))
    }

    fn client(&self, alpn: &[&str], certificate: Option<&KeyPair>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = pair.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = PrivateKeyDer::try_from(pair.key.expose().to_vec()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn termination(
    certificates: Vec<Arc<KeyPair>>,
    client_ca: Option<ClientValidation>,
    http: bool,
) -> Arc<TlsTermination> {
    let alpn = if http { vec!["h2".into(), "http/1.1".into()] } else { Vec::new() };
    Arc::new(TlsTermination { certificates, client_ca, alpn })
}

async fn tls(
    addr: SocketAddr,
    name: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let io = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(config).connect(name, io).await
}

/// A request over HTTP/1.1 inside TLS; `Err` when the server would not have us.
async fn https_get(mut io: TlsStream<TcpStream>, host: &str) -> std::io::Result<String> {
    io.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn host(name: &str) -> Option<Hostname> {
    Some(Hostname::parse(name).unwrap())
}

#[test]
fn https_listeners_choose_by_server_name_and_refuse_the_hosts_of_others() {
    run(async {
        let (a, b) = (App::named("a").await, App::named("b").await);
        let ca = TestCa::new();
        let ip = own_ip();
        let mut edge = Edge::start();
        let mut world = World::default();
        let to_a = world.service(backend("a", AppProtocol::Http), &[a.addr]);
        let to_b = world.service(backend("b", AppProtocol::Http), &[b.addr]);
        let mut config = world.0;
        let https = |tls, http| Arc::new(TlsListener::Https { tls, http });
        let one = termination(vec![ca.pair(&["a.example"]), ca.pair(&["*.b.example"])], None, true);
        let hosts = HostMap::build([
            (host("a.example"), https(Arc::clone(&one), listener("a", &to_a))),
            (host("*.b.example"), https(one, listener("b", &to_b))),
        ]);
        gateway(&mut config, "edge", ip, vec![(8443, PortConfig::Tls(hosts))]);
        assert_eq!(edge.apply(config).await, Feedback::default());
        let addr = SocketAddr::from((ip, 8443));
        let client = ca.client(&["http/1.1"], None);
        // The client verifies the name: the right certificate was shown.
        for (name, body) in [("a.example", "a"), ("x.b.example", "b")] {
            let io = tls(addr, name, Arc::clone(&client)).await.unwrap();
            assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert!(https_get(io, name).await.unwrap().ends_with(body), "{name}");
        }
        // Tickets are good on either worker.
        for _ in 0..4 {
            let io = tls(addr, "a.example", Arc::clone(&client)).await.unwrap();
            assert_eq!(io.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
            https_get(io, "a.example").await.unwrap();
        }
        assert!(tls(addr, "other.example", Arc::clone(&client)).await.is_err(), "no listener has this name");
        // A host of another listener on this connection: 404 in HTTP/1.1, 421 in HTTP/2; an unknown one: 404.
        let io = tls(addr, "a.example", client).await.unwrap();
        assert!(https_get(io, "x.b.example").await.unwrap().starts_with("HTTP/1.1 404"));
        let io = tls(addr, "a.example", ca.client(&["h2"], None)).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, conn) =
            hyper::client::conn::http2::handshake(LocalExec, TokioIo::new(io)).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = conn.await;
        });
        for (name, code) in [("a.example", 200), ("x.b.example", 421), ("c.example", 404)] {
            let request = Request::get(format!("https://{name}/")).body(body("")).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), code, "{name}");
        }
        assert_eq!(a.last().version, Version::HTTP_11);
        assert_eq!(a.last().header("x-forwarded-proto"), Some("https"));
        edge.workers.stop();
    });
}

#[test]
fn client_certificates_are_demanded_or_only_asked_for() {
    run(async {
        let app = App::named("app").await;
        let (ca, clients, strangers) = (TestCa::new(), TestCa::new(), TestCa::new());
        let ip = own_ip();
        let mut edge = Edge::start();
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mut config = world.0;
        let port = |optional| {
            let validation = ClientValidation { roots: clients.bundle(), optional };
            let tls = termination(vec![ca.pair(&["a.example"])], Some(validation), true);
            let https = Arc::new(TlsListener::Https { tls, http: listener("a", &only) });
            PortConfig::Tls(HostMap::build([(None, https)]))
        };
        gateway(&mut config, "edge", ip, vec![(8443, port(false)), (8444, port(true))]);
        edge.apply(config).await;
        let (good, bad) = (clients.pair(&["c"]), strangers.pair(&["c"]));
        let cases = [
            (8443, None, false),
            (8443, Some(&good), true),
            (8443, Some(&bad), false),
            (8444, None, true),
            (8444, Some(&good), true),
            (8444, Some(&bad), true),
        ];
        for (port, certificate, served) in cases {
            let client = ca.client(&[], certificate.map(|c| &**c));
            // In TLS 1.3 the client learns of a refusal with its first read.
            let answer = match tls((ip, port).into(), "a.example", client).await {
                Ok(io) => https_get(io, "a.example").await,
                Err(e) => Err(e),
            };
            assert_eq!(
                answer.is_ok_and(|a| a.ends_with("app")),
                served,
                "{port} {:?}",
                certificate.is_some()
            );
        }
        edge.workers.stop();
    });
}

#[test]
fn tcp_and_tls_ports_pass_bytes() {
    run(async {
        let app = App::named("app").await;
        let ca = TestCa::new();
        let ip = own_ip();
        let mut edge = Edge::start();
        let mut world = World::default();
        let plain = world.service(backend("app", AppProtocol::Opaque), &[app.addr]);
        // The port itself is a TLS backend for the passthrough port.
        let inner = world.service(backend("tls", AppProtocol::Tls), &[SocketAddr::from((ip, 8443))]);
        let mut config = world.0;
        let terminate = TlsListener::Terminate {
            tls: termination(vec![ca.pair(&["a.example"])], None, false),
            routes: HostMap::build([(host("a.example"), l4(&plain, RouteKind::Tls))]),
        };
        let passthrough = TlsListener::Passthrough {
            routes: HostMap::build([(host("*.example"), l4(&inner, RouteKind::Tls))]),
        };
        gateway(
            &mut config,
            "edge",
            ip,
            vec![
                (8001, PortConfig::Tcp(Some(l4(&plain, RouteKind::Tcp)))),
                (8002, PortConfig::Tcp(None)),
                (8443, PortConfig::Tls(HostMap::build([(host("a.example"), Arc::new(terminate))]))),
                (8444, PortConfig::Tls(HostMap::build([(None, Arc::new(passthrough))]))),
            ],
        );
        edge.apply(config).await;
        assert_eq!(get((ip, 8001).into(), "/").await, (200, "app".into()));
        // A listener without a route resets; that may be seen as early as by connect.
        if let Ok(mut refused) = TcpStream::connect((ip, 8002)).await {
            assert!(refused.read(&mut [0; 1]).await.is_err());
        }
        for port in [8443, 8444] {
            let io = tls((ip, port).into(), "a.example", ca.client(&[], None)).await.unwrap();
            assert!(https_get(io, "a.example").await.unwrap().ends_with("app"), "{port}");
        }
        assert!(tls((ip, 8444).into(), "a.other", ca.client(&[], None)).await.is_err());
        edge.workers.stop();
    });
}

#[test]
fn udp_sessions_go_to_one_endpoint_and_back() {
    run(async {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = upstream.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = upstream.recv_from(&mut buffer).await {
                buffer[..n].reverse();
                upstream.send_to(&buffer[..n], from).await.unwrap();
            }
        });
        let ip = own_ip();
        let mut edge = Edge::start();
        let mut world = World::default();
        let mut dns = backend("dns", AppProtocol::Opaque);
        dns.key = BackendKey { transport: Transport::Udp, ..dns.key };
        let dns = world.service(dns, &[addr]);
        let mut config = world.0;
        gateway(&mut config, "edge", ip, vec![(8053, PortConfig::Udp(Some(l4(&dns, RouteKind::Udp))))]);
        assert_eq!(edge.apply(config).await, Feedback::default());
        let mut clients = Vec::new();
        for i in 0..8_u8 {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.connect((ip, 8053)).await.unwrap();
            client.send(&[1, 2, i]).await.unwrap();
            clients.push(client);
        }
        for (i, client) in clients.iter().enumerate() {
            let mut buffer = [0; 16];
            let n = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], &[i as u8, 2, 1]);
        }
        edge.workers.stop();
    });
}

/// A TLS backend; with `clients`, it demands a certificate of theirs.
async fn tls_app(pair: &KeyPair, clients: Option<&TestCa>, inner: SocketAddr) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
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
            let ip = own_ip();
            let mut edge = Edge::start();
            let mut world = World::default();
            let hostname = Hostname::parse(hostname).unwrap();
            let policy = BackendTls { hostname, roots: Some(roots), subject_alt_names };
            let tls = Some(Arc::new(policy));
            let backend = weft_core::config::Backend { tls, ..backend("app", protocol) };
            let to_app = world.service(backend, &[endpoint]);
            let mut config = world.0;
            gateway(&mut config, "edge", ip, vec![(8001, http(&to_app))]);
            let mut all = (*config.gateways).clone();
            for gateway in all.values_mut() {
                Arc::make_mut(gateway).backend_client_certificate.clone_from(&certificate);
            }
            config.gateways = Arc::new(all);
            edge.apply(config).await;
            let case = format!("{hostname:?} {protocol:?}", hostname = to_app.tls);
            assert_eq!(get((ip, 8001).into(), "/").await.0, code, "{case}");
            edge.workers.stop();
        }
    });
}
