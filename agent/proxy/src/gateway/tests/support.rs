//! A data plane with Gateways on loopback addresses, a Config built by hand, and small applications behind it.

use crate::{
    context::{Limits, Shared},
    fixtures::{TestSockets, telemetry},
    gateway::{DirectBind, GatewayListeners, Place},
    pods::DataPlane,
    worker::Workers,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair as Key};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_core::{
    balance::Weighted,
    config::{
        Action, AppProtocol, Backend, BackendKey, ClientValidation, Config, Endpoint, EndpointSet,
        FailReason, FilterChain, GatewayConfig, HttpBackend, HttpListener, HttpRule, L4Rule, PortConfig,
        Reach, RuleId, TlsListener, TlsTermination, Transport,
    },
    engine::Feedback,
    expiry::ListenerCertificate,
    matching::{Entry, HostMap, Order, RouteTable},
    model::{
        CaBundle, Hostname, KeyPair, Match, ObjectKey, PrivateKey, RouteKind, SpiffeId, Timeouts,
        TlsSettings, Validity,
    },
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Two workers, with listeners that follow [`Bed::apply`].
pub(super) struct Bed {
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: GatewayListeners,
    pub(super) ip: IpAddr,
    pub(super) config: Config,
}

impl Bed {
    /// `ip` is a loopback address of the test's own: port numbers need no luck then.
    pub(super) fn new(ip: &str) -> Self {
        Self::with_limits(ip, Limits::default())
    }

    pub(super) fn with_limits(ip: &str, limits: Limits) -> Self {
        let shared = Arc::new(Shared::new(limits, telemetry()));
        let plane = Arc::new(DataPlane::new(Workers::start(2, shared.clone()).unwrap()));
        let listeners = GatewayListeners::new(
            plane,
            Arc::new(DirectBind),
            Arc::new(TestSockets::default()),
            Box::new(|_| None),
        );
        Self { shared, listeners, ip: ip.parse().unwrap(), config: Config::default() }
    }

    /// A Gateway on the test's address with these ports, instead of the one of that name before.
    pub(super) fn gateway(
        &mut self,
        name: &str,
        ports: impl IntoIterator<Item = ((u16, Transport), PortConfig)>,
    ) {
        self.gateway_at(name, &[self.ip], ports);
    }

    pub(super) fn gateway_at(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        ports: impl IntoIterator<Item = ((u16, Transport), PortConfig)>,
    ) {
        let gateway = GatewayConfig {
            key: key(name),
            identity: SpiffeId::new("cluster.local", "infra", name),
            addresses: addresses.to_vec(),
            parameters: Default::default(),
            targets: Default::default(),
            ports: ports.into_iter().collect(),
            backend_client_certificate: None,
        };
        Arc::make_mut(&mut self.config.gateways).insert(gateway.key.clone(), Arc::new(gateway));
    }

    pub(super) fn remove(&mut self, name: &str) {
        Arc::make_mut(&mut self.config.gateways).remove(&key(name));
    }

    /// A Service with these endpoints.
    pub(super) fn service(
        &mut self,
        name: &str,
        transport: Transport,
        endpoints: &[SocketAddr],
    ) -> Arc<Backend> {
        let key = BackendKey {
            service: ObjectKey::new("shop", name),
            port: 80,
            transport,
            reach: Reach::default(),
        };
        let ready =
            endpoints.iter().map(|addr| Endpoint { addr: *addr, workload: None, zone: None }).collect();
        self.config.endpoints.insert(key.clone(), Arc::new(EndpointSet { ready }));
        Arc::new(Backend { key, protocol: AppProtocol::Http, tls: None, client_ip_affinity: None })
    }

    /// Puts the Config into effect as the binary does.
    pub(super) async fn apply(&mut self) -> Feedback {
        self.config.version += 1;
        let config = Arc::new(self.config.clone());
        self.shared.config.store(config.clone());
        timeout(PATIENCE, self.listeners.sync(&config)).await.expect("listeners in time")
    }

    /// As [`Self::apply`]; everything could be bound.
    pub(super) async fn apply_well(&mut self) {
        assert_eq!(self.apply().await, Feedback::default());
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    pub(super) fn places(&self) -> Vec<(Place, ObjectKey)> {
        self.listeners.places().map(|(place, gateway)| (*place, gateway.clone())).collect()
    }

    pub(super) fn metric(&self, line: &str) -> bool {
        self.shared.telemetry.render_metrics(false).lines().any(|l| l == line)
    }
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("infra", name)
}

pub(super) const fn tcp(port: u16) -> (u16, Transport) {
    (port, Transport::Tcp)
}

pub(super) fn host(name: &str) -> Option<Hostname> {
    (!name.is_empty()).then(|| Hostname::parse(name).unwrap())
}

fn id(kind: RouteKind) -> RuleId {
    RuleId { kind, route: ObjectKey::new("shop", "route"), index: 0, name: None }
}

/// An HTTP listener that sends everything to `backend`.
pub(super) fn http_listener(hostname: &str, backend: &Arc<Backend>) -> Arc<HttpListener> {
    let target = HttpBackend { target: Ok(backend.clone()), filters: FilterChain::default() };
    let rule = HttpRule {
        id: id(RouteKind::Http),
        label: "/".into(),
        filters: FilterChain::default(),
        action: Action::Forward(Weighted::build([(1, target)]).unwrap()),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let entry = Entry {
        hostname: None,
        matcher: Match::default(),
        order: Order { created: 0, route: rule.id.route.clone(), rule: 0, matched: 0 },
        policy: Arc::new(rule),
    };
    let table = Arc::new(RouteTable::build(vec![entry]));
    Arc::new(HttpListener { name: "listener".into(), hostname: host(hostname), table })
}

pub(super) fn http_port(backend: &Arc<Backend>) -> PortConfig {
    PortConfig::Http(HostMap::build([(None, http_listener("", backend))]))
}

pub(super) fn tls_port<'a>(listeners: impl IntoIterator<Item = (&'a str, TlsListener)>) -> PortConfig {
    PortConfig::Tls(HostMap::build(listeners.into_iter().map(|(name, l)| (host(name), Arc::new(l)))))
}

pub(super) fn https(hostname: &str, tls: &Arc<TlsTermination>, backend: &Arc<Backend>) -> TlsListener {
    TlsListener::Https { tls: tls.clone(), http: http_listener(hostname, backend) }
}

pub(super) fn l4_rule(
    kind: RouteKind,
    targets: impl IntoIterator<Item = (u32, Result<Arc<Backend>, FailReason>)>,
) -> Arc<L4Rule> {
    Arc::new(L4Rule { id: id(kind), backends: Weighted::build(targets) })
}

pub(super) fn termination(
    certificates: &[&Certificate],
    client_ca: Option<(&Certificate, bool)>,
) -> Arc<TlsTermination> {
    Arc::new(TlsTermination {
        certificates: certificates.iter().map(|c| c.listener()).collect(),
        client_ca: client_ca.map(|(ca, optional)| ClientValidation {
            roots: CaBundle(Arc::new(vec![ca.der.to_vec()])),
            optional,
        }),
        alpn: vec!["h2".into(), "http/1.1".into()],
        settings: TlsSettings::default(),
    })
}

/// For clients of which something is demanded.
pub(super) fn demanding(certificate: &Certificate, settings: TlsSettings) -> Arc<TlsTermination> {
    let termination = termination(&[certificate], None);
    Arc::new(TlsTermination { settings, ..(*termination).clone() })
}

/// A TLS client of one version and one cipher suite.
pub(super) fn client_of(server: &Certificate, suite: rustls::CipherSuite) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(server.der.clone()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite);
    let version = provider.cipher_suites[0].version();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// For bytes that nobody here understands: no ALPN is chosen.
pub(super) fn opaque_termination(certificate: &Certificate) -> Arc<TlsTermination> {
    Arc::new(TlsTermination {
        certificates: vec![certificate.listener()],
        client_ca: None,
        alpn: Vec::new(),
        settings: TlsSettings::default(),
    })
}

/// A certificate with its key.
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    key: Key,
    key_der: Vec<u8>,
    params: CertificateParams,
}

