//! A strict pod on loopback addresses, and a kubelet that the test plays.

use super::*;
use crate::{
    fixtures::{Mesh, TestPod},
    kubelet::{Kubelet, NotKubelet, Recognition},
    telemetry::{AccessLogConfig, AccessLogOutput, Telemetry, TelemetryConfig},
};
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use std::{collections::BTreeSet, io, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use weft_core::model::{DeclaredProbe, MtlsMode};

const PATIENCE: Duration = Duration::from_secs(20);

/// The kubelet's connections are those that the test says.
#[derive(Debug, Default)]
struct Played {
    own: Mutex<BTreeSet<SocketAddr>>,
    refused: Option<&'static str>,
}

impl Kubelet for Played {
    fn recognise(&self, client: SocketAddr, _: SocketAddr) -> Recognition<'_> {
        let own = self.refused.is_none() && self.own.lock().contains(&client);
        let why = self.refused.unwrap_or("not the kubelet: process 7 (curl)");
        Box::pin(std::future::ready(if own { Ok(()) } else { Err(NotKubelet::Other(why.to_owned())) }))
    }
}

struct World {
    mesh: Mesh,
    pod: TestPod,
    kubelet: Arc<Played>,
    app: SocketAddr,
    /// What each connection to the application said until it ended, out of TLS where it began one.
    heard: mpsc::Receiver<Vec<u8>>,
    /// With the access log.
    logs: tempfile::TempDir,
}

/// What the application does.
#[derive(Clone)]
struct Application {
    /// To the first words of each connection.
    answer: fn(&[u8]) -> Vec<u8>,
    /// For connections that begin with TLS.
    tls: Option<TlsAcceptor>,
    /// Whether it leaves the end of a connection to the other side.
    holds: bool,
}

impl Application {
    fn new(answer: fn(&[u8]) -> Vec<u8>) -> Self {
        Self { answer, tls: None, holds: false }
    }

    fn over_tls(answer: fn(&[u8]) -> Vec<u8>, config: ServerConfig) -> Self {
        Self { tls: Some(Arc::new(config).into()), ..Self::new(answer) }
    }

    async fn serve(self, io: TcpStream) -> Vec<u8> {
        let mut first = [0];
        let tls = matches!(io.peek(&mut first).await, Ok(1)) && first == [0x16];
        match self.tls.clone().filter(|_| tls) {
            None => self.converse(io).await,
            Some(tls) => match tls.accept(io).await {
                Ok(io) => self.converse(io).await,
                Err(error) => error.to_string().into_bytes(),
            },
        }
    }

    async fn converse(&self, mut io: impl AsyncRead + AsyncWrite + Unpin) -> Vec<u8> {
        let mut words = vec![0; 4096];
        let n = io.read(&mut words).await.unwrap_or(0);
        words.truncate(n);
        let _ = io.write_all(&(self.answer)(&words)).await;
        let _ = io.flush().await;
        if !self.holds {
            let _ = io.shutdown().await;
        }
        let _ = io.read_to_end(&mut words).await;
        words
    }
}

impl World {
    /// The application answers the first words of each connection, and ends it.
    async fn new(ip: &str, asks: &[ProbeAsk], answer: fn(&[u8]) -> Vec<u8>) -> Self {
        Self::with(Played::default(), ip, asks, Application::new(answer)).await
    }

