//! Client and server over loopback with real TLS.

mod cache;
mod deciding;
mod hostile;
mod signing;
mod stolen;
mod strangers;
mod streams;
mod wire_format;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_certs::{Ca, TrustBundle};
use weft_core::model::{
    CaBundle, Capture, ConfigMap, FromNamespaces, Gateway, KeyPair, Meta, ObjectKey, Pod, PrivateKey, Secret,
    SecretData, Snapshot, Str, TunnelPort, Validity,
};

use crate::{
    AppliedGateway, AuthFuture, Authenticate, Caller, ClientConfig, ControlClient, ControlServer, Denied,
    Leading, Limits, Material, Materials, ServerConfig, Serving, Watermark, WorldAuthorizer,
};

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(30);
const KEY_BYTES: &[u8] = b"0123456789-this-is-a-private-key-9876543210";

/// A controller and the world that it sees.
struct Bench {
    ca: watch::Sender<Option<Arc<Ca>>>,
    worlds: watch::Sender<Arc<Snapshot>>,
    serving: watch::Sender<Arc<Serving>>,
    materials: watch::Sender<Arc<Materials>>,
    listener: std::net::TcpListener,
    dir: TempDir,
}

/// A server that runs.
struct Running {
    server: ControlServer,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.expect("the server stops").unwrap().unwrap();
    }

    fn count(&self, what: &str) -> u64 {
        self.server.counters().get(what).copied().unwrap_or(0)
    }

    /// Connections that nobody is known to have made.
    fn strangers(&self) -> usize {
        self.server.under_way().0
    }

    fn reviews_under_way(&self) -> usize {
        self.server.under_way().1
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let waited = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, waited).await.is_err() {
            panic!("not yet: {what}; {:?}", self.server.counters());
        }
    }

    async fn until_counted(&self, what: &str, at_least: u64) {
        self.until(&format!("{what} is {at_least}"), |running| running.count(what) >= at_least).await;
    }
}

impl Bench {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            ca: watch::Sender::new(Some(Arc::new(new_ca()))),
            worlds: watch::Sender::new(Arc::new(Snapshot::default())),
            serving: watch::Sender::new(Arc::default()),
            materials: watch::Sender::new(Arc::default()),
            listener,
            dir: TempDir::new().unwrap(),
        }
    }

    /// A leading server. Servers that follow each other share the listening socket, so that nobody else can have the
    /// port in between.
    fn serve(&self, limits: Limits) -> Running {
        self.serve_with(limits, Arc::new(Tokens))
    }

    /// The same with another judge of tokens.
    fn serve_with(&self, limits: Limits, authenticate: Arc<dyn Authenticate>) -> Running {
        let authorize = WorldAuthorizer {
            worlds: self.worlds.subscribe(),
            snapshot: |snapshot: &Snapshot| snapshot,
            serving: self.serving.subscribe(),
            gateway_account: |gateway| format!("{gateway}-weft").into(),
            trust_domain: "cluster.local".into(),
        };
        let (ca, materials) = (self.ca.subscribe(), self.materials.subscribe());
        let config = ServerConfig::new("cluster.local", ca, authenticate, Arc::new(authorize), materials);
        let server = ControlServer::new(ServerConfig { limits, ..config });
        server.set_leading(Leading { leader: true, holder: "us".into() });
        let listener = tokio::net::TcpListener::from_std(self.listener.try_clone().unwrap()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (server, stop) = (server.clone(), stop.clone());
            async move { server.serve(listener, stop).await }
        });
        Running { server, stop, task }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn roots(&self) -> TrustBundle {
        self.ca.borrow().as_ref().unwrap().bundle().clone()
    }

    fn token_file(&self, node: &str) -> PathBuf {
        self.dir.path().join(format!("token-{node}"))
    }

    fn write_token(&self, node: &str, token: &str) {
        std::fs::write(self.token_file(node), format!("{token}\n")).unwrap();
    }

    /// The client of a node, with the token of that node.
    fn config(&self, node: &str) -> ClientConfig {
        self.write_token(node, &format!("agent@{node}"));
        let address = watch::Sender::new(Some(self.address())).subscribe();
        let roots = watch::Sender::new(Some(self.roots())).subscribe();
        let cache_dir = Some(self.dir.path().join(format!("cache-{node}")));
        ClientConfig { token: self.token_file(node), cache_dir, ..ClientConfig::new(address, roots, node) }
    }

    fn client(&self, node: &str) -> ControlClient {
        ControlClient::start(self.config(node))
    }

    fn pods(&self, pods: &[(&str, &str, &str)]) {
        let pods = pods.iter().map(|(key, account, node)| {
            let pod = pod(key, account, node);
            (pod.meta.key.clone(), Arc::new(pod))
        });
        let pods = pods.collect();
        self.worlds.send_replace(Arc::new(Snapshot { pods, ..Snapshot::default() }));
    }

    fn material(&self, node: &str, material: Material) {
        self.materials.send_modify(|all| {
            let mut changed = (**all).clone();
            changed.insert(node.into(), Arc::new(material));
            *all = Arc::new(changed);
        });
    }
}