impl Certificate {
    /// A self-signed one that is no CA, and its own trust anchor: as the conformance suite makes them.
    pub(super) fn leaf(names: &[&str]) -> Self {
        Self::self_signed(names, Key::generate().unwrap())
    }

    /// The same with RSA-2048 and the key in PKCS#1, as the suite writes its Secrets.
    pub(super) fn rsa_leaf(names: &[&str]) -> Self {
        let key = Key::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        let mut leaf = Self::self_signed(names, key);
        // PKCS#8 is version and algorithm around it.
        leaf.key_der.drain(..26);
        leaf
    }

    fn self_signed(names: &[&str], key: Key) -> Self {
        let names = names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let params = CertificateParams::new(names).unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, key_der: key.serialize_der(), key, params }
    }

    /// A CA with the suite's subject: all of its CAs have the same one.
    pub(super) fn ca() -> Self {
        let key = Key::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, key_der: key.serialize_der(), key, params }
    }

    /// A client's certificate, without any name.
    pub(super) fn client_of(ca: &Self) -> Self {
        let key = Key::generate().unwrap();
        let params = CertificateParams::default();
        let issuer = Issuer::from_params(&ca.params, &ca.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self { der, key_der: key.serialize_der(), key, params }
    }

    fn pair(&self) -> Arc<KeyPair> {
        Arc::new(KeyPair {
            chain: vec![self.der.to_vec()],
            key: PrivateKey::new(self.key_der.clone()),
            names: Vec::new(),
            validity: Validity::default(),
        })
    }

    fn listener(&self) -> ListenerCertificate {
        ListenerCertificate { secret: ObjectKey::new("shop", "certificate"), pair: self.pair() }
    }
}

/// A TLS client that trusts `servers`.
pub(super) fn client(servers: &[&Certificate], own: Option<&Certificate>, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for server in servers {
        roots.add(server.der.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![own.der.clone()], key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

pub(super) async fn connect(
    client: &TlsConnector,
    to: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let io = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    timeout(PATIENCE, client.connect(name, io)).await.expect("a handshake in time")
}

/// An HTTP/1.1 application that answers its name.
pub(super) async fn http_app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let service = service_fn(move |_: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service),
            );
        }
    });
    addr
}

/// A TCP application that says its name, then echoes until its client ends.
pub(super) async fn tcp_app(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = io.split();
                let _ = write.write_all(name.as_bytes()).await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

/// Says `request`, ends its direction, reads all.
pub(super) async fn exchange(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
) -> std::io::Result<String> {
    let work = async move {
        io.write_all(request).await?;
        io.shutdown().await?;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(PATIENCE, work).await.expect("an answer in time")
}

/// An HTTP/1.1 connection.
pub(super) async fn http1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> SendRequest<Empty<Bytes>> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Status and body of a request.
pub(super) async fn get(
    sender: &mut SendRequest<Empty<Bytes>>,
    host: &str,
) -> Result<(u16, String), hyper::Error> {
    let request = Request::get("/").header("host", host).body(Empty::new()).unwrap();
    let work = async {
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((code, String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(PATIENCE, work).await.expect("an answer in time")
}

/// One request on a connection of its own.
pub(super) async fn get_once(to: SocketAddr, host: &str) -> Result<(u16, String), String> {
    let io = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    get(&mut http1(io).await, host).await.map_err(|e| e.to_string())
}