    async fn with(kubelet: Played, ip: &str, asks: &[ProbeAsk], application: Application) -> Self {
        let kubelet = Arc::new(kubelet);
        let logs = tempfile::tempdir().unwrap();
        let output = AccessLogOutput::File(logs.path().join("access"));
        let access_log = AccessLogConfig { output, ..AccessLogConfig::default() };
        let telemetry = TelemetryConfig { access_log, ..TelemetryConfig::default() };
        let mesh = Mesh::with_kubelet(1, kubelet.clone(), Telemetry::detached(telemetry).unwrap());
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let app = listener.local_addr().unwrap();
        let (tell, heard) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let _ = tell.send(application.clone().serve(io).await).await;
            }
        });
        let pod = mesh.pod("b", ip, MtlsMode::Strict).await;
        pod.sockets.going_to(app);
        let world = Self { mesh, pod, kubelet, app, heard, logs };
        world.declare(asks);
        world
    }

    fn declare(&self, asks: &[ProbeAsk]) {
        let mut workload = (*self.pod.workload).clone();
        let declared = |ask: &ProbeAsk| DeclaredProbe { port: self.app.port(), ask: ask.clone() };
        workload.probes = asks.iter().map(declared).collect();
        let workload = Arc::new(workload);
        self.mesh.configure(|config| {
            config.workloads.insert(workload.ips[0], workload.clone());
        });
    }

    async fn connect(&self, kubelets: bool) -> TcpStream {
        self.try_connect(kubelets).await.unwrap()
    }

    /// A reset may be seen by connect already.
    async fn try_connect(&self, kubelets: bool) -> io::Result<TcpStream> {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let own = socket.local_addr().unwrap();
        if kubelets {
            self.kubelet.own.lock().insert(own);
        } else {
            self.kubelet.own.lock().remove(&own);
        }
        socket.connect(self.pod.inbound).await
    }

    fn get(&self, target: &str) -> Vec<u8> {
        format!("GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.app).into_bytes()
    }

    /// What comes back; `None` for a reset.
    async fn ask(&self, kubelets: bool, words: &[u8]) -> Option<Vec<u8>> {
        let work = async {
            let mut io = self.try_connect(kubelets).await?;
            io.write_all(words).await?;
            let mut answer = Vec::new();
            io.read_to_end(&mut answer).await?;
            io::Result::Ok(answer)
        };
        timeout(PATIENCE, work).await.expect("an end in time").ok()
    }

    /// The same inside TLS with these protocols on offer; `None` also for a failed handshake.
    async fn ask_inside(&self, alpn: &[&[u8]], words: &[u8]) -> Option<Vec<u8>> {
        let work = async {
            let mut io = self.tls(alpn).await?;
            io.write_all(words).await?;
            io.flush().await?;
            let mut answer = Vec::new();
            io.read_to_end(&mut answer).await?;
            io::Result::Ok(answer)
        };
        timeout(PATIENCE, work).await.expect("an end in time").ok()
    }

    /// A kubelet's connection with TLS on it.
    async fn tls(&self, alpn: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let config = weft_certs::anonymous_client(provider(), alpn).unwrap();
        let name = ServerName::IpAddress(self.app.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, self.try_connect(true).await?).await
    }

    /// Waits for a line of the access log that says this.
    async fn logged(&self, what: &str) {
        let path = self.logs.path().join("access");
        let written = async {
            while !std::fs::read_to_string(&path).unwrap().contains(what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let log = || std::fs::read_to_string(&path).unwrap();
        timeout(PATIENCE, written).await.unwrap_or_else(|_| panic!("no {what:?} in {}", log()));
    }

    /// What the application has heard; only after something that reached it.
    async fn heard(&mut self) -> String {
        let heard = timeout(PATIENCE, self.heard.recv()).await.expect("a connection in time");
        String::from_utf8_lossy(&heard.unwrap()).into_owned()
    }

    fn nothing_was_heard(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }
}

fn http(target: &str) -> ProbeAsk {
    ProbeAsk::Http { target: target.into(), headers: Vec::new() }
}

fn https(target: &str) -> ProbeAsk {
    ProbeAsk::Https { target: target.into(), headers: Vec::new() }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What kubelets offer for probes, and for handlers.
const KUBELETS: [&[&[u8]]; 2] = [&[b"h2", b"http/1.1"], &[]];

/// A server with a certificate of its own making.
fn tls_server() -> ServerConfig {
    let key = weft_certs::anonymous_certificate().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn ok(_: &[u8]) -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubelet_may_ask_a_strict_pod_what_its_spec_declares() {
    let mut world = World::new("127.11.1.2", &[http("/ready"), ProbeAsk::Tcp], ok).await;
    let ready = world.get("/ready");
    let answer = world.ask(true, &ready).await.unwrap();
    assert!(answer.ends_with(b"\r\n\r\nok"));
    assert_eq!(world.heard().await.into_bytes(), ready);
    // Another process' and another path, another pod's with the same addresses before.
    assert_eq!(world.ask(false, &ready).await, None);
    assert_eq!(world.ask(true, &world.get("/admin")).await, None);
    // Two at once; and one after the other on the same connection.
    let two = [ready.clone(), ready.clone()].concat();
    assert_eq!(world.ask(true, &two).await, None);
    // A tcpSocket probe: nothing passes.
    let mut tcp = world.connect(true).await;
    tcp.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, tcp.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert!(world.nothing_was_heard());
    // What is not declared any more is refused, by the Config of the moment.
    world.declare(&[]);
    assert_eq!(world.ask(true, &ready).await, None);
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

/// The same connection from the same address, with a kubelet to be sure of and without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_where_there_is_no_kubelet() {
    let check = async |ip: &str, refused: Option<&'static str>| {
        let kubelet = Played { refused, ..Played::default() };
        let mut world = World::with(kubelet, ip, &[http("/ready")], Application::new(ok)).await;
        let ready = world.get("/ready");
        let answer = world.ask(true, &ready).await;
        assert_eq!(answer.is_some(), refused.is_none(), "{refused:?}");
        if refused.is_none() {
            assert_eq!(world.heard().await.into_bytes(), ready);
        }
        assert!(world.nothing_was_heard(), "{refused:?}");
        world.mesh.stop().await;
    };
    check("127.11.2.2", None).await;
    check("127.11.2.3", Some("there is no kubelet")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_ends_the_connection() {
    // The application does not end it: its answer is open-ended.
    fn open(_: &[u8]) -> Vec<u8> {
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec()
    }
    let mut world = World::new("127.11.3.2", &[http("/ready")], open).await;
    let listener = TcpListener::bind(("127.11.3.2", 0)).await.unwrap();
    world.app = listener.local_addr().unwrap();
    world.pod.sockets.going_to(world.app);
    world.declare(&[http("/ready")]);
    let mut io = world.connect(true).await;
    io.write_all(&world.get("/ready")).await.unwrap();
    let (mut application, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    application.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let mut answer = [0; 19];
    timeout(PATIENCE, io.read_exact(&mut answer)).await.unwrap().unwrap();
    io.write_all(&world.get("/admin")).await.unwrap();
    let end = timeout(PATIENCE, io.read(&mut answer)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut heard = Vec::new();
    let _ = timeout(PATIENCE, application.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, world.get("/ready"), "the second request must not arrive");
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_may_go_where_the_application_has_sent_it() {
    fn moved(words: &[u8]) -> Vec<u8> {
        if words.starts_with(b"GET /ready ") {
            b"HTTP/1.1 302 Found\r\nLocation: /login?x=1\r\nContent-Length: 0\r\n\r\n".to_vec()
        } else {
            ok(words)
        }
    }
    let mut world = World::new("127.11.4.2", &[http("/ready")], moved).await;
    let login = world.get("/login?x=1");
    assert_eq!(world.ask(true, &login).await, None, "before the application said so");
    let redirect = world.ask(true, &world.get("/ready")).await.unwrap();
    assert!(redirect.starts_with(b"HTTP/1.1 302"));
    world.heard().await;
    assert!(world.ask(true, &login).await.unwrap().ends_with(b"ok"));
    world.heard().await;
    assert_eq!(world.ask(false, &login).await, None);
    assert_eq!(world.ask(true, &world.get("/login?x=2")).await, None);
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

/// Whoever takes over a connection of the kubelet's, or aims a probe of its own with `scheme: HTTPS`, got any request through:
/// TLS was passed on unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_probes_let_through_only_what_is_declared() {
    let application = Application::over_tls(ok, tls_server());
    let asks = [https("/ready?full=1"), http("/clear")];
    let mut world = World::with(Played::default(), "127.11.5.2", &asks, application).await;
    let ready = world.get("/ready?full=1");
    for alpn in KUBELETS {
        let answer = world.ask_inside(alpn, &ready).await.expect("the declared request");
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"\r\n\r\nok"), "{alpn:?}");
        assert_eq!(world.heard().await.into_bytes(), ready);
    }
    let with = |line: &str, more: &str| {
        format!("{line} HTTP/1.1\r\nHost: {}\r\n{more}Connection: close\r\n\r\n", world.app).into_bytes()
    };
    let refused = [
        ("another path", world.get("/admin")),
        ("another query", world.get("/ready?full=2")),
        ("what is declared in clear", world.get("/clear")),
        ("two at once", [ready.clone(), ready.clone()].concat()),
        ("another method", with("POST /ready?full=1", "")),
        ("another tenant's header", with("GET /ready?full=1", "X-Original-URL: /admin\r\n")),
        ("a body", with("GET /ready?full=1", "Content-Length: 0\r\n")),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("TLS inside TLS", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03".to_vec()),
        ("another protocol", b"SSH-2.0-x\r\n".to_vec()),
    ];
    for (what, words) in &refused {
        for alpn in KUBELETS {
            assert_eq!(world.ask_inside(alpn, words).await, None, "{what}");
        }
    }
    assert_eq!(world.ask_inside(&[b"h2"], &ready).await, None, "a protocol that is not judged");
    assert_eq!(world.ask(true, &ready).await, None, "in clear what is declared inside TLS");
    let hello = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03 and so on".as_slice();
    // An alert may come back.
    let answer = world.ask(true, hello).await.unwrap_or_default();
    assert!(answer.len() < 16, "{answer:?}");
    assert_eq!(world.ask(false, hello).await, None, "somebody else");
    for why in ["undeclared path /admin", "undeclared header X-Original-URL", "no TLS that a kubelet speaks"]
    {
        world.logged(why).await;
    }
    // Nothing is declared for TLS any more.
    world.declare(&[http("/ready?full=1")]);
    assert_eq!(world.ask_inside(&[], &ready).await, None);
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_inside_tls_ends_the_connection() {
    fn open(_: &[u8]) -> Vec<u8> {
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec()
    }
    let application = Application { holds: true, ..Application::over_tls(open, tls_server()) };
    let mut world = World::with(Played::default(), "127.11.5.3", &[https("/ready")], application).await;
    let mut io = world.tls(&[]).await.unwrap();
    io.write_all(&world.get("/ready")).await.unwrap();
    let mut answer = [0; 19];
    timeout(PATIENCE, io.read_exact(&mut answer)).await.unwrap().unwrap();
    io.write_all(&world.get("/admin")).await.unwrap();
    let end = timeout(PATIENCE, io.read(&mut answer)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(world.heard().await.into_bytes(), world.get("/ready"), "the second request must not arrive");
    world.logged("a second request on the connection of a probe").await;
    world.mesh.stop().await;
}

/// To another scheme, too: kubelets follow on the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_https_probe_may_go_where_the_application_has_sent_it() {
    fn moved(words: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(words);
        let host = text.split("Host: ").nth(1).and_then(|t| t.lines().next()).unwrap_or_default();
        let to = match text.split(' ').nth(1) {
            Some("/up") => format!("https://{host}/up2"),
            Some("/down") => format!("http://{host}/down2"),
            Some("/on") => "/on2".to_owned(),
            _ => return ok(words),
        };
        format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    }
    let application = Application::over_tls(moved, tls_server());
    let asks = [http("/up"), https("/down"), https("/on")];
    let mut world = World::with(Played::default(), "127.11.5.4", &asks, application).await;
    for (from, to, from_tls, to_tls) in
        [("/up", "/up2", false, true), ("/down", "/down2", true, false), ("/on", "/on2", true, true)]
    {
        let ask = async |world: &World, target: &str, tls: bool| {
            let words = world.get(target);
            if tls { world.ask_inside(KUBELETS[0], &words).await } else { world.ask(true, &words).await }
        };
        assert_eq!(ask(&world, to, to_tls).await, None, "{to} before the application said so");
        let answer = ask(&world, from, from_tls).await.unwrap_or_else(|| panic!("{from} is declared"));
        assert!(answer.starts_with(b"HTTP/1.1 302"), "{from}");
        world.heard().await;
        assert_eq!(ask(&world, to, !to_tls).await, None, "{to} by the other scheme");
        let answer = ask(&world, to, to_tls).await.unwrap_or_else(|| panic!("the way to {to} is known"));
        assert!(answer.ends_with(b"ok"), "{to}");
        assert!(world.heard().await.starts_with(&format!("GET {to} ")));
    }
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_does_not_speak_tls_fails_its_https_probe() {
    let mut world = World::new("127.11.5.5", &[https("/ready")], ok).await;
    assert_eq!(world.ask_inside(&[], &world.get("/ready")).await, None);
    assert!(!world.heard().await.contains("/ready"), "in clear it must not be asked");
    world.logged("the application does not speak TLS").await;
    // A kubelet asks a handler again in clear; it does not see that answer now, so that we do it in its place.
    world.declare(&[http("/ready"), https("/ready")]);
    let handler = |client: &str| {
        format!("GET /ready HTTP/1.1\r\nHost: {}\r\nUser-Agent: {client}/1.34\r\n\r\n", world.app)
    };
    let (handlers, probes) = (handler("kube-lifecycle"), handler("kube-probe"));
    assert!(world.ask_inside(&[], handlers.as_bytes()).await.unwrap().ends_with(b"ok"));
    assert!(!world.heard().await.contains("/ready"));
    assert!(world.heard().await.starts_with("GET /ready "));
    assert_eq!(world.ask_inside(&[], probes.as_bytes()).await, None);
    assert!(!world.heard().await.contains("/ready"));
    assert!(world.nothing_was_heard());
    world.mesh.stop().await;
}

/// A kubelet looks at no certificate, and has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_tls_is_taken_as_a_kubelet_takes_it() {
    let check = async |ip: &str, version: &'static SupportedProtocolVersion, demanding: bool| {
        let key = weft_certs::anonymous_certificate().unwrap();
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let builder = if demanding {
            let mut roots = RootCertStore::empty();
            roots.add(key.cert[0].clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        // Nothing that could be read as a certificate.
        let key = CertifiedKey::new(vec![b"nobody".to_vec().into()], key.key.clone());
        let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        let application = Application::over_tls(ok, config);
        let mut world = World::with(Played::default(), ip, &[https("/ready")], application).await;
        let answer = world.ask_inside(KUBELETS[0], &world.get("/ready")).await;
        assert_eq!(answer.is_some_and(|a| a.ends_with(b"ok")), !demanding, "{version:?}");
        assert_eq!(world.heard().await.contains("/ready"), !demanding, "{version:?}");
        if demanding {
            world.logged("demands a client's certificate").await;
        }
        world.mesh.stop().await;
    };
    check("127.11.5.6", &TLS12, false).await;
    check("127.11.5.7", &TLS13, false).await;
    check("127.11.5.8", &TLS12, true).await;
    check("127.11.5.9", &TLS13, true).await;
}

/// A call of a gRPC client over `io`: the status in the trailers, `None` for a reset.
async fn health(io: TcpStream, path: &str, message: &'static [u8]) -> Option<String> {
    let work = async {
        let (sender, connection) = h2::client::handshake(io).await.ok()?;
        let driver = tokio::spawn(connection);
        let mut sender = sender.ready().await.ok()?;
        let request =
            http::Request::post(format!("http://pod{path}")).header("content-type", "application/grpc");
        let request = request.header("te", "trailers").header("x-evil", "1").body(()).unwrap();
        let (answer, mut body) = sender.send_request(request, false).ok()?;
        body.send_data(Bytes::from_static(message), true).ok()?;
        let mut answer = answer.await.ok()?.into_body();
        while let Some(data) = answer.data().await {
            data.ok()?;
        }
        let trailers = answer.trailers().await.ok()??;
        driver.abort();
        trailers.get("grpc-status").map(|s| s.to_str().unwrap().to_owned())
    };
    timeout(PATIENCE, work).await.expect("an end in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_probe_is_one_health_check_of_the_declared_service() {
    let grpc = |service: &str| ProbeAsk::Grpc { service: service.into() };
    let mut world = World::new("127.11.6.2", &[grpc("shop"), grpc("")], ok).await;
    let listener = TcpListener::bind(("127.11.6.2", 0)).await.unwrap();
    world.app = listener.local_addr().unwrap();
    world.pod.sockets.going_to(world.app);
    world.declare(&[grpc("shop"), grpc("")]);
    let (tell, mut calls) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let mut server = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                let evil = request.headers().contains_key("x-evil");
                tell.send((request.uri().path().to_owned(), evil)).await.unwrap();
                let answer = http::Response::builder().header("content-type", "application/grpc");
                let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\x01"), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            }
        }
    });
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const SHOP: &[u8] = b"\0\0\0\0\x06\x0a\x04shop";
    const ANY: &[u8] = b"\0\0\0\0\0";
    for message in [SHOP, ANY] {
        assert_eq!(health(world.connect(true).await, CHECK, message).await.as_deref(), Some("0"));
        let called = timeout(PATIENCE, calls.recv()).await.unwrap().unwrap();
        assert_eq!(called, (CHECK.to_owned(), false), "headers of a stranger's do not pass");
    }
    for (kubelets, path, message) in [
        (false, CHECK, SHOP),
        (true, "/grpc.health.v1.Health/Watch", SHOP),
        (true, "/shop.Admin/Delete", SHOP),
        (true, CHECK, b"\0\0\0\0\x06\x0a\x04cart".as_slice()),
        (true, CHECK, b"\0\0\0\0\x08\x0a\x04shop\x10\x01"),
        (true, CHECK, b"\x01\0\0\0\x06\x0a\x04shop"),
        (true, CHECK, b"\0\0\0\0\x06\x0a\x04shop\0\0\0\0\0"),
        (true, CHECK, b""),
    ] {
        assert_eq!(health(world.connect(kubelets).await, path, message).await, None, "{path} {message:?}");
    }
    assert!(calls.try_recv().is_err());
    world.mesh.stop().await;
}

#[test]
fn only_a_plain_health_request_is_understood() {
    let long = [b"\0\0\0\0\xcb\x0a\xc8\x01".to_vec(), vec![b'a'; 200]].concat();
    let check = |message: &[u8], want: Option<&str>| assert_eq!(grpc::service(message), want, "{message:?}");
    check(b"\0\0\0\0\0", Some(""));
    check(b"\0\0\0\0\x02\x0a\0", Some(""));
    check(b"\0\0\0\0\x03\x0a\x01a", Some("a"));
    check(&long, Some(&"a".repeat(200)));
    check(b"\0\0\0\0\x03\x0a\x02a", None);
    check(b"\0\0\0\0\x03\x0a\0a", None);
    check(b"\0\0\0\0\x03\x12\x01a", None);
    check(b"\0\0\0\0\x03\x0a\x01\xff", None);
    check(b"\0\0\0\0\x04\x0a\x01a", None);
    check(b"\0\0\0\0\x02\x0a\x80", None);
    check(b"\x01\0\0\0\0", None);
    check(b"\0\0\0", None);
}

/// The kubelet's probes would be nearly all of what `weft status` lists as callers in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_no_callers_that_strict_would_refuse() {
    let mut world = World::new("127.11.7.2", &[http("/ready")], ok).await;
    let permissive = |probes: &[ProbeAsk]| {
        let mut workload = (*world.pod.workload).clone();
        workload.mode = MtlsMode::Permissive;
        let declared = |ask: &ProbeAsk| DeclaredProbe { port: world.app.port(), ask: ask.clone() };
        workload.probes = probes.iter().map(declared).collect();
        let workload = Arc::new(workload);
        world.mesh.configure(|config| {
            config.workloads.insert(workload.ips[0], workload.clone());
        });
    };
    permissive(&[http("/ready")]);
    let callers = |mesh: &Mesh| mesh.shared.plaintext.list().iter().map(|c| c.connections).sum::<u64>();
    let words = world.get("/anything");
    assert!(world.ask(true, &words).await.is_some());
    assert!(world.ask(false, &words).await.is_some());
    assert_eq!(callers(&world.mesh), 1, "the stranger, not the kubelet");
    permissive(&[]);
    assert!(world.ask(true, &words).await.is_some());
    assert_eq!(callers(&world.mesh), 2, "a port that it has no business with");
    for _ in 0..3 {
        world.heard().await;
    }
    world.mesh.stop().await;
}
