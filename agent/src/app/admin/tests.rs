use super::{
    listen::{Entrance, listen},
    *,
};
use crate::cli::{Cli, Command};
use bytes::BytesMut;
use clap::Parser as _;
use rustls::crypto::aws_lc_rs;
use std::{
    convert::Infallible,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use weft_certs::anonymous_client;

/// Longer than anything here takes, on a busy machine too.
const SOON: Duration = Duration::from_secs(20);

/// Of 127.0.0.1 and ::1, where one is let in that dials the port of a listener at this address.
async fn check_families(ip: IpAddr, expected: [bool; 2]) {
    let listener = listen(SocketAddr::new(ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let dial = async |to: IpAddr| TcpStream::connect((to, port)).await.is_ok();
    let found = [dial(Ipv4Addr::LOCALHOST.into()).await, dial(Ipv6Addr::LOCALHOST.into()).await];
    assert_eq!(found, expected, "{ip}");
}

/// Where a node's first address is of IPv6 the chart's pre-delete hook asks at that one, and no agent listened there: `helm
/// uninstall` failed.
#[tokio::test]
async fn an_agent_answers_at_addresses_of_either_family() {
    let Command::Agent(args) = Cli::try_parse_from(["weft", "agent", "--node=n1"]).unwrap().command else {
        panic!("not an agent");
    };
    check_families(args.metrics.ip(), [true, true]).await;
    // What is to be for one alone stays so.
    let Command::Run(args) = Cli::try_parse_from(["weft", "run", "--config=x"]).unwrap().command else {
        panic!("not a run");
    };
    check_families(args.admin.ip(), [true, false]).await;
    check_families(args.metrics.ip(), [true, false]).await;
    check_families(Ipv4Addr::UNSPECIFIED.into(), [true, false]).await;
    check_families(Ipv6Addr::LOCALHOST.into(), [false, true]).await;
}

#[test]
fn status_and_certificates_are_for_the_operator_only() {
    let check = |door: Door, pages: &[&str], open: &[&str]| {
        let all = ["/", "/metrics", "/healthz", "/readyz", "/leaving", "/status", "/node", "/certificates"];
        let of =
            |shown: &dyn Fn(&str) -> bool| all.into_iter().filter(|page| shown(page)).collect::<Vec<_>>();
        assert_eq!(of(&|page| door.shows(page)), pages, "{door:?}");
        assert_eq!(of(&|page| door.tells_anybody(page)), open, "{door:?}");
    };
    check(
        Door::Admin,
        &["/", "/metrics", "/healthz", "/readyz", "/leaving", "/status", "/node", "/certificates"],
        &[],
    );
    check(Door::Metrics, &["/metrics"], &[]);
    check(Door::Network, &["/metrics", "/leaving"], &["/leaving"]);
}

/// A process with its pages on the network and on a Unix socket; its API server lets in one token's bearer.
struct House {
    pages: Arc<Pages>,
    at: SocketAddr,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
    stop: CancellationToken,
}

impl House {
    async fn open(door: Door) -> Self {
        let telemetry = Telemetry::detached(weft_proxy::telemetry::TelemetryConfig::default()).unwrap();
        let pages = Arc::new(Pages::new(telemetry, Arc::new(Mutex::new(Seen::default())), None));
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let socket = dir.path().join("admin.sock");
        serve_socket(&socket, pages.clone(), stop.clone()).unwrap();
        let listener = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let entrance = Entrance::new(door, pages.clone(), stop.clone()).unwrap();
        tokio::spawn(stop.clone().run_until_cancelled_owned(entrance.accept(listener)));
        Self { pages, at, socket, _dir: dir, stop }
    }

    fn lets_in_scrapers(&self) {
        let service = tower::service_fn(|request: Request<kube::client::Body>| async move {
            let (head, body) = request.into_parts();
            let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
            review["status"] = match head.uri.path() {
                "/apis/authentication.k8s.io/v1/tokenreviews" if token == scraper("prometheus") => {
                    json!({"authenticated": true, "user": {"username": "prometheus"}})
                }
                "/apis/authentication.k8s.io/v1/tokenreviews" if token == scraper("web") => {
                    json!({"authenticated": true, "user": {"username": "web"}})
                }
                "/apis/authentication.k8s.io/v1/tokenreviews" => json!({"authenticated": false}),
                _ => json!({"allowed": review["spec"]["user"] == "prometheus"}),
            };
            Ok::<_, Infallible>(Response::new(kube::client::Body::from(review.to_string().into_bytes())))
        });
        assert!(self.pages.access.set(AccessReviewer::new(kube::Client::new(service, "default"))).is_ok());
    }

    async fn dial(&self, last: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(Ipv4Addr::new(127, 0, 9, last).into(), 0)).unwrap();
        socket.connect(self.at).await.unwrap()
    }

    /// The answer's status to a request over TLS, and its page.
    async fn ask(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let tls = anonymous_client(Arc::new(aws_lc_rs::default_provider()), &[b"http/1.1"]).unwrap();
        let stream = self.dial(1).await;
        let asking = async {
            let mut stream = TlsConnector::from(Arc::new(tls)).connect(self.at.ip().into(), stream).await?;
            let token = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{token}\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = timeout(SOON, asking).await.expect("an answer in time").unwrap();
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), page.to_owned())
    }

    /// What a probe finds.
    async fn healthy(&self) -> bool {
        let asking = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            let mut answer = BytesMut::new();
            while stream.read_buf(&mut answer).await? > 0 {}
            std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
        };
        timeout(SOON, asking).await.expect("an answer in time").unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A token of an account that nobody has signed.
fn scraper(account: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": "https://api", "sub": account, "aud": ["api"], "exp": 4_000_000_000_u64});
    format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(claims))
}

/// Any pod could read them: they say who talks to whom.
#[tokio::test]
async fn metrics_are_for_whom_the_api_server_lets_read_them() {
    let house = House::open(Door::Network).await;
    let (good, other, forged) = (scraper("prometheus"), scraper("web"), scraper("forged"));
    assert_eq!(house.ask("/metrics", Some(&good)).await.0, 503, "nobody can be asked yet");
    house.lets_in_scrapers();
    let table = [
        ("/metrics", Some(good.as_str()), 200),
        ("/metrics", None, 401),
        ("/metrics", Some("garbage"), 401),
        ("/metrics", Some(forged.as_str()), 401),
        ("/metrics", Some(other.as_str()), 403),
        ("/status", Some(good.as_str()), 404),
        ("/node", Some(good.as_str()), 404),
        ("/certificates", None, 404),
        ("/healthz", None, 404),
        // Nobody's node is served here; where one is, its state and no names.
        ("/leaving", None, 503),
    ];
    for (path, token, status) in table {
        let (answered, page) = house.ask(path, token).await;
        assert_eq!(answered, status, "{path} {token:?}: {page}");
        assert_eq!(page.contains("weft_"), status == 200, "{path} {token:?}: {page}");
    }
    // In clear nothing is said, and no token asked for.
    let mut stream = house.dial(2).await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an end");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

/// Half a request each, ten times as many as there are places, from two addresses and from many: probes are answered, so are
/// scrapers, and who says nothing is gone after two seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_requests_keep_nobody_from_the_pages() {
    // By TLS the beginning of a handshake, else that of a request.
    let halves: [(Door, &[u8]); 2] =
        [(Door::Network, &[0x16, 3, 1, 2, 0, 1, 0]), (Door::Metrics, b"GET /metrics HTTP/1.1\r\nHost: ")];
    for (door, half) in halves {
        let house = House::open(door).await;
        house.lets_in_scrapers();
        let all = budget::PAGE_STRANGERS.size();
        let mut held = Vec::new();
        for n in 0..10 * all {
            // The first half from two addresses only.
            let from = if n < 5 * all { 2 + n % 2 } else { 4 + n % (all / 2) };
            let mut stream = house.dial(u8::try_from(from).unwrap()).await;
            let _ = stream.write_all(half).await;
            held.push(stream);
            assert!(house.pages.strangers.strangers() <= all);
            if n % all == 0 {
                assert!(house.healthy().await, "a probe is answered");
            }
        }
        let start = Instant::now();
        assert!(house.healthy().await);
        if door == Door::Network {
            assert_eq!(house.ask("/metrics", Some(&scraper("prometheus"))).await.0, 200);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let reached = house.pages.reached();
        assert!(reached["page-strangers"] > 0 && reached["page-strangers-per-address"] > 0, "{reached:?}");
        // Theirs is the time of a head, whether they go on or not.
        let start = Instant::now();
        while house.pages.strangers.strangers() > 0 {
            assert!(start.elapsed() < SOON, "they stay");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(held);
    }
}