fn new_ca() -> Ca {
    Ca::create("cluster.local", Timestamp::now()).unwrap()
}

/// Tokens that say what they are: `agent@<node>`, `<namespace>/<account>@<node>`, or a failure by name.
struct Tokens;

impl Authenticate for Tokens {
    fn recall(&self, _token: &str) -> Option<Result<Caller, Denied>> {
        None
    }

    fn authenticate<'a>(&'a self, token: &'a str) -> AuthFuture<'a> {
        let answer = match token {
            "expired" => Err(Denied::Expired),
            "audience" => Err(Denied::WrongAudience("api".into())),
            "unbound" => Err(Denied::Unbound("no node".into())),
            "away" => Err(Denied::Unavailable("the API server is away".into())),
            _ => token.split_once('@').map(caller).ok_or_else(|| Denied::Invalid("garbage".into())),
        };
        Box::pin(std::future::ready(answer))
    }
}

fn caller((account, node): (&str, &str)) -> Caller {
    let (namespace, service_account) = account.split_once('/').unwrap_or(("weft-system", "weft-agent"));
    Caller {
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod: "weft-agent-x".into(),
        pod_uid: "u".into(),
        node: node.into(),
    }
}

fn key(key: &str) -> ObjectKey {
    let (namespace, name) = key.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn meta(of: &str) -> Meta {
    Meta {
        key: key(of),
        uid: format!("uid-{of}").into(),
        generation: 1,
        created: 0,
        labels: BTreeMap::default(),
        annotations: BTreeMap::default(),
        origin: None,
    }
}

fn pod(key: &str, account: &str, node: &str) -> Pod {
    Pod {
        meta: meta(key),
        ips: Vec::new(),
        service_account: account.into(),
        node: (!node.is_empty()).then(|| node.into()),
        host_network: false,
        finished: false,
        probes: Arc::default(),
        captured: None,
        proved: Vec::new(),
        tunnel: TunnelPort::default(),
    }
}

/// A capture whose pod's agent looks for tunnels on the application's ports.
fn capture(uid: &str) -> Capture {
    Capture { uid: uid.into(), tunnel: TunnelPort::application([]), addresses: vec![[10, 1, 0, 1].into()] }
}

fn gateway(of: &str, generation: i64) -> Gateway {
    Gateway {
        meta: Meta { generation, ..meta(of) },
        class: "weft".into(),
        listeners: Vec::new(),
        addresses: Vec::new(),
        infrastructure: None,
        allowed_listeners: FromNamespaces::None,
        backend_client_certificate: None,
        frontend_tls: None,
        default_scope: None,
    }
}

fn secret(of: &str) -> Arc<Secret> {
    let pair = KeyPair {
        chain: vec![b"leaf".to_vec(), b"intermediate".to_vec()],
        key: PrivateKey::new(KEY_BYTES.to_vec()),
        names: vec!["shop.example".into()],
        validity: Validity { not_before: 1_700_000_000, not_after: 1_800_000_000 },
    };
    Arc::new(Secret { meta: meta(of), data: SecretData::Tls(Arc::new(pair)), broken: None })
}

fn config_map(of: &str, certificate: Vec<u8>) -> Arc<ConfigMap> {
    let ca = Some(Ok(CaBundle(Arc::new(vec![certificate]))));
    Arc::new(ConfigMap { meta: meta(of), ca, broken: None, parameters: None })
}

fn material(secrets: &[&str], config_maps: &[&str]) -> Material {
    Material {
        secrets: secrets.iter().map(|of| (key(of), secret(of))).collect(),
        config_maps: config_maps.iter().map(|of| (key(of), config_map(of, b"ca".to_vec()))).collect(),
    }
}

fn applied(gateways: &[(&str, i64)]) -> BTreeMap<ObjectKey, AppliedGateway> {
    let one = |(gateway, generation): &(&str, i64)| {
        let mark = Watermark { generation: *generation, ..Watermark::default() };
        (key(gateway), AppliedGateway { mark, ..AppliedGateway::default() })
    };
    gateways.iter().map(one).collect()
}

/// Waits for a value that fits; gives it.
async fn until<T: Clone + std::fmt::Debug>(
    values: &mut watch::Receiver<T>,
    fits: impl FnMut(&T) -> bool,
) -> T {
    let found = timeout(SOON, values.wait_for(fits)).await.map(|found| found.map(|value| value.clone()));
    match found {
        Ok(Ok(value)) => value,
        _ => panic!("the awaited value did not come; the last one is {:?}", *values.borrow()),
    }
}

async fn connected(client: &ControlClient) {
    until(&mut client.state(), |state| state.connected).await;
}

fn names<'a, T: 'a>(of: impl IntoIterator<Item = (&'a ObjectKey, &'a T)>) -> Vec<String> {
    of.into_iter().map(|(key, _)| key.to_string()).collect()
}

fn node(name: &str) -> Str {
    name.into()
}
