//! A mesh on loopback addresses for tests: no namespaces, no redirection. What the kernel would tell of a captured
//! connection, [`TestSockets`] tells instead.

use crate::{
    context::{Limits, Shared, Sockets},
    kubelet::Kubelet,
    pods::{CapturedPod, DataPlane, Listeners},
    telemetry::{Telemetry, TelemetryConfig},
    worker::Workers,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use weft_certs::{Ca, IdentityHandle, IdentityStore, LocalIssuer, StoreConfig};
use weft_core::{
    config::{
        AppProtocol, Backend, BackendKey, Config, Endpoint, EndpointSet, Frontend, MeshRoutes, Reach,
        Transport,
    },
    model::{MtlsMode, ObjectKey, SpiffeId, TunnelPort, Workload},
};

/// The trust domain of every test.
const TRUST_DOMAIN: &str = "cluster.local";

/// Plain sockets; every connection of a listener was "going to" one address.
#[derive(Debug, Default)]
pub(crate) struct TestSockets {
    original: Mutex<Option<SocketAddr>>,
    listening: Mutex<Option<Vec<IpAddr>>>,
}

impl TestSockets {
    /// From now on the application is seen to listen on these addresses, whatever the port.
    pub(crate) fn listens_on(&self, at: &[&str]) {
        *self.listening.lock() = Some(at.iter().map(|ip| ip.parse().expect("an IP")).collect());
    }

    /// From now on captured connections were going there.
    pub(crate) fn going_to(&self, to: SocketAddr) {
        *self.original.lock() = Some(to);
    }
}

impl Sockets for TestSockets {
    fn tcp(&self, ipv6: bool) -> io::Result<OwnedFd> {
        let domain = if ipv6 { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 };
        let kind = socket2::Type::STREAM.nonblocking();
        let socket = socket2::Socket::new(domain, kind, None)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    fn original_dst(&self, _: BorrowedFd<'_>) -> io::Result<SocketAddr> {
        self.original.lock().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn listening(&self, _: u16) -> futures_util::future::BoxFuture<'static, Option<Vec<IpAddr>>> {
        Box::pin(std::future::ready(self.listening.lock().clone()))
    }
}

/// A pod under test, as seen from outside.
pub(crate) struct TestPod {
    pub(crate) workload: Arc<Workload>,
    pub(crate) sockets: Arc<TestSockets>,
    /// Where its outbound connections are taken up.
    pub(crate) outbound: SocketAddr,
    /// Where plaintext to it is taken up.
    pub(crate) inbound: SocketAddr,
}

/// Listening sockets that outlive an agent.
pub(crate) struct Held(Listeners);

impl Held {
    /// Duplicates.
    pub(crate) fn again(&self) -> Self {
        let again = |l: &TcpListener| l.try_clone().expect("a duplicate");
        let Listeners { outbound, inbound, hbone } = &self.0;
        Self(Listeners { outbound: again(outbound), inbound: again(inbound), hbone: again(hbone) })
    }
}

/// A data plane that owns all pods of a test, with a CA.
pub(crate) struct Mesh {
    pub(crate) plane: DataPlane,
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<IdentityStore>,
    /// One for all pods of the mesh; their addresses differ.
    pub(crate) hbone_port: u16,
}

/// A made-up workload.
pub(crate) fn workload(name: &str, ip: IpAddr, enrolled: bool, mode: MtlsMode) -> Arc<Workload> {
    Arc::new(Workload {
        pod: ObjectKey::new("shop", name),
        ips: vec![ip],
        identity: SpiffeId::new(TRUST_DOMAIN, "shop", name),
        node: None,
        enrolled,
        labelled: enrolled,
        tunnel: TunnelPort::Hbone,
        mode,
        app: name.into(),
        probes: Arc::default(),
    })
}

/// Telemetry that nobody sees.
pub(crate) fn telemetry() -> Arc<Telemetry> {
    Telemetry::detached(TelemetryConfig::default()).expect("nothing to fail")
}

/// A CA and a store over it.
pub(crate) fn store() -> Arc<IdentityStore> {
    let ca = Ca::create(TRUST_DOMAIN, jiff::Timestamp::now()).expect("a CA");
    let issuer = Arc::new(LocalIssuer::new(ca, TRUST_DOMAIN));
    Arc::new(IdentityStore::new(issuer, StoreConfig::new(TRUST_DOMAIN)))
}

/// A ready identity.
pub(crate) async fn identity(store: &IdentityStore, id: &SpiffeId) -> IdentityHandle {
    let handle = store.acquire(id.clone());
    handle.ready(tokio::time::Instant::now() + Duration::from_secs(10)).await.expect("a certificate");
    handle
}

/// A port of this test process, on which every test listens at addresses of its own. Outside the ephemeral range: a
/// port that was free a moment ago may have become another socket's by then.
fn hbone_port() -> u16 {
    10_000 + u16::try_from(std::process::id() % 20_000).expect("below 20,000")
}

impl Mesh {
    pub(crate) fn start(workers: usize) -> Self {
        Self::with_limits(workers, Limits::default())
    }

    pub(crate) fn with_limits(workers: usize, limits: Limits) -> Self {
        Self::with(workers, Shared::new(limits, telemetry()))
    }

    /// On a node with this kubelet, with telemetry that somebody looks at.
    pub(crate) fn with_kubelet(workers: usize, kubelet: Arc<dyn Kubelet>, telemetry: Arc<Telemetry>) -> Self {
        let mut shared = Shared::new(Limits::default(), telemetry);
        shared.kubelet = kubelet;
        Self::with(workers, shared)
    }

    fn with(workers: usize, mut shared: Shared) -> Self {
        let hbone_port = hbone_port();
        shared.hbone_port = hbone_port;
        let shared = Arc::new(shared);
        let plane = DataPlane::new(Workers::start(workers, shared.clone()).expect("threads"));
        Self { plane, shared, store: store(), hbone_port }
    }

    /// From now on the pod is said to look for tunnels on its applications' ports.
    pub(crate) fn announce(&self, pod: &TestPod) -> Arc<Workload> {
        let workload = Workload { tunnel: TunnelPort::application([]), ..(*pod.workload).clone() };
        let workload = Arc::new(workload);
        self.configure(|config| {
            config.workloads.insert(workload.ips[0], workload.clone());
        });
        workload
    }

    /// Another agent with the same Config and CA.
    pub(crate) fn another(&self, workers: usize) -> DataPlane {
        DataPlane::new(Workers::start(workers, self.shared.clone()).expect("threads"))
    }

    /// What a holder holds for a pod.
    pub(crate) fn listeners(&self, ip: &str) -> Held {
        let listen = |port| TcpListener::bind((ip, port)).expect("a listener");
        Held(Listeners { outbound: listen(0), inbound: listen(0), hbone: listen(self.hbone_port) })
    }

    /// Captures a pod, and tells the Config of it.
    pub(crate) async fn pod(&self, name: &str, ip: &str, mode: MtlsMode) -> TestPod {
        self.capture(
            &self.plane,
            workload(name, ip.parse().expect("an IP"), true, mode),
            self.listeners(ip).0,
        )
        .await
    }

    /// As [`Self::pod`], strict, on another agent.
    pub(crate) async fn pod_on(&self, plane: &DataPlane, name: &str, ip: &str, held: Held) -> TestPod {
        let workload = workload(name, ip.parse().expect("an IP"), true, MtlsMode::Strict);
        self.capture(plane, workload, held.0).await
    }

    async fn capture(&self, plane: &DataPlane, workload: Arc<Workload>, listeners: Listeners) -> TestPod {
        let sockets = Arc::new(TestSockets::default());
        let at = |l: &TcpListener| l.local_addr().expect("an address");
        let pod = TestPod {
            workload: workload.clone(),
            sockets: sockets.clone(),
            outbound: at(&listeners.outbound),
            inbound: at(&listeners.inbound),
        };
        let identity = Some(identity(&self.store, &workload.identity).await);
        self.configure(|config| {
            config.workloads.insert(workload.ips[0], workload.clone());
        });
        plane.add_pod(CapturedPod { workload, identity, sockets, listeners }).await.expect("a served pod");
        pod
    }

    /// Edits what is served.
    pub(crate) fn configure(&self, edit: impl Fn(&mut Config)) {
        self.shared.config.rcu(|config| {
            let mut config = Config::clone(config);
            edit(&mut config);
            config
        });
    }

    /// A Service with these endpoints; gives its frontend address.
    pub(crate) fn service(&self, name: &str, protocol: AppProtocol, endpoints: &[Endpoint]) -> SocketAddr {
        let (frontend, to) = frontend(name, protocol, None);
        self.configure(|config| {
            let set = EndpointSet { ready: endpoints.to_vec() };
            config.endpoints.insert(frontend.default.key.clone(), Arc::new(set));
            config.frontends.insert(to, frontend.clone());
        });
        to
    }

    /// Ends the workers without blocking the test's runtime.
    pub(crate) async fn stop(self) {
        tokio::task::spawn_blocking(move || self.plane.stop()).await.expect("an orderly end");
    }
}

/// An endpoint in a pod of the mesh, or without one outside.
pub(crate) fn endpoint(addr: SocketAddr, workload: Option<&Arc<Workload>>) -> Endpoint {
    Endpoint { addr, workload: workload.cloned(), zone: None }
}

/// A made-up frontend on an address of TEST-NET-1.
pub(crate) fn frontend(
    name: &str,
    protocol: AppProtocol,
    routes: Option<MeshRoutes>,
) -> (Arc<Frontend>, SocketAddr) {
    let service = ObjectKey::new("shop", name);
    let key =
        BackendKey { service: service.clone(), port: 80, transport: Transport::Tcp, reach: Reach::default() };
    let default = Arc::new(Backend { key, protocol, tls: None, client_ip_affinity: None });
    let last = name.bytes().fold(0_u8, |a, b| a.wrapping_mul(31).wrapping_add(b));
    let frontend = Frontend {
        service,
        port: 80,
        external: None,
        protocol,
        producer: routes,
        consumers: BTreeMap::new(),
        default,
    };
    (Arc::new(frontend), SocketAddr::from(([192, 0, 2, last], 80)))
}
